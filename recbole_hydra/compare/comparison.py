"""A comparison as its folder holds it: results, ranks, tables, report."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from recbole_hydra.compare import agreement, statistics
from recbole_hydra.compare.plan import FOLDER
from recbole_hydra.compare.ranks import RANKINGS, mean_metric
from recbole_hydra.compare.worker import RANKS, RESULT
from recbole_hydra.errors import ComparisonError
from recbole_hydra.output_folder import read_json


class Comparison:
    """The runs of a comparison, finished or not.

    Args:
        folder: its output folder.

    Attributes:
        identity: models, datasets, seeds, training_mode, settings (by dataset and model),
            fingerprints (by dataset).
        runs: one dict per planned run, in order: dataset, model, seed, status ("ok", "failed" with
            an error, or "not run"), and of a finished one what :mod:`.worker` measured.

    Raises:
        ComparisonError: the folder holds no comparison, or the ranks of a finished run are gone.
    """

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        self.folder = Path(folder).expanduser()
        self.identity = FOLDER.read(self.folder)
        self.runs: list[dict[str, Any]] = []
        self._ranks: dict[tuple[str, str, int], pd.DataFrame] = {}
        for dataset in self.identity["datasets"]:
            for model in self.identity["models"]:
                for seed in self.identity["seeds"]:
                    path = self.folder / "runs" / dataset / model / f"seed-{seed}"
                    run = {"dataset": dataset, "model": model, "seed": seed, "status": "not run"}
                    run.update(read_json(path / RESULT) or {})
                    self.runs.append(run)
                    if run["status"] == "ok":
                        self._ranks[dataset, model, seed] = _read_ranks(path / RANKS)

    @property
    def datasets(self) -> list[str]:
        return self.identity["datasets"]

    def finished(self, dataset: str) -> list[dict[str, Any]]:
        """The finished runs of a dataset."""
        return [r for r in self.runs if r["dataset"] == dataset and r["status"] == "ok"]

    def ranks(self, dataset: str) -> Mapping[tuple[str, int], pd.DataFrame]:
        """The per-user ranks of a dataset's finished runs, by (model, seed); the columns are those
        of :func:`.ranks.rank_targets`."""
        return {(m, s): table for (d, m, s), table in self._ranks.items() if d == dataset}

    def metrics(self, dataset: str) -> list[str]:
        """The names of the metrics, the one that chose the epochs first."""
        runs = self.finished(dataset)
        if not runs:
            return []
        first = runs[0]["valid_metric"]
        return [first, *(name for name in runs[0]["metrics"] if name != first)]

    def summary(self, dataset: str) -> pd.DataFrame:
        """Mean, standard deviation, gain and p-value by model, ranking and metric; see
        :func:`.statistics.summary`. Empty where no run is finished."""
        runs = self.finished(dataset)
        return (
            statistics.summary(runs, self.ranks(dataset), self.metrics(dataset))
            if runs
            else pd.DataFrame()
        )

    def unfair(self, dataset: str) -> list[str]:
        """Why the runs of a dataset may not stand in one table, if so; see
        :func:`.statistics.unfair`."""
        expected = self.identity["fingerprints"][dataset]
        return statistics.unfair(self.finished(dataset), self.ranks(dataset), expected)

    def to_pandas(self) -> pd.DataFrame:
        """One row per planned run.

        Columns: dataset, model, seed, status, error, training_mode; every test metric, once as
        named and once with ``, masked``; ``valid `` metrics; repeats (share of targets
        that the history holds); item_table_parameters, other_parameters; item_memory_entries and
        item_memory_seconds, that fitting it took, of those with a memory; epochs, best_epoch (from
        0); seconds_per_epoch (training, median), seconds_to_best and seconds (training and
        validation), test_seconds_per_user; peak_memory and gpu_peak_memory in bytes; machine,
        version.
        """
        rows = []
        for run in self.runs:
            row = {key: run.get(key) for key in ("dataset", "model", "seed", "status", "error")}
            if run["status"] == "ok":
                table = self._ranks[run["dataset"], run["model"], run["seed"]]
                row["training_mode"] = run["training_mode"]
                for name in self.metrics(run["dataset"]):
                    for ranking, words in RANKINGS.items():
                        row[f"{name}{words}"] = mean_metric(name, table, ranking)
                row.update({f"valid {k}": v for k, v in run["valid_result"].items()})
                row["repeats"] = run["repeats"]
                row["item_table_parameters"] = run["parameters"]["item_table"]
                row["other_parameters"] = run["parameters"]["other"]
                memory = run.get("item_memory") or {}
                row["item_memory_entries"] = memory.get("entries")
                row["item_memory_seconds"] = memory.get("seconds")
                for key in (
                    "epochs", "best_epoch", "seconds_per_epoch", "seconds_to_best", "seconds",
                    "test_seconds_per_user", "peak_memory", "gpu_peak_memory", "machine", "version",
                ):  # fmt: skip
                    row[key] = run[key]
            rows.append(row)
        return pd.DataFrame(rows)

    def agreement(self, other: "Comparison", dataset: str) -> pd.DataFrame:
        """How far another comparison, of another split, puts the models into the same order; see
        :func:`.agreement.agreement`."""
        return agreement.agreement(self, other, dataset)

    def write(self, latex: bool = False, other: "Comparison | None" = None) -> None:
        """Write ``results.csv``, ``report.md``, ``report.html``, the plots and, with ``latex``,
        ``table.tex`` into the folder.

        Args:
            other: a comparison of another split, whose order of the models the report shall say the
                agreement with.
        """
        from recbole_hydra.compare.report import write_report

        write_report(self, latex, other)

    def __repr__(self) -> str:
        counts = pd.Series([run["status"] for run in self.runs]).value_counts()
        states = ", ".join(f"{number} {status}" for status, number in counts.items())
        return f"Comparison({str(self.folder)!r}: {states})"


def _read_ranks(path: Path) -> pd.DataFrame:
    try:
        return pd.read_parquet(path)
    except (OSError, ValueError) as error:
        raise ComparisonError(
            f"{path}: cannot be read ({error}); delete result.json beside it and resume"
        ) from error
