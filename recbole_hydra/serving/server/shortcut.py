"""The two requests that come most, an event and a user's recommendations, on a short way.

FastAPI's way from a request to a function and back takes five times as long as what is asked for.
Whatever is not plainly one of the two, and fine, goes that way: it is the one that says what is
wrong, and that the OpenAPI page describes.
"""

from __future__ import annotations

import json
import re
from typing import Any, NamedTuple

from pydantic import TypeAdapter, ValidationError

from recbole_hydra.errors import DatasetError, RecBoleHydraError, ServeError, StoreError
from recbole_hydra.serving.server import schema
from recbole_hydra.serving.server.gate import answer
from recbole_hydra.serving.server.service import Service

EVENT: TypeAdapter[schema.Event] = TypeAdapter(schema.Event)
ID: TypeAdapter[str | int] = TypeAdapter(schema.Id)

#: A path and query of recommendations that need no more reading.
RECOMMENDATIONS = "/recommendations/"
PLAIN_QUERY = re.compile(rb"(?:k=([1-9][0-9]{0,2}))?(?:&?exclude_history=(true|false))?")


class _Route(NamedTuple):
    """What the gate asks of a route."""

    path: str


def _is_json(scope: Any) -> bool:
    """Whether the body is said to be JSON; what else a browser sends to other servers unasked."""
    kind = dict(scope["headers"]).get(b"content-type", b"")
    return kind.partition(b";")[0].strip().lower() == b"application/json"


class Shortcut:
    """ASGI middleware before FastAPI's application.

    Args:
        app: FastAPI's application.
        service: what both ask.
    """

    def __init__(self, app: Any, service: Service) -> None:
        self._app, self._service = app, service

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "http":
            if scope["path"] == "/events" and scope["method"] == "POST" and _is_json(scope):
                return await self._event(scope, receive, send)
            if scope["path"].startswith(RECOMMENDATIONS) and scope["method"] == "GET":
                query = PLAIN_QUERY.fullmatch(scope["query_string"])
                if query is not None:
                    return await self._recommendations(query, scope, receive, send)
        await self._app(scope, receive, send)

    async def _event(self, scope: Any, receive: Any, send: Any) -> None:
        message = await receive()
        try:
            event = EVENT.validate_json(message.get("body", b""))
            self._service.live.service.ranking.id_of(event.item)
        except (ValidationError, DatasetError):
            messages = [message]

            async def again() -> Any:
                return messages.pop() if messages else await receive()

            await self._app(scope, again, send)
            return
        scope["route"] = _Route("/events")
        await self._answer(send, self._service.take_in([(event.user, event.item)]))

    async def _recommendations(
        self, query: re.Match[bytes], scope: Any, receive: Any, send: Any
    ) -> None:
        try:
            user = ID.validate_python(scope["path"][len(RECOMMENDATIONS) :])
        except ValidationError:
            await self._app(scope, receive, send)
            return
        scope["route"] = _Route(RECOMMENDATIONS + "{user:path}")
        k, excluded = int(query[1] or 10), query[2] == b"true"
        await self._answer(send, self._service.of_user(str(user), k, excluded, None))

    @staticmethod
    async def _answer(send: Any, found: Any) -> None:
        try:
            body = json.dumps(await found).encode()
        except (StoreError, ServeError) as error:
            await answer(send, 503, str(error))
        except RecBoleHydraError as error:
            await answer(send, 422, str(error))
        else:
            length = str(len(body)).encode()
            headers = [(b"content-type", b"application/json"), (b"content-length", length)]
            await send({"type": "http.response.start", "status": 200, "headers": headers})
            await send({"type": "http.response.body", "body": body})
