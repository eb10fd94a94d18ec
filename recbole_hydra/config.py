"""RecBole's Config with our models, our defaults, and no key that goes unread unnoticed."""

import os
from pathlib import Path

import recbole
import yaml
from recbole.config import Config as RecBoleConfig
from recbole.evaluator import metric_types
from recbole.utils import EvaluatorType, InputType

from recbole_hydra import checkpoint
from recbole_hydra.checks import did_you_mean, one_of
from recbole_hydra.data.features import selected_features
from recbole_hydra.data.ready_made import use_lists
from recbole_hydra.data.splits import needs_times
from recbole_hydra.errors import ConfigError, RecBoleHydraError
from recbole_hydra.model import get_model
from recbole_hydra.model.causal import can_carry_state, is_causal
from recbole_hydra.settings.evaluation import check_evaluation
from recbole_hydra.settings.keys import (
    PROPERTIES,
    RENAMED,
    RUN_KEYS,
    computed_keys,
    keys_in,
    keys_of_other_models,
    keys_recbole_reads,
    why_computed,
)
from recbole_hydra.settings.parsing import home, parse_arguments, parse_value
from recbole_hydra.settings.values import (
    NO_SAMPLING,
    check,
    common_rules,
    dataset_name,
    is_path,
    rules_of,
)
from recbole_hydra.sources import source_of

#: Settings that must be the same in runs that are compared, since another value is another task.
PROTOCOL = (
    "eval_args", "repeatable", "metrics", "topk", "valid_metric", "data_path", "benchmark_filename",
    "USER_ID_FIELD", "ITEM_ID_FIELD", "TIME_FIELD", "RATING_FIELD", "field_separator",
    "user_inter_num_interval", "item_inter_num_interval", "filter_inter_by_user_or_item",
    "val_interval", "rm_dup_inter", "item_list_padding", "domains", "merge_users",
    "rank_all_items", "time_order",
)  # fmt: skip

#: Settings that name a file or folder of the user's, stored as absolute paths: runs of a comparison
#: or sweep work in folders of their own.
PATH_KEYS = ("item_llm", "item_llm_cache", "adapt_from")

#: What a domain may have of its own beside RecBole's settings of datasets.
_OF_A_DOMAIN = {"encoding", "item_text_fields", "item_prompt", "missing_item_text"}

#: What a domain's own Config may not bring into the joint one.
_NOT_OF_A_DOMAIN = {"dataset", "data_path", "domains", "domain_settings", "device"}

#: What a model that is adapted does not take over from its checkpoint: how to train, and data.
_NOT_OF_ORIGIN = {
    "loss_type", "train_neg_sample_args", "num_negatives", "negative_distribution",
    "logq_correction", "gbce_t", "scan_backend", "llm_learning_rate", "llm_gradient_checkpointing",
    "item_text_fields", "missing_item_text", "item_llm_cache", "adapt_from", "adapt",
    "learning_rate", "learning_rate_decay", "later_targets", "item_initialization",
    "cooccurrence_std",
}  # fmt: skip

#: What turns BPR's negative sampling on where nobody asked for another.
BPR_NEGATIVES = {"distribution": "uniform", "sample_num": 1}


def default_config(model: str) -> str:
    """Return the path of our default yaml of ``model``, for RecBole's own ``Config``::

        Config(model=Hydra, config_file_list=[default_config("Hydra"), "mine.yaml"])

    Raises:
        ConfigError: ``model`` is not one of this package's models.
    """
    path = PROPERTIES / "model" / f"{model}.yaml"
    if not path.is_file():
        known = sorted(p.stem for p in path.parent.glob("*.yaml"))
        hint = did_you_mean(model, known) or f"; there are defaults for {', '.join(known)}"
        raise ConfigError(f"default_config: no default configuration of {model!r}{hint}")
    return str(path)


class Config(RecBoleConfig):
    """RecBole's Config for our models and RecBole's, under our protocol.

    Layers, each over the one before: RecBole's yaml, ours (``properties/overall.yaml``,
    ``model/<model>.yaml``, ``dataset/<dataset>.yaml``), then the user's: files, dict, command line.
    Differences from RecBole's:

    - the command line is ``argv`` if given, never ``sys.argv``, which may be another program's;
    - a key that nothing reads is an error that names the nearest known key; one that only other
      models read is noted;
    - ``train_neg_sample_args`` follows ``loss_type`` unless the user wrote it;
    - ``training_mode: auto`` becomes the mode that fits the model;
    - keys missing from the user's ``eval_args`` keep their defaults;
    - lists may be written comma- or space-separated, and no value is evaluated as code;
    - ``domains`` may stand for ``dataset``; ``domain_settings`` then holds the settings that each
      has of its own, from its ``properties/dataset`` yaml or from the user;
    - ``use_gpu: False`` means the CPU, and ``CUDA_VISIBLE_DEVICES`` yields only to a ``gpu_id``
      that the user wrote.

    Args:
        model: name or class. dataset: name. Both may come from a layer instead.
        config_file_list: paths of yaml files, later ones over earlier ones.
        config_dict: values by key.
        argv: command-line arguments, ``["--learning_rate=0.01", ...]``.
        settings: those of a checkpoint; they go over our yaml, and the user's layers over them.
        options: what ``argv`` could have named beside settings, for hints.

    Attributes:
        notes: what was decided for the user, one line each, for the log of the run.

    Raises:
        ConfigError: an unknown model or key, a file or value that cannot be used.
    """

    def __init__(
        self,
        model=None,
        dataset=None,
        config_file_list=None,
        config_dict=None,
        argv=(),
        settings=None,
        options=(),
    ):
        self.notes = []
        self._options = options
        self._argv = list(argv)
        self._settings = settings or {}
        self._sources = []  # (where, {key: value}) of every layer the user wrote, for messages
        given = dict(config_dict) if config_dict else {}  # RecBole converts its own in place
        try:
            super().__init__(model, dataset, config_file_list, dict(given) or None)
            if self["domains"]:
                self._prepare_domains(config_file_list, given)
        except RecBoleHydraError:
            raise
        except (ValueError, TypeError, KeyError, RuntimeError) as error:  # RecBole's own checks
            raise ConfigError(f"config: {' '.join(str(error).split())}") from error

    # -- the user's layers ---------------------------------------------------------------------

    def _load_config_files(self, file_list):
        merged = {}
        if isinstance(file_list, (str, os.PathLike)):
            file_list = [file_list]
        for file in map(home, file_list or []):
            try:
                with open(file, encoding="utf-8") as stream:
                    values = yaml.load(stream, Loader=self.yaml_loader)
            except OSError as error:
                raise ConfigError(f"config file {file}: {error.strerror}") from error
            except yaml.YAMLError as error:
                line = " ".join(str(error).split())
                raise ConfigError(f"config file {file}: not valid yaml: {line}") from error
            if values is None:
                continue  # an empty file
            if not isinstance(values, dict):
                raise ConfigError(f"config file {file}: expected 'key: value' lines")
            self._sources.append((f"config file {file}", values))
            merged.update(values)
        return merged

    def _load_variable_config_dict(self, config_dict):
        values = self._convert_config_dict(config_dict) if config_dict else {}
        self._sources.append(("config_dict", values))
        return values

    def _load_cmd_line(self):
        values = self._convert_config_dict(parse_arguments(self._argv))
        self._sources.append(("command line", values))
        return values

    def _convert_config_dict(self, config_dict):
        return {key: self._convert(key, value) for key, value in config_dict.items()}

    @staticmethod
    def _convert(key, value):
        if not isinstance(value, str) or key in ("model", "dataset"):
            return value
        if value == "~" and is_path(common_rules().get(key)):
            return value  # the home folder: a setting that is always a path cannot be None
        return parse_value(value)

    def _get_model_and_dataset(self, model, dataset):
        model = model if model is not None else self.external_config_dict.get("model")
        dataset = dataset if dataset is not None else self.external_config_dict.get("dataset")
        dataset = self._joint_name(dataset)
        for name, value in (("model", model), ("dataset", dataset)):
            if value is None:
                raise ConfigError(f"{name}: not given; pass --{name}=NAME, or {name}= in Python")
        if isinstance(model, str):
            return model, get_model(model), dataset_name(dataset)
        return model.__name__, model, dataset_name(dataset)

    def _joint_name(self, dataset):
        """The name of the dataset that ``domains`` make together; without them ``dataset``."""
        domains = self.external_config_dict.get("domains")
        if domains is None:
            return dataset
        domains = check("domains", domains, common_rules())
        if not domains:
            raise ConfigError(f"domains must be a list of datasets, got {domains!r}")
        for name in domains:
            dataset_name(name, "domains")
            if domains.count(name) > 1:
                raise ConfigError(f"domains: {name} is listed twice")
        joint = "+".join(domains)
        if dataset not in (None, joint):
            raise ConfigError(
                f"dataset, domains: both are given, {dataset} and {', '.join(domains)}; remove one"
            )
        self.external_config_dict["domains"] = domains
        return joint

    # -- the layers below them -----------------------------------------------------------------

    def _load_internal_config_dict(self, model, model_class, dataset):
        super()._load_internal_config_dict(model, model_class, dataset)
        # RecBole's defaults of models that predict clicks (AUC and the like) are their task; our
        # ranking protocol is for models that rank.
        metrics = {metric_types[name.lower()] for name in self.internal_config_dict["metrics"]}
        sample = self.internal_config_dict["load_col"]
        recbole_dataset = (
            Path(recbole.__file__).parent / "properties" / "dataset" / f"{dataset}.yaml"
        )
        dataset_file = PROPERTIES / "dataset" / f"{dataset}.yaml"
        if metrics == {EvaluatorType.RANKING}:
            self._update_internal_config_dict(PROPERTIES / "overall.yaml")
        else:
            self.notes.append(
                f"{model} predicts clicks in RecBole's defaults: their evaluation is kept"
            )
        self._update_internal_config_dict(PROPERTIES / "training.yaml")
        # A user's own class has the defaults of the model of ours that it is derived from.
        names = [base.__name__ for base in reversed(model_class.__mro__)]
        for file in (*(PROPERTIES / "model" / f"{name}.yaml" for name in names), dataset_file):
            if file.is_file():
                self._update_internal_config_dict(file)
        self._settings = {**self._settings_of_origin(), **self._settings}
        self.internal_config_dict.update(self._settings)
        self._known_columns = (
            recbole_dataset.is_file()
            or dataset_file.is_file()
            or self.internal_config_dict["load_col"] != sample
        )
        listed = {key for keys in self.parameters.values() for key in keys}
        listed.discard("config_file")  # RecBole lists it, and reads config_files
        source = source_of(model_class)
        self._model_is_unread = source is None
        self._read_keys = set(self.internal_config_dict) | listed | RUN_KEYS | keys_recbole_reads()
        self._read_keys |= keys_in(source or "")
        self._check_keys()

    def _settings_of_origin(self) -> dict:
        """The settings that decide the form of the model that ``adapt_from`` names."""
        origin = self.external_config_dict.get("adapt_from")
        if origin is None or "adapt_from" not in self.internal_config_dict:
            return {}
        origin = self.check_value("adapt_from", origin)
        settings = checkpoint.load_checkpoint(origin)["config"]
        if "text" not in str(settings.get("item_encoder")):
            raise ConfigError(
                f"adapt_from: {origin} knows its items by their ids, which another dataset does "
                "not share; it takes a model with item_encoder text or id+text"
            )
        own = yaml.safe_load((PROPERTIES / "model" / "Hydra.yaml").read_text(encoding="utf-8"))
        return {key: settings[key] for key in own if key in settings and key not in _NOT_OF_ORIGIN}

    def _check_keys(self):
        """Refuse keys of the user's layers that nothing reads; note those only other models do."""
        for where, values in self._sources:
            for key in values:
                problem = self.unread_key(key)
                if problem is not None and problem.startswith(("unknown", "computed")):
                    raise ConfigError(f"{where}: {problem}")
                if problem is not None:
                    self.notes.append(f"{where}: {problem}")

    def unread_key(self, key: str) -> str | None:
        """Say that nothing reads ``key``, or that only other models do, with the nearest key that
        is read, or that it cannot be set; None where it is read."""
        if key in computed_keys():
            return f"computed key {key!r}: {why_computed(key)}; set that"
        if key in self._read_keys:
            return None
        hint = did_you_mean(key, {*self._options, *self._read_keys} - computed_keys())
        if key in self._options:
            hint = f"; it is an argument of its own, --{key} on the command line"
        elif key in RENAMED:
            return f"unknown key {key!r}; RecBole has {RENAMED[key]!r} for it today"
        if not self._model_is_unread and key not in keys_of_other_models():
            return f"unknown key {key!r}{hint}"
        return f"{self.model} does not read {key!r}{hint}"

    def check_value(self, key: str, value):
        """Read a value that the setting ``key`` could have instead; raises ConfigError for one that
        it cannot."""
        return check(key, value, rules_of(self.model_class))

    def _get_final_config_dict(self):
        rules = rules_of(self.model_class)
        for key, value in self.external_config_dict.items():
            value = check(key, value, rules)
            if key == "eval_args":
                value = {**self.internal_config_dict[key], **value}
            self.external_config_dict[key] = value
        final = super()._get_final_config_dict()
        if needs_times(final["eval_args"]):
            self._choose_columns(final)
        if "item_encoder" not in self.internal_config_dict:
            final.pop("item_encoder", None)  # set for Hydra beside it; this model reads no text
        self._choose_feature_columns(final)
        self._choose_item_column(final)
        for key in PATH_KEYS:
            path = final.get(key) and os.path.abspath(home(final[key]))
            if path and (os.path.exists(path) or key == "item_llm_cache"):
                final[key] = path  # otherwise it is a name, or not there, which is said later
        return final

    def _choose_columns(self, final):
        """Load users, items and times where neither the user nor a dataset's yaml names columns.

        RecBole's default leaves the time column out, without which nothing can be ordered.
        """
        if "load_col" in self.external_config_dict or self._known_columns:
            return
        if final["benchmark_filename"]:  # ready-made rows have columns of their own
            final["load_col"] = None
            self.notes.append("load_col is not set: loading all columns of benchmark_filename")
            return
        columns = [final[f"{name}_FIELD"] for name in ("USER_ID", "ITEM_ID", "TIME")]
        final["load_col"] = {"inter": list(dict.fromkeys(columns))}
        self.notes.append(f"load_col is not set: loading {final['load_col']}")

    def _choose_feature_columns(self, final):
        """Load the item columns that the model is told to read, which no default of RecBole's
        does."""
        features, columns = selected_features(final, self.model_class), final["load_col"]
        if not features or final.get("domains") or not isinstance(columns, dict):
            return
        loaded = columns.get("item") or []
        missing = [name for name in features if name not in loaded]
        if missing and loaded != "*":
            ids = [name for name in [final["ITEM_ID_FIELD"]] if name not in [*loaded, *missing]]
            final["load_col"] = {**columns, "item": [*ids, *loaded, *missing]}
            self.notes.append(f"load_col: loading {', '.join(missing)} of the items, too")

    def _choose_item_column(self, final):
        """Resolve ``rank_all_items: ~``, and load the ids of the ``.item`` file for it."""
        columns, item_id = final["load_col"], final["ITEM_ID_FIELD"]
        if final["rank_all_items"] is None:
            final["rank_all_items"] = "text" in str(final.get("item_encoder"))
        loaded = (columns.get("item") or []) if isinstance(columns, dict) else [item_id]
        if final["rank_all_items"] and item_id not in loaded:
            final["load_col"] = {**columns, "item": [item_id, *loaded]}
            self.notes.append("rank_all_items: all items of the .item file are candidates")

    # -- values that depend on each other ------------------------------------------------------

    def _set_default_parameters(self):
        self._use_ready_made_rows()
        self._choose_training_mode()
        self._fit_item_initialization()
        self._choose_loss_of_text()
        self._fit_negative_sampling()
        self._fit_later_targets()
        self._check_learner()
        check_evaluation(self.final_config_dict, self.external_config_dict)
        if self.final_config_dict["domains"]:
            self._check_domains()
        data_path = self.final_config_dict["data_path"]
        super()._set_default_parameters()
        self.final_config_dict["data_path"] = self.folder_of(self.dataset, data_path)

    @staticmethod
    def folder_of(dataset: str, data_path: str) -> str:
        """The folder of a dataset's files: in ``data_path``, or RecBole's for its ml-100k.

        RecBole reads its own copy of ml-100k even where ``data_path`` has one.
        """
        folder = Path(data_path) / dataset
        if dataset == "ml-100k" and not (folder / "ml-100k.inter").is_file():
            folder = Path(recbole.__file__).parent / "dataset_example" / dataset
        return str(folder)

    def _choose_loss_of_text(self):
        """A loss over the whole catalogue is not for an item LLM that is trained."""
        final = self.final_config_dict
        if "text" not in str(final.get("item_encoder")) or final["llm_training"] == "frozen":
            return
        kept = final["adapt_from"] and "lora" not in (final["adapt"] or [])
        chosen = "loss_type" in self.external_config_dict or "loss_type" in self._settings
        if final["loss_type"] == "CE" and not chosen and not kept:
            final["loss_type"] = "SampledCE"
            self.notes.append(
                "loss_type: SampledCE, since CE would send every item of the catalogue through the "
                f"LLM in every step (llm_training {final['llm_training']})"
            )

    def _check_domains(self):
        """Refuse settings that several domains at once cannot have."""
        final = self.final_config_dict
        temperature = final["domain_temperature"]
        if temperature > 1 and (final["training_mode"] != "autoregressive" or final["carry_state"]):
            raise ConfigError(
                "domain_temperature: above 1 it is for training_mode autoregressive without "
                "carry_state; remove one"
            )
        if final["merge_users"] and final.get("user_model") == "per_domain":
            raise ConfigError(
                "merge_users, user_model: one timeline over all domains goes through one user "
                "model; set user_model: shared"
            )
        if final.get("loss_type") == "BPR":
            raise ConfigError(
                "loss_type: RecBole draws BPR's negatives from all domains, which tells nothing "
                "within one; use CE, SampledCE or gBCE"
            )
        if final["benchmark_filename"]:
            raise ConfigError("benchmark_filename: several domains are split anew; remove it")
        mode = final["eval_args"]["mode"]
        if {*(mode.values() if isinstance(mode, dict) else [mode])} != {"full"}:
            raise ConfigError(
                f"eval_args: mode {mode}: with several domains a target is "
                "ranked among all items of its domain; remove it"
            )

    def _prepare_domains(self, files, config_dict):
        """Make the Config of every domain, and keep what it has of its own."""
        final, own = self.final_config_dict, {}
        written = final["domain_settings"] or {}
        for name in written:
            if name not in final["domains"]:
                hint = did_you_mean(name, final["domains"])
                raise ConfigError(f"domain_settings: {name!r} is not among the domains{hint}")
        asked = self.external_config_dict.get("domain_settings") or {}
        loading = {*self.parameters["Dataset"], *_OF_A_DOMAIN} - {"MAX_ITEM_LIST_LENGTH"}
        for name, keys in asked.items():
            for key in keys or {}:
                if key not in loading:
                    raise ConfigError(
                        f"domain_settings: {key} of {name}: a domain has settings of its own for "
                        "how its files are read; set it for all"
                    )
        hidden = ("domains", "domain_settings", "dataset")
        argv = [f"--{k}={v}" for k, v in parse_arguments(self._argv).items() if k not in hidden]
        common = {key: value for key, value in config_dict.items() if key not in hidden}
        settings = {k: v for k, v in self._settings.items() if k not in hidden}
        model = self.model_class
        for name in final["domains"]:
            layers = {**common, "domains": None, **(written.get(name) or {})}
            domain = Config(model, name, files, layers, argv, settings)
            own[name] = {
                key: value
                for key, value in domain.final_config_dict.items()
                if key not in _NOT_OF_A_DOMAIN and final.get(key) != value
            }
            self.notes += [f"{name}: {n}" for n in domain.notes if n not in self.notes]
        final["domain_settings"] = own

    def _use_ready_made_rows(self):
        """Fit the settings to rows that the dataset's files hold ready-made."""
        final = self.final_config_dict
        final["dataset"] = self.dataset
        if final["item_list_padding"] in (None, False):
            final["item_list_padding"] = "none"
        if final["domains"]:
            return
        self.notes += use_lists(self, self.folder_of(self.dataset, final["data_path"]))

    def _choose_training_mode(self):
        """Resolve ``training_mode: auto`` and ``window_overlap: ~``; check what belongs to them."""
        final, name = self.final_config_dict, self.model
        mode = final["training_mode"]
        causal = is_causal(self.model_class)
        if mode == "autoregressive" and not causal:
            raise ConfigError(
                f"training_mode: autoregressive is for Hydra, Mamba4Rec, SASRec and GRU4Rec, which "
                f"are known to be causal, not for {name}; use auto or augmentation"
            )
        if mode == "auto":
            mode = "autoregressive" if causal else "augmentation"
            self.notes.append(
                f"training_mode: autoregressive, every position of whole histories ({name})"
                if causal
                else f"training_mode: RecBole's own training, since {name} is not among the causal "
                "models Hydra, Mamba4Rec, SASRec and GRU4Rec"
            )
        final["training_mode"] = mode
        if final["carry_state"]:
            if not can_carry_state(self.model_class):
                raise ConfigError(
                    f"carry_state: {name} has no state to carry; Hydra and Mamba4Rec have"
                )
            if mode != "autoregressive":
                raise ConfigError(
                    f"carry_state needs training_mode autoregressive, got {mode}; remove one"
                )
            if self.external_config_dict.get("window_overlap") is not None:
                raise ConfigError(
                    "window_overlap, carry_state: windows that carry the state do not overlap; "
                    "remove one of them"
                )
        size, overlap = final.get("MAX_ITEM_LIST_LENGTH"), final["window_overlap"]
        if overlap is None:
            return
        if mode != "autoregressive":
            self.notes.append("window_overlap is not used: training_mode is not autoregressive")
        elif overlap > size:
            raise ConfigError(
                f"window_overlap must be an integer in 0 .. MAX_ITEM_LIST_LENGTH ({size}), or ~ "
                f"for half of it, got {overlap!r}"
            )

    def _fit_item_initialization(self):
        """Check ``item_initialization``; a default that the run cannot use is dropped."""
        final = self.final_config_dict
        if final["item_initialization"] == "normal":
            return
        if not is_causal(self.model_class):
            why = (
                "cooccurrence is for Hydra, Mamba4Rec, SASRec and GRU4Rec, whose item embeddings "
                f"are known, not for {self.model}"
            )
        elif "text" in str(final.get("item_encoder")):
            why = "cooccurrence is for item_encoder id; with texts, items start from them"
        else:
            return
        if self.external_config_dict.get("item_initialization") is not None:
            raise ConfigError(f"item_initialization: {why}; use normal")
        self.notes.append(f"item_initialization: normal; {why}")
        final["item_initialization"] = "normal"

    def _fit_later_targets(self):
        """Check ``later_targets``; a default that the run cannot use is dropped."""
        final = self.final_config_dict
        weights = final["later_targets"] or []
        fits = final["training_mode"] == "autoregressive" and final.get("loss_type", "CE") == "CE"
        if weights and not fits:
            if self.external_config_dict.get("later_targets"):
                raise ConfigError(
                    "later_targets are for training_mode autoregressive and loss_type CE, not for "
                    f"{final['training_mode']} and {final.get('loss_type')}; remove them"
                )
            self.notes.append("later_targets are not used: they are for autoregressive, CE")
            weights = []
        final["later_targets"] = weights

    def _fit_negative_sampling(self):
        """Make ``train_neg_sample_args`` fit ``loss_type``, for models that train on either."""
        final = self.final_config_dict
        if hasattr(self.model_class, "input_type") or "loss_type" not in final:
            self._check_pairs()
            return
        loss_types = getattr(self.model_class, "LOSS_TYPES", ("CE", "BPR"))
        loss_type = one_of("loss_type", final["loss_type"], loss_types)
        if loss_type not in ("CE", "BPR"):
            final["MODEL_INPUT_TYPE"] = InputType.POINTWISE  # RecBole knows only those two
        written = "train_neg_sample_args" in self.external_config_dict
        sampling = final.get("train_neg_sample_args")
        if isinstance(sampling, dict) and sampling.get("distribution") in NO_SAMPLING:
            sampling = None
        if sampling in NO_SAMPLING:
            sampling = None
        if written and (loss_type != "BPR") != (sampling is None):
            remedy = {
                "CE": "CE ranks all items and takes no negatives: remove train_neg_sample_args",
                "BPR": f"BPR needs negatives: remove it, or set {BPR_NEGATIVES}",
            }.get(loss_type, "it is for BPR alone: remove it, and set num_negatives")
            raise ConfigError(
                f"train_neg_sample_args: {sampling} contradicts loss_type {loss_type}; {remedy}"
            )
        if loss_type != "BPR" and sampling is not None:
            self.notes.append(
                f"train_neg_sample_args is set to none, since loss_type is {loss_type}"
            )
            sampling = None
        elif loss_type == "BPR" and sampling is None:
            sampling = dict(BPR_NEGATIVES)
            self.notes.append(f"train_neg_sample_args is set to {sampling}, since loss_type is BPR")
        final["train_neg_sample_args"] = sampling

    def _check_pairs(self):
        """Refuse to leave out the negatives of a model that learns from pairs."""
        final, pairwise = self.final_config_dict, InputType.PAIRWISE
        sampling = final["train_neg_sample_args"]
        sampling = sampling["distribution"] if isinstance(sampling, dict) else sampling
        if sampling in NO_SAMPLING and getattr(self.model_class, "input_type", None) == pairwise:
            raise ConfigError(
                f"train_neg_sample_args: {self.model} learns from pairs and needs negatives: "
                f"remove it, or set {BPR_NEGATIVES}"
            )

    def _check_learner(self):
        """Refuse sparse_adam, which torch has for sparse gradients alone, where there are none."""
        learner = self.final_config_dict["learner"].lower()
        source = source_of(self.model_class)
        if learner == "sparse_adam" and source is not None and "sparse=True" not in source:
            raise ConfigError(
                "learner: sparse_adam is for sparse gradients, and those of "
                f"{self.model} are dense; use adam"
            )

    def _init_device(self):
        visible = os.environ.get("CUDA_VISIBLE_DEVICES")
        if visible is not None and "gpu_id" not in self.external_config_dict:
            self.final_config_dict["gpu_id"] = visible  # a scheduler's assignment stands
        super()._init_device()
        if not self.final_config_dict["use_gpu"]:
            import torch

            self.final_config_dict["device"] = torch.device("cpu")
