"""Causal depthwise convolution: the short filter in front of Mamba's scan."""

from collections.abc import Callable
from typing import Literal, overload

import torch
import torch.nn.functional as F
from torch import Tensor

from recbole_hydra.errors import BackendError
from recbole_hydra.ops import triton_support
from recbole_hydra.ops.causal_conv1d import cuda_package
from recbole_hydra.ops.causal_conv1d.naive import causal_conv1d_naive
from recbole_hydra.ops.causal_conv1d.torch_conv import causal_conv1d_torch

__all__ = ["BACKENDS", "causal_conv1d"]

#: In the order in which "auto" tries them.
BACKENDS = ("causal_conv1d", "numba", "triton", "torch", "naive")


@overload
def causal_conv1d(
    x: Tensor, weight: Tensor, bias: Tensor | None = None, initial_state: Tensor | None = None,
    return_final_state: Literal[False] = False, activation: str | None = None,
    backend: str = "auto",
) -> Tensor: ...  # fmt: skip
@overload
def causal_conv1d(
    x: Tensor, weight: Tensor, bias: Tensor | None = None, initial_state: Tensor | None = None,
    *, return_final_state: Literal[True], activation: str | None = None, backend: str = "auto",
) -> tuple[Tensor, Tensor]: ...  # fmt: skip
def causal_conv1d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    initial_state: Tensor | None = None,
    return_final_state: bool = False,
    activation: str | None = None,
    backend: str = "auto",
) -> Tensor | tuple[Tensor, Tensor]:
    """Depthwise convolution over time whose output t sees x up to t.

    ::

        y_t = activation(bias + sum_k weight[:, k] x_{t - width + 1 + k})

    Args:
        x: (batch, length, channels), length >= 1.
        weight: (channels, width).
        bias: (channels,), or None.
        initial_state: the ``width - 1`` inputs before x, oldest first, (batch, channels,
            width - 1); zero if None.
        return_final_state: also return the last ``width - 1`` inputs, the next call's
            ``initial_state``.
        activation: None, "silu" or "swish" (the same).
        backend: "naive", "torch" (both any device and dtype), "numba" (CPU, float32), "triton"
            (GPU), "causal_conv1d" (CUDA, widths 2 to 4, channels in
            multiples of 8, no states) or "auto", the first of the
            others that fits the call.

    Returns:
        y, (batch, length, channels); with ``return_final_state`` the pair (y, final_state).

    Raises:
        BackendError: a shape that does not fit, an unknown backend or activation, or a named
            backend that is not available or does not fit the call.
    """
    _check(x, weight, bias, initial_state, activation)
    with_states = initial_state is not None or return_final_state
    if backend == "auto":
        names = triton_support.automatic(BACKENDS, x.device)
        backend = next(name for name in names if not _objection(name, x, weight, with_states))
    elif backend not in BACKENDS:
        raise BackendError(
            f"causal_conv1d: unknown backend {backend!r}; use auto, {', '.join(BACKENDS)}"
        )
    elif objection := _objection(backend, x, weight, with_states):
        raise BackendError(f"causal_conv1d: backend {backend!r} cannot be used: {objection}")

    if backend == "causal_conv1d":
        return cuda_package.causal_conv1d_cuda(x, weight, bias, activation)
    conv: Callable[..., tuple[Tensor, Tensor]]
    if backend in ("numba", "triton"):
        # Imported here: each takes a second to load, which a run on the other need not spend.
        if backend == "numba":
            from recbole_hydra.ops.causal_conv1d.numba_cpu import causal_conv1d_numba as conv
        else:
            from recbole_hydra.ops.causal_conv1d.triton_gpu import causal_conv1d_triton as conv

        y, final_state = conv(x, weight, bias, initial_state, activation is not None)
    else:
        conv = causal_conv1d_torch if backend == "torch" else causal_conv1d_naive
        y, final_state = conv(x, weight, bias, initial_state)
        if activation is not None:
            y = F.silu(y)
    if not return_final_state:
        return y
    # Most backends return a view of the inputs, all of which it would keep in memory.
    return y, final_state.clone(memory_format=torch.contiguous_format)


def _objection(name: str, x: Tensor, weight: Tensor, with_states: bool) -> str | None:
    """Say why backend ``name`` cannot take this call, or return None."""
    if name == "causal_conv1d":
        return _cuda_objection(x, weight, with_states)
    if name == "numba":
        if x.device.type != "cpu":
            return f"it runs on the CPU only, the input is on {x.device}; use torch"
        if x.dtype != torch.float32 or weight.dtype != torch.float32:
            return f"it computes in float32, the input is {x.dtype}; use torch"
    if name == "triton":
        if objection := triton_support.objection(x.device):
            return f"{objection}; use torch"
        if x.dtype == torch.float64:
            return "it computes in float32, the input is float64; use torch"
    return None


def _cuda_objection(x: Tensor, weight: Tensor, with_states: bool) -> str | None:
    """Say why the CUDA kernel cannot take this call, or return None."""
    if x.device.type != "cuda":
        return f"it runs on CUDA only, the input is on {x.device}; use torch or naive"
    if why := cuda_package.why_not_importable():
        return f"causal-conv1d's kernel is not importable ({why}); {cuda_package.INSTALL_HINT}"
    if torch.float64 in (x.dtype, weight.dtype):
        return "its kernel has no float64; use torch"
    if not 2 <= weight.shape[1] <= 4:
        return f"its kernel takes widths 2 to 4, got {weight.shape[1]}; use torch"
    if x.shape[2] % 8:
        return f"its kernel takes channels in multiples of 8, got {x.shape[2]}; use torch"
    if with_states:
        return "states are not passed to its kernel; use torch"
    return None


def _check(
    x: Tensor, weight: Tensor, bias: Tensor | None, initial_state: Tensor | None,
    activation: str | None,
) -> None:  # fmt: skip
    """Raise BackendError naming the first argument that does not fit."""
    if activation not in (None, "silu", "swish"):
        raise BackendError(f"causal_conv1d: activation must be None or 'silu', got {activation!r}")
    if x.dim() != 3 or x.shape[1] < 1:
        raise BackendError(
            f"causal_conv1d: x must be (batch, length >= 1, channels), got {tuple(x.shape)}"
        )
    batch, _, channels = x.shape
    if weight.dim() != 2 or weight.shape[0] != channels or weight.shape[1] < 1:
        raise BackendError(
            f"causal_conv1d: weight must be (channels={channels}, width >= 1), "
            f"got {tuple(weight.shape)}"
        )
    expected: dict[str, tuple[Tensor | None, tuple[int, ...]]] = {
        "bias": (bias, (channels,)),
        "initial_state": (initial_state, (batch, channels, weight.shape[1] - 1)),
    }
    for name, (tensor, shape) in expected.items():
        if tensor is not None and tensor.shape != shape:
            raise BackendError(
                f"causal_conv1d: {name} must be {shape} to fit x {tuple(x.shape)} and weight "
                f"{tuple(weight.shape)}, got {tuple(tensor.shape)}"
            )
