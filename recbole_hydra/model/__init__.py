"""Models by name: ours first, then RecBole's."""

import importlib
from functools import lru_cache
from pathlib import Path

import recbole
from recbole.utils import get_model as get_recbole_model

from recbole_hydra.checks import did_you_mean
from recbole_hydra.compat.models import repair_model_module
from recbole_hydra.errors import ConfigError
from recbole_hydra.model.from_file import class_in_file, is_in_file
from recbole_hydra.model.recent_pop import RecentPop
from recbole_hydra.model.sequential_recommender import Hydra, LinearMap, Mamba4Rec

#: The models of this package.
MODELS = {"Hydra": Hydra, "Mamba4Rec": Mamba4Rec}

#: Baselines that RecBole does not have.
BASELINES = {"LinearMap": LinearMap, "RecentPop": RecentPop}


@lru_cache(maxsize=1)
def recbole_model_names() -> tuple[str, ...]:
    """The names of RecBole's models, read off its default yaml files."""
    folder = Path(recbole.__file__).parent / "properties" / "model"
    return tuple(sorted(path.stem for path in folder.glob("*.yaml")))


def get_model(name: str) -> type:
    """Return the model class called ``name``, as RecBole's ``get_model`` does for its own, or that
    in a file, ``mine.py:MyModel``.

    Raises:
        ConfigError: no such model (the nearest name is offered), or one that needs a library which
            is not installed; or as :func:`~recbole_hydra.model.from_file.class_in_file`.
    """
    if is_in_file(name):
        return class_in_file(name)
    if name in MODELS or name in BASELINES:
        return {**MODELS, **BASELINES}[name]
    try:
        model = get_recbole_model(name)
    except (ValueError, AttributeError, ImportError) as error:
        if isinstance(error, ImportError) and name in recbole_model_names():
            raise ConfigError(f"model: {name} needs a library: {error}; pip install it") from error
        hint = did_you_mean(name, [*MODELS, *BASELINES, *recbole_model_names()])
        hint = hint or "; one of your own is named with its file, FILE.py:NAME"
        raise ConfigError(f"model: there is no model {name!r}{hint}") from None
    repair_model_module(importlib.import_module(model.__module__))
    return model
