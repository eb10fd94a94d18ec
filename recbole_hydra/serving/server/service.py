"""What all paths of the server share: the model, the batches, the metrics."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

from starlette.concurrency import run_in_threadpool

from recbole_hydra.errors import ServeError
from recbole_hydra.serving.ranking import Recommendations
from recbole_hydra.serving.recommender import Recommender
from recbole_hydra.serving.server.batching import Batcher, Events, Job, OfUser, Other, named
from recbole_hydra.serving.server.gate import Metrics
from recbole_hydra.serving.server.live import LiveModel, Watch, version_of


class Service:
    """What the paths of an application share.

    Args:
        live: the model.
        delay: seconds that a batch may wait for more requests.
        watch: let the newest checkpoint in ``live``'s folder take over.
        may_replace: whether ``POST /model`` is answered.
    """

    def __init__(
        self, live: LiveModel, delay: float = 0.0, watch: bool = False, may_replace: bool = True
    ) -> None:
        self.live, self.metrics, self.may_replace = live, Metrics(), may_replace
        self._delay, self._watch = delay, Watch(live) if watch else None
        self._batcher: Batcher | None = None

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """While the application runs: the batches, and the watch. At the end what waits is
        answered, then the store is closed."""
        self._batcher = Batcher(
            lambda: self.live.service, self._delay, self.metrics.batches.observe
        )
        self._batcher.start()
        if self._watch is not None:
            self._watch.start()
        try:
            yield
        finally:
            if self._watch is not None:
                await run_in_threadpool(self._watch.stop)
            await self._batcher.stop()
            self.live.service.close()

    async def do(self, job: Job) -> tuple[Any, str]:
        """What comes of a job, and the version of the model that it comes of.

        Raises:
            ServeError, RecBoleHydraError: as of :meth:`.Batcher.submit`.
        """
        if self._batcher is None:
            raise ServeError("the server is not running")
        found, service = await self._batcher.submit(job)
        return found, version_of(service)

    async def ask(self, call: Callable[[Recommender], Any]) -> Any:
        """What ``call`` says of the Recommender that answers now."""
        return (await self.do(Other(call)))[0]

    async def take_in(self, pairs: list[tuple[str | int, str | int]]) -> dict[str, Any]:
        """Store events, all or none; the answer to them."""
        stored, model = await self.do(Events(pairs))
        self.metrics.events.inc(stored)
        return {"stored": stored, "model": model}

    async def of_user(
        self, user: str, k: int, exclude_history: bool, domain: str | None
    ) -> dict[str, Any]:
        """The answer with the best items for a user."""
        found, model = await self.do(OfUser(user, k, exclude_history, domain))
        return {"user": user, **self.items(found, model)}

    def items(self, found: Recommendations, model: str) -> dict[str, Any]:
        """Recommendations as an answer has them."""
        items = named(found, self.live.names)
        return {"items": items, "fallback": found.fallback, "model": model}
