"""``domains`` and ``domain_settings``: several datasets at once, each with settings of its own."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from recbole_hydra.checks import did_you_mean
from recbole_hydra.errors import ConfigError
from recbole_hydra.settings.rules import dataset_name

if TYPE_CHECKING:
    from recbole_hydra.settings.config import Config

#: What a domain may have of its own beside RecBole's settings of datasets.
_OF_A_DOMAIN = {"encoding", "item_text_fields", "item_prompt", "missing_item_text"}

#: What a domain's own Config may not bring into the joint one.
_NOT_OF_A_DOMAIN = {"dataset", "data_path", "domains", "domain_settings", "device"}

#: What is of the joint Config alone.
HIDDEN = ("domains", "domain_settings", "dataset")


def joint_name(domains: list[str], dataset: str | None) -> str:
    """The name of the dataset that ``domains`` make together.

    Args:
        domains: names of datasets. dataset: what the user called the dataset, if anything.

    Raises:
        ConfigError: no domains, one of them twice, or another dataset beside them.
    """
    if not domains:
        raise ConfigError(f"domains must be a list of datasets, got {domains!r}")
    for name in domains:
        dataset_name(name, "domains")
        if domains.count(name) > 1:
            raise ConfigError(f"domains: {name} is listed twice")
    joint = "+".join(domains)
    if dataset not in (None, joint):
        raise ConfigError(
            f"dataset, domains: both are given, {dataset} and {', '.join(domains)}; remove one"
        )
    return joint


def fit(config: Config) -> None:
    """Refuse settings that several domains at once cannot have."""
    final = config.final_config_dict
    if not final["domains"]:
        return
    temperature = final["domain_temperature"]
    if temperature > 1 and (final["training_mode"] != "autoregressive" or final["carry_state"]):
        raise ConfigError(
            "domain_temperature: above 1 it is for training_mode autoregressive without "
            "carry_state; remove one"
        )
    if final["merge_users"] and final.get("user_model") == "per_domain":
        raise ConfigError(
            "merge_users, user_model: one timeline over all domains goes through one user "
            "model; set user_model: shared"
        )
    if final.get("loss_type") == "BPR":
        raise ConfigError(
            "loss_type: RecBole draws BPR's negatives from all domains, which tells nothing "
            "within one; use CE, SampledCE or gBCE"
        )
    if final["benchmark_filename"]:
        raise ConfigError("benchmark_filename: several domains are split anew; remove it")
    mode = final["eval_args"]["mode"]
    if {*(mode.values() if isinstance(mode, dict) else [mode])} != {"full"}:
        raise ConfigError(
            f"eval_args: mode {mode}: with several domains a target is "
            "ranked among all items of its domain; remove it"
        )


def settings_of_each(
    config: Config,
    make_config: Callable[[str, dict[str, Any], list[str]], Config],
    config_dict: Mapping[str, Any],
    arguments: Mapping[str, str],
) -> None:
    """Make the Config of every domain, and keep what it has of its own in ``domain_settings``.

    Args:
        config: the joint one.
        make_config: takes a domain's name, its ``config_dict`` and ``argv``; returns its Config.
        config_dict, arguments: the user's, those of the command line by key.

    Raises:
        ConfigError: settings of what is no domain, or that a domain cannot have of its own.
    """
    final, own = config.final_config_dict, {}
    written = final["domain_settings"] or {}
    for name in written:
        if name not in final["domains"]:
            hint = did_you_mean(name, final["domains"])
            raise ConfigError(f"domain_settings: {name!r} is not among the domains{hint}")
    asked = config.external_config_dict.get("domain_settings") or {}
    loading = {*config.parameters["Dataset"], *_OF_A_DOMAIN} - {"MAX_ITEM_LIST_LENGTH"}
    for name, keys in asked.items():
        for key in keys or {}:
            if key not in loading:
                raise ConfigError(
                    f"domain_settings: {key} of {name}: a domain has settings of its own for "
                    "how its files are read; set it for all"
                )
    argv = [f"--{key}={value}" for key, value in arguments.items() if key not in HIDDEN]
    common = {key: value for key, value in config_dict.items() if key not in HIDDEN}
    for name in final["domains"]:
        layers = {**common, "domains": None, **(written.get(name) or {})}
        domain = make_config(name, layers, argv)
        own[name] = {
            key: value
            for key, value in domain.final_config_dict.items()
            if key not in _NOT_OF_A_DOMAIN and final.get(key) != value
        }
        config.notes += [f"{name}: {n}" for n in domain.notes if n not in config.notes]
    final["domain_settings"] = own
