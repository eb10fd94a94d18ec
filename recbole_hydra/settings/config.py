"""RecBole's Config with our models, our defaults, and no key that goes unread unnoticed."""

import os
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import recbole
import yaml
from recbole.config import Config as RecBoleConfig
from recbole.evaluator import metric_types
from recbole.utils import EvaluatorType

from recbole_hydra.checks import did_you_mean
from recbole_hydra.errors import ConfigError, RecBoleHydraError
from recbole_hydra.model import get_model
from recbole_hydra.model.from_file import is_in_file
from recbole_hydra.model.gathered import without_our_losses
from recbole_hydra.settings import columns, domains, evaluation, ready_made_rows
from recbole_hydra.settings.adapt_from import settings_of_origin
from recbole_hydra.settings.known_keys import PROPERTIES, RECBOLE, ReadKeys
from recbole_hydra.settings.options import OPTIONS, fit, repeat_bias
from recbole_hydra.settings.rules import anything, dataset_name
from recbole_hydra.settings.spelling import home, parse_arguments, parse_value
from recbole_hydra.settings.table import check, common_rules, is_path, rules_of
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
        model: str | type | None = None,
        dataset: str | None = None,
        config_file_list: str | os.PathLike[str] | Sequence[str | os.PathLike[str]] | None = None,
        config_dict: Mapping[str, Any] | None = None,
        argv: Iterable[str] = (),
        settings: Mapping[str, Any] | None = None,
        options: Collection[str] = (),
    ) -> None:
        self.notes: list[str] = []
        self._options = options
        self._argv = list(argv)
        self._settings = settings or {}
        # (where, {key: value}) of every layer the user wrote, for messages
        self._sources: list[tuple[str, dict[str, Any]]] = []
        given = dict(config_dict) if config_dict else {}  # RecBole converts its own in place
        try:
            super().__init__(model, dataset, config_file_list, dict(given) or None)
            if self["domains"]:
                self._configs_of_domains(config_file_list, given)
        except RecBoleHydraError:
            raise
        except (ValueError, TypeError, KeyError, RuntimeError) as error:  # RecBole's own checks
            raise ConfigError(f"config: {' '.join(str(error).split())}") from error

    # -- the user's layers ---------------------------------------------------------------------

    def _load_config_files(
        self, file_list: str | os.PathLike[str] | Iterable[str | os.PathLike[str]] | None
    ) -> dict[str, Any]:
        merged: dict[str, Any] = {}
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

    def _load_variable_config_dict(self, config_dict: dict[str, Any] | None) -> dict[str, Any]:
        values = self._convert_config_dict(config_dict) if config_dict else {}
        self._sources.append(("config_dict", values))
        return values

    def _load_cmd_line(self) -> dict[str, Any]:
        values = self._convert_config_dict(parse_arguments(self._argv))
        self._sources.append(("command line", values))
        return values

    def _convert_config_dict(self, config_dict: Mapping[str, Any]) -> dict[str, Any]:
        return {key: self._convert(key, value) for key, value in config_dict.items()}

    @staticmethod
    def _convert(key: str, value: Any) -> Any:
        if not isinstance(value, str) or key in ("model", "dataset"):
            return value
        if value == "~" and is_path(common_rules().get(key)):
            return value  # the home folder: a setting that is always a path cannot be None
        return parse_value(value)

    def _get_model_and_dataset(
        self, model: str | type | None, dataset: str | None
    ) -> tuple[str, type, str]:
        model = model if model is not None else self.external_config_dict.get("model")
        dataset = dataset if dataset is not None else self.external_config_dict.get("dataset")
        together = self.external_config_dict.get("domains")
        if together is not None:
            together = check("domains", together, common_rules())
            dataset = domains.joint_name(together, dataset)
            self.external_config_dict["domains"] = together
        for name, value in (("model", model), ("dataset", dataset)):
            if value is None:
                raise ConfigError(f"{name}: not given; pass --{name}=NAME, or {name}= in Python")
        if isinstance(model, str):
            model_class = get_model(model)
            name = model_class.__name__ if is_in_file(model) else model
            return name, model_class, dataset_name(dataset)
        model = without_our_losses(model)  # they join it where the settings say so
        return model.__name__, model, dataset_name(dataset)

    def _configs_of_domains(
        self,
        files: str | os.PathLike[str] | Sequence[str | os.PathLike[str]] | None,
        config_dict: dict[str, Any],
    ) -> None:
        settings = {k: v for k, v in self._settings.items() if k not in domains.HIDDEN}

        def make_config(name: str, layers: dict[str, Any], argv: list[str]) -> Config:
            return Config(self.model_class, name, files, layers, argv, settings)

        domains.settings_of_each(self, make_config, config_dict, parse_arguments(self._argv))

    # -- the layers below them -----------------------------------------------------------------

    def _load_internal_config_dict(self, model: str, model_class: type, dataset: str) -> None:
        super()._load_internal_config_dict(model, model_class, dataset)
        # RecBole's defaults of models that predict clicks (AUC and the like) are their task; our
        # ranking protocol is for models that rank.
        metrics = {metric_types[name.lower()] for name in self.internal_config_dict["metrics"]}
        sample = self.internal_config_dict["load_col"]
        recbole_dataset = RECBOLE / "properties" / "dataset" / f"{dataset}.yaml"
        dataset_file = PROPERTIES / "dataset" / f"{dataset}.yaml"
        if metrics == {EvaluatorType.RANKING}:
            self._update_internal_config_dict(PROPERTIES / "overall.yaml")
        else:
            self.notes.append(
                f"{model} predicts clicks in RecBole's defaults: their evaluation is kept"
            )
        self._update_internal_config_dict(PROPERTIES / "training.yaml")
        # A user's own class has the defaults of the model that it is derived from.
        names = [base.__name__ for base in reversed(model_class.__mro__)]
        recboles = [RECBOLE / "properties" / "model" / f"{name}.yaml" for name in names[:-1]]
        ours = [PROPERTIES / "model" / f"{name}.yaml" for name in names]
        for file in (*recboles, *ours, dataset_file):
            if file.is_file():
                self._update_internal_config_dict(file)
        origin = self.external_config_dict.get("adapt_from")
        if origin is not None and "adapt_from" in self.internal_config_dict:
            origin = self.check_value("adapt_from", origin)
            self._settings = {**settings_of_origin(origin), **self._settings}
        self.internal_config_dict.update(self._settings)
        repeat_bias.add_defaults(self)
        self._known_columns = (
            recbole_dataset.is_file()
            or dataset_file.is_file()
            or self.internal_config_dict["load_col"] != sample
        )
        listed = {key for keys in self.parameters.values() for key in keys}
        defaults = {*self.internal_config_dict, *listed}
        self._read_keys = ReadKeys(model, source_of(model_class), defaults, self._options)
        self._check_keys()

    def _check_keys(self) -> None:
        """Refuse keys of the user's layers that nothing reads; note those only other models do."""
        for where, values in self._sources:
            for key in values:
                problem = self.unread_key(key)
                if problem is not None and problem.startswith(("unknown", "computed")):
                    raise ConfigError(f"{where}: {problem}")
                if problem is not None:
                    self.notes.append(f"{where}: {problem}")

    def unread_key(self, key: str) -> str | None:
        """What is wrong with a key of the user's; see :meth:`.ReadKeys.problem`."""
        return self._read_keys.problem(key)

    def check_value(self, key: str, value: Any) -> Any:
        """Read a value that the setting ``key`` could have instead; raises ConfigError for one that
        it cannot."""
        rules = rules_of(self.model_class)
        if key == "loss_type":
            rules = {key: repeat_bias.loss_rule(self, rules.get(key, anything()))}
        return check(key, value, rules)

    def _get_final_config_dict(self) -> dict[str, Any]:
        for key, value in self.external_config_dict.items():
            value = self.check_value(key, value)
            if key == "eval_args":
                value = {**self.internal_config_dict[key], **value}
            self.external_config_dict[key] = value
        final = super()._get_final_config_dict()
        if "item_encoder" not in self.internal_config_dict:
            final.pop("item_encoder", None)  # set for Hydra beside it; this model reads no text
        columns.choose(self, final, self._known_columns)
        for key in PATH_KEYS:
            path = final.get(key) and os.path.abspath(home(final[key]))
            if path and (os.path.exists(path) or key == "item_llm_cache"):
                final[key] = path  # otherwise it is a name, or not there, which is said later
        return final

    # -- values that depend on each other ------------------------------------------------------

    def _set_default_parameters(self) -> None:
        fit((ready_made_rows, *OPTIONS, evaluation, domains), self)
        data_path = self.final_config_dict["data_path"]
        super()._set_default_parameters()
        self.final_config_dict["data_path"] = self.folder_of(self.dataset, data_path)

    def chose(self, key: str) -> bool:
        """Whether the user wrote a setting, or the checkpoint that the run is of has it."""
        return key in self.external_config_dict or key in self._settings

    @staticmethod
    def folder_of(dataset: str, data_path: str) -> str:
        """The folder of a dataset's files: in ``data_path``, or RecBole's for its ml-100k.

        RecBole reads its own copy of ml-100k even where ``data_path`` has one.
        """
        folder = Path(data_path) / dataset
        if dataset == "ml-100k" and not (folder / "ml-100k.inter").is_file():
            folder = Path(recbole.__file__).parent / "dataset_example" / dataset
        return str(folder)

    def _init_device(self) -> None:
        visible = os.environ.get("CUDA_VISIBLE_DEVICES")
        if visible is not None and "gpu_id" not in self.external_config_dict:
            self.final_config_dict["gpu_id"] = visible  # a scheduler's assignment stands
        super()._init_device()
        if not self.final_config_dict["use_gpu"]:
            import torch

            self.final_config_dict["device"] = torch.device("cpu")
