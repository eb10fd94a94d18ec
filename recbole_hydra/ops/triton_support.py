"""What the operations written in Triton share: whether it is there, and can run on a device."""

import os
from collections.abc import Iterable
from functools import lru_cache
from importlib import import_module
from typing import overload

import torch
from torch import Tensor

from recbole_hydra.ops.compiling import constant_result


@lru_cache(maxsize=1)
def _import_error() -> str | None:
    try:
        import_module("triton")
    except Exception as error:  # a broken installation raises anything
        return f"{type(error).__name__}: {error}".splitlines()[0]
    return None


@constant_result
def why_not_importable() -> str | None:
    """Say why triton cannot be imported, or return None."""
    return _import_error()


def objection(device: torch.device) -> str | None:
    """Say in a few words why Triton's kernels cannot run on ``device``, or return None.

    On the CPU they run in Triton's interpreter, for tests: with ``TRITON_INTERPRET=1`` in the
    environment before they are imported.
    """
    if device.type == "cpu" and os.environ.get("TRITON_INTERPRET") != "1":
        return "it runs on a GPU only, the input is on cpu"
    if device.type not in ("cpu", "cuda"):
        return f"it runs on a GPU only, the input is on {device}"
    if why := why_not_importable():
        return f"triton, which comes with torch for CUDA on Linux, is not importable ({why})"
    return None


def automatic(backends: Iterable[str], device: torch.device) -> list[str]:
    """Those of ``backends`` that "auto" may take: Triton's interpreter is for those who name it."""
    return [name for name in backends if name != "triton" or device.type != "cpu"]


@overload
def dense(x: Tensor) -> Tensor: ...
@overload
def dense(x: Tensor | None) -> Tensor | None: ...
def dense(x: Tensor | None) -> Tensor | None:
    """x, or None, with its last dimension contiguous, as the kernels address it."""
    return x if x is None or x.stride(-1) == 1 else x.contiguous()
