"""The jobs of the command line that train: a run, a comparison, a sweep."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from recbole_hydra.compare import Comparison
    from recbole_hydra.tune import Sweep

COMPARE_USAGE = """\
usage: recbole-hydra compare --models=A,B --dataset=A,B --output_dir=FOLDER [--key=value ...]

Train and test every model with every seed on every dataset; write tables and plots to FOLDER.

  --models=A,B              Hydra, Mamba4Rec, SASRec, GRU4Rec, ...
  --dataset=A,B             ml-100k (comes with RecBole), or those in data_path;
                            --domains=A,B instead: one model for both
  --seeds=2020,2021,2022    default: 2020
  --output_dir=FOLDER       new or empty, unless --resume=True
  --resume=True             continue what FOLDER holds of this comparison
  --config_files=A,B        yaml files for all models
  --model_config=M:F,N:G    yaml file F for model M, G for N
  --popularity=False        leave the popularity baseline Pop out
  --latex=True              also write table.tex
  --split=time              train before a moment, test on all that users do after it;
                            default: leave_one_out
  --cut=0.9                 of a split in time: the share of interactions before it
  --agreement_with=FOLDER   an earlier comparison of another split: say how far both
                            put the models into the same order
  --key=value               any setting, for all models: --epochs=50, --topk=10,20
"""

TUNE_USAGE = """\
usage: recbole-hydra tune --model=NAME --dataset=NAME --output_dir=FOLDER [--key=value ...]

Search the hyperparameters of a model with Ray Tune, on validation; test the best once.

  --space=FILE              what is searched: yaml, or RecBole's hyper.test format;
                            default: properties/tune/NAME.yaml of recbole_hydra
  --num_samples=20          configurations to try
  --search=random           random, grid or optuna
  --scheduler=asha          asha stops hopeless trials early, none stops none
  --grace_period=3          epochs before the first can be stopped
  --reduction_factor=3      of so many trials that come as far, one goes on
  --max_concurrent=2        trials at a time; default: one per GPU, or per two CPUs
  --cpus_per_trial=1, --gpus_per_trial=0.5   default: what there is, shared out
  --output_dir=FOLDER       new or empty, unless --resume=True
  --resume=True             continue what FOLDER holds of this sweep
  --ray_address=auto        a running Ray cluster, or HOST:PORT; default: this machine
  --config_files=A,B        yaml files for all trials
  --key=value               any setting, for all trials: --epochs=50, --valid_metric=MRR@10
"""


def train(argv: list[str]) -> dict[str, Any]:
    """Run the job of the plain command: one model on one dataset; returns its result."""
    from recbole_hydra.errors import ConfigError
    from recbole_hydra.settings.spelling import parse_arguments, parse_paths, parse_value

    if not argv[0].startswith("-"):
        raise ConfigError(f"command line: unknown command {argv[0]!r}; see recbole-hydra --help")
    arguments = parse_arguments(argv)
    processes = {key: arguments.pop(key, "1") for key in ("nproc", "world_size")}
    if any(number not in ("1", "-1") for number in processes.values()):
        raise ConfigError("nproc, world_size: runs of several processes are not supported")
    elsewhere = arguments.keys() & {"config_files", "resume"}
    for key in () if elsewhere else ("model", "dataset"):
        if key not in arguments and not (key == "dataset" and "domains" in arguments):
            given = _given_instead(key, arguments)
            raise ConfigError(f"{key}: not given{given}; pass --{key}=NAME, or {key}= in Python")
    if "model" in arguments and "dataset" in arguments:
        _refuse_unknown_keys("run", arguments, [arguments["model"]], [arguments["dataset"]])

    from recbole_hydra.quick_start import run_recbole_hydra

    return run_recbole_hydra(
        model=arguments.pop("model", None),
        dataset=arguments.pop("dataset", None),
        config_file_list=parse_paths(arguments.pop("config_files", "")),
        saved=parse_value(arguments.pop("saved", "True")),
        resume=arguments.pop("resume", None),
        argv=[f"--{key}={value}" for key, value in arguments.items()],
    )


def _missing(job: str, key: str, arguments: Mapping[str, str]) -> str:
    """What to say of an argument that is not there, but perhaps is under another name."""
    given = _given_instead(key, arguments)
    return f"{job}: --{key} is missing{given}; see recbole-hydra {job} --help"


def _given_instead(key: str, arguments: Mapping[str, str]) -> str:
    from difflib import get_close_matches

    near = get_close_matches(key, arguments, n=1)
    return f", but --{near[0]} is given" if near else ""


def _refuse_unknown_keys(
    job: str, arguments: Mapping[str, str], models: Sequence[str], datasets: Sequence[str]
) -> None:
    """Tell of a mistyped key before anything heavy is imported: what Config would say.

    What has to be known first, such as another file's settings, is left to Config.
    """
    from recbole_hydra.errors import ConfigError
    from recbole_hydra.settings.known_keys import OPTIONS, read_keys

    if arguments.keys() & {"config_files", "model_config", "resume"}:
        return
    options = OPTIONS[job]
    for dataset, model in product(datasets, models):
        read = read_keys(model, dataset, options)
        if read is None:
            return
        for key in (key for key in arguments if key not in options):
            problem = read.problem(key)
            if problem is not None and problem.startswith(("unknown", "computed")):
                raise ConfigError(f"command line: {problem}")


def compare(argv: list[str]) -> Comparison:
    """Run the job ``compare``, and print its tables; returns the Comparison."""
    from recbole_hydra.errors import ComparisonError
    from recbole_hydra.settings.spelling import (
        home,
        parse_arguments,
        parse_list,
        parse_paths,
        parse_value,
    )

    arguments = parse_arguments(argv)
    for key in ("models", "dataset", "output_dir"):
        if key not in arguments and not (key == "dataset" and "domains" in arguments):
            raise ComparisonError(_missing("compare", key, arguments))
    models, datasets = (
        [str(name) for name in parse_list(arguments.pop(key, ""))] for key in ("models", "dataset")
    )
    _refuse_unknown_keys("compare", arguments, models, datasets)

    from recbole_hydra.compare import Comparison
    from recbole_hydra.compare import compare as run_comparison
    from recbole_hydra.compare.agreement import agreement_words, split_words
    from recbole_hydra.compare.report import markdown_table, quality_table

    switches: dict[str, Any] = {
        key: parse_value(arguments.pop(key))
        for key in ("resume", "popularity", "latex", "show_progress", "cut")
        if key in arguments
    }
    switches |= {key: arguments.pop(key) for key in ("split", "agreement_with") if key in arguments}
    model_config: dict[str, list[str]] = {}
    for pair in filter(None, arguments.pop("model_config", "").split(",")):
        model, colon, file = pair.partition(":")
        if not colon or not file:
            raise ComparisonError(f"model_config: expected MODEL:FILE, got {pair!r}")
        model_config.setdefault(model, []).append(file)
    output_dir = home(arguments.pop("output_dir"))
    comparison = run_comparison(
        models,
        datasets,
        parse_list(arguments.pop("seeds", "2020")),
        output_dir,
        config_file_list=parse_paths(arguments.pop("config_files", "")),
        model_config=model_config,
        argv=[f"--{key}={value}" for key, value in arguments.items()],
        **switches,
    )
    other = None
    if (folder := switches.get("agreement_with")) is not None:
        other = Comparison(home(folder))
    for dataset in comparison.datasets:
        print(f"\n{dataset}")
        for reason in comparison.unfair(dataset):
            print(f"not comparable: {reason}")
        if comparison.finished(dataset):
            print(markdown_table(quality_table(comparison, dataset)))
            if other is not None and dataset in other.datasets:
                print(f"agreement with {split_words(other, dataset)}:")
                print(*agreement_words(comparison, other, dataset), sep="\n")
    for run in comparison.runs:
        if run["status"] != "ok":
            what = f"{run['model']} on {run['dataset']}, seed {run['seed']}"
            print(f"{what}: {run['status']}: {run.get('error', '')}")
    print(f"\nreport: {Path(output_dir) / 'report.html'}, report.md, results.csv")
    return comparison


def tune(argv: list[str]) -> Sweep:
    """Run the job ``tune``, and print its best trials; returns the Sweep."""
    from recbole_hydra.errors import TuneError
    from recbole_hydra.settings.spelling import parse_arguments, parse_paths, parse_value

    arguments = parse_arguments(argv)
    for key in ("model", "dataset", "output_dir"):
        if key not in arguments and not (key == "dataset" and "domains" in arguments):
            raise TuneError(_missing("tune", key, arguments))
    if "dataset" in arguments:
        _refuse_unknown_keys("tune", arguments, [arguments["model"]], [arguments["dataset"]])

    import inspect

    from tabulate import tabulate

    from recbole_hydra.tune import tune as run_sweep

    names: dict[str, Any] = {
        key: arguments.pop(key, None) for key in ("model", "dataset", "output_dir")
    }
    names.update({key: arguments.pop(key) for key in ("space", "ray_address") if key in arguments})
    settings = {
        key: parse_value(arguments.pop(key))
        for key in inspect.signature(run_sweep).parameters
        if key in arguments and key not in ("config_file_list", "config_dict", "argv")
    }
    sweep = run_sweep(
        **names,
        **settings,
        config_file_list=parse_paths(arguments.pop("config_files", "")),
        argv=[f"--{key}={value}" for key, value in arguments.items()],
    )
    frame = sweep.to_pandas().drop(columns=["error", "node"])
    print(tabulate(frame.head(10), headers="keys", tablefmt="simple", showindex=False))
    for trial in sweep.trials:
        if "error" in trial:
            print(f"trial {trial['number']} failed: {trial['error']}")
    best = sweep.best
    assert best is not None and sweep.test_result is not None  # else it is a TuneError
    print(f"\nbest: trial {best['number']}, epoch {best['best_epoch']}")
    rows = [[name, best["valid_result"].get(name), x] for name, x in sweep.test_result.items()]
    print(tabulate(rows, headers=["metric", "valid", "test"], floatfmt=".4f", tablefmt="simple"))
    print(f"\n{sweep.folder}: best.yaml, trials.csv, sweep.png")
    print(f"train the best configuration:\n{sweep.command}")
    return sweep
