"""Start a server, and end it without losing a request."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import socket
import stat
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import uvicorn
from uvicorn.config import STARTUP_FAILURE

from recbole_hydra.errors import RecBoleHydraError, ServeError
from recbole_hydra.serving.server.app import make_app
from recbole_hydra.serving.server.live import LiveModel
from recbole_hydra.serving.server.service import Service
from recbole_hydra.serving.stores import open_store

#: The environment variable with the token, and the one with which processes are told what to serve.
TOKEN, PLAN = "RECBOLE_HYDRA_TOKEN", "RECBOLE_HYDRA_SERVE"

#: Addresses that only this machine reaches.
LOCAL = ("127.0.0.1", "::1", "localhost")

#: Characters of a token at least.
SHORTEST_TOKEN = 16

#: Seconds that requests have to be answered in after SIGTERM.
PATIENCE = 30


@dataclass
class Plan:
    """What is served, and how.

    Attributes:
        checkpoint, store, recompute, items, index: see :class:`~recbole_hydra.Recommender`.
        host, port: where; port 0 takes a free one.
        workers: processes; more than one needs a store in Redis.
        token_file: a file with the token; without, the environment variable RECBOLE_HYDRA_TOKEN.
        watch: a folder whose newest checkpoint takes over; ``POST /model`` takes files of it, too.
        batch_ms: milliseconds that a request may wait for others to be computed with it.
    """

    checkpoint: str
    store: str | None = None
    host: str = "127.0.0.1"
    port: int = 8000
    workers: int = 1
    token_file: str | None = None
    watch: str | None = None
    recompute: bool = False
    items: str | None = None
    index: str | None = None
    batch_ms: float = 0.0


def serve(plan: Plan) -> None:
    """Serve until SIGTERM or SIGINT; what was asked before is answered, and the store closed.

    Raises:
        ServeError: the port is in use, another host without a token, a token that is too short or
            in a file that others can read, no such folder, several processes without Redis.
        CheckpointError, ConfigError, StoreError: as of :class:`~recbole_hydra.Recommender`.
    """
    token = token_of(plan)
    if plan.watch is not None and not Path(plan.watch).is_dir():
        raise ServeError(f"watch: there is no folder {plan.watch}")
    if plan.workers > 1:
        needs_redis(plan, f"workers: {plan.workers}")
    with _listening(plan) as listener:
        how: dict[str, Any] = {
            "log_level": "warning", "access_log": False, "lifespan": "on", "server_header": False,
            "timeout_graceful_shutdown": PATIENCE,
        }  # fmt: skip
        address = f"http://{plan.host}:{listener.getsockname()[1]}"
        _log()
        if plan.workers == 1:
            app = make_app(service_of(plan), token, hosts_of(plan, token))
            print(f"{address}: ready", flush=True)
            uvicorn.Server(uvicorn.Config(app, **how)).run(sockets=[listener])
            return
        service_of(plan).live.service.close()  # what cannot be served is said here, once
        os.environ[PLAN] = json.dumps(asdict(plan))
        print(f"{address}: {plan.workers} processes start", flush=True)
        uvicorn.run(
            "recbole_hydra.serving.server.run:app_of_process", factory=True, workers=plan.workers,
            fd=listener.fileno(), **how,
        )  # fmt: skip


def app_of_process() -> Any:
    """The application of one of several processes."""
    _log()
    plan = Plan(**json.loads(os.environ[PLAN]))
    try:
        # Another model may have taken over since the first process looked at the store.
        service = service_of(replace(plan, recompute=True))
        token = token_of(plan)
        return make_app(service, token, hosts_of(plan, token))
    except RecBoleHydraError as error:
        print(f"recbole-hydra: error: {error}", file=sys.stderr, flush=True)
        sys.exit(STARTUP_FAILURE)  # the others end, too


def _log() -> None:
    """Say on stderr which model takes over, and which is not taken."""
    logging.basicConfig(format="%(asctime)s %(message)s")
    logging.getLogger("recbole_hydra.serving").setLevel(logging.INFO)


def hosts_of(plan: Plan, token: str | None) -> tuple[str, ...] | None:
    """What requests may call this server; anything where they bring a token. A page of another
    server, in a browser on this machine, could else have its name point here."""
    return None if token is not None else (*LOCAL, plan.host)


def needs_redis(plan: Plan, who: str) -> None:
    """Refuse a store that several processes cannot share."""
    if not str(plan.store).startswith(("redis://", "rediss://", "unix://")):
        raise ServeError(f"{who} processes share users by Redis; pass --store=redis://HOST:PORT/0")


def service_of(plan: Plan) -> Service:
    """What an application works with, as a plan has it.

    Raises:
        CheckpointError, ConfigError, StoreError: as of :class:`~recbole_hydra.Recommender`.
    """
    store = open_store(plan.store)
    try:
        live = LiveModel(plan.checkpoint, store, plan.watch, plan.recompute, plan.items, plan.index)
    except BaseException:
        store.close()
        raise
    return Service(live, plan.batch_ms / 1000, plan.watch is not None, plan.workers == 1)


def token_of(plan: Plan) -> str | None:
    """The token, from the file or the environment; None for none.

    Raises:
        ServeError: see :func:`serve`.
    """
    token = os.environ.get(TOKEN)
    if plan.token_file is not None:
        path = Path(plan.token_file)
        try:
            mode = path.stat().st_mode
            token = path.read_text(encoding="utf-8").strip()
        except (OSError, UnicodeDecodeError) as error:
            why = getattr(error, "strerror", None) or error
            raise ServeError(f"token_file {path}: cannot be read ({why})") from error
        if mode & (stat.S_IRWXG | stat.S_IRWXO):
            raise ServeError(f"token_file {path}: others can read it; chmod 600 {path}")
    if token is None:
        if plan.host not in LOCAL:
            raise ServeError(
                f"host {plan.host}: others reach it, so requests must bring a token; pass "
                f"--token_file=FILE, a file that only you can read, or set {TOKEN}"
            )
        return None
    if len(token) < SHORTEST_TOKEN or not token.isascii() or not token.isprintable():
        raise ServeError(f"token: needs at least {SHORTEST_TOKEN} printable ASCII characters")
    return token


@contextlib.contextmanager
def _listening(plan: Plan) -> Iterator[socket.socket]:
    """A socket at the address, before anything is loaded."""
    family = socket.AF_INET6 if ":" in plan.host else socket.AF_INET
    with socket.socket(family) as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((plan.host, plan.port))
        except OverflowError as error:
            raise ServeError(f"port {plan.port}: must be in 0 .. 65535") from error
        except OSError as error:
            raise ServeError(
                f"{plan.host}:{plan.port}: cannot be listened at ({error.strerror or error}); "
                "choose another --port"
            ) from error
        listener.set_inheritable(True)
        listener.listen(2048)  # whoever comes early waits
        yield listener
