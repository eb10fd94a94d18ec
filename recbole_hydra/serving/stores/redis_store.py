"""Users' states in Redis, which several servers share."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, cast
from uuid import uuid4

import numpy as np
import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

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

#: What comes before every key.
PREFIX = b"recbole_hydra:"

#: Seconds in which Redis must answer.
TIMEOUT = 5.0

#: One user's events and state, if nobody was faster: an entry begins with the number of events.
_CHANGE = """
if redis.call('GET', KEYS[4]) ~= ARGV[4] then return -1 end
local head = redis.call('GETRANGE', KEYS[1], 0, 7)
if head == '' then head = '\\0\\0\\0\\0\\0\\0\\0\\0' end
if head ~= ARGV[1] then return 0 end
redis.call('SET', KEYS[1], ARGV[2])
redis.call('APPEND', KEYS[2], ARGV[3])
if ARGV[1] == '\\0\\0\\0\\0\\0\\0\\0\\0' then redis.call('INCR', KEYS[3]) end
return 1
"""

#: Numbers of items, new ones where they have none.
_NUMBERS = """
local found = {}
if redis.call('GET', KEYS[3]) ~= ARGV[1] then return found end
for i = 2, #ARGV do
  local token = ARGV[i]
  local number = redis.call('HGET', KEYS[1], token)
  if not number then
    number = redis.call('RPUSH', KEYS[2], token) - 1
    redis.call('HSET', KEYS[1], token, number)
  end
  found[i - 1] = tonumber(number)
end
return found
"""


class RedisStore(Store):
    """A store in a Redis database.

    Args:
        url: such as redis://localhost:6379/0, as redis-py has it.

    Raises:
        StoreError: no Redis answers there, or what it holds is of a newer format.
    """

    def __init__(self, url: str) -> None:
        self.name = url.partition("?")[0]  # without a password
        if "@" in self.name:
            self.name = self.name.rpartition("@")[2]
        try:
            connected = redis.Redis.from_url(
                url,
                socket_timeout=TIMEOUT,
                socket_connect_timeout=TIMEOUT,
                # What was sent may have been done: sent again, an event would be there twice.
                retry=Retry(NoBackoff(), 0),
                decode_responses=False,
            )
            connected.connection_pool.make_connection()  # refuses unknown options
        except (ValueError, TypeError, redis.RedisError) as error:
            raise StoreError(f"{self.name}: is no address of Redis ({error})") from error
        self._redis = cast(Any, connected)  # its answers are typed for all clients at once
        self._change = self._redis.register_script(_CHANGE)
        self._give_numbers = self._redis.register_script(_NUMBERS)
        with self._asking():
            self._redis.setnx(PREFIX + b"format", FORMAT)
            check_format(self._redis.get(PREFIX + b"format"), self.name)
            # Who writes must know these data: after a loss of all, numbers of items mean others.
            self._redis.setnx(PREFIX + b"id", uuid4().hex)
            self._id = self._redis.get(PREFIX + b"id")

    @contextmanager
    def _asking(self) -> Iterator[None]:
        try:
            yield
        except redis.RedisError as error:
            raise StoreError(f"{self.name}: Redis does not do its work ({error})") from error

    def numbers(self, tokens: Sequence[str]) -> np.ndarray:
        found: list[int] = []
        keys = [PREFIX + name for name in (b"numbers", b"tokens", b"id")]
        with self._asking():
            for i in range(0, len(tokens), 5000):  # one call holds all others up
                part = [encoded(token) for token in tokens[i : i + 5000]]
                found += self._give_numbers(keys=keys, args=[self._id, *part])
        if len(found) < len(tokens):
            raise self._lost()
        return np.array(found, np.int32)

    def _lost(self) -> StoreError:
        return StoreError(
            f"{self.name}: the data that were there are gone, as after a restart without "
            "persistence; open the store again"
        )

    def tokens(self) -> list[str]:
        with self._asking():
            return [token.decode() for token in self._redis.lrange(PREFIX + b"tokens", 0, -1)]

    def read(self, users: Sequence[str], recent: int) -> list[Entry | None]:
        with self._asking(), self._redis.pipeline(transaction=True) as asked:
            for user in users:
                asked.get(_entry_key(user))
                if recent:
                    asked.getrange(_history_key(user), -4 * recent, -1)
            answers = asked.execute()
        if not recent:
            answers = [x for answer in answers for x in (answer, b"")]
        pairs = zip(answers[::2], answers[1::2], strict=True)
        return [
            None if data is None else Entry.unpacked(data, np.frombuffer(items, np.int32))
            for data, items in pairs
        ]

    def history(self, user: str) -> np.ndarray:
        with self._asking():
            return np.frombuffer(self._redis.get(_history_key(user)) or b"", np.int32)

    def write(self, changes: Sequence[Change]) -> list[bool]:
        # In one transaction: where memory is over, nothing is done.
        with self._asking(), self._redis.pipeline(transaction=True) as asked:
            for change in changes:
                names = PREFIX + b"users", PREFIX + b"id"
                self._change(
                    keys=[_entry_key(change.user), _history_key(change.user), *names],
                    args=[
                        Entry.packed_count(change.before),
                        change.entry.packed(),
                        change.items.astype(np.int32).tobytes(),
                        self._id,
                    ],
                    client=asked,
                )
            done = asked.execute()
        if -1 in done:
            raise self._lost()
        return [bool(applied) for applied in done]

    def users(self) -> Iterator[str]:
        prefix = _entry_key("")
        with self._asking():
            for key in self._redis.scan_iter(match=prefix + b"*", count=1000):
                yield key.removeprefix(prefix).decode()

    def __len__(self) -> int:
        with self._asking():
            return int(self._redis.get(PREFIX + b"users") or 0)

    def model(self, replace: bytes | None = None) -> bytes:
        with self._asking():
            if replace is not None:
                self._redis.set(PREFIX + b"model", replace)
            return self._redis.get(PREFIX + b"model") or b""

    def close(self) -> None:
        self._redis.close()


def _entry_key(user: str) -> bytes:
    return PREFIX + b"entry:" + key_of(user) if user else PREFIX + b"entry:"


def _history_key(user: str) -> bytes:
    return PREFIX + b"history:" + key_of(user)
