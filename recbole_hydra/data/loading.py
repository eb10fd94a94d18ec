"""What a dataset does otherwise than RecBole's while it loads, where the Config is ours.

RecBole's methods call these functions, see :mod:`recbole_hydra.compat`: files are checked line by
line (:mod:`.atomic_files`), duplicates go by a stable sort (:mod:`.duplicates`), columns of tokens
can be filtered (:mod:`.filters`), and rows and parts that are given stay what they are
(:mod:`.ready_made`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

from recbole.utils import FeatureSource

from recbole_hydra.checks import did_you_mean
from recbole_hydra.data.atomic_files import check_file, check_ids, check_numbers, has_rows
from recbole_hydra.data.features import selected_features
from recbole_hydra.data.ready_made import whole_lists
from recbole_hydra.errors import DatasetError, RecBoleHydraError

if TYPE_CHECKING:
    import pandas as pd
    from recbole.config import Config
    from recbole.data.dataset import Dataset


def is_ours(config: Config) -> bool:
    """Whether a config is this package's; RecBole's own lacks our settings."""
    return config["item_list_padding"] is not None


def load_feat(
    dataset: Dataset,
    recboles: Callable[[Dataset, str, FeatureSource], pd.DataFrame | None],
    path: str,
    source: FeatureSource,
) -> pd.DataFrame | None:
    """RecBole's ``Dataset._load_feat``, after a look at the file.

    Args:
        recboles: RecBole's method. path, source: its arguments.

    Raises:
        DatasetError: anything about the file that keeps it from being read as what it says.
    """
    config = dataset.config
    loaded, unloaded = dataset._get_load_and_unload_col(source)
    if loaded == set():
        return None
    types = check_file(config, path)
    columns = [
        name for name in types
        if (loaded is None or name in loaded) and name not in (unloaded or ())
    ]  # fmt: skip
    _check_columns(dataset, path, source, types, loaded, columns)
    try:
        with whole_lists(config):
            return recboles(dataset, path, source)
    except RecBoleHydraError:
        raise
    except (ValueError, TypeError, KeyError) as error:  # pandas' ParserError is a ValueError
        check_numbers(config, path, columns)
        line = " ".join(str(error).split())
        raise DatasetError(
            f"dataset {dataset.dataset_name}: {path} cannot be read ({line})"
        ) from error


def check_aliases(dataset: Dataset) -> None:
    """Raise DatasetError for a column of ``alias_of_*`` that no file has, or that is not loaded."""
    for name in ("user_id", "item_id"):
        for column in dataset.config[f"alias_of_{name}"] or []:
            if column not in dataset.field2type:
                raise DatasetError(
                    f"dataset {dataset.dataset_name}: alias_of_{name} names {column!r}, which is "
                    f"no column that is loaded{did_you_mean(column, dataset.field2type)}"
                )


def _check_columns(
    dataset: Dataset,
    path: str,
    source: FeatureSource,
    types: Mapping[str, str],
    loaded: Iterable[str] | None,
    columns: Sequence[str],
) -> None:
    """Name what RecBole would miss only later, or in other words."""
    ids = {
        FeatureSource.INTERACTION: (dataset.uid_field, dataset.iid_field),
        FeatureSource.USER: (dataset.uid_field,),
        FeatureSource.ITEM: (dataset.iid_field,),
    }.get(source, ())
    where = f"dataset {dataset.dataset_name}: {path}"
    features = selected_features(dataset.config, dataset.config.model_class)
    for name in loaded or ():
        if name not in types and name not in features:  # check_features says what those must be
            raise DatasetError(
                f"{where} has no column {name!r}, which load_col asks for, it has "
                f"{', '.join(types)}{did_you_mean(name, types)}"
            )
    for name in ids:
        if name not in types:
            key = "USER_ID_FIELD" if name == dataset.uid_field else "ITEM_ID_FIELD"
            raise DatasetError(
                f"{where} has no column {name!r} ({key}), it has {', '.join(types)}; add it, or "
                "rename the file if it is not of this dataset"
            )
        if name not in columns:
            raise DatasetError(
                f"{where}: the column {name!r} is not loaded; add it to load_col, or take it out "
                "of unload_col"
            )
        if types[name] != "token":
            raise DatasetError(
                f"{where}: column {name!r} is {types[name]}; in its first line, write {name}:token"
            )
    check_ids(dataset.config, path, ids)
    if not has_rows(dataset.config, path):
        what, remedy = "nothing", "add lines, or remove the file"
        if source == FeatureSource.INTERACTION:
            what, remedy = "no interactions", "add some"
            if dataset.config["benchmark_filename"]:
                remedy += ", or take it out of benchmark_filename"
        raise DatasetError(f"{where} has {what} below its first line; {remedy}")
