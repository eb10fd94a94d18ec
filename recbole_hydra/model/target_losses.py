"""The loss of states against the items that came next: which one, among which items."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn

from recbole_hydra.checks import boolean, fraction, one_of
from recbole_hydra.errors import ConfigError
from recbole_hydra.layers import RepeatBias
from recbole_hydra.model.losses import (
    NegativeSampler,
    TargetGroup,
    bpr,
    cross_entropy,
    gbce,
    sampled_cross_entropy,
)
from recbole_hydra.ops import ItemLists, ScoreOffsets

if TYPE_CHECKING:
    from recbole.data.dataset import Dataset

    from recbole_hydra.model.items import Items

#: Pairs of a target and an item of its history in a step, from which the repeat bias is learned: a
#: number per item at most, so that the pairs of all steps tell enough.
MOST_PAIRS = 2**14


class TargetLosses:
    """What a model with states, an item table, and settings computes its loss with. To be mixed in
    before RecBole's class of models.

    Attributes:
        loss_type: one of :attr:`LOSS_TYPES`.
        target_groups: items that targets are told apart from, one group per domain; None for the
            whole catalogue.
        repeat_bias: what the scores of items in the history are raised or lowered by, if they are,
            a :class:`~recbole_hydra.layers.RepeatBias`.
        history_as_one: whether the items of the history count as one in a loss that is a softmax,
            see :mod:`recbole_hydra.model.losses`.
    """

    #: Values of ``loss_type``: softmax over all items, BPR against RecBole's negatives, softmax
    #: or binary cross-entropy (gBCE) against negatives of our own.
    LOSS_TYPES = ("CE", "BPR", "SampledCE", "gBCE")
    #: Those in which items share a probability.
    SOFTMAXES = ("CE", "SampledCE")

    if TYPE_CHECKING:  # what the model has
        n_items: int
        items: Items

        @property
        def item_table(self) -> Tensor: ...
        def setting(self, key: str) -> Any: ...

    def prepare_losses(self, dataset: Dataset, trained_only: bool = False) -> None:
        """Read the settings of the loss, and from ``dataset`` which items there are.

        Args:
            trained_only: items that no training row has for its target take no part in the loss,
                not even as what the target is told apart from.
        """
        self.loss_type = one_of("loss_type", self.setting("loss_type"), self.LOSS_TYPES)
        self.repeat_bias: RepeatBias | None = None
        self.history_as_one = False
        self.target_groups = self._group_targets(dataset, trained_only)
        # within step()
        self._step_negatives: Sequence[tuple[Tensor | None, Tensor | None]] | None = None
        if self.loss_type in ("SampledCE", "gBCE"):
            self._prepare_sampling(dataset)

    def prepare_repeat_bias(self, form: str | None, by_id: bool = True) -> None:
        """Make the repeat bias, and read ``history_as_one``; it draws no random numbers.

        Args:
            form, by_id: see :meth:`.RepeatBias.of_setting`.

        Raises:
            ConfigError: a form or a ``history_as_one`` that cannot be.
        """
        self.repeat_bias = RepeatBias.of_setting(form, self.n_items, by_id)
        self.history_as_one = self._history_as_one(self.setting("history_as_one"))

    def _group_targets(self, dataset: Dataset, trained_only: bool) -> Sequence[TargetGroup] | None:
        """One group of items per domain; None for the whole catalogue."""
        domains = getattr(dataset, "domains", None)
        if domains is None and not trained_only:
            return None
        counts = self._count_targets(dataset) if trained_only else torch.ones(self.n_items)
        groups = []
        for start, stop in [(1, self.n_items)] if domains is None else domains.ranges():
            items = torch.arange(start, stop)
            counted = counts[start:stop] > 0
            groups.append(TargetGroup(items[counted] if counted.any() else items, self.n_items))
        return cast(Sequence[TargetGroup], nn.ModuleList(groups))

    def _count_targets(self, dataset: Dataset) -> Tensor:
        """How often each item is the target of a training row, (n_items,)."""
        # A model loaded without its dataset cannot count; it will not be trained either.
        counter = getattr(dataset, "item_counter", {})
        return torch.tensor([counter.get(item, 0) for item in range(self.n_items)])

    def _prepare_sampling(self, dataset: Dataset) -> None:
        number = self.setting("num_negatives")
        distribution = self.setting("negative_distribution")
        self.logq_correction = boolean("logq_correction", self.setting("logq_correction"))
        self.gbce_t = fraction("gbce_t", self.setting("gbce_t"))
        counts = torch.ones(self.n_items)
        if distribution == "popularity":
            counts = self._count_targets(dataset)
        catalogue = [torch.arange(1, self.n_items)]
        members = [group.items for group in self.target_groups or []] or catalogue
        #: One for the whole catalogue, or one per group.
        self.negative_samplers = [
            NegativeSampler(1 + len(items), number, distribution, [0, *counts[items].tolist()])
            for items in members
        ]

    def _history_as_one(self, choice: Any) -> bool:
        """Whether the history counts as one item in the loss: by default where that is a softmax,
        and where a repeat bias keeps the history from ranking first.

        Args:
            choice: the setting ``history_as_one``; None for the default.
        """
        is_softmax = self.loss_type in self.SOFTMAXES
        if choice is None:
            return is_softmax and self.repeat_bias is not None
        if boolean("history_as_one", choice) and not is_softmax:
            raise ConfigError(
                f"history_as_one: True is for loss_type {' and '.join(self.SOFTMAXES)}, in which "
                f"items share a probability, not for {self.loss_type}"
            )
        if choice and self.repeat_bias is None:
            raise ConfigError(
                "history_as_one: True leaves it to the repeat bias that the history does not rank "
                "first, but repeat_bias is none; use another"
            )
        return choice

    @contextmanager
    def step(
        self, item_seq: Tensor, targets: Tensor, negatives: Tensor | None = None
    ) -> Iterator[None]:
        """The context in which the loss of a batch is computed: :meth:`encode`, then
        :meth:`target_loss`, on these items. Items that take computing are computed here, once: for
        CE all, otherwise inputs, targets and negatives."""
        if not self.items.are_computed:
            yield
            return
        ids = None
        if self.loss_type != "CE":
            self._step_negatives = self._drawn_negatives(targets.device)
            parts = [item_seq, targets] + ([] if negatives is None else [negatives])
            parts += [items for items, _ in self._step_negatives if items is not None]
            ids = torch.cat([part.flatten() for part in parts]).unique()
            ids = ids[ids > 0]
        try:
            with self.items.prepared(ids):
                yield
        finally:
            self._step_negatives = None

    def target_loss(
        self,
        states: Tensor,
        targets: Tensor,
        history: tuple[Tensor, Tensor],
        negatives: Tensor | None = None,
    ) -> Tensor:
        """Mean loss of states against the items that came next.

        CE is the cross-entropy over all ``n_items`` rows of the item table (row 0 included, as in
        RecBole's models), or over the items of the target's group where there are groups; BPR is
        Rendle et al. 2009 against the given negatives; SampledCE and gBCE draw ``num_negatives``
        for the batch and group, see :mod:`recbole_hydra.model.losses`. The repeat bias does not
        change the loss, but gets a gradient from it, see there.

        Args:
            states: (targets, width). targets: item ids, (targets,).
            history: item ids, (batch, length), and b * length + t of the last item before each
                target, (targets,).
            negatives: for BPR, item ids, (targets, negatives).
        """
        drawn, offsets = self._drawn_negatives(states.device), self._offsets(*history)
        lists = ItemLists.of_histories(*history) if self.history_as_one else None
        table = self.item_table
        if self.loss_type == "BPR":
            return bpr(states, table, targets, cast(Tensor, negatives), offsets)
        if self.target_groups is None:
            return self._loss_among(None, states, table, targets, offsets, lists, *drawn[0])
        total: float | Tensor = 0.0
        for group, sample in zip(self.target_groups, drawn, strict=True):
            rows = group.rows(targets)
            if len(rows):
                mine = states.index_select(0, rows), table, targets.index_select(0, rows)
                own = (
                    None if offsets is None else offsets.among(rows, self._position(group)),
                    None if lists is None else lists.among(rows, self._position(group)),
                )
                total = total + len(rows) * self._loss_among(group, *mine, *own, *sample)
        return cast(Tensor, total) / len(targets)

    def told_apart(self, targets: Tensor, items: Tensor) -> Tensor | None:
        """Which of ``items`` the loss tells each target apart from, (targets, k) bool: those of the
        target's group; None without groups, for all.

        Args:
            targets: item ids, (targets,). items: item ids, (targets, k).
        """
        if self.target_groups is None:
            return None
        of_one_group = torch.zeros_like(items, dtype=torch.bool)
        for group in self.target_groups:
            own = group.position >= 0
            of_one_group |= own[targets][:, None] & own[items]
        return of_one_group

    def _offsets(self, item_seq: Tensor, last: Tensor) -> ScoreOffsets | None:
        """What the repeat bias adds to the scores of targets, of every second, third, ... where
        there are too many; None without one."""
        if self.repeat_bias is None:
            return None
        pairs = int((last % item_seq.shape[1] + 1).sum())
        stride = -(-pairs // MOST_PAIRS)
        rows = torch.arange(0, len(last), stride, device=last.device)
        offsets = self.repeat_bias(item_seq, last[rows])
        return offsets._replace(rows=rows[offsets.rows])

    def _position(self, group: TargetGroup) -> Tensor:
        """Where the scores of a group's targets have an item, -1 for those of other groups: CE has
        scores of the group alone."""
        if self.loss_type == "CE":
            return group.position
        every = torch.arange(self.n_items, device=group.position.device)
        return every.where(group.position >= 0, -1)

    def _loss_among(
        self,
        group: TargetGroup | None,
        states: Tensor,
        table: Tensor,
        targets: Tensor,
        offsets: ScoreOffsets | None,
        lists: ItemLists | None,
        sampled: Tensor | None,
        log_expected: Tensor | None,
    ) -> Tensor:
        """Mean loss of targets of one group, or of the catalogue."""
        if self.loss_type == "CE":
            if group is not None:
                table, targets = table.index_select(0, group.items), group.position[targets]
            return cross_entropy(states, table, targets, offsets, lists)
        assert sampled is not None
        if self.loss_type == "gBCE":
            number = self.n_items - 1 if group is None else len(group.items)
            return gbce(states, table, targets, sampled, self.gbce_t, number, offsets)
        log_expected = log_expected if self.logq_correction else None
        return sampled_cross_entropy(states, table, targets, sampled, log_expected, offsets, lists)

    def _drawn_negatives(
        self, device: torch.device
    ) -> Sequence[tuple[Tensor | None, Tensor | None]]:
        """Negatives of a batch, for the catalogue or each group: item ids, and the log of how often
        each is expected to be drawn; (None, None) for losses without."""
        if self._step_negatives is not None:
            return self._step_negatives
        if self.loss_type not in ("SampledCE", "gBCE"):
            return [(None, None)] * (1 if self.target_groups is None else len(self.target_groups))
        drawn = [sampler.draw(device) for sampler in self.negative_samplers]
        if self.target_groups is None:
            return drawn
        groups = zip(self.target_groups, drawn, strict=True)
        return [(group.items[items - 1], expected) for group, (items, expected) in groups]
