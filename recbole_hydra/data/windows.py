"""Training on every position: windows of users' histories, batched by length.

A causal model that reads items i_1 .. i_n gives in one pass what RecBole's n - 1 padded prefixes
give one by one: the state after i_t, to be compared with the target i_(t+1).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from recbole.data.dataloader.abstract_dataloader import AbstractDataLoader
from recbole.data.interaction import Interaction
from recbole.data.transform import construct_transform
from torch import Tensor

from recbole_hydra.compat.sampling import refuse_endless_sampling
from recbole_hydra.data.targets import POSITION, TargetDataset
from recbole_hydra.errors import ConfigError

if TYPE_CHECKING:
    from recbole.config import Config
    from recbole.sampler import AbstractSampler

#: Columns of a batch with ``carry_state``: whether a window continues one before, whether one after
#: continues it, and the items of all windows before it, padded on the left with 0.
CONTINUES, HANDS_ON, EARLIER = "continues", "hands_on", "earlier"

#: Windows are sorted by length within pools of about this many batches: enough for next to no
#: padding, few enough that short and long histories stay mixed over the epoch.
POOL_BATCHES = 32


@dataclass(frozen=True)
class Windows:
    """Stretches of a dataset's timeline, each with the targets that are counted in it.

    Attributes (one entry per window):
        start: position of the first input item.
        length: number of input items; position ``start + t`` has the target ``start + t + 1``.
        counted: offset of the first input whose target is counted; those before are context.
        targets: number of targets counted.
        user: internal user id. stage: 0 for a user's first window, 1 for the next, ...
    """

    start: np.ndarray
    length: np.ndarray
    counted: np.ndarray
    targets: np.ndarray
    user: np.ndarray
    stage: np.ndarray

    def __len__(self) -> int:
        return len(self.start)

    @property
    def is_last(self) -> np.ndarray:
        """Whether a window is its user's last, (windows,) bool."""
        return np.r_[self.user[1:] != self.user[:-1], True]


def cut_windows(
    first: np.ndarray,
    last: np.ndarray,
    user: np.ndarray,
    is_target: np.ndarray,
    size: int,
    overlap: int,
) -> Windows:
    """Cut histories into windows so that every target is counted once.

    A target counted in a later window of a history has at least ``min(overlap, all that precede
    it)`` items of context there, and one item at least; consecutive windows share ``overlap - 1``.

    Args:
        first, last: position of each history's first item and last target, (histories,).
        user: user id of each history, (histories,).
        is_target: for every position of the timeline, whether it is a target, (positions,) bool.
        size: most input items of a window.
        overlap: 0 .. size.
    """
    overlap = max(overlap, 1)
    stride = size + 1 - overlap
    inputs = last - first
    count = 1 + np.maximum(0, -(-(inputs - size) // stride))  # windows per history
    history = np.repeat(np.arange(len(first)), count)
    stage = np.arange(len(history)) - np.repeat(np.cumsum(count) - count, count)
    start = first[history] + stage * stride
    length = np.minimum(size, last[history] - start)
    counted = np.where(stage == 0, 0, overlap - 1)
    targets_before = np.r_[0, np.cumsum(is_target)]
    targets = targets_before[start + length + 1] - targets_before[start + counted + 1]
    keep = targets > 0
    columns = (start, length, counted, targets, user[history], stage)
    return Windows(*(column[keep] for column in columns))


def bucketed_batches(
    windows: Windows, which: np.ndarray, budget: int, generator: torch.Generator
) -> list[np.ndarray]:
    """Put the windows ``which`` into batches of similar length, in random order.

    A batch is as many whole windows as have ``budget`` targets together; a larger window is a batch
    alone.
    """
    which = which[torch.randperm(len(which), generator=generator).numpy()]
    pool = np.cumsum(windows.targets[which]) // (POOL_BATCHES * budget)
    # Up and down in turn, so that a batch across two pools has one length too.
    key = np.where(pool % 2 == 0, 1, -1) * windows.length[which]
    which = which[np.lexsort((key, pool))]
    batches = _cut_batches(which, windows.targets[which], budget)
    return [batches[i] for i in torch.randperm(len(batches), generator=generator).tolist()]


def tempered(
    domain: np.ndarray, targets: np.ndarray, temperature: float, generator: torch.Generator
) -> np.ndarray:
    """Draw windows for an epoch so that a domain of n targets has about n^(1/T) of them.

    No window is drawn twice: the domain that would need its windows most often takes all of them
    once, the others fewer, others in every epoch.

    Args:
        domain: index of each window's domain, (windows,). targets: targets of each, (windows,).
        temperature: T, at least 1, which draws all; infinity draws the same from all domains.
    """
    total = np.bincount(domain, weights=targets)
    share = np.where(total > 0, total, 1.0) ** (1 / temperature)
    budget = share * (total / share)[total > 0].min()
    order = torch.randperm(len(domain), generator=generator).numpy()
    drawn = []
    for index in np.flatnonzero(total):
        mine = order[domain[order] == index]
        before = np.cumsum(targets[mine]) - targets[mine]
        drawn.append(mine[before < budget[index] - 0.5])
    return np.sort(np.concatenate(drawn))


def _cut_batches(which: np.ndarray, targets: np.ndarray, budget: int) -> list[np.ndarray]:
    """Cut ``which`` where the next window would go over the budget."""
    cuts, total = [], 0
    for i, n in enumerate(targets.tolist()):
        if total and total + n > budget:
            cuts.append(i)
            total = 0
        total += n
    return np.split(which, cuts) if len(which) else []


def carried_batches(windows: Windows, budget: int, generator: torch.Generator) -> list[np.ndarray]:
    """Put windows into batches such that each comes after the window before it of the same user.

    Users with one window are batched by length, as in :func:`bucketed_batches`. The others take
    part in one batch after the other until they end, and the next user takes the place; so a
    carried state is one batch old. Those with the most windows begin first: beginning late, they
    would be left over for many small batches. The two kinds of batches are mixed at random.
    """
    is_last, is_first = windows.is_last, windows.stage == 0
    singles = bucketed_batches(windows, np.flatnonzero(is_first & is_last), budget, generator)

    begins = np.flatnonzero(is_first & ~is_last)
    begins = begins[torch.randperm(len(begins), generator=generator).numpy()]
    number = np.bincount(windows.user)[windows.user[begins]]
    begins = begins[np.argsort(-number, kind="stable")]
    waiting = deque(begins.tolist())  # the next window of every user who is not through
    targets = windows.targets.tolist()
    chains = []
    while waiting:
        batch: list[int] = []
        total = 0
        while waiting and (not batch or total + targets[waiting[0]] <= budget):
            batch.append(waiting.popleft())
            total += targets[batch[-1]]
        # Users who have begun go on first.
        waiting.extendleft(w + 1 for w in reversed(batch) if not is_last[w])
        chains.append(np.array(batch))

    order = torch.randperm(len(singles) + len(chains), generator=generator).numpy()
    of_chain = iter(chains)  # their own order is kept
    return [singles[i] if i < len(singles) else next(of_chain) for i in order]


class WindowLoader(AbstractDataLoader):
    """RecBole's train loader for causal models: batches of windows instead of prefixes.

    A batch is an ``Interaction`` with one row per window: the user, the input items
    (``item_id_list``, padded on the right with 0 to the longest window of the batch), their number
    (``item_length``), the targets (``item_id``, (rows, length), 0 where a position has none that
    counts) and, for BPR, the negatives (``neg_item_id``, (rows, length, negatives)).
    ``train_batch_size`` counts targets. The order is drawn anew every epoch from ``generator``.

    Args:
        config: the run's Config.
        dataset: the :class:`~.targets.TargetDataset` of the train split.
        sampler: RecBole's sampler of negatives, or None.
        shuffle: without it, windows stay sorted by user.

    Raises:
        ConfigError: settings that belong to RecBole's prefixes: ``transform``, dynamic negative
            sampling, several processes.
    """

    def __init__(
        self,
        config: Config,
        dataset: TargetDataset,
        sampler: AbstractSampler | None = None,
        shuffle: bool = False,
    ) -> None:
        _refuse_settings(config)
        self.config = config
        self._dataset, self._sampler, self.shuffle = dataset, sampler, shuffle
        self.transform = construct_transform(config)
        self.carry_state = config["carry_state"]
        self.generator = torch.Generator().manual_seed(config["seed"])
        sampling = config["train_neg_sample_args"]
        self.negatives = 0 if sampling["distribution"] == "none" else sampling["sample_num"]
        self._init_batch_size_and_step()
        if self.negatives:
            rows = dataset.inter_feat
            refuse_endless_sampling(sampler, rows[dataset.uid_field], rows[dataset.iid_field])

        self.items = dataset.timeline[dataset.iid_field]
        self.is_target = torch.zeros(len(self.items), dtype=torch.bool)
        self.is_target[dataset.inter_feat[POSITION]] = True
        self.windows = self._cut(dataset)
        self.temperature = 1.0  # of one domain, any temperature draws all
        if (domains := getattr(dataset, "domains", None)) is not None:
            self.temperature = config["domain_temperature"] or 1.0
            last = self.items[self.windows.start + self.windows.length]  # each window's last target
            self.domain = domains.of(last).numpy()
        self.sample_size = len(self.windows)
        self.batches: list[np.ndarray] | None = None  # of the epoch that has begun
        torch.utils.data.DataLoader.__init__(
            self,
            dataset=range(self.sample_size),  # type: ignore[arg-type]
            batch_sampler=_BatchesOf(self),
            collate_fn=self.collate_fn,
            num_workers=config["worker"],
            generator=self.generator,
        )

    def _cut(self, dataset: TargetDataset) -> Windows:
        targets = np.flatnonzero(self.is_target.numpy())
        start = dataset.history_start[targets]
        first, index = np.unique(start, return_index=True)
        last = targets[np.r_[index[1:], len(targets)] - 1]
        user = dataset.timeline[dataset.uid_field].numpy()[first]
        size = dataset.max_item_list_len
        overlap = self.config["window_overlap"]
        if overlap is None:
            overlap = size // 2
        if self.carry_state:
            overlap = 0
        return cut_windows(first, last, user, self.is_target.numpy(), size, overlap)

    def _init_batch_size_and_step(self) -> None:
        self.step = self.config["train_batch_size"]
        self.set_batch_size(self.step)

    def plan(self, generator: torch.Generator) -> list[np.ndarray]:
        """Draw the batches of an epoch, each the indices of its windows."""
        budget = max(1, self.step // max(1, self.negatives))  # RecBole counts negatives too
        if self.carry_state:
            return carried_batches(self.windows, budget, generator)
        everything = np.arange(len(self.windows))
        if self.temperature > 1:
            targets = self.windows.targets
            everything = tempered(self.domain, targets, self.temperature, generator)
        if not self.shuffle:
            return _cut_batches(everything, self.windows.targets, budget)
        return bucketed_batches(self.windows, everything, budget, generator)

    def __iter__(self) -> Iterator[Interaction]:
        self.batches = self.plan(self.generator)
        return super().__iter__()

    def collate_fn(self, index: list[int]) -> Interaction:
        """Cut out the windows ``index``, a list of ints, and sample their negatives."""
        windows, dataset = self.windows, self._dataset
        length = windows.length[index]
        offset = np.arange(length.max())
        position = torch.from_numpy(windows.start[index][:, None] + offset)
        padding = torch.from_numpy(offset >= length[:, None])
        context = torch.from_numpy(offset < windows.counted[index][:, None])
        position[padding] = 0
        items = self.items[position].masked_fill_(padding, 0)
        counts = self.is_target[position + 1] & ~padding & ~context
        targets = self.items[position + 1].masked_fill_(~counts, 0)
        batch = {
            dataset.uid_field: torch.from_numpy(windows.user[index]),
            getattr(dataset, f"{dataset.iid_field}_list_field"): items,
            dataset.item_list_length_field: torch.from_numpy(length),
            dataset.iid_field: targets,
        }
        if self.carry_state:
            batch[CONTINUES] = torch.from_numpy(windows.stage[index] > 0)
            batch[HANDS_ON] = torch.from_numpy(~windows.is_last[index])
            batch[EARLIER] = self._earlier(windows.start[index])
        if self.negatives:
            users = batch[dataset.uid_field][:, None].expand_as(targets)[counts]
            assert self._sampler is not None
            sampled = self._sampler.sample_by_user_ids(
                users.numpy(), targets[counts].numpy(), self.negatives
            )
            negatives = torch.zeros(*targets.shape, self.negatives, dtype=torch.long)
            negatives[counts] = sampled.view(self.negatives, -1).T
            batch[self.config["NEG_PREFIX"] + dataset.iid_field] = negatives
        return Interaction(batch)

    def _earlier(self, start: np.ndarray) -> Tensor:
        """The items before positions ``start`` of the timeline, (rows, most of a row)."""
        number = start - self._dataset.history_start[start]
        position = start[:, None] - np.arange(number.max(), 0, -1)
        outside = torch.from_numpy(position < (start - number)[:, None])
        position[outside.numpy()] = 0
        return self.items[torch.from_numpy(position)].masked_fill_(outside, 0)


class _BatchesOf:
    """The batch sampler of a :class:`WindowLoader`."""

    def __init__(self, loader: WindowLoader) -> None:
        self.loader = loader

    def __iter__(self) -> Iterator[list[int]]:
        assert self.loader.batches is not None
        return (batch.tolist() for batch in self.loader.batches)

    def __len__(self) -> int:
        # Asked before an epoch begins: draw its plan without using up its randomness.
        generator = torch.Generator()
        generator.set_state(self.loader.generator.get_state())
        return len(self.loader.plan(generator))


def _refuse_settings(config: Config) -> None:
    """Raise ConfigError for what only makes sense on RecBole's prefixes."""
    remedy = "set training_mode: augmentation, or remove it"
    if config["transform"] is not None:
        raise ConfigError(
            f"transform: {config['transform']} works on RecBole's prefixes, not on whole "
            f"histories; {remedy}"
        )
    if config["train_neg_sample_args"].get("dynamic"):
        raise ConfigError(
            "train_neg_sample_args: dynamic sampling scores RecBole's prefixes, not whole "
            f"histories; {remedy}"
        )
    if not config["single_spec"]:
        raise ConfigError(
            "nproc, world_size: runs of several processes are not supported with training_mode "
            "autoregressive; use one process, or training_mode: augmentation"
        )
