"""``later_targets``: items after the next are targets as well, with these weights."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from recbole_hydra.errors import ConfigError
from recbole_hydra.settings.rules import list_of, number, optional

if TYPE_CHECKING:
    from recbole_hydra.model.causal import CausalModel
    from recbole_hydra.settings.config import Config

RULES = {"later_targets": optional(list_of(number(above=0), "positive numbers"))}


def fit(config: Config) -> None:
    """Refuse weights that the run cannot use; as a default they are dropped."""
    final = config.final_config_dict
    weights = final["later_targets"] or []
    fits = final["training_mode"] == "autoregressive" and final.get("loss_type", "CE") == "CE"
    if weights and not fits:
        if config.external_config_dict.get("later_targets"):
            raise ConfigError(
                "later_targets are for training_mode autoregressive and loss_type CE, not for "
                f"{final['training_mode']} and {final.get('loss_type')}; remove them"
            )
        config.notes.append("later_targets are not used: they are for autoregressive, CE")
        weights = []
    final["later_targets"] = weights


def items_after(next_items: Tensor, steps: int) -> Tensor:
    """The items two steps after each position of a window, three, ..., (positions, steps); 0 where
    there is none.

    Args:
        next_items: the item after each position, (batch, length). steps: how many.
    """
    length = next_items.shape[1]
    ahead = [F.pad(next_items[:, step:], (0, min(step, length))) for step in range(1, 1 + steps)]
    return torch.stack(ahead, dim=2).flatten(0, 1)


def later_target_loss(
    model: CausalModel, states: Tensor, targets: Tensor, later: Tensor, weights: Tensor
) -> Tensor:
    """What later targets add to the loss of a causal model trained with CE.

    Where the model tells targets apart within groups only, as within domains, those of the target's
    group count.

    Args:
        model: a :class:`recbole_hydra.model.causal.CausalModel`.
        states, targets, later, weights: see :func:`later_targets`.
    """
    together = model.told_apart(targets, later)
    if together is not None:
        later = later * together
    return later_targets(states, model.item_table, targets, later, weights)


def later_targets(
    states: Tensor, item_table: Tensor, targets: Tensor, later: Tensor, weights: Tensor
) -> Tensor:
    """What it adds to a cross-entropy that items after the next are targets as well.

    ::

        q = (e_next + sum_k w_k e_k) / (1 + sum_k w_k),    over the k that there are
        cross-entropy of q = that of e_next + sum_k w_k (s_next - s_k) / (1 + sum_k w_k)

    The next item is one of several that could have come; those that did come soon after tell of the
    others. PinnerFormer (Pancha et al. 2022, arXiv 2205.04507) predicts a window of them alike.

    Args:
        states: (targets, width). item_table: (n_items, width). targets: item ids, (targets,).
        later: item ids, two steps ahead, three, ..., 0 where there is none, (targets, steps).
        weights: w_k, (steps,).
    """
    items = torch.cat([targets[:, None], later], dim=1)
    scores = (F.embedding(items, item_table) * states.unsqueeze(1)).sum(-1)
    share = (later > 0) * weights
    change = (share * (scores[:, :1] - scores[:, 1:])).sum(1)
    return (change / (1 + share.sum(1))).mean()
