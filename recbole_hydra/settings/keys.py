"""Which keys there are: found in the sources that read them, so that none is listed by hand."""

import inspect
import re
from functools import lru_cache
from pathlib import Path

import recbole
import yaml
from recbole.config import Config as RecBoleConfig

#: The yaml of this package: beside the package in a checkout, inside it once installed.
PROPERTIES = next(
    folder
    for folder in (Path(__file__).parents[n] / "properties" for n in (1, 2))
    if folder.is_dir()
)

#: RecBole's package, whose sources say what it reads.
RECBOLE = Path(recbole.__file__).parent

#: Keys that RecBole's entry points read before there is a Config.
RUN_KEYS = {"model", "dataset", "config_files", "nproc", "world_size", "ip", "port", "offset"}

#: Keys of RecBole before 1.1, which nothing reads any more, and what does their work today.
RENAMED = {
    "neg_sampling": "train_neg_sample_args",
    "training_neg_sample_num": "train_neg_sample_args",
    "training_neg_sample_distribution": "train_neg_sample_args",
    "eval_setting": "eval_args",
    "split_ratio": "eval_args",
    "leave_one_num": "eval_args",
    "leave_one_out": "eval_args",
    "group_by_user": "eval_args",
    "eval_neg_sample_args": "eval_args",
    "real_time_process": "eval_args",
    "min_user_inter_num": "user_inter_num_interval",
    "max_user_inter_num": "user_inter_num_interval",
    "min_item_inter_num": "item_inter_num_interval",
    "max_item_inter_num": "item_inter_num_interval",
    "lowest_val": "val_interval",
    "highest_val": "val_interval",
    "equal_val": "val_interval",
    "not_equal_val": "val_interval",
    "fields_in_same_space": "alias_of_item_id",
    "drop_filter_field": "unused_col",
    "drop_preload_weight": "unused_col",
}

#: Why a key cannot be set, where its name does not say it.
_COMPUTED_FROM = {
    "device": "use_gpu and gpu_id",
    "eval_type": "metrics",
    "MODEL_INPUT_TYPE": "the model and its loss_type",
    "MODEL_TYPE": "the model",
    "valid_neg_sample_args": "eval_args, its mode",
    "test_neg_sample_args": "eval_args, its mode",
    "local_rank": "how many processes there are, which is one",
    "single_spec": "how many processes there are, which is one",
}

_READS_KEY = re.compile(
    r"""config\[\s*["'](\w+)["']\s*\]          # config["key"], self.config['key']
      | ["'](\w+)["']\s+(?:not\s+)?in\s+(?:self\.)?config\b   # "key" in config
      | config\.get\(\s*["'](\w+)["']          # config.get("key")
      | \.setting\(\s*["'](\w+)["']            # self.setting("key"), our models
    """,
    re.VERBOSE,
)

#: What writes a key into a Config, or into the dicts that it is made of.
_WRITES_KEY = re.compile(r"""config(?:_dict)?\[\s*f?["']([\w{}-]+)["']\s*\]\s*=[^=]""")


def keys_in(text: str) -> set[str]:
    """The keys that a source reads."""
    return {key for match in _READS_KEY.finditer(text) for key in match.groups() if key}


@lru_cache(maxsize=1)
def keys_recbole_reads() -> frozenset[str]:
    """Keys that RecBole reads for any model, listed in its yaml or not (``encoding``, ...)."""
    files = [path for path in RECBOLE.rglob("*.py") if path.parent.parent.name != "model"]
    return frozenset(key for path in files for key in keys_in(path.read_text(encoding="utf-8")))


@lru_cache(maxsize=1)
def keys_of_other_models() -> frozenset[str]:
    """Keys that some model of RecBole or of ours reads or has a default for."""
    keys = set()
    for path in (RECBOLE / "model").rglob("*.py"):
        keys |= keys_in(path.read_text(encoding="utf-8"))
    for folder in (RECBOLE / "properties" / "model", PROPERTIES / "model"):
        for path in folder.glob("*.yaml"):
            keys |= set(yaml.safe_load(path.read_text(encoding="utf-8")) or {})
    return frozenset(keys)


@lru_cache(maxsize=1)
def computed_keys() -> frozenset[str]:
    """Keys that RecBole writes into its Config whatever the user has set there: all that it writes
    and has no default for in its yaml."""
    sources = [inspect.getsource(RecBoleConfig)]
    sources += [path.read_text(encoding="utf-8") for path in (RECBOLE / "data").rglob("*.py")]
    written = {key for text in sources for key in _WRITES_KEY.findall(text)}
    for key in [key for key in written if "{" in key]:  # f"{phase}_neg_sample_args"
        written.remove(key)
        written |= {re.sub(r"{\w+}", phase, key) for phase in ("valid", "test")}
    settings = {"verbose", *RUN_KEYS}
    for name in ("overall", "dataset/sample"):
        path = RECBOLE / "properties" / f"{name}.yaml"
        settings |= set(yaml.safe_load(path.read_text(encoding="utf-8")))
    return frozenset(written - settings)


def why_computed(key: str) -> str:
    """What a computed key follows from, in words."""
    return f"it follows from {_COMPUTED_FROM.get(key, 'other settings')}"
