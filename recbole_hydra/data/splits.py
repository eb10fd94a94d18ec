"""What a split leaves out, and whether a dataset has what its split and evaluation ask for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from recbole_hydra.errors import DatasetError
from recbole_hydra.sources import source_of

if TYPE_CHECKING:
    from recbole.config import Config
    from recbole.data.dataset import Dataset


def parts_left_out(eval_args: Mapping[str, Any]) -> tuple[bool, bool]:
    """Whether the split of ``eval_args`` leaves something out for validation, and for testing."""
    ((way, how),) = eval_args["split"].items()
    if way == "LS":
        return how != "test_only", how != "valid_only"
    if way == "cut":
        return True, True
    return how[1] > 0, how[2] > 0


def needs_times(eval_args: Mapping[str, Any]) -> bool:
    """Whether the interactions are ordered, or split, by time."""
    return eval_args["order"] == "TO" or not {"TS", "cut"}.isdisjoint(eval_args["split"])


def check_labels(config: Config, dataset: Dataset) -> None:
    """Refuse a dataset without labels where they are read.

    Negative sampling makes labels; without it they come from a column, or from ``threshold``.

    Raises:
        DatasetError: there are none, and the model, or ``eval_args: mode: labeled``, reads them.
    """
    label = config["LABEL_FIELD"]
    if label in dataset.inter_feat:
        return
    reader = None
    if "labeled" in config["eval_args"]["mode"].values():
        reader = "eval_args: mode: labeled"
    if config["train_neg_sample_args"]["distribution"] == "none":
        if "[self.LABEL]" in (source_of(config.model_class) or ""):
            reader = config["model"]
    if reader is not None:
        raise DatasetError(
            f"dataset {config['dataset']}: {reader} reads labels, and there is no column {label!r} "
            "(LABEL_FIELD) of them; load one, or make it of another, as with threshold: {rating: 4}"
        )


def check_parts(config: Config, parts: Sequence[Dataset]) -> None:
    """Refuse a split that leaves nothing to train on, or nothing where something was asked for.

    Args:
        parts: the train, validation and test parts.

    Raises:
        DatasetError: one of them is empty.
    """
    if config["benchmark_filename"]:
        return  # the parts are the user's
    wanted = (True, *parts_left_out(config["eval_args"]))
    for part, is_wanted, what in zip(parts, wanted, ("train", "validate", "test"), strict=True):
        if is_wanted and len(part) == 0:
            raise DatasetError(
                f"dataset {config['dataset']}: eval_args {config['eval_args']['split']} leaves no "
                f"interaction to {what} on"
            )
