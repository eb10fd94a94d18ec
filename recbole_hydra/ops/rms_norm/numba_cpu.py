"""The root mean square norm on the CPU, float32, in one pass forward and one backward.

::

    r = (mean(x^2) + eps)^(-1/2),   y = x r w
    g = dy w,   dx = r (g - x r^2 mean(g x)),   dw = sum over the rows of dy x r
"""

import math
from typing import Any

import numpy as np
import torch
from numba import njit, prange
from torch import Tensor
from torch.autograd.function import once_differentiable

from recbole_hydra.ops.numba_support import compiled, serially_compiled, use_torch_threads
from recbole_hydra.ops.simd import LANES, fma, load, load_in_all, store, store_channel_sums, zero

#: Numbers below which a thread alone is done before others have begun; torch's own limit.
SMALL = 2**15
#: Parts into which the rows are divided, whatever the number of threads, so that the sums over them
#: do not depend on it.
PARTS = 32


@njit(inline="always")
def _sum(x: Any, spare: np.ndarray) -> float:
    """The sum of the lanes of ``x``; ``spare`` is two numbers."""
    store_channel_sums(spare, 0, x)
    return spare[0] + spare[1]


@serially_compiled
def _forward_rows(
    first: int, last: int, x: np.ndarray, weight: np.ndarray, eps: float, y: np.ndarray,
    scale: np.ndarray,
) -> None:  # fmt: skip
    width = len(weight)
    spare, factor = np.empty(2, np.float32), np.empty(1, np.float32)
    for row in range(first, last):
        squares = zero()
        for k in range(row * width, (row + 1) * width, LANES):
            squares = fma(load(x, k), load(x, k), squares)
        mean = _sum(squares, spare) / np.float32(width)
        factor[0] = scale[row] = np.float32(1.0) / np.float32(math.sqrt(mean + eps))
        r = load_in_all(factor, 0)
        for k in range(0, width, LANES):
            at = row * width + k
            store(y, at, load(x, at) * r * load(weight, k))


@serially_compiled
def _backward_rows(
    first: int, last: int, x: np.ndarray, weight: np.ndarray, scale: np.ndarray, gy: np.ndarray,
    gx: np.ndarray, gweight: np.ndarray, origin: int,
) -> None:  # fmt: skip
    """Adds to ``gweight[origin:]``."""
    width = len(weight)
    spare, factor = np.empty(2, np.float32), np.empty(2, np.float32)
    for row in range(first, last):
        product = zero()
        for k in range(0, width, LANES):
            at = row * width + k
            product = fma(load(gy, at) * load(weight, k), load(x, at), product)
        s = scale[row]
        factor[0], factor[1] = s, -s * s * s * _sum(product, spare) / np.float32(width)
        r, along = load_in_all(factor, 0), load_in_all(factor, 1)
        for k in range(0, width, LANES):
            at = row * width + k
            xk, g = load(x, at), load(gy, at)
            store(gx, at, fma(xk, along, g * load(weight, k) * r))
            store(gweight, origin + k, fma(g, xk * r, load(gweight, origin + k)))


@compiled
def _forward(
    parts: int, x: np.ndarray, weight: np.ndarray, eps: float, y: np.ndarray, scale: np.ndarray
) -> None:
    rows = len(scale)
    for part in prange(parts):
        first, last = rows * part // parts, rows * (part + 1) // parts
        _forward_rows(first, last, x, weight, eps, y, scale)


@compiled
def _backward(
    parts: int, x: np.ndarray, weight: np.ndarray, scale: np.ndarray, gy: np.ndarray,
    gx: np.ndarray, gweight: np.ndarray,
) -> None:  # fmt: skip
    rows, width = len(scale), len(weight)
    for part in prange(parts):
        first, last = rows * part // parts, rows * (part + 1) // parts
        _backward_rows(first, last, x, weight, scale, gy, gx, gweight, part * width)


class _RMSNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        x, weight = x.detach().contiguous(), weight.detach().contiguous()
        y, scale = torch.empty_like(x), x.new_empty(x.shape[:-1])
        arrays = _flat(x, weight), _flat(y, scale)
        if x.numel() < SMALL:
            _forward_rows(0, scale.numel(), *arrays[0], np.float32(eps), *arrays[1])
        else:
            use_torch_threads()
            _forward(PARTS, *arrays[0], np.float32(eps), *arrays[1])
        ctx.save_for_backward(x, weight, scale)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gy: Tensor) -> tuple[Tensor, Tensor, None]:
        x, weight, scale = ctx.saved_tensors
        parts = 1 if x.numel() < SMALL else PARTS
        gx, gweight = torch.empty_like(x), weight.new_zeros(parts, len(weight))
        arrays = _flat(x, weight, scale, gy.contiguous(), gx, gweight)
        if parts == 1:
            _backward_rows(0, scale.numel(), *arrays, 0)
        else:
            use_torch_threads()
            _backward(parts, *arrays)
        return gx, gweight.sum(0), None


def _flat(*tensors: Tensor) -> list[np.ndarray]:
    return [x.view(-1).numpy() for x in tensors]


def rms_norm_numba(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """What :func:`.naive.rms_norm_naive` returns, for float32 on the CPU and widths of a multiple
    of 16; differentiable once."""
    return _RMSNorm.apply(x, weight, eps)
