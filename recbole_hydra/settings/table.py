"""What each setting may be: one table of rules, and the function that reads a value by its rule.

A rule is derived where it can be (:mod:`.derived`); otherwise it is written, which goes first: with
the option or the subject that it belongs to, or in :mod:`.values`.
"""

from collections.abc import Callable
from functools import cache, lru_cache
from typing import Any

from recbole_hydra.errors import ConfigError
from recbole_hydra.settings import evaluation, options
from recbole_hydra.settings.derived import derived_rules, lenient_rules, read_yaml
from recbole_hydra.settings.known_keys import PROPERTIES, RECBOLE
from recbole_hydra.settings.values import WRITTEN, WRITTEN_FOR_OURS

#: Rules of settings, by key: a rule takes the name of a setting and its value.
Rules = dict[str, Callable[[str, Any], Any]]


@lru_cache(maxsize=1)
def written_rules() -> Rules:
    """The rules of settings for every model that are written, by key."""
    return {
        **WRITTEN, **evaluation.RULES, **options.rules(), "domain_settings": _domain_settings
    }  # fmt: skip


def _domain_settings(name: str, value: Any) -> dict[str, dict[str, Any]] | None:
    """Read ``domain_settings``: the settings of single domains, each by its own rule."""
    if value is None:
        return None
    example = "{amazon-office: {USER_ID_FIELD: uid}}"
    if not isinstance(value, dict):
        raise ConfigError(f"{name} must be a dict such as {example}, got {value!r}")
    found = {}
    for domain, keys in value.items():
        if keys is not None and not isinstance(keys, dict):
            raise ConfigError(f"{name}: {domain}: must be a dict, as in {example}, got {keys!r}")
        found[str(domain)] = {
            key: check(key, each, common_rules(), name=f"{name}: {domain}: {key}")
            for key, each in (keys or {}).items()
        }
    return found


@lru_cache(maxsize=1)
def common_rules() -> Rules:
    """The rules of settings for every model, by key."""
    files = (
        RECBOLE / "properties" / "overall.yaml",
        RECBOLE / "properties" / "dataset" / "sample.yaml",
        PROPERTIES / "overall.yaml",
        PROPERTIES / "training.yaml",
    )
    derived = {key: rule for file in files for key, rule in derived_rules(file).items()}
    return {**derived, **written_rules()}


@cache
def rules_of(model_class: type) -> Rules:
    """The rules of all settings of a model, by key; a key that has none may be anything.

    A user's own class has those of the model that it is derived from.
    """
    rules: Rules = {}
    for base in reversed(model_class.__mro__):
        ours = PROPERTIES / "model" / f"{base.__name__}.yaml"
        recboles = RECBOLE / "properties" / "model" / f"{base.__name__}.yaml"
        package = base.__module__.split(".")[0]
        if package == "recbole_hydra" and ours.is_file():
            rules |= derived_rules(ours) | {
                key: rule for key, rule in WRITTEN_FOR_OURS.items() if key in read_yaml(ours)
            }
        elif package == "recbole" and recboles.is_file():
            rules |= lenient_rules(recboles)
    return {**rules, **common_rules()}


def is_path(rule: Any) -> bool:
    """Whether a rule is that of a path, and None is none."""
    return getattr(rule, "kind", "") == "path" and "None" not in rule.words


def check(key: str, value: Any, rules: Rules, name: str | None = None) -> Any:
    """Read the value of a setting by its rule.

    Args:
        key: of the setting. value: as the user wrote it.
        rules: those of :func:`rules_of`.
        name: what to call it in messages, if not by its key.

    Returns:
        The value as the run has it: numbers that were written as text are numbers, a list that was
        written with commas is one, ``~`` in a path is the home folder.

    Raises:
        ConfigError: the value is none that the setting may have.
    """
    rule = rules.get(key)
    return value if rule is None else rule(name or key, value)
