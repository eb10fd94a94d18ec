"""The causal depthwise convolution by torch's grouped convolution, on any device."""

import torch
import torch.nn.functional as F
from torch import Tensor


def causal_conv1d_torch(
    x: Tensor, weight: Tensor, bias: Tensor | None = None, initial_state: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """The convolution of :func:`.naive.causal_conv1d_naive`; same arguments and results."""
    length, width = x.shape[1], weight.shape[1]
    x = x.transpose(1, 2)  # (batch, channels, length), as torch's convolutions want it
    if initial_state is None:
        padded = F.pad(x, (width - 1, 0))
    else:
        padded = torch.cat([initial_state, x], dim=2)
    y = F.conv1d(padded, weight.unsqueeze(1), bias, groups=weight.shape[0])
    return y.transpose(1, 2), padded[..., length:]
