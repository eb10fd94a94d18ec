"""A comparison that is cut in time: the cut, and who is tested on what."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd

from recbole_hydra.checks import one_of
from recbole_hydra.data.time_cut import TEST, TRAIN, TimeCut
from recbole_hydra.errors import ComparisonError
from recbole_hydra.settings.evaluation import SPLITS

#: The splits of a comparison.
LEAVE_ONE_OUT, TIME = "leave_one_out", "time"

#: The popularity baseline that a cut in time adds to RecBole's.
RECENT = "RecentPop"

#: The share of interactions before the cut, unless it is given.
CUT = 0.9

#: The parts of a log, as the columns user_since and item_since name them.
PARTS = ("training", "validation", "test")


def read_split(split: str, cut: Any) -> float | None:
    """The share of interactions before the cut of a comparison; None for leave-one-out.

    Args:
        split: one of :data:`LEAVE_ONE_OUT` and :data:`TIME`. cut: that share, None for :data:`CUT`.

    Raises:
        ConfigError, ComparisonError: another split, a cut outside (0, 1), or one without a split in
            time.
    """
    one_of("split", split, (LEAVE_ONE_OUT, TIME))
    if split == TIME:
        return SPLITS["cut"]("cut", CUT if cut is None else cut)
    if cut is not None:
        raise ComparisonError("cut: belongs to a split in time; add --split=time, or remove it")
    return None


def targets_after(cut: TimeCut, n_items: int) -> pd.DataFrame:
    """Who is tested on what: every interaction after the cut that has a history.

    Args:
        cut: of a dataset. n_items: its number of internal item ids.

    Returns:
        One row per event, sorted by user and time, by internal ids: user, item, event (0, 1, ...
        of each user), history_length (items before it), item_count (how often the item occurs in
        training), repeat (whether the history has it), and user_since and item_since, the part in
        which each occurs first, of :data:`PARTS`.
    """
    part, first, place = cut.part, cut.is_first, np.arange(len(cut.users))
    start = np.maximum.accumulate(np.where(first, place, 0))
    tested = (part == TEST) & ~first
    at = np.flatnonzero(tested)
    events = np.cumsum(tested) - 1
    event = events[at] - np.searchsorted(cut.users[at], cut.users[at])
    # An item is repeated where an earlier interaction of the same user and item comes before it.
    pairs = np.lexsort((place, cut.items, cut.users))
    same = (np.diff(cut.users[pairs]) == 0) & (np.diff(cut.items[pairs]) == 0)
    repeat = np.zeros(len(place), dtype=bool)
    repeat[pairs[1:][same]] = True
    user_since = np.full(cut.users.max(initial=0) + 1, TEST)
    item_since = np.full(n_items, TEST)
    np.minimum.at(user_since, cut.users, part)
    np.minimum.at(item_since, cut.items, part)
    names = np.array(PARTS)
    return pd.DataFrame(
        {
            "user": cut.users[at],
            "item": cut.items[at],
            "event": event,
            "history_length": (place - start)[at],
            "item_count": np.bincount(cut.items[part == TRAIN], minlength=n_items)[cut.items[at]],
            "repeat": repeat[at],
            "user_since": names[user_since[cut.users[at]]],
            "item_since": names[item_since[cut.items[at]]],
        }
    )


def groups(table: pd.DataFrame) -> dict[str, np.ndarray]:
    """The rows of each group of events of a table of ranks, (events,) bool by name; those that
    have none are left out."""
    user, item = table["user_since"].to_numpy(), table["item_since"].to_numpy()
    found = {
        "known": (user == "training") & (item == "training"),
        "new users": user == "test",
        "new items": item == "test",
        "first seen in validation": (user == "validation") | (item == "validation"),
    }
    return {name: rows for name, rows in found.items() if rows.any()}


def cut_of(settings: Mapping[str, Any]) -> float | None:
    """The share before the cut of a run's settings; None for leave-one-out."""
    return settings["eval_args"]["split"].get("cut")
