"""What users' events have left in a model: read as they come, kept in a store."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any, cast

import numpy as np
import torch

from recbole_hydra.errors import ConfigError, StoreError
from recbole_hydra.model import Hydra, Mamba4Rec
from recbole_hydra.serving.compiled import CompiledEncoder
from recbole_hydra.serving.stores import Change, Entry, Store

#: Ways of reading a history.
READINGS = ("window", "carry")

#: Items, internal ids, of somebody of whom nothing is known.
NOTHING = np.empty(0, np.int64)


class States:
    """The users of a model.

    With carried state an event is read in one compiled call from what the events before have left.
    In the reading of windows the last MAX_ITEM_LIST_LENGTH items are read, again, when a vector is
    asked for.

    Args:
        model: from :func:`~recbole_hydra.load_model`.
        store: where the users are kept.
        reading, recompute: see :class:`~recbole_hydra.serving.recommender.Recommender`.

    Attributes:
        reading: "window" or "carry". window: the most items of the former, None in the latter.
        encoder: None for a model that has no vectors of users.
        version: hash of the model and the reading, 16 bytes.
        trained: the histories of the training data, items and where each user's begin; None where
            the checkpoint has none.

    Raises:
        ConfigError: a reading that the model does not have.
        StoreError: the store is of another model.
    """

    def __init__(self, model: Any, store: Store, reading: str | None, recompute: bool) -> None:
        about: Mapping[str, Any] = model.checkpoint
        config, vocabulary = about["config"], about["vocabulary"]
        self.store, self.encoder = store, encoder_of(model)
        self.reading = _reading(reading, model, config, self.encoder)
        self.version = hash_of(model, self.reading)
        self.window = int(config["MAX_ITEM_LIST_LENGTH"]) if self.reading == "window" else None
        self.users: Mapping[str, int] = vocabulary.field2token_id[vocabulary.uid_field]
        self._ids: Mapping[str, int] = vocabulary.field2token_id[vocabulary.iid_field]
        histories = about["histories"]
        self.trained: tuple[np.ndarray, np.ndarray] | None = None
        if histories:
            self.trained = histories["items"].numpy(), histories["start"].numpy()
        found = store.model()
        if found and found != self.version and not recompute:
            raise StoreError(
                f"{store.name}: holds states of another model, or reading ({found.hex()[:8]}, not "
                f"{self.version.hex()[:8]}); recompute=True computes them anew from the users' "
                "histories"
            )
        if found != self.version:
            store.model(replace=self.version)
        tokens = [str(token) for token in vocabulary.field2id_token[vocabulary.iid_field]]
        self._number = np.concatenate([np.array([-1], np.int32), store.numbers(tokens[1:])])
        self._id_of_number = self._ids_of_numbers()

    def _ids_of_numbers(self) -> np.ndarray:
        """Internal ids by the store's numbers; 0 for items that this model does not know."""
        return np.array([self._ids.get(token, 0) for token in self.store.tokens()], np.int64)

    def _known(self, numbers: np.ndarray) -> np.ndarray:
        """Internal ids of a history of the store's numbers, without items that this model does not
        know."""
        if len(numbers) and int(numbers.max()) >= len(self._id_of_number):
            self._id_of_number = self._ids_of_numbers()  # another server's model has more
        ids = self._id_of_number[numbers]
        return ids if ids.all() else ids[ids > 0]

    @property
    def size(self) -> int:
        """Numbers of a state as it is stored: the model's, and the vector after the last item."""
        if self.reading == "window":
            return 0
        encoder = cast(CompiledEncoder, self.encoder)
        return encoder.state_size + encoder.width

    @property
    def bytes_per_user(self) -> int:
        """What an entry takes in the store, without the history and the raw id."""
        empty = np.empty(0, np.int32)
        return len(Entry(0, 0, b"", 0, np.empty(self.size, np.float32), empty).packed())

    # -- events --------------------------------------------------------------------------------

    def take_in(self, rows: Mapping[str, Sequence[int]]) -> None:
        """Let users, by raw id, have had items, internal ids; kept when this returns."""
        waiting = list(rows)
        while waiting:
            found = self.store.read(waiting, 0)
            pairs = zip(waiting, found, strict=True)
            changes = self._changes([(user, entry, rows[user]) for user, entry in pairs])
            applied = self.store.write(changes)
            # Another server was faster with a user: once more, from what there is now.
            waiting = [user for user, done in zip(waiting, applied, strict=True) if not done]

    def load(self, users: Sequence[str]) -> int:
        """Put users of the training data into the store who are not there; returns their number."""
        found = self.store.read(users, 0)
        new = [(user, None, ()) for user, entry in zip(users, found, strict=True) if entry is None]
        return sum(self.store.write(self._changes(new)))

    def _changes(self, rows: Sequence[tuple[str, Entry | None, Sequence[int]]]) -> list[Change]:
        """The changes of users, by what is known of them and the items they had."""
        new, unread, entries = [], [], []
        for user, entry, items in rows:
            had = np.array(items, np.int64)
            if entry is None:
                had = np.concatenate([self.of_training(user), had])
            new.append(had)
            if entry is not None and entry.model != self.version:
                if self.reading == "carry":
                    had = np.concatenate([self._known(self.store.history(user)), had])
                entry = None
            unread.append(had)
            entries.append(entry)
        states, positions, stacks = self._read(entries, unread)
        changes = []
        for i, (user, entry, _) in enumerate(rows):
            before = 0 if entry is None else entry.count
            own = states[i].copy()  # a view would keep the states of all in memory
            after = Entry(
                before + len(new[i]), int(positions[i]), self.version, int(stacks[i]), own,
                np.empty(0, np.int32),
            )  # fmt: skip
            changes.append(Change(user, before, self._number[new[i]], after))
        return changes

    def _read(
        self, entries: Sequence[Entry | None], unread: Sequence[np.ndarray]
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """States, (users, size), positions and stacks after items that were not read yet."""
        rows = len(entries)
        states = np.zeros((rows, self.size), np.float32)
        positions, stacks = np.zeros(rows, np.int64), np.zeros(rows, np.int64)
        if self.reading == "window":
            return states, positions, stacks
        encoder = cast(CompiledEncoder, self.encoder)
        for i, entry in enumerate(entries):
            if entry is not None:
                states[i], positions[i], stacks[i] = entry.state, entry.position, entry.stack
        some = [i for i in range(rows) if len(unread[i])]
        first = [i for i in some if positions[i] == 0]
        if first:
            stacks[first] = encoder.stacks(np.array([unread[i][0] for i in first]))
        if some:
            items, start = ragged([unread[i] for i in some])
            room = np.ascontiguousarray(states[some, : encoder.state_size])
            vectors = encoder(items, start, room, positions[some], stacks[some])
            states[some] = np.concatenate([room, vectors], axis=1)
            positions[some] += np.diff(start)
        return states, positions, stacks

    # -- what is known -------------------------------------------------------------------------

    def of_training(self, user: str) -> np.ndarray:
        """The items of a user in the training data, internal ids; none for others."""
        index = self.users.get(user)
        if not index or self.trained is None:
            return NOTHING
        items, start = self.trained
        return items[start[index] : start[index + 1]].astype(np.int64)

    def history(self, user: str) -> np.ndarray:
        """All that a user had, internal ids, oldest first, but for items the model does not
        know."""
        numbers = self.store.history(user)
        return self._known(numbers) if len(numbers) else self.of_training(user)

    def known_of(
        self, users: Sequence[str], whole: bool
    ) -> tuple[list[np.ndarray], list[Entry | None]]:
        """Histories, internal ids, and entries of users.

        Args:
            whole: all of a history, where the reading needs its last items only.
        """
        whole = whole or self.window is None
        entries = self.store.read(users, 0 if whole else cast(int, self.window))
        histories = []
        for user, entry in zip(users, entries, strict=True):
            if entry is None:
                history = self.of_training(user)
            elif whole:  # what came since the entry was read is not in its state
                history = self._known(self.store.history(user)[: entry.count])
            else:
                history = self._known(entry.recent)
                if len(history) < len(entry.recent):  # the last ones known are further back
                    history = self._known(self.store.history(user)[: entry.count])
            histories.append(history)
        return histories, entries

    def ids(self, users: Sequence[str]) -> list[int]:
        """The internal ids of users of the training data; 0 for others."""
        return [self.users.get(user, 0) for user in users]

    def vectors(
        self, histories: Sequence[np.ndarray], entries: Sequence[Entry | None]
    ) -> np.ndarray | None:
        """What the items are compared with after those histories that are not empty, (histories,
        width); None for a model that has no such vectors, and where all are empty."""
        some = [i for i, history in enumerate(histories) if len(history)]
        encoder = self.encoder
        if not some or encoder is None:
            return None
        if self.window is not None:
            return encoder(*ragged([histories[i][-self.window :] for i in some]))
        known = [entries[i] for i in some]
        fits = [e if e is not None and e.model == self.version else None for e in known]
        unread = [NOTHING if e else histories[i] for i, e in zip(some, fits, strict=True)]
        states, _, _ = self._read(fits, unread)
        return np.ascontiguousarray(states[:, encoder.state_size :])

    def some_vectors(self, number: int) -> np.ndarray:
        """What the items are compared with after the histories of at most so many users of the
        training data, (users, width); where it has none, after single items."""
        histories: list[np.ndarray] = []
        if self.trained is not None:
            items, start = self.trained
            users = _spread(np.flatnonzero(np.diff(start) > 0), number)
            histories = [items[start[u] : start[u + 1]].astype(np.int64) for u in users]
        if not histories:
            histories = [np.array([i]) for i in _spread(np.arange(1, len(self._number)), number)]
        return cast(np.ndarray, self.vectors(histories, [None] * len(histories)))


def _spread(ids: np.ndarray, number: int) -> np.ndarray:
    """At most so many of ids, evenly from the first to the last."""
    picked = np.linspace(0, len(ids) - 1, min(number, len(ids)))
    return ids[picked.astype(np.int64)]


def _reading(
    reading: str | None, model: Any, config: Mapping[str, Any], encoder: CompiledEncoder | None
) -> str:
    """The reading asked for, or the one that the model was validated with."""
    validated = "carry" if config["carry_state"] else "window"
    reading = validated if reading is None else reading
    if reading not in READINGS:
        raise ConfigError(f"reading must be one of {', '.join(READINGS)}, got {reading!r}")
    if reading == "carry" and encoder is None:
        raise ConfigError(
            f"reading: {type(model).__name__} has no state that goes on, as Hydra and Mamba4Rec "
            "themselves have; use window"
        )
    if reading == "carry" and validated == "window":
        raise ConfigError(
            "reading: carry is for a model trained with carry_state: True; this one was "
            "validated on its last MAX_ITEM_LIST_LENGTH items, use window"
        )
    return reading


def encoder_of(model: Any) -> CompiledEncoder | None:
    """The compiled encoder of a model; None where it has none."""
    return CompiledEncoder(model) if type(model) in (Hydra, Mamba4Rec) else None


def ragged(rows: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Rows one after another, and where each begins, (rows + 1,)."""
    start = np.zeros(len(rows) + 1, np.int64)
    np.cumsum([len(row) for row in rows], out=start[1:])
    return np.concatenate(rows), start


def hash_of(model: torch.nn.Module, reading: str) -> bytes:
    """What tells a model's states from others, 16 bytes: of its weights and the reading."""
    found = hashlib.blake2b(digest_size=16)

    def add(value: Any) -> None:
        if isinstance(value, torch.Tensor):
            found.update(np.ascontiguousarray(value.detach().cpu().float().numpy()).data)
        elif isinstance(value, Mapping):
            for name, part in value.items():
                found.update(str(name).encode())
                add(part)
        else:
            found.update(repr(value).encode())

    add(model.state_dict())
    add(reading)
    return found.digest()
