"""Users' states in this process, gone with it."""

from __future__ import annotations

import threading
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np

from recbole_hydra.serving.stores.base import Change, Entry, Store, key_of


class MemoryStore(Store):
    """A store in memory."""

    name = "memory"

    def __init__(self) -> None:
        self._entries: dict[str, Entry] = {}
        self._histories: dict[str, array[int]] = {}
        self._numbers: dict[str, int] = {}
        self._model = b""
        self._lock = threading.Lock()

    def numbers(self, tokens: Sequence[str]) -> np.ndarray:
        known = self._numbers
        with self._lock:
            return np.array([known.setdefault(token, len(known)) for token in tokens], np.int32)

    def tokens(self) -> list[str]:
        return list(self._numbers)

    def read(self, users: Sequence[str], recent: int) -> list[Entry | None]:
        found: list[Entry | None] = []
        with self._lock:
            for user in users:
                key_of(user)
                entry = self._entries.get(user)
                if entry is not None and recent:
                    last = np.array(self._histories[user][-recent:], np.int32)
                    entry = replace(entry, recent=last)
                found.append(entry)
        return found

    def history(self, user: str) -> np.ndarray:
        return np.array(self._histories.get(user, ()), np.int32)

    def write(self, changes: Sequence[Change]) -> list[bool]:
        entries, histories, applied = self._entries, self._histories, []
        for change in changes:  # all or none
            key_of(change.user)
        with self._lock:
            for change in changes:
                user = change.user
                known = entries.get(user)
                fits = (0 if known is None else known.count) == change.before
                applied.append(fits)
                if fits:
                    if known is None:
                        histories[user] = array("i")
                    histories[user].extend(change.items.tolist())
                    entries[user] = change.entry
        return applied

    def users(self) -> Iterator[str]:
        return iter(list(self._entries))

    def __len__(self) -> int:
        return len(self._entries)

    def model(self, replace: bytes | None = None) -> bytes:
        self._model = self._model if replace is None else replace
        return self._model

    def close(self) -> None:
        pass
