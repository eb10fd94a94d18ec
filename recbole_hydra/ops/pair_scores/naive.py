"""The scores as their definition has them."""

from torch import Tensor


def pair_scores_naive(states: Tensor, table: Tensor, rows: Tensor, items: Tensor) -> Tensor:
    """<states[rows[k]], table[items[k]]> for every k."""
    return (states[rows] * table[items]).sum(-1)
