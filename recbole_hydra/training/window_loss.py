"""The loss of causal models on windows of histories, instead of ``calculate_loss`` on prefixes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from recbole_hydra.data.windows import CONTINUES, EARLIER, HANDS_ON
from recbole_hydra.model.causal import causal_model
from recbole_hydra.settings.options.later_targets import items_after, later_target_loss

if TYPE_CHECKING:
    from recbole.data.interaction import Interaction
    from recbole.model.abstract_recommender import SequentialRecommender


class WindowLoss:
    """The mean loss of a batch of windows, every position of which may have a target.

    Args:
        model: a model of the registry.
        carry_state: let a window continue where the window before it of the same user ended;
            gradients stop there (truncated backpropagation through time).
        later_weights: of the items two steps ahead, three, ..., as targets beside the next item;
            those of the same window are.
    """

    def __init__(
        self,
        model: SequentialRecommender,
        carry_state: bool = False,
        later_weights: Sequence[float] = (),
    ) -> None:
        self.model, self.carry_state, self.later_weights = model, carry_state, later_weights
        self.offered = causal_model(model)
        self.carried: dict[int, list[Tensor]] = {}  # what a user's last window left, by user id

    def __call__(self, batch: Interaction) -> Tensor:
        """Return the loss, a scalar.

        Args:
            batch: an ``Interaction`` of :class:`recbole_hydra.data.windows.WindowLoader`.
        """
        model = self.model
        item_seq, next_items = batch[model.ITEM_SEQ], batch[model.POS_ITEM_ID]
        targets = next_items.flatten()
        counted = targets.nonzero().squeeze(1)
        targets, negatives = targets.index_select(0, counted), None
        if model.loss_type == "BPR":
            negatives = batch[model.NEG_ITEM_ID].flatten(0, 1).index_select(0, counted)
        with self.offered.step(item_seq, targets, negatives):
            if self.carry_state:
                states = self._continued(batch, counted)
            else:
                states = self.offered.encode(item_seq, keep=counted)
            history = self._history(batch, counted)
            loss = self.offered.target_loss(states, targets, history, negatives)
            if self.later_weights:
                later = items_after(next_items, len(self.later_weights)).index_select(0, counted)
                weights = states.new_tensor(self.later_weights)
                loss = loss + later_target_loss(self.offered, states, targets, later, weights)
            return loss

    def _history(self, batch: Interaction, counted: Tensor) -> tuple[Tensor, Tensor]:
        """The items up to each counted position, those of earlier windows included; see
        ``target_loss``."""
        item_seq = batch[self.model.ITEM_SEQ]
        if not self.carry_state:
            return item_seq, counted
        length, before = item_seq.shape[1], batch[EARLIER].shape[1]
        last = counted // length * (before + length) + before + counted % length
        return torch.cat([batch[EARLIER], item_seq], dim=1), last

    def _continued(self, batch: Interaction, counted: Tensor) -> Tensor:
        """States at the counted positions, starting from what earlier windows left."""
        model = self.model
        users = batch[model.USER_ID].tolist()
        blank = [part[0] for part in model.initial_state(1)]
        handed = [
            self.carried.pop(user) if continues else blank
            for user, continues in zip(users, batch[CONTINUES].tolist(), strict=True)
        ]
        before = tuple(torch.stack(parts) for parts in zip(*handed, strict=True))
        states, after = model.encode(batch[model.ITEM_SEQ], before, counted)
        after = [part.detach() for part in after]
        for row, hands_on in enumerate(batch[HANDS_ON].tolist()):
            if hands_on:
                # Copies: a view of one row would keep those of all in memory.
                self.carried[users[row]] = [part[row].clone() for part in after]
        return states
