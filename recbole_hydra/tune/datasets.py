"""One place that builds datasets for all trials of a sweep."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from recbole.utils.argument_list import dataset_arguments

from recbole_hydra.data import PreparedData, prepare_data
from recbole_hydra.settings.config import Config

if TYPE_CHECKING:
    from ray import ObjectRef

#: The settings that decide what a dataset and its split are. RecBole's own list is of the dataset.
DECISIVE = (
    *dataset_arguments, "data_path", "seed", "repeatable", "eval_args", "time_order",
    "training_mode", "carry_state", "domains", "domain_settings", "merge_users", "item_encoder",
    "item_text_fields", "item_prompt", "missing_item_text", "encoding", "item_list_padding",
)  # fmt: skip


class Datasets:
    """Builds each dataset of a sweep once, whatever the number of its trials.

    It runs as a Ray actor on the node of the driver, so that the data need be nowhere else. What it
    builds lies in Ray's object store: a node fetches it once, and its trials read it there. Trials
    that differ in settings of the data, as ``MAX_ITEM_LIST_LENGTH``, get datasets of their own.

    Attributes:
        built: how many datasets were built.
    """

    def __init__(self) -> None:
        self.built = 0
        self._references: dict[str, ObjectRef] = {}

    def get(self, model: str | type, dataset: str, settings: dict[str, Any]) -> list[ObjectRef]:
        """Build a dataset, or find it.

        Args:
            model, dataset, settings: those of a trial's Config.

        Returns:
            A list of one reference to the :class:`~recbole_hydra.data.dataset.PreparedData`; in a
            list, Ray leaves it a reference.

        Raises:
            DatasetError, ConfigError: what the Config and the data refuse.
        """
        import ray

        config = Config(model, dataset, config_dict=settings)
        key = json.dumps([config[name] for name in DECISIVE], default=str)
        if key not in self._references:
            self._references[key] = ray.put(prepare_data(config))
            self.built += 1
        return [self._references[key]]

    def count(self) -> int:
        """Return :attr:`built`."""
        return self.built


def loader_of(
    datasets: Any, model: str | type, dataset: str, settings: dict[str, Any]
) -> Callable[[Config], PreparedData]:
    """A ``load_data`` for :func:`~recbole_hydra.training.run.train` that asks the actor.

    Args:
        datasets: the handle of the :class:`Datasets` actor.
        model, dataset, settings: those of the trial.
    """
    import ray

    def load(config: Config) -> PreparedData:
        (reference,) = ray.get(datasets.get.remote(model, dataset, settings))
        data = ray.get(reference)
        for part in (data.dataset, *(data.splits or [])):
            part.config = config
        return data

    return load
