"""How settings are written, on a command line and in Python: words in, values out."""

import ast
import os
import re
from collections.abc import Iterable
from typing import Any, overload

import yaml

from recbole_hydra.errors import ConfigError


def parse_value(text: str) -> Any:
    """Turn the text of a command-line or dict value into what it spells.

    Python and yaml spellings of numbers, booleans, None, lists and dicts are understood; anything
    else stays the string it is. Nothing is evaluated (RecBole calls ``eval``).
    """
    try:
        return ast.literal_eval(text.strip())
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        pass
    word = text.strip().lower()
    if word in ("true", "false"):
        return word == "true"
    if word in ("null", "~"):  # "none" stays text: it is the name of a choice in RecBole
        return None
    if text.strip()[:1] in ("[", "{"):
        try:
            return yaml.safe_load(text)
        except yaml.YAMLError:
            pass
    return text


def parse_list(text: str) -> list[Any]:
    """Split comma- or space-separated text into a list of parsed values."""
    return [parse_value(item) for item in re.split(r"[,\s]+", text.strip("[]() ")) if item]


def parse_paths(text: str) -> list[str]:
    """Split comma-separated paths; those that spaces separate, as RecBole has it, where no file has
    the spaces in its name."""
    paths: list[str] = []
    for part in map(home, filter(None, map(str.strip, text.split(",")))):
        pieces = [home(piece) for piece in part.split()]
        is_one = os.path.exists(part) or not any(map(os.path.exists, pieces))
        paths += [part] if is_one else pieces
    return paths


@overload
def home(path: None) -> None: ...
@overload
def home(path: str | os.PathLike[str]) -> str: ...
def home(path: str | os.PathLike[str] | None) -> str | None:
    """A path with ``~``, the home folder, written out; None stays None."""
    return path if path is None else os.path.expanduser(os.fspath(path))


def parse_arguments(argv: Iterable[str]) -> dict[str, str]:
    """Read ``--key=value`` and ``--key value`` arguments into a dict of strings.

    Raises:
        ConfigError: an argument that is neither, or a key given twice with different values.
    """
    arguments: dict[str, str] = {}
    remaining = list(argv)
    while remaining:
        argument = remaining.pop(0)
        key, equals, value = argument.removeprefix("--").partition("=")
        if not argument.startswith("--") or not key:
            raise ConfigError(f"command line: expected --key=value, got {argument!r}")
        if not equals:
            if not remaining or remaining[0].startswith("--"):
                raise ConfigError(f"command line: --{key} has no value; write --{key}=value")
            value = remaining.pop(0)
        if arguments.setdefault(key, value) != value:
            raise ConfigError(
                f"command line: --{key} is given twice, as {arguments[key]!r} and {value!r}"
            )
    return arguments
