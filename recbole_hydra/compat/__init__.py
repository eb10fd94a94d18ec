"""All that exists only because of today's versions of RecBole's surroundings.

:func:`apply` runs when recbole_hydra is imported; each module of RecBole is mended when it is
imported, in that process, by whomever. Methods of RecBole's classes are replaced, and the numpy
names that RecBole reads put back; torch, scipy and pandas are left as they are (torch's anomaly
mode, which RecBole switches on, is left as it was; RecBole's reader of atomic files sees a pandas
that takes no quotes).

One subject a file: :mod:`installing <recbole_hydra.compat.installing>`, ``libraries``, ``loading``,
``checkpoints``, ``sampling``, ``models``, ``imports``, ``ray``. Each item says what it is for and
when it can be deleted.
"""

import functools
import importlib
from types import ModuleType

from recbole_hydra.compat.imports import after_import
from recbole_hydra.compat.installing import require_recbole
from recbole_hydra.compat.libraries import silence_warnings

#: What is mended: a module of RecBole, and the function of ours that does it.
MENDED = (
    ("recbole.config.configurator", "compat.libraries", "restore_numpy_aliases"),
    ("recbole.data.dataset.dataset", "compat.loading", "mend_datasets"),
    ("recbole.data.dataset.sequential_dataset", "compat.loading", "mend_sequential_datasets"),
    ("recbole.trainer.trainer", "compat.checkpoints", "mend_trainers"),
    ("recbole.sampler.sampler", "compat.sampling", "mend_samplers"),
    ("recbole.data.dataloader.abstract_dataloader", "compat.sampling", "mend_loaders"),
    ("recbole.data.dataloader.knowledge_dataloader", "compat.sampling", "mend_knowledge_loaders"),
    ("recbole.data.transform", "compat.sampling", "mend_transforms"),
    ("recbole.evaluator", "metrics", "mend"),
)


def apply() -> None:
    """Make RecBole 1.2.1 run on the libraries that are installed. Calling it twice is harmless.

    Raises:
        ImportError: RecBole is missing, or of another version.
    """
    require_recbole()
    silence_warnings()
    if apply.done:  # type: ignore[attr-defined]
        return
    apply.done = True  # type: ignore[attr-defined]
    for module, ours, function in MENDED:
        after_import(module, functools.partial(_mend, ours, function))
    sine = "recbole.model.sequential_recommender.sine"
    after_import(sine, _leave_anomaly_mode, before=_anomaly_mode)


#: Whether it has been called.
apply.done = False  # type: ignore[attr-defined]


def _mend(ours: str, function: str, module: ModuleType) -> None:
    """Mend a module of RecBole, once in its life."""
    done = vars(module).setdefault("_mended_by_recbole_hydra", set())
    if function not in done:
        done.add(function)
        getattr(importlib.import_module(f"recbole_hydra.{ours}"), function)(module)


def _anomaly_mode() -> bool:
    from recbole_hydra.compat import libraries

    return libraries.anomaly_mode()


def _leave_anomaly_mode(_: ModuleType, before: bool | None) -> None:
    from recbole_hydra.compat import libraries

    libraries.leave_anomaly_mode(before)
