"""The search space of a sweep: what each hyperparameter may be, read from a file."""

from __future__ import annotations

import ast
import itertools
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import yaml

from recbole_hydra.checks import did_you_mean
from recbole_hydra.errors import TuneError
from recbole_hydra.settings.spelling import home, parse_value

if TYPE_CHECKING:
    from ray.tune.search.sample import Domain

#: How each kind of range is written.
FORMS = {
    "choice": "[a, b, ...]",
    "uniform": "[low, high]",
    "loguniform": "[low, high]",
    "quniform": "[low, high, step]",
    "int": "[low, high]",
}

#: How often a configuration is drawn again because it was drawn before.
_REDRAWS = 1000


@dataclass(frozen=True)
class Parameter:
    """The values that one hyperparameter may take.

    Searchers see a plain range (:meth:`domain`): a choice as the index into its values, a quniform
    as the multiple of its step. :meth:`decode` and :meth:`encode` go there and back.

    Attributes:
        name: the key of the config.
        kind: one of :data:`FORMS`.
        values: of a choice, the values; otherwise ``(low, high)``, of a quniform ``(low, high,
            step)``. Both ends of an int and a quniform are included.
    """

    name: str
    kind: str
    values: tuple

    def domain(self) -> Domain:
        """The range as Ray Tune's search algorithms take it."""
        from ray import tune

        if self.kind == "uniform":
            return tune.uniform(*self.values)
        if self.kind == "loguniform":
            return tune.loguniform(*self.values)
        if self.kind == "choice":
            return tune.choice(list(range(len(self.values))))
        first, last = self._multiples()
        return tune.randint(first, last + 1)

    def decode(self, value: Any) -> Any:
        """Turn a value of :meth:`domain` into one of the config."""
        if self.kind == "choice":
            return self.values[value]
        if self.kind == "int":
            return int(value)
        if self.kind == "quniform":
            step = self.values[2]
            return int(value) * step if isinstance(step, int) else _short(int(value) * step)
        # Six digits, so that best.yaml can be read and still is the configuration that was trained.
        return min(max(_short(value, 6), self.values[0]), self.values[1])

    def encode(self, value: Any) -> Any:
        """Turn a value of the config into one of :meth:`domain`."""
        if self.kind == "choice":
            return self.values.index(value)
        if self.kind == "quniform":
            return round(value / self.values[2])
        return value

    def examples(self) -> list[Any]:
        """Values to check a setting's rule by: those of a choice; of a range both ends, and one
        between that is no end of a step."""
        if self.kind == "choice":
            return list(self.values)
        if self.kind in ("uniform", "loguniform"):
            low, high = self.values
            return [low, high, self.decode(low + (high - low) / math.e)]
        first, last = self._multiples()
        return [self.decode(number) for number in {first, min(first + 1, last), last}]

    def grid(self) -> list[Any]:
        """All values.

        Raises:
            TuneError: there are infinitely many.
        """
        if self.kind == "choice":
            return list(self.values)
        if self.kind in ("uniform", "loguniform"):
            raise TuneError(
                f"search: grid: {self.name} is a continuous range ({self.kind}); make it a choice "
                "or a quniform, or use --search=random"
            )
        first, last = self._multiples()
        return [self.decode(number) for number in range(first, last + 1)]

    def _multiples(self) -> tuple[int, int]:
        """The first and the last multiple of the step in the range."""
        low, high, step = (*self.values, 1)[:3]
        # As 0.3 / 0.1 is a little less than 3 in floating point.
        return math.ceil(_short(low / step)), math.floor(_short(high / step))


class Space:
    """The parameters of a sweep.

    Args:
        parameters: dict of :class:`Parameter` by name.
        source: where they were written, for messages.
    """

    def __init__(self, parameters: dict[str, Parameter], source: str) -> None:
        self.parameters, self.source = parameters, source

    def domains(self) -> dict[str, Domain]:
        """Every parameter's :meth:`Parameter.domain`, by name."""
        return {name: parameter.domain() for name, parameter in self.parameters.items()}

    def decode(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """A configuration from the values of :meth:`domains`."""
        return {name: p.decode(values[name]) for name, p in self.parameters.items()}

    def encode(self, configuration: Mapping[str, Any]) -> dict[str, Any]:
        """The values of :meth:`domains` for a configuration."""
        return {name: p.encode(configuration[name]) for name, p in self.parameters.items()}

    def draw(self, number: int, seed: int) -> list[dict[str, Any]]:
        """Draw configurations, all different; with the same seed the same ones, a longer draw
        beginning as the shorter does.

        Returns:
            ``number`` of them, or as many as the space seems to have.
        """
        generator, domains = np.random.default_rng(seed), self.domains()
        drawn = []
        for _ in range(number):
            for _ in range(_REDRAWS):
                configuration = self.decode(
                    {k: d.sample(random_state=generator) for k, d in domains.items()}
                )
                if configuration not in drawn:
                    drawn.append(configuration)
                    break
            else:
                break
        return drawn

    def grid(self) -> list[dict[str, Any]]:
        """Every configuration of the space, the last parameter running fastest.

        Raises:
            TuneError: a parameter is a continuous range.
        """
        values = [parameter.grid() for parameter in self.parameters.values()]
        return [dict(zip(self.parameters, row, strict=True)) for row in itertools.product(*values)]

    def as_plain(self) -> dict[str, dict[str, list[Any]]]:
        """The space as yaml would hold it."""
        return {name: {p.kind: list(p.values)} for name, p in self.parameters.items()}


def read_space(space: dict[str, Any] | str | os.PathLike[str]) -> Space:
    """Read a search space.

    Args:
        space: a dict ``{key: {kind: values}}`` with the kinds of :data:`FORMS` (a list is short for
            a choice); the path of a yaml file of one; or the path of a file in RecBole's
            ``hyper.test`` format, lines such as ``learning_rate choice [0.01,0.001]`` and
            ``dropout_prob uniform 0.1,0.5``, where, as in RecBole, the bounds of ``loguniform`` are
            natural logarithms.

    Raises:
        TuneError: no such file, an unknown kind, or an empty or contradictory range.
    """
    if isinstance(space, dict):
        return _from_dict(space, "space")
    if not isinstance(space, (str, os.PathLike)):
        raise TuneError(f"space: a file or a dict, got {space!r}")
    path, source = Path(home(space)), f"space {space}"
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "not text"
        raise TuneError(f"{source}: cannot be read ({reason})") from error
    if path.suffix not in (".yaml", ".yml"):
        return _from_lines(text, source)
    try:
        values = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise TuneError(f"{source}: not valid yaml: {' '.join(str(error).split())}") from error
    if not isinstance(values, dict):
        raise TuneError(f"{source}: expected 'key: {{kind: values}}' lines")
    return _from_dict(values, source)


def _from_dict(space: Mapping[Any, Any], source: str) -> Space:
    parameters = {}
    for name, value in space.items():
        where = f"{source}: {name}"
        if isinstance(value, (list, tuple)):
            value = {"choice": value}
        if not isinstance(value, dict) or len(value) != 1:
            raise TuneError(
                f"{where}: expected {{kind: values}} with one of {_forms()}, got {value!r}; a "
                "fixed value belongs in --config_files or on the command line"
            )
        ((kind, values),) = value.items()
        parameters[str(name)] = _parameter(str(name), kind, values, where)
    return _not_empty(parameters, source)


def _from_lines(text: str, source: str) -> Space:
    """RecBole's format: name, kind and values, separated by a space; the values may hold more."""
    parameters = {}
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        where = f"{source}: line {number}"
        values: Any
        name, kind, values = (*line.split(None, 2), "", "")[:3]
        if not values:
            raise TuneError(f"{where}: expected 'key kind values', got {line.strip()!r}")
        if name in parameters:
            raise TuneError(f"{where}: {name} is given twice")
        try:
            values = ast.literal_eval(values if kind == "choice" else f"[{values.strip('[]() ')}]")
        except (ValueError, SyntaxError) as error:
            raise TuneError(f"{where}: cannot be read as values: {values.strip()}") from error
        if kind == "loguniform" and len(values) == 2 and all(map(_is_number, values)):
            try:
                values = [_short(math.exp(bound), 12) for bound in values]
            except OverflowError as error:
                raise TuneError(
                    f"{where}: {name}: the bounds of loguniform are logarithms in RecBole's files; "
                    f"e^{max(values)} is no number"
                ) from error
        parameters[name] = _parameter(name, kind, values, f"{where}: {name}")
    return _not_empty(parameters, source)


def _not_empty(parameters: dict[str, Parameter], source: str) -> Space:
    if not parameters:
        raise TuneError(f"{source}: names no hyperparameter")
    return Space(parameters, source)


def _parameter(name: str, kind: Any, values: Any, where: str) -> Parameter:
    if kind not in FORMS:
        hint = did_you_mean(kind, FORMS)
        raise TuneError(f"{where}: there is no kind {kind!r}{hint or f'; use {_forms()}'}")
    if not isinstance(values, (list, tuple)):
        raise TuneError(f"{where}: {kind} takes {FORMS[kind]}, got {values!r}")
    # As in config files, where yaml's own reader takes 1e-3 for text.
    values = [parse_value(value) if isinstance(value, str) else value for value in values]
    if kind == "choice":
        return Parameter(name, kind, _choices(values, where))
    if len(values) != (3 if kind == "quniform" else 2) or not all(map(_is_number, values)):
        raise TuneError(f"{where}: {kind} takes {FORMS[kind]}, all numbers, got {list(values)}")
    low, high = values[:2]
    if not low < high:
        raise TuneError(f"{where}: {kind} {list(values)}: low must be below high")
    if kind == "loguniform" and low <= 0:
        raise TuneError(
            f"{where}: loguniform {list(values)}: both ends must be above 0; they are the values "
            "themselves, not their logarithms"
        )
    if kind == "int":
        if not all(isinstance(value, int) for value in values):
            raise TuneError(f"{where}: int takes whole numbers, got {list(values)}")
        return Parameter(name, kind, tuple(values))
    if kind == "quniform":
        if values[2] <= 0:
            raise TuneError(f"{where}: quniform {list(values)}: the step must be above 0")
        if all(float(value).is_integer() for value in values):
            values = map(int, values)
        parameter = Parameter(name, kind, tuple(values))
        if not parameter.grid():
            raise TuneError(
                f"{where}: quniform {list(parameter.values)}: no multiple of the step is in the "
                "range"
            )
        return parameter
    return Parameter(name, kind, (float(low), float(high)))


def _choices(values: Sequence[Any], where: str) -> tuple[Any, ...]:
    if not values:
        raise TuneError(f"{where}: choice []: there is nothing to choose from")
    for number, value in enumerate(values):
        if value in values[:number]:
            raise TuneError(f"{where}: choice {list(values)}: {value!r} is given twice")
    return tuple(values)


def _is_number(value: Any) -> bool:
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return number and math.isfinite(value)


def _short(value: float, digits: int = 12) -> float:
    """``value`` rounded to so many significant digits."""
    return float(f"{value:.{digits}g}")


def _forms() -> str:
    return ", ".join(f"{kind}: {form}" for kind, form in FORMS.items())
