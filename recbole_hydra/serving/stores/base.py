"""What a store of users' states is asked for, whatever keeps it."""

from __future__ import annotations

import struct
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from recbole_hydra.errors import StoreError

#: Of what is written. A store with a higher number is from a newer version of this package.
FORMAT = 1

#: Raw ids are parts of keys, which LMDB keeps short.
LONGEST_ID = 400

#: Events, those of them that the model has read, the layers that read them, the model.
_HEAD = struct.Struct("<QQI16s")
_COUNT = struct.Struct("<Q")


@dataclass
class Entry:
    """What is known of a user beside the whole history.

    Attributes:
        count: number of events.
        position: how many of them are behind ``state``; fewer where the model does not know all
            items.
        model: hash of the model that ``state`` is of, 16 bytes.
        stack: which of the model's layers read this user, see
            :meth:`~recbole_hydra.serving.compiled.CompiledEncoder.stacks`.
        state: what the events have left in the model, float32 numbers; none without carried state.
        recent: the last items, oldest first, by the store's numbers, int32; as many as asked for.
    """

    count: int
    position: int
    model: bytes
    stack: int
    state: np.ndarray
    recent: np.ndarray

    def packed(self) -> bytes:
        """All but ``recent``, as bytes."""
        return _HEAD.pack(self.count, self.position, self.stack, self.model) + self.state.tobytes()

    @classmethod
    def unpacked(cls, data: bytes, recent: np.ndarray) -> Entry:
        """Read what :meth:`packed` wrote."""
        count, position, stack, model = _HEAD.unpack_from(data)
        return cls(
            count,
            position,
            model,
            stack,
            np.frombuffer(data, np.float32, offset=_HEAD.size),
            recent,
        )

    @staticmethod
    def count_of(data: bytes) -> int:
        """The number of events, of packed bytes."""
        return _COUNT.unpack_from(data)[0]

    @staticmethod
    def packed_count(count: int) -> bytes:
        """What the packed bytes of a user with ``count`` events begin with."""
        return _COUNT.pack(count)


@dataclass
class Change:
    """New events of a user.

    Attributes:
        user: raw id.
        before: the number of events that the new ones come after; 0 for a user who is new to the
            store.
        items: the new events, by the store's numbers, int32.
        entry: what is known of the user after them; its ``recent`` is not read.
    """

    user: str
    before: int
    items: np.ndarray
    entry: Entry


class Store(ABC):
    """Users' histories and states. A change of a user is all there or not at all.

    Items are the store's own numbers, given once and never again, so that histories outlive a
    model and its ids.

    Attributes:
        name: what errors call it.
    """

    name: str

    @abstractmethod
    def numbers(self, tokens: Sequence[str]) -> np.ndarray:
        """The numbers of items by raw id, (tokens,) int32; those that have none get one."""

    @abstractmethod
    def tokens(self) -> list[str]:
        """The raw ids of all items that have a number, by number."""

    @abstractmethod
    def read(self, users: Sequence[str], recent: int) -> list[Entry | None]:
        """The entries of users, with their last ``recent`` items; None where there is none."""

    @abstractmethod
    def history(self, user: str) -> np.ndarray:
        """All items of a user, oldest first, int32; empty for a user who is not there."""

    @abstractmethod
    def write(self, changes: Sequence[Change]) -> list[bool]:
        """Apply changes of distinct users; they are kept when this returns.

        Returns:
            False for a user whose number of events is not ``before`` any more, since another
            process was faster; nothing is changed there.

        Raises:
            StoreError: they could not be kept; nothing of them is, unless the connection was lost
                before the answer came.
        """

    @abstractmethod
    def users(self) -> Iterator[str]:
        """The raw ids of all users."""

    @abstractmethod
    def __len__(self) -> int:
        """The number of users."""

    @abstractmethod
    def model(self, replace: bytes | None = None) -> bytes:
        """The hash of the model that new states are of, b"" at first; or set it to ``replace``."""

    @abstractmethod
    def close(self) -> None:
        """Let go of files and connections; more than once does no harm."""


def check_format(found: bytes | None, name: str) -> None:
    """Refuse a store that a newer version has written, and one that is none of ours.

    Args:
        found: what is written as its format, None in a new store.

    Raises:
        StoreError: both.
    """
    if found is None:
        return
    if not found.isdigit():
        raise StoreError(f"{name}: holds no states of recbole_hydra; name another place")
    if int(found) > FORMAT:
        raise StoreError(
            f"{name}: written by a newer version of recbole_hydra (format {int(found)}, this one "
            f"knows {FORMAT}); install that one"
        )


def encoded(raw_id: str) -> bytes:
    """A raw id as bytes.

    Raises:
        StoreError: it is no Unicode text.
    """
    try:
        return raw_id.encode()
    except UnicodeEncodeError as error:
        raise StoreError(f"id {raw_id!a}: is no Unicode text") from error


def key_of(raw_id: str) -> bytes:
    """A raw id as part of a key.

    Raises:
        StoreError: it is no Unicode text, or longer than a key may be.
    """
    key = encoded(raw_id)
    if len(key) > LONGEST_ID:
        raise StoreError(f"id {raw_id[:20]!r}...: longer than {LONGEST_ID} bytes")
    return key
