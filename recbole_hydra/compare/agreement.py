"""How far two comparisons of different splits put the same models into the same order."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from recbole_hydra.compare.in_time import cut_of
from recbole_hydra.compare.ranks import RANKINGS, display
from recbole_hydra.errors import ComparisonError
from recbole_hydra.metrics import smaller_is_better

if TYPE_CHECKING:
    from recbole_hydra.compare.comparison import Comparison


def check_other(identity: Mapping[str, Any], other: Comparison, where: str) -> None:
    """Refuse a comparison that another cannot agree with.

    Args:
        identity: of the comparison that is planned. other: the earlier one. where: its folder.

    Raises:
        ComparisonError: it is split in the same way, has none of the datasets or other items in
            one, or fewer than two of the models.
    """
    begin = f"agreement_with {where}"
    shared = [d for d in identity["datasets"] if d in other.datasets]
    models = [m for m in identity["models"] if m in other.identity["models"]]
    if not shared:
        raise ComparisonError(
            f"{begin}: it is of {', '.join(other.datasets)}, not of "
            f"{', '.join(identity['datasets'])}; name a comparison of the same dataset"
        )
    if len(models) < 2:
        raise ComparisonError(
            f"{begin}: {len(models)} of its models {', '.join(other.identity['models'])} "
            f"{'is' if len(models) == 1 else 'are'} in this comparison; orders take two"
        )
    for dataset in shared:
        mine, theirs = (
            next(iter(each["settings"][dataset].values()))["eval_args"]["split"]
            for each in (identity, other.identity)
        )
        if mine == theirs:
            raise ComparisonError(
                f"{begin}: it splits {dataset} as this comparison does; name one of another split"
            )
        if (
            identity["fingerprints"][dataset]["items"]
            != (other.identity["fingerprints"][dataset]["items"])
        ):
            raise ComparisonError(
                f"{begin}: its {dataset} has other items; compare both on the same files, with the "
                "same filters"
            )


def agreement(one: Comparison, other: Comparison, dataset: str) -> pd.DataFrame:
    """How far two comparisons put the models they share into the same order.

    Args:
        one, other: comparisons of different splits. dataset: one that both have.

    Returns:
        One row per ranking and metric that both have: ranking, metric, models (how many finished in
        both), tau (Kendall's tau-b of the two orders by mean over seeds: 1 the same, -1 the
        reverse; NaN for fewer than two models, or where one order is all ties), and swapped, the
        pairs of models that one puts the other way round, ``[(better in one, better in other)]``.
    """
    from scipy.stats import kendalltau

    columns = ["ranking", "metric", "models", "tau", "swapped"]
    tables = [each.summary(dataset) for each in (one, other)]
    if any(table.empty for table in tables):
        return pd.DataFrame(columns=columns)
    one_by, other_by = (
        {key: part.set_index("model")["mean"] for key, part in table.groupby(["ranking", "metric"])}
        for table in tables
    )
    rows = []
    for ranking, metric in tables[0][["ranking", "metric"]].drop_duplicates().itertuples(False):
        if (ranking, metric) not in other_by:
            continue
        first, second = one_by[ranking, metric], other_by[ranking, metric]
        models = [model for model in first.index if model in second.index]
        sign = -1 if smaller_is_better(metric) else 1
        first, second = sign * first[models], sign * second[models]
        tau = float(kendalltau(first, second).statistic) if len(models) > 1 else np.nan
        rows.append((ranking, metric, len(models), tau, _swapped(models, first, second)))
    return pd.DataFrame(rows, columns=columns)


def _swapped(models: Sequence[str], one: pd.Series, other: pd.Series) -> list[tuple[str, str]]:
    return [(a, b) for a in models for b in models if one[a] > one[b] and other[a] < other[b]]


def agreement_words(one: Comparison, other: Comparison, dataset: str) -> list[str]:
    """The agreement on a dataset in sentences, a line per ranking, by the metric that chose the
    epochs."""
    table = agreement(one, other, dataset)
    names = one.metrics(dataset)[:1]
    lines = []
    for row in table[table["metric"].isin(names)].itertuples():
        title = f"{display(row.metric)}{RANKINGS[row.ranking]}"
        if np.isnan(row.tau):
            lines.append(f"{title}: no order of {row.models} models to agree on")
            continue
        swapped = ", ".join(f"{a} above {b}" for a, b in row.swapped)
        more = f"; only here: {swapped}" if swapped else ""
        lines.append(f"{title}: Kendall's tau {row.tau:.2f} over {row.models} models{more}")
    return lines or ["nothing to compare: no model is finished in both by the same metric"]


def split_words(comparison: Comparison, dataset: str) -> str:
    """The split of a comparison in a few words."""
    settings = next(iter(comparison.identity["settings"][dataset].values()))
    share = cut_of(settings)
    return "leave-one-out" if share is None else f"a cut in time at {share:g}"
