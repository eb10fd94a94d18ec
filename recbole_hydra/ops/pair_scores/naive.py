"""The scores as their definition has them."""


def pair_scores_naive(states, table, rows, items):
    """<states[rows[k]], table[items[k]]> for every k."""
    return (states[rows] * table[items]).sum(-1)
