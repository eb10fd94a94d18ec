"""A linear memory of the items so far, which knows what tends to come after each of them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from recbole_hydra.ops import ScoreOffsets

if TYPE_CHECKING:
    from scipy.sparse import csr_array

#: What an item weighs less than this no longer counts: float32 would not see it in the sum.
FORGOTTEN = 1e-6


class ItemMemory(nn.Module):
    """What the items of a history say of the next, one linear map, and its part in the scores.

    ::

        m_n = sum_k g^(n-k) B[i_k] = g m_(n-1) + B[i_n]     a state space, its states items
        score of item j  <-  score + weight log(1 + max(m_nj, 0) / scale)

    A neural model of a few dimensions cannot hold that one particular item comes after another, as
    B does, which has a number for each pair that there is. B is fitted in closed form, by
    :func:`~recbole_hydra.data.item_map.fit_item_map`, and not trained; weight and scale are chosen
    on validation, as the items of a training row have a part in B.

    As items are forgotten, m_n is the sum over the last of them: :attr:`horizon`, however long the
    history.

    Args:
        n_items: size of the catalogue, the padding item 0 included.
        decay: g, in (0, 1).

    Attributes:
        starts, items, values: B in compressed rows: what item i says is ``values[starts[i] :
            starts[i + 1]]``, of ``items`` there; (n_items + 1,) int64, (entries,) int64, float32.
        weight, scale: of the scores, above; with a weight of 0, as before they are chosen, scores
            are what they are without.
        seconds: that fitting B took.
    """

    starts: Tensor
    items: Tensor
    values: Tensor
    decay: Tensor
    weight: Tensor
    scale: Tensor
    seconds: Tensor

    def __init__(self, n_items: int, decay: float) -> None:
        super().__init__()
        self.register_buffer("starts", torch.zeros(n_items + 1, dtype=torch.int64))
        self.register_buffer("items", torch.zeros(0, dtype=torch.int64))
        self.register_buffer("values", torch.zeros(0))
        self.register_buffer("decay", torch.tensor(decay, dtype=torch.float64))
        self.register_buffer("weight", torch.tensor(0.0))
        self.register_buffer("scale", torch.tensor(1.0))
        self.register_buffer("seconds", torch.tensor(0.0))

    def set_map(self, item_map: csr_array, seconds: float = 0.0) -> None:
        """Take B, (n_items, n_items), from :func:`~recbole_hydra.data.item_map.fit_item_map`, which
        took some seconds."""
        self.seconds.fill_(seconds)
        device = self.values.device
        self.starts = torch.from_numpy(item_map.indptr.astype(np.int64)).to(device)
        self.items = torch.from_numpy(item_map.indices.astype(np.int64)).to(device)
        self.values = torch.from_numpy(item_map.data.astype(np.float32)).to(device)

    def _load_from_state_dict(
        self, state_dict: dict[str, Any], prefix: str, metadata: Any, strict: bool,
        missing: list[str], unexpected: list[str], errors: list[str],
    ) -> None:  # fmt: skip
        """torch's; B is as large as it was."""
        for name in ("starts", "items", "values"):
            if f"{prefix}{name}" not in state_dict:
                errors.append(
                    f"the map of item_memory is missing ({prefix}{name}); the model was trained "
                    "without one, or the file has lost it: train it anew, or set item_memory: none"
                )
                return
        given: dict[str, Any] = {
            name: state_dict.get(f"{prefix}{name}") for name, _ in self.named_buffers()
        }
        if (problem := self._problem(given)) is not None:
            errors.append(f"the map of item_memory is damaged: {problem}; train the model anew")
            return
        for name in ("starts", "items", "values"):
            setattr(self, name, getattr(self, name).new_zeros(state_dict[f"{prefix}{name}"].shape))
        super()._load_from_state_dict(
            state_dict, prefix, metadata, strict, missing, unexpected, errors
        )

    def _problem(self, given: dict[str, Any]) -> str | None:
        """What is wrong with buffers that are to be loaded, in words; None for nothing."""
        starts, items, values = given["starts"], given["items"], given["values"]
        if starts.shape != self.starts.shape:
            return f"it is of {starts.numel() - 2} items, not of {len(self.starts) - 2}"
        sound = items.shape == values.shape == (len(items),) and (starts.diff() >= 0).all()
        if not sound or starts[0] != 0 or starts[-1] != len(items):
            return "its rows do not fit its numbers"
        n_items = len(starts) - 1
        if len(items) and not 0 < int(items.min()) <= int(items.max()) < n_items:
            return f"it has items outside 1 .. {n_items - 1}"
        decay, weight, scale = (given[name] for name in ("decay", "weight", "scale"))
        numbers = [each for each in (values, decay, weight, scale) if each is not None]
        if not all(bool(each.isfinite().all()) for each in numbers):
            return "it has numbers that are not finite"
        if decay is not None and not 0 < float(decay) < 1:
            return f"decay is {float(decay):g}"
        if scale is not None and not float(scale) > 0:
            return f"scale is {float(scale):g}"
        return None

    @property
    def horizon(self) -> int:
        """How many of the last items count."""
        return 1 + math.floor(math.log(FORGOTTEN) / math.log(float(self.decay)))

    def add_rows(self, place: int, number: int) -> None:
        """Make room for ``number`` new items before the item id ``place``, of which nothing is
        known."""
        self.items = torch.where(self.items >= place, self.items + number, self.items)
        new = self.starts[place].expand(number)
        self.starts = torch.cat([self.starts[:place], new, self.starts[place:]])

    def recall(self, item_seq: Tensor, last: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """m after some positions.

        Args:
            item_seq: item ids, 0 is padding, (batch, length).
            last: b * length + t of the last item before each target, (rows,).

        Returns:
            Row, item and m_nj of every item that m has, (entries,) each, by row and item ascending.
        """
        device, length = item_seq.device, item_seq.shape[1]
        back = torch.arange(min(self.horizon, length), device=device)
        position = last[:, None] - back
        there = back <= (last % length)[:, None]
        read = item_seq.flatten()[position.clamp_min(0)] * there  # row 0 of B is empty
        begin, count = self.starts[read], self.starts[read + 1] - self.starts[read]
        # One element for every entry of every row of B that is read.
        element = torch.repeat_interleave(count.flatten())
        first = (count.flatten().cumsum(0) - count.flatten())[element]
        entry = begin.flatten()[element] + torch.arange(len(element), device=device) - first
        forgotten = (self.decay ** back.double()).float().repeat(len(last))
        n_items = len(self.starts) - 1
        key = element // len(back) * n_items + self.items[entry]
        distinct, where = key.unique(return_inverse=True)
        amounts = self.values.new_zeros(len(distinct))
        amounts = amounts.index_add(0, where, forgotten[element] * self.values[entry])
        return distinct // n_items, distinct % n_items, amounts

    def forward(self, item_seq: Tensor, last: Tensor) -> ScoreOffsets:
        """What is added to the scores after some positions, one row each; see :meth:`recall`."""
        rows, items, amounts = self.recall(item_seq, last)
        known = (amounts > 0).nonzero().squeeze(1)
        added = self.weight * torch.log1p(amounts[known] / self.scale)
        kinds = torch.arange(len(known), device=known.device)
        return ScoreOffsets(rows[known], items[known], kinds, added)

    def after_each(self, histories: Sequence[np.ndarray]) -> list[tuple[np.ndarray, np.ndarray]]:
        """What is added to the scores after histories, as :meth:`forward` has it, without torch.

        Args:
            histories: item ids, oldest first, (n,) int64 each, without padding, none empty.

        Returns:
            ``(items, amounts)`` of each: distinct items, int64, ascending, and what is added to
            their scores, float32.
        """
        starts, items, values = self.starts.numpy(), self.items.numpy(), self.values.numpy()
        n_items, weight, scale = len(starts) - 1, float(self.weight), float(self.scale)
        horizon, decay = self.horizon, float(self.decay)
        recent = [history[-horizon:] for history in histories]
        sizes = np.array([len(history) for history in recent])
        read = np.concatenate(recent)
        back = np.repeat(np.cumsum(sizes), sizes) - 1 - np.arange(len(read))
        count = starts[read + 1] - starts[read]
        of = np.repeat(np.arange(len(read)), count)
        entry = np.arange(len(of)) + np.repeat(starts[read] - (np.cumsum(count) - count), count)
        row = np.repeat(np.arange(len(recent)), sizes)[of]
        key, where = np.unique(row * n_items + items[entry], return_inverse=True)
        forgotten = (decay**back).astype(np.float32)
        m = np.bincount(where, forgotten[of] * values[entry], minlength=len(key))
        known = m > 0
        key, added = key[known], (weight * np.log1p(m[known] / scale)).astype(np.float32)
        ends = np.searchsorted(key, np.arange(len(recent) + 1) * n_items).tolist()
        return [(key[i:j] % n_items, added[i:j]) for i, j in pairwise(ends)]
