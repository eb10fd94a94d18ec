"""Options of training, one file each: what the option may be, whether it fits the run, what is said
of it, and what it computes.

An option is a module with

- ``RULES``, a rule by key, see :mod:`recbole_hydra.settings.rules`, where the comment of its line
  in ``properties/`` does not give one;
- ``fit(config)``, where it depends on other settings: it reads ``config.final_config_dict``, all
  settings as they stand, and ``config.external_config_dict``, those that the user wrote; it puts
  into the former what the run will have, adds to ``config.notes`` what the log should say, and
  raises ConfigError for what the user wrote that cannot be.

Its default is its line in ``properties/training.yaml``. Config walks over :data:`OPTIONS` in this
order: later ones read what earlier ones have decided.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from types import ModuleType
from typing import TYPE_CHECKING, Any

from recbole_hydra.settings.options import (
    item_initialization,
    item_memory,
    later_targets,
    learner,
    learning_rate_decay,
    negative_sampling,
    repeat_bias,
    text_loss,
    training_mode,
)

if TYPE_CHECKING:
    from recbole_hydra.settings.config import Config

#: All of them.
OPTIONS = (
    training_mode,
    item_initialization,
    item_memory,
    text_loss,
    repeat_bias,
    negative_sampling,
    later_targets,
    learning_rate_decay,
    learner,
)


def fit(options: Iterable[ModuleType], config: Config) -> None:
    """Fit a Config's settings to each other, option by option."""
    for option in options:
        if hasattr(option, "fit"):
            option.fit(config)


def rules() -> dict[str, Callable[[str, Any], Any]]:
    """The rules of all options, by key."""
    return {key: rule for option in OPTIONS for key, rule in getattr(option, "RULES", {}).items()}
