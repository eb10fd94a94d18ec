"""Creating and splitting datasets through RecBole, with errors that say what is wrong."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import recbole
import recbole.data
from recbole.data.utils import create_samplers, get_dataloader
from recbole.utils import ModelType

from recbole_hydra import checkpoint
from recbole_hydra.data import ready_made
from recbole_hydra.data.domains import DomainLoaders, domain_configs, join_domains
from recbole_hydra.data.evaluation import BlockEvalLoader, EventEvalLoader
from recbole_hydra.data.features import check_features
from recbole_hydra.data.files import check_files, check_saved, filters_set
from recbole_hydra.data.item_text import has_item_text, item_sentences, read_item_texts
from recbole_hydra.data.joined_parts import JoinedTargets, is_joined, three_parts
from recbole_hydra.data.parts import has_lists, list_field
from recbole_hydra.data.ready_made import use_lists
from recbole_hydra.data.splits import check_labels, check_parts
from recbole_hydra.data.targets import TargetDataset
from recbole_hydra.data.time_cut import (
    TEST,
    TRAIN,
    VALID,
    check_nothing_later,
    find_cut,
    refuse_saved_loaders,
    share_before,
    split_at,
)
from recbole_hydra.data.time_order import describe_difference, order_difference
from recbole_hydra.data.vocabulary import user_histories
from recbole_hydra.data.windows import WindowLoader
from recbole_hydra.errors import ConfigError, DatasetError, RecBoleHydraError
from recbole_hydra.metrics import remember_training_counts

if TYPE_CHECKING:
    from recbole.config import Config
    from recbole.data.dataloader.abstract_dataloader import AbstractDataLoader
    from recbole.data.dataset import Dataset

logger = logging.getLogger(__name__)


def create_dataset(config: Config) -> Dataset:
    """Create the dataset that ``config`` names, as RecBole's ``create_dataset``.

    With ``domains`` it is all of them in one, see :mod:`recbole_hydra.data.domains`. Where the
    model reads item text, the dataset has it: ``item_text``, a string per internal item id.

    Raises:
        DatasetError: no such dataset, a column that the config needs is not in its file or of
            another type, no interactions are left after filtering, or items have no text.
    """
    if config["domains"]:
        joint = join_domains(config, [_of_domain(own) for own in domain_configs(config)])
        check_features(config, joint)
        return joint
    for note in use_lists(config, config["data_path"]):
        if note not in getattr(config, "notes", ()):  # which the log has already
            logger.info(note)
    fetched = not Path(config["data_path"]).exists()  # RecBole fetches it
    check_files(config)
    check_saved(config)
    texts = None
    if has_item_text(config) and not fetched:
        texts = read_item_texts(config)
    try:
        dataset = recbole.data.create_dataset(config)
    except RecBoleHydraError:
        raise
    except ValueError as error:
        if "feat is empty" in str(error):
            raise DatasetError(
                f"dataset {config['dataset']}: no interactions are left after filtering with "
                f"{filters_set(config)}; relax them"
            ) from error
        line = " ".join(str(error).split())
        raise DatasetError(
            f"dataset {config['dataset']}: its files cannot be read ({line})"
        ) from error
    if len(dataset.inter_feat) == 0:
        raise DatasetError(f"dataset {config['dataset']}: its .inter file has no interactions")
    check_features(config, dataset)
    ready_made.adopt(dataset)
    if has_item_text(config):
        texts = read_item_texts(config) if texts is None else texts
        dataset.item_text = item_sentences(config, dataset, texts)
    return dataset


def _of_domain(config: Config) -> Dataset:
    """The dataset of one domain, whose interactions are to be joined with those of others."""
    if has_lists(config, config["data_path"]):
        field = list_field(config)
        raise DatasetError(
            f"domains: {config['dataset']} has ready-made rows, with histories in {field}, which "
            "cannot be joined to those of other domains; remove it from domains, or that column"
        )
    return create_dataset(config)


@dataclass
class PreparedData:
    """A dataset that is loaded and split, before settings of training make loaders of it.

    Attributes:
        dataset: RecBole's, as splitting left it.
        vocabulary: :func:`~recbole_hydra.checkpoint.vocabulary` of it.
        histories: :func:`user_histories` of it.
        splits: the train, validation and test parts; None where RecBole reads ready-made loaders
            (``dataloaders_save_path``).
    """

    dataset: Dataset
    vocabulary: dict
    histories: dict
    splits: list | None


def prepare_data(config: Config) -> PreparedData:
    """Create the dataset that ``config`` names, and split it.

    Raises:
        DatasetError, ConfigError: as :func:`create_dataset` and :func:`split_dataset`.
    """
    dataset = create_dataset(config)
    logging.getLogger().info(dataset)
    difference = describe_difference(config["time_order"], order_difference(dataset))
    if difference is not None:
        logger.info(difference)
    vocabulary, histories = checkpoint.vocabulary(dataset), user_histories(dataset)
    return PreparedData(dataset, vocabulary, histories, _build(config, dataset))


def make_loaders(
    config: Config, data: PreparedData
) -> tuple[
    AbstractDataLoader, AbstractDataLoader | DomainLoaders, AbstractDataLoader | DomainLoaders
]:
    """The loaders of ``data`` under the settings of ``config``; see :func:`split_dataset`."""
    train, valid, test = _loaders(config, data)
    if data.splits is not None and getattr(data.dataset, "time_cut", None) is not None:
        if config["MODEL_TYPE"] != ModelType.SEQUENTIAL:  # RecBole's have a row per user
            valid, test = (
                EventEvalLoader(config, loader._dataset, loader._sampler, part)
                for loader, part in ((valid, VALID), (test, TEST))
            )
        check_nothing_later((train, valid, test))
    domains = getattr(data.dataset, "domains", None)
    if domains is None:
        return train, valid, test
    valid, test = (DomainLoaders(x, domains) if len(x) else x for x in (valid, test))
    return train, valid, test


def _loaders(config: Config, data: PreparedData) -> tuple[AbstractDataLoader, ...]:
    if config["training_mode"] == "autoregressive":
        assert data.splits is not None
        return _window_loaders(config, data.dataset, data.splits)
    if data.splits is None:
        return recbole.data.data_preparation(config, data.dataset)
    data.dataset.build = lambda: data.splits  # RecBole's data_preparation splits by this method
    try:
        return recbole.data.data_preparation(config, data.dataset)
    finally:
        del data.dataset.build


def split_dataset(
    config: Config, dataset: Dataset
) -> tuple[
    AbstractDataLoader, AbstractDataLoader | DomainLoaders, AbstractDataLoader | DomainLoaders
]:
    """Split ``dataset`` and make its loaders, as RecBole's ``data_preparation``.

    With ``training_mode: autoregressive`` the train loader is a
    :class:`~recbole_hydra.data.windows.WindowLoader`; the split, and the rows of validation and
    test, are the same in both modes.

    Returns:
        ``(train_data, valid_data, test_data)``.

    Raises:
        DatasetError: no user has enough interactions to be split, or none is left to train on.
        ConfigError: a setting that ``training_mode: autoregressive`` cannot express.
    """
    return make_loaders(config, PreparedData(dataset, {}, {}, _build(config, dataset)))


def _build(config: Config, dataset: Dataset) -> list[Dataset] | None:
    """Split ``dataset``, in place, as RecBole's ``build``; the train split learns how often each
    item occurs in training."""
    frame, columns = dataset.inter_feat, [dataset.iid_field]
    evaluation = config["eval_args"]
    dataset.time_cut = cut = None
    if (share := share_before(evaluation)) is not None:
        refuse_saved_loaders(config)
        dataset.time_cut = cut = find_cut(dataset, share)
    cut_in_time = "TS" in (evaluation["split"] or {}) or evaluation["group_by"] != "user"
    if cut_in_time and config["MODEL_TYPE"] == ModelType.SEQUENTIAL and dataset.time_field in frame:
        columns += [dataset.uid_field, dataset.time_field]
    interactions = [frame[column].to_numpy() for column in columns]
    splits = _split(config, dataset)
    if cut is not None:
        assert splits is not None
        remember_training_counts(splits[:1], cut.items[cut.part == TRAIN])
    elif splits is not None and not config["benchmark_filename"]:
        remember_training_counts(splits, *interactions)
    return splits


def _split(config: Config, dataset: Dataset) -> list[Dataset] | None:
    split = config["eval_args"]["split"] or {}
    if split.get("LS") == "valid_and_test" and not config["benchmark_filename"]:
        # RecBole's sequential rows are (history, target), one fewer than a user's interactions.
        sequential = config["MODEL_TYPE"] == ModelType.SEQUENTIAL
        has_rows = getattr(dataset, "has_ready_made_rows", False)
        needed = 4 if sequential and not has_rows else 3
        longest = int(dataset.inter_feat[dataset.uid_field].value_counts().max())
        if longest < needed and has_rows:
            raise DatasetError(
                f"dataset {config['dataset']}: no user has rows enough to split: leaving one out "
                "for validation and one for test takes a user with 3 ready-made rows, the most is "
                f"{longest}; set eval_args: {{split: {{RS: [8, 1, 1]}}, group_by: none}}"
            )
        if longest < needed:
            raise DatasetError(
                f"dataset {config['dataset']}: no user is long enough to split: leaving one "
                f"interaction out for validation and one for test takes a user with {needed} "
                f"interactions, the longest has {longest}"
            )
    check_labels(config, dataset)
    if config["training_mode"] == "autoregressive":
        _check_windows_fit(config, dataset)
        kind = JoinedTargets if is_joined(dataset) else TargetDataset
        dataset = kind.adopt(dataset, whole_histories=config["carry_state"])
    elif config["dataloaders_save_path"]:
        return None
    cut = dataset.time_cut
    splits = three_parts(dataset.build()) if cut is None else split_at(dataset, cut)
    check_parts(config, splits)
    return splits


def _check_windows_fit(config: Config, dataset: Dataset) -> None:
    """Raise ConfigError for what ``training_mode: autoregressive`` cannot express."""
    remedy = "set training_mode: augmentation, or remove it"
    if config["benchmark_filename"] and not is_joined(dataset):
        raise ConfigError(
            f"benchmark_filename: {config['benchmark_filename']} are RecBole's ready-made rows, "
            f"which training_mode autoregressive cannot join to whole histories; {remedy}"
        )
    if config["dataloaders_save_path"]:
        raise ConfigError(
            "dataloaders_save_path: training_mode autoregressive builds its loaders anew, in "
            f"seconds; {remedy}"
        )


def _window_loaders(
    config: Config, dataset: Dataset, splits: Sequence[Dataset]
) -> tuple[AbstractDataLoader, ...]:
    """The loaders of RecBole's ``data_preparation`` on the splits of a :class:`TargetDataset`."""
    samplers = create_samplers(config, dataset, splits)
    loaders: list[AbstractDataLoader] = [
        WindowLoader(config, splits[0], samplers[0], shuffle=config["shuffle"])
    ]
    for phase, split, sampler in zip(("valid", "test"), splits[1:], samplers[1:], strict=True):
        full = config["eval_args"]["mode"][phase] == "full"
        loader = BlockEvalLoader if full else get_dataloader(config, phase)
        loaders.append(loader(config, split, sampler, shuffle=False))
    windows = loaders[0].windows
    logger.info(
        "training_mode autoregressive: %d targets in %d windows of %d to %d items",
        windows.targets.sum(), len(windows), windows.length.min(), windows.length.max(),
    )  # fmt: skip
    return tuple(loaders)
