"""What the report of a comparison that is cut in time says beside the others."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from recbole_hydra.compare.in_time import RECENT, groups
from recbole_hydra.compare.ranks import RANKINGS, display, is_per_user, user_values

if TYPE_CHECKING:
    from recbole_hydra.compare.comparison import Comparison

NOTE = """\
Every event after the cut is a target in its turn, given all that its user did before it, and \
means, and the costs of evaluation, are over events. In the tests the events of a user are one \
cluster."""

GROUP_NOTE = """\
{metric} by what training knows. Known: both the user and the item are in training. New users and \
new items have their first interaction after the cut, those first seen in validation before it but \
after training; an event may be in several of these."""


def words(facts: Mapping[str, Any], settings: Mapping[str, Mapping[str, Any]]) -> str:
    """The cut of a dataset in sentences.

    Args:
        facts: its fingerprint. settings: of every model on it.
    """
    cut = facts["cut"]
    text = (
        f"Cut in time at {cut['share']:g} of the interactions: trained on the {cut['trained']:,} "
        f"before {cut['valid_from']}, validated on {cut['validated']:,} events from then on, "
        f"tested on the {cut['tested']:,} events of {facts['test_users']:,} users from "
        f"{cut['test_from']} on; what happened at a moment itself comes after it. "
    )
    if cut["first_after_cut"]:
        text += (
            f"The first events of {cut['first_after_cut']:,} new users have no history and are not "
            "tested. "
        )
    if RECENT in settings:
        days = settings[RECENT]["recent_days"]
        text += f"{RECENT} counts the last {days:g} day{'s' * (days != 1)} before the cut. "
    return text


def group_table(comparison: Comparison, dataset: str) -> pd.DataFrame:
    """The chosen metric of every model by group of :func:`groups`, in both rankings, as text."""
    name = comparison.metrics(dataset)[0]
    rows = []
    for model in comparison.identity["models"]:
        tables = [t for (m, _), t in comparison.ranks(dataset).items() if m == model]
        if not tables or not is_per_user(name):
            continue
        row = {"model": model}
        for group, inside in groups(tables[0]).items():
            for ranking, masked in RANKINGS.items():
                means = [user_values(name, t, ranking)[inside].mean() for t in tables]
                title = f"{group} ({inside.sum():,}), {display(name)}{masked}"
                row[title] = f"{np.mean(means):.4f}"
        rows.append(row)
    return pd.DataFrame(rows)


def group_blocks(comparison: Comparison, dataset: str) -> list[tuple[Any, ...]]:
    """The blocks of :func:`group_table`; none where the chosen metric is not of each event."""
    table = group_table(comparison, dataset)
    if table.empty:
        return []
    metric = display(comparison.metrics(dataset)[0])
    return [("table", table), ("text", GROUP_NOTE.format(metric=metric))]
