"""One call from settings to result, and back from a checkpoint to the model and the data; RecBole's
front, for our files."""

import logging
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from recbole.data.dataloader import AbstractDataLoader
from recbole.data.dataset import Dataset
from recbole.model.abstract_recommender import AbstractRecommender
from recbole.utils import get_environment, init_seed, set_color

from recbole_hydra import checkpoint
from recbole_hydra.data import PreparedData, make_loaders, prepare_data
from recbole_hydra.settings.config import Config
from recbole_hydra.settings.of_checkpoint import config_of
from recbole_hydra.training.log import start_log
from recbole_hydra.training.model import check_data, make_model
from recbole_hydra.training.result import result_table
from recbole_hydra.training.run import read_test_set, train


def run_recbole_hydra(
    model: str | type | None = None,
    dataset: str | None = None,
    config_file_list: str | os.PathLike[str] | Sequence[str | os.PathLike[str]] | None = None,
    config_dict: Mapping[str, Any] | None = None,
    saved: bool = True,
    resume: str | os.PathLike[str] | None = None,
    argv: Sequence[str] = (),
    on_epoch: Callable[[dict[str, Any]], Any] | None = None,
) -> dict[str, Any]:
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
        per epoch, see :class:`~recbole_hydra.training.trainer.ResumableTrainer`),
        ``best_checkpoint`` and ``last_checkpoint`` (paths, None if not saved); with ``adapt_from``
        also ``zero_shot``, the metrics before any training, ``{"valid": ..., "test": ...}``; with
        ``item_memory`` also that: ``entries`` and ``seconds`` of the map, ``weight`` and ``scale``.

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


def load_data_and_model(
    path: str | os.PathLike[str],
    model: str | type | None = None,
    config_dict: Mapping[str, Any] | None = None,
    load_data: Callable[[Config], PreparedData] = prepare_data,
) -> tuple[
    Config,
    AbstractRecommender,
    Dataset,
    AbstractDataLoader,
    AbstractDataLoader,
    AbstractDataLoader,
]:
    """Make the data and the model of a checkpoint again, as RecBole's function of that name.

    Args:
        path: a checkpoint of recbole_hydra, best or last.
        model: the class, or FILE.py:NAME, where it is neither ours nor RecBole's.
        config_dict: settings that go over the checkpoint's, such as ``data_path``.
        load_data: as in :func:`.train`.

    Returns:
        ``(config, model, dataset, train_data, valid_data, test_data)``; ``model`` is on
        ``config["device"]``.

    Raises:
        CheckpointError: the file cannot be read, or the dataset has other users, items or
            interactions now.
        DatasetError: the dataset is not where the checkpoint's settings say.
    """
    state = checkpoint.load_checkpoint(path)
    config = config_of(state, path, model, config_dict=config_dict)
    init_seed(config["seed"], config["reproducibility"])
    start_log(config)
    data = load_data(config)
    check_data(state, data, path)
    loaders = make_loaders(config, data)
    recommender = make_model(config, loaders[0]._dataset)
    checkpoint.restore_model(recommender, state, path)
    return config, recommender, data.dataset, *loaders
