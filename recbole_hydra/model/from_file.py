"""A model class of the user's own, named by its file: ``mine.py:MyModel``."""

from __future__ import annotations

import hashlib
import importlib.util
import os
import sys
from pathlib import Path
from types import ModuleType

from recbole.model.abstract_recommender import AbstractRecommender

from recbole_hydra.checks import did_you_mean
from recbole_hydra.errors import ConfigError, describe


def is_in_file(model: str) -> bool:
    """Whether ``model`` names a file and a class in it."""
    return ":" in model


def absolute(model: str) -> str:
    """The same name for a process that works in another folder."""
    if not is_in_file(model):
        return model
    file, _, name = model.rpartition(":")
    return f"{Path(os.path.expanduser(file)).absolute()}:{name}"


def class_in_file(model: str) -> type:
    """Return the class that ``FILE.py:NAME`` names; the file is run once.

    Raises:
        ConfigError: there is no such file or class, the file cannot be run, or the class is no
            recommender of RecBole's.
    """
    file, _, name = absolute(model).rpartition(":")
    if not Path(file).is_file():
        raise ConfigError(f"model: {model}: there is no file {file}")
    module = _module(Path(file))
    found = getattr(module, name, None)
    if found is None:
        classes = [key for key, value in vars(module).items() if _is_recommender(value)]
        raise ConfigError(f"model: {file} has no class {name!r}{did_you_mean(name, classes)}")
    if not _is_recommender(found):
        raise ConfigError(
            f"model: {name} of {file} is no recommender: let it be a subclass of "
            "CausalRecommender, or of one of RecBole's"
        )
    return found


def _is_recommender(value: object) -> bool:
    return isinstance(value, type) and issubclass(value, AbstractRecommender)


def _module(file: Path) -> ModuleType:
    """The file as a module, under a name of its own, so that its classes' source can be found."""
    digest = hashlib.blake2b(str(file).encode(), digest_size=4).hexdigest()
    name = f"recbole_hydra_file_{digest}_{file.stem}"
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, file)
    if spec is None or spec.loader is None:
        raise ConfigError(f"model: {file}: a model's file ends in .py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except Exception as error:  # whatever a file of the user's raises
        del sys.modules[name]
        raise ConfigError(f"model: {file} cannot be run ({describe(error)})") from error
    return module
