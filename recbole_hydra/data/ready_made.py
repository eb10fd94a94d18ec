"""Rows that a dataset's files hold ready-made, and parts that were split before.

``benchmark_filename: [train, valid, test]`` names the parts of a dataset, each a file of its own.
A column ``<item>_list`` of ``.inter`` (``item_id_list:token_seq``), in parts or in a single file,
holds the history of each row: such rows are used as they are, and their lists and targets share
the ids of items. Parts without lists are joined by user and time: the history of an interaction is
what its user had before it, in whatever part.
"""

import functools
import logging
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from recbole.data.dataset import DIENDataset, SequentialDataset
from recbole.data.interaction import Interaction
from recbole.utils import FeatureSource, FeatureType, ModelType

from recbole_hydra.data.atomic_files import check_no_missing, read_header
from recbole_hydra.data.parts import has_lists, list_field, part_names, paths
from recbole_hydra.data.targets import TargetDataset
from recbole_hydra.errors import ConfigError, DatasetError

logger = logging.getLogger(__name__)

#: Name of the column that says which part a row is of; no atomic file can have it.
PART = "recbole_hydra part"

#: What padding is called, where a name says it: ids of data that were padded for a model.
_PADDING_NAMES = {
    "0", "-1", "0.0", "-1.0", "pad", "[pad]", "<pad>", "padding", "null", "none", "nan", "na",
}  # fmt: skip

#: Words of ``item_list_padding`` for no padding at all.
_NO_PADDING = (None, False, "none", "None")

#: Filters that RecBole passes over where parts are given.
_FILTERS = ("user_inter_num_interval", "item_inter_num_interval", "val_interval", "rm_dup_inter")


# -- fitting a config to the files ----------------------------------------------------------------


def use_lists(config, folder) -> list[str]:
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


def check(config) -> None:
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


def _is_loaded(config, column) -> bool:
    columns, unloaded = config["load_col"], config["unload_col"] or {}
    if column in (unloaded.get("inter") or []):
        return False
    wanted = "*" if columns is None else columns.get("inter") or []
    return wanted == "*" or column in wanted


def _check_other_lists(config, path, types, field):
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
def whole_lists(config):
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


def clean_lists(dataset) -> None:
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


def parallel_lists(dataset, field) -> list[str]:
    """The list columns of a dataset that have an entry per item of the lists ``field``."""
    frame, suffix = dataset.inter_feat, dataset.config["LIST_SUFFIX"] or "_list"
    others = [
        f"{name}{suffix}" for name in frame
        if f"{name}{suffix}" in frame and dataset.field2type[f"{name}{suffix}"].value[-3:] == "seq"
    ]  # fmt: skip
    return list(dict.fromkeys([field, *others]))


def find_padding(wanted, lists, targets, sizes) -> set[str]:
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
    width = np.repeat([max(map(len, part), default=0) for part in _cut(lists, sizes)], sizes)
    rows = dict.fromkeys(at_ends, 0)
    fills = dict.fromkeys(at_ends, True)
    runs = {token: set() for token in at_ends}
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


def _cut(lists, sizes):
    stops = np.cumsum(sizes)
    return [lists[stop - size : stop] for stop, size in zip(stops, sizes, strict=True)]


def _end_tokens(lists, targets) -> set:
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


# -- after it has loaded -------------------------------------------------------------------------


@functools.cache
def ready_made_rows(base):
    """The class ``base`` of sequential datasets, for rows that are those of the files.

    Its instances have ``part_sizes``: rows of each part; None where one file is split by
    ``eval_args``.
    """

    class ReadyMadeRows(base):
        def _change_feat_format(self):
            super(SequentialDataset, self)._change_feat_format()  # nothing is made of the rows
            for name in parallel_lists(self, list_field(self.config)):
                column = self.inter_feat[name]
                if (missing := self.max_item_list_len - column.shape[1]) > 0:
                    shape = (len(column), missing, *column.shape[2:])
                    self.inter_feat[name] = torch.cat((column, column.new_zeros(shape)), dim=1)

        def build(self) -> list:
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


@functools.cache
def joined_parts(base):
    """The class ``base`` of sequential datasets, for parts without lists: RecBole's rows over all
    of them, each in the part of its target."""

    class JoinedParts(base):
        def _change_feat_format(self):
            _number_parts(self)
            super(SequentialDataset, self)._change_feat_format()
            self.data_augmentation()

        def build(self) -> list:
            """The rows of train, validation and test."""
            self._change_feat_format()
            return _split_by_part(self)

    return JoinedParts


class JoinedTargets(TargetDataset):
    """A :class:`~recbole_hydra.data.targets.TargetDataset` of parts without lists; its rows are
    those of :func:`joined_parts`."""

    def _change_feat_format(self):
        _number_parts(self)
        super()._change_feat_format()

    def build(self) -> list:
        """The rows of train, validation and test, whose histories go over all parts."""
        self._change_feat_format()
        return _split_by_part(self)


def _number_parts(dataset):
    parts = np.repeat(np.arange(len(dataset.part_sizes)), dataset.part_sizes)
    dataset.inter_feat[PART] = parts
    dataset.set_field_property(PART, FeatureType.TOKEN, FeatureSource.INTERACTION, 1)


def _split_by_part(dataset) -> list:
    rows = dataset.inter_feat
    part = rows[PART]
    suffix = dataset.config["LIST_SUFFIX"]
    for feat in {id(feat): feat for feat in (rows, getattr(dataset, "timeline", rows))}.values():
        for name in (PART, PART + suffix):
            if name in feat:
                feat.drop(column=name)
    for table in (dataset.field2type, dataset.field2source, dataset.field2seqlen):
        table.pop(PART, None)
        table.pop(PART + suffix, None)
    dataset._drop_unused_col()
    names, splits = dataset.config["benchmark_filename"], []
    for index, size in enumerate(dataset.part_sizes):
        mine = (part == index).nonzero().squeeze(1)
        if len(mine) < size:
            logger.info(
                "%s: %d of its %d interactions are their user's first, with no history before "
                "them, and no row", names[index], size - len(mine), size,
            )  # fmt: skip
        if len(mine) == 0:
            raise DatasetError(
                f"dataset {dataset.dataset_name}: every interaction of part {names[index]} is its "
                "user's first, so there is no history to predict it from"
            )
        splits.append(dataset.copy(rows[mine]))
    return three_parts(splits)


def three_parts(splits) -> list:
    """Train, validation and test; of two parts the second is tested, and nothing validates."""
    if len(splits) == 2:
        empty = Interaction({k: v[:0] for k, v in splits[1].inter_feat.interaction.items()})
        splits.insert(1, splits[1].copy(empty))
    return splits


def is_joined(dataset) -> bool:
    """Whether a dataset is of parts without lists, whose histories go over all of them."""
    return getattr(dataset, "joins_parts", False)


def adopt(dataset) -> None:
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
        dataset.__class__ = joined_parts(type(dataset))
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
    dataset.__class__ = ready_made_rows(type(dataset))


def _keep_last_items(dataset, field):
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
        dataset.part_sizes = [int((~own).sum()) for own in _cut(empty, dataset.part_sizes)]
    if not len(dataset.inter_feat) or 0 in (dataset.part_sizes or []):
        where = dataset.dataset_name
        if dataset.part_sizes is not None:
            where = dataset.config["benchmark_filename"][dataset.part_sizes.index(0)]
        raise DatasetError(
            f"dataset {dataset.dataset_name}: no row of {where} has a history in {field}"
        )


def _last_rows(dataset, field) -> pd.DataFrame:
    """Of every user the last row, by time where there is one, with its list whole."""
    frame = dataset.inter_feat
    time = dataset.time_field
    columns = {dataset.uid_field: frame[dataset.uid_field].to_numpy()}
    order = [columns[dataset.uid_field]]
    if time in frame:
        order.insert(0, frame[time].to_numpy())
    order = np.lexsort(order)
    users = columns[dataset.uid_field][order]
    last = order[np.r_[users[1:] != users[:-1], True]] if len(users) else order
    return frame.iloc[last][[dataset.uid_field, dataset.iid_field, field]]


def row_histories(dataset) -> dict:
    """:func:`~recbole_hydra.data.dataset.user_histories` of ready-made rows: of every user what
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
