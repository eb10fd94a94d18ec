"""What a checkpoint keeps of a dataset: raw ids by internal id, and users' histories."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from recbole_hydra.data.domains import Domains
from recbole_hydra.data.ready_made import row_histories
from recbole_hydra.data.times import times_of
from recbole_hydra.errors import DatasetError

if TYPE_CHECKING:
    from recbole.config import Config
    from recbole.data.dataset import Dataset


def user_histories(dataset: Dataset) -> dict[str, Tensor]:
    """Every user's items in time order, of a dataset that has not been split yet.

    The order is that of the config's ``time_order``; ties are in the order of the file.

    Returns:
        ``{"items": int32 (interactions,), "start": int64 (users + 1,)}``; the history of internal
        user id u is ``items[start[u]:start[u + 1]]``. Empty where the dataset has no times.
    """
    if getattr(dataset, "has_ready_made_rows", False):
        return row_histories(dataset)
    frame = dataset.inter_feat
    if dataset.time_field not in frame:
        return {}
    users = frame[dataset.uid_field].to_numpy()
    order = np.lexsort((times_of(dataset), users))  # stable: by user, time, position in the file
    items = frame[dataset.iid_field].to_numpy()[order].astype(np.int32)
    start = np.searchsorted(users[order], np.arange(dataset.user_num + 1))
    return {"items": torch.from_numpy(items), "start": torch.from_numpy(start.astype(np.int64))}


class Vocabulary:
    """The raw ids of users and items by internal id, as a checkpoint keeps them.

    It stands in for a dataset where a model only asks for the number of users or items.

    Args:
        config: the Config the ids were made under.
        tokens: ``{"user": [raw ids], "item": [raw ids]}``, row 0 the padding; and, where the
            dataset has them, ``item_text`` and ``domain_start``.
    """

    #: It has no interactions, so a model made on it is about to be loaded.
    is_from_checkpoint = True

    def __init__(self, config: Config, tokens: Mapping[str, Any]) -> None:
        if "item_text" in tokens:
            self.item_text = tokens["item_text"]
        if "domain_start" in tokens:
            self.domains = Domains(tuple(config["domains"]), tuple(tokens["domain_start"]))
        self.uid_field, self.iid_field = config["USER_ID_FIELD"], config["ITEM_ID_FIELD"]
        self.field2id_token = {
            field: tokens[name]
            for name, field in (("user", self.uid_field), ("item", self.iid_field))
            if name in tokens
        }
        self.field2token_id = {
            field: {token: index for index, token in enumerate(ids)}
            for field, ids in self.field2id_token.items()
        }

    def insert_items(self, tokens: list[str], texts: list[str], place: int) -> None:
        """Insert raw item ids, and their texts, before the internal id ``place``; those behind it
        move up. ``place`` is the end of a domain, which they become part of."""
        ids = self.field2id_token[self.iid_field]
        ids[place:place] = tokens
        self.item_text[place:place] = texts
        self.field2token_id[self.iid_field] = {token: i for i, token in enumerate(ids)}
        if hasattr(self, "domains"):
            start = tuple(s + len(tokens) if s >= place else s for s in self.domains.start)
            self.domains = Domains(self.domains.names, start)

    def num(self, field: str) -> int:
        """Number of internal ids of ``field``, the padding included."""
        return len(self.field2id_token[field])

    @property
    def user_num(self) -> int:
        return self.num(self.uid_field)

    @property
    def item_num(self) -> int:
        return self.num(self.iid_field)

    def internal_id(self, field: str, raw_id: object) -> int:
        """Return the internal id of a raw id.

        Raises:
            DatasetError: the raw id is not in the vocabulary.
        """
        index = self.field2token_id[field].get(str(raw_id), 0)
        if index == 0:
            raise DatasetError(
                f"{field} {raw_id!r} is not in the checkpoint's vocabulary of "
                f"{self.num(field) - 1} ids"
            )
        return index
