"""RecBole's sequential rows, (history, target), without storing a history per row.

RecBole's ``SequentialDataset`` turns n interactions into n - 1 padded prefixes when it is built,
which takes memory for n x MAX_ITEM_LIST_LENGTH values of every column. Here a row is the position
of its target among all interactions, sorted by user and time; its history is cut out when the row
is read. Sorting and splitting are RecBole's own ``build``, run on these rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from recbole.data.dataset import Dataset, SequentialDataset
from recbole.data.interaction import Interaction
from torch import Tensor

from recbole_hydra.data.times import ExactTimes

#: Name of the column that holds a row's target position; no atomic file can have it.
POSITION = "recbole_hydra target position"


class TargetDataset(ExactTimes, SequentialDataset):
    """A ``SequentialDataset`` of O(interactions) memory with the same rows in the same order.

    Made from a dataset that RecBole has loaded and not yet built, by :meth:`adopt`.

    Attributes:
        timeline: every column of all interactions, sorted by user and time, equal
            times in the order of the file, as one ``Interaction``.
        history_start: for every position of ``timeline``, the position of its user's first
            interaction, (interactions,) int64.
        whole_histories: rows hold all that precedes the target, not the last
            MAX_ITEM_LIST_LENGTH items.
        unused_lists: history columns that ``unused_col`` leaves out.
    """

    @classmethod
    def adopt(cls, dataset: Dataset, whole_histories: bool = False) -> TargetDataset:
        """Turn ``dataset``, in place, into one of this class; ``build`` then splits it."""
        dataset.__class__ = cls
        dataset.whole_histories = whole_histories
        return dataset

    def _change_feat_format(self) -> None:
        Dataset._change_feat_format(self)  # to tensors, without SequentialDataset's prefixes
        self._check_field("uid_field", "time_field")
        self._aug_presets()
        self.unused_lists: set[str] = set()
        self.sort(by=[self.uid_field, self.time_field], ascending=True)
        self.timeline = self.inter_feat
        users = self.timeline[self.uid_field].numpy()
        first = np.r_[True, users[1:] != users[:-1]]
        position = np.arange(len(users))
        self.history_start = np.maximum.accumulate(np.where(first, position, 0))
        target = torch.from_numpy(position[~first])  # RecBole makes no row of a first interaction
        rows = {name: column[target] for name, column in self.timeline.interaction.items()}
        self.inter_feat: Interaction = Interaction({**rows, POSITION: target})

    def lengths(self) -> np.ndarray:
        """Number of history items of every row, (rows,)."""
        position = self.inter_feat[POSITION].numpy()
        length = position - self.history_start[position]
        return length if self.whole_histories else np.minimum(length, self.max_item_list_len)

    def _drop_unused_col(self) -> None:
        """Drop the columns of ``unused_col``, ``<column>_list`` included, as RecBole does."""
        unused = self.config["unused_col"] or {}
        lists: set[Any] = {getattr(self, f"{name}_list_field", None) for name in self.timeline}
        self.unused_lists = lists.intersection(unused.get("inter", []))
        for source, names in unused.items():
            feat = getattr(self, f"{source}_feat")
            for name in names:
                if name in feat:
                    self._del_col(feat, name)
                elif name not in self.unused_lists:
                    self.logger.warning(f"unused_col: there is no {name} in the {source} columns")

    def __getitem__(
        self,
        index: int | np.integer | slice | Sequence[int | np.integer] | np.ndarray | Tensor,
        join: bool = True,
    ) -> Interaction:
        """The rows ``index`` as RecBole's: every column of the target, ``<column>_list`` of its
        history, (rows, MAX_ITEM_LIST_LENGTH), zeros behind it, and ``item_length``."""
        if isinstance(index, (int, np.integer)):
            row = self[[index]]
            return Interaction({name: column[0] for name, column in row.interaction.items()})
        width = None if self.whole_histories else self.max_item_list_len
        rows = self._with_histories(self.inter_feat[index], width)
        return self.join(rows) if join else rows

    def trimmed(self, index: Sequence[int] | np.ndarray | Tensor) -> Interaction:
        """The rows ``index``, with no more padding than the longest of them needs."""
        return self.join(self._with_histories(self.inter_feat[index], width=None))

    def _with_histories(self, rows: Interaction, width: int | None) -> Interaction:
        """Add the history columns to target rows; ``width`` None: as long as the longest."""
        position = rows[POSITION].numpy()
        length = position - self.history_start[position]
        if not self.whole_histories:
            length = np.minimum(length, self.max_item_list_len)
        offset = np.arange(length.max(initial=1) if width is None else width)
        source = torch.from_numpy((position - length)[:, None] + offset)
        padding = torch.from_numpy(offset >= length[:, None])
        source[padding] = 0
        columns = {name: x for name, x in rows.interaction.items() if name != POSITION}
        columns[self.item_list_length_field] = torch.from_numpy(length)
        for name, column in self.timeline.interaction.items():
            list_name = getattr(self, f"{name}_list_field", None)  # users have none
            if list_name is not None and list_name not in self.unused_lists:
                columns[list_name] = column[source]
                columns[list_name][padding] = 0
        return Interaction(columns)
