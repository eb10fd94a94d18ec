"""From a checkpoint to the model, without its dataset."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from recbole_hydra import checkpoint, threads
from recbole_hydra.data import Vocabulary
from recbole_hydra.errors import CheckpointError
from recbole_hydra.settings.of_checkpoint import config_of

if TYPE_CHECKING:
    import torch
    from recbole.model.abstract_recommender import AbstractRecommender


def load_model(
    path: str | os.PathLike[str],
    model: str | type | None = None,
    device: str | torch.device = "cpu",
    config_dict: Mapping[str, Any] | None = None,
) -> AbstractRecommender:
    """Make the model of a checkpoint again, in evaluation mode; the dataset is not needed.

    Args:
        path: a checkpoint of recbole_hydra, best or last.
        model: the class, or FILE.py:NAME, where it is neither ours nor RecBole's.
        device: where to put it.
        config_dict: settings that go over the checkpoint's, such as ``item_llm``, where the
            language model of the items' texts is now.

    Returns:
        The model, with ``model.checkpoint`` (path, settings, vocabulary, histories) for
        :func:`~recbole_hydra.recommend`.

    Raises:
        CheckpointError: the file cannot be read, or the model asks its dataset for more than the
            number of users and items (graph and feature models do; use load_data_and_model).
    """
    threads.watch()
    state = checkpoint.load_checkpoint(path)
    layer = {**(config_dict or {}), "use_gpu": False}
    config = config_of(state, path, model, config_dict=layer)
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
