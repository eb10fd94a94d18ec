"""``repeat_bias``, ``history_as_one``, and the sampled losses with what belongs to them, for every
causal model: what is not the architecture is not one model's alone.

A class of RecBole's form gets them where a setting asks for one; otherwise it stays what it is.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from recbole.model.abstract_recommender import SequentialRecommender

from recbole_hydra.errors import ConfigError
from recbole_hydra.layers import RepeatBias
from recbole_hydra.model.causal import is_causal, with_our_losses
from recbole_hydra.model.sequential_recommender.base import CausalRecommender
from recbole_hydra.settings.derived import read_yaml
from recbole_hydra.settings.known_keys import FOR_CAUSAL_MODELS, OF_CAUSAL_MODELS, PROPERTIES
from recbole_hydra.settings.rules import choice, integer, number, optional, switch

if TYPE_CHECKING:
    from recbole_hydra.settings.config import Config

RULES = {
    "repeat_bias": optional(choice((*RepeatBias.FORMS, "none"))),
    "history_as_one": optional(switch()),
    "num_negatives": integer(least=1),
    "negative_distribution": choice(("uniform", "popularity")),
    "logq_correction": switch(),
    "gbce_t": number(least=0, most=1),
}

#: The losses that RecBole's models do not have.
_SAMPLED = ("SampledCE", "gBCE")

#: What is for some losses only.
_OF_LOSSES = {
    "num_negatives": _SAMPLED,
    "negative_distribution": _SAMPLED,
    "logq_correction": ("SampledCE",),
    "gbce_t": ("gBCE",),
}


def _is_causal(config: Config) -> bool:
    """Whether a model is registered as causal, or the user says that it is; for a Config that is
    still being made."""
    layers = {**config.internal_config_dict, **config.external_config_dict}
    named = config.check_value("causal_models", layers["causal_models"])
    return is_causal(config.model_class) or config.model in (named or ())


def add_defaults(config: Config) -> None:
    """Put the defaults of these settings below those that a causal model has of its own."""
    if _is_causal(config):
        defaults = read_yaml(PROPERTIES / "model" / "CausalRecommender.yaml")
        for key in OF_CAUSAL_MODELS:
            config.internal_config_dict.setdefault(key, defaults[key])


def loss_rule(config: Config, plain: Callable[[str, Any], Any]) -> Callable[[str, Any], Any]:
    """The rule of ``loss_type`` for a sequential model of RecBole's or a user's.

    Args:
        plain: the rule that it has by itself.
    """
    model_class = config.model_class
    if issubclass(model_class, CausalRecommender) or not issubclass(
        model_class, SequentialRecommender
    ):
        return plain
    if _is_causal(config):
        return choice(CausalRecommender.LOSS_TYPES)

    def read(name: str, value: Any) -> Any:
        if value in _SAMPLED:
            raise ConfigError(
                f"{name}: {value} is {FOR_CAUSAL_MODELS}, not for {config.model}; use CE or BPR"
            )
        return plain(name, value)

    return read


def fit(config: Config) -> None:
    """Let the repeat bias and our losses join a model of RecBole's form where a setting asks for
    one of them; say which settings nothing reads with this loss."""
    final = config.final_config_dict
    if not _is_causal(config):
        return
    loss_type = final.get("loss_type")
    for key, losses in _OF_LOSSES.items():
        if key in config.external_config_dict and loss_type not in losses:
            config.notes.append(
                f"{key} is not used: it is for loss_type {' and '.join(losses)}, not {loss_type}"
            )
    if issubclass(config.model_class, CausalRecommender):
        return
    asked = [
        f"{key}: {final[key]}"
        for key, others in (
            ("repeat_bias", (None, "none")),
            ("history_as_one", (None, False)),
            ("loss_type", (None, "CE", "BPR")),
            ("item_memory", (None, "none")),
        )
        if final.get(key) not in others
    ]
    if asked:
        config.model_class = with_our_losses(config.model_class)
        config.notes.append(
            f"{', '.join(asked)}: {config.model} computes the states, its loss and scores are "
            "those of CausalRecommender"
        )
