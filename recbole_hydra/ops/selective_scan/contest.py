"""Which of two backends that both can take a call is faster on this machine: it is measured.

Kernels of mamba-ssm and of Triton are ahead of each other at different shapes and on different
GPUs. The first call of a class of shapes runs both on random numbers of its shape, and the winner
takes all calls of the class in this process.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from recbole_hydra.ops.selective_scan import _Call

RUNS = 5
#: Numbers of u at most, so that measuring takes no memory to speak of: 64 MiB in float32.
LARGEST = 2**24

_winners: dict[tuple, tuple[str, str]] = {}


def shape_class(call: _Call) -> tuple:
    """What calls have in common that share a winner: all but the exact batch and length, which are
    rounded up to a power of two."""
    wants_grad, dtype, groups, batch, length, channels = call.size
    rounded = tuple(1 << (size - 1).bit_length() for size in (batch, length))
    return call.device, wants_grad, dtype, groups, channels, call.d_state, *rounded


def faster(names: Sequence[str], call: _Call, scan: Callable[..., Tensor]) -> tuple[str, str]:
    """Return ``(backend, why)``, the fastest of ``names`` for the class of ``call``.

    Args:
        scan: :func:`recbole_hydra.ops.selective_scan`.

    While torch.compile traces it is Triton's, which torch.compile sees through.
    """
    if torch.compiler.is_compiling():
        return "triton", "torch.compile"
    key = shape_class(call)
    if key not in _winners:
        seconds = {name: _seconds(scan, name, call) for name in names}
        best = min(seconds, key=seconds.__getitem__)
        measured = ", ".join(f"{name} {1e3 * s:.3g} ms" for name, s in seconds.items())
        _winners[key] = best, f"the faster one at {_words(key)}: {measured}"
    return _winners[key]


def _words(key: tuple) -> str:
    device, wants_grad, dtype, groups, channels, d_state, batch, length = key
    kind = "training" if wants_grad else "inference"
    return (
        f"batch {batch}, length {length}, {channels} channels, {groups} groups, d_state {d_state}, "
        f"{str(dtype).removeprefix('torch.')}, {kind}, {device}"
    )


def _seconds(scan: Callable[..., Tensor], name: str, call: _Call) -> float:
    """The median time of a call, with its backward pass where it has one; one call first for what
    is compiled or allocated."""
    inputs = _inputs(call)
    wants_grad, times = call.size[0], []
    for _ in range(1 + RUNS):
        _wait(call.device)
        start = time.perf_counter()
        with torch.set_grad_enabled(wants_grad):
            y = scan(*inputs, backend=name)
            if wants_grad:
                torch.autograd.grad(y, inputs, torch.ones_like(y))
        _wait(call.device)
        times.append(time.perf_counter() - start)
    return statistics.median(times[1:])


def _inputs(call: _Call) -> list[Tensor]:
    """Random inputs of the shape of a call, drawn without touching torch's generators."""
    wants_grad, dtype, groups, batch, length, channels = call.size
    batch = max(1, min(batch, LARGEST // (length * channels)))
    generator = torch.Generator(device=call.device).manual_seed(0)

    def normal(*size: int, dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.randn(*size, generator=generator, device=call.device, dtype=dtype)

    sequence = (batch, length, groups, call.d_state)
    inputs = [
        normal(batch, length, channels, dtype=dtype),
        normal(batch, length, channels, dtype=dtype).abs() / 10,
        -normal(channels, call.d_state).exp(),
        normal(*sequence, dtype=dtype),
        normal(*sequence, dtype=dtype),
    ]
    return [x.requires_grad_(wants_grad) for x in inputs]


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
