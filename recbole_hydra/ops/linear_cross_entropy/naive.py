"""Cross-entropy of a linear layer, as the definition has it."""

import torch
import torch.nn.functional as F


def linear_cross_entropy_naive(hidden, weight, target, offsets=None):
    """Mean of -log softmax(hidden weight^T + offsets)[target]; holds all (n, n_items) logits."""
    logits = hidden @ weight.T
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    return F.cross_entropy(logits if offsets is None else offsets.added_to(logits), target)
