"""The best k for one vector, exactly, by reading a quarter of the bytes of the item table.

The product of one vector and a large table takes as long as reading the table. A copy of it has 8
bits a number, and per item a bound on what that changes in a score: by Cauchy and Schwarz no more
than the length of the vector times that of what was rounded away. Only items whose upper bound
reaches the k-th best lower bound can be among the best; their scores are computed from the table.
"""

from __future__ import annotations

import numpy as np
from numba import njit

from recbole_hydra.ops.numba_support import serially_compiled
from recbole_hydra.serving.top_k import Offsets, replace_least

#: What rounding in float32 may change in an inner product, by the lengths of both vectors: far
#: above what it does for widths below 4,096.
ROUNDING = np.float32(1e-4)


@njit(fastmath=True)
def _product(row: np.ndarray, vector: np.ndarray) -> np.float32:
    total = np.float32(0)
    for j in range(len(vector)):
        total += np.float32(row[j]) * vector[j]
    return total


def _bounded(
    numbers: np.ndarray, scale: np.ndarray, bound: np.ndarray, vector: np.ndarray,
    length: np.float32, skipped: np.ndarray, scores: np.ndarray, lower: np.ndarray,
    ids: np.ndarray,
) -> int:  # fmt: skip
    """Put into ``ids`` the items that may be among the best; returns their number.

    Args:
        skipped: (items,) bool. scores: room for (items,). lower: (k,), filled with -inf.
    """
    places = np.empty(len(lower), np.int64)
    for i in range(len(scale)):
        scores[i] = _product(numbers[i], vector) * scale[i]
        least = scores[i] - bound[i] * length
        if least > lower[0] and not skipped[i]:
            replace_least(lower, places, least, i)
    number, threshold = 0, lower[0]
    for i in range(len(scale)):
        if scores[i] + bound[i] * length >= threshold and not skipped[i]:
            ids[number] = i
            number += 1
    return number


_may_be_best = serially_compiled(_bounded)


class EightBitTable:
    """The copy of a table.

    Args:
        table: (n_items, width) float32; stays in use.
    """

    def __init__(self, table: np.ndarray) -> None:
        self._table = table
        largest = np.abs(table).max(axis=1)
        self._scale = np.where(largest > 0, largest / 127, 1).astype(np.float32)
        self._numbers = np.empty(table.shape, np.int8)
        self._bound = np.empty(len(table), np.float32)
        for first in range(0, len(table), 1 << 16):  # no second table of floats
            some = slice(first, first + (1 << 16))
            scaled = np.rint(table[some] / self._scale[some, None])
            self._numbers[some] = scaled
            rounded = np.linalg.norm(table[some] - scaled * self._scale[some, None], axis=1)
            self._bound[some] = rounded + ROUNDING * np.linalg.norm(table[some], axis=1)

    def top_k(
        self, vector: np.ndarray, k: int, items: tuple[int, int], offsets: Offsets,
        allowed: np.ndarray | None = None,
    ) -> tuple[np.ndarray, np.ndarray]:  # fmt: skip
        """What :func:`~recbole_hydra.serving.top_k.top_k` says of one vector, (width,).

        Returns:
            ``(ids, scores)``, both (k,).
        """
        begin, end = items
        some = slice(begin, end)
        own, amounts = offsets
        there = (own >= begin) & (own < end)
        own, amounts = own[there], amounts[there]
        skipped = np.zeros(end - begin, bool) if allowed is None else ~allowed[some]
        if allowed is not None:
            own, amounts = own[allowed[own]], amounts[allowed[own]]
        skipped[own - begin] = True  # their scores are computed anyway
        ids = np.empty(end - begin, np.int64)
        number = _may_be_best(
            self._numbers[some], self._scale[some], self._bound[some], vector,
            np.float32(np.linalg.norm(vector)), skipped, np.empty(end - begin, np.float32),
            np.full(k, -np.inf, np.float32), ids,
        )  # fmt: skip
        found = np.concatenate([ids[:number] + begin, own])
        scores = self._table[found] @ vector
        scores[number:] += amounts
        order = np.argsort(-scores, kind="stable")[:k]
        found, scores = found[order], scores[order]
        missing = k - len(found)
        if missing:
            found = np.concatenate([found, np.full(missing, -1)])
            scores = np.concatenate([scores, np.full(missing, -np.inf, np.float32)])
        found[scores == -np.inf] = -1
        return found, scores
