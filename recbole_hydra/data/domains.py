"""Several datasets as one: the domains of a multi-domain model (Yuan 2025, arXiv 2504.07398).

Each domain is loaded by RecBole as the dataset it is, with its own columns and filters. In the
joint dataset every raw id carries its domain's name, ``amazon-office:B001``, so that equal ids of
two domains stay two; the items of a domain have consecutive internal ids, the domains in their
order. The split is RecBole's own on the joint dataset. A target is ranked among the items of its
domain.
"""

from __future__ import annotations

import copy
import os
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch
from recbole.utils import FeatureSource, FeatureType
from torch import Tensor

from recbole_hydra.data.times import join_times
from recbole_hydra.errors import ConfigError, DatasetError

if TYPE_CHECKING:
    from recbole.config import Config
    from recbole.data.dataloader.abstract_dataloader import AbstractDataLoader
    from recbole.data.dataset import Dataset


@dataclass(frozen=True)
class Domains:
    """Which internal item ids belong to which domain.

    Attributes:
        names: of the domains, in order.
        start: the first item id of each, and the number of item ids behind them, (domains + 1,).
    """

    names: tuple
    start: tuple

    def ranges(self) -> list[tuple[int, int]]:
        """``(first item id, last + 1)`` of every domain."""
        return list(zip(self.start[:-1], self.start[1:], strict=True))

    def of(self, items: Tensor) -> Tensor:
        """The domain of item ids, an integer tensor of any shape, as indices into ``names``."""
        return torch.bucketize(items, torch.tensor(self.start[1:-1]).to(items), right=True)


def domain_configs(config: Config) -> list[Config]:
    """The Config of every domain of ``config``: the same settings under the domain's own."""
    configs = []
    for name, settings in config["domain_settings"].items():
        own = copy.copy(config)
        own.final_config_dict = {
            **config.final_config_dict,
            **settings,
            "dataset": name,
            "domains": None,
            "data_path": config.folder_of(name, os.path.dirname(config["data_path"])),
        }
        own.dataset = name
        configs.append(own)
    return configs


def join_domains(config: Config, parts: Sequence[Dataset]) -> Dataset:
    """Make one dataset of one per domain, loaded and not yet split.

    Args:
        config: the joint Config. parts: RecBole's datasets, in the order of ``config["domains"]``.

    Returns:
        A dataset of the class of the parts, with ``domains`` and, where they have it,
        ``item_text``. It has the users, items and times of the interactions, and no other column.

    Raises:
        DatasetError: ``merge_users``, and no user is in two domains, or the times of a domain are
            positions.
    """
    names, merge = tuple(config["domains"]), config["merge_users"]
    if merge:
        for name, part in zip(names, parts, strict=True):
            _check_times(name, part)
    joint = copy.copy(parts[0])
    joint.config, joint.dataset_name = config, config["dataset"]
    joint._get_preset()
    joint._get_field_from_config()
    uid, iid, time = joint.uid_field, joint.iid_field, joint.time_field

    users, items, start, frames = ["[PAD]"], ["[PAD]"], [1], []
    internal: dict[str, int] = {}  # internal user ids by raw id
    times: dict[str, tuple[np.ndarray, str | None]] = {}  # by name
    for name, part in zip(names, parts, strict=True):
        raw_users = [str(token) for token in part.field2id_token[part.uid_field][1:]]
        keys = raw_users if merge else [f"{name}:{token}" for token in raw_users]
        new = [key for key in keys if key not in internal]
        internal.update(zip(new, range(len(users), len(users) + len(new)), strict=True))
        users += new
        user_of = np.array([0, *(internal[key] for key in keys)])
        frame = part.inter_feat
        columns = {
            uid: user_of[frame[part.uid_field].to_numpy()],
            iid: frame[part.iid_field].to_numpy() + (start[-1] - 1),
        }
        if part.time_field in frame:
            times[name] = frame[part.time_field].to_numpy(), part.time_kind
        else:
            times[name] = np.full(len(frame), np.nan), None
        frames.append(pd.DataFrame(columns))
        items += [f"{name}:{token}" for token in part.field2id_token[part.iid_field][1:]]
        start.append(len(items))
    if merge and len(users) - 1 == sum(part.user_num - 1 for part in parts):
        raise DatasetError(
            f"merge_users: no user id of {', '.join(names)} occurs in two of them; remove it"
        )
    joint.inter_feat = pd.concat(frames, ignore_index=True)
    if any(part.time_field in part.inter_feat for part in parts):
        joint.inter_feat[time] = join_times(times)
        joint.time_kind = next(part.time_kind for part in parts if part.time_kind is not None)
        if any(part.time_range is not None for part in parts):
            joint.time_range = joint.inter_feat[time].min(), joint.inter_feat[time].max()
    joint.user_feat = joint.item_feat = None
    joint.feat_name_list = ["inter_feat"]
    for field, tokens, source in (
        (uid, users, FeatureSource.USER_ID),
        (iid, items, FeatureSource.ITEM_ID),
    ):
        joint.set_field_property(field, FeatureType.TOKEN, source, 1)
        joint.field2id_token[field] = np.array(tokens)
        joint.field2token_id[field] = {token: index for index, token in enumerate(tokens)}
    joint.set_field_property(time, FeatureType.FLOAT, FeatureSource.INTERACTION, 1)
    joint._init_alias()
    joint.domains = Domains(names, tuple(start))
    if hasattr(parts[0], "item_text"):
        joint.item_text = ["", *(text for part in parts for text in part.item_text[1:])]
    return joint


def _check_times(name: str, dataset: Dataset) -> None:
    """Refuse times that are a user's 1, 2, 3, ...: they put nothing in order across domains."""
    frame = dataset.inter_feat
    if dataset.time_field not in frame:
        raise ConfigError(f"merge_users: domain {name} has no times; it needs real timestamps")
    order = frame.sort_values([dataset.uid_field, dataset.time_field])
    times = order.groupby(dataset.uid_field)[dataset.time_field]
    rank = times.cumcount()
    offset = (order[dataset.time_field] - rank).round(6)
    if offset.nunique() == 1 and float(offset.iloc[0]) in (0.0, 1.0) and rank.max() > 0:
        raise DatasetError(
            f"merge_users: the {dataset.time_field} of domain {name} is the position in a user's "
            "history, 1, 2, 3, ..., not a time, so two domains' interactions cannot be put in "
            "order; remove merge_users, or use data with real timestamps"
        )


class DomainLoaders:
    """The rows of an evaluation loader, one loader per domain.

    Iterating gives the batches of all of them, one domain after the other.

    Args:
        loader: RecBole's, or ours, of all rows. domains: of its dataset.
    """

    def __init__(self, loader: AbstractDataLoader, domains: Domains) -> None:
        self.domains = domains
        self._dataset = self.dataset = loader._dataset
        rows = loader._dataset.inter_feat
        domain = domains.of(rows[loader._dataset.iid_field])
        self.by_name: OrderedDict[str, AbstractDataLoader] = OrderedDict()
        for index, name in enumerate(domains.names):
            mine = (domain == index).nonzero().squeeze(1)
            if len(mine) == 0:
                raise DatasetError(f"domain {name}: no user has an interaction to test it on")
            part = loader._dataset.copy(rows[mine])
            self.by_name[name] = type(loader)(loader.config, part, loader._sampler, shuffle=False)

    def __iter__(self) -> Iterator[tuple[Any, ...]]:
        for loader in self.by_name.values():
            yield from loader

    def __len__(self) -> int:
        return sum(len(loader) for loader in self.by_name.values())
