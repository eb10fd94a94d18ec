"""The norm as its definition has it."""


def rms_norm_naive(x, weight, eps):
    """x / sqrt(mean(x^2) + eps) * weight, over the last dimension."""
    return x * (x.square().mean(-1, keepdim=True) + eps).rsqrt() * weight
