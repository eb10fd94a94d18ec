"""RecBole's atomic files: their first line, their lines, and their columns as the text they are.

Whatever is wrong with a file is one line here: the file, the line in it, and what to do. A reader
that goes on where a line has a field too few, or too many, would train on something else.
"""

from __future__ import annotations

import codecs
import csv
import functools
import os
import re
from collections.abc import Container, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd
from recbole.utils import FeatureType

from recbole_hydra import checks
from recbole_hydra.errors import DatasetError

if TYPE_CHECKING:
    from recbole.config import Config

#: Types of columns, as the first line of a file names them.
KINDS = tuple(kind.value for kind in FeatureType)

#: What a column of numbers may have where it has none; RecBole puts the column's mean there.
NO_NUMBER = ("", "nan", "NaN", "NA", "N/A", "null", "None")

#: The first bytes of files in encodings that mark themselves; utf-32's begins with utf-16's.
_MARKS = (
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)

#: Separators that people use, for hints.
_SEPARATORS = ("\t", ",", ";", "|", "::", " ")


def check_file(config: Config, path: str | Path) -> dict[str, str]:
    """Read every line of an atomic file once, and return its columns and their types.

    Args:
        config: the Config, whose ``encoding`` and ``field_separator`` the file has.

    Returns:
        ``{"user_id": "token", ...}``, as the first line names them.

    Raises:
        DatasetError: it cannot be opened or decoded, its first line does not name columns and
            types, or a line has another number of fields than the first.
        ConfigError: ``encoding`` or ``field_separator`` is none.
    """
    state = _opened(config, path)
    return dict(
        _check(config["dataset"], str(path), state, _encoding(config), config["field_separator"])
    )


def read_header(config: Config, path: str | Path) -> dict[str, str]:
    """The columns of an atomic file and their types, without a look at its other lines.

    Raises:
        as :func:`check_file`.
    """
    _opened(config, path)
    encoding, separator = _encoding(config), config["field_separator"]
    return _header(config["dataset"], str(path), encoding, separator)


def read_columns(
    config: Config, path: str | Path, columns: list[str] | None = None
) -> pd.DataFrame:
    """Columns of an atomic file as strings: quotes are part of a text, and a brand may be NA.

    Args:
        columns: as the first line names them, ``["timestamp:float"]``; all by default.

    Raises:
        as :func:`check_file`.
    """
    check_file(config, path)
    separator = config["field_separator"]
    return pd.read_csv(
        path,
        sep=separator if len(separator) == 1 else re.escape(separator),
        usecols=columns,
        dtype=str,
        keep_default_na=False,
        quoting=csv.QUOTE_NONE,
        encoding=_encoding(config),
        engine="c" if len(separator) == 1 else "python",
    )


def check_numbers(config: Config, path: str | Path, columns: Container[str]) -> None:
    """Raise DatasetError for the first value of the columns of numbers that is none.

    Args:
        columns: names of those that are loaded.
    """
    separator = config["seq_separator"]
    for name, kind in read_header(config, path).items():
        if name not in columns or kind not in ("float", "float_seq"):
            continue
        values = read_columns(config, path, [f"{name}:{kind}"])[f"{name}:{kind}"]
        if kind == "float":
            known = values.isin(NO_NUMBER) | pd.to_numeric(values, errors="coerce").notna()
        else:
            known = values.map(lambda text: all(map(_is_number, text.split(separator))))
        if not known.all():
            row = int((~known).to_numpy().argmax())
            what = "a number" if kind == "float" else f"numbers with {separator!r} between them"
            raise DatasetError(
                f"dataset {config['dataset']}: {path}, {_line_of(config, path, row)}: column "
                f"{name!r} is {kind}, and {values.iloc[row]!r} is not {what}; mend it, or write "
                f"{name}:{kind.replace('float', 'token')} in the first line"
            )


def check_ids(config: Config, path: str | Path, columns: Iterable[str]) -> None:
    """Raise DatasetError where every id of a column is in quotes, as some programs write CSV: they
    would be part of the ids, and no id of another file or call would be the same."""
    for name in columns:
        kind = read_header(config, path).get(name)
        if kind != "token" or not _starts_quoted(config, path):
            continue
        values = read_columns(config, path, [f"{name}:{kind}"])[f"{name}:{kind}"]
        for quote in "\"'":
            quoted = values.str.startswith(quote) & values.str.endswith(quote)
            if len(values) and (quoted & (values.str.len() > 1)).all():
                raise DatasetError(
                    f"dataset {config['dataset']}: {path}: every {name} is in quotes, as "
                    f"{values.iloc[0]} in {_line_of(config, path, 0)}; atomic files know none, "
                    "write the ids without"
                )


def _starts_quoted(config: Config, path: str | Path) -> bool:
    """Whether a field of the first row is in quotes: in most files none is, and that is that."""
    separator = config["field_separator"]
    with open(path, encoding=_encoding(config)) as file:
        next(file, None)
        row = next((line for line in file if not _is_blank(line, separator)), "")
    return any(field.strip()[:1] in ('"', "'") for field in row.split(separator) if field.strip())


def has_rows(config: Config, path: str | Path) -> bool:
    """Whether there is anything below the first line of a file."""
    with open(path, encoding=_encoding(config)) as file:
        next(file, None)
        return any(not _is_blank(line, config["field_separator"]) for line in file)


def check_no_missing(config: Config, path: str | Path, columns: Iterable[str]) -> None:
    """Raise DatasetError for the first line where one of the columns is empty."""
    for name in columns:
        kind = read_header(config, path).get(name)
        if kind is None:
            continue
        empty = read_columns(config, path, [f"{name}:{kind}"])[f"{name}:{kind}"] == ""
        if empty.any():
            line = _line_of(config, path, int(empty.to_numpy().argmax()))
            raise DatasetError(f"dataset {config['dataset']}: {path}, {line}: no {name}; add it")


def _encoding(config: Config) -> str:
    return config["encoding"] or "utf-8"  # RecBole's own Config has none by default


def _is_number(text: str) -> bool:
    try:
        float(text or 0)  # RecBole drops what is empty between two separators
    except ValueError:
        return False
    return True


def _line_of(config: Config, path: str | Path, row: int) -> str:
    """The line, for a message, of a row as pandas counts them, which passes over empty lines."""
    separator = config["field_separator"]
    with open(path, encoding=_encoding(config)) as file:
        next(file)
        for number, line in enumerate(file, 2):
            if _is_blank(line, separator):
                continue
            if row == 0:
                return f"line {number}"
            row -= 1
    return "last line"


def _is_blank(line: str, separator: str) -> bool:
    # Of spaces alone, as pandas has it: other white space, such as U+0085, is a sign.
    return not line.strip(" \t\r\n") and separator not in line


def _opened(config: Config, path: str | Path) -> tuple[int, int]:
    """Check what a file is opened with; returns what tells its states apart, for a cache."""
    # Our Config has checked both; RecBole's own, which may come here too, has not.
    checks.text_encoding("encoding", _encoding(config))
    checks.separator("field_separator", config["field_separator"])
    try:
        with open(path, "rb"):
            pass
        state = os.stat(path)
    except OSError as error:
        raise DatasetError(
            f"dataset {config['dataset']}: {path} cannot be read ({error.strerror})"
        ) from error
    return state.st_mtime_ns, state.st_size


@functools.lru_cache(maxsize=64)
def _check(
    name: str, path: str, state: tuple[int, int], encoding: str, separator: str
) -> tuple[tuple[str, str], ...]:
    """:func:`check_file`, once per state of a file."""
    types = _header(name, path, encoding, separator)
    wanted = len(types) - 1
    try:
        with open(path, encoding=encoding) as file:
            for number, line in enumerate(file, 1):
                if line.count(separator) != wanted and not _is_blank(line, separator):
                    raise DatasetError(_wrong_fields(name, path, number, line, separator, types))
    except UnicodeError as error:
        raise DatasetError(_wrong_encoding(name, path, encoding)) from error
    return tuple(types.items())


def _header(name: str, path: str, encoding: str, separator: str) -> dict[str, str]:
    _check_mark(name, path, encoding)
    try:
        with open(path, encoding=encoding) as file:
            header = file.readline()
    except UnicodeError as error:
        raise DatasetError(_wrong_encoding(name, path, encoding)) from error
    shape = f"columns and types, such as {separator.join(('user_id:token', 'item_id:token'))!r}"
    where = f"dataset {name}: {path}"
    if not header:
        raise DatasetError(f"{where} is empty; its first line names {shape}")
    header = header.rstrip("\r\n")
    if not header.strip():
        raise DatasetError(f"{where}, line 1: it is empty; the first line names {shape}")
    if header.startswith("\ufeff"):
        raise DatasetError(
            f"{where} begins with a byte order mark; save it without, or set encoding: utf-8-sig"
        )
    if "\0" in header:
        likely = _likely_encoding(Path(path).read_bytes()[:10_000])
        raise DatasetError(
            f"{where}, line 1: it has zero bytes, so the file is not {encoding} (encoding); set "
            f"encoding to the one it was written in, perhaps {likely}"
        )
    columns = header.split(separator)
    if any(column.strip()[:1] in ('"', "'") for column in columns):
        raise DatasetError(
            f"{where}, line 1: {columns[0]} is in quotes, which atomic files do not know; write "
            "the first line, and the ids, without quotes"
        )
    if separator not in header and (other := _other_separator(header)):
        raise DatasetError(
            f"{where}, line 1: the columns are not separated by field_separator, {separator!r}; "
            f"set it to {other!r}, or write the file with {separator!r}"
        )
    types: dict[str, str] = {}
    for column in columns:
        field, colon, kind = column.partition(":")
        if kind not in KINDS:
            is_data = not colon and any(":" not in other for other in columns)
            missing = "; a file without such a line needs one before its data" if is_data else ""
            raise DatasetError(
                f"dataset {name}: column {field!r} of {path}, line 1, has the type {kind!r}; its "
                f"first line has to name one of {', '.join(KINDS)}, as in {field}:token"
                f"{missing or checks.did_you_mean(kind, KINDS)}"
            )
        if not field:
            raise DatasetError(f"{where}, line 1: {column!r} has no name before its type")
        if field in types:
            raise DatasetError(
                f"{where}, line 1: there are two columns {field!r}; rename one, or remove it"
            )
        types[field] = kind
    return types


def _other_separator(header: str) -> str | None:
    """What stands between the columns of a first line, judged by the types in it."""
    kinds = "|".join(sorted(KINDS, key=len, reverse=True))
    if found := re.search(rf":(?:{kinds})([^\w:]+|::)\w", header):
        return found[1]
    return next((other for other in _SEPARATORS if other in header), None)


def _wrong_fields(
    name: str, path: str, number: int, line: str, separator: str, types: Mapping[str, str]
) -> str:
    line = line.rstrip("\r\n")
    found, wanted = line.count(separator) + 1, len(types)
    words = f"{found} field{'s' if found != 1 else ''}"
    other = next(
        (o for o in _SEPARATORS if o != separator and line.count(o) == wanted - 1 and wanted > 1),
        None,
    )
    remedy = f"fields are separated by field_separator, {separator!r}"
    if found == 1 and other:
        remedy += f"; this line seems to be by {other!r}"
    elif '"' in line:
        remedy += ", also between quotes, which atomic files do not know"
    else:
        remedy += ", and an empty one has its place, too"
    return (
        f"dataset {name}: {path}, line {number}: it has {words}, the first line names {wanted}, "
        f"{', '.join(types)}; {remedy}"
    )


def _check_mark(name: str, path: str, encoding: str) -> None:
    """Refuse a file whose first bytes say that it has another encoding."""
    with open(path, "rb") as file:
        start = file.read(4)
    for mark, marked in _MARKS:
        if start.startswith(mark):
            if codecs.lookup(encoding).name != marked:
                raise DatasetError(
                    f"dataset {name}: {path}, line 1: its first bytes are the mark of {marked}, "
                    f"not of {encoding} (encoding); set encoding: {marked}"
                )
            return


def _wrong_encoding(name: str, path: str, encoding: str) -> str:
    """Say where a file cannot be decoded, and what it might be instead."""
    raw = Path(path).read_bytes()
    line, byte = 1, ""
    try:
        raw.decode(encoding)
    except UnicodeDecodeError as error:
        # In utf-16 and utf-32 everything after a missing byte is wrong.
        line = raw[: error.start].decode(encoding, "replace").count("\n") + 1
        if not codecs.lookup(encoding).name.startswith(("utf-16", "utf-32")):
            byte = f"byte 0x{raw[error.start]:02x} "
    except UnicodeError:
        pass  # utf-16 without its mark
    likely = _likely_encoding(raw)
    return (
        f"dataset {name}: {path}, line {line}: {byte or 'the text '}is not {encoding} (encoding); "
        f"set encoding to the one the file was written in, perhaps {likely}"
    )


def _likely_encoding(raw: bytes) -> str:
    """An encoding that text with these bytes may well have; there is no certainty."""
    if b"\0" in raw:
        even, odd = raw[::2].count(0), raw[1::2].count(0)
        return "utf-16-le" if odd >= even else "utf-16-be"
    for encoding in ("utf-8", "gb2312"):  # single accented letters do not pass as Chinese
        try:
            raw.decode(encoding)
        except UnicodeDecodeError:
            continue
        return "gb18030" if encoding == "gb2312" else encoding
    return "cp1252" if any(0x80 <= byte < 0xA0 for byte in raw) else "latin-1"
