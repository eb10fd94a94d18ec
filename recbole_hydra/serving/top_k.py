"""The best k of all items for a vector, without a row of all scores and without a sort.

The product of vectors and items is taken in blocks, by torch; of each block what exceeds the k-th
best so far goes into a heap per row, by code that numba compiles. What is added to the scores of
some items (the repeat bias, minus infinity for what is left out) is added in its block.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numba import njit

from recbole_hydra.ops.numba_support import serially_compiled

#: Scores that are there at a time, and most items of a block.
SCORES, BLOCK = 1 << 20, 1 << 14

#: Scores that are looked at together, since few of them are among the best.
GROUP = 64

#: Items, and what is added to their scores.
Offsets = tuple[np.ndarray, np.ndarray]


@njit(inline="always")
def replace_least(scores: np.ndarray, ids: np.ndarray, score: float, item: int) -> None:
    """Put an item in the place of the least of a heap, which is its first."""
    k, at = len(scores), 0
    while True:
        child = 2 * at + 1
        if child >= k:
            break
        if child + 1 < k and scores[child + 1] < scores[child]:
            child += 1
        if scores[child] >= score:
            break
        scores[at], ids[at] = scores[child], ids[child]
        at = child
    scores[at], ids[at] = score, item


def _keep(block: np.ndarray, first: int, best_scores: np.ndarray, best_ids: np.ndarray) -> None:
    width = block.shape[1]
    for row in range(block.shape[0]):
        scores, ids = best_scores[row], best_ids[row]
        least = scores[0]
        for begin in range(0, width, GROUP):
            end = min(begin + GROUP, width)
            more = False
            for j in range(begin, end):  # without a branch: one vector instruction for many
                more |= block[row, j] > least
            if more:
                for j in range(begin, end):
                    if block[row, j] > least:
                        replace_least(scores, ids, block[row, j], first + j)
                        least = scores[0]


_keep_best = serially_compiled(_keep)


def top_k(
    vectors: np.ndarray,
    table: np.ndarray,
    k: int,
    items: tuple[int, int],
    offsets: Sequence[Offsets] = (),
    allowed: np.ndarray | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """The best items by inner product, exactly.

    Args:
        vectors: (rows, width) float32. table: of the items, (n_items, width) float32.
        k: how many.
        items: the ids that are ranked, first and one behind the last.
        offsets: for each row ids without repetition, int64, and what is added to their scores,
            float32; ``-inf`` leaves an item out. None by default.
        allowed: which items may be there, (n_items,) bool; all by default.

    Returns:
        ``(ids, scores)``, both (rows, k), best first; where there are fewer, ids are -1 and scores
        ``-inf``.
    """
    rows = len(vectors)
    best_scores = np.full((rows, k), -np.inf, np.float32)
    best_ids = np.full((rows, k), -1, np.int64)
    row_of = np.repeat(np.arange(len(offsets)), [len(ids) for ids, _ in offsets])
    id_of = np.concatenate([ids for ids, _ in offsets]) if offsets else np.empty(0, np.int64)
    amount = np.concatenate([x for _, x in offsets]) if offsets else np.empty(0, np.float32)
    order = np.argsort(id_of, kind="stable")
    row_of, id_of, amount = row_of[order], id_of[order], amount[order]

    begin, end = items
    size = max(min(BLOCK, SCORES // max(rows, 1)), 256)
    queries, all_items = torch.from_numpy(vectors), torch.from_numpy(table)
    room = torch.empty(rows * min(size, end - begin))
    for first in range(begin, end, size):
        last = min(first + size, end)
        block = room[: rows * (last - first)].view(rows, last - first)
        torch.mm(queries, all_items[first:last].T, out=block)
        scores = block.numpy()
        low, high = np.searchsorted(id_of, (first, last))
        if high > low:
            scores[row_of[low:high], id_of[low:high] - first] += amount[low:high]
        if allowed is not None:
            scores[:, ~allowed[first:last]] = -np.inf
        _keep_best(scores, first, best_scores, best_ids)
    order = np.argsort(-best_scores, axis=1, kind="stable")
    return np.take_along_axis(best_ids, order, 1), np.take_along_axis(best_scores, order, 1)
