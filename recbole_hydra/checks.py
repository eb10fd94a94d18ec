"""Checks of hyperparameters, shared by layers and models.

Each returns the value it was given, or raises
:class:`~recbole_hydra.errors.ConfigError` with the name the user wrote.
"""

import codecs
import difflib
from collections.abc import Iterable
from typing import Any

from recbole_hydra.errors import ConfigError


def positive_int(name: str, value: Any) -> int:
    """Return ``value`` if it is an integer >= 1."""
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ConfigError(f"{name} must be a positive integer, got {value!r}")
    return value


#: Encodings that files of users have, for hints.
ENCODINGS = (
    "utf-8", "utf-8-sig", "utf-16", "latin-1", "cp1252", "gbk", "gb18030", "big5", "shift_jis",
    "euc_kr", "cp1251", "ascii",
)  # fmt: skip


def text_encoding(name: str, value: Any) -> str:
    """Return ``value`` if Python knows a text encoding of that name."""
    try:
        codecs.lookup(value)
    except (LookupError, TypeError, ValueError) as error:
        raise ConfigError(
            f"{name} must be a text encoding such as utf-8 or latin-1, got {value!r}"
            f"{did_you_mean(value, ENCODINGS)}"
        ) from error
    return value


def separator(name: str, value: Any) -> str:
    """Return ``value`` if it can stand between the fields of a line: a text that is not empty."""
    if not isinstance(value, str) or not value:
        raise ConfigError(f"{name} must be the text between columns, such as ',', got {value!r}")
    return value


def probability(name: str, value: Any) -> float:
    """Return ``value`` if it is a dropout probability, a number in [0, 1)."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value < 1:
        raise ConfigError(f"{name} must be a number in [0, 1), got {value!r}")
    return float(value)


def fraction(name: str, value: Any) -> float:
    """Return ``value`` if it is a number in [0, 1]."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value <= 1:
        raise ConfigError(f"{name} must be a number in [0, 1], got {value!r}")
    return float(value)


def positive_number(name: str, value: Any) -> float:
    """Return ``value`` if it is a number > 0."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not value > 0:
        raise ConfigError(f"{name} must be a positive number, got {value!r}")
    return float(value)


def boolean(name: str, value: Any) -> bool:
    """Return ``value`` if it is True or False."""
    if not isinstance(value, bool):
        raise ConfigError(f"{name} must be True or False, got {value!r}")
    return value


def one_of(name: str, value: Any, choices: Iterable[str]) -> str:
    """Return ``value`` if it is one of ``choices``."""
    choices = list(choices)
    if value not in choices:
        raise ConfigError(f"{name} must be one of {', '.join(choices)}, got {value!r}")
    return value


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """Return ``"; did you mean 'x'?"`` for the name in ``known`` nearest to ``word``, else ``""``.

    The comparison ignores case, so that ``sasrec`` finds ``SASRec``.
    """
    by_lower = {name.lower(): name for name in known}
    near = difflib.get_close_matches(str(word).lower(), by_lower, n=1, cutoff=0.6)
    return f"; did you mean {by_lower[near[0]]!r}?" if near else ""
