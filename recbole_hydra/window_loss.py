"""The loss of causal models on windows of histories, instead of ``calculate_loss`` on prefixes."""

import torch

from recbole_hydra.data.windows import CONTINUES, EARLIER, HANDS_ON
from recbole_hydra.model.causal import loss_step, states_at, target_loss


class WindowLoss:
    """The mean loss of a batch of windows, every position of which may have a target.

    Args:
        model: a model of the registry.
        carry_state: let a window continue where the window before it of the same user ended;
            gradients stop there (truncated backpropagation through time).
    """

    def __init__(self, model, carry_state=False):
        self.model, self.carry_state = model, carry_state
        self.carried = {}  # what the last window of a user left, by user id

    def __call__(self, batch):
        """Return the loss, a scalar.

        Args:
            batch: an ``Interaction`` of :class:`recbole_hydra.data.windows.WindowLoader`.
        """
        model = self.model
        item_seq, targets = batch[model.ITEM_SEQ], batch[model.POS_ITEM_ID].flatten()
        counted = targets.nonzero().squeeze(1)
        targets, negatives = targets.index_select(0, counted), None
        if model.loss_type == "BPR":
            negatives = batch[model.NEG_ITEM_ID].flatten(0, 1).index_select(0, counted)
        with loss_step(model, item_seq, targets, negatives):
            if self.carry_state:
                states = self._continued(batch, counted)
            else:
                states = states_at(model, item_seq, counted)
            history = self._history(batch, counted)
            return target_loss(model, states, targets, history, negatives)

    def _history(self, batch, counted):
        """The items up to each counted position, those of earlier windows included; see
        ``target_loss``."""
        item_seq = batch[self.model.ITEM_SEQ]
        if not self.carry_state:
            return item_seq, counted
        length, before = item_seq.shape[1], batch[EARLIER].shape[1]
        last = counted // length * (before + length) + before + counted % length
        return torch.cat([batch[EARLIER], item_seq], dim=1), last

    def _continued(self, batch, counted):
        """States at the counted positions, starting from what earlier windows left."""
        model = self.model
        users = batch[model.USER_ID].tolist()
        blank = [part[0] for part in model.initial_state(1)]
        before = [
            self.carried.pop(user) if continues else blank
            for user, continues in zip(users, batch[CONTINUES].tolist(), strict=True)
        ]
        before = tuple(torch.stack(parts) for parts in zip(*before, strict=True))
        states, after = model.encode(batch[model.ITEM_SEQ], before, counted)
        after = [part.detach() for part in after]
        for row, hands_on in enumerate(batch[HANDS_ON].tolist()):
            if hands_on:
                self.carried[users[row]] = [part[row] for part in after]
        return states
