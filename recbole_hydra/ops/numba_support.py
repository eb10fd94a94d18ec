"""What the operations compiled by numba share: how they are compiled, and torch's threads."""

from collections.abc import Callable
from typing import Any

import numba
import torch
from numba import njit


def _compiled(function: Callable[..., Any], parallel: bool) -> Callable[..., Any]:
    """Compile on first use, and keep the result on disk where a folder for it can be written.

    The result is looked up by the file of ``function`` and its date: after a change in
    :mod:`.simd`, which is compiled into it, delete the ``__pycache__`` beside that file.
    """
    options: dict[str, Any] = {"parallel": parallel, "nogil": True}
    try:
        return njit(cache=True, **options)(function)
    except RuntimeError:  # no such folder: every process compiles for itself
        return njit(**options)(function)


def compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """:func:`_compiled` with the iterations of ``prange`` shared out among threads."""
    return _compiled(function, parallel=True)


def serially_compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """:func:`_compiled` for one thread."""
    return _compiled(function, parallel=False)


def use_torch_threads() -> int:
    """Let numba use as many threads as torch does; returns that number."""
    wanted = torch.get_num_threads()
    threads = min(wanted, numba.config.NUMBA_NUM_THREADS)  # type: ignore[attr-defined]
    numba.set_num_threads(threads)  # starts the pool, the first time
    if torch.get_num_threads() != wanted:
        # On OpenMP, which torch uses too, starting it set the number for the whole process.
        torch.set_num_threads(wanted)
    return threads
