"""Recommendations from a checkpoint, on raw ids, without the dataset."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from numbers import Integral
from typing import TYPE_CHECKING, Any

import torch
from recbole.data.interaction import Interaction
from recbole.utils import ModelType
from torch import Tensor

from recbole_hydra.errors import CheckpointError, ConfigError, DatasetError
from recbole_hydra.serving.item_filter import ItemFilter, Paths
from recbole_hydra.serving.load import load_model

if TYPE_CHECKING:
    from recbole.model.abstract_recommender import AbstractRecommender

    from recbole_hydra.data import Vocabulary
    from recbole_hydra.settings.config import Config


@torch.no_grad()
def recommend(
    model: str | os.PathLike[str] | AbstractRecommender,
    user: str | int | Iterable[str | int],
    k: int = 10,
    exclude_history: bool = False,
    domain: str | None = None,
    filter: Mapping[str, Any] | None = None,
    items: Paths | None = None,
) -> list[tuple[str, float]]:
    """Recommend the ``k`` best items to a user, known or described by a history.

    Args:
        model: path of a checkpoint, or a model from :func:`~recbole_hydra.load_model` (which saves
            reading the file again).
        user: a raw user id (str or int), who is taken with all interactions of the dataset the
            model was trained on; or a history, a list of raw item ids, oldest first.
        k: number of items.
        exclude_history: leave the items of the history out.
        domain: of a model of several domains, the one whose items are recommended; by default that
            of the last item of the history. Raw ids begin with the domain, "amazon-office:B001".
        filter, items: by column of the ``.item`` file what the items have there, and where that
            file is, as of :class:`~recbole_hydra.Recommender`, which reads it once for many calls.

    Returns:
        ``[(raw item id, score), ...]``, best first.

    Raises:
        DatasetError: a raw id that the checkpoint does not know, or an empty history.
        ConfigError: ``k`` is not in 1 .. number of items, or a filter that does not fit the file.
        CheckpointError: the file cannot be read, lacks the users' histories, or its model needs
            more than items and users to score.
    """
    recommender: AbstractRecommender = (
        load_model(model) if not isinstance(model, torch.nn.Module) else model
    )
    checkpoint = recommender.checkpoint
    config, vocabulary = checkpoint["config"], checkpoint["vocabulary"]
    user_id, history = _resolve(recommender, user)
    if exclude_history and history is None:
        raise CheckpointError(
            f"{checkpoint['path']}: holds no users' histories, as its dataset has no times, "
            "so exclude_history cannot be"
        )
    n_items = vocabulary.item_num
    start, stop = candidate_range(vocabulary, history, domain)
    if isinstance(k, bool) or not isinstance(k, Integral) or not 1 <= k <= stop - start:
        raise ConfigError(f"k must be in 1 .. {stop - start}, got {k!r}")

    allowed = None
    if filter is not None:
        allowed = ItemFilter(config, vocabulary, items, checkpoint["path"]).allowed(filter)

    scores = scores_of(recommender, config, user_id, history, n_items)
    scores[:start] = scores[stop:] = -torch.inf  # the padding is no item
    if exclude_history:
        scores[history] = -torch.inf
    if allowed is not None:
        scores[torch.from_numpy(~allowed)] = -torch.inf
    best = torch.topk(scores, k)
    tokens = vocabulary.field2id_token[vocabulary.iid_field]
    return [
        (tokens[item], score)
        for score, item in zip(best.values.tolist(), best.indices.tolist(), strict=True)
        if score != -torch.inf
    ]


def candidate_range(
    vocabulary: Vocabulary, history: Sequence[int] | None, domain: str | None
) -> tuple[int, int]:
    """The range of internal ids that are recommended."""
    domains = getattr(vocabulary, "domains", None)
    if domains is None:
        if domain is not None:
            raise ConfigError(f"domain: this model has no domains, got {domain!r}")
        return 1, vocabulary.item_num
    names = ", ".join(domains.names)
    if domain is None:
        if not history:
            raise ConfigError(f"domain: nothing is known of the user; name one of {names}")
        return domains.ranges()[int(domains.of(torch.tensor(history[-1])))]
    if domain not in domains.names:
        raise ConfigError(f"domain must be one of {names}, got {domain!r}")
    return domains.ranges()[domains.names.index(domain)]


def _resolve(
    model: AbstractRecommender, user: str | int | Iterable[str | int]
) -> tuple[int, list[int] | None]:
    """Return the internal user id (0 if unknown) and the history as internal item ids, None where
    the checkpoint has none."""
    checkpoint = model.checkpoint
    vocabulary, histories = checkpoint["vocabulary"], checkpoint["histories"]
    if not vocabulary.field2id_token:
        raise CheckpointError(f"{checkpoint['path']}: holds no vocabulary, so no raw ids")
    if isinstance(user, (str, Integral)):
        user_id = vocabulary.internal_id(vocabulary.uid_field, user)
        if not histories:
            if model.type == ModelType.SEQUENTIAL:
                raise CheckpointError(
                    f"{checkpoint['path']}: holds no users' histories (RecBole's own Trainer wrote "
                    "it); pass the history, a list of item ids, instead of the user"
                )
            return user_id, None
        start, stop = histories["start"][user_id : user_id + 2].tolist()
        if start == stop and model.type == ModelType.SEQUENTIAL:
            raise DatasetError(
                f"{vocabulary.uid_field} {user!r} has no interactions in the training data; pass a "
                "history, a list of item ids"
            )
        return user_id, histories["items"][start:stop].tolist()
    if model.type != ModelType.SEQUENTIAL:
        raise ConfigError(
            f"{type(model).__name__} recommends to users it knows: pass a user id, not a history"
        )
    if not isinstance(user, Iterable):
        raise DatasetError(f"user: a raw id (str or int) or a list of item ids, not {user!r}")
    history = [vocabulary.internal_id(vocabulary.iid_field, item) for item in user]
    if not history:
        raise DatasetError("history: it is empty; a recommendation needs at least one item")
    return 0, history


def scores_of(
    model: AbstractRecommender,
    config: Config,
    user_id: int,
    history: Sequence[int] | None,
    n_items: int,
) -> Tensor:
    """Scores of all items, (n_items,)."""
    row = {config["USER_ID_FIELD"]: torch.tensor([user_id])}
    if model.type == ModelType.SEQUENTIAL:
        assert history is not None
        length = len(history) if config["carry_state"] else config["MAX_ITEM_LIST_LENGTH"]
        recent = history[-length:]
        padded = torch.zeros(1, length, dtype=torch.long)
        padded[0, : len(recent)] = torch.tensor(recent)
        row[config["ITEM_ID_FIELD"] + config["LIST_SUFFIX"]] = padded
        row[config["ITEM_LIST_LENGTH_FIELD"]] = torch.tensor([len(recent)])
    interaction = Interaction(row).to(config["device"])
    try:
        try:
            scores = model.full_sort_predict(interaction)
        except NotImplementedError:  # the model scores one candidate at a time
            interaction = interaction.repeat_interleave(n_items)
            items = torch.arange(n_items, device=config["device"])
            interaction.update(Interaction({config["ITEM_ID_FIELD"]: items}))
            scores = model.predict(interaction)
    except KeyError as error:
        raise CheckpointError(
            f"{type(model).__name__} scores with the field {error}, which a checkpoint does not "
            "hold; use load_data_and_model"
        ) from error
    return scores.view(-1).clone().cpu()
