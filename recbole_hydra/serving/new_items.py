"""Items that came after the training: recommendable by what their texts say."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch

from recbole_hydra.data.item_text import new_item_sentence
from recbole_hydra.errors import ConfigError, DatasetError

if TYPE_CHECKING:
    from recbole.model.abstract_recommender import AbstractRecommender


@torch.no_grad()
def add_items(
    model: AbstractRecommender,
    items: Mapping[Any, Mapping[str, object]],
    domain: str | None = None,
) -> None:
    """Let a loaded model recommend items it was not trained on; nothing is trained.

    Afterwards :func:`~recbole_hydra.recommend` knows them as it knows the others, in
    histories, too. With ``item_encoder: id+text`` such an item is its text alone, until the next
    training.

    Args:
        model: from :func:`~recbole_hydra.load_model`, with item_encoder text or id+text.
        items: fields by raw id, ``{"B042": {"title": "HP ink", "brand": "HP"}}``, named and ordered
            as in the ``.item`` file.
        domain: which of the model's domains they belong to, where it has several.

    Raises:
        ConfigError: the model knows its items by id only, or ``domain`` is none of its.
        DatasetError: an item that the model has already, or without text, or an unknown field.
    """
    if not hasattr(model, "checkpoint") or getattr(model, "item_text", None) is None:
        raise ConfigError(
            "add_items: takes a model of load_model with item_encoder text or id+text; by its id "
            "alone nothing is known of a new item"
        )
    if model.checkpoint.get("is_served"):
        raise ConfigError(
            "add_items: a Recommender uses this model; add the items before it is made, or load "
            "the model once more"
        )
    config, vocabulary = model.checkpoint["config"], model.checkpoint["vocabulary"]
    domains = getattr(vocabulary, "domains", None)
    settings, prefix, place = config, "", vocabulary.item_num
    if domains is not None:
        if domain not in domains.names:
            raise ConfigError(f"domain must be one of {', '.join(domains.names)}, got {domain!r}")
        index = domains.names.index(domain)
        settings = {**config.final_config_dict, **config["domain_settings"][domain]}
        prefix, place = f"{domain}:", domains.ranges()[index][1]
    elif domain is not None:
        raise ConfigError(f"domain: this model has no domains, got {domain!r}")
    known = vocabulary.field2token_id[vocabulary.iid_field]
    tokens = [f"{prefix}{raw_id}" for raw_id in items]
    for token in tokens:
        if token in known:
            raise DatasetError(f"item {token}: the model has it already")
        if tokens.count(token) > 1:
            raise DatasetError(f"item {token}: it is given twice, as a number and as text")
    fields = items.values()
    texts = [new_item_sentence(settings, *item) for item in zip(tokens, fields, strict=True)]
    if not texts:
        return

    model.add_items(texts, place, config)
    vocabulary.insert_items(tokens, texts, place)
    items_of_users = model.checkpoint["histories"].get("items")
    if items_of_users is not None:
        items_of_users[items_of_users >= place] += len(tokens)
