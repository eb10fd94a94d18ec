"""Lists of items, one for each row of a (rows, items) matrix that is never held whole."""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor


class ItemLists(NamedTuple):
    """Row r has ``items[begin[r] : begin[r] + count[r]]``; no list has an item twice.

    Rows may share a list or the beginning of one, as those of a user do, whose history grows: the
    histories of all positions take no more memory than the items themselves.

    Attributes:
        items: (k,) int64. begin, count: (rows,) int64.
    """

    items: Tensor
    begin: Tensor
    count: Tensor  # type: ignore[assignment]  # over that of tuples

    @classmethod
    def of_histories(cls, item_seq: Tensor, last: Tensor) -> "ItemLists":
        """The distinct items up to some positions.

        Args:
            item_seq: item ids, 0 is padding, (batch, length).
            last: b * length + t of the last item of each history, (rows,).
        """
        ordered, order = item_seq.sort(dim=1, stable=True)
        is_new = ordered > 0
        is_new[:, 1:] &= ordered[:, 1:] != ordered[:, :-1]
        is_new = torch.zeros_like(is_new).scatter(1, order, is_new)
        so_far = is_new.flatten().cumsum(0)
        before = F.pad(so_far, (1, 0))[:: item_seq.shape[1]]  # each sequence
        begin = before[last // item_seq.shape[1]]
        return cls(item_seq[is_new], begin, so_far[last] - begin)

    @property
    def less(self) -> Tensor:
        """log of the number of items in each list, 0 of an empty one, (rows,) float32: what the
        score of each has less where a list counts as one item."""
        return self.count.clamp(min=1).log()

    def places(self, start: int = 0, stop: int | None = None) -> tuple[Tensor, Tensor]:
        """Row, counted from ``start``, and item of every element of the lists from row ``start`` to
        before ``stop``, (elements,) each, rows ascending."""
        begin, count = self.begin[start:stop], self.count[start:stop]
        row = torch.repeat_interleave(count)
        first = count.cumsum(0) - count  # where a row's elements begin among all
        within = torch.arange(len(row), device=row.device) - first[row]
        return row, self.items[begin[row] + within]

    def holds(self, items: Tensor) -> Tensor:
        """Whether each row's list has each of its own ``items``, (rows, m), bool."""
        begins, of_element = self._distinct()
        size = 1 + max(int(part.max()) if part.numel() else 0 for part in (self.items, items))
        keys, order = (of_element * size + self.items).sort(stable=True)
        wanted = torch.searchsorted(begins, self.begin)[:, None] * size + items
        if not len(keys):
            return torch.zeros_like(items, dtype=torch.bool)
        place = torch.searchsorted(keys, wanted).clamp(max=len(keys) - 1)
        return (keys[place] == wanted) & (order[place] < (self.begin + self.count)[:, None])

    def holds_shared(self, items: Tensor) -> Tensor:
        """Whether each row's list has the same ``items``, (m,); (rows, m), bool."""
        begins, of_element = self._distinct()
        distinct, column = items.unique(return_inverse=True)
        place = torch.searchsorted(distinct, self.items).clamp(max=len(distinct) - 1)
        found = ((distinct[place] == self.items) & (of_element >= 0)).nonzero().squeeze(1)
        # The first element of each list that is the item.
        first = found.new_full((len(begins) * len(distinct),), len(self.items))
        cell = of_element[found] * len(distinct) + place[found]
        first = first.scatter_reduce(0, cell, found, "amin").view(len(begins), len(distinct))
        end = (self.begin + self.count)[:, None]
        return (first[torch.searchsorted(begins, self.begin)] < end)[:, column]

    def _distinct(self) -> tuple[Tensor, Tensor]:
        """Where the distinct lists begin, ascending, and which of them each element is in, -1 for
        those before all; elements that no row has come out as the end of the list before them,
        behind what any row has of it."""
        begins = self.begin.unique()
        element = torch.arange(len(self.items), device=self.items.device)
        return begins, torch.searchsorted(begins, element, right=True) - 1

    def among(self, rows: Tensor, position: Tensor) -> "ItemLists":
        """The lists of some rows, without some items; the others are numbered anew.

        Args:
            rows: those wanted, (m,).
            position: the new number of every item, -1 for those that are left out, (n_items,).
        """
        number = position[self.items]
        is_in = number >= 0
        before = F.pad(is_in.cumsum(0), (1, 0))
        begin, end = self.begin[rows], (self.begin + self.count)[rows]
        return ItemLists(number[is_in], before[begin], before[end] - before[begin])
