"""The root mean square norm in few passes over the data."""

from torch import Tensor, nn

from recbole_hydra.ops import rms_norm


class RMSNorm(nn.RMSNorm):
    """``nn.RMSNorm`` over the last dimension, by :func:`recbole_hydra.ops.rms_norm`.

    Args:
        width: of the last dimension. eps: added to the mean square.
    """

    eps: float

    def __init__(self, width: int, eps: float) -> None:
        super().__init__(width, eps)

    def forward(self, x: Tensor) -> Tensor:
        """(..., width) to the same."""
        return rms_norm(x, self.weight, self.eps)
