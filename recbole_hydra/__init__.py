"""State-space sequential recommenders for RecBole: Hydra and Mamba4Rec.

Importing the package makes RecBole 1.2.1 run on the libraries that are installed; see
:mod:`recbole_hydra.compat` for what that replaces, and :mod:`recbole_hydra.threads` for how threads
wait.
"""

import sys

from recbole_hydra import threads

threads.prepare()  # before torch is imported

from recbole_hydra import compat  # noqa: E402
from recbole_hydra.compat.imports import replace_in  # noqa: E402

compat.apply()

from recbole_hydra.config import Config, default_config  # noqa: E402
from recbole_hydra.data.case_study import full_sort_scores, full_sort_topk  # noqa: E402
from recbole_hydra.model import Hydra, Mamba4Rec  # noqa: E402
from recbole_hydra.new_items import add_items  # noqa: E402
from recbole_hydra.quick_start import (  # noqa: E402
    load_data_and_model,
    load_model,
    run_recbole_hydra,
)
from recbole_hydra.recommend import recommend  # noqa: E402


def _load_data_and_model(model_file):
    """RecBole's function of that name, reading our files; its own calls are by this keyword."""
    return load_data_and_model(model_file)


# What RecBole reads checkpoints and loaders with, for ours.
replace_in(
    "recbole.utils.case_study", full_sort_scores=full_sort_scores, full_sort_topk=full_sort_topk
)
replace_in("recbole.quick_start.quick_start", load_data_and_model=_load_data_and_model)
if "recbole.quick_start" in sys.modules:  # else it takes the name from the module above
    replace_in("recbole.quick_start", load_data_and_model=_load_data_and_model)

__version__ = "0.1.0"

__all__ = [
    "Config",
    "Hydra",
    "Mamba4Rec",
    "add_items",
    "default_config",
    "load_data_and_model",
    "load_model",
    "recommend",
    "run_recbole_hydra",
]
