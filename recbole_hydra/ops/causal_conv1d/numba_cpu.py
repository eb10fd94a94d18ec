"""The causal depthwise convolution and SiLU on the CPU, float32, in one sweep.

torch's grouped convolution wants (batch, channels, length), a copy each way, and its backward pass
takes as long as the scan's. Here sixteen neighbouring channels are one vector
(:mod:`recbole_hydra.ops.simd`), and the inputs of an output are read where they lie.
"""

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numba import njit, prange
from torch import Tensor
from torch.autograd.function import once_differentiable

from recbole_hydra.ops.numba_support import compiled, use_torch_threads
from recbole_hydra.ops.simd import LANES, fma, load, sigmoid, store

# Arrays are flat: x and gx are (batch, width - 1 + length, channels), the state in front; y and gy
# (batch, length, channels); weight (width, channels). Channels are a multiple of LANES.


@njit(inline="always")
def _before_silu(
    x: np.ndarray, at: int, c: int, channels: int, width: int, weight: np.ndarray, bias: np.ndarray
) -> Any:
    """bias + sum_k weight_k x_(t + k); ``at`` is the offset of x_t at channel ``c``."""
    s = load(bias, c)
    for k in range(width):
        s = fma(load(weight, k * channels + c), load(x, at + k * channels), s)
    return s


@compiled
def _forward(
    sizes: tuple[int, ...], x: np.ndarray, weight: np.ndarray, bias: np.ndarray, y: np.ndarray
) -> None:
    batch, _, channels, _, _, block = sizes
    for task in prange(batch * (channels // block)):
        b, begin = task // (channels // block), task % (channels // block) * block
        _forward_task(b, begin, sizes, x, weight, bias, y)


@njit
def _forward_task(
    b: int, begin: int, sizes: tuple[int, ...], x: np.ndarray, weight: np.ndarray,
    bias: np.ndarray, y: np.ndarray,
) -> None:  # fmt: skip
    _, length, channels, width, silu, block = sizes
    for t in range(length):
        row = (b * (length + width - 1) + t) * channels
        for c in range(begin, begin + block, LANES):
            s = _before_silu(x, row + c, c, channels, width, weight, bias)
            if silu:
                s = s * sigmoid(s)
            store(y, (b * length + t) * channels + c, s)


@compiled
def _backward(
    sizes: tuple[int, ...], x: np.ndarray, weight: np.ndarray, bias: np.ndarray, gy: np.ndarray,
    gx: np.ndarray, gweight: np.ndarray, gbias: np.ndarray,
) -> None:  # fmt: skip
    batch, _, channels, _, _, block = sizes
    for task in prange(batch * (channels // block)):
        b, begin = task // (channels // block), task % (channels // block) * block
        _backward_task(b, begin, sizes, x, weight, bias, gy, gx, gweight, gbias)


@njit
def _backward_task(
    b: int, begin: int, sizes: tuple[int, ...], x: np.ndarray, weight: np.ndarray,
    bias: np.ndarray, gy: np.ndarray, gx: np.ndarray, gweight: np.ndarray, gbias: np.ndarray,
) -> None:  # fmt: skip
    """Add to gx, (batch, ...), gweight, (batch, width, channels), and gbias, (batch, channels)."""
    _, length, channels, width, silu, block = sizes
    for t in range(length):
        row = (b * (length + width - 1) + t) * channels
        for c in range(begin, begin + block, LANES):
            g = load(gy, (b * length + t) * channels + c)
            if silu:
                s = _before_silu(x, row + c, c, channels, width, weight, bias)
                q = sigmoid(s)
                z = s * q
                g = g * fma(-z, q, q + z)  # d silu(s) / d s = q (1 + s (1 - q))
            store(gbias, b * channels + c, g + load(gbias, b * channels + c))
            for k in range(width):
                at, w = row + k * channels + c, (b * width + k) * channels + c
                store(gx, at, fma(load(weight, k * channels + c), g, load(gx, at)))
                store(gweight, w, fma(g, load(x, at), load(gweight, w)))


def _channels_of_task(batch: int, channels: int, threads: int) -> int:
    """All channels of a batch row; where the rows are too few for the threads, part of them."""
    vectors = channels // LANES
    for parts in range(1, vectors + 1):
        if vectors % parts == 0 and batch * parts >= 2 * threads:
            return channels // parts
    return LANES


class _CausalConv(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, silu: bool) -> Tensor:
        batch, rows, channels = x.shape
        width = len(weight)
        x, weight, bias = (tensor.detach().contiguous() for tensor in (x, weight, bias))
        length = rows - width + 1
        y = x.new_empty(batch, length, channels)
        block = _channels_of_task(batch, channels, use_torch_threads())
        ctx.sizes = (batch, length, channels, width, silu, block)
        _forward(ctx.sizes, *_flat(x, weight, bias, y))
        ctx.save_for_backward(x, weight, bias)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gy: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        x, weight, bias = ctx.saved_tensors
        gx = torch.zeros_like(x)
        gweight = x.new_zeros(len(x), *weight.shape)
        gbias = x.new_zeros(len(x), *bias.shape)
        use_torch_threads()
        _backward(ctx.sizes, *_flat(x, weight, bias, gy.contiguous(), gx, gweight, gbias))
        return gx, gweight.sum(0), gbias.sum(0), None


def _flat(*tensors: Tensor) -> list[np.ndarray]:
    return [x.view(-1).numpy() for x in tensors]


def causal_conv1d_numba(
    x: Tensor, weight: Tensor, bias: Tensor | None = None, initial_state: Tensor | None = None,
    silu: bool = False,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """:func:`.naive.causal_conv1d_naive` and, with ``silu``, SiLU behind it; float32 on the CPU.

    ``bias`` and ``initial_state`` may be of another dtype. Differentiable once in every input.
    Returns ``(y, final_state)``.
    """
    bias, initial_state = (t if t is None else t.float() for t in (bias, initial_state))
    length, (channels, width) = x.shape[1], weight.shape
    if initial_state is None:
        padded = F.pad(x, (0, 0, width - 1, 0))
    else:
        padded = torch.cat([initial_state.transpose(1, 2), x], dim=1)
    final_state = padded[:, length:].transpose(1, 2)
    bias = weight.new_zeros(channels) if bias is None else bias
    empty = -channels % LANES
    weight = weight.T
    if empty:
        padded, weight, bias = (F.pad(tensor, (0, empty)) for tensor in (padded, weight, bias))
    y = _CausalConv.apply(padded, weight, bias, silu)
    return y[..., :channels], final_state
