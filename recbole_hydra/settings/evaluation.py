"""The settings of evaluation: what ``eval_args`` may be, and what the split, the ranking and the
metrics mean together."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from recbole.evaluator import metric_types, smaller_metrics
from recbole.utils import EvaluatorType, ModelType

from recbole_hydra.checks import did_you_mean
from recbole_hydra.errors import ConfigError
from recbole_hydra.metrics import metric_names
from recbole_hydra.settings.rules import Nested, Rule, UnfitError, choice, list_of, number

if TYPE_CHECKING:
    from recbole_hydra.settings.config import Config


def _ratios() -> Rule:
    """The shares of train, validation and test."""
    words = "three numbers, the shares of train, validation and test, such as [0.8, 0.1, 0.1]"
    numbers = list_of(number(least=0), words)

    def read(value: Any) -> list[float]:
        ratios = numbers.read(value)
        if len(ratios) != 3:
            raise UnfitError(f": {len(ratios)} of them; a share may be 0" if ratios else "")
        if ratios[0] <= 0:
            raise UnfitError(": nothing to train on")
        if not any(ratios[1:]):
            raise UnfitError(": nothing to validate or test on")
        return ratios

    return Rule(words, read)


#: The split of ``eval_args``: one way, and what it takes. RecBole's ways, and ours, ``cut``: one
#: moment for all users, see :mod:`recbole_hydra.data.time_cut`.
SPLITS = {
    "RS": _ratios(),
    "TS": _ratios(),
    "LS": choice(("valid_and_test", "valid_only", "test_only")),
    "cut": number(above=0, below=1),
}


def _split(name: str, value: Any) -> dict[str, Any]:
    """Read ``split``: a dict with one way of splitting."""
    example = "{LS: valid_and_test} or {RS: [0.8, 0.1, 0.1]}"
    if not isinstance(value, dict) or len(value) != 1:
        more = ": one way of splitting" if isinstance(value, dict) and value else ""
        raise ConfigError(f"{name} must be a dict such as {example}, got {value!r}{more}")
    ((way, how),) = value.items()
    if way not in SPLITS:
        hint = did_you_mean(way, SPLITS)
        raise ConfigError(f"{name} must be by one of {', '.join(SPLITS)}, got {way!r}{hint}")
    return {way: SPLITS[way](f"{name}: {way}", how)}


def _mode_word() -> Rule:
    def read(value: Any) -> str:
        if isinstance(value, str) and re.fullmatch(r"full|labeled|(uni|pop)0*[1-9]\d*", value):
            return value
        raise UnfitError(did_you_mean(value, ("full", "labeled", "uni100", "pop100")))

    return Rule("full, labeled, uniN or popN with N of at least 1, such as uni100", read)


def _mode(name: str, value: Any) -> str | dict[str, str] | None:
    """Read ``mode``: a word, or one for ``valid`` and one for ``test``."""
    word = _mode_word()
    if not isinstance(value, dict):
        return word(name, value)
    phases = Nested("{valid: uni100, test: full}", dict.fromkeys(("valid", "test"), word))
    if not value:
        raise ConfigError(f"{name} must be {word.words}, got {value!r}")
    return phases(name, value)


def _group() -> Rule:
    word = choice(("user", "none"))

    def read(value: Any) -> str | None:
        return value if value is None or str(value).lower() == "none" else word.read(value)

    return Rule("user or none", read)


EVAL_ARGS = Nested(
    "{split: {LS: valid_and_test}, order: TO, group_by: user, mode: full}",
    {"split": _split, "order": choice(("TO", "RO")), "group_by": _group(), "mode": _mode},
)

RULES = {"eval_args": EVAL_ARGS}


def fit(config: Config) -> None:
    """Refuse settings of evaluation that contradict each other.

    Raises:
        ConfigError: metrics of two kinds, a ``valid_metric`` that is not computed, a ranking that
            the metrics cannot measure, an order that the model cannot be trained in.
    """
    final, written = config.final_config_dict, config.external_config_dict
    metrics, mode = final["metrics"], final["eval_args"]["mode"]
    modes = {*(mode.values() if isinstance(mode, dict) else [mode])}
    _fit_cut(config, modes)
    kinds = {metric_types[metric.lower()] for metric in metrics}
    if len(kinds) > 1:
        ranking, other = (
            ", ".join(m for m in metrics if (metric_types[m.lower()] == kind))
            for kind in (EvaluatorType.RANKING, EvaluatorType.VALUE)
        )
        raise ConfigError(
            f"metrics: {ranking} are of rankings, {other} of single predictions; they cannot be "
            "computed in one run; leave out those of one kind"
        )
    computed = metric_names(metrics, final["topk"])
    valid_metric = str(final["valid_metric"])
    if valid_metric.lower() not in [name.lower() for name in computed]:
        raise ConfigError(
            f"valid_metric: {valid_metric} is not computed; metrics and topk give "
            f"{', '.join(computed)}"
        )
    bigger = valid_metric.split("@")[0].lower() not in smaller_metrics
    if written.get("valid_metric_bigger", bigger) not in (bigger, None):
        raise ConfigError(
            f"valid_metric_bigger follows from valid_metric: it is {bigger} for {valid_metric}; "
            "remove it"
        )
    if "labeled" in modes and kinds == {EvaluatorType.RANKING}:
        raise ConfigError(
            "eval_args: mode: labeled compares predictions with labels, for metrics such as AUC, "
            f"not {', '.join(metrics)}; use full or uni100, or other metrics"
        )
    if "full" in modes and kinds == {EvaluatorType.VALUE}:
        raise ConfigError(
            f"eval_args: mode: full ranks all items, which {', '.join(metrics)} cannot measure; "
            "use labeled or uni100, or metrics such as NDCG"
        )
    order = final["eval_args"]["order"]
    lists = f"{final['ITEM_ID_FIELD']}{final['LIST_SUFFIX']}"
    ready_made = lists in (final["alias_of_item_id"] or [])  # rows bring their histories along
    if final["MODEL_TYPE"] == ModelType.SEQUENTIAL and order != "TO" and not ready_made:
        raise ConfigError(f"eval_args: order {order} mixes up the histories; set order: TO")


#: Models that know the last days before a cut in time, and nothing without one.
_NEEDS_CUT = ("RecentPop",)


def _fit_cut(config: Config, modes: set[str]) -> None:
    """Refuse what a cut in time cannot be combined with, and models that it is nothing for."""
    final = config.final_config_dict
    evaluation, model = final["eval_args"], config.model
    if "cut" not in evaluation["split"]:
        if model in _NEEDS_CUT:
            raise ConfigError(
                f"model: {model} counts the last days before a cut in time, and there is none; set "
                "eval_args: {split: {cut: 0.9}}, or compare with --split=time"
            )
        return
    where = "eval_args: split: cut"
    if final["MODEL_TYPE"] in (ModelType.CONTEXT, ModelType.DECISIONTREE):
        raise ConfigError(
            f"{where}: {model} cannot take part: it predicts from the columns of an interaction, "
            "not for a user at a moment; use another split, or another model"
        )
    if evaluation["order"] != "TO":
        raise ConfigError(f"{where} is in the order of time; set order: TO")
    if modes != {"full"}:
        raise ConfigError(
            f"{where} ranks all items after every event, not mode: {', '.join(sorted(modes))}; set "
            "mode: full"
        )
    for key, remedy in (("domains", "take one dataset"), ("benchmark_filename", "remove it")):
        if final[key]:
            raise ConfigError(f"{where} is of one log that is split here, not of {key}; {remedy}")
    if not final["repeatable"]:
        raise ConfigError(f"{where} ranks items of the history, too; set repeatable: True")
    if final["time_order"] != "exact":
        raise ConfigError(
            f"{where} is exact, which time_order: {final['time_order']} is not; remove it"
        )
