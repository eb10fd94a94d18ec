"""The application: what a server answers, as ASGI has it."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from importlib.resources import files
from typing import Annotated, Any

from fastapi import FastAPI, Query, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, JSONResponse, Response
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException

from recbole_hydra.errors import DatasetError, RecBoleHydraError, ServeError, StoreError
from recbole_hydra.serving.server import schema
from recbole_hydra.serving.server.batching import Other, named
from recbole_hydra.serving.server.gate import Gate
from recbole_hydra.serving.server.service import Service
from recbole_hydra.serving.server.shortcut import Shortcut

#: Errors of every path, for the OpenAPI page.
ERRORS: dict[int | str, dict[str, Any]] = {
    status: {"model": schema.Error, "description": what}
    for status, what in (
        (400, "The body cannot be read."), (401, "No token, or another."),
        (403, "Another host is asked for."), (413, "The body is too large."),
        (422, "The request cannot be met as it is."), (503, "Not now: the store does not answer."),
    )
}  # fmt: skip

NOT_FOUND: dict[int | str, dict[str, Any]] = {
    404: {"model": schema.Error, "description": "The model does not know this item."}
}


def as_json(values: dict[str, Any]) -> Response:
    """An answer; without FastAPI's way over models, which takes longer than the recommendation."""
    return Response(json.dumps(values), media_type="application/json")


def make_app(server: Service, token: str | None = None, hosts: Sequence[str] | None = None) -> Gate:
    """The application.

    Args:
        token, hosts: what requests must bring, see :class:`.gate.Gate`.
    """

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        async with server.running():
            yield

    from recbole_hydra import __version__

    app = FastAPI(
        title="recbole_hydra", version=__version__, lifespan=lifespan, responses=ERRORS,
        docs_url=None, redoc_url=None,  # they load scripts from elsewhere
    )  # fmt: skip
    _add_errors(app)
    _add_events(app, server)
    _add_recommendations(app, server)
    _add_users(app, server)
    _add_server(app, server)
    return Gate(Shortcut(app, server), token, server.metrics, hosts)


def _add_errors(app: FastAPI) -> None:
    def line(status: int, error: Any) -> JSONResponse:
        return JSONResponse({"error": " ".join(str(error).split())}, status)

    async def of_input(_: Request, error: Any) -> Response:
        return line(422, error)

    async def of_now(_: Request, error: Any) -> Response:
        return line(503, error)

    async def of_shape(_: Request, error: Any) -> Response:
        first = error.errors()[0]
        if first["type"] == "json_invalid":
            return line(422, "body: is no JSON")
        where = [str(part) for part in first["loc"] if part not in (schema.ONE, schema.MANY)]
        return line(422, f"{'.'.join(where)}: {first['msg']}")

    async def of_path(_: Request, error: Any) -> Response:
        return line(error.status_code, error.detail)

    app.add_exception_handler(RecBoleHydraError, of_input)
    app.add_exception_handler(StoreError, of_now)
    app.add_exception_handler(ServeError, of_now)
    app.add_exception_handler(RequestValidationError, of_shape)
    app.add_exception_handler(HTTPException, of_path)


def _add_events(app: FastAPI, server: Service) -> None:
    @app.post("/events", response_model=schema.Stored, tags=["events"])
    async def take_in(body: schema.AnyEvents) -> Response:
        """Take in an event, or a list of them, all or none. The answer comes when it is stored."""
        one = isinstance(body, schema.Event)
        events = [body] if isinstance(body, schema.Event) else body.events
        ranking = server.live.service.ranking
        for place, event in enumerate(events):  # named before anything is taken in
            ranking.id_of(event.item, "" if one else f"events.{place}: ")
        return as_json(await server.take_in([(event.user, event.item) for event in events]))


def _add_recommendations(app: FastAPI, server: Service) -> None:
    @app.get("/recommendations/{user:path}", response_model=schema.Items, tags=["recommendations"])
    async def of_user(
        user: schema.Id,
        k: Annotated[int, Query(ge=1, le=schema.MOST_K)] = 10,
        exclude_history: bool = False,
        domain: str | None = None,
    ) -> Response:
        """The best items for a user, after all that was stored."""
        return as_json(await server.of_user(str(user), k, exclude_history, domain))

    @app.post(
        "/recommendations",
        response_model=schema.Items | schema.ManyItems,
        tags=["recommendations"],
    )
    async def of_history(body: schema.AnyHistories) -> Response:
        """The best items for histories of users nobody knows; nothing is stored."""
        many = body.histories if isinstance(body, schema.OfHistories) else [body.history]
        how = body.k, body.exclude_history, body.domain
        found, model = await server.do(
            Other(lambda service: [service.recommend_to_history(one, *how) for one in many])
        )
        results = [server.items(one, model) for one in found]
        return as_json(results[0] if isinstance(body, schema.OfHistory) else {"results": results})

    @app.get(
        "/items/{item:path}/similar",
        response_model=schema.Similar,
        responses=NOT_FOUND,
        tags=["recommendations"],
    )
    async def similar(
        item: schema.Id, k: Annotated[int, Query(ge=1, le=schema.MOST_K)] = 10
    ) -> Response:
        """Items whose vectors point the same way."""
        try:
            server.live.service.ranking.id_of(item)
        except DatasetError as error:
            raise HTTPException(404, str(error)) from error
        found, model = await server.do(Other(lambda service: service.similar(item, k)))
        return as_json({"item": item, "items": named(found, server.live.names), "model": model})


def _add_users(app: FastAPI, server: Service) -> None:
    @app.get("/users", response_model=schema.Users, tags=["users"])
    async def users(limit: Annotated[int, Query(ge=1, le=1000)] = 20) -> Response:
        """Some users of the training data."""
        known = [str(user) for user in server.live.service.states.users][1:]
        return as_json({"users": known[:limit], "number": len(known)})

    @app.get("/users/{user:path}/history", response_model=schema.History, tags=["users"])
    async def history(
        user: schema.Id, limit: Annotated[int, Query(ge=1, le=1000)] = 50
    ) -> Response:
        """The last items of a user."""
        found = await server.ask(lambda service: service.history(user))
        names = server.live.names
        had = [{"item": item, "name": names.get(item)} for item in found[-limit:]]
        return as_json({"user": user, "history": had, "number": len(found)})


def _add_server(app: FastAPI, server: Service) -> None:
    page = files("recbole_hydra.serving.server").joinpath("page.html").read_text(encoding="utf-8")

    @app.get("/", include_in_schema=False)
    async def show_page() -> Response:
        return HTMLResponse(page)

    @app.get("/health", response_model=schema.Health, tags=["server"])
    async def health() -> Response:
        """The process answers."""
        return as_json({"status": "ok"})

    @app.get("/ready", response_model=schema.Health, tags=["server"])
    async def ready() -> Response:
        """The model is there, and the store answers."""
        # Numbers of items are asked for, as Redis tells then whether its data are still the same.
        await server.ask(lambda service: service.store.numbers([str(service.ranking.tokens[1])]))
        return as_json({"status": "ready", "model": server.live.version})

    @app.get("/metrics", response_class=Response, tags=["server"])
    async def metrics() -> Response:
        """What Prometheus reads."""
        server.metrics.users.set(await server.ask(lambda service: len(service.store)))
        server.metrics.model.clear()
        server.metrics.model.labels(server.live.version).set(1)
        return Response(generate_latest(server.metrics.registry), media_type=CONTENT_TYPE_LATEST)

    @app.get("/model", response_model=schema.Model, tags=["server"])
    async def model() -> Response:
        """The model that answers."""
        return as_json({"model": server.live.version, "checkpoint": server.live.checkpoint.name})

    @app.post("/model", response_model=schema.Model, tags=["server"])
    async def replace(body: schema.NewModel) -> Response:
        """Let another checkpoint take over, between two requests; users keep their histories."""
        if not server.may_replace:
            raise HTTPException(
                422, "model: this server has several processes; start it with --watch=FOLDER"
            )
        version = await run_in_threadpool(server.live.replace, body.checkpoint)
        return as_json({"model": version, "checkpoint": server.live.checkpoint.name})
