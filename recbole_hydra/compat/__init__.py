"""All that exists only because of today's versions of RecBole's surroundings.

:func:`apply` runs when recbole_hydra is imported. It replaces methods of RecBole's classes and puts
back the numpy names RecBole reads; torch, scipy and pandas are left as they are (torch's anomaly
mode, which RecBole switches on, is off again; RecBole's reader of atomic files sees a pandas that
takes no quotes). One subject a file: :mod:`installing <recbole_hydra.compat.installing>`,
``libraries``, ``loading``, ``checkpoints``, ``sampling``, ``models``, ``imports``, ``ray``. Each
item says what it is for and when it can be deleted.
"""

from recbole_hydra import metrics
from recbole_hydra.compat import checkpoints, libraries, loading, sampling
from recbole_hydra.compat.installing import require_recbole


def apply() -> None:
    """Make RecBole 1.2.1 run on the libraries that are installed. Calling it twice is harmless.

    Raises:
        ImportError: RecBole is missing, or of another version.
    """
    require_recbole()
    libraries.restore_numpy_aliases()
    libraries.silence_warnings()
    libraries.keep_anomaly_mode_off()

    from recbole.trainer import Trainer

    if getattr(Trainer, "_recbole_hydra", False):
        return
    Trainer._recbole_hydra = True
    metrics.mend()
    for room in (loading, checkpoints, sampling):
        room.install()
