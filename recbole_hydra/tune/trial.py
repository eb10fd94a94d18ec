"""One trial of a sweep, and the test of the best one, as they run in a worker of Ray."""

from __future__ import annotations

import math
import os
import platform
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from recbole_hydra.errors import TrainingError, TuneError, describe
from recbole_hydra.output_folder import read_json, write_json
from recbole_hydra.tune.plan import FOLDER, OUTCOME, PROGRESS, trial_folder

if TYPE_CHECKING:
    from recbole_hydra.data import PreparedData
    from recbole_hydra.settings.config import Config

#: What a trial's libraries print.
LOG = "log.txt"

#: What schedulers and searchers look at: the best validation score so far, since the best epoch is
#: the one that a trial is chosen by.
SCORE, TIME = "best_score", "epoch"


@dataclass
class Job:
    """What all trials of a sweep have in common.

    Attributes:
        folder: the sweep's output folder, absolute, on a file system that all nodes see.
        model, dataset, settings: see :class:`~.plan.Plan`.
        threads: CPU threads of a trial.
        datasets: the handle of the :class:`~.datasets.Datasets` actor.
    """

    folder: str
    model: str | type
    dataset: str
    settings: dict
    threads: int
    datasets: Any


def run_trial(config: dict[str, Any], job: Job) -> None:
    """Ray's trainable: train one configuration, reporting every evaluation.

    Args:
        config: the trial's ``number`` and its ``params``.

    A trial that fails returns as others do, its error written down: raising would make Ray start it
    again, which is for trials whose process or node died.

    Raises:
        TuneError: the sweep's folder cannot be seen from this node.
    """
    import ray

    from recbole_hydra.compat.ray import ray_tune
    from recbole_hydra.tune.datasets import loader_of

    if not (Path(job.folder) / FOLDER.file).is_file():
        raise TuneError(
            f"output_dir {job.folder}: node {platform.node()} does not see it; choose a folder on "
            "a file system that all nodes share"
        )
    own = trial_folder(job.folder, config["number"])
    if read_json(own / OUTCOME) is not None:
        return  # its node died between the last word and the end
    _move_to(own)
    node = f"{platform.node()}/{ray.get_runtime_context().get_node_id()[:8]}"
    settings = {**job.settings, **config["params"]}
    load_data = loader_of(job.datasets, job.model, job.dataset, settings)
    train_trial(job, config, ray_tune().report, load_data, node)


def train_trial(
    job: Job,
    config: Mapping[str, Any],
    report: Callable[[dict[str, Any]], object],
    load_data: Callable[[Config], PreparedData],
    node: str,
) -> None:
    """Train in the trial's folder, which is the current one, and write ``outcome.json``.

    Args:
        report: called with a dict of numbers after every evaluation: ``epoch`` (from 1),
            ``seconds`` (of training and validation so far), ``best_score``, ``score``,
            ``train_loss`` and the validation metrics.
        load_data: see :func:`recbole_hydra.training.run.train`.
        node: where the trial runs.
    """
    import torch
    from recbole.utils import ModelType

    from recbole_hydra.model import get_model
    from recbole_hydra.training.run import evaluated_before, train_or_continue

    # Ray counts CPUs, and limits nothing.
    torch.set_num_threads(job.threads)
    history: list[dict[str, Any]] = []
    larger = _larger_is_better(job)

    def on_epoch(entry: Mapping[str, Any]) -> None:
        del history[_before(history, entry["epoch"] + 1) :]  # where the trial had to start anew
        history.append(_plain(entry))
        if not math.isfinite(entry["valid_score"]):
            raise TrainingError(
                f"the validation score is {entry['valid_score']} in epoch {entry['epoch']}"
            )
        where = {"node": node, "gpus": os.environ.get("CUDA_VISIBLE_DEVICES")}
        write_json(PROGRESS, {**where, "history": history})
        report(reported(history, larger))

    try:
        # A node was lost, or the sweep was killed: the last report is made again. The scheduler
        # knows of those before; judged anew, among more trials, the first would end this one.
        evaluated: list[Any] = evaluated_before("checkpoints")
        *before, last = evaluated or [None]
        if last is not None:
            history += map(_plain, before)
            on_epoch(last)
        model = get_model(job.model) if isinstance(job.model, str) else job.model
        train_or_continue(
            "checkpoints",
            job.model,
            job.dataset,
            config_dict={
                **job.settings,
                **config["params"],
                "checkpoint_dir": "checkpoints",
                "show_progress": False,
            },
            # What models without epochs learn, such as ItemKNN's, cannot be checkpointed.
            saved=getattr(model, "type", None) != ModelType.TRADITIONAL,
            on_epoch=on_epoch,
            load_data=load_data,
        )
    except Exception as error:
        traceback.print_exc()
        write_json(OUTCOME, {"status": "failed", "error": describe(error)})
    else:
        write_json(OUTCOME, {"status": "finished"})


def final_test(job: Job, number: int, params: Mapping[str, Any]) -> dict[str, float]:
    """Read the test set with the best epoch of a trial; returns the metrics."""
    from recbole_hydra.quick_start import load_data_and_model
    from recbole_hydra.training.run import read_test_set, train
    from recbole_hydra.training.trainer import BEST, get_trainer
    from recbole_hydra.tune.datasets import loader_of

    own = trial_folder(job.folder, number)
    _move_to(own)
    settings = {**job.settings, **params}
    load_data = loader_of(job.datasets, job.model, job.dataset, settings)
    saved = sorted(own.glob(f"checkpoints/*{BEST}"))
    if not saved:
        quiet = {**settings, "show_progress": False}
        run = train(job.model, job.dataset, config_dict=quiet, saved=False, load_data=load_data)
        return dict(read_test_set(run)["test_result"])
    config, model, _, _, _, test_data = load_data_and_model(
        str(saved[-1]), job.model, load_data=load_data
    )
    trainer = get_trainer(config)(config, model)
    return dict(trainer.evaluate(test_data, load_best_model=False))


def reported(history: Sequence[dict[str, Any]], larger: bool) -> dict[str, Any]:
    """What a trial reports after the last evaluation of its ``history``."""
    return {
        TIME: history[-1]["epoch"],
        SCORE: best_entry(history, larger)["score"],
        **{key: history[-1][key] for key in ("seconds", "score", "train_loss")},
        **history[-1]["metrics"],
    }


def best_entry(history: Sequence[dict[str, Any]], larger: bool) -> dict[str, Any]:
    """The best entry of a trial's history; of equal ones the last, as RecBole chooses."""
    sign = 1 if larger else -1
    return max(history, key=lambda entry: (sign * entry["score"], entry["epoch"]))


def _before(history: Sequence[Mapping[str, Any]], epoch: int) -> int:
    """How many entries of ``history`` are of earlier epochs."""
    return sum(entry["epoch"] < epoch for entry in history)


def _plain(entry: Mapping[str, Any]) -> dict[str, Any]:
    """An entry of the trainer's history as ``progress.json`` holds it."""
    return {
        "epoch": entry["epoch"] + 1,
        "seconds": entry["seconds"],
        "train_loss": entry["train_loss"],
        "score": entry["valid_score"],
        "metrics": {name: float(value) for name, value in entry["valid_result"].items()},
    }


def _larger_is_better(job: Job) -> bool:
    return FOLDER.read(job.folder)["mode"] == "max"


def _move_to(folder: Path) -> None:
    """Work in ``folder``, and write what libraries print into its log."""
    os.chdir(folder)
    log = os.open(LOG, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    for descriptor in (1, 2):
        os.dup2(log, descriptor)
    os.close(log)
