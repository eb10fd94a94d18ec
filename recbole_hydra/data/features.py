"""The item columns that RecBole's feature models read, checked: RecBole fails deep inside a layer,
or leaves a column out without a word."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from recbole_hydra.checks import did_you_mean
from recbole_hydra.errors import ConfigError, DatasetError

if TYPE_CHECKING:
    from recbole.config import Config
    from recbole.data.dataset import Dataset

#: For each model, the setting that names the columns, and the types that it can read; those in the
#: second tuple only as ``numerical_features``.
FEATURES: dict[str, tuple[str, tuple[str, ...], tuple[str, ...]]] = {
    "SASRecF": ("selected_features", ("token", "token_seq"), ("float",)),
    "GRU4RecF": ("selected_features", ("token", "token_seq"), ("float", "float_seq")),
    "FDSA": ("selected_features", ("token", "token_seq"), ("float", "float_seq")),
    "S3Rec": ("item_attribute", ("token", "token_seq"), ()),
}


def feature_setting(model_class: type) -> tuple[str, tuple[str, ...], tuple[str, ...]] | None:
    """The entry of :data:`FEATURES` for a model class or its bases, or None."""
    names = [base.__name__ for base in model_class.__mro__]
    return next((FEATURES[name] for name in names if name in FEATURES), None)


def selected_features(config: Config | Mapping[str, Any], model_class: type) -> list[str]:
    """The item columns that a model is told to read; none of a model that is told nothing.

    Args:
        config: a Config, or the dict of its values.

    Raises:
        ConfigError: the setting names no column.
    """
    entry = feature_setting(model_class)
    if entry is None:
        return []
    key, kinds, _ = entry
    names = config[key]
    if key == "item_attribute" and isinstance(names, list) and len(names) > 1:
        raise ConfigError(f"{key} must be one item column, got {names!r}")
    names = [names] if isinstance(names, str) else names
    if not names or not isinstance(names, list) or not all(isinstance(n, str) for n in names):
        raise ConfigError(
            f"{key} must name item columns of type {' or '.join(kinds)}, such as class, got "
            f"{config[key]!r}"
        )
    return names


def check_features(config: Config, dataset: Dataset) -> None:
    """Raise DatasetError for a column that the model is told to read and cannot.

    Args:
        config: our Config. dataset: RecBole's, loaded.
    """
    names = selected_features(config, config.model_class)
    if not names:
        return
    entry = feature_setting(config.model_class)
    assert entry is not None
    key, kinds, numerical = entry
    known = list(dataset.item_feat.columns) if dataset.item_feat is not None else []
    takes = f"{config['model']} takes item columns of type {' or '.join(kinds)}"
    if numerical:
        takes += f", and {' or '.join(numerical)} where numerical_features names them"
    for name in names:
        if name not in known:
            raise DatasetError(f"{key}: {_missing(config, name)}; {takes}")
        kind = dataset.field2type[name].value
        if kind in numerical and name not in (config["numerical_features"] or []):
            raise DatasetError(
                f"{key}: {name!r} of dataset {config['dataset']} is {kind}, which is read only "
                f"with numerical_features: [{name}]; {takes}"
            )
        if kind not in (*kinds, *numerical):
            raise DatasetError(f"{key}: {name!r} of dataset {config['dataset']} is {kind}; {takes}")


def _missing(config: Config, name: str) -> str:
    """Why there is no item column ``name``."""
    dataset = config["dataset"]
    if config["domains"]:
        return f"{name!r} is not there, since several domains share ids and times alone"
    path = Path(config["data_path"]) / f"{dataset}.item"
    if not path.is_file():
        return f"dataset {dataset} has no column {name!r}, as there is no {path}"
    with open(path, encoding=config["encoding"]) as file:
        header = file.readline().rstrip("\r\n").split(config["field_separator"])
    columns = [column.partition(":")[0] for column in header]
    if name in columns:
        return f"{name!r} is in {path} and not loaded; let load_col have it, and unload_col not"
    return (
        f"{path} has no column {name!r}{did_you_mean(name, columns)}; it has {', '.join(columns)}"
    )
