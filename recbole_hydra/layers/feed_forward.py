"""The feed-forward network of Hydra."""

import torch.nn.functional as F
from torch import Tensor, nn

from recbole_hydra.checks import one_of, positive_int


class FeedForward(nn.Module):
    """Position-wise feed-forward network, without biases.

    Args:
        d: width of the model.
        ffn_type: "gelu", W_2 GELU(W_1 x), or "swiglu", W_2 (SiLU(W_1 x) * W_3 x).
        ffn_size: inner width.

    Raises:
        ConfigError: another ``ffn_type``, or a size that is none.
    """

    def __init__(self, d: int, ffn_type: str, ffn_size: int) -> None:
        super().__init__()
        one_of("ffn_type", ffn_type, ("gelu", "swiglu"))
        positive_int("ffn_size", ffn_size)
        self.w_1 = nn.Linear(d, ffn_size, bias=False)
        self.w_3 = nn.Linear(d, ffn_size, bias=False) if ffn_type == "swiglu" else None
        self.w_2 = nn.Linear(ffn_size, d, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """(batch, length, d) to the same."""
        if self.w_3 is None:
            return self.w_2(F.gelu(self.w_1(x)))
        return self.w_2(F.silu(self.w_1(x)) * self.w_3(x))
