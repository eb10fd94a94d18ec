"""The connection to Ray, and how its CPUs and GPUs are shared out among trials."""

import contextlib
import logging
import os
import socket
from collections.abc import Iterator, Mapping, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

from recbole_hydra.checks import positive_int, positive_number
from recbole_hydra.errors import TuneError, describe

#: Seconds that an address is given to answer.
PATIENCE = 5

#: A Ray head speaks gRPC, which is HTTP/2 (RFC 9113, section 3.4): what a client says first, with
#: an empty SETTINGS frame, and the type of the frame that a server answers with.
_HTTP2_GREETING = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes((0, 0, 0, 4, 0, 0, 0, 0, 0))
_HTTP2_SETTINGS = b"\x04"


@contextlib.contextmanager
def connection(address: str | None = None) -> Iterator[None]:
    """Connect to Ray for the time of a ``with`` block.

    A process that is connected already stays so, and stays connected afterwards.

    Args:
        address: of a running cluster, ``HOST:PORT`` of its head, or ``"auto"`` for the one that
            this machine is a node of; None starts Ray on this machine alone, unless the environment
            variable RAY_ADDRESS names a cluster.

    Raises:
        TuneError: nothing answers there, or Ray cannot start.
    """
    import ray

    if ray.is_initialized():
        if address is not None:
            raise TuneError(
                f"ray_address: {address}, but this process is connected to Ray already; leave it "
                "out, or call ray.shutdown() first"
            )
        yield
        return
    address = address or os.environ.get("RAY_ADDRESS") or "local"
    settings: dict[str, Any] = {
        "address": address,
        "log_to_driver": False,
        "logging_level": logging.ERROR,
    }
    if address == "local":
        # What starts here must not phone home, unless the user has said so.
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        settings["include_dashboard"] = False
    else:
        _knock(_last_cluster() if address == "auto" else address)
    try:
        ray.init(**settings)
    except Exception as error:  # ConnectionError, RuntimeError, ValueError, by kind and version
        if "AuthenticationError" in f"{error!r} {error.__cause__!r} {error.__context__!r}":
            raise TuneError(
                f"ray_address: {address} asks for a token; set RAY_AUTH_MODE=token, and "
                "RAY_AUTH_TOKEN where ~/.ray/auth_token is not the cluster's"
            ) from error
        raise TuneError(
            f"ray_address: no connection to {address} ({describe(error)[:300]}); start a cluster "
            "with `ray start --head`, or leave ray_address out to use this machine"
        ) from error
    try:
        yield
    finally:
        ray.shutdown()


def _last_cluster() -> str | None:
    """The cluster that this machine was made a node of last, as Ray remembers it, alive or not."""
    file = Path(os.environ.get("RAY_TMPDIR") or "/tmp") / "ray" / "ray_current_cluster"
    try:
        return file.read_text(encoding="utf-8").strip() or None
    except OSError:
        return None


def _knock(address: str | None) -> None:
    """Raise TuneError within seconds where no head of a cluster answers; Ray tries for minutes."""
    if address is None:
        raise TuneError(
            "ray_address: auto: this machine is no node of a cluster; start one with `ray start "
            "--head`, or leave ray_address out to use this machine"
        )
    if address.startswith("ray://"):
        raise TuneError(
            f"ray_address: {address}: Ray Tune has to run on a node of the cluster, not through "
            "its client; give HOST:PORT of the head (its default port is 6379)"
        )
    host, colon, port = address.rpartition(":")
    if not colon or not port.isdigit():
        raise TuneError(f"ray_address: expected HOST:PORT or auto, got {address!r}")
    try:
        with socket.create_connection((host, int(port)), timeout=PATIENCE) as connected:
            connected.sendall(_HTTP2_GREETING)
            reply = connected.recv(9)
    except TimeoutError:
        reply = b""
    except (OSError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise TuneError(
            f"ray_address: nothing answers at {address} ({reason}); check that the cluster is up "
            "and the port is that of its head node"
        ) from error
    if reply[3:4] != _HTTP2_SETTINGS and not os.environ.get("RAY_USE_TLS"):
        raise TuneError(
            f"ray_address: what answers at {address} is no head of a Ray cluster; check the port "
            "(its default is 6379)"
        )


def nodes() -> list[dict[str, float]]:
    """The resources of every living node, such as ``{"CPU": 8.0, "GPU": 1.0}``."""
    import ray

    return [node["Resources"] for node in ray.nodes() if node["Alive"]]


def share_out(
    nodes: Sequence[Mapping[str, float]],
    number: int,
    max_concurrent: int | None,
    cpus_per_trial: int | None,
    gpus_per_trial: float | None,
    use_gpu: bool = True,
) -> tuple[int, int, float]:
    """Decide how many trials run at a time, and what each gets.

    Args:
        nodes: those of :func:`nodes`.
        number: how many trials there are.
        max_concurrent: how many may run at a time; by default one per GPU or, without any, one per
            two CPUs.
        cpus_per_trial, gpus_per_trial: by default the largest share with which ``max_concurrent``
            trials fit: of CPUs a whole number, of GPUs one or a whole part of one.
        use_gpu: whether trials may use GPUs at all.

    Returns:
        ``(trials at a time, CPUs of each, GPUs of each)``. Trials at a time are fewer than
        ``max_concurrent`` where the CPUs do not suffice.

    Raises:
        TuneError: a share that no node can give.
    """
    cpus = [int(node.get("CPU", 0)) for node in nodes]
    gpus = [node.get("GPU", 0) if use_gpu else 0 for node in nodes]
    if max_concurrent is not None:
        positive_int("max_concurrent", max_concurrent)
    wanted = min(max_concurrent or int(sum(gpus)) or max(sum(cpus) // 2, 1), number)
    if gpus_per_trial is None:
        gpus_per_trial = 0
        if sum(gpus) > 0:
            parts = 1
            while sum(int(count * parts) for count in gpus) < wanted:
                parts += 1
            gpus_per_trial = float(Fraction(1, parts))
    elif gpus_per_trial != 0:
        positive_number("gpus_per_trial", gpus_per_trial)
    if cpus_per_trial is None:
        cpus_per_trial = next(
            (
                share
                for share in range(max(cpus), 0, -1)
                if _places(cpus, gpus, share, gpus_per_trial) >= wanted
            ),
            1,
        )
    positive_int("cpus_per_trial", cpus_per_trial)
    places = _places(cpus, gpus, cpus_per_trial, gpus_per_trial)
    if places == 0:
        raise TuneError(
            f"cpus_per_trial, gpus_per_trial: no node has {cpus_per_trial} CPUs and "
            f"{gpus_per_trial:g} GPUs; the largest have {max(cpus)} CPUs, {max(gpus):g} GPUs"
        )
    return min(wanted, places), cpus_per_trial, gpus_per_trial


def _places(cpus: Sequence[int], gpus: Sequence[float], cpu_share: int, gpu_share: float) -> int:
    """How many trials find room."""
    return sum(
        min(cpu // cpu_share, int(gpu / gpu_share + 1e-9) if gpu_share else cpu)
        for cpu, gpu in zip(cpus, gpus, strict=True)
    )
