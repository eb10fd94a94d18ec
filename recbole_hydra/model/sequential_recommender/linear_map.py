"""LinearMap: what a linear map of the items so far says of the next, and nothing else.

A ridge regression with order in it, in closed form, see :mod:`recbole_hydra.data.item_map`: of the
family of EASE (Steck 2019, arXiv 1905.03375) and SLIST (Choi et al. 2021, arXiv 2103.16104). It is
the baseline that any model of short histories has to be compared with, and what ``item_memory:
linear`` adds to the scores of one.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from recbole_hydra.layers import RepeatBias
from recbole_hydra.model.items import Items
from recbole_hydra.model.sequential_recommender.base import CausalRecommender

if TYPE_CHECKING:
    from recbole.config import Config
    from recbole.data.dataset import Dataset
    from recbole.data.interaction import Interaction

#: How much more often than others an item is had does not outweigh what the map says of it.
TIE = 1e-6


class LinearMap(CausalRecommender):
    """The item memory alone: no parameter is trained, and one epoch is enough.

    The score of an item is log(1 + m / scale), which ranks as the memory m does; among the items
    that the memory does not know, popular ones are first. With ``repeat_bias: shared``, what is
    added to the items of the history is chosen on validation, as the scale of the others is.

    Config keys: item_memory, which must be linear, item_memory_decay, item_memory_ridge,
    item_memory_entries, item_memory_solver, item_memory_scale, repeat_bias. Defaults and meanings:
    ``properties/model/LinearMap.yaml``.
    """

    OWN_REPEAT_BIAS = True

    #: A comparison has no training mode for it.
    nothing_trained = True

    def __init__(self, config: Config, dataset: Dataset) -> None:
        super().__init__(config, dataset)
        counts = self._count_targets(dataset).float()
        self.item_embedding = torch.nn.Embedding(self.n_items, 1, padding_idx=0)
        with torch.no_grad():
            self.item_embedding.weight[:, 0] = TIE * counts / counts.max().clamp_min(1)
        self.item_embedding.requires_grad_(False)
        self.items = Items(self.n_items, self.item_embedding)
        self.repeat_bias = RepeatBias.of_setting(self.setting("repeat_bias"), self.n_items, False)
        #: A trainer asks for a parameter.
        self.no_gradient = torch.nn.Parameter(torch.zeros(1))
        if self.repeat_bias is not None:
            self.repeat_bias.requires_grad_(False)
        del self._config

    def states(self, item_seq: Tensor) -> Tensor:
        """1 at every position, (batch, length, 1): the vectors are scores."""
        return torch.ones(*item_seq.shape, 1, device=item_seq.device)

    def calculate_loss(self, interaction: Interaction) -> Tensor:
        """Zero: what there is to learn is fitted before the first epoch."""
        return self.no_gradient.sum() * 0.0
