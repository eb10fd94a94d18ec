"""Which keys there are: found in the sources that read them, so that none is listed by hand.

Nothing here imports torch or RecBole's modules: a mistyped key is told at once.
"""

import ast
import re
import warnings
from collections.abc import Collection, Iterable
from functools import lru_cache
from pathlib import Path

import recbole

from recbole_hydra.checks import did_you_mean

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

#: What the command lines could name beside settings: of a run, ``compare`` and ``tune``.
OPTIONS = {
    "run": ("resume", "saved"),
    "compare": (
        "models", "seeds", "output_dir", "resume", "model_config", "popularity", "latex", "split",
        "cut", "agreement_with",
    ),
    "tune": (
        "space", "num_samples", "search", "scheduler", "grace_period", "reduction_factor",
        "max_concurrent", "cpus_per_trial", "gpus_per_trial", "output_dir", "resume",
        "ray_address",
    ),
}  # fmt: skip

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

#: RecBole's models that are causal, by name; :mod:`recbole_hydra.model.causal` has the classes.
CAUSAL_MODELS = ("SASRec", "GRU4Rec", "SASRecF", "GRU4RecF", "FDSA")

#: Settings of the loss, and of what is learned on top of the scores, of every causal model; their
#: defaults are in ``properties/model/CausalRecommender.yaml``.
OF_CAUSAL_MODELS = (
    "repeat_bias", "history_as_one", "num_negatives", "negative_distribution", "logq_correction",
    "gbce_t",
)  # fmt: skip

#: Whom they are for, in words.
FOR_CAUSAL_MODELS = (
    f"for causal models (Hydra, Mamba4Rec, {', '.join(CAUSAL_MODELS)}, your own, and those that "
    "causal_models names)"
)

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

#: A line that begins with a key.
_YAML_KEY = re.compile(r"^([\w-]+)\s*:", re.MULTILINE)

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
    keys: set[str] = set()
    for path in (RECBOLE / "model").rglob("*.py"):
        keys |= keys_in(path.read_text(encoding="utf-8"))
    for folder in (RECBOLE / "properties" / "model", PROPERTIES / "model"):
        for path in folder.glob("*.yaml"):
            keys |= keys_of_yaml(path)
    return frozenset(keys)


def keys_of_yaml(path: Path) -> set[str]:
    """The top-level keys of a yaml file of RecBole's or ours."""
    return set(_YAML_KEY.findall(path.read_text(encoding="utf-8")))


@lru_cache(maxsize=1)
def computed_keys() -> frozenset[str]:
    """Keys that RecBole writes into its Config whatever the user has set there: all that it writes
    and has no default for in its yaml."""
    files = [RECBOLE / "config" / "configurator.py", *(RECBOLE / "data").rglob("*.py")]
    sources = [path.read_text(encoding="utf-8") for path in files]
    written = {key for text in sources for key in _WRITES_KEY.findall(text)}
    for key in [key for key in written if "{" in key]:  # f"{phase}_neg_sample_args"
        written.remove(key)
        written |= {re.sub(r"{\w+}", phase, key) for phase in ("valid", "test")}
    settings = {"verbose", *RUN_KEYS}
    for name in ("overall", "dataset/sample"):
        path = RECBOLE / "properties" / f"{name}.yaml"
        settings |= keys_of_yaml(path)
    return frozenset(written - settings)


class ReadKeys:
    """The keys that a run reads, and what to say of others.

    Args:
        model: its name. source: of its class; None where it cannot be found.
        defaults: keys that have a default, or that RecBole lists.
        options: what a command line could name beside settings, for hints.
    """

    def __init__(
        self,
        model: str,
        source: str | None,
        defaults: Iterable[str],
        options: Collection[str] = (),
    ) -> None:
        self.model, self.options = model, options
        self._model_is_unread = source is None
        # RecBole lists config_file, and reads config_files.
        self._keys = ({*defaults} - {"config_file"}) | RUN_KEYS | keys_recbole_reads()
        self._keys |= keys_in(source or "")

    def problem(self, key: str) -> str | None:
        """Say that nothing reads ``key``, or that only other models do, with the nearest key that
        is read, or that it cannot be set; None where it is read."""
        if key in computed_keys():
            why = _COMPUTED_FROM.get(key, "other settings")
            return f"computed key {key!r}: it follows from {why}; set that"
        if key in self._keys:
            return None
        if key in OF_CAUSAL_MODELS and not self._model_is_unread:
            return f"{self.model} does not read {key!r}, which is {FOR_CAUSAL_MODELS}"
        hint = did_you_mean(key, {*self.options, *self._keys} - computed_keys())
        if key in self.options:
            hint = f"; it is an argument of its own, --{key} on the command line"
        elif key in RENAMED:
            return f"unknown key {key!r}; RecBole has {RENAMED[key]!r} for it today"
        if not self._model_is_unread and key not in keys_of_other_models():
            return f"unknown key {key!r}{hint}"
        return f"{self.model} does not read {key!r}{hint}"


# -- the keys of a run, before it is imported ------------------------------------------------------

#: RecBole's folders of models, in the order in which it looks into them, and the defaults that
#: those have beside their own, in ``properties/quick_start_config``.
_FOLDERS = {
    "general_recommender": (),
    "context_aware_recommender": ("context-aware",),
    "sequential_recommender": ("sequential",),
    "knowledge_aware_recommender": ("knowledge_base",),
    "exlib_recommender": ("context-aware",),
}

#: Sequential models that have others.
_OWN_DEFAULTS = {
    **dict.fromkeys(("DIN", "DIEN"), ("sequential_DIN",)),
    **dict.fromkeys(("GRU4RecKG", "KSR"), ("sequential_embedding_model",)),
}

#: Those that RecBole has for its ml-100k on top.
_OF_ML_100K = {
    **dict.fromkeys(("DIN", "DIEN"), "sequential_DIN_on_ml-100k"),
    **dict.fromkeys(
        ("GRU4RecF", "SASRecF", "FDSA", "S3Rec"), "special_sequential_on_ml-100k"
    ),
}  # fmt: skip


def read_keys(model: str, dataset: str, options: Collection[str] = ()) -> ReadKeys | None:
    """The keys that a run reads, from the files of its model; nothing of them is imported.

    They are those that :class:`~recbole_hydra.settings.config.Config` finds when it is made.

    Args:
        model: name of a model of RecBole's or ours. dataset: name. options: see :class:`ReadKeys`.

    Returns:
        None for a model that cannot be found by its name.
    """
    found = _model_file(model)
    if found is None:
        return None
    file, folder = found
    bases = _sources_of_class(model, file)
    if bases is None:
        return None
    own = _OWN_DEFAULTS.get(model, _FOLDERS[folder])
    if dataset == "ml-100k":
        clicks = ("context-aware_ml-100k",) if own == ("context-aware",) else ()
        own = (*own, *clicks, *filter(None, [_OF_ML_100K.get(model)]))
    properties = RECBOLE / "properties"
    files = [
        properties / "overall.yaml",
        properties / "model" / f"{model}.yaml",
        properties / "dataset" / "sample.yaml",
        properties / "dataset" / f"{dataset}.yaml",
        *(properties / "quick_start_config" / f"{name}.yaml" for name in own),
        PROPERTIES / "training.yaml",
        *(PROPERTIES / "model" / f"{name}.yaml" for name in bases),
        PROPERTIES / "dataset" / f"{dataset}.yaml",
    ]
    if own[:1] != ("context-aware",) and own[:1] != ("sequential_DIN",):
        files.append(PROPERTIES / "overall.yaml")  # models that predict clicks keep RecBole's
    keys = {key for path in files if path.is_file() for key in keys_of_yaml(path)}
    keys |= {*OF_CAUSAL_MODELS} if model in CAUSAL_MODELS else set()
    listed = _parsed((RECBOLE / "utils" / "argument_list.py").read_text(encoding="utf-8"))
    for node in listed.body:
        if isinstance(node, ast.Assign):
            keys |= set(ast.literal_eval(node.value))
    return ReadKeys(model, "\n".join(bases.values()), {*keys, "MODEL_TYPE"}, options)


def _parsed(text: str) -> ast.Module:
    """A source as a tree; what Python would warn of in it is not ours to tell."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return ast.parse(text)


def _model_file(model: str) -> tuple[Path, str] | None:
    """The file of a model, and RecBole's folder for models of its kind; None where it has none."""
    ours = Path(__file__).parents[1] / "model" / "sequential_recommender" / f"{model.lower()}.py"
    if ours.is_file():
        return ours, "sequential_recommender"
    files = ((RECBOLE / "model" / name / f"{model.lower()}.py", name) for name in _FOLDERS)
    return next(((file, folder) for file, folder in files if file.is_file()), None)


def _sources_of_class(name: str, file: Path) -> dict[str, str] | None:
    """The sources of the module of a class and of those of its bases, by name of the class; None
    where the file does not define it."""
    text = file.read_text(encoding="utf-8")
    tree = _parsed(text)
    defined = {node.name: node for node in tree.body if isinstance(node, ast.ClassDef)}
    if name not in defined:
        return None
    imported = {
        alias.asname or alias.name: node.module
        for node in tree.body if isinstance(node, ast.ImportFrom) for alias in node.names
    }  # fmt: skip
    found = {name: text}
    for node in defined[name].bases:
        base = node.id if isinstance(node, ast.Name) else ""
        where = file if base in defined else _file_of_module(imported.get(base))
        found |= (_sources_of_class(base, where) if where else None) or {}
    return found


def _file_of_module(module: str | None) -> Path | None:
    """The file of a module of RecBole's or ours."""
    package, _, rest = (module or "").partition(".")
    root = {"recbole": RECBOLE, "recbole_hydra": Path(__file__).parents[1]}.get(package)
    if root is None:
        return None
    path = root.joinpath(*rest.split("."))
    return next((f for f in (path.with_suffix(".py"), path / "__init__.py") if f.is_file()), None)
