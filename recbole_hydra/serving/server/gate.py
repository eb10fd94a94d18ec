"""What every request passes: the token, the limit of its body, and the measuring of its time."""

from __future__ import annotations

import hmac
import json
import re
import time
from collections.abc import Sequence
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

#: Bytes of a body at most.
BODY = 1 << 20

#: Paths that are answered without a token: they say nothing of users or items.
OPEN = ("/", "/health", "/ready")


class Metrics:
    """What Prometheus is told.

    Attributes:
        registry: what is written at ``/metrics``.
    """

    def __init__(self) -> None:
        self.registry = of = CollectorRegistry()
        self.requests = Counter(
            "recbole_hydra_requests", "Requests answered.", ["path", "status"], registry=of
        )
        seconds = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 5.0)
        self.seconds = Histogram(
            "recbole_hydra_request_seconds",
            "Time to an answer.",
            ["path"],
            buckets=seconds,
            registry=of,
        )
        self.events = Counter("recbole_hydra_events", "Events stored.", registry=of)
        self.batches = Histogram(
            "recbole_hydra_batch_requests", "Requests computed together.",
            buckets=(1, 2, 4, 8, 16, 32, 64, 128, 256), registry=of,
        )  # fmt: skip
        self.users = Gauge("recbole_hydra_users", "Users in the store.", registry=of)
        self.model = Gauge(
            "recbole_hydra_model", "1 for the model that answers.", ["model"], registry=of
        )


class Gate:
    """ASGI middleware around the application.

    Args:
        app: what is behind it.
        token: what requests must bring as ``Authorization: Bearer TOKEN``; None for nothing.
        hosts: the names that requests may have for this server; None for any.
        metrics: is told of every request.
    """

    def __init__(
        self, app: Any, token: str | None, metrics: Metrics, hosts: Sequence[str] | None = None
    ) -> None:
        self._app, self._metrics, self._hosts = app, metrics, hosts
        self._token = None if token is None else token.encode()

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        start, status = time.perf_counter(), 500

        async def watched(message: Any) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            headers = dict(scope["headers"])
            if not self._is_let_in(scope["path"], headers.get(b"authorization", b"")):
                await answer(watched, 401, "token: missing or wrong; send Authorization: Bearer")
            elif not self._is_called(headers.get(b"host", b"")):
                await answer(watched, 403, "host: this server has another name, or needs a token")
            elif (body := await _body(headers, receive)) is None:
                await answer(watched, 413, f"body: larger than {BODY:,} bytes")
            else:
                await self._app(scope, body, watched)
        finally:
            path = getattr(scope.get("route"), "path", "other")
            self._metrics.requests.labels(path, str(status)).inc()
            self._metrics.seconds.labels(path).observe(time.perf_counter() - start)

    def _is_let_in(self, path: str, authorization: bytes) -> bool:
        if self._token is None or path in OPEN:
            return True
        scheme, _, token = authorization.partition(b" ")
        return scheme.lower() == b"bearer" and hmac.compare_digest(token.strip(), self._token)

    def _is_called(self, host: bytes) -> bool:
        if self._hosts is None:
            return True
        name = re.sub(rb":\d+$", b"", host).strip(b"[]")
        return name.decode("latin-1").lower() in self._hosts


async def _body(headers: dict[bytes, bytes], receive: Any) -> Any:
    """``receive`` for an application, with the body read; None where it is too large."""
    length = headers.get(b"content-length", b"0")
    if length == b"0" and b"transfer-encoding" not in headers:
        return receive
    if not length.isdigit() or int(length) > BODY:
        return None
    parts, size, more = [], 0, True
    while more:
        message = await receive()
        if message["type"] != "http.request":
            return receive  # whoever asked has gone
        parts.append(message.get("body", b""))
        size += len(parts[-1])
        more = message.get("more_body", False)
        if size > BODY:
            return None
    whole = {"type": "http.request", "body": b"".join(parts), "more_body": False}
    messages = [whole]

    async def read() -> Any:
        return messages.pop() if messages else await receive()

    return read


async def answer(send: Any, status: int, error: str) -> None:
    """Answer with an error, one line of JSON."""
    body = json.dumps({"error": error}).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    if status == 401:
        headers.append((b"www-authenticate", b"Bearer"))
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
