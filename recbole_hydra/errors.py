"""The errors a user of recbole_hydra can cause.

Every message is one line: what was wrong, where, and what to do. The command line prints just that
line; from Python the classes below can be caught, together as :class:`RecBoleHydraError`.
"""


class RecBoleHydraError(ValueError):
    """Base of all errors raised for bad input."""


class ConfigError(RecBoleHydraError):
    """A config key or value that cannot be used."""


class DatasetError(RecBoleHydraError):
    """A dataset that is missing, lacks a column, or is too small for the protocol."""


class CheckpointError(RecBoleHydraError):
    """A checkpoint that cannot be written, read, or trusted."""


class BackendError(RecBoleHydraError):
    """A named backend of an operation that is not available or does not fit the call."""


class BulkError(RecBoleHydraError):
    """A call for all users that cannot be made, or whose output is taken."""


class ExportError(RecBoleHydraError):
    """A model that cannot be exported, or whose folder is taken."""


class StoreError(RecBoleHydraError):
    """A store of users' states that cannot be opened, read or written."""


class ServeError(RecBoleHydraError):
    """A server that cannot be started as asked, or a request that it cannot answer now."""


class TrainingError(RecBoleHydraError):
    """Training that cannot go on, such as a loss that is not a number."""


class ComparisonError(RecBoleHydraError):
    """A comparison that cannot be made, or whose folder is taken."""


class TuneError(RecBoleHydraError):
    """A sweep that cannot be made, or whose folder is taken."""


def describe(error: BaseException) -> str:
    """An error in one line: its class and its message."""
    line = " ".join(str(error).split())
    return f"{type(error).__name__}: {line}" if line else type(error).__name__
