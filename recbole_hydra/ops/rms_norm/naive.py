"""The norm as its definition has it."""

from torch import Tensor


def rms_norm_naive(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """x / sqrt(mean(x^2) + eps) * weight, over the last dimension."""
    return x * (x.square().mean(-1, keepdim=True) + eps).rsqrt() * weight
