"""The log of a run."""

import logging
import sys
from pathlib import Path

from recbole.utils import init_logger

from recbole_hydra import threads
from recbole_hydra.errors import RecBoleHydraError
from recbole_hydra.settings.config import Config

logger = logging.getLogger(__name__)


def start_log(config: Config) -> None:
    """Open RecBole's log of a run, closing that of a run before it in this process.

    RecBole opens no log in a process whose logging is set up already, as a notebook's. There the
    log file is added to the handlers that the process has.
    """
    root_logger = logging.getLogger()
    for handler in getattr(start_log, "handlers", []):
        root_logger.removeHandler(handler)
        handler.close()
    foreign, root_logger.handlers = root_logger.handlers, []
    try:
        init_logger(config)
    except OSError as error:
        raise RecBoleHydraError(
            f"output folder {Path('log').absolute()}: cannot be written ({error.strerror}); run "
            "from another folder"
        ) from error
    finally:
        own = root_logger.handlers
        if foreign:
            own = [handler for handler in own if isinstance(handler, logging.FileHandler)]
        root_logger.handlers = foreign + own
        start_log.handlers = own  # type: ignore[attr-defined]
    root_logger.info(sys.argv)
    root_logger.info(config)
    for note in [*config.notes, *filter(None, [threads.advice()])]:
        logger.info(note)
