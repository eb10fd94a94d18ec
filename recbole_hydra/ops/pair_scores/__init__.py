"""Single scores of a (rows, items) matrix that is never held whole."""

import torch
from torch import Tensor

from recbole_hydra.errors import BackendError
from recbole_hydra.ops.pair_scores.naive import pair_scores_naive

__all__ = ["BACKENDS", "pair_scores"]

#: In the order in which "auto" tries them.
BACKENDS = ("numba", "naive")


def pair_scores(
    states: Tensor, table: Tensor, rows: Tensor, items: Tensor, backend: str = "auto"
) -> Tensor:
    """Return the scores <states[rows[k]], table[items[k]]>, (k,), which no gradient goes through.

    "naive" gathers both vectors of every pair, and so writes and reads (k, width) numbers three
    times, which for the histories of a batch are many; "numba" reads them where they are.

    Args:
        states: (n, width). table: (n_items, width). rows, items: indices into them, (k,) int64.
        backend: "numba" (CPU, float32, widths of a multiple of 16), "naive" (any device and dtype)
            or "auto", the first that fits.

    Raises:
        BackendError: an unknown backend, shapes that do not fit, or a named backend that does not
            fit the call.
        IndexError: a row or an item that is not there.
    """
    if states.dim() != 2 or table.dim() != 2 or states.shape[1] != table.shape[1]:
        raise BackendError(
            "pair_scores: states must be (n, width) and table (n_items, width), got "
            f"{tuple(states.shape)} and {tuple(table.shape)}"
        )
    if rows.dim() != 1 or rows.shape != items.shape:
        raise BackendError(
            "pair_scores: rows and items must be of one length, got "
            f"{tuple(rows.shape)} and {tuple(items.shape)}"
        )
    if backend not in ("auto", *BACKENDS):
        raise BackendError(
            f"pair_scores: unknown backend {backend!r}; use auto, {', '.join(BACKENDS)}"
        )
    states, table = states.detach(), table.detach()
    objection = _objection_to_numba(states, table)
    if backend == "numba" and objection:
        raise BackendError(f"pair_scores: numba does not fit: {objection}; use naive")
    if backend == "naive" or objection:
        return pair_scores_naive(states, table, rows, items)
    # Imported here: it takes a second to load, which a run without it need not spend.
    from recbole_hydra.ops.pair_scores.numba_cpu import pair_scores_numba

    return pair_scores_numba(states, table, rows, items)


def _objection_to_numba(states: Tensor, table: Tensor) -> str | None:
    """One line about why numba does not fit the call, or None."""
    if states.device.type != "cpu":
        return f"it runs on the CPU only, states are on {states.device}"
    if {states.dtype, table.dtype} != {torch.float32}:
        return f"it takes float32 only, got {states.dtype} and {table.dtype}"
    if states.shape[1] % 16 or not states.shape[1]:
        return f"it takes widths of a multiple of 16, got {states.shape[1]}"
    if torch.compiler.is_compiling():
        return "torch.compile cannot trace it"
    return None
