"""RecBole's metrics of what is recommended, rather than of how well: mended, for every model.

ItemCoverage, GiniIndex, ShannonEntropy, AveragePopularity and TailPercentage end in an error in
RecBole 1.2.1 (its issues 2131, 2191, 2194), count the padding as an item, and, for sequential
models, leave every user's first interaction out of an item's popularity. Here they are what their
definitions say, over the items that are candidates:

- ItemCoverage: the share of the candidates that are recommended to anybody;
- GiniIndex: of how often each candidate is recommended, 0 if all are as often;
- ShannonEntropy: -sum p log p of the share p that an item has of all recommendations. (RecBole
  divides it by the number of items that are recommended, which its documentation does not.);
- AveragePopularity: the training interactions of an item, the mean over each user's list;
- TailPercentage: the share of a list that is among the ``tail_ratio`` (0.1) least popular
  candidates, equally popular ones in the order of their ids; ``tail_ratio`` above 1 is the most
  training interactions of a tail item instead.

:func:`mend` puts them in the place of RecBole's, as ``metrics: [ItemCoverage, ...]`` names them.
Delete when RecBole computes them so.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

if TYPE_CHECKING:
    from recbole.config import Config
    from recbole.data.dataloader import AbstractDataLoader
    from recbole.data.dataset import Dataset
    from recbole.data.interaction import Interaction
    from recbole.evaluator import Collector, Evaluator
    from recbole.evaluator.base_metric import AbstractMetric
    from recbole.evaluator.collector import DataStruct

#: A list of recommendations holds this where there was no candidate left.
NOTHING = 0

#: What RecBole's collector keeps of an evaluation, which :func:`top_lists` gives ...
LISTS = "rec.items"

#: ... and of the train split, :func:`candidate_counts`.
COUNTS = "data.candidate_counts"

#: Where a train split keeps what :func:`remember_training_counts` found.
_REMEMBERED = "training_item_counts"


# -- definitions ---------------------------------------------------------------------------------


def item_coverage(lists: np.ndarray, counts: np.ndarray) -> float:
    """The share of the candidates that stand in a list.

    Args (of all functions here):
        lists: the items recommended to each user, (users, k) int, :data:`NOTHING` where none is.
        counts: training interactions by item id, (item ids,) int; -1 for an id that is no
            candidate, as the padding.
    """
    return len(np.unique(lists[lists != NOTHING])) / (counts >= 0).sum()


def shannon_entropy(lists: np.ndarray, counts: np.ndarray) -> float:
    """-sum p log p of how the recommendations are shared out among items, in nats."""
    _, times = np.unique(lists[lists != NOTHING], return_counts=True)
    share = times / times.sum()
    return float(-(share * np.log(share)).sum())


def gini_index(lists: np.ndarray, counts: np.ndarray) -> float:
    """The Gini index of how often each candidate is recommended, 0 .. 1 - 1 / candidates."""
    times = np.bincount(lists[lists != NOTHING], minlength=len(counts))
    times = np.sort(times[counts >= 0])
    n = len(times)
    return float(((2 * np.arange(1, n + 1) - n - 1) * times).sum() / (n * max(times.sum(), 1)))


def average_popularity(lists: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """The mean number of training interactions of the items in each list, (users,)."""
    return _mean_of_list(lists, counts)


def tail_percentage(
    lists: np.ndarray, counts: np.ndarray, tail_ratio: float | None = None
) -> np.ndarray:
    """The share of each list that is long-tail items, (users,)."""
    candidates = np.flatnonzero(counts >= 0)
    ratio = 0.1 if tail_ratio is None or tail_ratio <= 0 else tail_ratio
    if ratio > 1:
        tail = candidates[counts[candidates] <= ratio]
    else:
        order = candidates[np.argsort(counts[candidates], kind="stable")]
        tail = order[: max(int(len(order) * ratio), 1)]
    in_tail = np.zeros(len(counts))
    in_tail[tail] = 1.0
    return _mean_of_list(lists, in_tail)


def _mean_of_list(lists: np.ndarray, value: np.ndarray) -> np.ndarray:
    """The mean of a value by item over each list; 0 of an empty one."""
    given = lists != NOTHING
    total = np.where(given, value[lists], 0).sum(1)
    return total / np.maximum(given.sum(1), 1)


#: Metrics of all lists together, by RecBole's names.
OF_ALL_LISTS: dict[str, Callable[..., float]] = {
    "itemcoverage": item_coverage,
    "shannonentropy": shannon_entropy,
    "giniindex": gini_index,
}

#: Metrics of each user's list, whose mean over users is reported.
OF_EACH_LIST: dict[str, Callable[..., np.ndarray]] = {
    "averagepopularity": average_popularity,
    "tailpercentage": tail_percentage,
}


def list_metric(
    name: str, lists: np.ndarray, counts: np.ndarray, tail_ratio: float | None = None
) -> float | np.ndarray:
    """A metric such as ``"giniindex@10"``: a number, or, of :data:`OF_EACH_LIST`, (users,)."""
    kind, _, k = name.partition("@")
    options = {"tail_ratio": tail_ratio} if kind == "tailpercentage" else {}
    metrics: dict[str, Callable[..., Any]] = {**OF_ALL_LISTS, **OF_EACH_LIST}
    return metrics[kind](lists[:, : int(k)], counts, **options)


def metric_names(metrics: Sequence[str], topk: Sequence[int]) -> list[str]:
    """What RecBole calls the values of ``metrics``: ``["NDCG@10", "GAUC"]``; GAUC has no cut-off,
    nor have the metrics of values."""
    from recbole.evaluator import metric_types
    from recbole.utils import EvaluatorType

    ranking = EvaluatorType.RANKING
    has_cutoff = [metric_types[m.lower()] == ranking and m.lower() != "gauc" for m in metrics]
    return [
        name
        for metric, at_k in zip(metrics, has_cutoff, strict=True)
        for name in ([f"{metric}@{k}" for k in topk] if at_k else [metric])
    ]


def smaller_is_better(name: str) -> bool:
    """Whether of two values of a metric, such as ``"giniindex@10"``, the smaller is the better."""
    from recbole.evaluator.register import smaller_metrics

    return name.partition("@")[0].lower() in smaller_metrics


def top_lists(scores: torch.Tensor, k: int) -> torch.Tensor:
    """The k best items of each row of ``scores``, (rows, items) to (rows, k); :data:`NOTHING` where
    the score is -inf, which RecBole gives to the padding and to what is no candidate."""
    best = torch.topk(scores, k, dim=-1)
    return best.indices.masked_fill_(best.values == -torch.inf, NOTHING)


# -- training interactions -----------------------------------------------------------------------


def remember_training_counts(
    splits: Iterable[Dataset],
    everything: np.ndarray,
    user: np.ndarray | None = None,
    time: np.ndarray | None = None,
) -> None:
    """Let the train split know how often each item occurs in training.

    RecBole's sequential rows are (history, target): every user's first interaction is in no row as
    a target, and it is in training all the same. So what is counted is all interactions but those
    that validation and test ask for. Where a cut in time separates the splits, a first interaction
    after the cut is not of training either.

    Args:
        splits: the train, validation and test datasets.
        everything: the items of all interactions, (interactions,), with ``user`` and ``time`` of
            each where the split is a cut in time.
    """
    train, *held_out = splits
    counts = np.bincount(everything, minlength=train.item_num)
    for split in held_out:
        counts -= np.bincount(split.inter_feat[split.iid_field].numpy(), minlength=train.item_num)
    if time is not None and len(train) > 0:
        assert user is not None
        order = np.lexsort((time, user))
        first = order[np.r_[True, np.diff(user[order]) != 0]]
        trained = np.isin(user[first], train.inter_feat[train.uid_field].numpy())
        latest = train.inter_feat[train.time_field].numpy().max()
        trained |= time[first].astype(latest.dtype) <= latest
        counts -= np.bincount(everything[first[~trained]], minlength=train.item_num)
    setattr(train, _REMEMBERED, counts)


def training_counts(dataset: Dataset) -> np.ndarray:
    """How often each item occurs in the training interactions of a train split, (item ids,).

    Without :func:`remember_training_counts`, as of ready-made rows, these are the targets of the
    rows and, of a sequential dataset, the history of each user's shortest row.
    """
    remembered = getattr(dataset, _REMEMBERED, None)
    if remembered is not None:
        return remembered
    rows = dataset.inter_feat
    counts = np.bincount(rows[dataset.iid_field].numpy(), minlength=dataset.item_num)
    histories = getattr(dataset, f"{dataset.iid_field}_list_field", None)
    if histories is None or histories not in rows:
        return counts
    length = rows[dataset.item_list_length_field].numpy()
    user = rows[dataset.uid_field].numpy()
    order = np.lexsort((length, user))
    first = order[np.r_[True, np.diff(user[order]) != 0]]
    items = rows[histories].numpy()[first]
    items = items[np.arange(items.shape[1]) < length[first][:, None]]
    return counts + np.bincount(items, minlength=dataset.item_num)


def candidate_counts(dataset: Dataset) -> np.ndarray:
    """:func:`training_counts`, with -1 for the padding, which is never recommended."""
    counts = training_counts(dataset).astype(np.int64)
    counts[0] = -1
    return counts


@contextmanager
def candidates_between(collector: Collector, start: int, stop: int) -> Iterator[None]:
    """Let only the items ``start`` .. ``stop - 1`` be candidates, as those of a domain are."""
    everything = collector.data_struct[COUNTS] if COUNTS in collector.data_struct else None
    if everything is not None:
        own = torch.full_like(everything, -1)
        own[start:stop] = everything[start:stop]
        collector.data_struct.set(COUNTS, own)
    try:
        yield
    finally:
        if everything is not None:
            collector.data_struct.set(COUNTS, everything)


# -- in RecBole's place --------------------------------------------------------------------------


def mend(evaluator: Any) -> None:
    """Replace RecBole's five metrics, let its collector keep what they need, and let every metric
    be a plain number; ``evaluator`` is the package recbole.evaluator."""
    metrics, register = evaluator.metrics, evaluator.register
    Collector, Evaluator = evaluator.Collector, evaluator.Evaluator
    for name in (*OF_ALL_LISTS, *OF_EACH_LIST):
        mended = _mended(register.metrics_dict[name])
        register.metrics_dict[name] = mended
        register.metric_information[name] = mended.metric_need
        setattr(metrics, mended.__name__, mended)
    Evaluator.evaluate = _as_plain_numbers(Evaluator.evaluate)
    metrics.GAUC.calculate_metric = _in_double_precision(metrics.GAUC.calculate_metric)
    Collector.data_collect = _collecting_counts(Collector.data_collect)
    Collector.eval_batch_collect = _collecting_lists(Collector.eval_batch_collect)


def _mended(base: type[AbstractMetric]) -> type[AbstractMetric]:
    """The RecBole metric ``base`` with the definition of this module."""

    class Mended(base):
        metric_need = [COUNTS]  # the lists come with them

        def __init__(self, config: Config) -> None:
            super().__init__(config)
            self.tail_ratio = config["tail_ratio"]

        def calculate_metric(self, dataobject: DataStruct) -> dict[str, float]:
            lists = dataobject.get(LISTS).numpy()
            counts = dataobject.get(COUNTS).numpy()
            names = [f"{base.__name__.lower()}@{k}" for k in self.topk]
            values = [list_metric(name, lists, counts, self.tail_ratio) for name in names]
            return {
                name: round(float(np.mean(value)), self.decimal_place)
                for name, value in zip(names, values, strict=True)
            }

    Mended.__name__ = Mended.__qualname__ = base.__name__
    Mended.__doc__ = base.__doc__
    return Mended


def _as_plain_numbers(evaluate: Callable[..., Any]) -> Callable[..., Any]:
    """Metrics as Python's numbers: numpy's print as ``np.float64(0.1)`` from numpy 2 on."""

    @functools.wraps(evaluate)
    def evaluate_plainly(self: Evaluator, dataobject: DataStruct) -> dict[str, float]:
        result = evaluate(self, dataobject)
        for name, value in result.items():
            result[name] = float(value)
        return result

    return evaluate_plainly


def _in_double_precision(calculate_metric: Callable[..., Any]) -> Callable[..., Any]:
    """GAUC of ranks as float64: in RecBole it is a float32, which is no number for json, and in
    which sums over many users lose their last digits."""

    @functools.wraps(calculate_metric)
    def calculate(self: AbstractMetric, dataobject: DataStruct) -> dict[str, float]:
        dataobject.set("rec.meanrank", dataobject.get("rec.meanrank").double())
        return calculate_metric(self, dataobject)

    return calculate


def _collecting_counts(data_collect: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(data_collect)
    def collect_counts(self: Collector, train_data: AbstractDataLoader) -> None:
        data_collect(self, train_data)
        if self.register.need(COUNTS):
            self.data_struct.set(COUNTS, torch.from_numpy(candidate_counts(train_data._dataset)))

    return collect_counts


def _collecting_lists(eval_batch_collect: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(eval_batch_collect)
    def collect_lists_too(
        self: Collector,
        scores_tensor: torch.Tensor,
        interaction: Interaction,
        positive_u: torch.Tensor,
        positive_i: torch.Tensor,
    ) -> None:
        collect_lists(self, scores_tensor)
        return eval_batch_collect(self, scores_tensor, interaction, positive_u, positive_i)

    return collect_lists_too


def collect_lists(collector: Collector, scores: torch.Tensor) -> None:
    """Let RecBole's ``collector`` keep the lists of a batch, where a metric of lists is asked for.

    Args:
        scores: (rows, item ids), -inf where there is no candidate.
    """
    if collector.register.need(COUNTS):
        collector.data_struct.update_tensor(LISTS, top_lists(scores, max(collector.topk)))
