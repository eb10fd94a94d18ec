"""Selective scan: the state-space recurrence of Mamba, for any number of groups (heads)."""

import logging
from collections.abc import Callable
from typing import Any, Literal, NamedTuple, overload

import torch
import torch.nn.functional as F
from torch import Tensor

from recbole_hydra.errors import BackendError
from recbole_hydra.ops import triton_support
from recbole_hydra.ops.selective_scan import mamba_ssm_cuda
from recbole_hydra.ops.selective_scan.contest import faster
from recbole_hydra.ops.selective_scan.naive import selective_scan_naive

__all__ = ["BACKENDS", "selective_scan"]

BACKENDS = ("mamba_ssm", "triton", "numba", "naive")

logger = logging.getLogger(__name__)
_announced: set[tuple[str, str]] = set()


@overload
def selective_scan(
    u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor | None = None,
    initial_state: Tensor | None = None, return_final_state: Literal[False] = False,
    backend: str = "auto", *, z: Tensor | None = None, delta_bias: Tensor | None = None,
    delta_softplus: bool = False,
) -> Tensor: ...  # fmt: skip
@overload
def selective_scan(
    u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor | None = None,
    initial_state: Tensor | None = None, *, return_final_state: Literal[True],
    backend: str = "auto", z: Tensor | None = None, delta_bias: Tensor | None = None,
    delta_softplus: bool = False,
) -> tuple[Tensor, Tensor]: ...  # fmt: skip
@overload
def selective_scan(
    u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor | None = None,
    initial_state: Tensor | None = None, return_final_state: bool = False,
    backend: str = "auto", *, z: Tensor | None = None, delta_bias: Tensor | None = None,
    delta_softplus: bool = False,
) -> Any: ...  # fmt: skip
def selective_scan(
    u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor | None = None,
    initial_state: Tensor | None = None, return_final_state: bool = False, backend: str = "auto",
    *, z: Tensor | None = None, delta_bias: Tensor | None = None, delta_softplus: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:  # fmt: skip
    """Selective scan of Mamba (Gu and Dao 2023, arXiv 2312.00752, algorithm 2), grouped.

    ::

        h_t = exp(delta_t A) h_{t-1} + delta_t B_t u_t,    y_t = <C_t, h_t> + D u_t

    Channel c reads B and C of group c // (channels // groups), so that the heads of a multi-head
    Mamba are the groups of one call. What surrounds the scan in a Mamba block may be left to it,
    which saves the memory traffic where a backend computes it in its kernel: delta + ``delta_bias``
    and its softplus before, y SiLU(z) after.

    Args:
        u: input, (batch, length, channels), length >= 1.
        delta: step sizes, (batch, length, channels), after softplus unless ``delta_softplus``.
        A: state matrix diagonal, negative, (channels, d_state).
        B, C: input and output projections, (batch, length, groups, d_state); groups divides
            channels.
        D: skip weights, (channels,), or None.
        initial_state: h_0, (batch, channels, d_state); zero if None.
        return_final_state: also return h_length.
        backend: "naive" (torch, any device and dtype), "numba" (CPU, float32), "triton" (GPU),
            "mamba_ssm" (CUDA; no initial state, no gradient through the final state), or "auto",
            the fastest of them that fits the call; its choice is logged once. float16 and bfloat16
            inputs are computed in float32 by "naive" and "numba"; the state is float32 everywhere.
        z: gate, (batch, length, channels), or None.
        delta_bias: (channels,), or None.
        delta_softplus: whether delta, with its bias, still has to go through softplus.

    Returns:
        y, (batch, length, channels), in the dtype of u; with ``return_final_state`` the pair
        (y, final_state), final_state (batch, channels, d_state). Gradients reach every input, the
        initial state included, and flow back from both outputs.

    Raises:
        BackendError: a shape that does not fit, an unknown backend, or a named backend that is
            not available or does not fit the call. A named backend is never replaced.
    """
    _check_shapes(u, delta, A, B, C, D, initial_state, z, delta_bias)
    tensors = [x for x in (u, delta, A, B, C, D, initial_state, z, delta_bias) if x is not None]
    # The state needs the range and the precision of float32 at least.
    double = any(x.dtype == torch.float64 for x in tensors)
    dtype = torch.float64 if double else torch.float32
    wants_grad = torch.is_grad_enabled() and any(x.requires_grad for x in tensors)
    call = _Call(
        u.device, dtype, A.shape[1], initial_state is not None, return_final_state and wants_grad,
        (wants_grad, u.dtype, B.shape[2], *u.shape),
    )  # fmt: skip
    if backend == "auto":
        name, why = _choose(call)
        _announce(name, why)
    elif backend in BACKENDS:
        name = backend
        if objection := _objection(name, call):
            raise BackendError(f"selective_scan: backend {name!r} cannot be used: {objection}")
    else:
        raise BackendError(
            f"selective_scan: unknown backend {backend!r}; use auto, {', '.join(BACKENDS)}"
        )
    inputs = (u, delta, A, B, C, D, initial_state)
    y, final_state = _run(name, dtype, inputs, z, delta_bias, delta_softplus)
    return (y, final_state) if return_final_state else y


def _run(
    name: str, dtype: torch.dtype,
    inputs: tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor | None, Tensor | None],
    z: Tensor | None, delta_bias: Tensor | None, delta_softplus: bool,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Run the scan of backend ``name``, with what surrounds it."""
    u, delta, A, B, C, D, initial_state = inputs
    if name in ("mamba_ssm", "triton"):
        fused: dict[str, Any] = {"z": z, "delta_bias": delta_bias, "delta_softplus": delta_softplus}
        if name == "mamba_ssm":
            return mamba_ssm_cuda.selective_scan_mamba_ssm(u, delta, A, B, C, D, **fused)
        # Imported here, as numba below: loading them takes a second, which others need not spend.
        from recbole_hydra.ops.selective_scan.triton_gpu import selective_scan_triton

        return selective_scan_triton(u, delta, A, B, C, D, initial_state, **fused)
    scan: Callable[..., tuple[Tensor, Tensor]]
    if name == "numba":
        from recbole_hydra.ops.selective_scan.numba_cpu import selective_scan_numba as scan
    else:
        scan = selective_scan_naive
    delta = delta.to(dtype)
    if delta_bias is not None:
        delta = delta + delta_bias.to(dtype)
    if delta_softplus:
        delta = F.softplus(delta)
    inputs = (u, delta, A, B, C, D, initial_state)
    y, final_state = scan(*(x if x is None else x.to(dtype) for x in inputs))
    if z is not None:
        y = y * F.silu(z.to(dtype))
    return y.to(u.dtype), final_state


class _Call(NamedTuple):
    """What decides which backends can take a call, and, in ``size``, which of them is faster."""

    device: torch.device
    dtype: torch.dtype  # in which it is computed
    d_state: int
    has_initial_state: bool
    final_state_grad: bool  # whether a gradient may come through the final state
    size: tuple = ()


def _announce(name: str, why: str) -> None:
    if torch.compiler.is_compiling() or (name, why) in _announced:
        return
    _announced.add((name, why))
    level = logging.WARNING if why.startswith("slow") else logging.INFO
    logger.log(level, "selective_scan: backend %s (%s)", name, why)


def _choose(call: _Call) -> tuple[str, str]:
    """Return ``(backend, why)`` for a call with ``backend="auto"``."""
    if call.device.type == "cpu":
        objection = _objection("numba", call)
        return ("naive", objection) if objection else ("numba", "compiled for this CPU")
    objections = {name: _objection(name, call) for name in ("mamba_ssm", "triton")}
    fitting = [name for name, objection in objections.items() if objection is None]
    if len(fitting) == 2:
        return faster(fitting, call, selective_scan)
    if fitting:
        (other,) = objections.keys() - fitting
        return fitting[0], f"{other}: {objections[other]}"
    return "naive", "slow; " + "; ".join(f"{name}: {o}" for name, o in objections.items())


def _objection(name: str, call: _Call) -> str | None:
    """Say in a few words why backend ``name`` cannot take this call, or return None."""
    if name == "naive":
        return None
    if name == "numba":
        if call.device.type != "cpu":
            return f"it runs on the CPU only, the input is on {call.device}; use triton or naive"
        if call.dtype == torch.float64:
            return "it computes in float32, the input is float64; use naive"
        return None
    if name == "triton":
        if objection := triton_support.objection(call.device):
            return f"{objection}; use numba or naive"
        if call.dtype == torch.float64:
            return "it computes in float32, the input is float64; use naive"
        return None
    if why := mamba_ssm_cuda.why_not_importable():
        return f"mamba-ssm's CUDA kernel is not importable ({why}); {mamba_ssm_cuda.INSTALL_HINT}"
    if call.device.type != "cuda":
        return f"it runs on CUDA only, the input is on {call.device}; use numba or naive"
    if call.dtype == torch.float64:
        return "its kernel has no float64; use naive"
    if call.d_state > 256:
        return f"its kernel takes d_state up to 256, got {call.d_state}; use triton or naive"
    if call.has_initial_state:
        return "its kernel takes no initial state; use triton or naive"
    if call.final_state_grad:
        return "its backward pass ignores the gradient of the final state; use triton or naive"
    return None


def _check_shapes(
    u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor | None,
    initial_state: Tensor | None, z: Tensor | None, delta_bias: Tensor | None,
) -> None:  # fmt: skip
    """Raise BackendError naming the first argument whose shape does not fit."""
    if u.dim() != 3 or u.shape[1] < 1:
        raise BackendError(
            f"selective_scan: u must be (batch, length >= 1, channels), got {tuple(u.shape)}"
        )
    batch, length, channels = u.shape
    if A.dim() != 2 or A.shape[0] != channels:
        raise BackendError(
            f"selective_scan: A must be (channels={channels}, d_state), got {tuple(A.shape)}"
        )
    d_state = A.shape[1]
    if B.dim() != 4 or B.shape[2] < 1 or channels % B.shape[2]:
        raise BackendError(
            f"selective_scan: B must be (batch, length, groups, d_state) with groups dividing the "
            f"{channels} channels, got {tuple(B.shape)}"
        )
    sequence = (batch, length, B.shape[2], d_state)
    expected: dict[str, tuple[Tensor | None, tuple[int, ...]]] = {
        "delta": (delta, (batch, length, channels)),
        "B": (B, sequence),
        "C": (C, sequence),
        "D": (D, (channels,)),
        "initial_state": (initial_state, (batch, channels, d_state)),
        "z": (z, (batch, length, channels)),
        "delta_bias": (delta_bias, (channels,)),
    }
    for name, (x, shape) in expected.items():
        if x is not None and x.shape != shape:
            raise BackendError(
                f"selective_scan: {name} must be {shape} to fit u {tuple(u.shape)} and A "
                f"{tuple(A.shape)}, got {tuple(x.shape)}"
            )
