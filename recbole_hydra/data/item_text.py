"""One sentence per item, out of the columns of a domain's ``.item`` file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd

from recbole_hydra.checks import did_you_mean
from recbole_hydra.data.atomic_files import read_columns
from recbole_hydra.errors import ConfigError, DatasetError

if TYPE_CHECKING:
    from recbole.config import Config
    from recbole.data.dataset import Dataset

#: Types of the columns that are text, as atomic files name them.
TEXT_TYPES = ("token", "token_seq")


def has_item_text(config: Config) -> bool:
    """Whether the model of ``config`` reads what its items say."""
    return "text" in str(config["item_encoder"])


def read_item_texts(config: Config) -> dict[str, str]:
    """The texts of a dataset's ``.item`` file, by raw item id: its ``item_text_fields``, joined.

    An item of brand HP and title Ink becomes ``title: Ink, brand: HP``; empty fields are left out.

    Raises:
        DatasetError: there is no such file, or it lacks a field or the item id.
    """
    table, types = _read(config, Path(config["data_path"]) / f"{config['dataset']}.item")
    fields = config["item_text_fields"] or [f for f, kind in types.items() if kind in TEXT_TYPES]
    config["item_text_fields"] = fields  # for items that come later
    return dict(zip(table[config["ITEM_ID_FIELD"]], _join(table, fields), strict=True))


def item_sentences(config: Config, dataset: Dataset, texts: Mapping[str, str]) -> list[str]:
    """What the item LLM reads of every item: ``item_prompt``, then its text.

    Args:
        config: the Config that the dataset was loaded with.
        dataset: RecBole's, whose internal item ids decide the order.
        texts: those of :func:`read_item_texts`.

    Returns:
        (n_items,) strings; row 0, padding, is empty.

    Raises:
        DatasetError: items have no text, and ``missing_item_text`` is not set.
    """
    tokens = [str(token) for token in dataset.field2id_token[dataset.iid_field][1:]]
    missing = [token for token in tokens if not texts.get(token)]
    fallback = config["missing_item_text"]
    if missing and fallback is None:
        name = config["dataset"]
        some = ", ".join(missing[:3]) + (", ..." if len(missing) > 3 else "")
        raise DatasetError(
            f"dataset {name}: {len(missing):,} of {len(tokens):,} items have no text in {name}.item"
            f" ({some}); add it, or set missing_item_text to what shall stand for it"
        )
    prompt = config["item_prompt"] or ""
    return ["", *(f"{prompt}{texts.get(token) or fallback}" for token in tokens)]


def new_item_sentence(config: Config, item_id: str, fields: Mapping[str, object]) -> str:
    """What the item LLM reads of an item that is in no file.

    Args:
        config: the Config of the model. fields: text by field, in the order of the ``.item`` file;
            None where there is none.

    Raises:
        DatasetError: a field that is not among ``item_text_fields``, or no text.
    """
    known = config["item_text_fields"] or list(fields)
    for field in fields:
        if field not in known:
            raise DatasetError(
                f"item {item_id}: there is no {field!r} in item_text_fields, {', '.join(known)}"
                f"{did_you_mean(field, known)}"
            )
    values = {field: fields.get(field) for field in known}
    frame = pd.DataFrame([{f: "" if value is None else str(value) for f, value in values.items()}])
    text = _join(frame, known)[0] if known else ""
    if not text:
        raise DatasetError(f"item {item_id}: it has no text; give at least one field")
    return f"{config['item_prompt'] or ''}{text}"


def _join(table: pd.DataFrame, fields: Sequence[str]) -> list[str]:
    columns = [[" ".join(value.split()) for value in table[field]] for field in fields]
    return [
        ", ".join(f"{field}: {value}" for field, value in zip(fields, row, strict=True) if value)
        for row in zip(*columns, strict=True)
    ]


def _read(config: Config, path: Path) -> tuple[pd.DataFrame, dict[str, str]]:
    """The columns of an ``.item`` file as strings, by name, and the types of all but the id."""
    name, item_id = config["dataset"], config["ITEM_ID_FIELD"]
    if not path.is_file():
        raise DatasetError(
            f"dataset {name}: there is no file {path}, which item_encoder "
            f"{config['item_encoder']} reads the items' texts from"
        )
    try:
        table = read_columns(config, path)
    except (ValueError, UnicodeError) as error:  # pandas' ParserError is a ValueError
        raise DatasetError(
            f"dataset {name}: {path} cannot be read ({' '.join(str(error).split())})"
        ) from error
    types = dict(column.partition(":")[::2] for column in table.columns)
    table.columns = [column.partition(":")[0] for column in table.columns]
    if item_id not in types:
        raise DatasetError(
            f"dataset {name}: {path} has no column {item_id!r} (ITEM_ID_FIELD), it has "
            f"{', '.join(types)}"
        )
    known = [field for field in types if field != item_id]
    wanted = config["item_text_fields"]
    for field in wanted or []:
        if field not in known:
            raise DatasetError(
                f"dataset {name}: item_text_fields asks for {field!r}, {path} has "
                f"{', '.join(known)}{did_you_mean(field, known)}"
            )
    if wanted is not None and not wanted:
        raise ConfigError("item_text_fields: it is empty; ~ takes all columns with text")
    del types[item_id]
    if not wanted and not set(types.values()) & set(TEXT_TYPES):
        raise DatasetError(
            f"dataset {name}: {path} has no column with text (token, token_seq), it has "
            f"{', '.join(known) or 'only ids'}; set item_text_fields"
        )
    return table, types
