"""The root mean square norm (Zhang and Sennrich 2019, arXiv 1910.07467)."""

import torch
import torch.nn.functional as F
from torch import Tensor

from recbole_hydra.errors import BackendError
from recbole_hydra.ops.rms_norm.naive import rms_norm_naive

__all__ = ["BACKENDS", "rms_norm"]

#: In the order in which "auto" tries them.
BACKENDS = ("numba", "torch", "naive")


def rms_norm(x: Tensor, weight: Tensor, eps: float, backend: str = "auto") -> Tensor:
    """Divide the vectors of ``x`` by their root mean square, and multiply by ``weight``.

    On a CPU torch computes the norm, with its derivative, in some twenty passes over the data, each
    of which the threads share out and wait for; "numba" does it in two.

    Args:
        x: (..., width). weight: (width,). eps: added to the mean square.
        backend: "numba" (CPU, float32, widths of a multiple of 16, differentiable once), "torch",
            "naive" (both any device and dtype) or "auto", the first that fits.

    Returns:
        A tensor like ``x``.

    Raises:
        BackendError: an unknown backend, a shape that does not fit, or a named backend that does
            not fit the call.
    """
    if weight.dim() != 1 or x.shape[-1:] != weight.shape:
        raise BackendError(
            f"rms_norm: weight must be (width,) to fit x {tuple(x.shape)}, got "
            f"{tuple(weight.shape)}"
        )
    if backend not in ("auto", *BACKENDS):
        raise BackendError(
            f"rms_norm: unknown backend {backend!r}; use auto, {', '.join(BACKENDS)}"
        )
    objection = _objection_to_numba(x, weight)
    if backend == "numba" and objection:
        raise BackendError(f"rms_norm: numba does not fit: {objection}; use torch")
    if backend == "naive":
        return rms_norm_naive(x, weight, eps)
    if backend == "torch" or objection:
        return F.rms_norm(x, weight.shape, weight, eps)
    # Imported here: it takes a second to load, which a run without it need not spend.
    from recbole_hydra.ops.rms_norm.numba_cpu import rms_norm_numba

    return rms_norm_numba(x, weight, eps)


def _objection_to_numba(x: Tensor, weight: Tensor) -> str | None:
    """One line about why numba does not fit the call, or None."""
    if x.device.type != "cpu":
        return f"it runs on the CPU only, x is on {x.device}"
    if {x.dtype, weight.dtype} != {torch.float32}:
        return f"it takes float32 only, got {x.dtype} and {weight.dtype}"
    if x.shape[-1] % 16 or not x.shape[-1]:
        return f"it takes widths of a multiple of 16, got {x.shape[-1]}"
    if torch.compiler.is_compiling():
        return "torch.compile cannot trace it"
    return None
