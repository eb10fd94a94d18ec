"""Rules that are derived from yaml files, RecBole's and ours: from the comment that follows a key,
as in ``# (int) Number of layers.`` and ``Range in ['rms', 'none']``, and from its default."""

import re
from pathlib import Path
from typing import Any

import yaml
from recbole.config import Config as RecBoleConfig

from recbole_hydra.settings.rules import (
    Rule,
    anything,
    choice,
    either,
    integer,
    list_of,
    mapping,
    number,
    optional,
    switch,
    text,
)
from recbole_hydra.settings.spelling import home

#: RecBole's loader, to which 1e-3 is a number.
_YAML_LOADER = RecBoleConfig._build_yaml_loader(None)

#: A line such as ``num_layers: 1  # (int) Number of layers. Range in [...]``.
_LINE = re.compile(r"^([\w-]+)\s*:(?:[^#'\"]|'[^']*'|\"[^\"]*\")*#\s*(.*)$")
_TYPES = re.compile(r"\(([\w\s]+)\)")
_CHOICES = re.compile(r"\b[Rr]ang(?:e|ing) in\W*?\[(.*?)\]")

#: Keys of RecBole's models that are sizes, and those that are probabilities of dropout, by name.
_SIZES = re.compile(r"(^|_)(hidden_size|embedding_size|inner_size|attention_size|n_heads)$")
_DROPOUT = re.compile(r"(^|_)dropout(_prob|_rate|_ratio)?$|^drop_ratio$")


def read_comments(file: str | Path) -> dict[str, str]:
    """The comment behind every key of a yaml file that has one."""
    lines = Path(file).read_text(encoding="utf-8").splitlines()
    return {match[1]: match[2] for match in map(_LINE.match, lines) if match}


def derived_rules(file: str | Path) -> dict[str, Rule]:
    """The rules that the comments and defaults of a yaml file of ours, or RecBole's general ones,
    give: by type, and by choices where they are listed."""
    defaults = read_yaml(file)
    rules = {}
    for key, comment in read_comments(file).items():
        types = _TYPES.match(comment)
        if types is None or key not in defaults:
            continue
        rule = _by_type(types[1], _choices(comment))
        if rule is not None:
            rules[key] = optional(rule) if defaults[key] is None else rule
    return rules


def _by_type(kind: str, choices: list[str]) -> Rule | None:
    """The rule of a type that a comment names, such as ``str`` or ``list or str``."""
    kinds = re.split(r"\W+or\W+|\s+or\s+", kind.strip())
    if choices:
        one = choice(choices)
        return list_of(one, f"{one.words}, or several") if "list" in kinds else one
    plain = {
        "int": integer(), "float": number(), "bool": switch(), "str": text(),
        "list": list_of(anything(), "a list"), "dict": mapping("a dict", anything()),
    }  # fmt: skip
    found = [plain[each] for each in kinds if each in plain]
    return either(*found) if found and len(found) == len(set(kinds) - {"None"}) else None


def _choices(comment: str) -> list[str]:
    """The words after ``Range in``, if it is words that are listed."""
    match = _CHOICES.search(comment)
    words = re.findall(r"[\w.+-]+", match[1]) if match else []
    return [] if all(re.fullmatch(r"-?\d+(\.\d+)?", word) for word in words) else words


def lenient_rules(file: str | Path) -> dict[str, Rule]:
    """The rules of a model of RecBole's, from its yaml: by the type of the default, with care,
    since a comment there is not always right, and lists have a meaning in places."""
    comments = read_comments(file)
    rules = {}
    for key, default in read_yaml(file).items():
        comment = comments.get(key, "")
        rule = _by_default(key, default, comment)
        if rule is not None:
            rules[key] = rule
    return rules


def _by_default(key: str, default: Any, comment: str) -> Rule | None:
    choices = _choices(comment)
    kind = _TYPES.match(comment)
    if key.endswith("_path"):
        return Rule("a path", lambda value: home(value) if isinstance(value, str) else value)
    if isinstance(default, str):
        return choice(choices) if default in choices else None
    if isinstance(default, bool):
        return switch()
    if isinstance(default, (int, float)):
        if kind is not None and kind[1] not in ("int", "float"):
            return None  # such as "500,100,20", or 1 for True
        if isinstance(default, int) and default > 0 and _SIZES.search(key):
            return integer(least=1)
        if _DROPOUT.search(key):
            return number(least=0, most=1)
        return optional(either(number(), list_of(number(), "a list of numbers")))
    if isinstance(default, list):
        numbers = default and all(isinstance(each, (int, float)) for each in default)
        return optional(list_of(number() if numbers else anything(), f"a list such as {default}"))
    return None


def read_yaml(file: str | Path) -> dict[str, Any]:
    """A yaml file, as RecBole reads it."""
    with open(file, encoding="utf-8") as stream:
        return yaml.load(stream, Loader=_YAML_LOADER) or {}
