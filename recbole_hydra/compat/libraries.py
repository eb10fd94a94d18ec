"""What numpy, pandas and torch do that RecBole, and Ray, do not expect."""

import warnings
from types import ModuleType


def restore_numpy_aliases(module: ModuleType) -> None:
    """Put back ``np.float_``, ``np.complex_`` and ``np.unicode_``, removed in numpy 2.0.

    RecBole's ``Config.compatibility_settings`` reads them; ``module`` is that one's. Delete when
    RecBole does not.
    """
    import numpy as np

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


def anomaly_mode() -> bool:
    """Whether torch looks for anomalies in gradients."""
    import torch

    return torch.is_anomaly_enabled()


def leave_anomaly_mode(before: bool | None) -> None:
    """Undo ``torch.autograd.set_detect_anomaly(True)``, which RecBole's SINE calls when imported.

    All sequential models are imported together, so it holds for every run, and costs a stack trace
    per operation and a search for NaN per gradient: half of the time of a small step. Delete when
    SINE does not call it.

    Args:
        before: whether it was on before; None, where that is not known, counts as off.
    """
    import torch

    torch.autograd.set_detect_anomaly(bool(before))
