"""RecBole draws negatives until none is a positive: for ever, where all that can be drawn are.

Delete when its samplers notice.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Collection, Sequence
from types import ModuleType
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from recbole.config import Config
    from recbole.data.dataloader.abstract_dataloader import NegSampleDataLoader
    from recbole.data.dataloader.knowledge_dataloader import KGDataLoader
    from recbole.data.dataset import Dataset
    from recbole.data.transform import MaskItemSequence
    from recbole.model.general_recommender import LINE
    from recbole.model.sequential_recommender import S3Rec
    from recbole.sampler import AbstractSampler, KGSampler, Sampler, SeqSampler
    from torch import Tensor

    from recbole_hydra.errors import DatasetError


def mend_samplers(module: ModuleType) -> None:
    """Let RecBole's samplers raise DatasetError where they would never end."""
    keys, sequences = module.AbstractSampler, module.SeqSampler
    keys.sample_by_key_ids = _guard_keys(keys.sample_by_key_ids)
    sequences.sample_neg_sequence = _guard_sequence(sequences.sample_neg_sequence)
    for one in (module.Sampler, module.KGSampler):
        one.get_used_ids = _in_one_line(one.get_used_ids)


def mend_loaders(module: ModuleType) -> None:
    """Let loaders of batches with negatives look first whether there are any."""
    loader = module.NegSampleDataLoader
    loader.__init__ = _checking_negatives(loader.__init__)


def mend_knowledge_loaders(module: ModuleType) -> None:
    """The same of loaders of knowledge graphs."""
    module.KGDataLoader.__init__ = _checking_negatives(module.KGDataLoader.__init__)


def mend_transforms(module: ModuleType) -> None:
    """The same of BERT4Rec's masks."""
    masks = module.MaskItemSequence
    masks._neg_sample = guard_masked(masks._neg_sample)


def _no_negative(number: int, whose: str, what: str = "items") -> DatasetError:
    from recbole_hydra.errors import DatasetError

    return DatasetError(
        f"negative sampling would never end: of what can be drawn ({what}: {number}), nothing is "
        f"a negative for {whose}; BPR, and sampled rankings such as uni100, need two items, and "
        "one that the user has not had: use loss_type CE and mode full, or leave such users out "
        "with user_inter_num_interval"
    )


def _number_drawable(sampler: AbstractSampler) -> int:
    """How many ids a sampler draws from."""
    if sampler.distribution == "popularity":
        return len(sampler.prob)
    return (sampler.entity_num if hasattr(sampler, "entity_num") else sampler.item_num) - 1


def _refuse_endless(
    sampler: AbstractSampler, positives: Collection[set[int]], names: Callable[[int], str]
) -> None:
    """Raise DatasetError where one of ``positives``, sets of ids, leaves nothing to be drawn;
    ``names`` is called with its index, to say whose they are."""
    number = _number_drawable(sampler)
    if max(map(len, positives), default=0) < number:
        return
    popular = sampler.distribution == "popularity"
    drawable = set(sampler.prob) if popular else set(range(1, number + 1))
    for index, used in enumerate(positives):
        if drawable <= set(used):
            what = "entities" if hasattr(sampler, "entity_num") else "items"
            raise _no_negative(number, names(index), what)


def refuse_endless_sampling(
    sampler: AbstractSampler, keys: Tensor | np.ndarray, positives: Tensor | np.ndarray
) -> None:
    """Raise DatasetError where a sampler of RecBole's would draw for ever.

    Args:
        sampler: of the phase. keys: what negatives are drawn for, users or head entities, (rows,).
        positives: the item or entity of each, (rows,), which is all that RepeatableSampler avoids.
    """
    keys = np.unique(np.asarray(keys)).tolist()
    if type(sampler).__name__ == "RepeatableSampler":
        items = np.unique(np.asarray(positives)).tolist()
        _refuse_endless(sampler, [{item} for item in items], lambda _: "an interaction")
    else:
        names = {"uid_field": "user", "hid_field": "head entity"}
        field = next((field for field in names if hasattr(sampler, field)), None)
        dataset = sampler.datasets[0] if hasattr(sampler, "datasets") else sampler.dataset

        def name(index: int) -> str:
            token = dataset.id2token(getattr(sampler, field), keys[index]) if field else keys[index]
            return f"{names[field] if field else 'id'} {token}"

        _refuse_endless(sampler, [sampler.used_ids[key] for key in keys], name)


def _guard_keys(sample_by_key_ids: Callable[..., Tensor]) -> Callable[..., Tensor]:
    @functools.wraps(sample_by_key_ids)
    def sample(self: AbstractSampler, key_ids: Sequence[int] | np.ndarray, num: int) -> Tensor:
        if len(key_ids):
            _refuse_endless(self, self.used_ids[np.asarray(key_ids)], lambda _: "an interaction")
        return sample_by_key_ids(self, key_ids, num)

    return sample


def _guard_sequence(sample_neg_sequence: Callable[..., Tensor]) -> Callable[..., Tensor]:
    @functools.wraps(sample_neg_sequence)
    def sample(self: SeqSampler, pos_sequence: Tensor) -> Tensor:
        if _number_drawable(self) < 2:
            positives = [{item} for item in np.asarray(pos_sequence).tolist()]
            _refuse_endless(self, positives, lambda _: "an interaction")
        return sample_neg_sequence(self, pos_sequence)

    return sample


def guard_masked(neg_sample: Callable[..., int]) -> Callable[..., int]:
    """For BERT4Rec and S3Rec, which draw an item that is not in the history."""

    @functools.wraps(neg_sample)
    def sample(self: MaskItemSequence | S3Rec, item_set: Sequence[int], *n_items: int) -> int:
        number = (n_items[0] if n_items else self.n_items) - 1
        if len(item_set) >= number and len({*item_set} - {0}) >= number:
            raise _no_negative(number, "a history")
        return neg_sample(self, item_set, *n_items)

    return sample


def guard_line(sampler: Callable[[LINE, Tensor], Tensor]) -> Callable[[LINE, Tensor], Tensor]:
    """For LINE, which draws a user who has not had the item."""

    @functools.wraps(sampler)
    def sample(self: LINE, key_ids: Tensor) -> Tensor:
        for key in key_ids.unique().tolist():
            if len(self.used_ids[key]) >= self.n_users - 1:
                raise _no_negative(self.n_users - 1, "an item", "users")
        return sampler(self, key_ids)

    return sample


def _in_one_line(
    get_used_ids: Callable[..., dict[str, np.ndarray] | np.ndarray],
) -> Callable[..., dict[str, np.ndarray] | np.ndarray]:
    """RecBole's own check of users who have all items, as an error of the input."""

    @functools.wraps(get_used_ids)
    def get(self: Sampler | KGSampler) -> dict[str, np.ndarray] | np.ndarray:
        from recbole_hydra.errors import DatasetError

        try:
            return get_used_ids(self)
        except ValueError as error:
            raise DatasetError(f"negative sampling: {error}") from error

    return get


def _checking_negatives(init: Callable[..., None]) -> Callable[..., None]:
    """Look for what cannot be sampled when a loader is made: later it may be in a process of its
    own, whose errors are not one line."""

    @functools.wraps(init)
    def init_and_check(
        self: NegSampleDataLoader | KGDataLoader,
        config: Config,
        dataset: Dataset,
        sampler: AbstractSampler,
        shuffle: bool = True,
    ) -> None:
        init(self, config, dataset, sampler, shuffle=shuffle)
        if hasattr(self, "hid_field"):
            heads, tails = dataset.kg_feat[self.hid_field], dataset.kg_feat[self.tid_field]
            refuse_endless_sampling(sampler, heads, tails)
        elif self.neg_sample_args["sample_num"] != "none":
            feat = dataset.inter_feat
            refuse_endless_sampling(sampler, feat[self.uid_field], feat[self.iid_field])

    return init_and_check
