"""Scores of pairs on the CPU, float32, each vector read where it is."""

import numpy as np
from numba import njit, prange
from torch import Tensor

from recbole_hydra.ops.numba_support import compiled, use_torch_threads
from recbole_hydra.ops.simd import LANES, fma, load, store_channel_sums, zero

#: Parts into which the pairs are divided, more than there are threads.
PARTS = 32


@njit
def _part(
    first: int, last: int, width: int, states: np.ndarray, table: np.ndarray, rows: np.ndarray,
    items: np.ndarray, scores: np.ndarray,
) -> None:  # fmt: skip
    spare = np.empty(2, np.float32)
    for k in range(first, last):
        of_state, of_item, product = rows[k] * width, items[k] * width, zero()
        for at in range(0, width, LANES):
            product = fma(load(states, of_state + at), load(table, of_item + at), product)
        store_channel_sums(spare, 0, product)
        scores[k] = spare[0] + spare[1]


@compiled
def _all(
    width: int, states: np.ndarray, table: np.ndarray, rows: np.ndarray, items: np.ndarray,
    scores: np.ndarray,
) -> None:  # fmt: skip
    pairs = len(scores)
    for part in prange(PARTS):
        first, last = pairs * part // PARTS, pairs * (part + 1) // PARTS
        _part(first, last, width, states, table, rows, items, scores)


def pair_scores_numba(states: Tensor, table: Tensor, rows: Tensor, items: Tensor) -> Tensor:
    """What :func:`.naive.pair_scores_naive` returns, for float32 and widths of a multiple of 16."""
    scores = states.new_empty(len(rows))
    for index, whose in ((rows, states), (items, table)):  # the loop reads whatever they say
        if len(index) and not 0 <= int(index.min()) <= int(index.max()) < len(whose):
            raise IndexError(
                f"pair_scores: indices from {int(index.min())} to {int(index.max())} into "
                f"{len(whose)} vectors"
            )
    use_torch_threads()
    vectors = (x.contiguous().view(-1).numpy() for x in (states, table))
    _all(
        states.shape[1], *vectors, *(x.contiguous().numpy() for x in (rows, items)),
        scores.numpy(),
    )  # fmt: skip
    return scores
