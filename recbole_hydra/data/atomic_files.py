"""Columns of RecBole's atomic files, read as the text they are."""

import csv

import pandas as pd


def read_columns(config, path, columns=None) -> pd.DataFrame:
    """Columns of an atomic file as strings: quotes are part of a text, and a brand may be NA.

    Args:
        columns: as the first line names them, ``["timestamp:float"]``; all by default.
    """
    separator = config["field_separator"]
    return pd.read_csv(
        path,
        sep=separator,
        usecols=columns,
        dtype=str,
        keep_default_na=False,
        quoting=csv.QUOTE_NONE,
        encoding=config["encoding"],
        engine="c" if len(separator) == 1 else "python",
    )
