"""The picture of a sweep: how its trials went, and which values were good."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib import colormaps
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from recbole_hydra.tune.sweep import Sweep

#: The quantile of the scores where the colours begin. Below it all trials are equally pale: a few
#: hopeless ones would otherwise make all others look the same.
_PALEST = 0.25


def draw(sweep: Sweep, path: str | Path) -> None:
    """Draw ``sweep`` to a PNG file.

    Left: the validation metric of every trial against the seconds it has trained and validated, a
    cross where the scheduler stopped it, a star at the best epoch of all. Right: parallel
    coordinates, a line per trial through its value of each hyperparameter, the best on top.
    """
    names = list(sweep.identity["space"])
    trials = [trial for trial in sweep.trials if "best_score" in trial]
    figure = Figure(figsize=(6 + 1.5 * len(names), 4.2), layout="constrained")
    FigureCanvasAgg(figure)
    curves, lines = figure.subplots(1, 2, width_ratios=(5, max(1.5 * len(names), 2)))
    scores = np.array([trial["best_score"] for trial in trials])
    end = "min" if sweep.larger else "max"
    low, high = (
        (np.quantile(scores, _PALEST), scores.max())
        if sweep.larger
        else (scores.min(), np.quantile(scores, 1 - _PALEST))
    )
    map_name = "viridis_r" if sweep.larger else "viridis"  # the best are dark
    shade = ScalarMappable(Normalize(low, max(high, low + 1e-12)), colormaps[map_name])
    order = np.argsort(scores if sweep.larger else -scores)  # the best are drawn last
    for index in order:
        trial, colour = trials[index], shade.to_rgba(scores[index])
        best = trial is sweep.best
        width = 2.2 if best else 1.0
        seconds = [entry["seconds"] for entry in trial["history"]]
        values = [entry["score"] for entry in trial["history"]]
        curves.plot(seconds, values, color=colour, linewidth=width)
        if trial["status"] == "stopped":
            curves.plot(seconds[-1], values[-1], "x", color=colour, markersize=5)
        if best:
            at = next(e for e in trial["history"] if e["epoch"] == trial["best_epoch"])
            curves.plot(at["seconds"], at["score"], "*", color=colour, markersize=12)
        places = [_place(sweep.identity["space"][name], trial["params"][name]) for name in names]
        lines.plot(range(len(names)), places, color=colour, linewidth=width, alpha=0.9)
    curves.set(
        xlabel="seconds of training and validation",
        ylabel=f"validation {sweep.metric}",
        title="trials (x: stopped early, star: best)",
    )
    curves.grid(alpha=0.3)
    _axes(lines, sweep.identity["space"])
    figure.colorbar(shade, ax=lines, label=f"best validation {sweep.metric}", extend=end)
    figure.savefig(path, dpi=120)


def _place(parameter: Mapping[str, list[Any]], value: Any) -> float:
    """Where a value lies on its axis, from 0 to 1."""
    ((kind, values),) = parameter.items()
    if kind == "choice":
        return values.index(value) / max(len(values) - 1, 1)
    low, high = values[:2]
    if kind == "loguniform":
        low, high, value = np.log([low, high, value])
    return float((value - low) / (high - low))


def _axes(axis: Axes, space: Mapping[str, Mapping[str, list[Any]]]) -> None:
    """One vertical axis per hyperparameter, with its values beside it."""
    for position, parameter in enumerate(space.values()):
        axis.axvline(position, color="0.6", linewidth=0.8, zorder=0)
        ((kind, values),) = parameter.items()
        marks = values if kind == "choice" else values[:2]
        for mark in marks:
            text = f"{mark:g}" if isinstance(mark, float) else str(mark)
            axis.annotate(
                text, (position, _place(parameter, mark)), (4, 0), textcoords="offset points",
                fontsize=8, va="center",
                bbox={"boxstyle": "round,pad=0.15", "fc": "white", "alpha": 0.8, "linewidth": 0},
            )  # fmt: skip
    axis.set_xticks(range(len(space)), list(space), rotation=20, ha="right")
    axis.set_yticks([])
    axis.set_xlim(-0.3, len(space) - 0.4)
    axis.set_title("values tried")
    for side in ("top", "right", "left", "bottom"):
        axis.spines[side].set_visible(False)
