"""Whether the files of a dataset are there, with the columns that its config asks for."""

from __future__ import annotations

import glob
from pathlib import Path
from typing import TYPE_CHECKING

import recbole
import yaml

from recbole_hydra.checks import did_you_mean
from recbole_hydra.data import filters, ready_made
from recbole_hydra.data.atomic_files import check_file, check_ids
from recbole_hydra.data.item_text import has_item_text
from recbole_hydra.data.parts import are_put_in_order, list_field, paths
from recbole_hydra.errors import DatasetError

if TYPE_CHECKING:
    from recbole.config import Config


def check_files(config: Config) -> None:
    """Look at the files of the dataset that ``config`` names, before RecBole does.

    Raises:
        DatasetError: a file or a column that is missing, or of another type; rows that cannot be
            read as they are written.
    """
    name, folder = config["dataset"], Path(config["data_path"])
    if not folder.exists():
        downloads = Path(recbole.__file__).parent / "properties" / "dataset" / "url.yaml"
        downloadable = yaml.safe_load(downloads.read_text(encoding="utf-8"))
        if name in downloadable:
            return  # RecBole fetches it
        present = {p.name for p in folder.parent.glob("*/") if list(p.glob("*.inter"))}
        hint = did_you_mean(name, [*present, "ml-100k", *downloadable])
        raise DatasetError(
            f"dataset {name}: there is no folder {folder}{hint or ';'} pass --data_path=FOLDER "
            f"with FOLDER/{name}/{name}.inter in it"
        )
    items = folder / f"{name}.item"
    if config["rank_all_items"] and not has_item_text(config) and not items.is_file():
        raise DatasetError(
            f"dataset {name}: there is no {items}, whose items rank_all_items makes candidates"
        )
    for path in paths(config, folder):
        if not path.is_file():
            raise DatasetError(
                f"dataset {name}: {path} is missing; the folder and its files carry the dataset's "
                "name"
            )
        _check_columns(config, path)
    ready_made.check(config)
    filters.prepare(config)


def _check_columns(config: Config, path: Path) -> None:
    """Raise DatasetError for a column of .inter that the config needs and the file lacks."""
    types = check_file(config, path)
    columns = list(types)
    load_col = config["load_col"]
    wanted = "*" if load_col is None else load_col.get("inter", [])
    if wanted == "*":
        wanted = columns
    fields: dict[str, tuple[str, ...]] = {"USER_ID_FIELD": ("token",), "ITEM_ID_FIELD": ("token",)}
    if are_put_in_order(config):
        fields["TIME_FIELD"] = "float", "token"
    for field in fields:
        if config[field] not in columns:
            # Rows that are ready-made can be split without times.
            ready = field == "TIME_FIELD" and list_field(config) in columns
            other = ", or eval_args: {order: RO} to split the rows at random" if ready else ""
            raise DatasetError(
                f"dataset {config['dataset']}: {path} has no column {config[field]!r} ({field}), "
                f"it has {', '.join(columns)}; set {field} to the one that is meant{other}"
            )
    for column in wanted:
        if column not in columns:
            raise DatasetError(
                f"dataset {config['dataset']}: load_col asks for column {column!r}, {path} has "
                f"{', '.join(columns)}{did_you_mean(column, columns)}"
            )
    for field, kinds in fields.items():
        if types[config[field]] not in kinds:
            raise DatasetError(
                f"dataset {config['dataset']}: column {config[field]!r} ({field}) of {path} is "
                f"{types[config[field]]}; in its first line, write {config[field]}:{kinds[0]}"
            )
        if config[field] not in wanted:
            raise DatasetError(
                f"dataset {config['dataset']}: column {config[field]!r} ({field}) is not loaded; "
                f"add it to load_col: {{inter: [{', '.join(wanted)}, {config[field]}]}}"
            )
    check_ids(config, path, [config["USER_ID_FIELD"], config["ITEM_ID_FIELD"]])


def filters_set(config: Config) -> str:
    """The filter settings of ``config`` that are set, for a message."""
    keys = ("user_inter_num_interval", "item_inter_num_interval", "val_interval", "rm_dup_inter")
    unset = (None, "[0,inf)")
    found = [f"{key}={config[key]}" for key in keys if config[key] not in unset]
    return ", ".join(found) or "the config's filters"


def check_saved(config: Config) -> None:
    """Refuse a dataset that RecBole saved: it takes it whatever the split and the files are."""
    for path in Path(config["checkpoint_dir"]).glob(
        f"{glob.escape(config['dataset'])}-*ataset.pth"
    ):
        raise DatasetError(
            f"dataset {config['dataset']}: RecBole would take {path}, which an earlier run saved, "
            "instead of the files; remove it"
        )
