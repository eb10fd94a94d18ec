"""A split at one moment for all users, ``eval_args: {split: {cut: 0.9}}``: train before it,
validate on the last part before it, test on what users do from it on.

The moments are exact: with n interactions in the order of time and a cut of 0.9, the test begins at
the time of interaction number floor(0.9 n), counted from 0, and all that happened at that very time
comes after the cut. Validation begins likewise at the same share of what lies before the cut. A row
is (history, target), as RecBole's sequential models have it, for every model: each event after the
cut is tested in its turn, given all that its user did before it, those after the cut included; a
user's first interaction has no history, and is in no validation or test.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from fractions import Fraction
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from recbole.data.dataset import SequentialDataset

from recbole_hydra.data.times import times_of
from recbole_hydra.data.windows import WindowLoader
from recbole_hydra.errors import DatasetError

if TYPE_CHECKING:
    from recbole.config import Config
    from recbole.data.dataloader.abstract_dataloader import AbstractDataLoader
    from recbole.data.dataset import Dataset
    from recbole.data.interaction import Interaction

#: The parts of :attr:`TimeCut.part`.
TRAIN, VALID, TEST = 0, 1, 2

SECONDS_PER_DAY = 86_400

#: Numbers up to which times since 1970 are taken as seconds, milliseconds and microseconds.
_UNITS = ((1e11, 1), (1e14, 10**3), (1e17, 10**6))


def share_before(eval_args: Mapping[str, Any]) -> float | None:
    """The share of interactions before the cut; None where ``eval_args`` splits otherwise."""
    return (eval_args["split"] or {}).get("cut")


@dataclass(frozen=True)
class TimeCut:
    """Where a log is cut, and the log.

    Attributes:
        share: of the interactions, that lies before the cut where all times differ.
        valid_from, test_from: the first moment of validation and of test, in units of the file.
        users, items, times: of all interactions, internal ids and exact times, sorted by user, then
            time, equal times in the order of the file, (interactions,).
        per_second: units of the times in a second.
    """

    share: float
    valid_from: Any
    test_from: Any
    users: np.ndarray
    items: np.ndarray
    times: np.ndarray
    per_second: int

    @property
    def part(self) -> np.ndarray:
        """Which part each interaction lies in, (interactions,) of TRAIN, VALID and TEST."""
        return (self.times >= self.valid_from).astype(int) + (self.times >= self.test_from)

    @property
    def is_first(self) -> np.ndarray:
        """Whether an interaction is its user's first, (interactions,) bool."""
        return np.r_[True, self.users[1:] != self.users[:-1]]

    def counts_before(self, moment: Any, n_items: int, days: float | None = None) -> np.ndarray:
        """How often each item occurs before ``moment``, in the last ``days`` before it if given,
        (n_items,)."""
        wanted = self.times < moment
        if days is not None:
            wanted &= self.times >= moment - days * SECONDS_PER_DAY * self.per_second
        return np.bincount(self.items[wanted], minlength=n_items)

    def summary(self) -> dict[str, Any]:
        """The cut in numbers and words, for a report."""
        part, first = self.part, self.is_first
        return {
            "share": self.share,
            "valid_from": self.moment(self.valid_from),
            "test_from": self.moment(self.test_from),
            "trained": int((part == TRAIN).sum()),
            "validated": int(((part == VALID) & ~first).sum()),
            "tested": int(((part == TEST) & ~first).sum()),
            "first_after_cut": int(((part == TEST) & first).sum()),
        }

    def moment(self, time: Any) -> str:
        """A time in words: a date in UTC, or the number where it is no time since 1970."""
        seconds = float(time) / self.per_second
        if not 1e8 < abs(seconds) < 1e11:
            return f"{time}"
        return f"{datetime.fromtimestamp(seconds, timezone.utc):%Y-%m-%d %H:%M:%S} UTC"


def find_cut(dataset: Dataset, share: float) -> TimeCut:
    """Find the moments of a cut.

    Args:
        dataset: loaded, and not split yet. share: of the interactions that is to lie before it.

    Raises:
        DatasetError: there are no times, or none that can be compared between users; ready-made
            rows; a cut that leaves no one to train, validate or test on.
    """
    name = dataset.dataset_name
    if getattr(dataset, "has_ready_made_rows", False):
        raise DatasetError(
            f"dataset {name}: its rows are ready-made, with histories in them, and a cut in time "
            "takes interactions; leave the column of histories out with unload_col"
        )
    frame = dataset.inter_feat
    if dataset.time_field not in frame or dataset.time_kind is None:
        raise DatasetError(
            f"dataset {name}: a cut in time needs times, and there is no column "
            f"{dataset.time_field!r} (TIME_FIELD) of them"
        )
    times, users = times_of(dataset), frame[dataset.uid_field].to_numpy()
    order = np.lexsort((times, users))  # stable, as user_histories and the rows of a dataset
    users, items = users[order], frame[dataset.iid_field].to_numpy()[order]
    times = times[order]
    _check_comparable(name, users, times)
    in_time = np.sort(times)
    test_from = in_time[_place(share, len(in_time))]
    before = in_time[in_time < test_from]
    valid_from = before[_place(share, len(before))] if len(before) else test_from
    per_second = 10**9
    if dataset.time_kind == "numbers":
        largest = float(np.abs(in_time[[0, -1]]).max())
        per_second = next((unit for most, unit in _UNITS if largest < most), 10**9)
    cut = TimeCut(share, valid_from, test_from, users, items, times, per_second)
    part = cut.part[~cut.is_first]
    moments = (
        f"before {cut.moment(valid_from)}",
        f"from {cut.moment(valid_from)} and before {cut.moment(test_from)}",
        f"from {cut.moment(test_from)} on",
    )
    words = zip((TRAIN, VALID, TEST), ("train on", "validate on", "test"), moments, strict=True)
    for which, what, when in words:
        if not (part == which).any():
            raise DatasetError(
                f"dataset {name}: a cut at {share} of the interactions leaves no one to {what}: no "
                f"user has an interaction {when} and another before it; choose another cut"
            )
    return cut


def _place(share: float, number: int) -> int:
    """floor(share x number), of the share as it is written: 0.29 of 100 is 29."""
    return int(Fraction(str(share)) * number)


def _check_comparable(name: str, users: np.ndarray, times: np.ndarray) -> None:
    """Refuse times that only number each user's interactions."""
    starts = np.flatnonzero(np.r_[True, users[1:] != users[:-1]])
    sizes = np.diff(np.r_[starts, len(users)])
    least = times[starts[0]] if len(starts) else 0
    numbers = least + np.arange(len(users)) - np.repeat(starts, sizes)
    if len(starts) > 1 and sizes.max() > 1 and np.array_equal(times, numbers):
        raise DatasetError(
            f"dataset {name}: the times of every user are {least:g}, {least + 1:g}, ...: places in "
            "a history, which say nothing of who was first; a cut in time needs real times"
        )


def split_at(dataset: Dataset, cut: TimeCut) -> list[Dataset]:
    """Split a dataset at a cut, in place; the rows of each part are sorted by user and time.

    Args:
        dataset: loaded, and not split yet, of any class. cut: :func:`find_cut` of it.

    Returns:
        The train, validation and test parts. Those of validation and test have the same targets
        for every class of dataset.
    """
    dataset._change_feat_format()
    part = cut.part
    if isinstance(dataset, SequentialDataset):  # a row per interaction that has a history
        part = part[~cut.is_first]
    else:
        dataset.sort(by=[dataset.uid_field, dataset.time_field], ascending=True)
        part = np.where(cut.is_first & (part != TRAIN), -1, part)
    dataset._drop_unused_col()
    rows = dataset.inter_feat
    which = (torch.from_numpy(np.flatnonzero(part == each)) for each in (TRAIN, VALID, TEST))
    return [dataset.copy(rows[index]) for index in which]


def check_nothing_later(loaders: Sequence[AbstractDataLoader]) -> None:
    """Look at what a run will train on, and refuse it if any of it is not before all that is
    validated and tested, and what validates not before all that is tested.

    Args:
        loaders: train, validation and test data of a cut in time, as the run reads them.

    Raises:
        DatasetError: an interaction in the rows, histories or windows of training is as late as one
            that is asked for; or the loaders have no times to tell.
    """
    train, valid, test = loaders
    steps = [("trains on", _latest_trained(train)), ("validates on", _of_rows(valid._dataset))]
    later = [("validates on", _of_rows(valid._dataset)), ("tests", _of_rows(test._dataset))]
    for place, (doing, times) in enumerate(steps):
        for asked, others in later[place:]:
            if times.max() >= others.min():
                raise DatasetError(
                    f"dataset {train._dataset.dataset_name}: the split in time leaks: it {doing} "
                    f"an interaction at {times.max()}, and {asked} one at {others.min()}, which is "
                    "not after it"
                )


def _latest_trained(loader: AbstractDataLoader) -> np.ndarray:
    """The times of all that a train loader reads: of windows, or of rows and their histories."""
    dataset = loader._dataset
    if not isinstance(loader, WindowLoader):
        return _of_rows(dataset)
    windows, times = loader.windows, _column(dataset, dataset.timeline, dataset.time_field)
    # The inputs start .. start + length - 1, and the target behind the last of them.
    change = np.zeros(len(times) + 1, dtype=int)
    np.add.at(change, windows.start, 1)
    np.add.at(change, windows.start + windows.length + 1, -1)
    return times[np.cumsum(change[:-1]) > 0]


def _of_rows(dataset: Dataset) -> np.ndarray:
    """The times of a dataset's rows; of their histories, too, where they are stored with them."""
    times = _column(dataset, dataset.inter_feat, dataset.time_field)
    histories = f"{dataset.time_field}{dataset.config['LIST_SUFFIX']}"
    if histories not in dataset.inter_feat:
        return times
    stored = _column(dataset, dataset.inter_feat, histories)
    length = dataset.inter_feat[dataset.item_list_length_field].numpy()
    latest = np.where(np.arange(stored.shape[1]) < length[:, None], stored, times.min()).max(1)
    return np.maximum(times, latest)


def _column(dataset: Dataset, rows: Interaction, name: str) -> np.ndarray:
    if name not in rows:
        raise DatasetError(
            f"dataset {dataset.dataset_name}: unused_col has {name}, by which a cut in time is "
            "checked; take it out"
        )
    values = rows[name].numpy()
    numerical = dataset.time_field in (dataset.config["numerical_features"] or ())
    return values[..., 0] if numerical else values  # (time, 1) per row


def refuse_saved_loaders(config: Config) -> None:
    """Raise DatasetError for ready-made loaders of RecBole's, whose split is their own."""
    if config["dataloaders_save_path"]:
        raise DatasetError(
            "dataloaders_save_path: its loaders are split already; a cut in time makes them anew, "
            "remove it"
        )
