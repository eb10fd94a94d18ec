"""The command line: ``recbole-hydra``, also ``python run_recbole_hydra.py``."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any

from recbole_hydra.errors import RecBoleHydraError

if TYPE_CHECKING:
    from recbole_hydra.compare import Comparison
    from recbole_hydra.tune import Sweep

USAGE = """\
usage: recbole-hydra --model=NAME --dataset=NAME [--key=value ...]
       recbole-hydra compare --help
       recbole-hydra tune --help
       recbole-hydra recommend --help

Train a model (Hydra, Mamba4Rec, or any of RecBole's) and print its validation and test metrics.

  --model=NAME           Hydra, Mamba4Rec, SASRec, GRU4Rec, Pop, ...
  --dataset=NAME         ml-100k (comes with RecBole), or one in data_path
  --data_path=FOLDER     where FOLDER/NAME/NAME.inter is; default: dataset
  --domains=A,B          several datasets at once, instead of --dataset
  --item_encoder=text    Hydra: what items are is what their texts say; --item_llm=FOLDER
  --adapt_from=FILE      Hydra on text: start from a model of other datasets
  --config_files=A,B     yaml files, later ones over earlier ones
  --resume=FILE          continue a killed run from its .last.pth
  --saved=False          write no checkpoints
  --key=value            any setting of RecBole or of the model: --epochs=50, --topk=10,20

Settings and their defaults: properties/ of recbole_hydra, and RecBole's documentation.
"""

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


RECOMMEND_USAGE = """\
usage: recbole-hydra recommend --checkpoint=FILE --output=FILE.parquet [--key=value ...]

Write the best items of all users to a Parquet file: user, rank, item, score.

  --checkpoint=FILE         of a training run, saved/....best.pth
  --output=FILE.parquet     new; while it is made, FILE.parquet.parts holds what is done
  --users=all               all of the training data, or a file with one id a line
  --k=10                    items per user
  --exclude_history=True    leave out what a user has had
  --domain=NAME             of a model of several domains
  --store=FOLDER            users as a Recommender keeps them there, or redis://HOST:PORT/0
  --vectors=FOLDER          write the vectors of items and users there; --output may be left out
  --resume=True             continue a call that was killed
  --show_progress=False     no progress bar
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line.

    Args:
        argv: the arguments; those of the process by default.

    Returns:
        The exit status: 0; 1 where no run of a comparison came to an end; or 2 after an error in
        the input, which is printed as one line.
    """
    argv = sys.argv[1:] if argv is None else list(argv)
    if not argv or argv[0] in ("-h", "--help", "help"):
        print(USAGE, end="")
        return 0 if argv else 2
    if argv == ["--version"]:
        from recbole_hydra import __version__

        print(__version__)
        return 0
    command: Callable[[list[str]], Any] = train
    hint = "--resume=FILE.last.pth continues"
    if argv[0] in _JOBS:
        command, usage, hint = _JOBS[argv[0]]
        argv = argv[1:]
        if not argv or argv[0] in ("-h", "--help", "help"):
            print(usage, end="")
            return 0 if argv else 2
    try:
        done = command(argv)
    except RecBoleHydraError as error:
        print(f"recbole-hydra: error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"recbole-hydra: interrupted; {hint}", file=sys.stderr)
        return 130
    return 1 if command is compare and not any(map(done.finished, done.datasets)) else 0


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

    from recbole_hydra.compare import compare as run_comparison
    from recbole_hydra.compare.report import markdown_table, quality_table

    switches = {
        key: parse_value(arguments.pop(key))
        for key in ("resume", "popularity", "latex", "show_progress")
        if key in arguments
    }
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
    for dataset in comparison.datasets:
        print(f"\n{dataset}")
        for reason in comparison.unfair(dataset):
            print(f"not comparable: {reason}")
        if comparison.finished(dataset):
            print(markdown_table(quality_table(comparison, dataset)))
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


def recommend(argv: list[str]) -> None:
    """Run the job ``recommend``, and say what was written."""
    from recbole_hydra.checks import did_you_mean
    from recbole_hydra.errors import BulkError
    from recbole_hydra.settings.rules import integer, switch
    from recbole_hydra.settings.spelling import home, parse_arguments, parse_value

    arguments = parse_arguments(argv)
    known = (
        "checkpoint", "output", "users", "k", "exclude_history", "domain", "store", "vectors",
        "resume", "show_progress",
    )  # fmt: skip
    for key in arguments:
        if key not in known:
            raise BulkError(f"recommend: unknown key {key!r}{did_you_mean(key, known)}")
    for keys in (("checkpoint",), ("output", "vectors")):
        if not arguments.keys() & set(keys):
            missing = " or ".join(f"--{key}" for key in keys)
            raise BulkError(f"recommend: {missing} is missing; see recbole-hydra recommend --help")
    switches = {
        key: switch()(key, parse_value(arguments.get(key, default)))
        for key, default in (
            ("exclude_history", "False"), ("resume", "False"), ("show_progress", "True")
        )
    }  # fmt: skip
    k = integer(least=1)("k", parse_value(arguments.get("k", "10")))

    from recbole_hydra.serving.bulk import read_users, recommend_all, write_vectors
    from recbole_hydra.serving.recommender import Recommender

    given = arguments.get("users", "all")
    users = None if given == "all" else read_users(home(given))
    with Recommender(home(arguments["checkpoint"]), arguments.get("store")) as service:
        if "output" in arguments:
            output, domain = home(arguments["output"]), arguments.get("domain")
            number = recommend_all(service, output, users, k, domain=domain, **switches)
            print(f"{output}: {number:,} users")
        if "vectors" in arguments:
            folder = home(arguments["vectors"])
            write_vectors(service, folder, users)
            print(f"{folder}: items.parquet, users.parquet, vectors.json")


#: By name: what runs, its usage, and what to say after an interruption.
_JOBS: dict[str, tuple[Callable[[list[str]], Any], str, str]] = {
    "compare": (
        compare, COMPARE_USAGE, "the report is of what is finished; --resume=True continues"
    ),
    "tune": (tune, TUNE_USAGE, "the report is of what is finished; --resume=True continues"),
    "recommend": (recommend, RECOMMEND_USAGE, "--resume=True continues"),
}  # fmt: skip


if __name__ == "__main__":
    sys.exit(main())
