"""What numpy, pandas and torch do that RecBole, and Ray, do not expect."""

import importlib
import warnings

import numpy as np
import torch


def restore_numpy_aliases() -> None:
    """Put back ``np.float_``, ``np.complex_`` and ``np.unicode_``, removed in numpy 2.0.

    RecBole's ``Config.compatibility_settings`` reads them. Delete when RecBole does not.
    """
    for name, kind in (("float_", np.float64), ("complex_", np.complex128), ("unicode_", np.str_)):
        if name not in vars(np):
            setattr(np, name, kind)


def silence_warnings() -> None:
    """Hide the warnings that RecBole's and Ray's own lines cause, two dozen lines in every run.

    RecBole's announce pandas 3 and the end of ``torch.cuda.amp.GradScaler``, which our bounds on
    both libraries keep out. Delete when RecBole follows.
    """
    warnings.filterwarnings("ignore", category=FutureWarning, module=r"recbole\.")
    # Ray 2.6 reads pkg_resources, which our bound on setuptools keeps.
    warnings.filterwarnings("ignore", "pkg_resources is deprecated", UserWarning, r"ray\.")


def keep_anomaly_mode_off() -> None:
    """Undo ``torch.autograd.set_detect_anomaly(True)``, which RecBole's SINE calls when imported.

    All sequential models are imported together, so it holds for every run, and costs a stack trace
    per operation and a search for NaN per gradient: half of the time of a small step. Who wants
    anomaly mode switches it on after importing this package. Delete when SINE does not call it.
    """
    importlib.import_module("recbole.model.sequential_recommender")
    torch.autograd.set_detect_anomaly(False)
