"""Cross-entropy of a linear layer, as the definition has it."""

import torch
import torch.nn.functional as F


def linear_cross_entropy_naive(hidden, weight, target, added=None):
    """Mean of -log softmax(S)[target], S = hidden weight^T + added, and log sum exp(S), (n,), the
    latter without a gradient. Holds all (n, n_items) logits.

    ``added``: rows (ascending), items and values, (k,) each; no place twice.
    """
    logits = hidden @ weight.T
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    if added is not None:
        rows, items, values = added
        logits = logits.index_put((rows, items), values.to(logits.dtype), accumulate=True)
    return F.cross_entropy(logits, target), torch.logsumexp(logits.detach(), dim=1)
