"""``load_col`` and ``rank_all_items``: which columns of the atomic files are read."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from recbole_hydra.data.features import selected_features
from recbole_hydra.data.splits import needs_times
from recbole_hydra.errors import ConfigError

if TYPE_CHECKING:
    from recbole_hydra.settings.config import Config


def choose(config: Config, final: dict[str, Any], dataset_is_known: bool) -> None:
    """Complete ``load_col``, which RecBole reads before settings are fitted to each other.

    Args:
        config: the Config. final: its settings.
        dataset_is_known: whether a yaml of the dataset's names columns.
    """
    _check_names(final)
    if needs_times(final["eval_args"]) and not dataset_is_known:
        _of_interactions(config, final)
    _of_threshold(config, final)
    _of_features(config, final)
    _of_items(config, final)


def _of_interactions(config: Config, final: dict[str, Any]) -> None:
    """Load users, items and times where neither the user nor a dataset's yaml names columns.

    RecBole's default leaves the time column out, without which nothing can be ordered.
    """
    if "load_col" in config.external_config_dict:
        return
    if final["benchmark_filename"]:  # ready-made rows have columns of their own
        final["load_col"] = None
        config.notes.append("load_col is not set: loading all columns of benchmark_filename")
        return
    columns = [final[f"{name}_FIELD"] for name in ("USER_ID", "ITEM_ID", "TIME")]
    final["load_col"] = {"inter": list(dict.fromkeys(columns))}
    config.notes.append(f"load_col is not set: loading {final['load_col']}")


def _check_names(final: dict[str, Any]) -> None:
    """Refuse a column with two meanings: RecBole would write one over the other."""
    for keys in (("USER_ID", "ITEM_ID", "TIME", "ITEM_LIST_LENGTH", "POSITION"),
                 ("USER_ID", "ITEM_ID", "TIME", "LABEL")):  # fmt: skip
        seen: dict[str, str] = {}
        for key in (f"{key}_FIELD" for key in keys):
            name = final[key]
            if name is not None and name in seen:
                raise ConfigError(
                    f"{seen[name]}, {key}: both are {name!r}, and a column has one meaning; name "
                    "another"
                )
            seen[name] = key


def _of_threshold(config: Config, final: dict[str, Any]) -> None:
    """Load the column that ``threshold`` makes labels of."""
    for name in final["threshold"] or ():
        for key in ("USER_ID_FIELD", "ITEM_ID_FIELD", "TIME_FIELD"):
            if name == final[key]:
                raise ConfigError(
                    f"threshold: {name} is {key}, of which no labels can be made; name a column "
                    "such as rating"
                )
        columns = final["load_col"]
        loaded = columns.get("inter") or [] if isinstance(columns, dict) else "*"
        if loaded != "*" and name not in loaded:
            final["load_col"] = {**columns, "inter": [*loaded, name]}
            config.notes.append(f"load_col: loading {name}, too, for threshold")


def _of_features(config: Config, final: dict[str, Any]) -> None:
    """Load the item columns that the model is told to read, which no default of RecBole's does."""
    features, columns = selected_features(final, config.model_class), final["load_col"]
    if not features or final.get("domains") or not isinstance(columns, dict):
        return
    loaded = columns.get("item") or []
    missing = [name for name in features if name not in loaded]
    if missing and loaded != "*":
        ids = [name for name in [final["ITEM_ID_FIELD"]] if name not in [*loaded, *missing]]
        final["load_col"] = {**columns, "item": [*ids, *loaded, *missing]}
        config.notes.append(f"load_col: loading {', '.join(missing)} of the items, too")


def _of_items(config: Config, final: dict[str, Any]) -> None:
    """Resolve ``rank_all_items: ~``, and load the ids of the ``.item`` file for it."""
    columns, item_id = final["load_col"], final["ITEM_ID_FIELD"]
    if final["rank_all_items"] is None:
        final["rank_all_items"] = "text" in str(final.get("item_encoder"))
    loaded = (columns.get("item") or []) if isinstance(columns, dict) else [item_id]
    if final["rank_all_items"] and item_id not in loaded:
        final["load_col"] = {**columns, "item": [item_id, *loaded]}
        config.notes.append("rank_all_items: all items of the .item file are candidates")
