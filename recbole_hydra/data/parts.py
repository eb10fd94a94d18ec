"""What the files of a dataset hold: one ``.inter`` or several parts, interactions or rows with
their histories."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from recbole.utils import ModelType

from recbole_hydra.data.atomic_files import read_header
from recbole_hydra.data.splits import needs_times
from recbole_hydra.errors import ConfigError, DatasetError

if TYPE_CHECKING:
    from recbole.config import Config

#: Models that read columns as features: a list of items is one, where the user asks for it.
_READS_FEATURES = (ModelType.CONTEXT, ModelType.DECISIONTREE)


def part_names(config: Config) -> list[str] | None:
    """The parts that ``benchmark_filename`` names; None where it names none.

    Raises:
        ConfigError: it names one part, more than three, or training data twice.
    """
    parts = config["benchmark_filename"]
    if parts in (None, False) or [str(part).lower() for part in parts] in ([], ["none"], ["false"]):
        return None
    parts = [str(part) for part in parts]
    asked = f"benchmark_filename: {', '.join(parts)}"
    if len(parts) == 1:
        raise ConfigError(
            f"{asked} is one part; name train, valid and test, or train and test, or remove it to "
            "have NAME.inter split"
        )
    if len(parts) > 3:
        raise ConfigError(f"{asked} are {len(parts)} parts; name train, valid and test")
    if parts[0] in parts[1:]:
        raise ConfigError(f"{asked}: {parts[0]} is to be trained on and tested")
    if len(parts) == 2 and parts[1].lower().startswith(("val", "dev")):
        raise ConfigError(f"{asked}: the part to test on is missing; name train, valid and test")
    return parts


def paths(config: Config, folder: str | Path) -> list[Path]:
    """The ``.inter`` files of a dataset, one per part."""
    name = config["dataset"]
    parts = part_names(config)
    suffixes = ["inter"] if parts is None else [f"{part}.inter" for part in parts]
    return [Path(folder) / f"{name}.{suffix}" for suffix in suffixes]


def list_field(config: Config) -> str:
    """The name of the column of lists, ``item_id_list``."""
    return f"{config['ITEM_ID_FIELD']}{config['LIST_SUFFIX'] or '_list'}"


def has_lists(config: Config, folder: str | Path) -> bool:
    """Whether the files of a dataset hold lists, and they are not left out by ``unload_col``.

    Files that cannot be read have none: what is wrong with them is said when they are loaded.
    """
    field = list_field(config)
    unloaded = config["unload_col"]
    if isinstance(unloaded, dict) and field in (unloaded.get("inter") or []):
        return False
    if config["MODEL_TYPE"] in _READS_FEATURES:
        return False
    return any(field in _columns(config, path) for path in paths(config, folder))


def _columns(config: Config, path: Path) -> dict[str, str]:
    try:
        return read_header(config, path)
    except (DatasetError, ConfigError):
        return {}


def are_put_in_order(config: Config) -> bool:
    """Whether the interactions of the files are put in order by their times."""
    if config["benchmark_filename"]:  # parts without lists are joined into histories
        lists = has_lists(config, config["data_path"])
        return config["MODEL_TYPE"] == ModelType.SEQUENTIAL and not lists
    return needs_times(config["eval_args"])
