"""What each setting may be: one table of rules, and the functions that read a value by its rule.

A rule is derived where it can be: from the comment that follows a key in the yaml files, RecBole's
and ours, as in ``# (int) Number of layers.`` and ``Range in ['rms', 'none']``; from the code that
takes the value, as with ``learner``; otherwise it is written in :data:`WRITTEN`, which goes first.
"""

import importlib.util
import inspect
import re
from functools import cache, lru_cache
from pathlib import Path

import torch
import yaml
from recbole.config import Config as RecBoleConfig
from recbole.data.transform import construct_transform
from recbole.evaluator import metric_types
from recbole.trainer import Trainer

from recbole_hydra.checks import did_you_mean, text_encoding
from recbole_hydra.data import filters
from recbole_hydra.data.duplicates import which_to_keep
from recbole_hydra.errors import ConfigError
from recbole_hydra.settings.keys import PROPERTIES, RECBOLE
from recbole_hydra.settings.parsing import home
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

    def read(value):
        try:
            return filters.interval("", value)
        except ConfigError as error:
            empty = str(error).rpartition(" is empty, ")
            raise UnfitError(f": it is empty, {empty[2]}" if empty[1] else "") from None

    return Rule("an interval such as '[5,inf)'", read)


def _what_stays() -> Rule:
    """What stays of a column: whether it has numbers or tokens is known when its file is read."""
    of_numbers = interval()

    def read(value):
        if isinstance(value, str) and value.strip()[:1] in ("[", "("):
            return of_numbers.read(value)
        if isinstance(value, dict):
            raise UnfitError
        return value

    return Rule("an interval such as '[5,inf)', or a list of values", read)


def _ratios() -> Rule:
    """The shares of train, validation and test."""
    words = "three numbers, the shares of train, validation and test, such as [0.8, 0.1, 0.1]"
    numbers = list_of(number(least=0), words)

    def read(value):
        ratios = numbers.read(value)
        if len(ratios) != 3:
            raise UnfitError(f": {len(ratios)} of them; a share may be 0" if ratios else "")
        if ratios[0] <= 0:
            raise UnfitError(": nothing to train on")
        if not any(ratios[1:]):
            raise UnfitError(": nothing to validate or test on")
        return ratios

    return Rule(words, read)


#: The split of ``eval_args``: one way, and what it takes.
SPLITS = {
    "RS": _ratios(),
    "TS": _ratios(),
    "LS": choice(("valid_and_test", "valid_only", "test_only")),
}


def _split(name, value):
    """Read ``split``: a dict with one way of splitting."""
    example = "{LS: valid_and_test} or {RS: [0.8, 0.1, 0.1]}"
    if not isinstance(value, dict) or len(value) != 1:
        more = ": one way of splitting" if isinstance(value, dict) and value else ""
        raise ConfigError(f"{name} must be a dict such as {example}, got {value!r}{more}")
    ((way, how),) = value.items()
    if way not in SPLITS:
        hint = did_you_mean(way, SPLITS)
        raise ConfigError(f"{name} must be by one of {', '.join(SPLITS)}, got {way!r}{hint}")
    return {way: SPLITS[way](f"{name}: {way}", how)}


def _mode_word() -> Rule:
    def read(value):
        if isinstance(value, str) and re.fullmatch(r"full|labeled|(uni|pop)0*[1-9]\d*", value):
            return value
        raise UnfitError(did_you_mean(value, ("full", "labeled", "uni100", "pop100")))

    return Rule("full, labeled, uniN or popN with N of at least 1, such as uni100", read)


def _mode(name, value):
    """Read ``mode``: a word, or one for ``valid`` and one for ``test``."""
    word = _mode_word()
    if not isinstance(value, dict):
        return word(name, value)
    phases = Nested("{valid: uni100, test: full}", dict.fromkeys(("valid", "test"), word))
    if not value:
        raise ConfigError(f"{name} must be {word.words}, got {value!r}")
    return phases(name, value)


def _group() -> Rule:
    word = choice(("user", "none"))

    def read(value):
        return value if value is None or str(value).lower() == "none" else word.read(value)

    return Rule("user or none", read)


EVAL_ARGS = Nested(
    "{split: {LS: valid_and_test}, order: TO, group_by: user, mode: full}",
    {"split": _split, "order": choice(("TO", "RO")), "group_by": _group(), "mode": _mode},
)

#: What RecBole writes where there is no negative sampling.
NO_SAMPLING = (None, "None", "none")

_DISTRIBUTIONS = choice(("uniform", "popularity", "none"))

TRAIN_NEG_SAMPLE_ARGS = Nested(
    "{distribution: uniform, sample_num: 1}",
    {
        "distribution": Rule(
            _DISTRIBUTIONS.words,
            lambda value: "none" if value in NO_SAMPLING else _DISTRIBUTIONS.read(value),
        ),
        "sample_num": integer(least=1),
        "alpha": number(),
        "dynamic": switch(),
        "candidate_num": integer(least=0),
    },
    switched_off=NO_SAMPLING,
)


def _train_neg_sample_args(name, value):
    """Read ``train_neg_sample_args``; without a distribution there is no more to it."""
    if isinstance(value, dict) and value.get("distribution", "") in NO_SAMPLING:
        value = {key: each for key, each in value.items() if each not in NO_SAMPLING}
        return {"distribution": "none", **TRAIN_NEG_SAMPLE_ARGS(name, value)}
    found = TRAIN_NEG_SAMPLE_ARGS(name, value)
    if found and found.get("dynamic") and not found.get("candidate_num"):
        raise ConfigError(
            f"{name}: dynamic chooses among candidates: candidate_num must be a positive integer, "
            f"got {found.get('candidate_num')!r}"
        )
    return found and {"distribution": "uniform", **found}  # RecBole's default


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

    def read(value):
        if isinstance(value, (list, tuple)):
            value = ",".join(map(str, value))
        value = str(value) if isinstance(value, int) and not isinstance(value, bool) else value
        device = r"\s*(-?\d+|(GPU|MIG)-[\w/-]+)\s*"
        if not isinstance(value, str) or not re.fullmatch(rf"({device}(,{device})*)?", value):
            raise UnfitError
        return value

    return Rule("the number of a GPU, or several as in 0,1", read)


def _encoding(name, value):
    return None if value is None else text_encoding(name, value)


def _separator(words) -> Rule:
    plain = text(words, empty=False)

    def read(value):
        value = plain.read(value)
        return "\t" if value == "\\t" else value  # as a shell, or yaml without quotes, has it

    return Rule(plain.words, read)


def _parts() -> Rule:
    names = optional(_names("part", "a list such as [train, valid, test]"))
    return Rule(names.words, lambda value: None if value is False else names.read(value))


def _one_process() -> Rule:
    def read(value):
        if integer().read(value) not in (1, -1):
            raise UnfitError(": runs of several processes are not supported")
        return value

    return Rule("1", read)


def _log_wandb(name, value):
    value = switch()(name, value)
    if value and importlib.util.find_spec("wandb") is None:
        raise ConfigError(f"{name} needs the package of Weights & Biases; pip install wandb")
    return value


def _words_in(source: str, pattern: str) -> list[str]:
    """The words that a piece of RecBole's code compares a setting with."""
    return list(dict.fromkeys(re.findall(pattern, source)))


def learners() -> list[str]:
    """RecBole's names of optimizers, any other of which it takes for Adam."""
    return _words_in(inspect.getsource(Trainer._build_optimizer), r'learner.lower\(\) == "(\w+)"')


def transforms() -> list[str]:
    """RecBole's names of what it does to batches."""
    return _words_in(inspect.getsource(construct_transform), r'"(\w+)": \w+')


def _names(what, words=None) -> Rule:
    return list_of(name_of(what), words or f"a list of {what}s")


def _columns(words, none="no") -> Rule:
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


def _discretization(name, value):
    if value is None:
        return None
    if not isinstance(value, dict):
        example = "{price: {method: ED, bucket: 10}}"
        raise ConfigError(f"{name} must be a dict such as {example}, got {value!r}")
    found = {key: _DISCRETIZATION(f"{name}: {key}", each) for key, each in value.items()}
    for key, each in found.items():
        if each["method"] == "ED" and "bucket" not in each:
            raise ConfigError(f"{name}: {key}: bucket is missing, the number of equal parts")
    return found


def _domain_settings(name, value):
    """Read ``domain_settings``: the settings of single domains, each by its own rule."""
    if value is None:
        return None
    example = "{amazon-office: {USER_ID_FIELD: uid}}"
    if not isinstance(value, dict):
        raise ConfigError(f"{name} must be a dict such as {example}, got {value!r}")
    found = {}
    for domain, keys in value.items():
        if keys is not None and not isinstance(keys, dict):
            raise ConfigError(f"{name}: {domain}: must be a dict, as in {example}, got {keys!r}")
        found[str(domain)] = {
            key: check(key, each, common_rules(), name=f"{name}: {domain}: {key}")
            for key, each in (keys or {}).items()
        }
    return found


def _head_dim(name, value):
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

#: Rules that no comment of a yaml file gives, of settings for every model.
WRITTEN = {
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
    "learner": choice(learners(), any_case=True),
    "learning_rate": number(least=0),
    "train_neg_sample_args": _train_neg_sample_args,
    "eval_step": integer(least=0, words="an integer of at least 0, which is never"),
    "stopping_step": integer(least=0),
    "clip_grad_norm": _clip_grad_norm(),
    "weight_decay": number(least=0),
    "loss_decimal_place": integer(least=0),
    "metric_decimal_place": integer(least=0),
    "transform": optional(choice(transforms())),
    "eval_args": EVAL_ARGS,
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
    # Ours: properties/training.yaml
    "item_list_padding": optional(
        either(choice(("auto", "none")), list_of(anything(), "a list of tokens"))
    ),
    "training_mode": choice(("auto", "autoregressive", "augmentation")),
    "window_overlap": optional(integer(least=0)),
    "later_targets": optional(list_of(_amount(), "positive numbers")),
    "item_initialization": choice(("normal", "cooccurrence")),
    "cooccurrence_std": optional(_amount()),
    "learning_rate_decay": optional(integer(least=1)),
    "domains": optional(_names("dataset", "a list of datasets")),
    "domain_settings": _domain_settings,
    "domain_temperature": number(least=1, words="a number of at least 1"),
}  # fmt: skip

#: The same, of settings of our models.
WRITTEN_FOR_OURS = {
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


# -- rules derived from yaml files ---------------------------------------------------------------

#: RecBole's loader, to which 1e-3 is a number.
_YAML_LOADER = RecBoleConfig._build_yaml_loader(None)

#: A line such as ``num_layers: 1  # (int) Number of layers. Range in [...]``.
_LINE = re.compile(r"^([\w-]+)\s*:(?:[^#'\"]|'[^']*'|\"[^\"]*\")*#\s*(.*)$")
_TYPES = re.compile(r"\(([\w\s]+)\)")
_CHOICES = re.compile(r"\b[Rr]ang(?:e|ing) in\W*?\[(.*?)\]")

#: Keys of RecBole's models that are sizes, and those that are probabilities of dropout, by name.
_SIZES = re.compile(r"(^|_)(hidden_size|embedding_size|inner_size|attention_size|n_heads)$")
_DROPOUT = re.compile(r"(^|_)dropout(_prob|_rate|_ratio)?$|^drop_ratio$")


def read_comments(file) -> dict:
    """The comment behind every key of a yaml file that has one."""
    lines = Path(file).read_text(encoding="utf-8").splitlines()
    return {match[1]: match[2] for match in map(_LINE.match, lines) if match}


def derived_rules(file) -> dict:
    """The rules that the comments and defaults of a yaml file of ours, or RecBole's general ones,
    give: by type, and by choices where they are listed."""
    defaults = read_yaml(file)
    rules = {}
    for key, comment in read_comments(file).items():
        types = _TYPES.match(comment)
        if types is None or key not in defaults:
            continue
        rule = _by_type(types[1], _choices(comment))
        if rule is not None:
            rules[key] = optional(rule) if defaults[key] is None else rule
    return rules


def _by_type(kind, choices) -> Rule | None:
    """The rule of a type that a comment names, such as ``str`` or ``list or str``."""
    kinds = re.split(r"\W+or\W+|\s+or\s+", kind.strip())
    if choices:
        one = choice(choices)
        return list_of(one, f"{one.words}, or several") if "list" in kinds else one
    plain = {
        "int": integer(), "float": number(), "bool": switch(), "str": text(),
        "list": list_of(anything(), "a list"), "dict": mapping("a dict", anything()),
    }  # fmt: skip
    found = [plain[each] for each in kinds if each in plain]
    return either(*found) if found and len(found) == len(set(kinds) - {"None"}) else None


def _choices(comment) -> list[str]:
    """The words after ``Range in``, if it is words that are listed."""
    match = _CHOICES.search(comment)
    words = re.findall(r"[\w.+-]+", match[1]) if match else []
    return [] if all(re.fullmatch(r"-?\d+(\.\d+)?", word) for word in words) else words


def lenient_rules(file) -> dict:
    """The rules of a model of RecBole's, from its yaml: by the type of the default, with care,
    since a comment there is not always right, and lists have a meaning in places."""
    comments, rules = read_comments(file), {}
    for key, default in read_yaml(file).items():
        comment = comments.get(key, "")
        rule = _by_default(key, default, comment)
        if rule is not None:
            rules[key] = rule
    return rules


def _by_default(key, default, comment) -> Rule | None:
    choices = _choices(comment)
    kind = _TYPES.match(comment)
    if key.endswith("_path"):
        return Rule("a path", lambda value: home(value) if isinstance(value, str) else value)
    if isinstance(default, str):
        return choice(choices) if default in choices else None
    if isinstance(default, bool):
        return switch()
    if isinstance(default, (int, float)):
        if kind is not None and kind[1] not in ("int", "float"):
            return None  # such as "500,100,20", or 1 for True
        if isinstance(default, int) and default > 0 and _SIZES.search(key):
            return integer(least=1)
        if _DROPOUT.search(key):
            return number(least=0, most=1)
        return optional(either(number(), list_of(number(), "a list of numbers")))
    if isinstance(default, list):
        numbers = default and all(isinstance(each, (int, float)) for each in default)
        return optional(list_of(number() if numbers else anything(), f"a list such as {default}"))
    return None


def read_yaml(file) -> dict:
    """A yaml file, as RecBole reads it."""
    with open(file, encoding="utf-8") as stream:
        return yaml.load(stream, Loader=_YAML_LOADER) or {}


# -- the table -----------------------------------------------------------------------------------


@lru_cache(maxsize=1)
def common_rules() -> dict:
    """The rules of settings for every model, by key."""
    files = (
        RECBOLE / "properties" / "overall.yaml",
        RECBOLE / "properties" / "dataset" / "sample.yaml",
        PROPERTIES / "overall.yaml",
        PROPERTIES / "training.yaml",
    )
    derived = {key: rule for file in files for key, rule in derived_rules(file).items()}
    return {**derived, **WRITTEN}


@cache
def rules_of(model_class: type) -> dict:
    """The rules of all settings of a model, by key; a key that has none may be anything.

    A user's own class has those of the model that it is derived from.
    """
    rules = {}
    for base in reversed(model_class.__mro__):
        ours = PROPERTIES / "model" / f"{base.__name__}.yaml"
        recboles = RECBOLE / "properties" / "model" / f"{base.__name__}.yaml"
        package = base.__module__.split(".")[0]
        if package == "recbole_hydra" and ours.is_file():
            rules |= derived_rules(ours) | {
                key: rule for key, rule in WRITTEN_FOR_OURS.items() if key in read_yaml(ours)
            }
        elif package == "recbole" and recboles.is_file():
            rules |= lenient_rules(recboles)
    return {**rules, **common_rules()}


def is_path(rule) -> bool:
    """Whether a rule is that of a path, and None is none."""
    return getattr(rule, "kind", "") == "path" and "None" not in rule.words


def check(key: str, value, rules: dict, name: str | None = None):
    """Read the value of a setting by its rule.

    Args:
        key: of the setting. value: as the user wrote it.
        rules: those of :func:`rules_of`.
        name: what to call it in messages, if not by its key.

    Returns:
        The value as the run has it: numbers that were written as text are numbers, a list that was
        written with commas is one, ``~`` in a path is the home folder.

    Raises:
        ConfigError: the value is none that the setting may have.
    """
    rule = rules.get(key)
    return value if rule is None else rule(name or key, value)


def dataset_name(value, name="dataset") -> str:
    """Return ``value`` if it can be the name of a dataset, which is a folder in ``data_path``.

    Raises:
        ConfigError: it is a path, or no name.
    """
    value = text(f"a {name}'s name", empty=False)(name, value)
    if "/" in value or "\\" in value or value in (".", "..", "~"):
        folder = Path(home(value.replace("\\", "/")))
        hint = ""
        if folder.name not in ("", ".."):
            hint = f": --{name}={folder.name} --data_path={folder.parent}"
        raise ConfigError(
            f"{name}: {value!r} is a path, not a name; give the name, and in data_path the folder "
            f"that has the folder of that name{hint}"
        )
    return value
