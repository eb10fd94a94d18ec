"""The pictures of a comparison, PNG files in its folder."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter, StrMethodFormatter

from recbole_hydra.compare.ranks import by_target, display, is_per_user, mean_metric, user_values
from recbole_hydra.compare.statistics import by_group

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from recbole_hydra.compare.comparison import Comparison


def draw(comparison: Comparison, dataset: str) -> list[tuple[str, str]]:
    """Draw the pictures of a dataset with finished runs.

    Returns:
        ``[(file name in the comparison's folder, what it shows), ...]``.
    """
    name = comparison.metrics(dataset)[0]
    pictures = []
    label = display(name)
    for kind, function, caption in (
        ("curves", _curves, f"Validation {label} against seconds of training and "
         "validation, a line per seed, a dot at the best epoch"),
        ("cost", _cost, f"Test {label} (all items) against what it takes: seconds to the "
         "best epoch, and parameters; bars are standard deviations over seeds"),
        ("groups", _groups, f"Test {label} (all items) by length of the history and by how "
         "often the target occurs in training; bars are standard errors over targets"),
    ):  # fmt: skip
        if function is _groups and not is_per_user(name):
            continue
        figure = Figure(figsize=(9, 3.6), layout="constrained")
        FigureCanvasAgg(figure)  # no window, and nothing of a notebook's own pictures is touched
        function(figure, comparison, dataset, name, label)
        file = f"{dataset}-{kind}.png"
        figure.savefig(comparison.folder / file, dpi=120)
        pictures.append((file, caption))
    return pictures


def _models(
    comparison: Comparison, dataset: str
) -> Iterator[tuple[str, list[dict[str, Any]], str]]:
    """(model, its finished runs, colour), in the order of the comparison."""
    for number, model in enumerate(comparison.identity["models"]):
        runs = [run for run in comparison.finished(dataset) if run["model"] == model]
        if runs:
            yield model, runs, f"C{number % 10}"


def _is_one_step(runs: Iterable[Mapping[str, Any]]) -> bool:
    """Whether a model, such as Pop, has no curve and no cost: a line marks its level."""
    return all(run["epochs"] == 1 for run in runs)


def _level(axis: Axes, score: float, model: str, colour: str) -> None:
    axis.axhline(score, color=colour, linestyle=":", label=model)


def _legend(figure: Figure, axis: Axes) -> None:
    figure.legend(*axis.get_legend_handles_labels(), loc="outside right upper")


def _log_seconds(axis: Axes) -> None:
    """Ticks at 1, 2, 5, 10, ..., written out; more of them where that would leave one or none."""
    axis.set_xscale("log")
    low, high = axis.get_xlim()
    steps = (1, 2, 5) if high > 5 * low else (1, 1.5, 2, 3, 4, 5, 7)
    axis.xaxis.set_major_locator(LogLocator(subs=steps))
    axis.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axis.xaxis.set_minor_formatter(NullFormatter())


def _curves(figure: Figure, comparison: Comparison, dataset: str, name: str, label: str) -> None:
    axis = figure.subplots()
    for model, runs, colour in _models(comparison, dataset):
        if _is_one_step(runs):
            scores = [run["valid_result"].get(name) for run in runs]
            if None not in scores:  # with eval_step above 1 RecBole does not validate it
                _level(axis, np.mean(scores), model, colour)
            continue
        for number, run in enumerate(runs):
            points = {
                e["epoch"]: (seconds, e["valid_result"][name])
                for e, seconds in zip(run["history"], _spent(run["history"]), strict=True)
                if "valid_result" in e
            }
            own = None if number else model
            axis.plot(*zip(*points.values(), strict=True), color=colour, linewidth=1.2, label=own)
            axis.plot(*points[run["best_epoch"]], "o", color=colour, markersize=5)
    axis.set(xlabel="seconds of training and validation", ylabel=f"validation {label}")
    _log_seconds(axis)
    axis.grid(alpha=0.3)
    _legend(figure, axis)


def _spent(history: Sequence[Mapping[str, Any]]) -> np.ndarray:
    """Seconds up to the end of every epoch, those without an evaluation included."""
    return np.cumsum([e["train_seconds"] + e.get("valid_seconds", 0.0) for e in history])


def _cost(figure: Figure, comparison: Comparison, dataset: str, name: str, label: str) -> None:
    axes = figure.subplots(1, 2, sharey=True)
    for model, runs, colour in _models(comparison, dataset):
        tables = [comparison.ranks(dataset)[model, run["seed"]] for run in runs]
        scores = [mean_metric(name, table) for table in tables]
        spread = np.std(scores, ddof=1) if len(scores) > 1 else None
        costs = [
            np.mean([run["seconds_to_best"] for run in runs]),
            np.mean([run["parameters"]["total"] for run in runs]),
        ]
        for axis, cost in zip(axes, costs, strict=True):
            if _is_one_step(runs):
                _level(axis, float(np.mean(scores)), model, colour)
            else:
                place = {"fmt": "o", "color": colour, "label": model}
                axis.errorbar(cost, np.mean(scores), yerr=spread, **place)
    axes[0].set(xlabel="seconds to the best epoch", ylabel=f"test {label}")
    axes[1].set(xlabel="parameters, item table included")
    _log_seconds(axes[0])
    axes[1].xaxis.set_major_locator(MaxNLocator(4))
    axes[1].xaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
    for axis in axes:
        axis.grid(alpha=0.3)
    _legend(figure, axes[0])


def _groups(figure: Figure, comparison: Comparison, dataset: str, name: str, label: str) -> None:
    axes = figure.subplots(1, 2, sharey=True)
    columns = {
        "history_length": "items in the history",
        "item_count": "occurrences of the target in training",
    }
    for axis, (column, words) in zip(axes, columns.items(), strict=True):
        models = list(_models(comparison, dataset))
        for number, (model, runs, colour) in enumerate(models):
            tables = [comparison.ranks(dataset)[model, run["seed"]] for run in runs]
            tables = [by_target(table) for table in tables]
            values = np.mean([user_values(name, table) for table in tables], axis=0)
            groups = by_group(tables[0], column)
            means = [values[groups == group].mean() for group in groups.cat.categories]
            errors = [
                values[groups == group].std() / np.sqrt((groups == group).sum())
                for group in groups.cat.categories
            ]
            shift = 0.12 * (number - (len(models) - 1) / 2)
            places = np.arange(len(means)) + shift
            axis.errorbar(places, means, yerr=errors, fmt="o", color=colour, label=model)
        axis.set_xticks(range(len(means)), list(groups.cat.categories))
        axis.set(xlabel=words)
        axis.grid(alpha=0.3, axis="y")
    axes[0].set(ylabel=f"test {label}")
    _legend(figure, axes[0])
