"""Filters by what columns say: ``val_interval``.

A column of numbers is filtered by intervals, ``rating: "[3,inf)"``, a column of tokens by the
values that stay, ``gender: [F]``; a list of tokens stays where one of them is among the values.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from recbole.utils import ModelType

from recbole_hydra.checks import did_you_mean
from recbole_hydra.data.atomic_files import read_header
from recbole_hydra.errors import ConfigError

if TYPE_CHECKING:
    from recbole.config import Config
    from recbole.data.dataset import Dataset

logger = logging.getLogger(__name__)

_NUMBER = r"\s*[-+]?(inf|\d+\.?\d*(e[-+]?\d+)?|\.\d+(e[-+]?\d+)?)\s*"
#: An interval of numbers, as text.
INTERVAL = re.compile(rf"\s*[(\[]({_NUMBER}),({_NUMBER})[)\]]\s*", re.IGNORECASE)


def interval(key: str, value: Any) -> str | None:
    """An interval as RecBole's filters take them, such as ``"[5,inf)"``; several may follow each
    other, separated by semicolons. ``[5, 10]`` is a list to yaml, and an interval here. None, no
    interval, stays None.

    Raises:
        ConfigError: it is none.
    """
    if isinstance(value, list) and len(value) == 2:
        value = f"[{value[0]},{value[1]}]"
    if value is None:
        return None
    pieces = [piece for piece in str(value).split(";") if piece.strip()]
    found = [INTERVAL.fullmatch(piece) for piece in pieces]
    if not found or None in found:
        raise ConfigError(f"{key} must be an interval such as '[5,inf)', got {value!r}")
    for piece, match in zip(pieces, found, strict=True):
        assert match is not None
        low, high = float(match[1]), float(match[5])
        if low > high:
            raise ConfigError(f"{key}: {piece.strip()} is empty, since {match[1]} > {match[5]}")
    return ";".join(piece.strip() for piece in pieces)


def bounds(key: str, value: Any) -> list[tuple[float, bool, float, bool]]:
    """What :func:`interval` takes as numbers: of each, the least and whether it belongs to it, the
    greatest and whether it does.

    Raises:
        ConfigError: it is none.
    """
    found = []
    for piece in (interval(key, value) or "").split(";"):
        match = INTERVAL.fullmatch(piece)
        if match is not None:
            is_closed = piece.lstrip()[0] == "[", piece.rstrip()[-1] == "]"
            found.append((float(match[1]), is_closed[0], float(match[5]), is_closed[1]))
    return found


def prepare(config: Config) -> None:
    """Check ``val_interval`` against the columns of the dataset, in place, and have those it names
    loaded.

    What is loaded for a filter alone is left out of the model again, by ``unused_col``.

    Raises:
        ConfigError: a column that no file has, or a value that does not fit its type.
    """
    asked = config["val_interval"]
    if not asked:
        config["val_interval"] = None
        return
    if not isinstance(asked, dict):
        raise ConfigError(
            f"val_interval must be a dict of columns, such as {{rating: '[3,inf)'}}, got {asked!r}"
        )
    if config["benchmark_filename"]:
        return  # the rows are taken as they are, which is said where they are read
    types = _columns(config)
    fitting: dict[str, str | list[str] | None] = {}
    for field, value in asked.items():
        source = next((source for source, columns in types.items() if field in columns), None)
        if source is None:
            known = [column for columns in types.values() for column in columns]
            files = ", ".join(f"{config['dataset']}.{source}" for source in types)
            have = "has" if len(types) == 1 else "have"
            raise ConfigError(
                f"val_interval: there is no column {field!r} in {files}, which {have} "
                f"{', '.join(dict.fromkeys(known))}{did_you_mean(field, known)}"
            )
        if value is None:
            continue
        fitting[field] = _fit(config, field, types[source][field], value)
        if source != "inter" and config["filter_inter_by_user_or_item"] is not True:
            raise ConfigError(
                f"val_interval: {field} is a column of {config['dataset']}.{source}, and "
                "filter_inter_by_user_or_item, which makes its filter count, is not True; set it"
            )
        _load(config, source, field)
    config["val_interval"] = fitting or None


def apply(dataset: Dataset) -> None:
    """RecBole's ``_filter_by_field_value``, with values of tokens, and lists of them."""
    asked = dataset.config["val_interval"] or {}
    for field, value in asked.items():
        numbers = dataset.field2type[field].value == "float"
        intervals = dataset._parse_intervals_str(value) if numbers else None
        for feat in dataset.field2feats(field):
            column = feat[field]
            if numbers:
                stays = dataset._within_intervals(column.to_numpy(), intervals)
            elif dataset.field2type[field].value == "token":
                _say_unknown(field, value, column.dropna().unique())
                stays = column.isin(value).to_numpy()
            else:
                _say_unknown(field, value, {token for row in column for token in row})
                wanted = set(value)
                stays = column.map(lambda row: not wanted.isdisjoint(row)).to_numpy(bool)  # noqa: B023
            feat.drop(feat.index[~stays], inplace=True)


def _columns(config: Config) -> dict[str, dict[str, str]]:
    """The columns and types of ``.inter``, ``.user`` and ``.item``, as far as they exist."""
    folder, name = Path(config["data_path"]), config["dataset"]
    paths = {source: folder / f"{name}.{source}" for source in ("inter", "user", "item")}
    return {source: read_header(config, path) for source, path in paths.items() if path.is_file()}


def _fit(config: Config, field: str, kind: str, value: Any) -> str | list[str] | None:
    """A filter's value in the form that the type of its column asks for."""
    key = f"val_interval of {field}"
    if kind == "float":
        return interval(key, value)
    if kind == "float_seq":
        raise ConfigError(
            f"{key}: it is float_seq, lists of numbers; filters are for float, token and token_seq"
        )
    if isinstance(value, str) and INTERVAL.match(value):
        raise ConfigError(
            f"{key}: {value!r} is an interval, and {field} is {kind}, not float: give the values "
            f"that stay, such as [{field}_1, {field}_2], or write {field}:float in the first line "
            "of its file"
        )
    values = list(value) if isinstance(value, (list, tuple, set)) else [value]
    if not values or any(isinstance(each, (dict, list, tuple)) or each is None for each in values):
        raise ConfigError(
            f"{key} must be a list of the values that stay, since {field} is {kind}, got {value!r}"
        )
    return [str(each) for each in values]


def _say_unknown(field: str, values: Iterable[str], known: Iterable[Any]) -> None:
    known = [str(token) for token in known]
    for value in set(values) - set(known):
        near = did_you_mean(value, known)
        logger.warning("val_interval of %s: no row has %r%s", field, value, near)


def _load(config: Config, source: str, field: str) -> None:
    """Have a column loaded for a filter that no setting loads."""
    unloaded = config["unload_col"] or {}
    if field in (unloaded.get(source) or []):
        raise ConfigError(
            f"val_interval: {field} is in unload_col: {{{source}: ...}}, and a filter reads it; "
            "remove one"
        )
    columns = config["load_col"]
    if not isinstance(columns, dict):
        return  # all are loaded
    loaded = columns.get(source) or []
    if loaded == "*" or field in loaded:
        return
    needed = {"user": [config["USER_ID_FIELD"]], "item": [config["ITEM_ID_FIELD"]]}
    new = [*dict.fromkeys([*loaded, *needed.get(source, []), field])]
    config["load_col"] = {**columns, source: new}
    if field not in (config["RATING_FIELD"], config["LABEL_FIELD"]):
        unused, names = config["unused_col"] or {}, [field]
        if source == "inter" and config["MODEL_TYPE"] == ModelType.SEQUENTIAL:
            names.append(field + config["LIST_SUFFIX"])
        config["unused_col"] = {**unused, source: [*(unused.get(source) or []), *names]}
    logger.info(
        "val_interval: loading %s of %s.%s for its filter", field, config["dataset"], source
    )
