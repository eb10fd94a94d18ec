"""Repairs of RecBole's models."""

from __future__ import annotations

from collections.abc import Mapping
from types import ModuleType
from typing import TYPE_CHECKING, Any

import scipy.sparse
import torch
from torch import Tensor

from recbole_hydra.compat.sampling import guard_line, guard_masked

if TYPE_CHECKING:
    from recbole.data.interaction import Interaction
    from recbole.model.general_recommender import Pop


def repair_model_module(module: ModuleType) -> None:
    """Repair a module of RecBole's models: a ``dok_matrix`` that it can update, Pop's count, and
    negative sampling that never ends."""
    for name, method, guard in (
        ("S3Rec", "_neg_sample", guard_masked),
        ("LINE", "sampler", guard_line),
    ):
        model = getattr(module, name, None)
        if model is not None and not hasattr(getattr(model, method), "__wrapped__"):
            setattr(model, method, guard(getattr(model, method)))
    if module.__name__ == "recbole.model.general_recommender.pop":
        module.Pop.calculate_loss = count_every_interaction
    if not hasattr(scipy.sparse.dok_matrix, "_update") and (
        getattr(module, "sp", None) is scipy.sparse
    ):
        module.sp = _Scipy()  # type: ignore[attr-defined]


def count_every_interaction(self: Pop, interaction: Interaction) -> Tensor:
    """RecBole's ``Pop.calculate_loss``, which counts an item at most once per batch.

    With RecBole's batches of 2,048 the most popular items all look alike, and the baseline looks
    weak (RecBole's issues 1844 and 2198). Delete when RecBole counts every interaction.
    """
    items = interaction[self.ITEM_ID]
    self.item_cnt.index_add_(0, items, torch.ones_like(items).unsqueeze(1))
    self.max_cnt = torch.max(self.item_cnt, dim=0)[0]
    return torch.nn.Parameter(torch.zeros(1)).to(self.device)


class _DokMatrix(scipy.sparse.dok_matrix):
    """scipy's ``dok_matrix`` with ``_update``, removed in scipy 1.13.

    RecBole's graph models (LightGCN, NGCF, ...) fill their adjacency matrix with it. Delete when
    RecBole builds them otherwise.
    """

    def _update(self, data: Mapping[tuple[int, int], float]) -> None:
        self._dict.update(data)


class _Scipy:
    """``scipy.sparse`` as a module of RecBole sees it, with our ``dok_matrix``."""

    dok_matrix = _DokMatrix

    def __getattr__(self, name: str) -> Any:
        return getattr(scipy.sparse, name)
