"""Padding in the lists of ready-made rows, which is no item."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from recbole_hydra.data.atomic_files import check_no_missing
from recbole_hydra.data.parts import has_lists, list_field, paths
from recbole_hydra.errors import DatasetError

if TYPE_CHECKING:
    from recbole.data.dataset import Dataset

logger = logging.getLogger(__name__)

#: What padding is called, where a name says it: ids of data that were padded for a model.
_PADDING_NAMES = {
    "0", "-1", "0.0", "-1.0", "pad", "[pad]", "<pad>", "padding", "null", "none", "nan", "na",
}  # fmt: skip

#: Words of ``item_list_padding`` for no padding at all.
_NO_PADDING = (None, False, "none", "None")


def clean_lists(dataset: Dataset) -> None:
    """Take padding out of the lists of a dataset that was read, before raw ids become internal.

    Raises:
        DatasetError: an id of a part is missing, or padding is a target.
    """
    config = dataset.config
    if (parts := config["benchmark_filename"]) is not None:
        for path in paths(config, config["data_path"]):
            # RecBole would make of a missing id the padding
            check_no_missing(config, path, [dataset.uid_field, dataset.iid_field])
    field = list_field(config)
    if not has_lists(config, config["data_path"]):
        return
    frame = dataset.inter_feat
    sizes = [len(frame)] if parts is None else dataset.file_size_list
    lists = frame[field].to_list()
    padding = find_padding(config["item_list_padding"], lists, frame[dataset.iid_field], sizes)
    if not padding:
        return
    wanted = config["item_list_padding"]
    logger.info(
        "item_list_padding: %s %s padding, no item%s",
        ", ".join(repr(str(token)) for token in sorted(padding)),
        "is" if len(padding) == 1 else "are",
        "; set it to none if that is wrong" if wanted == "auto" else "",
    )  # fmt: skip
    targets = frame[dataset.iid_field].isin(padding)
    if targets.any():
        token = frame[dataset.iid_field][targets].iloc[0]
        raise DatasetError(
            f"dataset {config['dataset']}: item_list_padding: {str(token)!r} is the target "
            f"({dataset.iid_field}) of {int(targets.sum()):,} rows, so it is an item"
        )
    keep = [np.array([token not in padding for token in row], dtype=bool) for row in lists]
    for name in parallel_lists(dataset, field):
        frame[name] = [
            row[kept] if len(row) == len(kept) else row
            for row, kept in zip(frame[name].to_list(), keep, strict=True)
        ]
    items = getattr(dataset, "item_feat", None)
    if items is not None:
        items.drop(items.index[items[dataset.iid_field].isin(padding)], inplace=True)


def parallel_lists(dataset: Dataset, field: str) -> list[str]:
    """The list columns of a dataset that have an entry per item of the lists ``field``."""
    frame, suffix = dataset.inter_feat, dataset.config["LIST_SUFFIX"] or "_list"
    others = [
        f"{name}{suffix}" for name in frame
        if f"{name}{suffix}" in frame and dataset.field2type[f"{name}{suffix}"].value[-3:] == "seq"
    ]  # fmt: skip
    return list(dict.fromkeys([field, *others]))


def find_padding(
    wanted: Any,
    lists: Sequence[Sequence[str] | np.ndarray],
    targets: Iterable[str],
    sizes: Sequence[int],
) -> set[str]:
    """The tokens of lists that fill them up to a length, and are no items.

    Args:
        wanted: ``item_list_padding``: ``"auto"``, none, or the tokens.
        lists: an array of tokens per row. targets: the token of each row's target.
        sizes: number of rows of each part; a part may have a length of its own.

    Returns:
        With ``"auto"``, a token is padding if it is never a target, stands nowhere but at the
        beginning or the end of lists, and fills: it has one of the usual names of padding, or is
        the only one of its kind, stands there once or more as it comes, and lists that have it are
        as long as the longest of their part.
        A rare item that was only ever the first of a history is none.
    """
    if wanted != "auto":
        if wanted in _NO_PADDING:
            return set()
        named = wanted if isinstance(wanted, (list, tuple)) else [wanted]
        return {str(token) for token in named}
    targets = set(targets)
    at_ends = _end_tokens(lists, targets)
    if not at_ends:
        return set()
    # What stands inside of a list, or is filled up beyond its part's length, is an item.
    width = np.repeat([max(map(len, part), default=0) for part in in_parts(lists, sizes)], sizes)
    rows = dict.fromkeys(at_ends, 0)
    fills = dict.fromkeys(at_ends, True)
    runs: dict[str, set[int]] = {token: set() for token in at_ends}
    for row, longest in zip(lists, width, strict=True):
        for token in {row[0], row[-1]} & at_ends if len(row) else ():
            rows[token] += 1
            fills[token] &= len(row) == longest
            runs[token].add(int(np.sum(np.asarray(row) == token)))
    share = {token: rows[token] / len(lists) for token in at_ends}
    padding = {
        token for token in at_ends
        if token.lower() in _PADDING_NAMES
        and (fills[token] or max(runs[token]) > 1 or share[token] >= 0.1)
    }  # fmt: skip
    if padding:
        return padding
    unnamed = [
        token for token in at_ends
        if fills[token] and len(runs[token]) > 1  # as many as are missing
    ]  # fmt: skip
    return set(unnamed) if len(unnamed) == 1 else set()


def in_parts(lists: Sequence[Any] | np.ndarray, sizes: Sequence[int]) -> list[Any]:
    """Rows of all parts, cut into those of each; ``sizes`` are their numbers."""
    stops = np.cumsum(sizes)
    return [lists[stop - size : stop] for stop, size in zip(stops, sizes, strict=True)]


def _end_tokens(lists: Sequence[Sequence[str] | np.ndarray], targets: set[str]) -> set[str]:
    """The tokens that are no target and stand only in the first and last run of lists."""
    ends = {row[i] for row in lists if len(row) for i in (0, -1)} - targets
    for row in lists:
        if not ends:
            break
        inside = ends.intersection(row)
        if inside:
            first, last = 0, len(row)
            while first < last and row[first] == row[0]:
                first += 1
            while last > first and row[last - 1] == row[-1]:
                last -= 1
            ends -= inside.intersection(row[first:last])
    return ends
