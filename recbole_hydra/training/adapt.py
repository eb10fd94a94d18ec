"""Starting from what a model has learned on other domains, and training only part of it further
(Yuan 2025, arXiv 2504.07398, several domains by one item LLM)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from recbole_hydra import checkpoint
from recbole_hydra.checks import one_of
from recbole_hydra.errors import CheckpointError, ConfigError

if TYPE_CHECKING:
    from recbole_hydra.model.sequential_recommender.hydra import Hydra
    from recbole_hydra.settings.config import Config

#: What ``adapt`` names: the LLM's LoRA and ``[ITEM]`` (all of the LLM if it was trained in full),
#: the projection of its states, and Hydra's layers and norms. What is kept of items by id, their
#: vectors with item_encoder id+text and their numbers in the repeat bias, is always trained: those
#: of new items have nothing to start from.
PARTS = ("lora", "projection", "hydra")

_OF_ITEMS = ("item_embedding.", "output_embedding.", "repeat_bias.item_weight")


def part_of(name: str) -> str:
    """The part that a parameter of Hydra belongs to: one of :data:`PARTS`, or "items"."""
    if name.startswith(_OF_ITEMS):
        return "items"
    if name.startswith("item_text.llm."):
        return "lora"
    return "projection" if name.startswith("item_text.") else "hydra"


def freeze_other_parts(model: Hydra, config: Config) -> None:
    """Let only the parts of ``config["adapt"]`` be trained.

    Raises:
        ConfigError: a part that does not exist, or that this model does not have.
    """
    chosen = config["adapt"]
    if not chosen:
        raise ConfigError(f"adapt: name at least one of {', '.join(PARTS)}")
    for part in chosen:
        one_of("adapt", part, PARTS)
    found = set()
    for name, parameter in model.named_parameters():
        part = part_of(name)
        if parameter.requires_grad:
            found.add(part)
        if part not in (*chosen, "items"):
            parameter.requires_grad_(False)
    if "lora" in chosen and "lora" not in found:
        raise ConfigError(
            "adapt: lora, but llm_training is frozen: nothing of the LLM is trained; set "
            "llm_training: lora, or leave it out"
        )
    assert model.item_text is not None
    if "lora" not in chosen and model.item_text.llm is not None:
        model.item_text.keep_states()


@torch.no_grad()
def load_parts(model: Hydra, config: Config, vocabulary: Mapping[str, Any]) -> None:
    """Load into a model what the checkpoint ``config["adapt_from"]`` has learned on other items.

    What is kept of items by id is that of the checkpoint for items that it knows, by raw id and
    domain. With ``user_model: per_domain`` a domain takes over its own layers; one that the
    checkpoint does not know starts with fresh ones.

    Args:
        vocabulary: of the model's dataset, see :func:`~recbole_hydra.checkpoint.vocabulary`.

    Raises:
        CheckpointError: the file cannot be read, is of another kind of model, or of other sizes.
    """
    path = config["adapt_from"]
    state = checkpoint.load_checkpoint(path)
    source, own = state["state_dict"], model.state_dict()
    for name, value in own.items():
        part = part_of(name)
        if part == "items":
            _copy_known_items(config, value, vocabulary, source.get(name), state)
            continue
        origin = _origin(name, config, state)
        if origin not in source:
            if part != "lora" and origin is not None:
                raise CheckpointError(f"{path}: it has no {origin}; it is of another kind of model")
            continue  # LoRA that the checkpoint's frozen LLM did not have, or a new domain's layers
        if name.endswith("_extra_state"):
            assert model.item_text is not None
            model.item_text.set_extra_state(source[origin])
        elif value.shape != source[origin].shape:
            raise CheckpointError(
                f"{path}: {origin} is {tuple(source[origin].shape)} there, "
                f"{tuple(value.shape)} here; leave the model's sizes as they were"
            )
        else:
            value.copy_(source[origin])


def _origin(name: str, config: Config, state: Mapping[str, Any]) -> str | None:
    """The name in the checkpoint of a parameter of the new model; None where it has none."""
    if not name.startswith("layers."):
        return name
    old = _stacks(state["config"])
    new = _stacks(config)
    rest = name.removeprefix("layers.")
    if new is None:
        domain = config["dataset"]
    else:
        index, _, rest = rest.partition(".")
        domain = new[int(index)]
    if old is None:
        return f"layers.{rest}"
    return f"layers.{old.index(domain)}.{rest}" if domain in old else None


def _stacks(config: Config | Mapping[str, Any]) -> list[str] | None:
    """The domains that have layers of their own; None where all share theirs."""
    return config["domains"] if config["user_model"] == "per_domain" and config["domains"] else None


def _copy_known_items(
    config: Config,
    table: Tensor,
    vocabulary: Mapping[str, Any],
    source: Tensor | None,
    state: Mapping[str, Any],
) -> None:
    """Fill the rows of items that the checkpoint has vectors of."""
    if source is None:
        return
    rows = {token: row for row, token in enumerate(state["vocabulary"]["item"])}
    old_is_joint, new_is_joint = bool(state["config"]["domains"]), bool(config["domains"])
    for row, token in enumerate(vocabulary["item"][1:], start=1):
        if old_is_joint and not new_is_joint:
            token = f"{config['dataset']}:{token}"
        elif new_is_joint and not old_is_joint:
            domain, _, rest = token.partition(":")
            token = rest if domain == state["dataset"] else None
        elif not new_is_joint and config["dataset"] != state["dataset"]:
            token = None  # equal ids of two datasets are different items
        if token in rows:
            table[row] = source[rows[token]]
