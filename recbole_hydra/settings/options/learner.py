"""``learner``: which optimizer."""

from __future__ import annotations

import inspect
import re
from typing import TYPE_CHECKING

from recbole.trainer import Trainer

from recbole_hydra.errors import ConfigError
from recbole_hydra.settings.rules import choice
from recbole_hydra.sources import source_of

if TYPE_CHECKING:
    from recbole_hydra.settings.config import Config


def learners() -> list[str]:
    """RecBole's names of optimizers, any other of which it takes for Adam."""
    compared = r'learner.lower\(\) == "(\w+)"'
    return list(dict.fromkeys(re.findall(compared, inspect.getsource(Trainer._build_optimizer))))


RULES = {"learner": choice(learners(), any_case=True)}


def fit(config: Config) -> None:
    """Refuse sparse_adam, which torch has for sparse gradients alone, where there are none."""
    learner = config.final_config_dict["learner"].lower()
    source = source_of(config.model_class)
    if learner == "sparse_adam" and source is not None and "sparse=True" not in source:
        raise ConfigError(
            "learner: sparse_adam is for sparse gradients, and those of "
            f"{config.model} are dense; use adam"
        )
