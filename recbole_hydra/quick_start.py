"""One call from settings to result, and back from a checkpoint to the model and the data."""

import logging
import sys
import time
import traceback
from dataclasses import dataclass
from pathlib import Path

import torch
from recbole.data.transform import construct_transform
from recbole.utils import (
    EvaluatorType,
    get_environment,
    get_flops,
    init_logger,
    init_seed,
    set_color,
)

from recbole_hydra import checkpoint, threads
from recbole_hydra.adapt import freeze_other_parts, load_parts
from recbole_hydra.checks import boolean
from recbole_hydra.config import Config
from recbole_hydra.data import PreparedData, Vocabulary, make_loaders, prepare_data
from recbole_hydra.data.cooccurrence import initialize_items
from recbole_hydra.errors import CheckpointError, ConfigError, RecBoleHydraError
from recbole_hydra.settings.parsing import home
from recbole_hydra.trainer import LAST, get_trainer

logger = logging.getLogger(__name__)


@dataclass
class Run:
    """A run that was trained, as it stands in memory.

    Attributes:
        config: its :class:`~recbole_hydra.config.Config`.
        data: its :class:`~recbole_hydra.data.dataset.PreparedData`.
        loaders: train, validation and test data.
        trainer: the trainer; ``trainer.model`` is the model.
        result: what :func:`run_recbole_hydra` returns; of the test set only once
            :func:`read_test_set` has read it.
    """

    config: Config
    data: PreparedData
    loaders: tuple
    trainer: object
    result: dict


def run_recbole_hydra(
    model=None,
    dataset=None,
    config_file_list=None,
    config_dict=None,
    saved=True,
    resume=None,
    argv=(),
    on_epoch=None,
):
    """Train a model, ours or RecBole's, choose the best epoch on validation, and test it once.

    Args:
        model: name or class; dataset: name. Both may come from the config instead.
        config_file_list, config_dict, argv: the user's layers; see
            :class:`~recbole_hydra.config.Config`.
        saved: write checkpoints and test the best epoch; without, the last epoch is tested.
        resume: the ``.last.pth`` of a run that was killed. Its settings are taken from there; those
            given here go over them, as ``epochs``, and are logged.
        on_epoch: called after every evaluation on validation, once the epoch is saved, with its
            entry of ``history``.

    Returns:
        RecBole's result (``best_valid_score``, ``valid_score_bigger``, ``best_valid_result``,
        ``test_result``) and ``wall_seconds`` (of this call), ``test_seconds``, ``epochs_run`` (of
        the whole run), ``parameters`` (``item_table``, ``other``, ``total``), ``history`` (one dict
        per epoch, see :class:`~recbole_hydra.trainer.ResumableTrainer`), ``best_checkpoint`` and
        ``last_checkpoint`` (paths, None if not saved); with ``adapt_from`` also ``zero_shot``,
        the metrics before any training, ``{"valid": ..., "test": ...}``.

    Raises:
        RecBoleHydraError: bad input, in one line; see :mod:`recbole_hydra.errors`.
    """
    layers = (config_file_list, config_dict)
    run = train(model, dataset, *layers, saved, resume, argv, on_epoch)
    result = read_test_set(run)
    root_logger = logging.getLogger()
    environment = get_environment(run.config).draw()
    root_logger.info(f"The running environment of this training is as follows:\n{environment}")
    for key, words in (("best_valid_result", "best valid "), ("test_result", "test result")):
        root_logger.info(set_color(words, "yellow") + f": {result[key]}")
    root_logger.info("\n" + result_table(run.config, result))
    return result


def train(
    model=None,
    dataset=None,
    config_file_list=None,
    config_dict=None,
    saved=True,
    resume=None,
    argv=(),
    on_epoch=None,
    load_data=prepare_data,
) -> Run:
    """The part of :func:`run_recbole_hydra` before the test set is read.

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
        config = Config(model, dataset, *layers, options=("resume", "saved"))
    else:
        if not saved:
            raise ConfigError("saved: a resumed run writes into the files of the run it continues")
        state = checkpoint.load_checkpoint(resume)
        config = _config_of(state, resume, model, dataset, *layers)
        config["checkpoint_dir"] = str(Path(resume).parent)
    init_seed(config["seed"], config["reproducibility"])
    _start_log(config)

    data = load_data(config)
    if state is not None:
        _check_data(state, data, resume)
    _check_topk(config, data.dataset)
    loaders = make_loaders(config, data)

    init_seed(config["seed"] + config["local_rank"], config["reproducibility"])
    recommender = _make_model(config, loaders[0]._dataset)
    adapts = bool(config["adapt_from"]) and getattr(recommender, "item_text", None) is not None
    if adapts:
        freeze_other_parts(recommender, config)
        if state is None:
            load_parts(recommender, config, data.vocabulary)
    elif state is None and config["item_initialization"] == "cooccurrence":
        train_split, std = loaders[0]._dataset, config["cooccurrence_std"]
        initialize_items(recommender.item_embedding, train_split, std, config["show_progress"])
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


def train_or_continue(checkpoint_dir, model, dataset, **settings) -> Run:
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


def evaluated_before(checkpoint_dir) -> list[dict]:
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


def read_test_set(run: Run) -> dict:
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
    run.result["test_seconds"] = time.perf_counter() - start
    run.result["wall_seconds"] += run.result["test_seconds"]
    return run.result


def count_parameters(model, n_items: int) -> dict:
    """Trainable parameters: tables with one row per item, the others, and all."""
    shapes = [p.shape for p in model.parameters() if p.requires_grad]
    item_table = sum(shape.numel() for shape in shapes if shape[:1] == (n_items,))
    total = sum(shape.numel() for shape in shapes)
    return {"item_table": item_table, "other": total - item_table, "total": total}


def result_table(config, result) -> str:
    """The result of a run as text for a terminal."""
    from tabulate import tabulate

    valid, test = result["best_valid_result"] or {}, result["test_result"] or {}
    rows = [[metric, valid.get(metric), value] for metric, value in test.items()]
    headers = ["metric", "valid", "test"]
    if "zero_shot" in result:
        headers.append("test, before training")
        rows = [[*row, result["zero_shot"]["test"][row[0]]] for row in rows]
    parameters = result["parameters"]
    lines = [
        f"{config['model']} on {config['dataset']}: {result['epochs_run']} epochs, "
        f"{result['wall_seconds']:.1f} s, {parameters['total']:,} parameters "
        f"({parameters['item_table']:,} item table + {parameters['other']:,} other)",
        tabulate(rows, headers=headers, floatfmt=".4f", tablefmt="simple"),
    ]
    if result["best_checkpoint"]:
        lines.append(f"best model: {result['best_checkpoint']}")
    return "\n".join(lines)


def load_model(path, model=None, device="cpu", config_dict=None):
    """Make the model of a checkpoint again, in evaluation mode; the dataset is not needed.

    Args:
        path: a checkpoint of recbole_hydra, best or last.
        model: the class, where it is neither ours nor RecBole's.
        device: where to put it.
        config_dict: settings that go over the checkpoint's, such as ``item_llm``, where the
            language model of the items' texts is now.

    Returns:
        The model, with ``model.checkpoint`` (path, settings, vocabulary, histories) for
        :func:`~recbole_hydra.recommend.recommend`.

    Raises:
        CheckpointError: the file cannot be read, or the model asks its dataset for more than the
            number of users and items (graph and feature models do; use load_data_and_model).
    """
    threads.watch()
    state = checkpoint.load_checkpoint(path)
    layer = {**(config_dict or {}), "use_gpu": False}
    config = _config_of(state, path, model, config_dict=layer)
    config["device"] = device
    vocabulary = Vocabulary(config, state.get("vocabulary", {}))
    try:
        recommender = config.model_class(config, vocabulary)
    except (AttributeError, KeyError) as error:
        raise CheckpointError(
            f"{path}: {config['model']} cannot be made without its dataset ({error}); use "
            "load_data_and_model"
        ) from error
    checkpoint.restore_model(recommender, state, path)
    recommender.checkpoint = {
        "path": str(path),
        "config": config,
        "vocabulary": vocabulary,
        "histories": state.get("histories", {}),
    }
    return recommender.to(device).eval()


def load_data_and_model(path, model=None, config_dict=None, load_data=prepare_data):
    """Make the data and the model of a checkpoint again, as RecBole's function of that name.

    Args:
        path: a checkpoint of recbole_hydra, best or last.
        model: the class, where it is neither ours nor RecBole's.
        config_dict: settings that go over the checkpoint's, such as ``data_path``.
        load_data: as in :func:`train`.

    Returns:
        ``(config, model, dataset, train_data, valid_data, test_data)``; ``model`` is on
        ``config["device"]``.

    Raises:
        CheckpointError: the file cannot be read, or the dataset has other users, items or
            interactions now.
        DatasetError: the dataset is not where the checkpoint's settings say.
    """
    state = checkpoint.load_checkpoint(path)
    config = _config_of(state, path, model, config_dict=config_dict)
    init_seed(config["seed"], config["reproducibility"])
    _start_log(config)
    data = load_data(config)
    _check_data(state, data, path)
    loaders = make_loaders(config, data)
    recommender = _make_model(config, loaders[0]._dataset)
    checkpoint.restore_model(recommender, state, path)
    return config, recommender, data.dataset, *loaders


def _make_model(config, dataset):
    """The model of a run, on its device. What RecBole's models themselves refuse, such as a width
    that their attention heads do not divide, is one line, as what our settings refuse is."""
    try:
        return config.model_class(config, dataset).to(config["device"])
    except (ValueError, NotImplementedError) as error:
        *_, last = traceback.walk_tb(error.__traceback__)
        raised_in = last[0].f_globals.get("__name__", "")
        if isinstance(error, RecBoleHydraError) or not raised_in.startswith("recbole."):
            raise
        raise ConfigError(f"{config['model']}: {error}") from error


def _has_llm(model) -> bool:
    text = getattr(model, "item_text", None)
    return text is not None and text.llm is not None


def _config_of(
    state, path, model=None, dataset=None, config_file_list=None, config_dict=None, argv=()
):
    """Make the Config of a checkpoint again, the user's layers over its settings."""
    for key, given in (("model", model), ("dataset", dataset)):
        name = given if given is None or isinstance(given, str) else given.__name__
        if name not in (None, state[key]):
            raise CheckpointError(f"{path}: its {key} is {state[key]}, not {name}")
    # Checkpoints without the setting are from when every run had RecBole's order.
    settings = {"time_order": "recbole", **state["config"]}
    config = Config(
        model or state["model"], state["dataset"], config_file_list, config_dict, argv, settings
    )
    if "time_order" not in state["config"] and config["time_order"] == "recbole":
        config.notes.append(
            f"time_order: recbole, the order that {path} was trained with: times rounded to float32"
        )
    config.notes += [
        f"{key} is {value!r}, not {settings.get(key)!r} as in {path}"
        for key, value in config.external_config_dict.items()
        if settings.get(key) != value
    ]
    return config


def _check_topk(config, dataset):
    """Raise ConfigError for more places than items, which would fail after the first epoch."""
    # The padding has a score, too, below all others.
    if config["eval_type"] == EvaluatorType.RANKING and max(config["topk"]) > dataset.item_num:
        raise ConfigError(
            f"topk: {max(config['topk'])} places for the {dataset.item_num - 1} items of dataset "
            f"{config['dataset']}; lower it"
        )


def _check_data(state, data, path):
    """Raise CheckpointError where the dataset's raw ids, or what its users had, are not those of
    the checkpoint: other interactions are split otherwise."""
    vocabulary = data.vocabulary
    for name, tokens in state.get("vocabulary", {}).items():
        if tokens != vocabulary.get(name):
            raise CheckpointError(
                f"{path}: the {name}s of dataset {state['dataset']} are not those it was trained "
                f"on ({len(tokens) - 1} then, {len(vocabulary.get(name, [0])) - 1} now); use the "
                "same files and filters"
            )
    then = state.get("histories") or {}  # RecBole's own Trainer keeps none
    for name in then.keys() & data.histories.keys():
        if not torch.equal(then[name], data.histories[name]):
            raise CheckpointError(
                f"{path}: the interactions of dataset {state['dataset']} are not those it was "
                f"trained on ({len(then['items']):,} then, {len(data.histories['items']):,} now); "
                "use the same files and filters"
            )


def _start_log(config):
    """Open RecBole's log of a run, closing that of a run before it in this process.

    RecBole opens no log in a process whose logging is set up already, as a notebook's. There the
    log file is added to the handlers that the process has.
    """
    root_logger = logging.getLogger()
    for handler in getattr(_start_log, "handlers", []):
        root_logger.removeHandler(handler)
        handler.close()
    foreign, root_logger.handlers = root_logger.handlers, []
    try:
        init_logger(config)
    except OSError as error:
        raise RecBoleHydraError(
            f"output folder {Path('log').absolute()}: cannot be written ({error.strerror}); run "
            "from another folder"
        ) from error
    finally:
        own = root_logger.handlers
        if foreign:
            own = [handler for handler in own if isinstance(handler, logging.FileHandler)]
        root_logger.handlers = foreign + own
        _start_log.handlers = own
    root_logger.info(sys.argv)
    root_logger.info(config)
    for note in [*config.notes, *filter(None, [threads.advice()])]:
        logger.info(note)
