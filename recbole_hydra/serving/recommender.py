"""Recommendations for live users: what they do next is read as it comes."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from numbers import Integral
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
from recbole.utils import ModelType
from tqdm import tqdm

from recbole_hydra.errors import CheckpointError, ConfigError, DatasetError, StoreError
from recbole_hydra.serving.index import check_kind
from recbole_hydra.serving.item_filter import Paths
from recbole_hydra.serving.load import load_model
from recbole_hydra.serving.ranking import Ranking, Recommendations, listed
from recbole_hydra.serving.states import States
from recbole_hydra.serving.stores import Store, open_store

if TYPE_CHECKING:
    from recbole.model.abstract_recommender import AbstractRecommender

#: Users whose events are read together.
USERS = 1024


class Recommender:
    """A trained model, and the states of its users: events in, recommendations out.

    With carried state an event is read in one compiled call from what the events before have left,
    and costs the same after ten as after a hundred thousand. In the reading of windows an event is
    kept, and the last MAX_ITEM_LIST_LENGTH items are read when recommendations are asked for.

    The users of the training data are there from the start. Threads may share it.

    Args:
        checkpoint: path of a checkpoint, or a model from :func:`~recbole_hydra.load_model`.
        store: where the users are kept: None, in memory; a folder; redis://HOST:PORT/0; or a
            :class:`~recbole_hydra.serving.stores.Store`.
        reading: "carry", all of a history, or "window", its last items; as validated by default.
        recompute: let a store of another model's states be taken over: states are computed anew
            from the histories, as users come.
        items: the ``.item`` file that filters read, of several domains a dict by domain; by
            default where the checkpoint's settings say that it is. Read with the first filter.
        index: None, all items are looked at; "ivf", the nearest by an index of faiss, kept beside
            the checkpoint; "auto", that from 100,000 items.

    Attributes:
        model, store: see above.
        states, ranking: its parts, :class:`~recbole_hydra.serving.states.States` of the users and
            :class:`~recbole_hydra.serving.ranking.Ranking` of the items.
        reading: "carry" or "window".
        bytes_per_user: what a user takes in the store beside the history, which is 4 bytes an event
            and the raw id.

    Raises:
        CheckpointError: as of ``load_model``, or the checkpoint has no vocabulary.
        ConfigError: a reading or an index that the model does not have, or ``items`` no path.
        StoreError: the store cannot be opened, or is of another model.
    """

    def __init__(
        self,
        checkpoint: str | os.PathLike[str] | AbstractRecommender,
        store: str | os.PathLike[str] | Store | None = None,
        reading: str | None = None,
        recompute: bool = False,
        items: Paths | None = None,
        index: str | None = None,
    ) -> None:
        kind = check_kind(index)
        self.model = _served(checkpoint)
        self._lock = threading.RLock()
        self.store = store if isinstance(store, Store) else open_store(store)
        try:
            self.states = States(self.model, self.store, reading, recompute)
            self.ranking = Ranking(self.model, self.states.trained, self.states.window, items)
            users = None if self.states.encoder is None else self.states.some_vectors
            self.ranking.open_index(kind, users)
        except BaseException:
            if self.store is not store:
                self.store.close()
            raise
        self.model.checkpoint["is_served"] = True  # its items must stay as they are
        self._is_open = True
        self.reading = self.states.reading
        self.bytes_per_user = self.states.bytes_per_user

    # -- events --------------------------------------------------------------------------------

    def observe(self, user: str | int, item: str | int) -> None:
        """Take in that ``user`` had ``item``; afterwards it is part of the history, and kept.

        Raises:
            DatasetError: the model does not know the item; nothing is changed.
            StoreError: it could not be kept; nothing is changed.
        """
        rows = {_user(user): [self.ranking.id_of(item)]}
        with self._using():
            self.states.take_in(rows)

    def observe_many(self, events: Iterable[tuple[str | int, str | int]]) -> int:
        """Take in events, ``(user, item)``, in their order; those of different users are read
        together.

        Returns:
            Their number.

        Raises:
            DatasetError: an event that is none, or of an item that the model does not know; none
                of the events is taken in.
            StoreError: they could not be kept; of more than 1,024 users, those of the first blocks
                of so many may be there. Where Redis was lost in the middle, so may the last block.
        """
        rows: dict[str, list[int]] = {}
        number = 0
        for event in listed("events", events, "pairs (user, item)"):
            if not isinstance(event, (tuple, list)) or len(event) != 2:
                got = " ".join(repr(event).split())
                raise DatasetError(f"event {number}: must be a pair (user, item), got {got}")
            where = f"event {number}: "
            rows.setdefault(_user(event[0], where), []).append(self.ranking.id_of(event[1], where))
            number += 1
        users = list(rows)
        for i in range(0, len(users), USERS):
            with self._using():
                self.states.take_in({user: rows[user] for user in users[i : i + USERS]})
        return number

    # -- recommendations -----------------------------------------------------------------------

    def recommend(
        self,
        user: str | int,
        k: int = 10,
        exclude_history: bool = False,
        domain: str | None = None,
        candidates: Iterable[str | int] | None = None,
        filter: Mapping[str, Any] | None = None,
    ) -> Recommendations:
        """The ``k`` best items for a user, after all that was observed.

        Args:
            user: raw id. To a user of whom nothing is known popular items are recommended.
            k: number of items.
            exclude_history: leave out what the user has had.
            domain: of a model of several domains, the one whose items are recommended; by default
                that of the user's last item.
            candidates: raw ids; only those are ranked. By default all items.
            filter: by column of the ``.item`` file what the items have there, as
                :meth:`.ItemFilter.allowed` takes it, {"genre": "Comedy", "year": "[1990,inf)"};
                where none fits, the list is empty.

        Raises:
            ConfigError: ``k`` out of range, another domain, or a filter that does not fit the file.
            DatasetError: a candidate that the model does not know, or no file for the filter.
        """
        return self.recommend_many([user], k, exclude_history, domain, candidates, filter)[0]

    def recommend_many(
        self,
        users: Sequence[str | int],
        k: int = 10,
        exclude_history: bool = False,
        domain: str | None = None,
        candidates: Iterable[str | int] | None = None,
        filter: Mapping[str, Any] | None = None,
    ) -> list[Recommendations]:
        """:meth:`recommend` for many users at once."""
        names = [_user(user) for user in listed("users", users, "user ids")]
        with self._using():
            histories, entries = self.states.known_of(names, whole=exclude_history)
            vectors, ids = self.states.vectors(histories, entries), self.states.ids(names)
            return self.ranking.of_histories(
                histories, vectors, k, exclude_history, domain, candidates, filter, ids
            )

    def recommend_to_history(
        self,
        history: Iterable[str | int],
        k: int = 10,
        exclude_history: bool = False,
        domain: str | None = None,
        candidates: Iterable[str | int] | None = None,
        filter: Mapping[str, Any] | None = None,
    ) -> Recommendations:
        """The best items for somebody who had ``history``, raw ids, oldest first; nothing is kept.

        Raises:
            DatasetError: the history is empty, or has an item that the model does not know.
            ConfigError: as of :meth:`recommend`.
        """
        given = listed("history", history, "item ids")
        ids = np.array([self.ranking.id_of(item, "history: ") for item in given], np.int64)
        if not len(ids):
            raise DatasetError("history: it is empty; a recommendation needs at least one item")
        with self._using():
            vectors = self.states.vectors([ids], [None])
            return self.ranking.of_histories(
                [ids], vectors, k, exclude_history, domain, candidates, filter
            )[0]

    def best_ids(
        self,
        users: Sequence[str],
        k: int,
        exclude_history: bool = False,
        domain: str | None = None,
        filter: Mapping[str, Any] | None = None,
    ) -> tuple[np.ndarray, np.ndarray]:
        """:meth:`recommend_many` as arrays: internal ids and scores, see :meth:`.Ranking.best`."""
        with self._using():
            histories, entries = self.states.known_of(users, whole=exclude_history)
            vectors = self.states.vectors(histories, entries)
            ids = self.states.ids(users)
            return self.ranking.best(
                histories, vectors, k, exclude_history, domain, filter=filter, users=ids
            )

    @contextmanager
    def _using(self) -> Iterator[None]:
        """One thread at a time, while the store is open."""
        with self._lock:
            if not self._is_open:
                raise StoreError(f"{self.store.name}: this Recommender was closed; make another")
            yield

    def similar(self, item: str | int, k: int = 10) -> Recommendations:
        """The items whose vectors point the same way: cosines, best first, without the item.

        Raises:
            ConfigError: ``k`` out of range, or a model without vectors of items.
            DatasetError: the model does not know the item.
        """
        with self._using():
            return self.ranking.similar(item, k)

    # -- users ---------------------------------------------------------------------------------

    def load_users(self, show_progress: bool = False) -> int:
        """Put the users of the training data into the store, with their states; those who are
        there stay as they are. Without it, each comes in with the first event.

        Returns:
            The number of users who came in.
        """
        users, came = self.trained_users(), 0
        with tqdm(total=len(users), desc="users", disable=not show_progress) as bar:
            for i in range(0, len(users), USERS):
                part = users[i : i + USERS]
                with self._using():
                    came += self.states.load(part)
                bar.update(len(part))
        return came

    def trained_users(self) -> list[str]:
        """The raw ids of the users who have a history in the training data."""
        return [str(u) for u in self.states.users if len(self.states.of_training(str(u)))]

    def history(self, user: str | int) -> list[str]:
        """The raw ids of what a user had, oldest first: as far as the model knows the items."""
        with self._using():
            ids = self.states.history(_user(user))
        return [str(self.ranking.tokens[item]) for item in ids.tolist()]

    def close(self) -> None:
        """Let go of the store; every other call is a StoreError from then on."""
        with self._lock:
            self._is_open = False
            self.store.close()

    def __enter__(self) -> Recommender:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


def _user(user: object, where: str = "") -> str:
    """A raw id of a user as text."""
    if isinstance(user, bool) or not isinstance(user, (str, Integral)) or user == "":
        raise DatasetError(f"{where}{user!r} is no user id")
    return str(user)


def _served(checkpoint: str | os.PathLike[str] | AbstractRecommender) -> Any:
    """The model of a checkpoint, if it reads histories of raw ids."""
    given = isinstance(checkpoint, torch.nn.Module)
    model = cast(Any, checkpoint if given else load_model(cast(str, checkpoint)))
    about = getattr(model, "checkpoint", None)
    if about is None:
        raise CheckpointError(
            f"{type(model).__name__}: is no model of load_model, so it has no raw ids"
        )
    if not about["vocabulary"].field2id_token:
        raise CheckpointError(f"{about['path']}: holds no vocabulary, so no raw ids")
    if model.type != ModelType.SEQUENTIAL:
        raise ConfigError(
            f"{type(model).__name__}: reads no history, so events change nothing; use "
            "recommend(model, user)"
        )
    return model
