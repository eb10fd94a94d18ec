"""The selective scan of the mamba-ssm package: its CUDA kernel, called with our layout.

The kernel (``selective_scan_cuda``) is compiled or downloaded when mamba-ssm is installed, so it
can be missing although the package is there. It takes no initial state and its backward pass
ignores a gradient that arrives through the final state; calls that need either are not for it.
"""

from functools import lru_cache
from importlib import import_module
from typing import Any

from torch import Tensor

from recbole_hydra.ops.compiling import constant_result

INSTALL_HINT = (
    "install it on a machine with CUDA: pip install --no-build-isolation 'recbole-hydra[cuda]' "
    "(mamba-ssm built from its main branch needs MAMBA_KEEP_CUDA_BUILD=TRUE)"
)


@lru_cache(maxsize=1)
def load_kernel() -> tuple[Any, str | None]:
    """Return ``(selective_scan_fn, None)`` of mamba-ssm, or ``(None, why not)``.

    The kernel is imported first: without it mamba_ssm either fails to import or fails at the call.
    """
    try:
        import_module("selective_scan_cuda")
        interface = import_module("mamba_ssm.ops.selective_scan_interface")
        return interface.selective_scan_fn, None
    except Exception as error:  # a broken build raises anything from ImportError to OSError
        return None, f"{type(error).__name__}: {error}".splitlines()[0]


@constant_result
def why_not_importable() -> str | None:
    """Say why the kernel cannot be imported, or return None."""
    return load_kernel()[1]


def selective_scan_mamba_ssm(
    u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor | None = None,
    z: Tensor | None = None, delta_bias: Tensor | None = None, delta_softplus: bool = False,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Call the kernel. CUDA tensors; shapes as in the dispatcher; the state starts at zero.

    Returns ``(y, final_state)``; the final state carries no gradient.
    """
    kernel, _ = load_kernel()

    # Ours is (batch, length, channels) and (batch, length, groups, d_state); the kernel's is
    # (batch, channels, length) and (batch, groups, d_state, length). It wants all of them in the
    # dtype of u, and A, D and the bias in float32, dense.
    def sequence(x: Tensor | None) -> Tensor | None:
        return None if x is None else x.transpose(1, 2).contiguous().to(u.dtype)

    def weights(x: Tensor | None) -> Tensor | None:
        return None if x is None else x.float().contiguous()

    y, final_state = kernel(
        sequence(u),
        sequence(delta),
        weights(A),
        B.permute(0, 2, 3, 1).contiguous().to(u.dtype),
        C.permute(0, 2, 3, 1).contiguous().to(u.dtype),
        weights(D),
        z=sequence(z),
        delta_bias=weights(delta_bias),
        delta_softplus=delta_softplus,
        return_last_state=True,
    )
    return y.transpose(1, 2), final_state.detach()
