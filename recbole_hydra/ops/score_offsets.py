"""What is added to single scores of a (rows, items) matrix that is never held whole."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor


class ScoreOffsets(NamedTuple):
    """Adds ``values[kinds[k]]`` to the score of ``items[k]`` in ``rows[k]``.

    Attributes:
        rows: ascending, (k,) int64. items: (k,) int64; no pair of row and item occurs twice.
        kinds: indices into ``values``, (k,) int64.
        values: (kinds,), float, which a gradient may be wanted of.
    """

    rows: Tensor
    items: Tensor
    kinds: Tensor
    values: Tensor

    def and_also(self, other: "ScoreOffsets", n_items: int) -> "ScoreOffsets":
        """Both together: where they are of the same score, their sum.

        Args:
            other: of the same rows. n_items: above every item.
        """
        parts = (self, other)
        keys = torch.cat([part.rows * n_items + part.items for part in parts])
        added = torch.cat([part.values[part.kinds] for part in parts])
        distinct, where = keys.unique(return_inverse=True)
        values = added.new_zeros(len(distinct)).index_add(0, where, added)
        kinds = torch.arange(len(distinct), device=keys.device)
        return ScoreOffsets(distinct // n_items, distinct % n_items, kinds, values)

    def added_to(self, scores: Tensor) -> Tensor:
        """``scores``, (rows, n_items), with what is added; a new tensor."""
        added = self.values[self.kinds].to(scores.dtype)
        return scores.index_put((self.rows, self.items), added, accumulate=True)

    def of(self, items: Tensor) -> Tensor:
        """What is added to the scores of ``items``, (rows, m), some of each row's own."""
        place, column = (self.items[:, None] == items[self.rows]).nonzero(as_tuple=True)
        added = self.values.new_zeros(items.shape)
        return added.index_put((self.rows[place], column), self.values[self.kinds[place]])

    def of_shared(self, items: Tensor, shape: Sequence[int]) -> Tensor:
        """What is added to the scores of the same ``items``, (m,), in all rows, (rows, m).

        Args:
            shape: of the matrix of scores, (rows, n_items).
        """
        distinct, column = items.unique(return_inverse=True)
        position = torch.full((shape[1],), -1, device=items.device)
        position[distinct] = torch.arange(len(distinct), device=items.device)
        found = self.among(torch.arange(shape[0], device=items.device), position)
        return found.added_to(self.values.new_zeros(shape[0], len(distinct)))[:, column]

    def among(self, rows: Tensor, position: Tensor) -> "ScoreOffsets":
        """The offsets of some rows and items, which are numbered anew.

        Args:
            rows: those wanted, ascending, (m,), m >= 1.
            position: the new number of every item, -1 for those that are left out, (n_items,).
        """
        row = torch.searchsorted(rows, self.rows).clamp(max=len(rows) - 1)
        item = position[self.items]
        wanted = ((rows[row] == self.rows) & (item >= 0)).nonzero().squeeze(1)
        return ScoreOffsets(row[wanted], item[wanted], self.kinds[wanted], self.values)
