"""Cross-entropy of a linear layer, as the definition has it."""

import torch
import torch.nn.functional as F


def linear_cross_entropy_naive(hidden, weight, target):
    """Mean of -log softmax(hidden weight^T)[target], and log sum exp(hidden weight^T), (n,), the
    latter without a gradient. Holds all (n, n_items) logits."""
    logits = hidden @ weight.T
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    return F.cross_entropy(logits, target), torch.logsumexp(logits.detach(), dim=1)
