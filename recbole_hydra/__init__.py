"""State-space sequential recommenders for RecBole: Hydra and Mamba4Rec.

Importing the package makes RecBole 1.2.1 run on the libraries that are installed; see
:mod:`recbole_hydra.compat` for what that replaces, and :mod:`recbole_hydra.threads` for how threads
wait. The names below are imported when they are used (PEP 562): RecBole and torch take seconds.
"""

import importlib
import os
import sys
from typing import TYPE_CHECKING, Any

from recbole_hydra import threads

threads.prepare()  # before torch is imported

from recbole_hydra import compat  # noqa: E402
from recbole_hydra.compat.imports import after_import  # noqa: E402

compat.apply()

if TYPE_CHECKING:
    from recbole_hydra.model import Hydra, Mamba4Rec
    from recbole_hydra.model.causal import CausalRecommender, causal
    from recbole_hydra.model.items import Items
    from recbole_hydra.quick_start import load_data_and_model, run_recbole_hydra
    from recbole_hydra.serving.load import load_model
    from recbole_hydra.serving.new_items import add_items
    from recbole_hydra.serving.recommend import recommend
    from recbole_hydra.serving.recommender import Recommender
    from recbole_hydra.settings.config import Config, default_config

__version__ = "0.1.0"

__all__ = [
    "CausalRecommender",
    "Config",
    "Hydra",
    "Items",
    "Mamba4Rec",
    "Recommender",
    "add_items",
    "causal",
    "default_config",
    "load_data_and_model",
    "load_model",
    "recommend",
    "run_recbole_hydra",
]

#: The module of each public name.
_MODULES = {
    "CausalRecommender": "model.causal",
    "Items": "model.items",
    "causal": "model.causal",
    "Config": "settings.config",
    "Hydra": "model",
    "Mamba4Rec": "model",
    "Recommender": "serving.recommender",
    "add_items": "serving.new_items",
    "default_config": "settings.config",
    "load_data_and_model": "quick_start",
    "load_model": "serving.load",
    "recommend": "serving.recommend",
    "run_recbole_hydra": "quick_start",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"{__name__}.{_MODULES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


# -- what RecBole reads checkpoints and loaders with, for ours -----------------------------------


def _load_data_and_model(model_file: str | os.PathLike[str]) -> tuple:
    """RecBole's function of that name, reading our files; its own calls are by this keyword."""
    return __getattr__("load_data_and_model")(model_file)


def _mend_case_study(module: Any) -> None:
    from recbole_hydra.data.case_study import full_sort_scores, full_sort_topk

    module.full_sort_scores, module.full_sort_topk = full_sort_scores, full_sort_topk


def _mend_quick_start(module: Any) -> None:
    module.load_data_and_model = _load_data_and_model
    if "recbole.quick_start" in sys.modules:  # it takes the name from the module
        package: Any = sys.modules["recbole.quick_start"]
        package.load_data_and_model = _load_data_and_model


after_import("recbole.utils.case_study", _mend_case_study)
after_import("recbole.quick_start.quick_start", _mend_quick_start)
