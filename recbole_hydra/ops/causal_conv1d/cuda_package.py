"""The causal depthwise convolution of the causal-conv1d package: its CUDA kernel, our layout."""

from functools import lru_cache
from importlib import import_module
from typing import Any

from torch import Tensor

from recbole_hydra.ops.compiling import constant_result

INSTALL_HINT = (
    "install it on a machine with CUDA: pip install --no-build-isolation 'recbole-hydra[cuda]'"
)


@lru_cache(maxsize=1)
def load_kernel() -> tuple[Any, str | None]:
    """Return ``(causal_conv1d_fn, None)`` of causal-conv1d, or ``(None, why not)``."""
    try:
        import_module("causal_conv1d_cuda")
        return import_module("causal_conv1d").causal_conv1d_fn, None
    except Exception as error:  # a broken build raises anything from ImportError to OSError
        return None, f"{type(error).__name__}: {error}".splitlines()[0]


@constant_result
def why_not_importable() -> str | None:
    """Say why the kernel cannot be imported, or return None."""
    return load_kernel()[1]


def causal_conv1d_cuda(
    x: Tensor, weight: Tensor, bias: Tensor | None = None, activation: str | None = None
) -> Tensor:
    """Call the kernel, activation included. CUDA tensors; the state starts at zero; returns y."""
    kernel, _ = load_kernel()
    # It wants the bias as the weight is, and dense.
    bias = None if bias is None else bias.to(weight.dtype).contiguous()
    # A transposed view is the kernel's "channel last" layout: no copy is made.
    y = kernel(x.contiguous().transpose(1, 2), weight, bias, activation=activation)
    return y.transpose(1, 2)
