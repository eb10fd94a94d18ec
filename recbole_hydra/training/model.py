"""The model of a run, on the data that it is to be trained on."""

from __future__ import annotations

import os
import traceback
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch

from recbole_hydra.errors import CheckpointError, ConfigError, RecBoleHydraError

if TYPE_CHECKING:
    from recbole.data.dataset import Dataset
    from recbole.model.abstract_recommender import AbstractRecommender

    from recbole_hydra.data import PreparedData
    from recbole_hydra.settings.config import Config


def make_model(config: Config, dataset: Dataset) -> AbstractRecommender:
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


def check_data(state: Mapping[str, Any], data: PreparedData, path: str | os.PathLike[str]) -> None:
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
