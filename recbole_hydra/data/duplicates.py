"""Which of a user's interactions with the same item are kept: ``rm_dup_inter``."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from recbole_hydra.checks import did_you_mean
from recbole_hydra.errors import ConfigError

if TYPE_CHECKING:
    from recbole.data.dataset import Dataset

logger = logging.getLogger(__name__)

#: What ``rm_dup_inter`` may be, beside none.
KEEPS = ("first", "last")

#: Spellings of no; pandas, whom RecBole asks, takes False for "drop every one of them".
_NO = ("", "none", "null", "no", "false", "off", "~")


def which_to_keep(value: Any) -> str | None:
    """What ``rm_dup_inter`` says: ``"first"``, ``"last"``, or None for all of them.

    Raises:
        ConfigError: it says anything else.
    """
    if value is None or value is False or (isinstance(value, str) and value.strip().lower() in _NO):
        return None
    word = value.strip().lower() if isinstance(value, str) else value
    if isinstance(word, str) and word in KEEPS:
        return word
    raise ConfigError(
        f"rm_dup_inter must be first, last, or None to keep all, got {value!r}"
        f"{did_you_mean(value, KEEPS) if isinstance(value, str) else '; which one shall be kept?'}"
    )


def remove(dataset: Dataset) -> None:
    """Keep the first or last interaction of every user with every item, in place.

    First and last by time, those of equal times by their order in the file; without a time column
    by their order in the file. What is kept stays in the order of the file. RecBole sorts by time
    first, and not stably: which of equal times comes first is then anyone's guess; so it is with
    ``time_order: recbole``.

    Args:
        dataset: RecBole's, loaded, with ``inter_feat`` a DataFrame.
    """
    keep = which_to_keep(dataset.config["rm_dup_inter"])
    if keep is None:
        return
    frame, recboles = dataset.inter_feat, dataset.config["time_order"] == "recbole"
    if dataset.time_field in frame:
        kind: Literal["quicksort", "stable"] = "quicksort" if recboles else "stable"
        order = np.argsort(frame[dataset.time_field].to_numpy(), kind=kind)
    else:
        order = np.arange(len(frame))
        logger.info(
            "rm_dup_inter: %s in the order of the file, which has no column %r",
            keep, dataset.time_field,
        )  # fmt: skip
    pairs = frame[[dataset.uid_field, dataset.iid_field]].iloc[order]
    kept = order[~pairs.duplicated(keep=keep).to_numpy()]
    if not recboles:
        kept = np.sort(kept)
    logger.info(
        "rm_dup_inter: %s of each pair of user and item, %d of %d interactions",
        keep, len(kept), len(frame),
    )  # fmt: skip
    dataset.inter_feat = frame.iloc[kept].copy()
