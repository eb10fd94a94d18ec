"""A sweep as its folder holds it: trials, the best configuration, files for the user."""

import os
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd
import yaml

from recbole_hydra.errors import TuneError
from recbole_hydra.output_folder import read_json, write_json
from recbole_hydra.tune.plan import FOLDER, read_trials, trial_folder
from recbole_hydra.tune.trial import best_entry

#: The user's settings for all trials, and what came out.
SETTINGS, RESULT = "settings.json", "result.json"

#: What a sweep leaves for its user.
BEST, TRIALS, PICTURE = "best.yaml", "trials.csv", "sweep.png"


class Sweep:
    """The trials of a sweep, over or not.

    Args:
        folder: its output folder.

    Attributes:
        identity: model, dataset, space, search, scheduler (the settings of ASHA, or None),
            valid_metric, mode ("max" or "min") and settings.
        trials: one dict per trial: number, params, status ("finished": trained to its end;
            "stopped": by the scheduler; "failed", with an error; "interrupted"), history (one dict
            per evaluation: epoch from 1, seconds, train_loss, score, metrics), node, gpus.
        best: the trial with the best validation score, with ``best_epoch``, ``best_score`` and
            ``valid_result``; None before any evaluation.
        test_result: test metrics of its best epoch; None before the sweep is over.

    Raises:
        TuneError: the folder holds no sweep.
    """

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        self.folder = Path(folder)
        self.identity = FOLDER.read(folder)
        self.trials = read_trials(folder)
        for trial in self.trials:
            if trial["history"]:
                best = best_entry(trial["history"], self.larger)
                trial["best_epoch"], trial["best_score"] = best["epoch"], best["score"]
                trial["valid_result"] = best["metrics"]
        scored = [trial for trial in self.trials if "best_score" in trial]
        sign = 1 if self.larger else -1
        self.best = max(scored, key=lambda t: (sign * t["best_score"], -t["number"]), default=None)
        result = read_json(self.folder / RESULT) or {}
        current = self.best is not None and result.get("trial") == self.best["number"]
        self.test_result: dict[str, float] | None = result["test_result"] if current else None

    @property
    def larger(self) -> bool:
        """Whether a larger score is better."""
        return self.identity["mode"] == "max"

    @property
    def metric(self) -> str:
        """The validation metric that chooses."""
        return self.identity["valid_metric"]

    @property
    def command(self) -> str:
        """The command that trains the best configuration."""
        model, dataset = self.identity["model"], self.identity["dataset"]
        files = shlex.quote(f"--config_files={self.folder / BEST}")
        return f"recbole-hydra --model={model} --dataset={dataset} {files}"

    def is_over(self, number: int) -> bool:
        """Whether all of ``number`` trials are over."""
        states = [trial["status"] for trial in self.trials]
        return len(states) >= number and "interrupted" not in states

    def best_settings(self) -> dict[str, Any]:
        """The user's settings with those of the best trial, as ``best.yaml`` holds them.

        Raises:
            TuneError: no trial has a score.
        """
        if self.best is None:
            raise TuneError(f"{self.folder}: no trial has a score")
        return {**(read_json(self.folder / SETTINGS) or {}), **self.best["params"]}

    def add_test_result(self, test_result: Mapping[str, float]) -> None:
        """Write down the test metrics of the best trial."""
        assert self.best is not None
        self.test_result = {name: float(value) for name, value in test_result.items()}
        result = {
            "trial": self.best["number"],
            "epoch": self.best["best_epoch"],
            "params": self.best["params"],
            "valid_result": self.best["valid_result"],
            "test_result": self.test_result,
        }
        write_json(self.folder / RESULT, result)

    def to_pandas(self) -> pd.DataFrame:
        """One row per trial, the best first.

        Columns: trial, status, a column per hyperparameter, best_epoch (from 1), the validation
        metrics of the best epoch (``valid ndcg@10``), epochs, seconds (of training and validation),
        error, node.
        """
        rows = []
        sign = -1 if self.larger else 1
        worst = float("inf")
        for trial in sorted(self.trials, key=lambda t: sign * t.get("best_score", sign * worst)):
            history = trial["history"]
            rows.append(
                {
                    "trial": trial["number"],
                    "status": trial["status"],
                    **trial["params"],
                    "best_epoch": trial.get("best_epoch"),
                    **{f"valid {k}": v for k, v in trial.get("valid_result", {}).items()},
                    "epochs": history[-1]["epoch"] if history else 0,
                    "seconds": round(history[-1]["seconds"], 1) if history else 0.0,
                    "error": trial.get("error"),
                    "node": trial.get("node"),
                }
            )
        frame = pd.DataFrame(rows)
        if rows:
            frame["best_epoch"] = frame["best_epoch"].astype("Int64")
        return frame

    def write(self) -> None:
        """Write ``trials.csv`` and, once there is a score, ``best.yaml`` and ``sweep.png``."""
        from recbole_hydra.tune.plots import draw

        self.to_pandas().to_csv(self.folder / TRIALS, index=False)
        if self.best is None:
            return
        score, epoch = self.best["best_score"], self.best["best_epoch"]
        head = (
            f"# Trial {self.best['number']} of a sweep of {self.identity['model']} on "
            f"{self.identity['dataset']}: validation {self.metric} {score:.4f} in epoch {epoch}.\n"
        )
        text = yaml.safe_dump(self.best_settings(), sort_keys=False, allow_unicode=True)
        (self.folder / BEST).write_text(head + text, encoding="utf-8")
        draw(self, self.folder / PICTURE)

    def checkpoint(self, number: int) -> Path | None:
        """The best epoch of a trial; None where the model cannot be saved."""
        files = sorted(trial_folder(self.folder, number).glob("checkpoints/*.best.pth"))
        return files[-1] if files else None

    def __repr__(self) -> str:
        counts = pd.Series([trial["status"] for trial in self.trials], dtype=object).value_counts()
        states = ", ".join(f"{number} {status}" for status, number in counts.items())
        return f"Sweep({str(self.folder)!r}: {states})"
