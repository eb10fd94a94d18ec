"""The popularity of the last days before a cut in time: a baseline that knows the fashion."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from recbole.model.abstract_recommender import GeneralRecommender
from recbole.utils import InputType, ModelType
from torch import Tensor

from recbole_hydra.data.joined_parts import PART

if TYPE_CHECKING:
    from recbole.config import Config
    from recbole.data.dataset import Dataset
    from recbole.data.interaction import Interaction


class RecentPop(GeneralRecommender):
    """Recommends what was most frequent in the last ``recent_days`` before the cut; items that were
    as frequent, in the order of how frequent they were in all the time before it.

    Validation is before the cut: there it counts the last days before validation begins.

    Args:
        config: with ``recent_days``. dataset: the train split of a cut in time; or what stands for
            it when a checkpoint is loaded.
    """

    input_type = InputType.POINTWISE
    type = ModelType.TRADITIONAL

    def __init__(self, config: Config, dataset: Dataset) -> None:
        super().__init__(config, dataset)
        self.fake_loss = torch.nn.Parameter(torch.zeros(1))  # RecBole's trainer wants something
        counts = np.zeros((2, self.n_items))  # of validation, of test
        cut = getattr(dataset, "time_cut", None)
        if cut is not None:
            for row, moment in enumerate((cut.valid_from, cut.test_from)):
                recent = cut.counts_before(moment, self.n_items, config["recent_days"])
                everything = cut.counts_before(moment, self.n_items)
                counts[row] = recent + everything / (everything.sum() + 1)
        self.register_buffer("counts", torch.from_numpy(counts))

    def forward(self) -> None:
        pass

    def calculate_loss(self, interaction: Interaction) -> Tensor:
        return self.fake_loss.sum() * 0

    def _rows(self, interaction: Interaction) -> Tensor:
        """The row of ``counts`` of each row: that of the test, unless it is one of validation."""
        if PART in interaction:
            return interaction[PART] - 1
        return torch.ones_like(interaction[self.USER_ID])

    def predict(self, interaction: Interaction) -> Tensor:
        return self.counts[self._rows(interaction), interaction[self.ITEM_ID]]

    def full_sort_predict(self, interaction: Interaction) -> Tensor:
        return self.counts[self._rows(interaction)].view(-1)
