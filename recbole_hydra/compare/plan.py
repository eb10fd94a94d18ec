"""What a comparison consists of: its runs, checked before the first one trains."""

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import yaml
from recbole.utils import ModelType

from recbole_hydra import checkpoint
from recbole_hydra.checks import did_you_mean, one_of
from recbole_hydra.compare.in_time import RECENT, targets_after
from recbole_hydra.compare.ranks import fingerprint, left_out_targets
from recbole_hydra.data import create_dataset, user_histories
from recbole_hydra.data.time_cut import find_cut
from recbole_hydra.errors import ComparisonError, DatasetError
from recbole_hydra.model import get_model
from recbole_hydra.model.causal import is_causal
from recbole_hydra.model.from_file import absolute, is_in_file
from recbole_hydra.output_folder import OutputFolder
from recbole_hydra.settings.config import PATH_KEYS, PROTOCOL, Config
from recbole_hydra.settings.known_keys import FOR_CAUSAL_MODELS, OPTIONS
from recbole_hydra.settings.spelling import home, parse_arguments, parse_list
from recbole_hydra.settings.table import check, common_rules

#: The popularity baseline, in every comparison unless it is switched off.
POPULARITY = "Pop"

#: A paired test needs some users to pair.
FEWEST_USERS = 10


@dataclass
class Task:
    """One run: the layers of its Config, and its folder.

    ``model`` is what tables call it, ``model_class`` the name, or the file and name, of its class.
    """

    dataset: str
    model: str
    model_class: str
    seed: int
    config_files: list
    settings: dict
    argv: list
    folder: str
    larger_is_better: bool = True  # of the metric that chooses the epoch


@dataclass
class Plan:
    """A comparison: every model x seed x dataset.

    Attributes:
        identity: what makes two comparisons the same, as json holds it: models, datasets, seeds,
            the settings of every model on every dataset, and the datasets' fingerprints.
        tasks: the runs, in order.
        notes: what was asked of all models and some of them cannot have, one line each.
    """

    identity: dict
    tasks: list
    notes: list

    @property
    def models(self) -> list[str]:
        return self.identity["models"]

    @property
    def datasets(self) -> list[str]:
        return self.identity["datasets"]

    @property
    def seeds(self) -> list[int]:
        return self.identity["seeds"]


def make_plan(
    models: str | Iterable[str],
    datasets: str | Iterable[str] | None,
    seeds: int | Iterable[int],
    output_dir: str | os.PathLike[str],
    config_file_list: str | os.PathLike[str] | Sequence[str | os.PathLike[str]] | None,
    model_config: Mapping[str, str | os.PathLike[str] | Sequence[str | os.PathLike[str]]] | None,
    config_dict: Mapping[str, Any] | None,
    argv: Sequence[str],
    with_pop: bool,
    cut: float | None = None,
) -> Plan:
    """Check the input of :func:`recbole_hydra.compare.compare`, and lay out its runs.

    Args:
        with_pop: add the popularity baselines. cut: the share of interactions before a cut in
            time; None for leave-one-out. The others are those of that function.

    Raises:
        ComparisonError, ConfigError, DatasetError: bad input, in one line.
    """
    models = _names("models", models)
    seeds = _seeds(seeds)
    if with_pop:
        baselines = [POPULARITY] if cut is None else [POPULARITY, RECENT]
        models = [*models, *(name for name in baselines if name not in models)]
    named = [(name, get_model(name)) for name in models]  # raises for an unknown one
    classes = {model.__name__ if is_in_file(name) else name: model for name, model in named}
    if len(classes) < len(named):
        raise ComparisonError(f"models: two of {', '.join(models)} have the same name")
    names = dict(zip(classes, map(absolute, models), strict=True))
    models = list(classes)
    files_of = {name: _paths(files) for name, files in (model_config or {}).items()}
    for name in files_of:
        if name not in models:
            raise ComparisonError(
                f"model_config: {name!r} is not among the models {', '.join(models)}"
                f"{did_you_mean(name, models)}"
            )
    common, config_dict = _paths(config_file_list or []), dict(config_dict or {})
    arguments = parse_arguments(argv)
    _refuse_own_keys("", [*config_dict, *arguments], cut)
    for file in {*common, *(file for files in files_of.values() for file in files)}:
        _refuse_own_keys(f"config file {file}: ", _read_yaml(file), cut)
    if cut is not None:
        config_dict["eval_args"] = {"split": {"cut": cut}}

    domains = _domains(arguments, config_dict, common)
    if domains is None:
        datasets = _names("datasets", datasets)
    elif datasets:
        raise ComparisonError("dataset, domains: both are given; remove one")
    else:
        config_dict["domains"] = domains
        datasets = ["+".join(domains)]
    mode = _training_mode(arguments, config_dict, common, classes)
    _refuse_other_modes(mode, {classes[name]: files for name, files in files_of.items()})
    # What a run's own folder and the mode decide goes in by itself.
    argv = [
        f"--{key}={value}"
        for key, value in arguments.items()
        if key not in ("training_mode", "domains", "data_path", *PATH_KEYS)
    ]
    for key in ("data_path", *PATH_KEYS):
        if key in arguments:
            config_dict[key] = arguments[key]

    runs = Path(output_dir).absolute() / "runs"
    settings: dict[str, dict[str, Any]] = {}
    fingerprints: dict[str, dict[str, Any]] = {}
    tasks: list[Task] = []
    notes: dict[str, None] = {}
    options = OPTIONS["compare"]
    for dataset in datasets:
        configs, layers = {}, {}
        for model in models:
            files = [*common, *files_of.get(model, [])]
            own = {**config_dict, "training_mode": mode if _has_mode(classes[model]) else "auto"}
            configs[model] = Config(names[model], dataset, files, own, argv, options=options)
            layers[model] = files, own
        if any(config["rank_all_items"] for config in configs.values()):
            # A model reads items that have no interactions: all models rank them.
            for model, (files, own) in layers.items():
                own["rank_all_items"] = True
                configs[model] = Config(names[model], dataset, files, own, argv, options=options)
        _check_protocol(dataset, configs, cut)
        fingerprints[dataset] = _check_data(dataset, configs[models[0]], cut)
        settings[dataset] = {}
        for model, config in configs.items():
            notes |= dict.fromkeys(note for note in config.notes if FOR_CAUSAL_MODELS in note)
            plain = checkpoint.plain_settings(config)
            fixed = {
                "data_path": os.path.abspath(plain["data_path"]),
                "checkpoint_dir": "checkpoints",
                "show_progress": False,
                **{key: plain[key] for key in PATH_KEYS if plain.get(key)},
            }
            settings[dataset][model] = {
                k: v for k, v in plain.items() if k not in {"seed", "state", "gpu_id", *fixed}
            }
            files, own = layers[model]
            for seed in seeds:
                folder = str(runs / dataset / model / f"seed-{seed}")
                own = {**own, **fixed, "seed": seed}
                larger = config["valid_metric_bigger"]
                tasks.append(
                    Task(dataset, model, names[model], seed, files, own, argv, folder, larger)
                )
    identity = {
        "models": models,
        "datasets": datasets,
        "seeds": seeds,
        "training_mode": mode,
        "settings": settings,
        "fingerprints": fingerprints,
    }
    return Plan(json.loads(json.dumps(identity)), tasks, list(notes))


def task_as_json(task: Task) -> str:
    """One line for the worker."""
    return json.dumps(asdict(task)) + "\n"


# -- checks --------------------------------------------------------------------------------------


def _names(what: str, values: str | Iterable[str] | None) -> list[str]:
    values = [values] if isinstance(values, str) else list(values or [])
    if not values:
        raise ComparisonError(f"{what}: none given")
    for value in values:
        if not isinstance(value, str):
            raise ComparisonError(f"{what}: names, not {value!r}; a run is a process of its own")
    _refuse_twice(what, values)
    return values


def _domains(
    arguments: Mapping[str, str], config_dict: Mapping[str, Any], files: Sequence[str]
) -> list[str] | None:
    """The domains, where they stand for the datasets."""
    found = None
    for file in files:
        found = _read_yaml(file).get("domains", found)
    found = arguments.get("domains", config_dict.get("domains", found))
    if found is None:
        return None
    return [str(name) for name in (parse_list(found) if isinstance(found, str) else found)]


def _seeds(values: int | Iterable[int]) -> list[int]:
    values = [values] if isinstance(values, int) else list(values or [])
    if not values:
        raise ComparisonError("seeds: none given")
    for value in values:
        if isinstance(value, bool) or not isinstance(value, int) or value < 0:
            raise ComparisonError(f"seeds: integers from 0 on, not {value!r}")
    _refuse_twice("seeds", values)
    return values


def _refuse_twice(what: str, values: Sequence[Any]) -> None:
    twice = sorted({str(value) for value in values if values.count(value) > 1})
    if twice:
        raise ComparisonError(f"{what}: {', '.join(twice)} given twice")


def _paths(files: str | os.PathLike[str] | Sequence[str | os.PathLike[str]]) -> list[str]:
    """Absolute, since a run works in its own folder."""
    files = [files] if isinstance(files, (str, os.PathLike)) else list(files)
    return [os.path.abspath(home(file)) for file in files]


def _refuse_own_keys(where: str, keys: Iterable[str], cut: float | None) -> None:
    """Settings that a comparison sets itself."""
    alone = "every run is one process"
    own = {
        "model": "use --models", "seed": "use --seeds", "checkpoint_dir": "use --output_dir",
        "saved": "runs are saved", "nproc": alone, "world_size": alone,
    }  # fmt: skip
    if cut is not None:
        own["eval_args"] = "--split and --cut say how"
    for key in keys:
        if key in own:
            raise ComparisonError(f"{where}{key}: a comparison sets it for every run; {own[key]}")


def _refuse_other_modes(mode: str, model_config: Mapping[type, Sequence[str]]) -> None:
    """A model's own settings cannot have another mode than the table's."""
    for model, files in model_config.items():
        for file in files:
            own = _read_yaml(file).get("training_mode", "auto")
            if _has_mode(model) and own not in ("auto", mode):
                raise ComparisonError(
                    f"config file {file}: training_mode {own} for {model.__name__}, the table's is "
                    f"{mode}; a table needs one for all: set it with --training_mode, or remove it"
                )


def _has_mode(model: type) -> bool:
    """Whether ``training_mode`` has a meaning for a model: for sequential ones that train."""
    is_sequential = getattr(model, "type", None) == ModelType.SEQUENTIAL
    return is_sequential and not getattr(model, "nothing_trained", False)


def _training_mode(
    arguments: Mapping[str, str],
    config_dict: Mapping[str, Any],
    files: Sequence[str],
    classes: Mapping[str, type],
) -> str:
    """The one mode of all sequential models: the one that was asked for, or the fast one."""

    def setting(key: str, default: Any) -> Any:
        for file in files:
            default = _read_yaml(file).get(key, default)
        return arguments.get(key, config_dict.get(key, default))

    asked = setting("training_mode", "auto")
    one_of("training_mode", asked, ("auto", "autoregressive", "augmentation"))
    sequential = [name for name, model in classes.items() if _has_mode(model)]
    named = check("causal_models", setting("causal_models", None), common_rules()) or ()
    others = [m for m in sequential if m not in named and not is_causal(classes[m])]
    if asked == "augmentation" or not sequential:
        return "augmentation"
    if others:
        raise ComparisonError(
            f"training_mode: {', '.join(others)} cannot train on every position, and a table needs "
            "one mode for all; use --training_mode=augmentation, or leave them out"
        )
    return "autoregressive"


def _read_yaml(file: str) -> dict[str, Any]:
    try:
        with open(file, encoding="utf-8") as stream:
            values = yaml.safe_load(stream)
    except (OSError, yaml.YAMLError):
        values = None  # Config says what is wrong with it
    return values if isinstance(values, dict) else {}


def _check_data(dataset: str, config: Config, cut: float | None) -> dict[str, Any]:
    """Load a dataset once; returns its fingerprint."""
    full = create_dataset(config)
    if cut is not None:
        full.time_cut = find_cut(full, cut)
        targets = targets_after(full.time_cut, full.item_num)
        if (users := targets["user"].nunique()) < FEWEST_USERS:
            raise DatasetError(
                f"dataset {dataset}: a cut at {cut} of the interactions leaves {users} users to "
                f"test; a comparison needs {FEWEST_USERS}; choose an earlier cut"
            )
        return fingerprint(full, targets)
    targets = left_out_targets(user_histories(full), full.item_num)
    if len(targets) < FEWEST_USERS:
        raise DatasetError(
            f"dataset {dataset}: {len(targets)} users have the three interactions that "
            f"leave-one-out takes; a comparison needs {FEWEST_USERS}"
        )
    return fingerprint(full, targets)


def _check_protocol(dataset: str, configs: Mapping[str, Config], cut: float | None) -> None:
    """Refuse what a table cannot compare, before anything is trained."""
    (first, config), *others = configs.items()
    evaluation = config["eval_args"]
    expected = {"split": {"LS": "valid_and_test"}, "order": "TO", "group_by": "user"}
    for key, value in expected.items():
        if evaluation[key] != value and cut is None:
            raise ComparisonError(
                f"eval_args: {key} {evaluation[key]}: a comparison is leave-one-out in the order "
                f"of time ({key}: {value}), or with --split=time cut in time; remove it"
            )
    if {*evaluation["mode"].values()} != {"full"}:
        raise ComparisonError(
            f"eval_args: mode {evaluation['mode']}: a comparison ranks all items; remove it"
        )
    if config["benchmark_filename"]:
        raise ComparisonError("benchmark_filename: a comparison splits the data itself; remove it")
    for model, other in others:
        for key in PROTOCOL:
            values = config[key], other[key]
            if key == "data_path":
                values = tuple(map(os.path.abspath, values))
            if values[0] != values[1]:
                raise ComparisonError(
                    f"{key}: {config[key]!r} for {first}, {other[key]!r} for {model} on {dataset}; "
                    "a table needs one protocol: set it for all, with --config_files"
                )


def _describe(identity: Mapping[str, Any]) -> str:
    seeds = ",".join(map(str, identity.get("seeds", [])))
    names = (",".join(identity.get(key, [])) for key in ("models", "datasets"))
    return f"models {next(names)}; datasets {next(names)}; seeds {seeds}"


def _difference(mine: Mapping[str, Any], other: Mapping[str, Any], keys: Sequence[str]) -> str:
    """Name what differs, down to the first setting."""
    if keys != ["settings"]:
        return ", ".join(key for key in keys if key != "settings" or len(keys) == 1)
    for dataset, models in mine["settings"].items():
        for model, settings in models.items():
            theirs = other["settings"].get(dataset, {}).get(model, {})
            for key in sorted({*settings, *theirs}):
                if settings.get(key) != theirs.get(key):
                    return f"{key} of {model}: {theirs.get(key)!r} there, {settings.get(key)!r} now"
    return "settings"


#: The folder of a comparison.
FOLDER = OutputFolder("comparison", "comparison.json", ComparisonError, _describe, _difference)
