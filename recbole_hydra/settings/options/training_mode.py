"""``training_mode``: every position of whole histories, or RecBole's prefixes; ``causal_models``,
what can be trained on the first, ``window_overlap`` and ``carry_state``, which belong to it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from recbole_hydra.checks import did_you_mean
from recbole_hydra.errors import ConfigError
from recbole_hydra.model import MODELS, recbole_model_names
from recbole_hydra.model.causal import KNOWN, can_carry_state, is_causal
from recbole_hydra.settings.rules import choice, integer, list_of, name_of, optional

if TYPE_CHECKING:
    from recbole_hydra.settings.config import Config

RULES = {
    "training_mode": choice(("auto", "autoregressive", "augmentation")),
    "window_overlap": optional(integer(least=0)),
    "causal_models": optional(list_of(name_of("model"), "a list of models")),
}


def fit(config: Config) -> None:
    """Resolve ``training_mode: auto``; refuse what the mode, or the model, does not have."""
    final, name = config.final_config_dict, config.model
    mode = final["training_mode"]
    known = {*MODELS, *recbole_model_names(), name}
    for other in final["causal_models"] or ():
        if other not in known:
            hint = did_you_mean(other, known)
            raise ConfigError(f"causal_models: there is no model {other!r}{hint}")
    causal = is_known_as_causal(config)
    if mode == "autoregressive" and not causal:
        raise ConfigError(
            f"training_mode: autoregressive is for {KNOWN}, which are known to be causal, not for "
            f"{name}; use auto or augmentation, or name it in causal_models"
        )
    if mode == "auto":
        mode = "autoregressive" if causal else "augmentation"
        config.notes.append(
            f"training_mode: autoregressive, every position of whole histories ({name})"
            if causal
            else f"training_mode: RecBole's own training, since {name} is not among the causal "
            f"models {KNOWN}"
        )
    final["training_mode"] = mode
    if final["carry_state"]:
        _check_carry_state(config, mode)
    size, overlap = final.get("MAX_ITEM_LIST_LENGTH"), final["window_overlap"]
    if overlap is None:
        return
    if mode != "autoregressive":
        config.notes.append("window_overlap is not used: training_mode is not autoregressive")
    elif overlap > size:
        raise ConfigError(
            f"window_overlap must be an integer in 0 .. MAX_ITEM_LIST_LENGTH ({size}), or ~ "
            f"for half of it, got {overlap!r}"
        )


def is_known_as_causal(config: Config) -> bool:
    """Whether the model is registered as causal, or the user says that it is."""
    named = config.final_config_dict["causal_models"] or ()
    return is_causal(config.model_class) or config.model in named


def _check_carry_state(config: Config, mode: str) -> None:
    if not can_carry_state(config.model_class):
        raise ConfigError(
            f"carry_state: {config.model} has no state to carry; Hydra and Mamba4Rec have"
        )
    if mode != "autoregressive":
        raise ConfigError(f"carry_state needs training_mode autoregressive, got {mode}; remove one")
    if config.external_config_dict.get("window_overlap") is not None:
        raise ConfigError(
            "window_overlap, carry_state: windows that carry the state do not overlap; "
            "remove one of them"
        )
