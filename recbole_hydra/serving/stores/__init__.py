"""Where the states of users are kept: in memory, in a folder, or in Redis."""

from __future__ import annotations

import os

from recbole_hydra.checks import did_you_mean
from recbole_hydra.errors import StoreError
from recbole_hydra.serving.stores.base import Change, Entry, Store
from recbole_hydra.serving.stores.memory import MemoryStore

__all__ = ["Change", "Entry", "MemoryStore", "Store", "open_store"]

#: Beginnings of addresses.
SCHEMES = ("redis", "rediss", "unix", "memory")


def open_store(where: str | os.PathLike[str] | None) -> Store:
    """Open a store.

    Args:
        where: None or "memory://", a folder, or the address of a Redis such as
            redis://localhost:6379/0 (rediss:// and unix:// as redis-py has them).

    Raises:
        StoreError: another scheme, a package that is missing, or as the store has it.
    """
    if where is not None and not isinstance(where, (str, os.PathLike)):
        raise StoreError(f"store: must be a folder or an address, got {where!r}")
    text = "memory://" if where is None else os.fspath(where)
    scheme, colon, _ = text.partition("://")
    if colon and scheme not in SCHEMES:
        raise StoreError(
            f"store: {scheme}:// is not known{did_you_mean(scheme, SCHEMES)}; give a folder, or "
            "redis://HOST:PORT/0"
        )
    if scheme == "memory" and colon:
        return MemoryStore()
    try:
        if colon:
            from recbole_hydra.serving.stores.redis_store import RedisStore

            return RedisStore(text)
        from recbole_hydra.serving.stores.embedded import LMDBStore

        return LMDBStore(os.path.expanduser(text))
    except ImportError as error:
        raise StoreError(
            f"store: {error.name} is not installed; pip install 'recbole-hydra[serve]'"
        ) from error
