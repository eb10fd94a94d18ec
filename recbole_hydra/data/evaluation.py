"""Full-ranking evaluation in blocks of users sized to memory."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from recbole.data.dataloader.abstract_dataloader import AbstractDataLoader
from recbole.data.dataloader.general_dataloader import FullSortEvalDataLoader
from recbole.data.interaction import Interaction
from recbole.evaluator import Collector
from torch import Tensor

from recbole_hydra.data.joined_parts import PART
from recbole_hydra.metrics import collect_lists

if TYPE_CHECKING:
    from recbole.config import Config
    from recbole.data.dataset import Dataset
    from recbole.sampler import AbstractSampler

    from recbole_hydra.data.targets import TargetDataset

#: History items of a block, padding included: few enough to compute in the cache
#: (four times or a quarter of both limits measured slower) ...
BLOCK_ITEMS = 2**14
#: ... fewer where histories are longer than this, since attention is quadratic in them ...
LONG = 512
#: ... and scores of a block, rows x items of the catalogue (16 MB as float32).
BLOCK_SCORES = 2**22


class BlockEvalLoader(FullSortEvalDataLoader):
    """RecBole's full-ranking loader over a :class:`~.targets.TargetDataset`, in blocks.

    The rows and their scores are RecBole's; what differs is that rows of similar length come
    together, no block is padded beyond its longest row, and a block holds no more rows than
    ``eval_batch_size`` and the limits above allow. The metrics, means over rows, are the same.
    """

    def __init__(
        self,
        config: Config,
        dataset: TargetDataset,
        sampler: AbstractSampler | None,
        shuffle: bool = False,
    ) -> None:
        self.config, self._dataset, self._sampler = config, dataset, sampler
        self.shuffle = False
        self.uid_field, self.iid_field = dataset.uid_field, dataset.iid_field
        self.is_sequential = True
        self.sample_size = len(dataset)
        self.generator = torch.Generator().manual_seed(config["seed"])
        self._init_batch_size_and_step()
        torch.utils.data.DataLoader.__init__(
            self,
            dataset=range(self.sample_size),  # type: ignore[arg-type]
            batch_sampler=blocks(dataset.lengths(), dataset.item_num, self.step),
            collate_fn=self.collate_fn,
            num_workers=config["worker"],
            generator=self.generator,
        )

    def collate_fn(self, index: list[int]) -> tuple[Interaction, None, Tensor, Tensor]:
        rows = self._dataset.trimmed(index)
        return rows, None, torch.arange(len(rows)), rows[self.iid_field]


class EventEvalLoader(FullSortEvalDataLoader):
    """RecBole's full-ranking loader for models that know users by their ids, with a row per event.

    RecBole's has a row per user, with all items that the part holds of them. Here an event is
    ranked in its turn, as sequential models rank it, and metrics are means over the same rows. A
    row has the user's columns and, as ``PART``, the number of its part.

    Args:
        dataset: the part that is evaluated. part: its number, 1 for validation and 2 for test.
    """

    def __init__(
        self, config: Config, dataset: Dataset, sampler: AbstractSampler | None, part: int
    ) -> None:
        self.uid_field, self.iid_field = dataset.uid_field, dataset.iid_field
        self.part, self.sample_size = part, len(dataset)
        AbstractDataLoader.__init__(self, config, dataset, sampler, shuffle=False)

    def _init_batch_size_and_step(self) -> None:
        most_rows = min(self.config["eval_batch_size"], BLOCK_SCORES // self._dataset.item_num)
        self.step = max(1, most_rows)
        self.set_batch_size(self.step)

    def collate_fn(self, index: list[int]) -> tuple[Interaction, None, Tensor, Tensor]:
        events = self._dataset.inter_feat[index]
        part = torch.full((len(events),), self.part)
        users = Interaction({self.uid_field: events[self.uid_field], PART: part})
        rows = self._dataset.join(users)
        return rows, None, torch.arange(len(events)), events[self.iid_field]


def blocks(lengths: np.ndarray, n_items: int, most_rows: int) -> list[list[int]]:
    """Sort rows by length, longest first, and cut them into blocks of at least one row each.

    The blocks are returned from the last to the first: those with the most rows, whose scores take
    the most memory, come first, so that every later one fits where an earlier one was.
    """
    order = np.argsort(-lengths, kind="stable")
    most_rows = max(1, min(most_rows, BLOCK_SCORES // n_items))
    result, at = [], 0
    while at < len(order):
        longest = int(lengths[order[at]])
        cost = longest * max(1, longest // LONG)
        rows = max(1, min(most_rows, BLOCK_ITEMS // max(1, cost)))
        result.append(order[at : at + rows].tolist())
        at += rows
    return result[::-1]


class TargetCollector(Collector):
    """RecBole's collector for rows with one target each, as leave-one-out has them.

    RecBole marks the targets in a matrix of rows x items and reads the hits off it; with one target
    per row a comparison with the top k says the same. Needs of other scores are RecBole's.
    """

    def eval_batch_collect(
        self,
        scores_tensor: Tensor,
        interaction: Interaction,
        positive_u: Tensor,
        positive_i: Tensor,
    ) -> None:
        """Keep what the metrics need of a block: see RecBole's method of this name."""
        others = ("rec.meanrank", "rec.score", "data.label")
        rows = torch.arange(len(scores_tensor))
        if any(map(self.register.need, others)) or not torch.equal(positive_u, rows):
            return super().eval_batch_collect(scores_tensor, interaction, positive_u, positive_i)
        collect_lists(self, scores_tensor)
        if not self.register.need("rec.topk"):
            return None
        best = torch.topk(scores_tensor, max(self.topk), dim=-1).indices
        hits = (best == positive_i.to(best.device).unsqueeze(1)).int()
        result = torch.cat((hits, torch.ones_like(hits[:, :1])), dim=1)  # hits, targets per row
        return self.data_struct.update_tensor("rec.topk", result)
