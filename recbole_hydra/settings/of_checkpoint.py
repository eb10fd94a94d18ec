"""The Config of a checkpoint."""

import os
from collections.abc import Mapping, Sequence
from typing import Any

from recbole_hydra.errors import CheckpointError, ConfigError
from recbole_hydra.model import get_model, recbole_model_names
from recbole_hydra.settings.config import Config


def config_of(
    state: Mapping[str, Any],
    path: str | os.PathLike[str],
    model: str | type | None = None,
    dataset: str | None = None,
    config_file_list: str | os.PathLike[str] | Sequence[str | os.PathLike[str]] | None = None,
    config_dict: Mapping[str, Any] | None = None,
    argv: Sequence[str] = (),
) -> Config:
    """Make the Config of a checkpoint again, the user's layers over its settings.

    Args:
        state: what :func:`.checkpoint.load_checkpoint` read from the file ``path``.
        model, dataset, config_file_list, config_dict, argv: as for
            :class:`~recbole_hydra.settings.config.Config`.

    Raises:
        CheckpointError: it is of another model, or dataset.
        ConfigError: as of Config.
    """
    for key, given in (("model", model), ("dataset", dataset)):
        name = given if given is None or isinstance(given, str) else given.__name__
        if key == "model" and name is not None:
            name = name.rpartition(":")[2]  # of a file's class
        if name not in (None, state[key]):
            raise CheckpointError(f"{path}: its {key} is {state[key]}, not {name}")
    own = state["model"]
    if model is None and own not in recbole_model_names():
        try:
            get_model(own)
        except ConfigError as error:
            raise CheckpointError(
                f"{path}: there is no model {own!r}, so it is a class of your own; name it with "
                f"its file, --model=FILE.py:{own}, or pass the class, load_model(path, "
                f"model={own}), for recommend and Recommender"
            ) from error
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
