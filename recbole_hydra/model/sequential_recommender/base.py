"""What Hydra and Mamba4Rec share: losses, scoring and checks around a causal encoder."""

from abc import ABC, abstractmethod
from contextlib import nullcontext

import torch
from recbole.model.abstract_recommender import SequentialRecommender
from torch import nn

from recbole_hydra.checks import boolean, fraction, one_of
from recbole_hydra.errors import ConfigError, DatasetError
from recbole_hydra.model.losses import (
    NegativeSampler,
    TargetGroup,
    bpr,
    cross_entropy,
    gbce,
    later_targets,
    sampled_cross_entropy,
)
from recbole_hydra.ops import ItemLists

#: Pairs of a target and an item of its history in a step, from which the repeat bias is learned: a
#: number per item at most, so that the pairs of all steps tell enough.
MOST_PAIRS = 2**14


class StateSpaceRecommender(SequentialRecommender, ABC):
    """A causal encoder over the item sequence, scored by inner products with the items.

    Sequences are padded on the right with item 0, as RecBole pads them. A subclass defines
    :meth:`encode`, which must be causal, :meth:`initial_state` and ``self.item_embedding``; it
    reads its config through :meth:`setting`.

    Raises:
        ConfigError: an unknown ``loss_type``, or a config key that the model needs and nobody set.
    """

    #: Values of ``loss_type``: softmax over all items, BPR against RecBole's negatives, softmax
    #: or binary cross-entropy (gBCE) against negatives of our own.
    LOSS_TYPES = ("CE", "BPR", "SampledCE", "gBCE")
    #: Those in which items share a probability.
    SOFTMAXES = ("CE", "SampledCE")

    def __init__(self, config, dataset, trained_only=False):
        """``trained_only``: items that no training row has for its target take no part in the loss,
        not even as what the target is told apart from."""
        super().__init__(config, dataset)
        self._config = config  # read by setting() while the model is built, then dropped
        self.loss_type = one_of("loss_type", self.setting("loss_type"), self.LOSS_TYPES)
        #: What the scores of items in the history are raised or lowered by, if they are, a
        #: :class:`~recbole_hydra.layers.RepeatBias`.
        self.repeat_bias = None
        #: Whether the items of the history count as one in a loss that is a softmax, see
        #: :mod:`recbole_hydra.model.losses`.
        self.history_as_one = False
        self.target_groups = self._group_targets(dataset, trained_only)
        if self.loss_type in ("SampledCE", "gBCE"):
            self._prepare_sampling(dataset)

    def _group_targets(self, dataset, trained_only):
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
        return nn.ModuleList(groups)

    def _count_targets(self, dataset):
        """How often each item is the target of a training row, (n_items,)."""
        # A model loaded without its dataset cannot count; it will not be trained either.
        counter = getattr(dataset, "item_counter", {})
        return torch.tensor([counter.get(item, 0) for item in range(self.n_items)])

    def _prepare_sampling(self, dataset):
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

    def setting(self, key):
        """Return config[key]; a key that is missing is an error, never a silent default."""
        if key not in self._config:
            name = type(self).__name__
            raise ConfigError(
                f"{name} needs the config key {key!r}: with RecBole's plain Config, put "
                f"recbole_hydra.default_config({name!r}) first in config_file_list"
            )
        return self._config[key]

    @abstractmethod
    def initial_state(self, batch):
        """What :meth:`encode` carries, before the first item: a tuple of tensors, batch first."""

    @abstractmethod
    def encode(self, item_seq, state=None, keep=None):
        """Map item ids, (batch, length), to one state per position, (batch, length, width).

        The state at position t depends on the items up to t only. Given ``state``, what the items
        before ``item_seq`` left, it returns the pair (states, what is left now); the latter is
        meaningful for rows without padding. Given ``keep``, the states are those of the positions
        b * length + t in it, (positions, width).
        """

    @property
    def item_table(self):
        """The vectors that states are compared with, (n_items, width); row 0 is padding."""
        return self.item_embedding.weight

    def forward(self, item_seq, item_seq_len):
        """Return the state at the last item of each sequence, (batch, width).

        Sequences of similar length are encoded together, none padded beyond the longest of them:
        most of RecBole's prefixes are far shorter than MAX_ITEM_LIST_LENGTH.
        """
        groups = similar_lengths(item_seq_len)
        states = [self._states_at_end(item_seq[rows], item_seq_len[rows]) for rows in groups]
        return torch.cat(states).index_select(0, torch.cat(groups).argsort())

    def _states_at_end(self, item_seq, length):
        """:meth:`forward`, all sequences together."""
        longest = int(length.max())
        return self.encode(item_seq[:, :longest], keep=last_positions(length, longest))

    def calculate_loss(self, interaction):
        """Mean loss of a batch of RecBole's rows: histories, their targets, BPR's negatives."""
        item_seq, targets = interaction[self.ITEM_SEQ], interaction[self.POS_ITEM_ID]
        negatives = None
        if self.loss_type == "BPR":
            negatives = interaction[self.NEG_ITEM_ID].unsqueeze(1)
        length = interaction[self.ITEM_SEQ_LEN]
        last = last_positions(length, item_seq.shape[1])
        with self.step(item_seq, targets, negatives):
            states = self.forward(item_seq, length)
            return self.target_loss(states, targets, (item_seq, last), negatives)

    def step(self, item_seq, targets, negatives=None):
        """The context in which the loss of a batch is computed: :meth:`encode`, then
        :meth:`target_loss`, on these items. A model whose items have to be computed does it here,
        once."""
        return nullcontext()

    def target_loss(self, states, targets, history, negatives=None):
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
            return bpr(states, table, targets, negatives, offsets)
        if self.target_groups is None:
            return self._loss_among(None, states, table, targets, offsets, lists, *drawn[0])
        total = 0.0
        for group, sample in zip(self.target_groups, drawn, strict=True):
            rows = group.rows(targets)
            if len(rows):
                mine = states.index_select(0, rows), table, targets.index_select(0, rows)
                own = [
                    None if part is None else part.among(rows, self._position(group))
                    for part in (offsets, lists)
                ]
                total = total + len(rows) * self._loss_among(group, *mine, *own, *sample)
        return total / len(targets)

    def later_target_loss(self, states, targets, later, weights):
        """What later targets add to a :meth:`target_loss` by CE; where there are groups, those of
        the target's group.

        Args:
            states: (targets, width). targets: item ids, (targets,).
            later, weights: see :func:`recbole_hydra.model.losses.later_targets`.
        """
        if self.target_groups is not None:
            of_one_group = torch.zeros_like(later, dtype=torch.bool)
            for group in self.target_groups:
                own = group.position >= 0
                of_one_group |= own[targets][:, None] & own[later]
            later = later * of_one_group
        return later_targets(states, self.item_table, targets, later, weights)

    def _offsets(self, item_seq, last):
        """What the repeat bias adds to the scores of targets, of every second, third, ... where
        there are too many; None without one."""
        if self.repeat_bias is None:
            return None
        pairs = int((last % item_seq.shape[1] + 1).sum())
        stride = -(-pairs // MOST_PAIRS)
        rows = torch.arange(0, len(last), stride, device=last.device)
        offsets = self.repeat_bias(item_seq, last[rows])
        return offsets._replace(rows=rows[offsets.rows])

    def _position(self, group):
        """Where the scores of a group's targets have an item, -1 for those of other groups: CE has
        scores of the group alone."""
        if self.loss_type == "CE":
            return group.position
        every = torch.arange(self.n_items, device=group.position.device)
        return every.where(group.position >= 0, -1)

    def _loss_among(self, group, states, table, targets, offsets, lists, sampled, log_expected):
        """Mean loss of targets of one group, or of the catalogue."""
        if self.loss_type == "CE":
            if group is not None:
                table, targets = table.index_select(0, group.items), group.position[targets]
            return cross_entropy(states, table, targets, offsets, lists)
        if self.loss_type == "gBCE":
            number = self.n_items - 1 if group is None else len(group.items)
            return gbce(states, table, targets, sampled, self.gbce_t, number, offsets)
        log_expected = log_expected if self.logq_correction else None
        return sampled_cross_entropy(states, table, targets, sampled, log_expected, offsets, lists)

    def _drawn_negatives(self, device):
        """Negatives of a batch, for the catalogue or each group: item ids, and the log of how often
        each is expected to be drawn; (None, None) for losses without."""
        if self.loss_type not in ("SampledCE", "gBCE"):
            return [(None, None)] * (1 if self.target_groups is None else len(self.target_groups))
        drawn = [sampler.draw(device) for sampler in self.negative_samplers]
        if self.target_groups is None:
            return drawn
        groups = zip(self.target_groups, drawn, strict=True)
        return [(group.items[items - 1], expected) for group, (items, expected) in groups]

    def predict(self, interaction):
        """Score of each row's one candidate, (batch,)."""
        item = interaction[self.ITEM_ID]
        self._check_ids(self.ITEM_ID, item)
        states, offsets = self._last_states(interaction)
        scores = (states * self.item_table[item]).sum(-1)
        return scores if offsets is None else scores + offsets.of(item[:, None]).squeeze(1)

    def full_sort_predict(self, interaction):
        """Scores of all items for each row, (batch, n_items)."""
        states, offsets = self._last_states(interaction)
        scores = states @ self.item_table.T
        return scores if offsets is None else offsets.added_to(scores)

    def _last_states(self, interaction):
        """The state at the last item of each row, (batch, width), and what is added to the scores
        there, or None."""
        item_seq, length = interaction[self.ITEM_SEQ], interaction[self.ITEM_SEQ_LEN]
        self._check_ids(self.ITEM_SEQ, item_seq)
        if int(length.min()) < 1 or int(length.max()) > item_seq.shape[1]:
            raise DatasetError(
                f"{self.ITEM_SEQ_LEN}: every sequence needs 1 to {item_seq.shape[1]} items, got "
                f"lengths from {int(length.min())} to {int(length.max())}"
            )
        last = last_positions(length, item_seq.shape[1])
        offsets = None if self.repeat_bias is None else self.repeat_bias(item_seq, last)
        return self.encode(item_seq, keep=last), offsets

    def _check_ids(self, field, ids):
        """Refuse ids outside the item table: on a GPU they would end the process."""
        low, high = int(ids.min()), int(ids.max())
        if low < 0 or high >= self.n_items:
            raise DatasetError(
                f"{field}: item ids must be in 0 .. {self.n_items - 1}, got "
                f"{low if low < 0 else high}; were they mapped with another dataset's vocabulary?"
            )


def similar_lengths(length) -> list:
    """Groups of rows, each with the rows of up to 4 items, 5 to 8, 9 to 16, and so on.

    Args:
        length: items of each row, (batch,) int64.

    Returns:
        A tensor of row numbers per group that has rows; every row is in one group.
    """
    exponent = torch.frexp((length - 1).double()).exponent.clamp_min(2)
    return [(exponent == value).nonzero().squeeze(1) for value in exponent.unique()]


def last_positions(length, width):
    """b * width + t of the last item of each row b, (batch,); rows are padded to ``width``."""
    return torch.arange(len(length), device=length.device) * width + length - 1


def per_layer(parts):
    """Split a flat sequence of tensors into the pairs that the Mamba of each layer carries."""
    return zip(parts[::2], parts[1::2], strict=True)
