"""One run, from settings to result."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from recbole.data.transform import construct_transform
from recbole.utils import EvaluatorType, get_flops, init_seed, set_color

from recbole_hydra import checkpoint
from recbole_hydra.checks import boolean
from recbole_hydra.data import PreparedData, make_loaders, prepare_data
from recbole_hydra.errors import CheckpointError, ConfigError
from recbole_hydra.model.causal import check_causal, needs_check
from recbole_hydra.settings.config import Config
from recbole_hydra.settings.known_keys import OPTIONS
from recbole_hydra.settings.of_checkpoint import config_of
from recbole_hydra.settings.options.item_initialization import initialize_items
from recbole_hydra.settings.options.item_memory import fit_memory
from recbole_hydra.settings.spelling import home
from recbole_hydra.training.adapt import freeze_other_parts, load_parts
from recbole_hydra.training.log import start_log
from recbole_hydra.training.model import check_data, make_model
from recbole_hydra.training.result import count_parameters
from recbole_hydra.training.trainer import LAST, get_trainer

if TYPE_CHECKING:
    from recbole.data.dataset import Dataset
    from recbole.model.abstract_recommender import AbstractRecommender
    from recbole.trainer import Trainer

logger = logging.getLogger(__name__)


@dataclass
class Run:
    """A run that was trained, as it stands in memory.

    Attributes:
        config: its :class:`~recbole_hydra.config.Config`.
        data: its :class:`~recbole_hydra.data.dataset.PreparedData`.
        loaders: train, validation and test data.
        trainer: the trainer; ``trainer.model`` is the model.
        result: what :func:`.run_recbole_hydra` returns; of the test set only once
            :func:`read_test_set` has read it.
    """

    config: Config
    data: PreparedData
    loaders: tuple
    trainer: Trainer
    result: dict[str, Any]


def train(
    model: str | type | None = None,
    dataset: str | None = None,
    config_file_list: str | os.PathLike[str] | Sequence[str | os.PathLike[str]] | None = None,
    config_dict: Mapping[str, Any] | None = None,
    saved: bool = True,
    resume: str | os.PathLike[str] | None = None,
    argv: Sequence[str] = (),
    on_epoch: Callable[[dict[str, Any]], object] | None = None,
    load_data: Callable[[Config], PreparedData] = prepare_data,
) -> Run:
    """The part of :func:`.run_recbole_hydra` before the test set is read.

    Args:
        load_data: takes the Config and returns its
            :class:`~recbole_hydra.data.dataset.PreparedData`.

    Returns:
        The run; ``test_result`` and ``test_seconds`` are missing in its result.
    """
    start = time.perf_counter()
    boolean("saved", saved)
    resume = home(resume)
    layers = (config_file_list, config_dict, argv)
    state = None
    if resume is None:
        config = Config(model, dataset, *layers, options=OPTIONS["run"])
    else:
        if not saved:
            raise ConfigError("saved: a resumed run writes into the files of the run it continues")
        state = checkpoint.load_checkpoint(resume)
        config = config_of(state, resume, model, dataset, *layers)
        config["checkpoint_dir"] = str(Path(resume).parent)
    init_seed(config["seed"], config["reproducibility"])
    start_log(config)

    data = load_data(config)
    if state is not None:
        assert resume is not None
        check_data(state, data, resume)
    _check_topk(config, data.dataset)
    loaders = make_loaders(config, data)

    init_seed(config["seed"] + config["local_rank"], config["reproducibility"])
    recommender = make_model(config, loaders[0]._dataset)
    if needs_check(type(recommender), config["training_mode"]):
        check_causal(recommender, config["MAX_ITEM_LIST_LENGTH"])
    adapts = bool(config["adapt_from"]) and getattr(recommender, "item_text", None) is not None
    if adapts:
        freeze_other_parts(recommender, config)
        if state is None:
            load_parts(recommender, config, data.vocabulary)
    elif state is None and config["item_initialization"] == "cooccurrence":
        train_split, std = loaders[0]._dataset, config["cooccurrence_std"]
        initialize_items(recommender.item_embedding, train_split, std, config["show_progress"])
    memory = getattr(recommender, "item_memory", None)
    if state is None and memory is not None:
        fit_memory(recommender, loaders[0]._dataset, config)
    root_logger = logging.getLogger()
    root_logger.info(recommender)
    if not _has_llm(recommender):  # counting would send the whole catalogue through it
        transform = construct_transform(config)
        try:
            flops = get_flops(recommender, data.dataset, config["device"], root_logger, transform)
        except (AssertionError, NotImplementedError):  # not every model predicts one item's score
            flops = "not counted"
        root_logger.info(set_color("FLOPs", "blue") + f": {flops}")

    trainer = get_trainer(config)(config, recommender)
    if hasattr(trainer, "describe_data"):
        trainer.describe_data(data.vocabulary, data.histories)
    trainer.on_epoch = on_epoch
    trainer.eval_collector.data_collect(loaders[0])  # for what is evaluated before any training
    if state is not None:
        trainer.resume(resume, state)
    zero_shot = None
    if adapts and state is None:
        zero_shot = {
            phase: dict(
                trainer.evaluate(loader, False, show_progress=config["show_progress"]) or {}
            )
            for phase, loader in zip(("valid", "test"), loaders[1:], strict=True)
        }
        root_logger.info(set_color("before any training", "yellow") + f": {zero_shot}")
    best_score, best_result = trainer.fit(
        *loaders[:2], saved=saved, show_progress=config["show_progress"]
    )
    history = getattr(trainer, "history", [])
    result = {
        "best_valid_score": None if best_result is None else best_score,
        "valid_score_bigger": config["valid_metric_bigger"],
        "best_valid_result": best_result,
        "wall_seconds": time.perf_counter() - start,
        "epochs_run": len(history),
        "parameters": count_parameters(recommender, data.dataset.item_num),
        "history": history,
        "best_checkpoint": str(trainer.saved_model_file) if saved else None,
        "last_checkpoint": getattr(trainer, "last_model_file", None) if saved else None,
    }
    if zero_shot is not None:
        result["zero_shot"] = zero_shot
    return Run(config, data, loaders, trainer, result)


def train_or_continue(
    checkpoint_dir: str | os.PathLike[str],
    model: str | type | None,
    dataset: str | None,
    **settings: Any,
) -> Run:
    """:func:`train`, which continues the run that a kill left in ``checkpoint_dir``, if it did.

    Args:
        checkpoint_dir: the folder that the settings name as such; of this run alone.
        settings: those of :func:`train`, without ``resume``.
    """
    folder = Path(checkpoint_dir)
    started = sorted(folder.glob(f"*{LAST}"))
    if started:
        going_on = {key: settings[key] for key in ("on_epoch", "load_data") if key in settings}
        try:
            return train(model, resume=str(started[-1]), **going_on)
        except CheckpointError as error:
            # It was killed while it wrote its best epoch: start anew.
            logger.warning("%s: %s", folder, error)
    for path in folder.glob("*.pth"):
        path.unlink()
    return train(model, dataset, **settings)


def evaluated_before(checkpoint_dir: str | os.PathLike[str]) -> list[dict[str, Any]]:
    """The evaluated epochs, as in ``history``, of the run that :func:`train_or_continue` would
    continue; none where it would start anew."""
    started = sorted(Path(checkpoint_dir).glob(f"*{LAST}"))
    if not started:
        return []
    try:
        history = checkpoint.load_checkpoint(started[-1])["training"]["history"]
    except CheckpointError:
        return []
    return [entry for entry in history if "valid_score" in entry]


def read_test_set(run: Run) -> dict[str, Any]:
    """Test a run: with its best epoch if it was saved, otherwise with its last.

    Returns:
        ``run.result``, which has ``test_result`` and ``test_seconds`` now.
    """
    start = time.perf_counter()
    run.result["test_result"] = run.trainer.evaluate(
        run.loaders[2],
        load_best_model=run.result["best_checkpoint"] is not None,
        show_progress=run.config["show_progress"],
    )
    _tell_memory(run)
    run.result["test_seconds"] = time.perf_counter() - start
    run.result["wall_seconds"] += run.result["test_seconds"]
    return run.result


def _tell_memory(run: Run) -> None:
    """Put what the item memory of the model is, where it has one, into the result."""
    memory = getattr(run.trainer.model, "item_memory", None)
    if memory is not None:
        numbers = {name: float(getattr(memory, name)) for name in ("weight", "scale", "seconds")}
        run.result["item_memory"] = {"entries": len(memory.values), **numbers}


def _has_llm(model: AbstractRecommender) -> bool:
    text = getattr(model, "item_text", None)
    return text is not None and text.llm is not None


def _check_topk(config: Config, dataset: Dataset) -> None:
    """Raise ConfigError for more places than items, which would fail after the first epoch."""
    # The padding has a score, too, below all others.
    if config["eval_type"] == EvaluatorType.RANKING and max(config["topk"]) > dataset.item_num:
        raise ConfigError(
            f"topk: {max(config['topk'])} places for the {dataset.item_num - 1} items of dataset "
            f"{config['dataset']}; lower it"
        )
