"""Layers one after another, and a stack of them for each domain."""

from collections.abc import Iterable, Iterator, Sequence
from typing import cast

import torch
from torch import Tensor, nn

from recbole_hydra.layers.mamba import MultiHeadMamba


class Stack(nn.ModuleList):
    """Layers one after another, each ``layer(H, position, state, keep)`` with a Mamba inside, as
    :class:`~recbole_hydra.model.sequential_recommender.hydra.HydraLayer`."""

    def initial_state(self, batch: int) -> tuple[Tensor, ...]:
        """The state before the first item: the position, (batch,), then two tensors per layer."""
        device = next(self.parameters()).device
        position = torch.zeros(batch, dtype=torch.long, device=device)
        mambas = [cast(MultiHeadMamba, layer.mamba) for layer in self]
        return position, *(part for mamba in mambas for part in mamba.initial_state(batch))

    def move_items(self, place: int, number: int) -> None:
        """Do nothing: items are the same to these layers, whatever their ids."""

    def forward(
        self,
        H: Tensor,
        state: tuple[Tensor, ...] | None = None,
        keep: Tensor | None = None,
        item_seq: Tensor | None = None,
    ) -> tuple[Tensor, tuple[Tensor, ...] | None]:
        """(batch, length, width) to the same; returns it and the state after the last position,
        None if none was given.

        ``keep`` restricts the output to some positions, see :func:`recbole_hydra.layers.kept`.
        ``item_seq``, the items that H is of, is not read here.
        """
        last = len(self) - 1
        if state is None:
            for i, layer in enumerate(self):
                H = layer(H, keep=keep if i == last else None)
            return H, None
        position, *parts = state
        after = [position + H.shape[1]]
        for i, mamba_state in enumerate(per_layer(parts)):
            H, mamba_state = self[i](H, position, mamba_state, keep if i == last else None)
            after += mamba_state
        return H, tuple(after)


class StackPerDomain(nn.ModuleList):
    """A :class:`Stack` for each domain; a row goes through that of the domain its items are from.

    Args:
        stacks: one per domain. start: the first item id of each, rising, (domains,).
    """

    start: Tensor

    def __init__(self, stacks: Iterable[Stack], start: Sequence[int]) -> None:
        super().__init__(stacks)
        self.register_buffer("start", torch.as_tensor(start), persistent=False)

    def initial_state(self, batch: int) -> tuple[Tensor, ...]:
        """See :meth:`Stack.initial_state`."""
        return cast(Stack, self[0]).initial_state(batch)

    def move_items(self, place: int, number: int) -> None:
        """Know that ``number`` items were inserted before the item id ``place``."""
        self.start[self.start >= place] += number

    def forward(
        self,
        H: Tensor,
        state: tuple[Tensor, ...] | None = None,
        keep: Tensor | None = None,
        item_seq: Tensor | None = None,
    ) -> tuple[Tensor, tuple[Tensor, ...] | None]:
        """See :meth:`Stack.forward`. ``item_seq``: (batch, length), tells a row's domain."""
        length = H.shape[1]
        first = cast(Tensor, item_seq)[:, 0].contiguous()
        domain = torch.bucketize(first, self.start, right=True) - 1
        domain = domain.clamp_min(0)  # a row of padding alone
        out, after, where = [], [], []
        for index in domain.unique().tolist():
            rows = (domain == index).nonzero().squeeze(1)
            mine, place = None, rows
            if keep is not None:
                row_of = torch.full_like(domain, -1)
                row_of[rows] = torch.arange(len(rows), device=rows.device)
                row = row_of[keep // length]
                place = (row >= 0).nonzero().squeeze(1)
                mine = row[place] * length + keep[place] % length
            own = None if state is None else tuple(part.index_select(0, rows) for part in state)
            states, own = self[index](H.index_select(0, rows), own, mine)
            out.append(states)
            after.append((rows, own))
            where.append(place)
        back = torch.cat(where).argsort()
        H = torch.cat(out).index_select(0, back)
        if state is not None:
            back = torch.cat([rows for rows, _ in after]).argsort()
            parts = zip(*(own for _, own in after), strict=True)
            state = tuple(torch.cat(part).index_select(0, back) for part in parts)
        return H, state


def per_layer(parts: Sequence[Tensor]) -> Iterator[tuple[Tensor, Tensor]]:
    """Split a flat sequence of tensors into the pairs that the Mamba of each layer carries."""
    return zip(parts[::2], parts[1::2], strict=True)
