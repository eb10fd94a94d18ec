"""The causal depthwise convolution as a sum of shifted inputs."""

import torch
from torch import Tensor


def causal_conv1d_naive(
    x: Tensor, weight: Tensor, bias: Tensor | None = None, initial_state: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Depthwise convolution whose output t sees x up to t; the specification of every backend.

    ::

        y_t = bias + sum_k weight[:, k] x_{t - width + 1 + k},    k = 0 .. width - 1

    with the ``width - 1`` inputs before the first taken from ``initial_state``, or zero. Any
    device, any floating dtype; autograd differentiates it. Shapes as in
    :func:`~recbole_hydra.ops.causal_conv1d.causal_conv1d`.

    Returns:
        ``(y, final_state)``, (batch, length, channels) and (batch, channels, width - 1).
    """
    batch, length, channels = x.shape
    width = weight.shape[1]
    if initial_state is None:
        initial_state = x.new_zeros(batch, channels, width - 1)
    padded = torch.cat([initial_state.transpose(1, 2), x], dim=1)  # (batch, width-1+length, ch)
    y: Tensor = sum(  # type: ignore[assignment]  # there is a first one
        weight[:, k] * padded[:, k : k + length] for k in range(width)
    )
    if bias is not None:
        y = y + bias
    return y, padded[:, length:].transpose(1, 2)
