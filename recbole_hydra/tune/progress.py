"""What the driver does while trials run: it writes down how they end, and shows a table."""

from __future__ import annotations

import os
import shutil
import sys
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, TextIO

from ray.tune import Callback
from tabulate import tabulate

from recbole_hydra.output_folder import read_json, write_json
from recbole_hydra.training.trainer import LAST
from recbole_hydra.tune.plan import OUTCOME, read_trials, trial_folder
from recbole_hydra.tune.trial import SCORE, TIME, best_entry

if TYPE_CHECKING:
    from ray.tune.experiment import Trial

#: Seconds between two lines of progress where the output is no terminal.
PERIOD = 60


class Bookkeeper(Callback):
    """Writes the outcome of trials that cannot do it themselves: those that were stopped, and those
    whose process died.

    Args:
        folder: the sweep's output folder.
        epochs: the most that a trial trains.
    """

    def __init__(self, folder: str | os.PathLike[str], epochs: int) -> None:
        self.folder, self.epochs = folder, epochs

    def on_trial_complete(
        self, iteration: int, trials: list[Trial], trial: Trial, **info: Any
    ) -> None:
        own = trial_folder(self.folder, trial.config["number"])
        if read_json(own / OUTCOME) is None:
            over = trial.last_result.get(TIME, 0) >= self.epochs
            write_json(own / OUTCOME, {"status": "finished" if over else "stopped"})
        for path in own.glob(f"checkpoints/*{LAST}"):  # nothing will go on from there
            path.unlink()

    def on_trial_error(
        self, iteration: int, trials: list[Trial], trial: Trial, **info: Any
    ) -> None:
        own = trial_folder(self.folder, trial.config["number"])
        if read_json(own / OUTCOME) is None:
            error = (
                "its process ended, and those after it (killed for lack of memory, or their nodes "
                "were lost)"
            )
            write_json(own / OUTCOME, {"status": "failed", "error": error})


class LiveTable(Callback):
    """A table of the trials: on a terminal redrawn in place, elsewhere a line when a trial ends,
    and one every minute.

    Args:
        folder: the sweep's output folder.
        total: how many trials there will be.
        metric: the name of the validation metric.
        larger: whether a larger score is better.
        stream: where it is shown; stderr by default.
    """

    def __init__(
        self,
        folder: str | os.PathLike[str],
        total: int,
        metric: str,
        larger: bool,
        stream: TextIO | None = None,
    ) -> None:
        self.folder, self.total, self.metric, self.larger = folder, total, metric, larger
        self._stream = stream
        self.rows: dict[int, dict[str, Any]] = {}
        for trial in read_trials(folder):
            if trial["status"] != "interrupted":
                self.rows[trial["number"]] = _row(trial, self.larger)
        self.started, self.shown, self.last = time.monotonic(), 0, time.monotonic()

    @property
    def _out(self) -> TextIO:
        """The stream, looked up: Ray pickles callbacks, and not every sys.stderr can be."""
        return sys.stderr if self._stream is None else self._stream

    def on_trial_start(
        self, iteration: int, trials: list[Trial], trial: Trial, **info: Any
    ) -> None:
        row = {"params": trial.config["params"], "status": "running"}
        self.rows[trial.config["number"]] = row
        self._show()

    def on_trial_result(
        self,
        iteration: int,
        trials: list[Trial],
        trial: Trial,
        result: dict[str, Any],
        **info: Any,
    ) -> None:
        row = self.rows[trial.config["number"]]
        row.update(epoch=result[TIME], score=result["score"], best=result[SCORE])
        row["seconds"] = result["seconds"]
        self._show()

    def on_trial_complete(
        self, iteration: int, trials: list[Trial], trial: Trial, **info: Any
    ) -> None:
        self._end(trial.config["number"])

    def on_trial_error(
        self, iteration: int, trials: list[Trial], trial: Trial, **info: Any
    ) -> None:
        self._end(trial.config["number"])

    def on_experiment_end(self, trials: list[Trial], **info: Any) -> None:
        self._show(force=True)

    def _end(self, number: int) -> None:
        outcome = read_json(trial_folder(self.folder, number) / OUTCOME) or {}
        self.rows[number].update(outcome)
        if not self._out.isatty():
            row = self.rows[number]
            best = f", best {row['best']:.4f}" if "best" in row else ""
            error = f": {row['error']}" if "error" in row else ""
            epochs = f" after epoch {row['epoch']}" if "epoch" in row else ""
            self._print(f"trial {number} {row['status']}{epochs}{best}{error}; {self._summary()}")
        self._show()

    def _summary(self) -> str:
        states = [row["status"] for row in self.rows.values()]
        counts = [
            f"{states.count(state)} {state}"
            for state in ("running", "finished", "stopped", "failed")
            if state in states
        ]
        over = len(states) - states.count("running")
        scored = [(row["best"], number) for number, row in self.rows.items() if "best" in row]
        best = (max if self.larger else min)(scored, default=None)
        words = f"best {self.metric} {best[0]:.4f} in trial {best[1]}, " if best else ""
        minutes, seconds = divmod(int(time.monotonic() - self.started), 60)
        return f"{over} of {self.total} over ({', '.join(counts)}), {words}{minutes}:{seconds:02}"

    def _show(self, force: bool = False) -> None:
        now = time.monotonic()
        if not self._out.isatty():
            if force or now - self.last >= PERIOD:
                self.last = now
                self._print(self._summary())
            return
        if not force and now - self.last < 0.2:
            return
        self.last = now
        size = shutil.get_terminal_size()
        lines = [line[: size.columns - 1] for line in self._table(size.lines - 5)]
        # Back to the first line of the table that stands there, and write over it.
        back = f"\x1b[{self.shown}F" if self.shown else ""
        self._out.write(back + "".join(f"{line}\x1b[K\n" for line in lines) + "\x1b[J")
        self._out.flush()
        self.shown = len(lines)

    def _table(self, room: int) -> list[str]:
        """The summary, and the rows there is room for: those that run, then the best."""
        sign = -1 if self.larger else 1

        def place(item: tuple[int, dict[str, Any]]) -> tuple[bool, float]:
            row = item[1]
            return row["status"] != "running", sign * row.get("best", -sign * float("inf"))

        rows = [
            {
                "trial": number,
                "status": row["status"],
                "epoch": row.get("epoch"),
                self.metric: row.get("score"),
                "best": row.get("best"),
                "s": row.get("seconds"),
                **row["params"],
            }
            for number, row in sorted(self.rows.items(), key=place)[: max(room, 3)]
        ]
        table = tabulate(rows, headers="keys", floatfmt=".4g", tablefmt="simple")
        return [self._summary(), *table.splitlines()]

    def _print(self, line: str) -> None:
        print(line, file=self._out, flush=True)


def _row(trial: Mapping[str, Any], larger: bool) -> dict[str, Any]:
    row = {"params": trial["params"], "status": trial["status"]}
    if "error" in trial:
        row["error"] = trial["error"]
    if trial["history"]:
        last = trial["history"][-1]
        best = best_entry(trial["history"], larger)["score"]
        row.update(epoch=last["epoch"], score=last["score"], best=best, seconds=last["seconds"])
    return row
