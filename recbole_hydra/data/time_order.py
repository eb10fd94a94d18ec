"""How far the order that RecBole puts interactions in, by times rounded to float32, is off."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
from recbole.utils import ModelType

if TYPE_CHECKING:
    from recbole.data.dataset import Dataset


def order_difference(dataset: Dataset) -> dict[str, float | None] | None:
    """How far the order of float32 times is from that of the exact ones.

    Args:
        dataset: of exact times or not, not yet split.

    Returns:
        ``{"positions": share of users' positions that hold another item, "test_targets": share of
        the rows of the test split that are other ones}``; ``test_targets`` is None where there is
        no test part, or one that is not by time. None where there are no times.
    """
    frame = dataset.inter_feat
    if dataset.time_field not in frame or dataset.time_kind is None or len(frame) == 0:
        return None
    exact = frame[dataset.time_field].to_numpy()
    if exact.dtype == object:
        exact = np.stack(exact)[:, 0]
    users, items = frame[dataset.uid_field].to_numpy(), frame[dataset.iid_field].to_numpy()
    rounded = exact
    if dataset.time_range is not None:  # RecBole rounds what it has normalised
        least, greatest = dataset.time_range
        rounded = (exact - least) / max(float(greatest - least), 1e-300)
    rounded = rounded.astype(np.float32)
    one, other = np.lexsort((exact, users)), np.lexsort((rounded, users))
    tests = [_test_rows(dataset, *order) for order in ((one, exact), (other, rounded))]
    share = None
    if tests[0] is not None and len(tests[0]):
        key = users.astype(np.int64) * (int(items.max()) + 1) + items
        share = float(np.mean(~np.isin(key[tests[0]], key[tests[1]])))
    return {"positions": float(np.mean(items[one] != items[other])), "test_targets": share}


def _test_rows(dataset: Dataset, order: np.ndarray, times: np.ndarray) -> np.ndarray | None:
    """Indices of the rows that the split of ``dataset``'s config tests on, for interactions in
    ``order`` (by user, then ``times``); None where that does not follow from the times."""
    evaluation = dataset.config["eval_args"]
    split, group = evaluation["split"] or {}, str(evaluation["group_by"]).lower()
    if evaluation["order"] != "TO" or dataset.config["benchmark_filename"] or len(split) != 1:
        return None
    users = dataset.inter_feat[dataset.uid_field].to_numpy()[order]
    first = np.r_[True, users[1:] != users[:-1]]
    sequential = dataset.config["MODEL_TYPE"] == ModelType.SEQUENTIAL
    sequential = sequential and not getattr(dataset, "has_ready_made_rows", False)
    if sequential:  # no row has a first item as target
        order, users = order[~first], users[~first]
        if len(users) == 0:
            return None
    ((kind, how),) = split.items()
    start = np.flatnonzero(np.r_[True, users[1:] != users[:-1]])
    size = np.diff(np.r_[start, len(users)])
    if kind == "LS" and how in ("valid_and_test", "test_only"):
        return order[(start + size - 1)[size > 1]]
    if kind == "RS" and group == "user":
        ratios = [ratio / sum(how) for ratio in how]
        sizes, which = np.unique(size, return_inverse=True)
        tested = [n - int(dataset._calcu_split_ids(n, ratios)[-1]) for n in sizes.tolist()]
        from_end = np.repeat(start + size, size) - np.arange(len(users))
        return order[from_end <= np.repeat(np.array(tested)[which], size)]
    if kind == "RS":
        # RecBole sorts the rows it has by time: a sequential model's are by user before.
        rows = order if sequential else np.sort(order)
        by_time = rows[np.argsort(times[rows], kind="stable")]
        ratios = [ratio / sum(how) for ratio in how]
        return by_time[dataset._calcu_split_ids(len(by_time), ratios)[-1] :]
    if kind == "TS":
        boundary = np.percentile(times[order], 100 * (1 - how[-1] / sum(how)), method="lower")
        return order[times[order] > boundary]
    return None


def describe_difference(order: str, difference: Mapping[str, float | None] | None) -> str | None:
    """A line for the log on :func:`order_difference`; None where the orders are the same."""
    if difference is None or not (difference["positions"] or difference["test_targets"]):
        return None
    shares = f"{difference['positions']:.1%} of all positions"
    if difference["test_targets"] is not None:
        shares += f" and {difference['test_targets']:.1%} of the test targets"
    if order == "exact":
        return (
            f"time_order: exact; with RecBole's order, times rounded to float32, {shares} would be "
            "other items"
        )
    return (
        f"time_order: recbole, times rounded to float32: {shares} are other items than the times "
        "of the file say; time_order: exact puts them right"
    )
