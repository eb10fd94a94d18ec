"""``train_neg_sample_args``: RecBole's negatives, for a loss of pairs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from recbole.utils import InputType

from recbole_hydra.checks import one_of
from recbole_hydra.errors import ConfigError
from recbole_hydra.settings.rules import Nested, Rule, choice, integer, number, switch

if TYPE_CHECKING:
    from recbole_hydra.settings.config import Config

#: What RecBole writes where there is no negative sampling.
NO_SAMPLING = (None, "None", "none")

#: The losses of RecBole's own models.
RECBOLES_LOSSES = ("CE", "BPR")

#: What turns BPR's negative sampling on where nobody asked for another.
BPR_NEGATIVES = {"distribution": "uniform", "sample_num": 1}

_DISTRIBUTIONS = choice(("uniform", "popularity", "none"))

_ARGUMENTS = Nested(
    "{distribution: uniform, sample_num: 1}",
    {
        "distribution": Rule(
            _DISTRIBUTIONS.words,
            lambda value: "none" if value in NO_SAMPLING else _DISTRIBUTIONS.read(value),
        ),
        "sample_num": integer(least=1),
        "alpha": number(),
        "dynamic": switch(),
        "candidate_num": integer(least=0),
    },
    switched_off=NO_SAMPLING,
)


def _read(name: str, value: Any) -> dict[str, Any] | None:
    """Read ``train_neg_sample_args``; without a distribution there is no more to it."""
    if isinstance(value, dict) and value.get("distribution", "") in NO_SAMPLING:
        value = {key: each for key, each in value.items() if each not in NO_SAMPLING}
        others: Any = _ARGUMENTS(name, value)
        return {"distribution": "none", **others}
    found = _ARGUMENTS(name, value)
    if found and found.get("dynamic") and not found.get("candidate_num"):
        raise ConfigError(
            f"{name}: dynamic chooses among candidates: candidate_num must be a positive integer, "
            f"got {found.get('candidate_num')!r}"
        )
    return found and {"distribution": "uniform", **found}  # RecBole's default


RULES = {"train_neg_sample_args": _read}


def fit(config: Config) -> None:
    """Make ``train_neg_sample_args`` fit ``loss_type``, for models that train on either."""
    final, model_class = config.final_config_dict, config.model_class
    if hasattr(model_class, "input_type") or "loss_type" not in final:
        _check_pairs(config)
        return
    loss_type = one_of(
        "loss_type", final["loss_type"], getattr(model_class, "LOSS_TYPES", RECBOLES_LOSSES)
    )
    if loss_type not in RECBOLES_LOSSES:
        final["MODEL_INPUT_TYPE"] = InputType.POINTWISE  # RecBole knows only those two
    written = "train_neg_sample_args" in config.external_config_dict
    sampling = final.get("train_neg_sample_args")
    if isinstance(sampling, dict) and sampling.get("distribution") in NO_SAMPLING:
        sampling = None
    if sampling in NO_SAMPLING:
        sampling = None
    if written and (loss_type != "BPR") != (sampling is None):
        remedy = {
            "CE": "CE ranks all items and takes no negatives: remove train_neg_sample_args",
            "BPR": f"BPR needs negatives: remove it, or set {BPR_NEGATIVES}",
        }.get(loss_type, "it is for BPR alone: remove it, and set num_negatives")
        raise ConfigError(
            f"train_neg_sample_args: {sampling} contradicts loss_type {loss_type}; {remedy}"
        )
    if loss_type != "BPR" and sampling is not None:
        config.notes.append(f"train_neg_sample_args is set to none, since loss_type is {loss_type}")
        sampling = None
    elif loss_type == "BPR" and sampling is None:
        sampling = dict(BPR_NEGATIVES)
        config.notes.append(f"train_neg_sample_args is set to {sampling}, since loss_type is BPR")
    final["train_neg_sample_args"] = sampling


def _check_pairs(config: Config) -> None:
    """Refuse to leave out the negatives of a model that learns from pairs."""
    pairwise = getattr(config.model_class, "input_type", None) == InputType.PAIRWISE
    sampling = config.final_config_dict["train_neg_sample_args"]
    sampling = sampling["distribution"] if isinstance(sampling, dict) else sampling
    if sampling in NO_SAMPLING and pairwise:
        raise ConfigError(
            f"train_neg_sample_args: {config.model} learns from pairs and needs negatives: "
            f"remove it, or set {BPR_NEGATIVES}"
        )
