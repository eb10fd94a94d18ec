"""Rows that a dataset's files hold ready-made, and parts that were split before.

``benchmark_filename: [train, valid, test]`` names the parts of a dataset, each a file of its own.
A column ``<item>_list`` of ``.inter`` (``item_id_list:token_seq``), in parts or in a single file,
holds the history of each row: such rows are used as they are, and their lists and targets share
the ids of items. Parts without lists are joined by user and time: the history of an interaction is
what its user had before it, in whatever part.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import torch
from recbole.data.dataset import Dataset, DIENDataset, SequentialDataset
from recbole.utils import FeatureSource, FeatureType, ModelType
from torch import Tensor

from recbole_hydra.data.atomic_files import read_header
from recbole_hydra.data.joined_parts import joined_parts, three_parts
from recbole_hydra.data.list_padding import in_parts, parallel_lists
from recbole_hydra.data.parts import has_lists, list_field, part_names, paths
from recbole_hydra.errors import ConfigError, DatasetError

if TYPE_CHECKING:
    from recbole.config import Config

logger = logging.getLogger(__name__)

#: Filters that RecBole passes over where parts are given.
_FILTERS = ("user_inter_num_interval", "item_inter_num_interval", "val_interval", "rm_dup_inter")


# -- fitting a config to the files ----------------------------------------------------------------


def use_lists(config: Config, folder: str | Path) -> list[str]:
    """Fit a Config to the rows that a dataset's files hold, in place; once done, it stays so.

    Args:
        config: the Config. folder: of the dataset's files.

    Returns:
        What was set, one line each.
    """
    parts, folder, notes = part_names(config), Path(folder), []
    config["benchmark_filename"] = parts
    filters = [
        key for key in _FILTERS
        if config[key] not in (None, "[0,inf)", False, "None", "none")
    ]  # fmt: skip
    if parts is not None and filters:
        notes.append(
            f"benchmark_filename: the rows of {', '.join(parts)} are taken as they are; "
            f"{', '.join(filters)} {'are' if len(filters) > 1 else 'is'} not applied"
        )
    if not folder.is_dir():  # RecBole may fetch it
        known = parts is not None
    else:
        known = has_lists(config, folder)
    if not known:
        if parts is not None and config["MODEL_TYPE"] == ModelType.SEQUENTIAL:
            notes.append(
                f"benchmark_filename: {', '.join(parts)} have no column {list_field(config)}; "
                "histories are what a user had before, in whatever part"
            )
        return notes
    field, item = list_field(config), config["ITEM_ID_FIELD"]
    alias = config["alias_of_item_id"] or []
    if folder.is_dir() and field not in alias:
        config["alias_of_item_id"] = [*alias, field]
        notes.append(
            f"alias_of_item_id: {field}, since its lists are of the items of {item}: ready-made "
            "rows are used as they are"
        )
    columns = config["load_col"]
    if folder.is_dir() and isinstance(columns, dict):
        loaded = columns.get("inter") or []
        if loaded != "*" and field not in loaded:
            config["load_col"] = {**columns, "inter": [*loaded, field]}
            notes.append(
                f"load_col: loading {field}, too; to have histories made of the interactions, "
                f"name it in unload_col instead, with load_col: ~"
            )
    if config["training_mode"] == "auto":
        config["training_mode"] = "augmentation"
        notes.append("training_mode: augmentation, the rows as they are, since they are ready-made")
    return notes


def check(config: Config) -> None:
    """Check the parts of a dataset, or its one file, as rows.

    Raises:
        DatasetError: parts that do not have the same columns, or a column of lists that is not one.
        ConfigError: ready-made rows, and ``training_mode: autoregressive``.
    """
    folder = Path(config["data_path"])
    field, parts = list_field(config), config["benchmark_filename"]
    files = paths(config, folder)
    name, types = config["dataset"], [read_header(config, path) for path in files]
    for path, own in zip(files[1:], types[1:], strict=True):
        for column in types[0].keys() | own.keys():
            kinds = types[0].get(column), own.get(column)
            if kinds[0] != kinds[1] and (_is_loaded(config, column) or column == field):
                has, lacks = (files[0], path) if kinds[0] else (path, files[0])
                what = f"is {kinds[0]} in {files[0]} and {kinds[1]} in {path}"
                if None in kinds:
                    what = f"is in {has}, and not in {lacks}"
                raise DatasetError(
                    f"dataset {name}: column {column!r} {what}; parts have the same columns"
                )
    sequential = config["MODEL_TYPE"] == ModelType.SEQUENTIAL
    if not has_lists(config, folder):
        if sequential and parts is not None:
            if len(set(parts)) < len(parts):
                raise ConfigError(
                    f"benchmark_filename: {', '.join(parts)}: a part that is named twice would be "
                    "its own history; name it once"
                )
            _check_other_lists(config, files[0], types[0], field)
        return
    if types[0][field] != "token_seq":
        raise DatasetError(
            f"dataset {name}: column {field!r} of {files[0]} is {types[0][field]}; the history of "
            f"a row is a list of items, write {field}:token_seq in its first line"
        )
    if sequential and config["training_mode"] == "autoregressive":
        key = "benchmark_filename" if parts is not None else field
        raise ConfigError(
            f"{key}: {files[0].name} holds ready-made rows, which training_mode autoregressive "
            "cannot join to whole histories; set training_mode: augmentation, or remove it"
        )


def _is_loaded(config: Config, column: str) -> bool:
    columns, unloaded = config["load_col"], config["unload_col"] or {}
    if column in (unloaded.get("inter") or []):
        return False
    wanted = "*" if columns is None else columns.get("inter") or []
    return wanted == "*" or column in wanted


def _check_other_lists(config: Config, path: Path, types: Mapping[str, str], field: str) -> None:
    """Parts without lists are joined; a column of lists under another name would go unread."""
    item = config["ITEM_ID_FIELD"]
    named = set(config["alias_of_item_id"] or [])
    for column, kind in types.items():
        if kind == "token_seq" and column != field and (column in named or item in column):
            remedy = f"call it {field}"
            if column.startswith(item):
                remedy += f", or set LIST_SUFFIX: {column.removeprefix(item)}"
            raise DatasetError(
                f"dataset {config['dataset']}: {path} has lists in {column!r}, and the histories "
                f"of ready-made rows are read from {field!r}; {remedy}"
            )


# -- while RecBole loads -------------------------------------------------------------------------


@contextmanager
def whole_lists(config: Config) -> Iterator[None]:
    """Let RecBole read lists of ready-made rows whole: ``seq_len`` would keep their first items."""
    lengths, suffix = config["seq_len"], config["LIST_SUFFIX"] or "_list"
    if not isinstance(lengths, dict) or not has_lists(config, config["data_path"]):
        yield
        return
    config["seq_len"] = {k: v for k, v in lengths.items() if not k.endswith(suffix)}
    try:
        yield
    finally:
        config["seq_len"] = lengths


# -- after it has loaded -------------------------------------------------------------------------


@functools.cache
def ready_made_rows(base: type[SequentialDataset]) -> type[SequentialDataset]:
    """The class ``base`` of sequential datasets, for rows that are those of the files.

    Its instances have ``part_sizes``: rows of each part; None where one file is split by
    ``eval_args``.
    """

    class ReadyMadeRows(base):
        def _change_feat_format(self) -> None:
            super(SequentialDataset, self)._change_feat_format()  # nothing is made of the rows
            for name in parallel_lists(self, list_field(self.config)):
                column = self.inter_feat[name]
                if (missing := self.max_item_list_len - column.shape[1]) > 0:
                    shape = (len(column), missing, *column.shape[2:])
                    self.inter_feat[name] = torch.cat((column, column.new_zeros(shape)), dim=1)

        def build(self) -> list[Dataset]:
            """The rows of train, validation and test: the parts, or as ``eval_args`` says."""
            if self.part_sizes is None:
                return super(SequentialDataset, self).build()
            self._change_feat_format()
            self._drop_unused_col()
            stops = np.cumsum(self.part_sizes)
            rows = [
                self.inter_feat[np.arange(stop - size, stop)]
                for stop, size in zip(stops, self.part_sizes, strict=True)
            ]
            return three_parts([self.copy(own) for own in rows])

    return ReadyMadeRows


def adopt(dataset: Dataset) -> None:
    """Make of a dataset that RecBole loaded one of ready-made rows, or of joined parts, in place.

    Any other is left as it is, and one that was adopted before.

    Raises:
        DatasetError: no row of a part has a history, or lists that do not belong to each other.
    """
    if hasattr(dataset, "part_sizes"):
        return
    config, parts = dataset.config, dataset.config["benchmark_filename"]
    lists, field = has_lists(config, config["data_path"]), list_field(config)
    sequential = isinstance(dataset, SequentialDataset)
    dataset.has_ready_made_rows = lists and sequential
    dataset.joins_parts = sequential and not lists and parts is not None
    dataset.part_sizes = None if parts is None else list(dataset.file_size_list)
    if dataset.joins_parts:
        dataset.__class__ = joined_parts(dataset.__class__)
    if not lists:
        return
    if not sequential:
        dataset._del_col(dataset.inter_feat, field)  # its items are known now; nothing reads it
        return
    if isinstance(dataset, DIENDataset):
        raise DatasetError(
            f"dataset {config['dataset']}: {config['model']} draws negatives beside every history, "
            "which ready-made rows do not have; use another model, or interactions without "
            f"{field}"
        )
    dataset.last_rows = _last_rows(dataset, field)
    _keep_last_items(dataset, field)
    dataset.__class__ = ready_made_rows(dataset.__class__)


def _keep_last_items(dataset: SequentialDataset, field: str) -> None:
    """Cut lists to their last MAX_ITEM_LIST_LENGTH items, and drop rows with none."""
    frame, longest = dataset.inter_feat, dataset.max_item_list_len
    if asked := (dataset.config["seq_len"] or {}).get(field):
        longest = min(longest, asked)
    lengths = frame[field].map(len)
    cut = int((lengths > longest).sum())
    if cut:
        logger.info(
            "%s: %d of %d lists have more than %d items, the last ones stay",
            "MAX_ITEM_LIST_LENGTH" if longest == dataset.max_item_list_len else "seq_len",
            cut, len(lengths), longest,
        )  # fmt: skip
    for name in parallel_lists(dataset, field):
        other = frame[name].map(len)
        if (other != lengths).any():
            row = int((other != lengths).to_numpy().argmax())
            raise DatasetError(
                f"dataset {dataset.dataset_name}: row {row + 1} has {other.iloc[row]} entries in "
                f"{name}, and {lengths.iloc[row]} items in {field}; lists of a row have one entry "
                "per item"
            )
        frame[name] = [row[-longest:] for row in frame[name].to_list()]
        dataset.field2seqlen[name] = longest
        setattr(dataset, f"{name.removesuffix(dataset.config['LIST_SUFFIX'])}_list_field", name)
    length = dataset.item_list_length_field
    dataset.set_field_property(length, FeatureType.TOKEN, FeatureSource.INTERACTION, 1)
    frame[length] = lengths.clip(upper=longest).astype(np.int64)
    empty = (lengths == 0).to_numpy()
    if not empty.any():
        return
    logger.info(
        "%s: %d of %d rows have no history, and are left out", field, empty.sum(), len(empty)
    )
    dataset.inter_feat = frame[~empty].reset_index(drop=True)
    if dataset.part_sizes is not None:
        dataset.part_sizes = [int((~own).sum()) for own in in_parts(empty, dataset.part_sizes)]
    if not len(dataset.inter_feat) or 0 in (dataset.part_sizes or []):
        where = dataset.dataset_name
        if dataset.part_sizes is not None:
            where = dataset.config["benchmark_filename"][dataset.part_sizes.index(0)]
        raise DatasetError(
            f"dataset {dataset.dataset_name}: no row of {where} has a history in {field}"
        )


def _last_rows(dataset: SequentialDataset, field: str) -> pd.DataFrame:
    """Of every user the last row, by time where there is one, with its list whole."""
    frame = dataset.inter_feat
    time = dataset.time_field
    columns = {dataset.uid_field: frame[dataset.uid_field].to_numpy()}
    keys = [columns[dataset.uid_field]]
    if time in frame:
        keys.insert(0, frame[time].to_numpy())
    order = np.lexsort(keys)
    users = columns[dataset.uid_field][order]
    last = order[np.r_[users[1:] != users[:-1], True]] if len(users) else order
    return frame.iloc[last][[dataset.uid_field, dataset.iid_field, field]]


def row_histories(dataset: Dataset) -> dict[str, Tensor]:
    """:func:`~recbole_hydra.data.user_histories` of ready-made rows: of every user what
    the last row has, its history and its target."""
    rows = dataset.last_rows
    uid, iid, field = rows.columns
    items = [
        np.append(np.asarray(history, dtype=np.int32), np.int32(target))
        for history, target in zip(rows[field], rows[iid], strict=True)
    ]
    length = np.zeros(dataset.user_num, dtype=np.int64)
    length[rows[uid].to_numpy()] = [len(own) for own in items]
    start = np.r_[0, np.cumsum(length)]  # rows are sorted by user
    return {
        "items": torch.from_numpy(np.concatenate(items)), "start": torch.from_numpy(start),
    }  # fmt: skip
