"""Requests that arrive together are computed together."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from recbole_hydra.errors import ServeError, StoreError
from recbole_hydra.serving.ranking import Recommendations
from recbole_hydra.serving.recommender import USERS, Recommender

#: Requests of a batch, and those that wait before others are turned away, at most.
BATCH, WAITING = 256, 10_000


@dataclass
class Events:
    """Events to take in, ``(user, item)``, in their order; all or none."""

    pairs: list[tuple[str | int, str | int]]


@dataclass
class OfUser:
    """Items for a user."""

    user: str
    k: int
    exclude_history: bool
    domain: str | None


@dataclass
class Other:
    """Anything else that is asked of the Recommender."""

    call: Callable[[Recommender], Any]


Job = Events | OfUser | Other


class Batcher:
    """One thread that works on requests; those that came while it worked are its next batch.

    Args:
        service: gives the Recommender of a batch.
        delay: seconds that a batch may wait for more requests once it has one.
        seen: is told the size of each batch.
    """

    def __init__(
        self,
        service: Callable[[], Recommender],
        delay: float = 0.0,
        seen: Callable[[int], None] = lambda size: None,
    ) -> None:
        self._service, self._delay, self._seen = service, delay, seen
        self._waiting: asyncio.Queue[tuple[Job, asyncio.Future[Any]]] = asyncio.Queue()
        self._worker = ThreadPoolExecutor(1, thread_name_prefix="recommender")
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin, in the running event loop."""
        self._task = asyncio.create_task(self._run())

    async def stop(self) -> None:
        """Answer what waits, then end."""
        await self._waiting.join()
        if self._task is not None:
            self._task.cancel()
        self._worker.shutdown()

    async def submit(self, job: Job) -> tuple[Any, Recommender]:
        """What comes of a job, and the Recommender that it comes of.

        Raises:
            ServeError: too many are waiting.
            RecBoleHydraError: as of the Recommender.
        """
        if self._waiting.qsize() >= WAITING:
            raise ServeError(f"{WAITING:,} requests are waiting; try again later")
        future = asyncio.get_running_loop().create_future()
        self._waiting.put_nowait((job, future))
        return await future

    async def _run(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            batch = [await self._waiting.get()]
            if self._delay and self._waiting.qsize() < BATCH:
                await asyncio.sleep(self._delay)
            while len(batch) < BATCH and not self._waiting.empty():
                batch.append(self._waiting.get_nowait())
            self._seen(len(batch))
            jobs = [job for job, _ in batch]
            service = self._service()
            try:
                results = await loop.run_in_executor(self._worker, work, service, jobs)
            except Exception as error:  # of one's own making: nobody may wait for ever
                results = [error] * len(batch)
            for (_, future), result in zip(batch, results, strict=True):
                self._waiting.task_done()
                if future.done():  # who asked has gone
                    continue
                if isinstance(result, Exception):
                    future.set_exception(result)
                else:
                    future.set_result((result, service))


def work(service: Recommender, jobs: Sequence[Job]) -> list[Any]:
    """What comes of each job, or its error. Events come first: nobody who asks at the same time can
    tell, and who asks after an answer is in a later batch."""
    results: list[Any] = [None] * len(jobs)
    block: list[tuple[int, Events]] = []
    groups: dict[tuple[int, bool, str | None], list[tuple[int, str]]] = {}
    for i, job in enumerate(jobs):
        if isinstance(job, Events):
            # What is taken in at once is one block of users, all of it or nothing.
            if sum(len(other.pairs) for _, other in block) + len(job.pairs) > USERS:
                _take_in(service, block, results)
                block = []
            block.append((i, job))
        elif isinstance(job, OfUser):
            group = job.k, job.exclude_history, job.domain
            groups.setdefault(group, []).append((i, job.user))
    _take_in(service, block, results)
    for group, some in groups.items():
        _recommend(service, group, some, results)
    for i, job in enumerate(jobs):
        if isinstance(job, Other):
            results[i] = _attempt(job.call, service)
    return results


def _take_in(service: Recommender, block: list[tuple[int, Events]], results: list[Any]) -> None:
    found = _attempt(service.observe_many, [pair for _, job in block for pair in job.pairs])
    # One list with a bad event does not keep the others out. A store that fails, fails for all.
    again = isinstance(found, Exception) and not isinstance(found, StoreError) and len(block) > 1
    for i, job in block:
        own = _attempt(service.observe_many, job.pairs) if again else found
        results[i] = own if isinstance(own, Exception) else len(job.pairs)


def _recommend(
    service: Recommender, group: tuple[int, bool, str | None], some: list[tuple[int, str]],
    results: list[Any],
) -> None:  # fmt: skip
    found = _attempt(service.recommend_many, [user for _, user in some], *group)
    if isinstance(found, Exception) and len(some) > 1:
        found = [_attempt(service.recommend, user, *group) for _, user in some]
    for place, (i, _) in enumerate(some):
        results[i] = found if isinstance(found, Exception) else found[place]


def _attempt(call: Callable[..., Any], *args: Any) -> Any:
    try:
        return call(*args)
    except Exception as error:
        return error


def named(found: Recommendations, names: dict[str, str]) -> list[dict[str, Any]]:
    """Recommendations as JSON has them, with names where there are some."""
    if not names:
        return [{"item": item, "score": score} for item, score in found]
    return [{"item": item, "score": score, "name": names.get(item, "")} for item, score in found]
