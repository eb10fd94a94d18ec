"""The rank of every test user's target, in two rankings of the same scores.

The rankings, by column of :func:`rank_targets`:

- ``rank``: over all items, as RecBole ranks for sequential models;
- ``rank_masked``: over the items that the user had not interacted with before, and the target, as
  RecBole ranks for general models.

A rank is 1 for the best item. Items with the same score as the target share its place: the target
takes the middle one, so that a model which scores all items alike ranks nothing well.

Metrics of what is recommended, such as the coverage of the catalogue, are of the first k items in
each of the two.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from recbole_hydra.compare.in_time import targets_after
from recbole_hydra.errors import DatasetError, TrainingError
from recbole_hydra.metrics import OF_ALL_LISTS, OF_EACH_LIST, list_metric, top_lists

if TYPE_CHECKING:
    from numpy.typing import ArrayLike
    from recbole.data.dataset import Dataset

    from recbole_hydra.data.domains import Domains
    from recbole_hydra.training.run import Run

#: The rankings, and what a table adds to the name of a metric.
RANKINGS = {"rank": "", "rank_masked": ", masked"}

#: Metrics of one target per user from its rank r at cut-off k.
METRICS = {
    "hit": lambda r, k: (r <= k) * 1.0,
    "recall": lambda r, k: (r <= k) * 1.0,
    "precision": lambda r, k: (r <= k) / k,
    "ndcg": lambda r, k: (r <= k) / np.log2(r + 1.0),
    "mrr": lambda r, k: (r <= k) / r,
    "map": lambda r, k: (r <= k) / r,
}


def metric(name: str, ranks: ArrayLike) -> np.ndarray:
    """Per-user values of a metric such as ``"ndcg@10"`` from ranks (users,)."""
    kind, _, k = name.partition("@")
    return METRICS[kind](np.asarray(ranks), int(k))


#: Where a table of :func:`rank_targets` keeps the metrics that are of all users together.
_OF_ALL = "of all lists"


def is_per_user(name: str) -> bool:
    """Whether a metric is a mean over users; the coverage of the catalogue, e.g., is not."""
    return name.partition("@")[0] not in OF_ALL_LISTS


def user_values(name: str, table: pd.DataFrame, ranking: str = "rank") -> np.ndarray:
    """Per-user values of a metric for which :func:`is_per_user` holds, in the table's order; NaN
    where it says nothing of a user (GAUC, of one with a single candidate).

    Args:
        table: of :func:`rank_targets`. ranking: one of :data:`RANKINGS`.
    """
    column = f"{name}{RANKINGS[ranking]}"
    return table[column].to_numpy() if column in table else metric(name, table[ranking])


def mean_metric(
    name: str, table: pd.DataFrame, ranking: str = "rank", domain: str | None = None
) -> float:
    """The mean of a metric over users; with several domains, over the domains' means.

    Args:
        table: of :func:`rank_targets`. ranking: one of :data:`RANKINGS`.
        domain: of this domain alone.
    """
    if not is_per_user(name):
        own = "" if domain is None else f" {domain}"
        return table.attrs[_OF_ALL][f"{name}{RANKINGS[ranking]}{own}"]
    values = pd.Series(user_values(name, table, ranking))
    if "domain" not in table:
        return float(values.mean())
    means = values.groupby(table["domain"].to_numpy()).mean()
    return float(means.mean() if domain is None else means[domain])


def display(name: str) -> str:
    """``ndcg@10`` as RecBole writes it, ``NDCG@10``."""
    from recbole.evaluator.register import metrics_dict

    kind, at, k = name.partition("@")
    return f"{metrics_dict[kind].__name__}{at}{k}"


def targets_of(dataset: Dataset, histories: Mapping[str, Tensor]) -> pd.DataFrame:
    """Who is tested on what in the split of a dataset: :func:`.in_time.targets_after` of a cut in
    time, otherwise :func:`left_out_targets`.

    Args:
        dataset: that was split. histories: :func:`~recbole_hydra.data.user_histories` of it.
    """
    cut = getattr(dataset, "time_cut", None)
    if cut is not None:
        return targets_after(cut, dataset.item_num)
    return left_out_targets(histories, dataset.item_num)


def by_target(table: pd.DataFrame) -> pd.DataFrame:
    """A table of :func:`rank_targets` by what its rows are of, sorted: by user, or, where a user
    has several, by user and event."""
    return table.set_index(["user", "event"] if "event" in table else "user").sort_index()


def left_out_targets(histories: Mapping[str, Tensor], n_items: int) -> pd.DataFrame:
    """Who is tested on what: the last interaction of every user with three or more.

    This is RecBole's leave-one-out split of sequential models, whose rows have a history and a
    target, and whose first row of a user is never left out.

    Args:
        histories: :func:`~recbole_hydra.data.user_histories` of a dataset.
        n_items: its number of internal item ids.

    Returns:
        One row per user, by internal ids: user, item, history_length (items before the target),
        item_count (how often the item occurs in training), repeat (whether the history has it).
    """
    items, start = histories["items"].numpy(), histories["start"].numpy()
    sizes = np.diff(start)
    users = np.flatnonzero(sizes >= 3)
    last = start[users + 1] - 1
    counts = _training_counts(histories, n_items)
    target = items[last]
    owner = np.repeat(np.arange(len(sizes)), sizes)
    position_of_user = np.full(len(sizes), -1)
    position_of_user[users] = np.arange(len(users))
    row = position_of_user[owner]
    before = (row >= 0) & (np.arange(len(items)) < last[row])
    repeat = np.zeros(len(users), dtype=bool)
    repeat[row[before & (items == target[row])]] = True
    return pd.DataFrame(
        {
            "user": users,
            "item": target,
            "history_length": sizes[users] - 1,
            "item_count": counts[target],
            "repeat": repeat,
        }
    )


def _training_counts(histories: Mapping[str, Tensor], n_items: int) -> np.ndarray:
    """How often each item occurs in training, (n_items,): the same for every model of a table.

    Training has all but a user's last two interactions; with three, RecBole leaves one out of the
    rows of sequential models.
    """
    items, start = histories["items"].numpy(), histories["start"].numpy()
    sizes = np.diff(start)
    last, longer = start[1:][sizes >= 3] - 1, start[1:][sizes > 3] - 1
    counts = np.bincount(items, minlength=n_items)
    return counts - np.bincount(items[np.concatenate([last, longer - 1])], minlength=n_items)


def fingerprint(dataset: Dataset, targets: pd.DataFrame) -> dict[str, Any]:
    """What two runs must share to stand in one table.

    Returns:
        ``test_targets`` and ``items``, hashes of raw ids; ``test_users`` and ``candidates``,
        numbers; of a cut in time also ``cut``, its :meth:`~.TimeCut.summary`.
    """
    users, items = _raw(dataset, targets)
    names = dataset.field2id_token[dataset.iid_field][1:]
    cut = getattr(dataset, "time_cut", None)
    return {
        "test_targets": _hash(f"{u}\t{i}" for u, i in zip(users, items, strict=True)),
        "items": _hash(names),
        "test_users": targets["user"].nunique(),
        "candidates": len(names),
        **({} if cut is None else {"cut": cut.summary()}),
    }


def _raw(dataset: Dataset, targets: pd.DataFrame) -> tuple[np.ndarray, np.ndarray]:
    tokens = dataset.field2id_token
    users = np.asarray(tokens[dataset.uid_field])[targets["user"].to_numpy()]
    return users, np.asarray(tokens[dataset.iid_field])[targets["item"].to_numpy()]


def _hash(names: Iterable[object]) -> str:
    return hashlib.sha256("\n".join(sorted(map(str, names))).encode()).hexdigest()[:16]


@torch.no_grad()
def rank_targets(
    run: Run,
    targets: pd.DataFrame,
    metrics: Sequence[str] = (),
    tail_ratio: float | None = None,
) -> pd.DataFrame:
    """Rank the targets of a run's test users.

    Args:
        run: a :class:`~recbole_hydra.training.run.Run` that was tested, its best model loaded.
        targets: :func:`targets_of` its dataset.
        metrics: names as ``"giniindex@10"``; those that the rank does not tell are kept, too.
        tail_ratio: see :mod:`recbole_hydra.metrics`.

    Returns:
        One row per target, by raw ids: the columns of :func:`targets_of`, rank, rank_masked,
        and ties, the number of items with the target's score in the ranking of all items; with
        several domains also domain, the target's, among whose items it is ranked; and a column per
        ranking of GAUC and of metrics of each user's list, where ``metrics`` has them. In its
        ``attrs`` ``others``, the number of users that RecBole tests beside these, and what
        :func:`mean_metric` reads of the metrics of all lists.

    Raises:
        DatasetError: the run's test data lacks a user, or tests another item.
        TrainingError: a score is not a number.
    """
    items, start = run.data.histories["items"], run.data.histories["start"]
    uid, trainer = run.data.dataset.uid_field, run.trainer
    position = torch.full((run.data.dataset.user_num,), -1)
    position[torch.from_numpy(targets["user"].to_numpy())] = torch.arange(len(targets))
    expected, users_of, lengths_of = (
        torch.from_numpy(targets[column].to_numpy()).long()
        for column in ("item", "user", "history_length")
    )
    ranks = np.zeros((len(targets), 3), dtype=np.int64)
    of_lists = [m for m in metrics if m.partition("@")[0] in {**OF_EACH_LIST, **OF_ALL_LISTS}]
    places = max((int(m.partition("@")[2]) for m in of_lists), default=0)
    lists = {ranking: np.zeros((len(targets), places), dtype=np.int64) for ranking in RANKINGS}
    auc = {ranking: np.zeros(len(targets)) for ranking in RANKINGS}
    others = 0

    def keep(ranking: str, at: np.ndarray, scores: Tensor, target: Tensor) -> None:
        if places:
            lists[ranking][at] = top_lists(scores, places).numpy()
        if "gauc" in metrics:
            auc[ranking][at] = _auc(scores, target)

    trainer.model.eval()
    cut = getattr(run.data.dataset, "time_cut", None)
    # After a cut, the rows of the test part are the targets, in their order.
    sampler = [None] * len(run.loaders[2]) if cut is None else run.loaders[2].batch_sampler
    for batch, index in zip(run.loaders[2], sampler, strict=True):
        rows, scores, row_of_target, target = trainer._full_sort_batch_eval(batch)
        users = rows[uid].cpu()[row_of_target]
        at = position[users] if index is None else torch.as_tensor(index)
        known = at >= 0  # RecBole also tests general models on users with two interactions
        others += int((~known).sum())
        at, users, row_of_target = at[known], users[known], row_of_target[known]
        target = target[known].cpu()
        differs = (target != expected[at]) | (users != users_of[at])
        if differs.any():
            wrong = run.data.dataset.id2token(uid, int(users[differs][0]))
            what = "the last" if cut is None else "those of the split, in their order"
            raise DatasetError(f"user {wrong} is tested on another item than {what}")
        scores = scores.cpu()[row_of_target]
        ranks[at.numpy(), 0], ranks[at.numpy(), 2] = _ranks(scores, target)
        keep("rank", at.numpy(), scores, target)
        # Every earlier item of the user out of the ranking, but not the target.
        lengths = lengths_of[at]
        row = torch.arange(len(users)).repeat_interleave(lengths)
        offset = torch.arange(len(row)) - (lengths.cumsum(0) - lengths)[row]
        own = scores.gather(1, target[:, None])
        scores[row, items[start[users][row] + offset].long()] = -torch.inf
        scores.scatter_(1, target[:, None], own)
        ranks[at.numpy(), 1], _ = _ranks(scores, target)
        keep("rank_masked", at.numpy(), scores, target)
    if (ranks[:, 0] == 0).any():
        missing = targets["user"].to_numpy()[ranks[:, 0] == 0]
        user = run.data.dataset.id2token(uid, int(missing[0]))
        raise DatasetError(f"{len(missing)} test users have no row in the test data, as {user}")
    users, names = _raw(run.data.dataset, targets)
    table = targets.assign(user=users.astype(str), item=names.astype(str))
    if (domains := getattr(run.data.dataset, "domains", None)) is not None:
        which = domains.of(torch.from_numpy(targets["item"].to_numpy()))
        table = table.assign(domain=np.array(domains.names)[which.numpy()])
    table = table.assign(rank=ranks[:, 0], rank_masked=ranks[:, 1], ties=ranks[:, 2])
    table.attrs["others"] = others
    if "gauc" in metrics:
        table = table.assign(**{f"gauc{words}": auc[key] for key, words in RANKINGS.items()})
    n_items = run.data.dataset.item_num
    if cut is None:
        counts = _training_counts(run.data.histories, n_items)
    else:
        counts = cut.counts_before(cut.valid_from, n_items)
    return _with_list_metrics(table, of_lists, lists, counts, domains, tail_ratio)


def _with_list_metrics(
    table: pd.DataFrame,
    names: Iterable[str],
    lists: Mapping[str, np.ndarray],
    counts: np.ndarray,
    domains: Domains | None,
    tail_ratio: float | None,
) -> pd.DataFrame:
    """Add to the table of :func:`rank_targets` the metrics ``names`` of the lists by ranking.

    With several domains each is of its users and its items, as if it were alone.
    """
    counts[0] = -1  # the padding is no candidate
    parts: dict[str | None, tuple[np.ndarray, np.ndarray]] = {
        None: (np.full(len(table), True), counts)
    }
    if domains is not None:
        parts = {}
        for domain, (start, stop) in zip(domains.names, domains.ranges(), strict=True):
            own = np.full_like(counts, -1)
            own[start:stop] = counts[start:stop]
            parts[domain] = (table["domain"] == domain).to_numpy(), own
    columns: dict[str, np.ndarray] = {}
    totals: dict[str, float] = {}
    for name in names:
        for ranking, words in RANKINGS.items():
            values = {
                domain: list_metric(name, lists[ranking][rows], own, tail_ratio)
                for domain, (rows, own) in parts.items()
                if rows.any()
            }
            if is_per_user(name):
                columns[f"{name}{words}"] = column = np.zeros(len(table))
                for domain, value in values.items():
                    column[parts[domain][0]] = value
            else:
                totals[f"{name}{words}"] = float(np.mean(list(values.values())))
                if domains is not None:
                    totals.update({f"{name}{words} {d}": float(v) for d, v in values.items()})
    table = table.assign(**columns)
    table.attrs[_OF_ALL] = totals
    return table


def _auc(scores: Tensor, target: Tensor) -> np.ndarray:
    """The share of the other candidates that each target is scored above, those with its score
    counting half; NaN without other candidates."""
    own = scores.gather(1, target[:, None])
    below, equal = (scores < own) & (scores > -torch.inf), (scores == own).sum(1) - 1
    others = (scores > -torch.inf).sum(1) - 1
    return ((below.sum(1) + equal / 2) / others).numpy()


def _ranks(scores: Tensor, target: Tensor) -> tuple[np.ndarray, np.ndarray]:
    own = scores.gather(1, target[:, None])
    if torch.isnan(scores).any():
        raise TrainingError("a score is not a number")
    better, equal = (scores > own).sum(1), (scores == own).sum(1) - 1
    return (1 + better + equal // 2).numpy(), equal.numpy()
