"""Users' states in a folder of this machine, kept by LMDB; one process has it at a time."""

from __future__ import annotations

import fcntl
import logging
import os
import struct
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import lmdb
import numpy as np

from recbole_hydra.errors import StoreError
from recbole_hydra.serving.stores.base import (
    FORMAT,
    Change,
    Entry,
    Store,
    check_format,
    encoded,
    key_of,
)

logger = logging.getLogger(__name__)

#: Items of a history that lie under one key: an event writes that many numbers at most.
CHUNK = 64

#: The most that the file may grow to; it is as large as what it holds, not as this.
MAP_SIZE = 1 << 40

_NUMBER = struct.Struct(">I")


class LMDBStore(Store):
    """A store in a folder.

    Args:
        folder: made where it is missing.

    Raises:
        StoreError: it cannot be opened, is in use, holds something else, or a newer format.
    """

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        self.name = str(folder)
        if not self.name or "\0" in self.name:
            raise StoreError(f"store: {self.name!r} is no name of a folder")
        path = Path(folder)
        try:
            if path.exists() and not path.is_dir():
                raise StoreError(f"{self.name}: a store is a folder, and this is a file")
            found = set(os.listdir(path)) if path.exists() else set()
            if found and "data.mdb" not in found:
                raise StoreError(
                    f"{self.name}: holds no states of recbole_hydra; name another place"
                )
            if not found:
                logger.info("%s: a new store", self.name)
            path.mkdir(parents=True, exist_ok=True)
            self._lock = open(path / "in_use", "a")
        except OSError as error:
            raise StoreError(f"{self.name}: cannot be written ({error.strerror})") from error
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            self._lock.close()
            raise StoreError(
                f"{self.name}: is in use, by another process or by this one; several servers share "
                "users by Redis"
            ) from error
        try:
            self._open(path)
        except BaseException:
            self._lock.close()
            raise

    def _open(self, path: Path) -> None:
        try:
            self._env = lmdb.open(str(path), map_size=MAP_SIZE, max_dbs=5)
            names = (b"meta", b"entries", b"history", b"numbers", b"tokens")
            dbs = [self._env.open_db(name) for name in names]
        except lmdb.Error as error:
            raise StoreError(f"{self.name}: is no store, or is damaged ({error})") from error
        self._meta, self._entries, self._history, self._numbers, self._tokens = dbs
        with self._writing() as txn:
            found = txn.get(b"format", db=self._meta)
            if found is None and txn.stat(self._meta)["entries"]:
                found = b"other"
            try:
                check_format(found, self.name)
            except StoreError:
                self._env.close()
                raise
            txn.put(b"format", str(FORMAT).encode(), db=self._meta)
        with self._reading() as txn:
            cursor = txn.cursor(self._tokens)
            self._known = [token.decode() for _, token in cursor]
        self._number_of = {token: number for number, token in enumerate(self._known)}

    @contextmanager
    def _reading(self) -> Iterator[Any]:
        try:
            with self._env.begin() as txn:
                yield txn
        except lmdb.Error as error:
            raise StoreError(f"{self.name}: cannot be read ({error})") from error

    def _writing(self) -> _Writing:
        return _Writing(self._env, self.name)

    def numbers(self, tokens: Sequence[str]) -> np.ndarray:
        known = self._number_of
        new = [token for token in dict.fromkeys(tokens) if token not in known]
        if new:
            keys = [encoded(token) for token in new]
            with self._writing() as txn:
                for number, key in enumerate(keys, start=len(self._known)):
                    txn.put(_NUMBER.pack(number), key, db=self._tokens)
            for token in new:
                known[token] = len(self._known)
                self._known.append(token)
        return np.array([known[token] for token in tokens], np.int32)

    def tokens(self) -> list[str]:
        return list(self._known)

    def read(self, users: Sequence[str], recent: int) -> list[Entry | None]:
        found: list[Entry | None] = []
        with self._reading() as txn:
            for user in users:
                key = key_of(user)
                data = txn.get(key, db=self._entries)
                if data is None:
                    found.append(None)
                    continue
                count = Entry.count_of(data)
                first = max(count - recent, 0)
                items = self._items(txn, key, first, count) if recent else np.empty(0, np.int32)
                found.append(Entry.unpacked(data, items))
        return found

    def _items(self, txn: Any, key: bytes, first: int, count: int) -> np.ndarray:
        """The items ``first`` to ``count`` of a history."""
        chunks = range(first // CHUNK, -(-count // CHUNK))
        data = b"".join(txn.get(_chunk_key(key, chunk), db=self._history) for chunk in chunks)
        return np.frombuffer(data, np.int32)[first - chunks.start * CHUNK :]

    def history(self, user: str) -> np.ndarray:
        key = key_of(user)
        with self._reading() as txn:
            data = txn.get(key, db=self._entries)
            if data is None:
                return np.empty(0, np.int32)
            return self._items(txn, key, 0, Entry.count_of(data))

    def write(self, changes: Sequence[Change]) -> list[bool]:
        applied = []
        with self._writing() as txn:
            for change in changes:
                key = key_of(change.user)
                data = txn.get(key, db=self._entries)
                count = 0 if data is None else Entry.count_of(data)
                applied.append(count == change.before)
                if count != change.before:
                    continue
                items = change.items.astype(np.int32)
                chunk, filled = divmod(count, CHUNK)
                if filled:
                    last = txn.get(_chunk_key(key, chunk), db=self._history)
                    items = np.concatenate([np.frombuffer(last, np.int32), items])
                for i in range(0, len(items), CHUNK):
                    part = items[i : i + CHUNK].tobytes()
                    txn.put(_chunk_key(key, chunk + i // CHUNK), part, db=self._history)
                txn.put(key, change.entry.packed(), db=self._entries)
        return applied

    def users(self) -> Iterator[str]:
        after = b""
        while True:  # no transaction stays open while the caller works
            with self._reading() as txn:
                cursor = txn.cursor(self._entries)
                found = cursor.set_range(after)
                keys: list[bytes] = []
                while found and len(keys) < 1000:
                    keys.append(cursor.key())
                    found = cursor.next()
            if not keys:
                return
            yield from (key.decode() for key in keys)
            after = keys[-1] + b"\0"

    def __len__(self) -> int:
        with self._reading() as txn:
            return txn.stat(self._entries)["entries"]

    def model(self, replace: bytes | None = None) -> bytes:
        if replace is not None:
            with self._writing() as txn:
                txn.put(b"model", replace, db=self._meta)
        with self._reading() as txn:
            return txn.get(b"model", b"", db=self._meta)

    def close(self) -> None:
        self._env.close()
        self._lock.close()


class _Writing:
    """A transaction whose failures are StoreErrors, a full disk among them."""

    def __init__(self, env: Any, name: str) -> None:
        self._env, self._name = env, name

    def __enter__(self) -> Any:
        try:
            self._txn = self._env.begin(write=True)
        except (lmdb.Error, ValueError) as error:
            raise StoreError(f"{self._name}: cannot be written ({error})") from error
        return self._txn

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        try:
            if kind is None:
                self._txn.commit()
            else:
                self._txn.abort()
        except lmdb.Error as failure:
            raise StoreError(f"{self._name}: cannot be written ({failure})") from failure
        if isinstance(error, lmdb.Error):
            raise StoreError(f"{self._name}: cannot be written ({error})") from error


def _chunk_key(user: bytes, chunk: int) -> bytes:
    # The length first: no user's keys lie among another's.
    return struct.pack(">H", len(user)) + user + _NUMBER.pack(chunk)
