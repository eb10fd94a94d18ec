"""Trainings that several processes share out among themselves, and what is kept of each.

A run is in a process of its own, as in a comparison, so that its memory is its own. Its figures go
into one file per run under the results, ``<variant>/seed-<seed>.json``: partial results can be
committed, and what is there is not run again. A run that failed leaves its log alone.
"""

import shutil

import pandas as pd
import report

from recbole_hydra.compare.plan import Task
from recbole_hydra.compare.ranks import RANKINGS, mean_metric
from recbole_hydra.compare.runner import run_task
from recbole_hydra.compare.worker import RANKS
from recbole_hydra.output_folder import read_json, write_json

#: What is kept of a run's result as it is, beside the test metrics of both rankings.
KEPT = (
    "training_mode", "valid_result", "parameters", "epochs", "best_epoch",
    "seconds_per_epoch", "seconds_to_best", "peak_memory", "machine", "version",
)  # fmt: skip


def begun_by_another(own, resume) -> bool:
    """Take the folder of a run, or leave it to whoever has; with ``resume`` nobody else is at it,
    and the run in it is continued."""
    try:
        own.mkdir(parents=True)
    except FileExistsError:
        return not resume
    return False


def run_all(name, variants, seeds, data_path, folder, resume=False) -> None:
    """Train every variant with every seed, where nobody has.

    Args:
        name: of the results' folder.
        variants: {name: (model, dataset, settings)}.
        data_path, folder: absolute paths, of the datasets and for what a run writes.
    """
    for seed in seeds:
        for variant, (model, dataset, settings) in variants.items():
            path = results_of(name, variant) / f"seed-{seed}.json"
            own = folder / path.parent.name / path.stem
            if path.exists() or begun_by_another(own, resume):
                continue
            print(variant, seed, flush=True)
            given = {
                **settings, "data_path": str(data_path), "seed": seed, "show_progress": False,
                "checkpoint_dir": "checkpoints",
            }  # fmt: skip
            result = run_task(Task(dataset, model, seed, [], given, [], str(own)), _say)
            if result["status"] != "ok":
                print(f"  failed: {result['error']}", flush=True)
                continue
            kept = {key: result[key] for key in KEPT}
            ranks = pd.read_parquet(own / RANKS)
            kept["test_result"] = {
                metric + suffix: mean_metric(metric, ranks, ranking)
                for ranking, suffix in RANKINGS.items()
                for metric in result["metrics"]
            }
            path.parent.mkdir(parents=True, exist_ok=True)
            write_json(path, {"model": model, "dataset": dataset, "settings": settings, **kept})
            shutil.rmtree(own / "checkpoints", ignore_errors=True)


def results_of(name, variant):
    """The folder of a variant's results."""
    return report.RESULTS / name / variant.replace(" ", "-")


def read_runs(name, variants) -> dict:
    """``{variant: [figures]}`` of those that are there."""
    found = {}
    for variant in variants:
        files = sorted(results_of(name, variant).glob("seed-*.json"))
        runs = [read_json(file) for file in files]
        if runs:
            found[variant] = runs
    return found


def machines(runs) -> str:
    """The machines of :func:`read_runs`, in words."""
    return " and ".join(sorted({r["machine"] for some in runs.values() for r in some}))


def _say(event):
    print(f"  epoch {event['epoch']}: {event['score']:.4f}, best {event['best']:.4f}", flush=True)
