"""Which items fit what is asked of the columns of their ``.item`` file."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from numbers import Integral, Real
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from recbole_hydra.checks import did_you_mean
from recbole_hydra.data.atomic_files import NO_NUMBER, check_numbers, read_columns, read_header
from recbole_hydra.data.domains import domain_configs
from recbole_hydra.data.filters import INTERVAL, bounds
from recbole_hydra.errors import ConfigError, DatasetError

if TYPE_CHECKING:
    from recbole_hydra.data import Vocabulary

#: Where the ``.item`` file of a dataset is; of several domains, by the domain's name.
Paths = str | os.PathLike[str] | Mapping[str, str | os.PathLike[str]]


class ItemFilter:
    """The columns of the items of a model, read when they are first asked for.

    Args:
        config, vocabulary: of the model's checkpoint.
        items: the ``.item`` file; of several domains a dict of them by name. By default those of
            the dataset, where the checkpoint's settings say that it is.
        path: of the checkpoint, for messages.

    Raises:
        ConfigError: ``items`` that is no path, or no dict of those of all domains.
    """

    def __init__(
        self, config: Any, vocabulary: Vocabulary, items: Paths | None = None, path: str = ""
    ) -> None:
        self._ids: Mapping[str, int] = vocabulary.field2token_id[vocabulary.iid_field]
        self._number, self._path = vocabulary.item_num, path
        names = list(config["domains"] or [])
        given = _by_name(items, names, config["dataset"])
        #: The settings that a file is read with, the file, and what raw ids of it begin with.
        self._files: list[tuple[Any, Path, str]] = []
        for own in domain_configs(config) if names else [config]:
            name = own["dataset"]
            file = given[name] if given else Path(own["data_path"]) / f"{name}.item"
            prefix = f"{name}:" if names else ""
            self._files.append((own, Path(os.path.expanduser(file)), prefix))
        self._is_given = given is not None
        self._types: list[dict[str, str]] | None = None
        self._columns: dict[str, dict[str, np.ndarray] | np.ndarray] = {}

    def allowed(self, asked: Any) -> np.ndarray:
        """Which items fit.

        Args:
            asked: values by column; all columns must fit. A column of tokens fits a value that it
                is, or one of whose tokens it is; a column of numbers fits a number that it is, or
                an interval that it lies in, such as "[1990,2000)". A list fits where one of its
                values does. Items that the file lacks fit nothing.

        Returns:
            By internal id, (n_items,) bool.

        Raises:
            ConfigError: it is no dict, or has an unknown column or a value that is not of the
                column's type.
            DatasetError: there is no ``.item`` file, or it cannot be read.
        """
        if not isinstance(asked, Mapping):
            raise ConfigError(
                f"filter must be a dict of columns, such as {{'genre': 'Comedy'}}, got {asked!r}"
            )
        fits = np.ones(self._number, bool)
        for field, value in asked.items():
            fits &= self._fitting(field, value)
        return fits

    def names(self) -> dict[str, str]:
        """What items are called, by raw id: the first column of texts (``token_seq``) of each file;
        nothing of a file that is not there, unless it was named, or has no such column.

        Raises:
            DatasetError: a file cannot be read.
        """
        names: dict[str, str] = {}
        for config, path, prefix in self._files:
            if not path.is_file() and not self._is_given:
                continue
            types, item = read_header(config, path), config["ITEM_ID_FIELD"]
            field = next((name for name, kind in types.items() if kind == "token_seq"), None)
            if field is None or item not in types:
                continue
            columns = [f"{item}:{types[item]}", f"{field}:token_seq"]
            table = read_columns(config, path, columns)
            for raw, name in zip(table[columns[0]], table[columns[1]], strict=True):
                names[prefix + str(raw)] = name
        return names

    def _fitting(self, field: Any, value: Any) -> np.ndarray:
        kind = self._kind(field)
        key = f"filter: {field}"
        if kind == "float":
            wanted = list(_ranges(key, value))  # refused before a file is read
            numbers = self._column(field, kind)
            assert isinstance(numbers, np.ndarray)
            fits = np.zeros(self._number, bool)
            for low, with_low, high, with_high in wanted:
                above = numbers >= low if with_low else numbers > low
                fits |= above & (numbers <= high if with_high else numbers < high)
            return fits
        tokens = _tokens(key, kind, value)
        fits, have = np.zeros(self._number, bool), self._column(field, kind)
        for token in tokens:
            found = have.get(token)  # type: ignore[union-attr]
            if found is not None:
                fits[found] = True
        return fits

    def _kind(self, field: Any) -> str:
        """The type of a column, which is the same wherever it is."""
        known: dict[str, str] = {}
        for types in self._headers():
            for name, kind in types.items():
                if known.setdefault(name, kind) != kind and name == field:
                    raise ConfigError(
                        f"filter: {field} is {known[name]} in one domain and {kind} in another; "
                        "write the same type in the first lines of their .item files"
                    )
        if field not in known:
            files = ", ".join(str(path) for _, path, _ in self._files)
            raise ConfigError(
                f"filter: there is no column {field!r} in {files}; there are "
                f"{', '.join(known)}{did_you_mean(field, known)}"
            )
        return known[field]

    def _headers(self) -> list[dict[str, str]]:
        if self._types is None:
            types = []
            for config, path, _ in self._files:
                if not self._is_given and not path.is_file():
                    raise DatasetError(
                        f"filter: there is no {path}, where {self._path or 'the model'} has its "
                        "items from; say where the .item file is, items=PATH"
                    )
                types.append(read_header(config, path))
                if config["ITEM_ID_FIELD"] not in types[-1]:
                    raise DatasetError(
                        f"filter: {path} has no column {config['ITEM_ID_FIELD']}, so nothing "
                        "says which item a line is of; name it in the first line"
                    )
            self._types = types
        return self._types

    def _column(self, field: str, kind: str) -> dict[str, np.ndarray] | np.ndarray:
        """Of numbers, one for each internal id, NaN where there is none; of tokens, the internal
        ids that have each."""
        if field not in self._columns:
            parts = [
                self._read(field, kind, *file)
                for file, types in zip(self._files, self._headers(), strict=True)
                if field in types
            ]
            ids = np.concatenate([ids for ids, _ in parts])
            values = pd.concat([values for _, values in parts], ignore_index=True)
            if kind == "float":
                numbers = np.full(self._number, np.nan)
                numbers[ids] = values.to_numpy(np.float64)
                self._columns[field] = numbers
            else:
                groups = pd.Series(ids).groupby(values.to_numpy(object))
                self._columns[field] = {str(token): of.to_numpy() for token, of in groups}
        return self._columns[field]

    def _read(
        self, field: str, kind: str, config: Any, path: Path, prefix: str
    ) -> tuple[np.ndarray, pd.Series]:
        """Internal ids and what they have, of a file: numbers, or one token each."""
        if kind == "float":
            check_numbers(config, path, [field])
        item = config["ITEM_ID_FIELD"]
        types = read_header(config, path)
        columns = [f"{name}:{types[name]}" for name in dict.fromkeys((item, field))]
        table = read_columns(config, path, columns)
        ids = np.array([self._ids.get(prefix + str(raw), 0) for raw in table[columns[0]]], np.int64)
        values = table[f"{field}:{kind}"]
        if kind == "float":
            values = pd.to_numeric(values.where(~values.isin(NO_NUMBER)), errors="coerce")
        elif kind == "token_seq":
            pieces = values.str.split(config["seq_separator"], regex=False)
            values = pieces.explode()
            ids = ids[values.index.to_numpy()]
        known = ids > 0  # neither unknown to the model nor the padding
        if kind != "float":
            known &= values.to_numpy(object) != ""
        return ids[known], values[known].reset_index(drop=True)


def _by_name(items: Any, names: list[str], dataset: str) -> Mapping[str, Any] | None:
    """The files that are given, by dataset; None by default."""
    if items is None:
        return None
    if not names:
        files = {dataset: items}
    elif isinstance(items, Mapping) and set(items) == set(names):
        files = dict(items)
    else:
        raise ConfigError(
            f"items: must be a dict of .item files by domain, {', '.join(names)}, got {items!r}"
        )
    for file in files.values():
        if not isinstance(file, (str, os.PathLike)):
            raise ConfigError(f"items: must be the path of an .item file, got {file!r}")
    return files


def _each(key: str, kind: str, value: Any) -> list[Any]:
    """The values of a list, or the one."""
    values = list(value) if isinstance(value, (list, tuple, set, frozenset)) else [value]
    if not values:
        raise ConfigError(f"{key}: the list is empty; give a value, or leave the column out")
    for one in values:
        if one is None or isinstance(one, bool) or not isinstance(one, (str, Real)):
            wanted = "numbers or intervals" if kind == "float" else "values"
            raise ConfigError(f"{key} is {kind} and takes {wanted}, or a list, got {one!r}")
    return values


def _tokens(key: str, kind: str, value: Any) -> list[str]:
    if kind == "float_seq":
        raise ConfigError(
            f"{key} is float_seq, lists of numbers; filters are for float, token and token_seq"
        )
    tokens = []
    for one in _each(key, kind, value):
        if isinstance(one, str) and INTERVAL.fullmatch(one):
            raise ConfigError(
                f"{key} is {kind}, and {one!r} an interval, which is for float; give tokens, or "
                f"write {key.split()[-1]}:float in the first line of the file"
            )
        if not isinstance(one, (str, Integral)):
            raise ConfigError(f"{key} is {kind}, whose values are text, got {one!r}")
        tokens.append(str(one))
    return tokens


def _ranges(key: str, value: Any) -> Iterator[tuple[float, bool, float, bool]]:
    for one in _each(key, "float", value):
        if isinstance(one, str):
            try:
                number = float(one)
            except ValueError:
                yield from bounds(key, one)
                continue
        else:
            number = float(one)
        if number != number:
            raise ConfigError(f"{key} is float, and {one!r} is no number")
        yield number, True, number, True
