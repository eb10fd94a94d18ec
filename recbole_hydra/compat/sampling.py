"""RecBole draws negatives until none is a positive: for ever, where all that can be drawn are.

Delete when its samplers notice.
"""

import functools

import numpy as np


def mend_samplers(module) -> None:
    """Let RecBole's samplers raise DatasetError where they would never end."""
    keys, sequences = module.AbstractSampler, module.SeqSampler
    keys.sample_by_key_ids = _guard_keys(keys.sample_by_key_ids)
    sequences.sample_neg_sequence = _guard_sequence(sequences.sample_neg_sequence)
    for one in (module.Sampler, module.KGSampler):
        one.get_used_ids = _in_one_line(one.get_used_ids)


def mend_loaders(module) -> None:
    """Let loaders of batches with negatives look first whether there are any."""
    loader = module.NegSampleDataLoader
    loader.__init__ = _checking_negatives(loader.__init__)


def mend_knowledge_loaders(module) -> None:
    """The same of loaders of knowledge graphs."""
    module.KGDataLoader.__init__ = _checking_negatives(module.KGDataLoader.__init__)


def mend_transforms(module) -> None:
    """The same of BERT4Rec's masks."""
    masks = module.MaskItemSequence
    masks._neg_sample = guard_masked(masks._neg_sample)


def _no_negative(number, whose, what="items"):
    from recbole_hydra.errors import DatasetError

    return DatasetError(
        f"negative sampling would never end: of what can be drawn ({what}: {number}), nothing is "
        f"a negative for {whose}; BPR, and sampled rankings such as uni100, need two items, and "
        "one that the user has not had: use loss_type CE and mode full, or leave such users out "
        "with user_inter_num_interval"
    )


def _number_drawable(sampler) -> int:
    """How many ids a sampler draws from."""
    if sampler.distribution == "popularity":
        return len(sampler.prob)
    return (sampler.entity_num if hasattr(sampler, "entity_num") else sampler.item_num) - 1


def _refuse_endless(sampler, positives, names):
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


def refuse_endless_sampling(sampler, keys, positives) -> None:
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

        def name(index):
            token = dataset.id2token(getattr(sampler, field), keys[index]) if field else keys[index]
            return f"{names.get(field, 'id')} {token}"

        _refuse_endless(sampler, [sampler.used_ids[key] for key in keys], name)


def _guard_keys(sample_by_key_ids):
    @functools.wraps(sample_by_key_ids)
    def sample(self, key_ids, num):
        if len(key_ids):
            _refuse_endless(self, self.used_ids[np.asarray(key_ids)], lambda _: "an interaction")
        return sample_by_key_ids(self, key_ids, num)

    return sample


def _guard_sequence(sample_neg_sequence):
    @functools.wraps(sample_neg_sequence)
    def sample(self, pos_sequence):
        if _number_drawable(self) < 2:
            positives = [{item} for item in np.asarray(pos_sequence).tolist()]
            _refuse_endless(self, positives, lambda _: "an interaction")
        return sample_neg_sequence(self, pos_sequence)

    return sample


def guard_masked(neg_sample):
    """For BERT4Rec and S3Rec, which draw an item that is not in the history."""

    @functools.wraps(neg_sample)
    def sample(self, item_set, *n_items):
        number = (n_items[0] if n_items else self.n_items) - 1
        if len(item_set) >= number and len({*item_set} - {0}) >= number:
            raise _no_negative(number, "a history")
        return neg_sample(self, item_set, *n_items)

    return sample


def guard_line(sampler):
    """For LINE, which draws a user who has not had the item."""

    @functools.wraps(sampler)
    def sample(self, key_ids):
        for key in key_ids.unique().tolist():
            if len(self.used_ids[key]) >= self.n_users - 1:
                raise _no_negative(self.n_users - 1, "an item", "users")
        return sampler(self, key_ids)

    return sample


def _in_one_line(get_used_ids):
    """RecBole's own check of users who have all items, as an error of the input."""

    @functools.wraps(get_used_ids)
    def get(self):
        from recbole_hydra.errors import DatasetError

        try:
            return get_used_ids(self)
        except ValueError as error:
            raise DatasetError(f"negative sampling: {error}") from error

    return get


def _checking_negatives(init):
    """Look for what cannot be sampled when a loader is made: later it may be in a process of its
    own, whose errors are not one line."""

    @functools.wraps(init)
    def init_and_check(self, config, dataset, sampler, shuffle=True):
        init(self, config, dataset, sampler, shuffle=shuffle)
        if hasattr(self, "hid_field"):
            heads, tails = dataset.kg_feat[self.hid_field], dataset.kg_feat[self.tid_field]
            refuse_endless_sampling(sampler, heads, tails)
        elif self.neg_sample_args["sample_num"] != "none":
            feat = dataset.inter_feat
            refuse_endless_sampling(sampler, feat[self.uid_field], feat[self.iid_field])

    return init_and_check
