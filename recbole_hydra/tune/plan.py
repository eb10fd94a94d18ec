"""What a sweep consists of, checked before the first trial trains."""

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import recbole
from recbole.utils import ModelType

from recbole_hydra import checkpoint
from recbole_hydra.checks import one_of, positive_int
from recbole_hydra.data.splits import parts_left_out
from recbole_hydra.errors import ConfigError, TuneError
from recbole_hydra.model.from_file import absolute
from recbole_hydra.output_folder import OutputFolder, read_json, write_json
from recbole_hydra.settings.config import PATH_KEYS, PROPERTIES, PROTOCOL, Config
from recbole_hydra.settings.known_keys import OPTIONS
from recbole_hydra.settings.spelling import home, parse_arguments
from recbole_hydra.tune.space import Space, read_space

SEARCHES = ("random", "grid", "optuna")
SCHEDULERS = ("asha", "none")

#: The files of a trial, in its folder. With ``outcome.json`` a trial is over.
PARAMS, PROGRESS, OUTCOME = "params.json", "progress.json", "outcome.json"

#: Defaults of the scheduler, in epochs and as a ratio.
GRACE_PERIOD, REDUCTION_FACTOR = 3, 3

#: Settings that a sweep sets for its trials itself.
_OWN = {
    "checkpoint_dir": "use --output_dir",
    "saved": "trials are saved",
    "gpu_id": "Ray assigns the GPUs; use --gpus_per_trial",
    "show_progress": "the table shows the trials",
}

#: Settings that trials cannot differ in, and why.
_FIXED = {
    **dict.fromkeys((*PROTOCOL, "valid_metric_bigger"), "another value is another task"),
    "model": "one sweep is of one model",
    "dataset": "one sweep is of one dataset",
    "seed": "the luckiest seed is no better configuration",
    "epochs": "trials end by early stopping and by the scheduler",
    "eval_step": "the scheduler compares trials at the same epochs",
    "use_gpu": "trials run on what Ray assigns",
}


@dataclass
class Plan:
    """A sweep.

    Attributes:
        model: name or class. dataset: its name.
        settings: the user's settings for all trials, from which with a trial's own its Config is
            made.
        space: the search space.
        base: the Config of ``settings`` alone.
        identity: what makes two sweeps the same, as json holds it.
        configurations: those to be tried, in order; empty where the searcher proposes them.
        number: how many trials there will be.
    """

    model: str | type
    dataset: str
    settings: dict
    space: Space
    base: Config
    identity: dict
    configurations: list
    number: int

    @property
    def seed(self) -> int:
        return self.base["seed"]

    @property
    def mode(self) -> str:
        """Whether a larger score is better, ``"max"``, or a smaller one, ``"min"``."""
        return "max" if self.base["valid_metric_bigger"] else "min"

    def trial_settings(self, params: Mapping[str, Any]) -> dict[str, Any]:
        """The settings of a trial, without those of its folder."""
        return {**self.settings, **params}


def make_plan(
    model: str | type | None,
    dataset: str | None,
    space: dict[str, Any] | str | os.PathLike[str] | None,
    num_samples: int | None,
    search: Literal["random", "grid", "optuna"],
    scheduler: Literal["asha", "none"],
    grace_period: int | None,
    reduction_factor: float | None,
    config_file_list: str | os.PathLike[str] | Sequence[str | os.PathLike[str]] | None,
    config_dict: Mapping[str, Any] | None,
    argv: Sequence[str],
) -> Plan:
    """Check the input of :func:`recbole_hydra.tune.tune`, and lay out its trials.

    Raises:
        TuneError, ConfigError: bad input, in one line.
    """
    one_of("search", search, SEARCHES)
    one_of("scheduler", scheduler, SCHEDULERS)
    base = Config(model, dataset, config_file_list, config_dict, argv, options=OPTIONS["tune"])
    if base["MODEL_TYPE"] == ModelType.DECISIONTREE:
        raise TuneError(
            f"model: {base.model} trains outside torch, all at once: no epoch can be reported"
        )
    swept = read_space(_find(space, base.model))
    _check_space(swept, base, {**(config_dict or {}), **parse_arguments(argv)})
    for key in base.external_config_dict:
        if key in _OWN:
            raise TuneError(f"{key}: a sweep sets it for every trial; {_OWN[key]}")
    if not all(parts_left_out(base["eval_args"])):
        raise TuneError(
            f"eval_args: split {base['eval_args']['split']}: a sweep chooses on validation and "
            "ends on the test set; leave something out for both"
        )
    if not base["eval_step"]:
        raise TuneError(
            "eval_step: 0 never evaluates, and a sweep chooses on validation; remove it"
        )
    settings = {
        key: value
        for key, value in base.external_config_dict.items()
        if key not in ("model", "dataset", "config_files", *swept.parameters)
    }
    settings["seed"] = base["seed"]
    settings.update({key: base[key] for key in PATH_KEYS if key in settings})
    if not Path(base["data_path"]).is_relative_to(Path(recbole.__file__).parent):
        # Absolute, since a trial works in its own folder. RecBole finds its ml-100k by itself.
        settings["data_path"] = os.path.dirname(os.path.abspath(base["data_path"]))

    configurations, number = _lay_out(swept, search, num_samples, base["seed"])
    early = _early_stopping(scheduler, grace_period, reduction_factor, base["epochs"])
    model = absolute(model) if isinstance(model, str) else model or base.model
    plan = Plan(model, base.dataset, settings, swept, base, {}, configurations, number)
    if configurations:
        # Values that no config takes are found now, not by every trial.
        _trial_config(plan, configurations[0])
    plain = checkpoint.plain_settings(base)
    incidental = {"state", "show_progress", "checkpoint_dir", "gpu_id", *swept.parameters}
    identity = {
        "model": base.model,
        "dataset": base.dataset,
        "space": swept.as_plain(),
        "search": search,
        "scheduler": early,
        "valid_metric": base["valid_metric"].lower(),
        "mode": plan.mode,
        "settings": {
            **{key: value for key, value in plain.items() if key not in incidental},
            "data_path": settings.get("data_path"),
        },
    }
    plan.identity = json.loads(json.dumps(identity))
    return plan


def _find(
    space: dict[str, Any] | str | os.PathLike[str] | None, model: str
) -> dict[str, Any] | str | os.PathLike[str]:
    """The file of the space: the given one, ours of that name, or ours for the model."""
    if space is None:
        path = PROPERTIES / "tune" / f"{model}.yaml"
        if not path.is_file():
            known = sorted(file.stem for file in path.parent.glob("*.yaml"))
            raise TuneError(
                f"space: not given, and there is none of ours for {model} (only for "
                f"{', '.join(known)}); pass --space=FILE"
            )
        return path
    if isinstance(space, (str, os.PathLike)) and not Path(home(space)).exists():
        parts = Path(space).parts
        ours = PROPERTIES.joinpath(*parts[1:])
        if parts[:1] == ("properties",) and ours.is_file():
            return ours  # an installed copy is run from any folder
    return space


def _check_space(space: Space, base: Config, written: Mapping[str, Any]) -> None:
    """Refuse keys that the model does not read, that a sweep cannot vary, or that are set twice."""
    for key in space.parameters:
        where = f"{space.source}: {key}"
        if key in _FIXED or key in _OWN:
            reason = _FIXED.get(key) or f"a sweep sets it for every trial; {_OWN[key]}"
            raise TuneError(f"{where}: cannot be swept: {reason}")
        problem = base.unread_key(key)
        if problem is not None:
            raise TuneError(f"{space.source}: {problem}")
        if key in written:
            raise TuneError(
                f"{where}: is also set to {written[key]!r}, on the command line or in config_dict; "
                "remove one"
            )
        for value in space.parameters[key].examples():
            try:
                base.check_value(key, value)
            except ConfigError as error:
                raise TuneError(f"{space.source}: {error}") from error


def _trial_config(plan: Plan, params: Mapping[str, Any]) -> Config:
    try:
        return Config(plan.model, plan.dataset, config_dict=plan.trial_settings(params))
    except ConfigError as error:
        raise TuneError(f"{plan.space.source}: {params}: {error}") from error


def _lay_out(
    space: Space, search: str, num_samples: int | None, seed: int
) -> tuple[list[dict[str, Any]], int]:
    """The configurations, where they can be known beforehand, and the number of trials."""
    if num_samples is not None:
        positive_int("num_samples", num_samples)
    if search == "grid":
        grid = space.grid()
        if num_samples is not None and num_samples < len(grid):
            raise TuneError(
                f"num_samples: {num_samples}, but the grid has {len(grid)} configurations; leave "
                "it out, or use --search=random"
            )
        return grid, len(grid)
    number = 20 if num_samples is None else num_samples
    if search == "optuna":
        return [], number
    drawn = space.draw(number, seed)
    return drawn, len(drawn)


def _early_stopping(
    scheduler: str, grace_period: int | None, reduction_factor: float | None, epochs: int
) -> dict[str, Any] | None:
    """The settings of ASHA, as its constructor takes them; None without it."""
    given = {"grace_period": grace_period, "reduction_factor": reduction_factor}
    if scheduler == "none":
        for name, value in given.items():
            if value is not None:
                raise TuneError(f"{name}: is for --scheduler=asha; remove it")
        return None
    grace = min(GRACE_PERIOD, epochs) if grace_period is None else grace_period
    factor = REDUCTION_FACTOR if reduction_factor is None else reduction_factor
    positive_int("grace_period", grace)
    if isinstance(factor, bool) or not isinstance(factor, (int, float)) or factor <= 1:
        raise TuneError(f"reduction_factor must be a number above 1, got {factor!r}")
    if grace > epochs:
        raise TuneError(f"grace_period: {grace} epochs, but a trial has no more than {epochs}")
    return {"max_t": epochs, "grace_period": grace, "reduction_factor": factor}


# -- trials on disk ------------------------------------------------------------------------------


def trial_folder(folder: str | os.PathLike[str], number: int) -> Path:
    """The folder of a trial of the sweep in ``folder``."""
    return Path(folder) / "trials" / f"{number:04d}"


def write_params(folder: str | os.PathLike[str], number: int, params: Mapping[str, Any]) -> None:
    """Write down that a trial exists, before it begins."""
    own = trial_folder(folder, number)
    own.mkdir(parents=True, exist_ok=True)
    write_json(own / PARAMS, params)


def read_trials(folder: str | os.PathLike[str]) -> list[dict[str, Any]]:
    """The trials of a sweep, by number.

    Returns:
        Dicts of ``number``, ``params``, what :mod:`.trial` wrote of its progress (``history``,
        ``node``, ``gpus``) and its outcome (``status``: "finished", "stopped" or "failed", with an
        ``error``); ``status`` is "interrupted" where there is no outcome.
    """
    trials = []
    for own in sorted((Path(folder) / "trials").glob("[0-9]*")):
        params = read_json(own / PARAMS)
        if params is None:
            continue
        trial = {"number": int(own.name), "params": params, "history": [], "status": "interrupted"}
        trial.update(read_json(own / PROGRESS) or {})
        trial.update(read_json(own / OUTCOME) or {})
        trials.append(trial)
    return trials


# -- the folder ----------------------------------------------------------------------------------


def _describe(identity: Mapping[str, Any]) -> str:
    return f"{identity.get('model')} on {identity.get('dataset')}"


def _difference(mine: Mapping[str, Any], other: Mapping[str, Any], keys: Sequence[str]) -> str:
    """Name what differs, down to the first setting."""
    for key in ("space", "settings"):
        if key in keys:
            theirs = other.get(key, {})
            for name in sorted({*mine[key], *theirs}):
                if mine[key].get(name) != theirs.get(name):
                    there, now = theirs.get(name), mine[key].get(name)
                    return f"{name}: {there!r} there, {now!r} now"
    return ", ".join(keys)


#: The folder of a sweep.
FOLDER = OutputFolder("sweep", "sweep.json", TuneError, _describe, _difference)
