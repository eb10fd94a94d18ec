"""One run of a comparison, in a process of its own, so that its memory is its own and a crash ends
nothing else: ``python -m recbole_hydra.compare.worker``.

The parent writes one line of json to stdin (a :class:`~.plan.Task` as a dict) and keeps it open;
when it closes, because the parent is gone, so does this process. On stdout come lines of json, one
per evaluated epoch; all that libraries print goes to stderr, the run's log.
"""

import json
import os
import statistics
import sys
import threading
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from recbole_hydra.errors import describe
from recbole_hydra.output_folder import write_json

#: The files of a run, in its folder. ``result.json`` is written last: with it, a run is over.
RESULT, RANKS, SETTINGS, LOG = "result.json", "ranks.parquet", "settings.yaml", "log.txt"


def main() -> None:
    """Run the task that stdin names, and write its result; never raises."""
    task = json.loads(sys.stdin.readline())
    threading.Thread(target=_end_with_parent, daemon=True).start()
    events = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # what libraries print is no event

    def emit(**event: Any) -> None:
        print(json.dumps(event), file=events, flush=True)

    folder = Path(task["folder"])
    os.chdir(folder)  # RecBole's logs land there
    try:
        result = run(task, emit)
    except Exception as error:  # a failed run is a result, too
        traceback.print_exc()
        result = {"status": "failed", "error": describe(error)}
    which = {key: task[key] for key in ("dataset", "model", "seed")}
    write_json(folder / RESULT, {**which, **result})


def _end_with_parent() -> None:
    while os.read(0, 1024):  # not sys.stdin.read: its lock would be in the way of our own end
        pass
    os._exit(1)


def run(task: dict[str, Any], emit: Callable[..., None]) -> dict[str, Any]:
    """Train, test and rank; returns what ``result.json`` holds of it."""
    import yaml
    from recbole.utils import ModelType

    from recbole_hydra import __version__, checkpoint
    from recbole_hydra.compare.ranks import fingerprint, rank_targets, targets_of
    from recbole_hydra.machine import machine, peak_memory
    from recbole_hydra.metrics import metric_names
    from recbole_hydra.model import get_model
    from recbole_hydra.training.run import evaluated_before, read_test_set, train_or_continue

    better: Callable[..., Any] = max if task["larger_is_better"] else min
    scores = [entry["valid_score"] for entry in evaluated_before("checkpoints")]
    best = better(scores, default=None)

    def on_epoch(entry: Mapping[str, Any]) -> None:
        nonlocal best
        best = entry["valid_score"] if best is None else better(best, entry["valid_score"])
        emit(epoch=entry["epoch"], score=entry["valid_score"], best=best)

    # Models without epochs, such as Pop, need no best epoch.
    saved = getattr(get_model(task["model_class"]), "type", None) != ModelType.TRADITIONAL
    done = train_or_continue(
        "checkpoints",
        task["model_class"],
        task["dataset"],
        config_file_list=task["config_files"],
        config_dict=task["settings"],
        argv=task["argv"],
        saved=saved,
        on_epoch=on_epoch,
    )
    read_test_set(done)
    config, result = done.config, done.result
    targets = targets_of(done.data.dataset, done.data.histories)
    metrics = [name.lower() for name in metric_names(config["metrics"], config["topk"])]
    ranks = rank_targets(done, targets, metrics, config["tail_ratio"])
    ranks.to_parquet(RANKS, index=False)
    settings = checkpoint.plain_settings(config)
    Path(SETTINGS).write_text(yaml.safe_dump(settings, sort_keys=True), encoding="utf-8")

    history = result["history"]
    sign = 1 if config["valid_metric_bigger"] else -1
    scores = [sign * entry.get("valid_score", -sign * float("inf")) for entry in history]
    # Of equal epochs RecBole takes the last.
    best_epoch = max(range(len(scores)), key=lambda i: (scores[i], i)) if scores else -1
    spent = [entry["train_seconds"] + entry.get("valid_seconds", 0.0) for entry in history]
    return {
        "status": "ok",
        "training_mode": config["training_mode"],
        "metrics": metrics,
        "metric_decimal_place": config["metric_decimal_place"],
        "valid_metric": config["valid_metric"].lower(),
        "valid_result": dict(result["best_valid_result"] or {}),
        "test_result": dict(result["test_result"]),  # RecBole's own, of the ranking of all items
        "fingerprint": fingerprint(done.data.dataset, targets),
        "repeats": float(ranks["repeat"].mean()),
        "parameters": result["parameters"],
        "item_memory": result.get("item_memory"),
        "epochs": len(history),
        "best_epoch": best_epoch,
        "seconds_per_epoch": statistics.median(e["train_seconds"] for e in history),
        "seconds_to_best": sum(spent[: best_epoch + 1]),
        "seconds": sum(spent),
        "test_seconds_per_user": result["test_seconds"] / len(ranks),
        "peak_memory": peak_memory(),
        "gpu_peak_memory": _gpu_peak_memory(),
        "history": history,
        "machine": machine(),
        "version": __version__,
    }


def _gpu_peak_memory() -> int | None:
    import torch

    return torch.cuda.max_memory_allocated() if torch.cuda.is_initialized() else None


if __name__ == "__main__":
    main()
