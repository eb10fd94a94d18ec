"""Rows that a dataset's files hold ready-made: ``benchmark_filename``, lists of items."""

from __future__ import annotations

from typing import TYPE_CHECKING

from recbole_hydra.data.ready_made import use_lists

if TYPE_CHECKING:
    from recbole_hydra.settings.config import Config


def fit(config: Config) -> None:
    """Fit the settings to such rows, where there are some."""
    final = config.final_config_dict
    final["dataset"] = config.dataset
    if final["item_list_padding"] in (None, False):
        final["item_list_padding"] = "none"
    if not final["domains"]:
        config.notes += use_lists(config, config.folder_of(config.dataset, final["data_path"]))
