"""Selective scan: the state-space recurrence of Mamba, for any number of groups (heads)."""

import logging

import torch

from recbole_hydra.errors import BackendError
from recbole_hydra.ops.selective_scan.mamba_ssm_cuda import (
    INSTALL_HINT,
    load_kernel,
    selective_scan_mamba_ssm,
)
from recbole_hydra.ops.selective_scan.naive import selective_scan_naive

__all__ = ["BACKENDS", "selective_scan"]

#: In the order in which "auto" tries them.
BACKENDS = ("mamba_ssm", "numba", "naive")

logger = logging.getLogger(__name__)
_announced: set[tuple[str, str]] = set()


def selective_scan(
    u, delta, A, B, C, D=None, initial_state=None, return_final_state=False, backend="auto"
):
    """Selective scan of Mamba (Gu and Dao 2023, arXiv 2312.00752, algorithm 2), grouped.

    ::

        h_t = exp(delta_t A) h_{t-1} + delta_t B_t u_t,    y_t = <C_t, h_t> + D u_t

    Channel c reads B and C of group c // (channels // groups), so that the heads of a multi-head
    Mamba are the groups of one call.

    Args:
        u: input, (batch, length, channels), length >= 1.
        delta: step sizes after softplus, (batch, length, channels).
        A: state matrix diagonal, negative, (channels, d_state).
        B, C: input and output projections, (batch, length, groups, d_state); groups divides
            channels.
        D: skip weights, (channels,), or None.
        initial_state: h_0, (batch, channels, d_state); zero if None.
        return_final_state: also return h_length.
        backend: "naive" (torch, any device and dtype), "numba" (CPU, float32), "mamba_ssm" (CUDA;
            no initial state, no gradient through the final state), or "auto", the fastest of them
            that fits the call; its choice is logged once. float16 and bfloat16 inputs are computed
            in float32 by "naive" and "numba".

    Returns:
        y, (batch, length, channels), in the dtype of u; with ``return_final_state`` the pair
        (y, final_state), final_state (batch, channels, d_state). Gradients reach every input, the
        initial state included, and flow back from both outputs.

    Raises:
        BackendError: a shape that does not fit, an unknown backend, or a named backend that is
            not available or does not fit the call. A named backend is never replaced.
    """
    _check_shapes(u, delta, A, B, C, D, initial_state)
    tensors = [x for x in (u, delta, A, B, C, D, initial_state) if x is not None]
    # The state needs the range and the precision of float32 at least.
    double = any(x.dtype == torch.float64 for x in tensors)
    dtype = torch.float64 if double else torch.float32
    wants_grad = torch.is_grad_enabled() and any(x.requires_grad for x in tensors)
    call = (u.device, dtype, A.shape[1], initial_state, return_final_state and wants_grad)
    if backend == "auto":
        name, why = _choose(*call)
        if (name, why) not in _announced:
            _announced.add((name, why))
            logger.info("selective_scan: backend %s (%s)", name, why)
    elif backend in BACKENDS:
        name = backend
        if objection := _objection(name, *call):
            raise BackendError(f"selective_scan: backend {name!r} cannot be used: {objection}")
    else:
        raise BackendError(
            f"selective_scan: unknown backend {backend!r}; use auto, {', '.join(BACKENDS)}"
        )

    if name == "mamba_ssm":
        y, final_state = selective_scan_mamba_ssm(u, delta, A, B, C, D)
    else:
        if name == "numba":
            # Imported here: numba takes a second to load, which a GPU run need not spend.
            from recbole_hydra.ops.selective_scan.numba_cpu import selective_scan_numba as scan
        else:
            scan = selective_scan_naive
        inputs = (u, delta, A, B, C, D, initial_state)
        y, final_state = scan(*(x if x is None else x.to(dtype) for x in inputs))
        y = y.to(u.dtype)
    return (y, final_state) if return_final_state else y


def _choose(device, dtype, d_state, initial_state, final_state_grad):
    """Return ``(backend, why)`` for a call with ``backend="auto"``."""
    call = (device, dtype, d_state, initial_state, final_state_grad)
    if device.type == "cpu":
        objection = _objection("numba", *call)
        return ("naive", objection) if objection else ("numba", "compiled for this CPU")
    objection = _objection("mamba_ssm", *call)
    if objection is None:
        return "mamba_ssm", "CUDA kernel of mamba-ssm"
    return "naive", f"slow; mamba_ssm: {objection}"


def _objection(name, device, dtype, d_state, initial_state, final_state_grad):
    """Say in a few words why backend ``name`` cannot take this call, or return None."""
    if name == "naive":
        return None
    if name == "numba":
        if device.type != "cpu":
            return f"it runs on the CPU only, the input is on {device}; use mamba_ssm or naive"
        if dtype == torch.float64:
            return "it computes in float32, the input is float64; use naive"
        return None
    if load_kernel()[0] is None:
        return f"mamba-ssm's CUDA kernel is not importable ({load_kernel()[1]}); {INSTALL_HINT}"
    if device.type != "cuda":
        return f"it runs on CUDA only, the input is on {device}; use numba or naive"
    if dtype == torch.float64:
        return "its kernel has no float64; use naive"
    if d_state > 256:
        return f"its kernel takes d_state up to 256, got {d_state}; use naive"
    if initial_state is not None:
        return "its kernel takes no initial state; use naive"
    if final_state_grad:
        return "its backward pass ignores the gradient of the final state; use naive"
    return None


def _check_shapes(u, delta, A, B, C, D, initial_state):
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
    expected = {
        "delta": (delta, (batch, length, channels)),
        "B": (B, sequence),
        "C": (C, sequence),
        "D": (D, (channels,)),
        "initial_state": (initial_state, (batch, channels, d_state)),
    }
    for name, (x, shape) in expected.items():
        if x is not None and x.shape != shape:
            raise BackendError(
                f"selective_scan: {name} must be {shape} to fit u {tuple(u.shape)} and A "
                f"{tuple(A.shape)}, got {tuple(x.shape)}"
            )
