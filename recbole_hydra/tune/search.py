"""What Ray Tune asks which configuration is next, and whether a trial goes on."""

from __future__ import annotations

import os
from collections.abc import Sequence
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from ray.tune.schedulers import ASHAScheduler, FIFOScheduler, TrialScheduler
from ray.tune.search import Searcher

from recbole_hydra.errors import TuneError
from recbole_hydra.output_folder import read_json
from recbole_hydra.tune.plan import OUTCOME, Plan, trial_folder, write_params
from recbole_hydra.tune.trial import SCORE, TIME, best_entry, reported

if TYPE_CHECKING:
    from ray.tune.search.optuna import OptunaSearch


class TrialSource(Searcher):
    """Hands out numbered trials, ``{"number": ..., "params": ...}``: those a killed sweep had
    begun, then the plan's or, with Optuna, what it proposes after the results so far.

    Args:
        plan: the sweep.
        folder: its output folder, where a trial is written down before it begins.
        trials: those of :func:`~.plan.read_trials`, of the sweep that is resumed.
        scheduler: that of :func:`make_scheduler`, which is told what a begun trial had reported.
    """

    def __init__(
        self,
        plan: Plan,
        folder: str | os.PathLike[str],
        trials: Sequence[dict[str, Any]],
        scheduler: TrialScheduler,
    ) -> None:
        super().__init__(metric=SCORE, mode=plan.mode)
        self.space, self.folder, self.scheduler = plan.space, folder, scheduler
        self.begun = [trial for trial in trials if trial["status"] == "interrupted"]
        known = {trial["number"] for trial in trials}
        self.fresh = [number for number in range(plan.number) if number not in known]
        self.configurations = plan.configurations
        self.optuna = None if plan.configurations else _optuna(plan, trials)
        self._proposed: dict[str, tuple[int, dict[str, Any], bool]]
        self._proposed = {}  # by Ray's id of a trial: its number, its params, whether by Optuna now

    def __len__(self) -> int:
        return len(self.begun) + len(self.fresh)

    def suggest(self, trial_id: str) -> dict[str, Any] | None:
        """Return the next trial; Ray's method."""
        new = not self.begun
        if not new:
            trial = self.begun.pop(0)
            number, params = trial["number"], trial["params"]
            _tell(self.scheduler, trial_id, trial["history"], self.mode)
        elif not self.fresh:
            return Searcher.FINISHED  # type: ignore[return-value]
        else:
            number = self.fresh.pop(0)
            if self.optuna is None:
                params = self.configurations[number]
            else:
                proposed = self.optuna.suggest(trial_id)
                assert proposed is not None
                params = self.space.decode(proposed)
        write_params(self.folder, number, params)
        self._proposed[trial_id] = number, params, new
        return {"number": number, "params": params}

    def on_trial_complete(
        self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False
    ) -> None:
        """Tell Optuna how a trial ended; Ray's method."""
        if self.optuna is None:
            return
        number, params, new = self._proposed[trial_id]
        outcome = read_json(trial_folder(self.folder, number) / OUTCOME) or {}
        failed = error or "error" in outcome
        if new:
            self.optuna.on_trial_complete(trial_id, None if failed else result, failed)
        elif not failed and result and SCORE in result:
            self.optuna.add_evaluated_point(self.space.encode(params), result[SCORE])

    def save(self, checkpoint_path: str) -> None:
        """Nothing: the folder of the sweep has it all. Ray's method, which moves a file."""
        open(checkpoint_path, "w").close()

    def restore(self, checkpoint_path: str) -> None:
        """Nothing; see :meth:`save`."""


def _optuna(plan: Plan, trials: Sequence[dict[str, Any]]) -> OptunaSearch:
    """Optuna's sampler through Ray, with the trials that are over as its observations."""
    try:
        import optuna
        from ray.tune.search.optuna import OptunaSearch
    except ImportError as error:
        raise TuneError("search: optuna is not installed; pip install optuna") from error
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    space = OptunaSearch.convert_search_space(plan.space.domains())
    # Another seed than before the kill: its first draws would be those of the trials that are over.
    seed = plan.seed + len(trials)
    search = OptunaSearch(space=space, metric=SCORE, mode=plan.mode, seed=seed)
    for trial in trials:
        if trial["status"] in ("finished", "stopped") and trial["history"]:
            score = best_entry(trial["history"], plan.mode == "max")["score"]
            search.add_evaluated_point(plan.space.encode(trial["params"]), score)
    return search


def make_scheduler(plan: Plan, trials: Sequence[dict[str, Any]]) -> TrialScheduler:
    """ASHA, or none, knowing what the trials of a resumed sweep that are over had reported.

    Ray restores a sweep without its scheduler's memory: trials would then be stopped, or not, by
    comparison with later ones alone.
    """
    settings = plan.identity["scheduler"]
    if settings is None:
        return FIFOScheduler()
    scheduler = ASHAScheduler(time_attr=TIME, metric=SCORE, mode=plan.mode, **settings)
    for trial in trials:
        if trial["status"] != "interrupted":  # told when it goes on, under its new name
            _tell(scheduler, f"past-{trial['number']}", trial["history"], plan.mode)
    return scheduler


def _tell(
    scheduler: TrialScheduler, trial_id: str, history: list[dict[str, Any]], mode: str
) -> None:
    """Have ``scheduler`` know what a trial had reported; what it decided then is not asked."""
    if not isinstance(scheduler, ASHAScheduler):
        return
    past: Any = SimpleNamespace(trial_id=trial_id)
    nobody: Any = None
    scheduler.on_trial_add(nobody, past)
    for number in range(1, len(history) + 1):
        scheduler.on_trial_result(nobody, past, reported(history[:number], mode == "max"))
    scheduler.on_trial_remove(nobody, past)
