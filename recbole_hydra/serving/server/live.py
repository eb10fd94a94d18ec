"""The model that answers, and how another one takes over while it does."""

from __future__ import annotations

import logging
import os
import threading
from pathlib import Path
from typing import Any

import numpy as np

from recbole_hydra.errors import CheckpointError, RecBoleHydraError
from recbole_hydra.serving.item_filter import Paths
from recbole_hydra.serving.recommender import Recommender
from recbole_hydra.serving.stores import Store

logger = logging.getLogger(__name__)


class LiveModel:
    """A Recommender that can be replaced between two requests.

    Args:
        checkpoint: of the first model.
        store: where the users are kept; the models follow each other in it.
        models: the folder that later checkpoints may come from; that of the first by default.
        recompute, items, index: see :class:`~recbole_hydra.serving.recommender.Recommender`.

    Attributes:
        service: the Recommender that answers now. Whoever works with it takes it once, and is done
            with it before taking it again.
        checkpoint: what it was loaded from.
        names: what items are called, by raw id, where the dataset's ``.item`` file is there.
        generation: how many models there have been.
    """

    def __init__(
        self,
        checkpoint: str | os.PathLike[str],
        store: Store,
        models: str | os.PathLike[str] | None = None,
        recompute: bool = False,
        items: Paths | None = None,
        index: str | None = None,
    ) -> None:
        self.store = store
        self._how: dict[str, Any] = {"items": items, "index": index}
        self.checkpoint = Path(checkpoint)
        self.models = Path(models if models is not None else self.checkpoint.parent).resolve()
        self.service = Recommender(checkpoint, store, recompute=recompute, **self._how)
        _try_out(self.service)
        self.names = self.service.ranking.names()
        self.generation = 1
        self._replacing = threading.Lock()

    @property
    def version(self) -> str:
        """:func:`version_of` the model."""
        return version_of(self.service)

    def replace(self, name: str) -> str:
        """Let the checkpoint ``name``, a file in the folder ``models``, take over; returns its
        version. States of users are computed anew from their histories, as they come.

        Raises:
            CheckpointError: it is no checkpoint, not in that folder, or of another dataset; the
                model stays.
            ConfigError: its model cannot be served; the model stays.
        """
        what, folder = f"model {name[:80]!r}", self.models.name
        try:
            path = (self.models / name).resolve()
            is_there = path.is_file()
        except (OSError, ValueError) as error:
            why = getattr(error, "strerror", None) or error
            raise CheckpointError(f"{what}: is no name of a file ({why})") from error
        if self.models not in path.parents:
            raise CheckpointError(f"{what}: must be a file in the folder {folder}")
        if not is_there:
            raise CheckpointError(f"{what}: there is no such file in the folder {folder}")
        with self._replacing:
            before = self.service.states.version
            try:
                service = Recommender(str(path), self.store, recompute=True, **self._how)
                _try_out(service)
                _check_same_items(service, self.service)
                names = service.ranking.names()
            except BaseException:
                if self.store.model() != before:
                    self.store.model(replace=before)
                raise
            self.service, self.checkpoint, self.names = service, path, names
            self.generation += 1
            logger.info("%s takes over, model %s", path.name, self.version)
            return self.version


def version_of(service: Recommender) -> str:
    """What tells the states of a model from another's, 16 hexadecimal digits."""
    return service.states.version.hex()[:16]


def _try_out(service: Recommender) -> None:
    """One recommendation, so that what is compiled is there, and what fails fails now.

    Raises:
        CheckpointError: no score is a number, as after training that diverged.
    """
    found = service.recommend_to_history([str(service.ranking.tokens[1])], k=1)
    if not found or not np.isfinite(found[0][1]):
        raise CheckpointError(
            f"{service.model.checkpoint['path']}: recommends nothing, its scores are no numbers"
        )


def _check_same_items(service: Recommender, before: Recommender) -> None:
    """Refuse a model that does not know most of what its forerunner knows.

    Raises:
        CheckpointError: it does not.
    """
    old, new = (set(map(str, one.ranking.tokens[1:])) for one in (before, service))
    if len(old & new) < len(old) / 2:
        raise CheckpointError(
            f"{service.model.checkpoint['path']}: knows {len(old & new)} of the {len(old)} items "
            "of the model that answers, so it is of other data; start a server with it"
        )


class Watch:
    """The newest checkpoint of a folder takes over, where it is newer than the one that answers:
    looked for at once and then every few seconds.

    A file that cannot be served is named in the log once, and left alone until it changes.

    Args:
        live: whose ``models`` is the folder.
        seconds: from one look to the next.
    """

    def __init__(self, live: LiveModel, seconds: float = 2.0) -> None:
        self._live, self._seconds = live, seconds
        self._since = live.checkpoint.stat().st_mtime
        self._refused: set[tuple[float, int, str]] = set()
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name="watch", daemon=True)

    def start(self) -> None:
        """Begin to look."""
        self._thread.start()

    def stop(self) -> None:
        """End, after a look that is under way."""
        self._stopped.set()
        self._thread.join()

    def _newer(self) -> list[tuple[float, int, str]]:
        """Time, size and name of checkpoints to be tried, the newest first."""
        found = []
        for path in self._live.models.glob("*.pth"):
            if path.name.endswith(".last.pth"):
                continue  # of a run that is under way
            try:
                about = path.stat()
            except OSError:
                continue
            found.append((about.st_mtime, about.st_size, path.name))
        new = [one for one in found if one[0] > self._since and one not in self._refused]
        return sorted(new, reverse=True)

    def _run(self) -> None:
        while True:
            for one in self._newer():
                try:
                    self._live.replace(one[2])
                except RecBoleHydraError as error:
                    logger.warning("%s: not taken over: %s", one[2], error)
                except Exception as error:  # the service goes on with the model that it has
                    logger.exception("%s: not taken over: %s", one[2], error)
                else:
                    self._since = one[0]
                    break
                self._refused.add(one)
            if self._stopped.wait(self._seconds):
                return
