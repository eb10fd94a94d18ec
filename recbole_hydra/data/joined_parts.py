"""Parts that were split before, without lists: one log, whose rows are each in the part of its
target."""

import functools
import logging

import numpy as np
from recbole.data.dataset import Dataset, SequentialDataset
from recbole.data.interaction import Interaction
from recbole.utils import FeatureSource, FeatureType

from recbole_hydra.data.targets import TargetDataset
from recbole_hydra.errors import DatasetError

logger = logging.getLogger(__name__)

#: Name of the column that says which part a row is of; no atomic file can have it.
PART = "recbole_hydra part"


@functools.cache
def joined_parts(base: type[SequentialDataset]) -> type[SequentialDataset]:
    """The class ``base`` of sequential datasets, for parts without lists: RecBole's rows over all
    of them, each in the part of its target."""

    class JoinedParts(base):
        def _change_feat_format(self) -> None:
            _number_parts(self)
            super(SequentialDataset, self)._change_feat_format()
            self.data_augmentation()

        def build(self) -> list[Dataset]:
            """The rows of train, validation and test."""
            self._change_feat_format()
            return _split_by_part(self)

    return JoinedParts


class JoinedTargets(TargetDataset):
    """A :class:`~recbole_hydra.data.targets.TargetDataset` of parts without lists; its rows are
    those of :func:`joined_parts`."""

    def _change_feat_format(self) -> None:
        _number_parts(self)
        super()._change_feat_format()

    def build(self) -> list[Dataset]:
        """The rows of train, validation and test, whose histories go over all parts."""
        self._change_feat_format()
        return _split_by_part(self)


def _number_parts(dataset: Dataset) -> None:
    parts = np.repeat(np.arange(len(dataset.part_sizes)), dataset.part_sizes)
    dataset.inter_feat[PART] = parts
    dataset.set_field_property(PART, FeatureType.TOKEN, FeatureSource.INTERACTION, 1)


def _split_by_part(dataset: Dataset) -> list[Dataset]:
    rows = dataset.inter_feat
    part = rows[PART]
    suffix = dataset.config["LIST_SUFFIX"]
    for feat in {id(feat): feat for feat in (rows, getattr(dataset, "timeline", rows))}.values():
        for name in (PART, PART + suffix):
            if name in feat:
                feat.drop(column=name)
    for table in (dataset.field2type, dataset.field2source, dataset.field2seqlen):
        table.pop(PART, None)
        table.pop(PART + suffix, None)
    dataset._drop_unused_col()
    names, splits = dataset.config["benchmark_filename"], []
    for index, size in enumerate(dataset.part_sizes):
        mine = (part == index).nonzero().squeeze(1)
        if len(mine) < size:
            logger.info(
                "%s: %d of its %d interactions are their user's first, with no history before "
                "them, and no row", names[index], size - len(mine), size,
            )  # fmt: skip
        if len(mine) == 0:
            raise DatasetError(
                f"dataset {dataset.dataset_name}: every interaction of part {names[index]} is its "
                "user's first, so there is no history to predict it from"
            )
        splits.append(dataset.copy(rows[mine]))
    return three_parts(splits)


def three_parts(splits: list[Dataset]) -> list[Dataset]:
    """Train, validation and test; of two parts the second is tested, and nothing validates."""
    if len(splits) == 2:
        empty = Interaction({k: v[:0] for k, v in splits[1].inter_feat.interaction.items()})
        splits.insert(1, splits[1].copy(empty))
    return splits


def is_joined(dataset: Dataset) -> bool:
    """Whether a dataset is of parts without lists, whose histories go over all of them."""
    return getattr(dataset, "joins_parts", False)
