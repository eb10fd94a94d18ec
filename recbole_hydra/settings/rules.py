"""Kinds of rules: what the value of a setting may be, and how it is read.

``number``, ``switch``, ``list_of`` and the others make a :class:`Rule`; which setting has which is
in :mod:`.values`. Values come from a command line, from yaml, and from Python: ``"5"``, ``5.0`` and
``np.int64(5)`` are the integer 5.
"""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from recbole_hydra.checks import did_you_mean
from recbole_hydra.errors import ConfigError
from recbole_hydra.settings.spelling import home, parse_list


class UnfitError(ValueError):
    """A value that a rule does not take; its message, if there is one, is a hint.

    Attributes:
        part: of a value that has parts, what the unfit one is called; the message then says what it
            must be.
    """

    def __init__(self, message: str = "", part: str | None = None) -> None:
        super().__init__(message)
        self.part = part


@dataclass(frozen=True)
class Rule:
    """What a setting may be.

    Attributes:
        words: that, so that "KEY must be ``words``" is a sentence.
        read: takes a value, returns it as the run has it; raises :class:`UnfitError` for any other.
        kind: "path" or "", for those who ask which settings are paths.
    """

    words: str
    read: Callable
    kind: str = ""

    def __call__(self, name: str, value: Any) -> Any:
        """Read ``value``; ``name`` is what the user calls it.

        Raises:
            ConfigError: the value is none that the setting may have.
        """
        value = _plain(value)
        try:
            return self.read(value)
        except UnfitError as error:
            if error.part is not None:
                raise ConfigError(f"{name} of {error.part} {error}") from None
            raise ConfigError(f"{name} must be {self.words}, got {value!r}{error}") from None


def _plain(value: Any) -> Any:
    """Numbers and arrays of numpy's, and tensors, as Python's."""
    return value.tolist() if hasattr(value, "tolist") else value


# -- kinds of rules ------------------------------------------------------------------------------


def _number(value: Any) -> float:
    """A finite number, or the text of one."""
    if isinstance(value, str):
        for kind in (int, float):
            try:
                value = kind(value)
                break
            except ValueError:
                continue
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise UnfitError
    if isinstance(value, int) and abs(value) >= 2**63 or not math.isfinite(value):
        raise UnfitError  # no machine's number
    return value


def number(
    least: float = -math.inf,
    most: float = math.inf,
    above: float | None = None,
    below: float | None = None,
    words: str | None = None,
) -> Rule:
    """A finite number in ``[least, most]``, or greater than ``above``, or less than ``below``."""

    def read(value: Any) -> float:
        value = _number(value)
        if not least <= value <= most or (above is not None and value <= above):
            raise UnfitError
        if below is not None and value >= below:
            raise UnfitError
        return value

    if words is None:
        low = f"({above}" if above is not None else f"[{least}"
        high = f"{below})" if below is not None else f"{most}]"
        known: dict[tuple[float, float, float | None, float | None], str] = {
            (-math.inf, math.inf, None, None): "a number",
            (-math.inf, math.inf, 0, None): "a positive number",
            (0, math.inf, None, None): "a number of at least 0",
        }
        words = known.get((least, most, above, below), f"a number in {low}, {high}")
    return Rule(words, read)


def integer(least: int | None = None, most: int | None = None, words: str | None = None) -> Rule:
    """An integer; ``5.0`` and ``1e3`` are some."""

    def read(value: Any) -> int:
        value = _number(value)
        if value != int(value):
            raise UnfitError
        value = int(value)
        if (least is not None and value < least) or (most is not None and value > most):
            raise UnfitError
        return value

    if words is None:
        words = "an integer" if least is None else f"an integer of at least {least}"
        if least == 1:
            words = "a positive integer"
        if most is not None:
            words = f"an integer in {least} .. {most}"
    return Rule(words, read)


def switch() -> Rule:
    """True or False, in upper or lower case."""

    def read(value: Any) -> bool:
        if isinstance(value, str):
            value = {"true": True, "false": False}.get(value.strip().lower(), value)
        if not isinstance(value, bool):
            raise UnfitError
        return value

    return Rule("True or False", read)


def choice(words: Iterable[str], any_case: bool = False) -> Rule:
    """One of some words; ``any_case``: in upper or lower case."""
    words = list(words)

    def read(value: Any) -> str:
        if isinstance(value, str):
            if value in words or (any_case and value.lower() in [w.lower() for w in words]):
                return value
        raise UnfitError(did_you_mean(value, words))

    return Rule(f"one of {', '.join(words)}", read)


def text(words: str = "text", empty: bool = True) -> Rule:
    """A string; a number is what it is written as."""

    def read(value: Any) -> str:
        if isinstance(value, (int, float)) and not isinstance(value, bool):
            value = str(value)
        if not isinstance(value, str) or not (value or empty):
            raise UnfitError
        return str(value)

    return Rule(words, read)


def name_of(what: str) -> Rule:
    """The name of something, such as a column."""
    return text(f"the name of a {what}", empty=False)


def path(words: str = "a path") -> Rule:
    """A file or folder; ``~`` is the home folder."""
    name = text(empty=False)
    return Rule(words, lambda value: home(name.read(value) if _is_plain(value) else value), "path")


def _is_plain(value: Any) -> bool:
    if isinstance(value, Path):
        return False
    if not isinstance(value, (str, int, float)):
        raise UnfitError
    return True


def optional(rule: Rule) -> Rule:
    """None, or what ``rule`` takes."""

    def read(value: Any) -> Any:
        return None if value is None else rule.read(value)

    return Rule(f"{rule.words}, or ~ (None)", read, rule.kind)


def either(*rules: Rule) -> Rule:
    """What one of ``rules`` takes, the first that does."""

    def read(value: Any) -> Any:
        hint = ""
        for rule in rules:
            try:
                return rule.read(value)
            except UnfitError as error:
                if error.part is not None:
                    raise
                hint = hint or str(error)
        raise UnfitError(hint)

    return Rule(" or ".join(rule.words for rule in rules), read, rules[0].kind)


def list_of(rule: Rule, words: str, empty: bool = True) -> Rule:
    """A list of what ``rule`` takes; comma- or space-separated text and a single value are one."""

    def read(value: Any) -> list[Any]:
        if isinstance(value, str):
            value = parse_list(value)
        if isinstance(value, (set, frozenset)) or value is None:
            raise UnfitError
        value = list(value) if isinstance(value, (list, tuple)) else [value]
        if not (value or empty):
            raise UnfitError
        found = []
        for each in value:
            try:
                found.append(rule.read(each.tolist() if hasattr(each, "tolist") else each))
            except UnfitError as error:
                raise UnfitError(
                    f"{error}" if len(value) == 1 else f": not {each!r}{error}"
                ) from None
        return found

    return Rule(words, read)


def mapping(words: str, values: Rule, most: int | None = None) -> Rule:
    """A dict from names, such as columns, to what ``values`` takes."""

    def read(value: Any) -> dict[str, Any]:
        if not isinstance(value, dict) or (most is not None and len(value) > most):
            raise UnfitError
        found = {}
        for key, each in value.items():
            try:
                found[str(key)] = values.read(_plain(each))
            except UnfitError as error:
                raise UnfitError(f"must be {values.words}, got {each!r}{error}", key) from None
        return found

    return Rule(words, read)


@dataclass(frozen=True)
class Nested:
    """A rule of a setting that has keys of its own, each with its rule.

    Attributes:
        example: what such a setting looks like.
        rules: by key. needed: the keys that have to be there.
        switched_off: values that stand for having none of it.
    """

    example: str
    rules: dict
    needed: tuple = ()
    switched_off: tuple = ()

    def __call__(self, name: str, value: Any) -> dict[str, Any] | None:
        """As :meth:`Rule.__call__`."""
        if not isinstance(value, dict):
            if (value is None or isinstance(value, str)) and value in self.switched_off:
                return None
            none = ", or ~ (None)" if None in self.switched_off else ""
            raise ConfigError(f"{name} must be a dict such as {self.example}{none}, got {value!r}")
        for key in value:
            if key not in self.rules:
                hint = did_you_mean(key, self.rules) or f"; it has {', '.join(self.rules)}"
                raise ConfigError(f"unknown key {key!r} in {name}{hint}")
        for key in self.needed:
            if key not in value:
                raise ConfigError(f"{name}: {key} is missing; it is a dict such as {self.example}")
        return {key: self.rules[key](f"{name}: {key}", each) for key, each in value.items()}


def off(reason: str) -> Rule:
    """A switch of RecBole's that stays off here."""

    def read(value: Any) -> Any:
        if value in (None, False, "", "None", "False"):
            return value
        raise UnfitError(f": {reason}")

    return Rule("off", read)


def anything() -> Rule:
    """No rule."""
    return Rule("anything", lambda value: value)


def dataset_name(value: Any, name: str = "dataset") -> str:
    """Return ``value`` if it can be the name of a dataset, which is a folder in ``data_path``.

    Raises:
        ConfigError: it is a path, or no name.
    """
    value = text(f"a {name}'s name", empty=False)(name, value)
    if "/" in value or "\\" in value or value in (".", "..", "~"):
        folder = Path(home(value.replace("\\", "/")))
        hint = ""
        if folder.name not in ("", ".."):
            hint = f": --{name}={folder.name} --data_path={folder.parent}"
        raise ConfigError(
            f"{name}: {value!r} is a path, not a name; give the name, and in data_path the folder "
            f"that has the folder of that name{hint}"
        )
    return value
