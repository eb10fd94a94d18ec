"""What a table says: means, spread, gains, significance, and whether its runs may be compared."""

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from recbole_hydra.compare.ranks import (
    RANKINGS,
    by_target,
    is_per_user,
    mean_metric,
    user_values,
)
from recbole_hydra.metrics import OF_ALL_LISTS, OF_EACH_LIST, smaller_is_better
from recbole_hydra.model import MODELS

#: Corrected p-values below which a difference is marked, and the marks.
LEVELS = ((0.01, "**"), (0.05, "*"))

#: How far a metric from our ranks may lie from RecBole's own, which it rounds, once for a mean over
#: domains and once before: in units of the last digit.
ROUNDING = 1.01


def per_user(
    results: Iterable[Mapping[str, Any]],
    ranks: Mapping[tuple[str, int], pd.DataFrame],
    metrics: Sequence[str],
) -> dict[tuple[str, str, str], pd.Series]:
    """Per-user metrics of every model, the mean over its seeds.

    Args:
        results: the finished runs of one dataset.
        ranks: ``{(model, seed): table of rank_targets}``.
        metrics: names, ``["ndcg@10", ...]``.

    Returns:
        ``{(model, ranking, metric): Series by raw user id}``, of the metrics that are per user; by
        user and event where a user has several.
    """
    runs = defaultdict(list)
    for result in results:
        runs[result["model"]].append(by_target(ranks[result["model"], result["seed"]]))
    values = {}
    for model, tables in runs.items():
        for ranking in RANKINGS:
            for name in filter(is_per_user, metrics):
                columns = [pd.Series(user_values(name, t, ranking), t.index) for t in tables]
                values[model, ranking, name] = pd.concat(columns, axis=1).mean(axis=1)
    return values


def summary(
    results: Sequence[Mapping[str, Any]],
    ranks: Mapping[tuple[str, int], pd.DataFrame],
    metrics: Sequence[str],
) -> pd.DataFrame:
    """Mean, spread, gain and significance of every model, ranking and metric on one dataset.

    The baselines are the models that are not of this package. ``gain`` is relative to the best of
    them, by that metric in that ranking; ``p`` is a paired t-test of the users' values (each the
    mean over seeds) against the same model, with several domains of the mean over domains,
    corrected over all of the dataset's tests by Benjamini and Hochberg
    (``scipy.stats.false_discovery_control``).

    Returns:
        One row per model, ranking and metric: mean, std (over seeds, n - 1; NaN for one), runs,
        baseline, gain, p (NaN for the baseline itself, and for metrics that are not per user).
    """
    from scipy.stats import false_discovery_control

    users = per_user(results, ranks, metrics)
    domains = next(iter(ranks.values())).set_index("user").get("domain") if ranks else None
    by_run = defaultdict(list)
    for result in results:
        table = ranks[result["model"], result["seed"]]
        for ranking in RANKINGS:
            for name in metrics:
                by_run[result["model"], ranking, name].append(mean_metric(name, table, ranking))
    rows = []
    for (model, ranking, name), values in by_run.items():
        baselines = {
            other: float(np.mean(numbers))
            for (other, r, m), numbers in by_run.items()
            if (r, m) == (ranking, name) and other not in MODELS
        }
        better: Callable[..., Any] = min if smaller_is_better(name) else max
        baseline = better(baselines, key=baselines.get) if baselines else None
        mean = float(np.mean(values))
        best = baselines.get(baseline)
        rows.append(
            {
                "model": model,
                "ranking": ranking,
                "metric": name,
                "mean": mean,
                "std": float(np.std(values, ddof=1)) if len(values) > 1 else np.nan,
                "runs": len(values),
                "baseline": baseline,
                "gain": mean / best - 1 if best and model != baseline else np.nan,
                "p": np.nan
                if baseline in (None, model) or not is_per_user(name)
                else paired_p(users[model, ranking, name], users[baseline, ranking, name], domains),
            }
        )
    table = pd.DataFrame(rows)
    tested = table["p"].notna()
    if tested.any():
        table.loc[tested, "p"] = false_discovery_control(table.loc[tested, "p"])
    return table


def paired_p(first: pd.Series, second: pd.Series, domains: pd.Series | None = None) -> float:
    """Two-sided p-value of a paired t-test of two Series with one value per user.

    Users are paired by id. Without any difference it is 1; with one and the same difference for
    every user it is 0. Series by user and event are paired by both, and the events of a user are a
    cluster: the t-test is of the mean over events, with n - 1 degrees of freedom for n users.

    Args:
        domains: the domain of every user, a Series. What is tested is then the mean over domains,
            whose variance is that of a stratified mean, with Satterthwaite's degrees of freedom.
    """
    from scipy.stats import t as student
    from scipy.stats import ttest_1samp

    first, second = first.align(second, join="inner")
    difference = (first - second).dropna()
    if len(difference) == 0 or np.ptp(difference) == 0:
        return 1.0 if len(difference) == 0 or difference.iloc[0] == 0 else 0.0
    if difference.index.nlevels > 1:
        mean, n = float(difference.mean()), len(difference)
        of_user = (difference - mean).groupby(level=0).sum()
        if len(of_user) < 2 or not of_user.any():
            return 1.0  # nothing is known of how users differ
        error = np.sqrt(len(of_user) / (len(of_user) - 1) * (of_user**2).sum()) / n
        return float(2 * student.sf(abs(mean) / error, len(of_user) - 1))
    if domains is None:
        return float(ttest_1samp(difference, 0.0).pvalue)
    strata = difference.groupby(domains.reindex(difference.index))
    variance = strata.var() / strata.size()  # of each domain's mean; the number of them cancels
    if not (variance.notna().all() and variance.sum() > 0):
        return 1.0  # a domain of one user: nothing is known of its spread
    freedom = variance.sum() ** 2 / (variance**2 / (strata.size() - 1)).sum()
    return float(2 * student.sf(abs(strata.mean().sum()) / np.sqrt(variance.sum()), freedom))


def mark(p: float) -> str:
    """The marks of a p-value: ``**``, ``*`` or nothing."""
    return next((text for level, text in LEVELS if p < level), "")


def unfair(
    results: Sequence[Mapping[str, Any]],
    ranks: Mapping[tuple[str, int], pd.DataFrame],
    expected: Mapping[str, Any] | None = None,
) -> list[str]:
    """Say, one line each, why the finished runs of one dataset may not stand in one table.

    Args:
        results, ranks: as in :func:`per_user`.
        expected: the dataset's fingerprint when the comparison began.
    """
    found = []
    words = {
        "test_users": "number of test users",
        "test_targets": "split (who is tested on what)",
        "items": "item set",
        "candidates": "number of candidates",
    }
    for key, word in words.items():
        groups = defaultdict(list)
        for result in results:
            groups[str(result["fingerprint"][key])].append(_name(result))
        if expected is not None:
            groups.setdefault(str(expected[key]), []).insert(0, "the comparison's own")
        if len(groups) > 1:
            found.append(f"the {word} differs: {_listed(groups)}")
    modes = defaultdict(list)
    for result in results:
        modes[", ".join(result["metrics"])].append(_name(result))
    if len(modes) > 1:
        found.append(f"the metrics differ: {_listed(modes)}")
    for result in results:
        table = ranks[result["model"], result["seed"]]
        for name in result["metrics"]:
            kind = name.partition("@")[0]
            if kind in OF_EACH_LIST:
                continue  # the popularity of the table is one for all models, as no run's own is
            if kind in OF_ALL_LISTS and (table.attrs.get("others", 0) or table["ties"].any()):
                continue  # RecBole's are of other lists, too
            ours, theirs = mean_metric(name, table), result["test_result"].get(name)
            # What else may differ: the places of ties, and users that only RecBole tests.
            ties = (table["ties"] > 0).mean()
            others = table.attrs.get("others", 0)
            tolerance = ROUNDING * 10.0 ** -result.get("metric_decimal_place", 4)
            tolerance += ties + others / (len(table) + others)
            if theirs is None or abs(ours - theirs) > tolerance:
                found.append(
                    f"{name} of {_name(result)} is {theirs} in RecBole and {ours:.4f} from the "
                    "saved ranks"
                )
    return found


def _name(result: Mapping[str, Any]) -> str:
    return f"{result['model']} seed {result['seed']}"


def _listed(groups: Mapping[str, Iterable[str]]) -> str:
    return "; ".join(f"{value} ({', '.join(names)})" for value, names in groups.items())


def by_group(table: pd.DataFrame, column: str, groups: int = 4) -> pd.Series:
    """Put users into groups of about equal size by ``column``; a value is in one group only.

    Returns:
        Labels such as ``"3-7"``, as an ordered categorical Series in the order of ``table``.
    """
    values = table[column]
    edges = np.unique(np.quantile(values, np.linspace(0, 1, groups + 1)[1:-1], method="lower"))
    number = np.searchsorted(edges, values, side="left")
    names = {}
    for index in np.unique(number):
        inside = values[number == index]
        low, high = int(inside.min()), int(inside.max())
        names[index] = f"{low:,}" if low == high else f"{low:,}-{high:,}"
    return pd.Series(
        pd.Categorical([names[n] for n in number], categories=list(names.values()), ordered=True),
        index=table.index,
    )
