"""``learning_rate_decay``: the epochs over which the learning rates fall."""

from recbole_hydra.settings.rules import integer, optional

RULES = {"learning_rate_decay": optional(integer(least=1))}

#: Where they end, in parts of the learning rate.
LEAST_RATE = 0.02


def rate_left(decay: int | None, epoch: int) -> float:
    """What is left of a learning rate in an epoch, counted from 0: it falls linearly over the first
    ``decay`` epochs, to a fiftieth; with None it stays."""
    return 1.0 if decay is None else max(1.0 - epoch / decay, LEAST_RATE)
