"""A learned number on the scores of items that the user has had already."""

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor, nn

from recbole_hydra.checks import one_of
from recbole_hydra.errors import ConfigError
from recbole_hydra.ops import ScoreOffsets

#: Kinds of distance: 1, 2 to 3, 4 to 7, ... and 2048 on.
DISTANCES = 12

#: The numbers are this times their parameters, so that one step of Adam moves them by as much times
#: the learning rate: from 0 to -10, which is as good as never, takes 500 steps at 0.001.
SCALE = 20.0


class RepeatBias(nn.Module):
    """What the scores of items in the history are raised or lowered by.

    A residual model ends in something close to the last item's own vector, so that this item, and
    those like it, score high; whether they are what comes next is up to the data. Here the model
    learns how often it is, apart from what its states say.

    Which items are had again is mostly up to the item: ink is, a printer is not. An item that
    training has not seen in a history has the number of all.

    Args:
        form: "shared", one number for all items of the history; "item", that and one per item on
            top of it; or "distance", one per power of two of the number of steps since the item was
            had last.
        n_items: size of the catalogue, the padding item 0 included.

    Attributes:
        weight: the numbers of "shared" and "distance", (1 or DISTANCES,), in units of SCALE.
        item_weight: those of the items, (n_items,), in the same units; None in the other forms.

    Raises:
        ConfigError: another form.
    """

    #: What the numbers may depend on.
    FORMS = ("item", "shared", "distance")

    def __init__(self, form: str, n_items: int) -> None:
        super().__init__()
        one_of("repeat_bias", form, self.FORMS)
        self.weight = nn.Parameter(torch.zeros(DISTANCES if form == "distance" else 1))
        self.item_weight = nn.Parameter(torch.zeros(n_items)) if form == "item" else None

    @classmethod
    def of_setting(cls, form: str | None, n_items: int, by_id: bool) -> "RepeatBias | None":
        """The repeat bias that a model's setting ``repeat_bias`` asks for; None for "none".

        Args:
            form: the setting; None for the default, which depends on the item where there is more
                of it than its text.
            n_items: size of the catalogue. by_id: whether items have vectors by id.

        Raises:
            ConfigError: another form, or numbers by id for items that are their text alone.
        """
        if form is None:
            form = "item" if by_id else "shared"
        one_of("repeat_bias", form, ("none", *cls.FORMS))
        if form == "item" and not by_id:
            raise ConfigError(
                "repeat_bias: item learns a number by item id, but with item_encoder text an item "
                "is its text alone; use shared or distance"
            )
        return None if form == "none" else cls(form, n_items)

    def add_rows(self, place: int, number: int) -> None:
        """Let ``number`` new items before the item id ``place`` have the number of all."""
        if self.item_weight is not None:
            zeros = self.item_weight.new_zeros(number)
            parts = self.item_weight[:place], zeros, self.item_weight[place:]
            self.item_weight = nn.Parameter(torch.cat(parts).detach())

    def forward(self, item_seq: Tensor, last: Tensor) -> ScoreOffsets:
        """Return the offsets of the scores after some positions, one row each.

        Args:
            item_seq: item ids, 0 is padding, (batch, length).
            last: b * length + t of the last item before each target, (rows,).
        """
        length = item_seq.shape[1]
        user, t = last // length, (last % length).int()
        position = torch.arange(length, dtype=torch.int32, device=last.device)
        # An item that was had more than once counts from the last time, padding never.
        until = next_time(item_seq).masked_fill(item_seq == 0, 0).int()
        is_latest = (until.index_select(0, user) > t[:, None]) & (position <= t[:, None])
        row, where = is_latest.nonzero(as_tuple=True)
        items = item_seq.flatten()[(user * length)[row] + where]
        weight: Tensor = self.weight
        if self.item_weight is not None:
            kinds, weight = items, weight + self.item_weight
        elif len(weight) == 1:
            kinds = torch.zeros_like(row)
        else:
            # frexp's exponent of 1, 2, 4, ... is 1, 2, 3, ...: exact, as a logarithm is not.
            steps = (t[row] - where + 1).float()
            kinds = torch.frexp(steps).exponent.long().sub_(1).clamp_(max=DISTANCES - 1)
        return ScoreOffsets(row, items, kinds, SCALE * weight)

    def after_each(self, histories: Sequence[np.ndarray]) -> list[tuple[np.ndarray, np.ndarray]]:
        """The offsets after histories, as :meth:`forward` has them, without torch.

        Args:
            histories: item ids, oldest first, (n,) int64 each, without padding, none empty.

        Returns:
            ``(items, amounts)`` of each: the distinct items of the history, int64, ascending, and
            what is added to their scores, float32.
        """
        ends = np.cumsum([len(history) for history in histories])
        every = np.concatenate(histories)
        row = np.repeat(np.arange(len(histories)), np.diff(ends, prepend=0))
        size = int(every.max()) + 1
        # Of an item that was had more than once the last time is the first, read backwards.
        keys, place = np.unique((row * size + every)[::-1], return_index=True)
        items = keys % size
        weight = self.weight.detach().numpy()
        if self.item_weight is not None:
            weight = weight + self.item_weight.detach().numpy()[items]
        elif len(weight) > 1:
            back = place - (ends[-1] - ends[keys // size])  # 0 steps back is the last
            kinds = np.frexp((back + 1).astype(np.float32))[1] - 1
            weight = weight[np.minimum(kinds, DISTANCES - 1)]
        else:
            weight = np.repeat(weight, len(items))
        amounts = np.float32(SCALE) * weight
        of = np.searchsorted(keys, np.arange(len(histories) + 1) * size).tolist()
        return [(items[i:j], amounts[i:j]) for i, j in pairwise(of)]


def next_time(item_seq: Tensor) -> Tensor:
    """For every position the next one with the same item, ``length`` if there is none; of
    (batch, length) item ids."""
    length = item_seq.shape[1]
    items, order = item_seq.sort(dim=1, stable=True)
    following = order[:, 1:].masked_fill(items[:, 1:] != items[:, :-1], length)
    return torch.full_like(item_seq, length).scatter(1, order[:, :-1], following)
