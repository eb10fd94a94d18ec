"""The causal depthwise convolution as Triton kernels, with its bias, SiLU and state.

A tile is (steps, channels) of one batch row. The gradient of the input is a causal convolution,
too, of a sequence that runs backwards in time, so that the forward kernel computes it.
"""

from collections.abc import Sequence
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from recbole_hydra.ops.triton_support import dense

STEPS, BLOCK = 64, 32


@triton.jit
def _input(x, state, row, t, c, mask, x_batch, x_time, length, channels, W: tl.constexpr,
           HAS_STATE: tl.constexpr):  # fmt: skip
    """The inputs at steps t, which may be before the first; zero behind the last."""
    at = x + row * x_batch + t[:, None] * x_time + c[None, :]
    there = (t >= 0) & (t < length)
    value = tl.load(at, mask & there[:, None], 0.0).to(tl.float32)
    if HAS_STATE:
        at = state + (row * channels + c[None, :]) * (W - 1) + (t[:, None] + W - 1)
        value += tl.load(at, mask & (t < 0)[:, None], 0.0).to(tl.float32)
    return value


@triton.jit
def _before_activation(
    x, weight, bias, state, row, t, c, mask, inside, x_batch, x_time, length, channels,
    W: tl.constexpr, HAS_BIAS: tl.constexpr, HAS_STATE: tl.constexpr,
):  # fmt: skip
    s = tl.zeros(mask.shape, tl.float32)
    if HAS_BIAS:
        s += tl.load(bias + c, inside, 0.0).to(tl.float32)[None, :]
    for k in tl.static_range(W):
        w = tl.load(weight + c * W + k, inside, 0.0).to(tl.float32)
        s += w[None, :] * _input(x, state, row, t - (W - 1) + k, c, mask, x_batch, x_time, length,
                                 channels, W, HAS_STATE)  # fmt: skip
    return s


@triton.jit
def _convolve(
    x, weight, bias, state, y, x_batch, x_time, y_batch, y_time, length, out_length, channels,
    W: tl.constexpr, HAS_BIAS: tl.constexpr, HAS_STATE: tl.constexpr, SILU: tl.constexpr,
    STEPS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    c = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    t = (tl.program_id(2) * STEPS + tl.arange(0, STEPS)).to(tl.int64)
    inside = c < channels
    mask = (t < out_length)[:, None] & inside[None, :]
    s = _before_activation(x, weight, bias, state, row, t, c, mask, inside, x_batch, x_time,
                           length, channels, W, HAS_BIAS, HAS_STATE)  # fmt: skip
    if SILU:
        s *= tl.sigmoid(s)
    tl.store(y + row * y_batch + t[:, None] * y_time + c[None, :], s, mask)


@triton.jit
def _backward(
    x, weight, bias, state, gy, gs, gweight, gbias, x_batch, x_time, length, channels,
    W: tl.constexpr, HAS_BIAS: tl.constexpr, HAS_STATE: tl.constexpr, SILU: tl.constexpr,
    STEPS: tl.constexpr, BLOCK: tl.constexpr, TAPS: tl.constexpr,
):  # fmt: skip
    """gs, d loss / d what SiLU is of, and what a batch row adds to the gradients of the weights,
    gweight (batch, width, channels) and gbias (batch, channels)."""
    row = tl.program_id(0).to(tl.int64)
    c = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = c < channels
    sum_bias = tl.zeros([BLOCK], tl.float32)
    tap = tl.arange(0, TAPS)
    sum_weight = tl.zeros([TAPS, BLOCK], tl.float32)
    for first in range(0, length, STEPS):
        t = (first + tl.arange(0, STEPS)).to(tl.int64)
        mask = (t < length)[:, None] & inside[None, :]
        at = (row * length + t[:, None]) * channels + c[None, :]
        g = tl.load(gy + at, mask, 0.0).to(tl.float32)
        if SILU:
            s = _before_activation(x, weight, bias, state, row, t, c, mask, inside, x_batch,
                                   x_time, length, channels, W, HAS_BIAS, HAS_STATE)  # fmt: skip
            q = tl.sigmoid(s)
            g *= q * (1.0 + s * (1.0 - q))
        tl.store(gs + at, g, mask)
        sum_bias += tl.sum(g, 0)
        for k in tl.static_range(W):
            value = _input(x, state, row, t - (W - 1) + k, c, mask, x_batch, x_time, length,
                           channels, W, HAS_STATE)  # fmt: skip
            sum_weight += tl.where(tap[:, None] == k, tl.sum(g * value, 0)[None, :], 0.0)
    at = (row * W + tap[:, None]) * channels + c[None, :]
    tl.store(gweight + at, sum_weight, (tap < W)[:, None] & inside[None, :])
    tl.store(gbias + row * channels + c, sum_bias, inside)


def _options(
    weight: Tensor, bias: Tensor | None, state: Tensor | None, silu: bool
) -> dict[str, Any]:
    return {
        "W": weight.shape[1], "HAS_BIAS": bias is not None, "HAS_STATE": state is not None,
        "SILU": silu, "STEPS": STEPS, "BLOCK": BLOCK,
    }  # fmt: skip


@torch.library.custom_op("recbole_hydra::causal_conv1d", mutates_args=())
def _conv(
    x: Tensor, weight: Tensor, bias: Tensor | None, initial_state: Tensor | None, silu: bool
) -> Tensor:
    x, weight, bias = dense(x), weight.contiguous(), dense(bias)
    state = None if initial_state is None else initial_state.contiguous()
    batch, length, channels = x.shape
    y = torch.empty((batch, length, channels), dtype=x.dtype, device=x.device)
    grid = batch, triton.cdiv(channels, BLOCK), triton.cdiv(length, STEPS)
    with torch.cuda.device_of(x):  # Triton's own choice is the current device
        _convolve[grid](
            x, weight, bias, state, y, *x.stride()[:2], *y.stride()[:2], length, length, channels,
            **_options(weight, bias, state, silu),
        )  # fmt: skip
    return y


@_conv.register_fake
def _(
    x: Tensor, weight: Tensor, bias: Tensor | None, initial_state: Tensor | None, silu: bool
) -> Tensor:
    return torch.empty(x.shape, dtype=x.dtype, device=x.device)


@torch.library.custom_op("recbole_hydra::causal_conv1d_backward", mutates_args=())
def _conv_backward(
    gy: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None, initial_state: Tensor | None,
    silu: bool,
) -> list[Tensor]:  # fmt: skip
    """Returns the gradients of the inputs, the initial state first (zeros before x, where there is
    none) and x; then weight and bias, a bias of zero where there is none."""
    x, weight, bias = dense(x), weight.contiguous(), dense(bias)
    state = None if initial_state is None else initial_state.contiguous()
    batch, length, channels = x.shape
    width = weight.shape[1]
    gs = torch.empty((batch, length, channels), dtype=torch.float32, device=x.device)
    gweight = gs.new_empty((batch, width, channels))
    gbias = gs.new_empty((batch, channels))
    rows = length + width - 1
    gx = gs.new_empty((batch, rows, channels))
    blocks = triton.cdiv(channels, BLOCK)
    with torch.cuda.device_of(x):
        _backward[batch, blocks](
            x, weight, bias, state, gy.contiguous(), gs, gweight, gbias, *x.stride()[:2], length,
            channels, **_options(weight, bias, state, silu), TAPS=triton.next_power_of_2(width),
        )  # fmt: skip
        # From the last step to the first, and on into the state.
        _convolve[batch, blocks, triton.cdiv(rows, STEPS)](
            gs[:, -1], weight, None, None, gx[:, -1], gs.stride(0), -channels, gx.stride(0),
            -channels, length, rows, channels, **_options(weight, None, None, False),
        )  # fmt: skip
    gstate = gx[:, : width - 1].transpose(1, 2)
    return [
        gstate.contiguous() if width > 1 else gs.new_empty((batch, channels, 0)),
        gx[:, width - 1 :].to(x.dtype, copy=True, memory_format=torch.contiguous_format),
        gweight.sum(0).T.to(weight.dtype, copy=True, memory_format=torch.contiguous_format),
        gbias.sum(0),
    ]


@_conv_backward.register_fake
def _(
    gy: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None, initial_state: Tensor | None,
    silu: bool,
) -> list[Tensor]:  # fmt: skip
    batch, _, channels = x.shape

    def empty(shape: Sequence[int], dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.empty(shape, dtype=dtype, device=x.device)

    state = empty((batch, channels, weight.shape[1] - 1))
    return [state, empty(x.shape, x.dtype), empty(weight.shape, weight.dtype), empty((channels,))]


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    *tensors, ctx.silu = inputs
    ctx.save_for_backward(*tensors)


def _differentiate(
    ctx: Any, gy: Tensor
) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None, None]:
    x, weight, bias, state = ctx.saved_tensors
    gstate, gx, gweight, gbias = _conv_backward(gy, x, weight, bias, state, ctx.silu)
    gbias = None if bias is None else gbias.to(bias.dtype)
    gstate = None if state is None else gstate.to(state.dtype)
    return gx, gweight, gbias, gstate, None


_conv.register_autograd(_differentiate, setup_context=_setup_context)


def causal_conv1d_triton(
    x: Tensor, weight: Tensor, bias: Tensor | None = None, initial_state: Tensor | None = None,
    silu: bool = False,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """:func:`.naive.causal_conv1d_naive` and, with ``silu``, SiLU behind it; computed in float32.

    Differentiable once in every input. Returns ``(y, final_state)``, y in the dtype of x.
    """
    y = _conv(x, weight, bias, initial_state, bool(silu))
    before = weight.shape[1] - 1
    if x.shape[1] >= before:
        return y, x[:, x.shape[1] - before :].transpose(1, 2)
    if initial_state is None:
        initial_state = x.new_zeros(x.shape[0], x.shape[2], before)
    return y, torch.cat([initial_state, x.transpose(1, 2)], 2)[..., x.shape[1] :]
