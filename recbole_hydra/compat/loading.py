"""Steps of RecBole's loading that fail without a word, or do something else than they say.

What takes their place is in :mod:`recbole_hydra.data`; RecBole's own Config keeps RecBole's way.
Delete each when RecBole's does what ours does.
"""

from __future__ import annotations

import csv
import functools
import importlib
import os
import re
from collections.abc import Callable, Mapping
from types import ModuleType
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas
import torch

if TYPE_CHECKING:
    from recbole.config import Config
    from recbole.data.dataset import Dataset
    from recbole.utils import FeatureSource


def mend_datasets(module: ModuleType) -> None:
    """Let RecBole's datasets load our way; ``module`` is recbole.data.dataset.dataset."""
    module.pd = atomic_files  # type: ignore[attr-defined]
    Dataset = module.Dataset
    Dataset.__init__ = _in_exact_order(Dataset.__init__)
    Dataset._download = _without_barrier(Dataset._download)
    Dataset._load_data = _and_clean_lists(Dataset._load_data)
    Dataset._load_feat = _after_a_look(Dataset._load_feat)
    Dataset._remove_duplication = _our_way(Dataset._remove_duplication, "duplicates", "remove")
    Dataset._filter_by_field_value = _our_way(Dataset._filter_by_field_value, "filters", "apply")


def mend_sequential_datasets(module: ModuleType) -> None:
    """Let ready-made rows be those of the files; ``module`` is that of SequentialDataset."""
    datasets = module.SequentialDataset
    datasets._benchmark_presets = _our_way(datasets._benchmark_presets, "ready_made", "adopt")


class _PandasForAtomicFiles:
    """pandas for RecBole's reader of atomic files, which know neither quotes nor words for what is
    missing: in them a title may begin with a quotation mark, and an id be ``NA``.

    RecBole leaves both to pandas' defaults, under which such lines fail or are lost. Delete when
    RecBole does not.

    Attributes:
        as_text: name of a column that is read as the text it is, whatever its type; None for none.
    """

    as_text: str | None = None

    def __getattr__(self, name: str) -> Any:
        return getattr(pandas, name)

    def read_csv(
        self,
        path: str | os.PathLike[str],
        delimiter: str,
        usecols: list[str],
        dtype: Mapping[str, type],
        encoding: str,
        **_: Any,
    ) -> pandas.DataFrame:
        """``pandas.read_csv`` with the arguments of RecBole's one call."""
        dtype = {
            column: str if column.rpartition(":")[0] == self.as_text else kind
            for column, kind in dtype.items()
        }
        missing: dict[type, list[str]] = {
            str: [""],
            np.float64: ["", "nan", "NaN", "NA", "N/A", "null", "None"],
        }
        precision: dict[str, Any] = {"float_precision": "round_trip"}
        return pandas.read_csv(
            path,
            sep=delimiter if len(delimiter) == 1 else re.escape(delimiter),
            usecols=usecols,
            dtype=dtype,
            encoding=encoding,
            quoting=csv.QUOTE_NONE,
            keep_default_na=False,
            na_values={column: missing[kind] for column, kind in dtype.items()},
            # Python's own reads no field above 128 KB, C's no separator of several characters.
            engine="c" if len(delimiter) == 1 else "python",
            **(precision if len(delimiter) == 1 else {}),
        )


#: What RecBole's reader has for pandas.
atomic_files = _PandasForAtomicFiles()


def _our_way(
    recboles: Callable[[Dataset], None], module: str, name: str
) -> Callable[[Dataset], None]:
    """A method of RecBole's datasets that calls ``recbole_hydra.data.<module>.<name>`` instead."""

    @functools.wraps(recboles)
    def ours_or_recboles(self: Dataset) -> None:
        from recbole_hydra.data.loading import is_ours

        if not is_ours(self.config):
            return recboles(self)
        return getattr(importlib.import_module(f"recbole_hydra.data.{module}"), name)(self)

    return ours_or_recboles


def _and_clean_lists(
    load_data: Callable[[Dataset, str, str], None],
) -> Callable[[Dataset, str, str], None]:
    """RecBole's ``Dataset._load_data``, then padding is taken out of lists of items."""

    @functools.wraps(load_data)
    def load_and_clean(self: Dataset, token: str, dataset_path: str) -> None:
        load_data(self, token, dataset_path)
        from recbole_hydra.data import list_padding, loading

        if loading.is_ours(self.config):
            loading.check_aliases(self)
            list_padding.clean_lists(self)

    return load_and_clean


def _after_a_look(
    load_feat: Callable[..., pandas.DataFrame | None],
) -> Callable[..., pandas.DataFrame | None]:
    """RecBole's ``Dataset._load_feat``, with errors that name the file, the line and the remedy."""

    @functools.wraps(load_feat)
    def look_and_load(
        self: Dataset, filepath: str, source: FeatureSource | str
    ) -> pandas.DataFrame | None:
        from recbole_hydra.data import loading

        if not loading.is_ours(self.config):
            return load_feat(self, filepath, source)
        return loading.load_feat(self, load_feat, filepath, source)

    return look_and_load


def _in_exact_order(init: Callable[[Dataset, Config], None]) -> Callable[[Dataset, Config], None]:
    """RecBole's ``Dataset.__init__``, for a dataset whose times are exact.

    RecBole keeps times as float32. Where the config says how to order (``time_order``; RecBole's
    own Config does not), the dataset gets the methods that keep them exact, whoever makes it.
    Delete when RecBole keeps times in full.
    """

    @functools.wraps(init)
    def init_in_exact_order(self: Dataset, config: Config) -> None:
        if config["time_order"] is not None:
            from recbole_hydra.data.times import with_exact_times

            self.__class__ = with_exact_times(type(self))
        init(self, config)

    return init_in_exact_order


def _without_barrier(download: Callable[[Dataset], None]) -> Callable[[Dataset], None]:
    """RecBole's ``Dataset._download``, which ends in a barrier of a process group.

    In a run of one process there is none and the barrier raises after the files have arrived.
    Delete when RecBole calls it only in runs of several processes.
    """

    @functools.wraps(download)
    def download_without_barrier(self: Dataset) -> None:
        try:
            download(self)
        except (ValueError, RuntimeError):
            arrived = os.path.join(self.dataset_path, f"{self.dataset_name}.inter")
            if torch.distributed.is_initialized() or not os.path.isfile(arrived):
                raise

    return download_without_barrier
