"""RecBole's case study, the scores of all items for chosen users, on every evaluation loader.

RecBole's own reads attributes that only its full-ranking loader has; it returns fewer rows than
users where some have none.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from recbole.data.dataloader import FullSortEvalDataLoader, NegSampleEvalDataLoader
from recbole.data.interaction import Interaction
from recbole.utils import ModelType
from torch import Tensor

from recbole_hydra.data.domains import DomainLoaders
from recbole_hydra.errors import DatasetError

if TYPE_CHECKING:
    from numpy.typing import ArrayLike
    from recbole.data.dataloader.abstract_dataloader import AbstractDataLoader
    from recbole.data.dataset import Dataset
    from recbole.model.abstract_recommender import AbstractRecommender


@torch.no_grad()
def full_sort_scores(
    uid_series: ArrayLike,
    model: AbstractRecommender,
    test_data: AbstractDataLoader | DomainLoaders,
    device: torch.device | str | None = None,
) -> Tensor:
    """The scores of all items for users, as RecBole's function of that name.

    Args:
        uid_series: internal user ids, ``dataset.token2id(uid_field, raw_ids)``.
        model: a trained model.
        test_data: validation or test data: RecBole's loaders, ours, or those of several domains.
        device: where the model is; found by itself if None.

    Returns:
        (rows, items) tensor: for general models a row per user; for sequential models the user's
        rows in ``test_data``, one in a leave-one-out split, in the order of ``uid_series``. -inf
        is the score of the padding, of what the user has had where general models leave it out,
        and of the items of other domains than the target's.

    Raises:
        DatasetError: a user without a row in ``test_data``, ids that are not internal ones, or
            another kind of data.
    """
    evaluation = (FullSortEvalDataLoader, NegSampleEvalDataLoader, DomainLoaders)
    if not isinstance(test_data, evaluation):
        raise DatasetError(
            f"case study: it takes validation or test data, not a {type(test_data).__name__}; "
            "recbole_hydra.recommend goes on from a user's whole history"
        )
    domains = getattr(test_data, "domains", None)
    loader: AbstractDataLoader = (
        test_data if domains is None else next(iter(test_data.by_name.values()))
    )
    dataset, config = test_data._dataset, loader.config
    users = _internal_ids(uid_series, dataset)
    own = dataset.inter_feat[dataset.uid_field]
    missing = users[~torch.isin(users, own)]
    if len(missing) > 0:
        raise DatasetError(
            f"case study: user {str(dataset.id2token(dataset.uid_field, int(missing[0])))!r} "
            f"(internal id {int(missing[0])}) has no row in this data; take another, or "
            "recbole_hydra.recommend, which goes on from a user's whole history"
        )
    if config["MODEL_TYPE"] == ModelType.SEQUENTIAL:
        history: list[Tensor] = []
        rows = dataset[(users[:, None] == own).nonzero()[:, 1]]
    else:
        history = [_history(loader, user) for user in users.tolist()]
        rows = dataset.join(Interaction({dataset.uid_field: users}))
    if device is None:
        device = next((p.device for p in model.parameters()), torch.device("cpu"))
    model.eval()
    scores = _scores(model, rows.to(device), dataset).view(-1, dataset.item_num)
    scores[:, 0] = -torch.inf
    for row, items in enumerate(history):
        scores[row, items] = -torch.inf
    if domains is not None:
        domain = domains.of(rows[dataset.iid_field])
        for row, (start, stop) in enumerate(domains.ranges()[i] for i in domain.tolist()):
            scores[row, :start] = -torch.inf
            scores[row, stop:] = -torch.inf
    return scores


def full_sort_topk(
    uid_series: ArrayLike,
    model: AbstractRecommender,
    test_data: AbstractDataLoader | DomainLoaders,
    k: int,
    device: torch.device | str | None = None,
) -> torch.return_types.topk:
    """The k best of :func:`full_sort_scores`: their scores and internal ids, (rows, k) each."""
    return torch.topk(full_sort_scores(uid_series, model, test_data, device), k)


def _internal_ids(uid_series: ArrayLike, dataset: Dataset) -> Tensor:
    users = np.atleast_1d(np.asarray(uid_series))
    if users.dtype.kind not in "iu" or not np.all((users > 0) & (users < dataset.user_num)):
        raise DatasetError(
            f"case study: users are internal ids in 1 .. {dataset.user_num - 1}, got "
            f"{users[:3].tolist()}; dataset.token2id({dataset.uid_field!r}, [...]) gives them"
        )
    return torch.from_numpy(users.astype(np.int64))


def _history(loader: AbstractDataLoader, user: int) -> Tensor:
    """What a general model is not to recommend to a user, as item ids."""
    if hasattr(loader, "uid2history_item"):
        return loader.uid2history_item[user]
    rows = loader._dataset.inter_feat
    asked = rows[loader.iid_field][rows[loader.uid_field] == user].tolist()
    return torch.tensor(sorted(loader._sampler.used_ids[user] - {*asked}), dtype=torch.long)


def _scores(model: AbstractRecommender, rows: Interaction, dataset: Dataset) -> Tensor:
    try:
        return model.full_sort_predict(rows)
    except NotImplementedError:  # it scores one item at a time
        items = dataset.get_item_feature().to(rows[dataset.uid_field].device).repeat(len(rows))
        pairs = rows.repeat_interleave(dataset.item_num)
        pairs.update(items)
        return model.predict(pairs)
