"""The rules that are written: of settings that no comment of a yaml file tells enough of."""

import importlib.util
import inspect
import re
from collections.abc import Callable
from typing import Any

import torch
from recbole.data.transform import construct_transform
from recbole.evaluator import metric_types

from recbole_hydra.checks import text_encoding
from recbole_hydra.data import filters
from recbole_hydra.data.duplicates import which_to_keep
from recbole_hydra.errors import ConfigError
from recbole_hydra.settings.rules import (
    Nested,
    Rule,
    UnfitError,
    anything,
    choice,
    either,
    integer,
    list_of,
    mapping,
    name_of,
    number,
    off,
    optional,
    path,
    switch,
    text,
)

# -- rules of single settings --------------------------------------------------------------------


def interval() -> Rule:
    """An interval, see :func:`recbole_hydra.data.filters.interval`."""

    def read(value: Any) -> str | None:
        try:
            return filters.interval("", value)
        except ConfigError as error:
            empty = str(error).rpartition(" is empty, ")
            raise UnfitError(f": it is empty, {empty[2]}" if empty[1] else "") from None

    return Rule("an interval such as '[5,inf)'", read)


def _what_stays() -> Rule:
    """What stays of a column: whether it has numbers or tokens is known when its file is read."""
    of_numbers = interval()

    def read(value: Any) -> Any:
        if isinstance(value, str) and value.strip()[:1] in ("[", "("):
            return of_numbers.read(value)
        if isinstance(value, dict):
            raise UnfitError
        return value

    return Rule("an interval such as '[5,inf)', or a list of values", read)


def _clip_grad_norm() -> Nested:
    """The arguments of torch's ``clip_grad_norm_``."""
    known = {
        "max_norm": number(above=0),
        "norm_type": either(number(above=0), choice(("inf",))),
        "error_if_nonfinite": switch(),
        "foreach": optional(switch()),
    }
    taken = [*inspect.signature(torch.nn.utils.clip_grad_norm_).parameters][1:]
    rules = {key: known.get(key, anything()) for key in taken}
    return Nested("{max_norm: 5}", rules, needed=("max_norm",), switched_off=(None,))


def _gpu_id() -> Rule:
    """Numbers of GPUs, comma-separated, or none."""

    def read(value: Any) -> str:
        if isinstance(value, (list, tuple)):
            value = ",".join(map(str, value))
        value = str(value) if isinstance(value, int) and not isinstance(value, bool) else value
        device = r"\s*(-?\d+|(GPU|MIG)-[\w/-]+)\s*"
        if not isinstance(value, str) or not re.fullmatch(rf"({device}(,{device})*)?", value):
            raise UnfitError
        return value

    return Rule("the number of a GPU, or several as in 0,1", read)


def _encoding(name: str, value: Any) -> str | None:
    return None if value is None else text_encoding(name, value)


def _separator(words: str) -> Rule:
    plain = text(words, empty=False)

    def read(value: Any) -> str:
        value = plain.read(value)
        return "\t" if value == "\\t" else value  # as a shell, or yaml without quotes, has it

    return Rule(plain.words, read)


def _parts() -> Rule:
    names = optional(_names("part", "a list such as [train, valid, test]"))
    return Rule(names.words, lambda value: None if value is False else names.read(value))


def _one_process() -> Rule:
    def read(value: Any) -> Any:
        if integer().read(value) not in (1, -1):
            raise UnfitError(": runs of several processes are not supported")
        return value

    return Rule("1", read)


def _log_wandb(name: str, value: Any) -> bool:
    value = switch()(name, value)
    if value and importlib.util.find_spec("wandb") is None:
        raise ConfigError(f"{name} needs the package of Weights & Biases; pip install wandb")
    return value


def transforms() -> list[str]:
    """RecBole's names of what it does to batches."""
    found = re.findall(r'"(\w+)": \w+', inspect.getsource(construct_transform))
    return list(dict.fromkeys(found))


def _names(what: str, words: str | None = None) -> Rule:
    return list_of(name_of(what), words or f"a list of {what}s")


def _columns(words: str, none: str = "no") -> Rule:
    """Columns by atomic file; ``"*"`` is all of them; ``none`` is what None stands for."""
    columns = mapping(words, either(choice(("*",)), optional(_names("column"))))
    return Rule(
        f"{words}, or ~ for {none} columns",
        lambda value: None if value is None else columns.read(value),
    )


_DISCRETIZATION = Nested(
    "{method: ED, bucket: 10}",
    {"method": choice(("ED", "LD")), "bucket": integer(least=1)},
    needed=("method",),
)


def _discretization(name: str, value: Any) -> dict[str, Any] | None:
    if value is None:
        return None
    if not isinstance(value, dict):
        example = "{price: {method: ED, bucket: 10}}"
        raise ConfigError(f"{name} must be a dict such as {example}, got {value!r}")
    found: dict[str, Any] = {
        key: _DISCRETIZATION(f"{name}: {key}", each) for key, each in value.items()
    }
    for key, each in found.items():
        if each["method"] == "ED" and "bucket" not in each:
            raise ConfigError(f"{name}: {key}: bucket is missing, the number of equal parts")
    return found


def _head_dim(name: str, value: Any) -> int:
    value = integer(least=1)(name, value)
    if value % 2:
        raise ConfigError(f"{name} must be even, for the rotary positions, got {value}")
    return value


def _amount() -> Rule:
    return number(above=0)


def _probability() -> Rule:
    return number(least=0, below=1)


_NO_SAVED_DATA = (
    "data are loaded anew, in seconds; RecBole takes what it saved whatever eval_args and "
    "data_path are by then; remove it"
)

#: Those of settings for every model, but for what :mod:`.evaluation` and the options have.
WRITTEN: dict[str, Callable[[str, Any], Any]] = {
    # RecBole's overall.yaml
    "gpu_id": _gpu_id(),
    "worker": integer(least=0),
    "seed": integer(least=0, most=2**32 - 1),
    "state": optional(choice(("info", "debug", "error", "warning", "critical"), any_case=True)),
    "data_path": path("a folder"),
    "checkpoint_dir": path("a folder"),
    "save_dataset": off(_NO_SAVED_DATA),
    "dataset_save_path": off(_NO_SAVED_DATA),
    "save_dataloaders": off(_NO_SAVED_DATA),
    "dataloaders_save_path": optional(path()),
    "log_wandb": _log_wandb,
    "epochs": integer(least=0),
    "train_batch_size": integer(least=1),
    "eval_batch_size": integer(least=1),
    "learning_rate": number(least=0),
    "eval_step": integer(least=0, words="an integer of at least 0, which is never"),
    "stopping_step": integer(least=0),
    "clip_grad_norm": _clip_grad_norm(),
    "weight_decay": number(least=0),
    "loss_decimal_place": integer(least=0),
    "metric_decimal_place": integer(least=0),
    "transform": optional(choice(transforms())),
    "metrics": list_of(
        Rule(
            f"one of {', '.join(metric_types)}", choice(metric_types, any_case=True).read
        ),
        "a list of metrics such as [Hit, NDCG]", empty=False,
    ),
    "topk": list_of(integer(least=1), "positive integers", empty=False),
    "valid_metric": text("the name of a metric such as NDCG@10", empty=False),
    # RecBole's dataset/sample.yaml
    "field_separator": _separator("the character between columns"),
    "seq_separator": _separator("the character between the parts of a column"),
    **dict.fromkeys(
        (
            "USER_ID_FIELD", "ITEM_ID_FIELD", "ITEM_LIST_LENGTH_FIELD", "POSITION_FIELD",
            "HEAD_ENTITY_ID_FIELD", "TAIL_ENTITY_ID_FIELD", "RELATION_ID_FIELD", "ENTITY_ID_FIELD",
        ),
        name_of("column"),
    ),
    **dict.fromkeys(("RATING_FIELD", "TIME_FIELD", "LABEL_FIELD"), optional(name_of("column"))),
    "NEG_PREFIX": text("what column names of negatives begin with", empty=False),
    "LIST_SUFFIX": text("what column names of histories end with", empty=False),
    "MAX_ITEM_LIST_LENGTH": integer(least=1),
    "seq_len": optional(mapping("a dict such as {title: 10}", integer(least=1))),
    "threshold": optional(mapping("a dict of one column, such as {rating: 4}", number(), most=1)),
    "load_col": _columns("a dict such as {inter: [user_id, item_id]}", none="all"),
    "unload_col": _columns("a dict such as {item: [title]}"),
    "unused_col": _columns("a dict such as {inter: [timestamp]}"),
    "additional_feat_suffix": optional(_names("file suffix", "a list of file suffixes")),
    "rm_dup_inter": lambda _, value: which_to_keep(value),
    "val_interval": optional(
        mapping("a dict of columns, such as {rating: '[3,inf)'}", optional(_what_stays()))
    ),
    **dict.fromkeys(
        (
            "user_inter_num_interval", "item_inter_num_interval", "entity_kg_num_interval",
            "relation_kg_num_interval",
        ),
        optional(interval()),
    ),
    **{
        f"alias_of_{what}_id": optional(_names("column"))
        for what in ("user", "item", "entity", "relation")
    },
    "numerical_features": _names("column"),
    "normalize_field": optional(_names("column")),
    "preload_weight": optional(mapping("a dict such as {ent_id: ent_emb}", name_of("column"))),
    "discretization": _discretization,
    "benchmark_filename": _parts(),
    # Read by RecBole, listed in none of its yaml files.
    "encoding": _encoding,
    "tail_ratio": optional(number(least=0)),
    "nproc": _one_process(),
    "world_size": _one_process(),
    # Of S3Rec, which without an epoch has nothing to save.
    **dict.fromkeys(("pretrain_epochs", "save_step"), integer(least=1)),
    # Ours: properties/training.yaml
    "item_list_padding": optional(
        either(choice(("auto", "none")), list_of(anything(), "a list of tokens"))
    ),
    "domains": optional(_names("dataset", "a list of datasets")),
    "domain_temperature": number(least=1, words="a number of at least 1"),
}  # fmt: skip

#: The same, of settings of our models.
WRITTEN_FOR_OURS: dict[str, Callable[[str, Any], Any]] = {
    **dict.fromkeys(
        (
            "hidden_size", "num_layers", "num_heads", "d_state", "d_conv", "expand", "ffn_size",
            "num_negatives", "lora_rank",
        ),
        integer(least=1),
    ),
    "head_dim": _head_dim,
    **dict.fromkeys(
        (
            "initializer_range", "linear_initializer_range", "norm_eps", "llm_learning_rate",
            "lora_alpha",
        ),
        _amount(),
    ),
    "rope_base": optional(_amount()),
    "recent_days": number(above=0),
    "dropout_prob": _probability(),
    "lora_dropout": _probability(),
    "gbce_t": number(least=0, most=1),
    "item_text_length": optional(integer(least=2)),
    "item_text_fields": optional(_names("column")),
    "lora_target_modules": either(choice(("all-linear",)), _names("layer")),
    "item_llm": optional(path("a folder, or a name on the Hugging Face hub")),
    "item_llm_cache": optional(path("a folder")),
    "adapt_from": optional(path("a checkpoint")),
}  # fmt: skip
