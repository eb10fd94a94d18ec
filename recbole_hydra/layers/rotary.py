"""Rotary position embedding (Su et al. 2021, arXiv 2104.09864)."""

import torch
from torch import Tensor, nn

from recbole_hydra.checks import positive_int, positive_number
from recbole_hydra.errors import ConfigError


class RotaryPositions(nn.Module):
    """Rotate pairs of features of each head by angles that grow with the position.

    Feature i is paired with feature i + head_dim / 2 and turned by t * base^(-2 i / head_dim) at
    position t, so that inner products of rotated vectors depend on their distance in time.

    Args:
        head_dim: width of a head, even.
        base: base of the geometric series of wave lengths.

    Raises:
        ConfigError: odd ``head_dim``, or a base that is not a positive number.
    """

    def __init__(self, head_dim: int, base: float = 10_000.0) -> None:
        super().__init__()
        if positive_int("head_dim", head_dim) % 2:
            raise ConfigError(
                f"head_dim must be even, since rotary positions turn pairs of features, "
                f"got {head_dim}"
            )
        positive_number("rope_base", base)
        self.head_dim, self.base = head_dim, base

    def frequency(self, device: torch.device | None = None) -> Tensor:
        """Radians per step of each pair of features, (head_dim / 2,) float32."""
        # Not kept as a buffer: model.bfloat16() would round it, and positions with it.
        pair = torch.arange(0, self.head_dim, 2, dtype=torch.float64, device=device)
        return (self.base ** (-pair / self.head_dim)).float()

    def forward(self, x: Tensor, offset: int | Tensor = 0) -> Tensor:
        """Rotate ``x``, (batch, length, heads, head_dim), whose first position is ``offset``: an
        int, or one per row, (batch,)."""
        position = torch.arange(x.shape[1], device=x.device)
        if isinstance(offset, Tensor):
            offset = offset[:, None]
        # (length, 1, head_dim / 2), or with an offset per row (batch, length, 1, head_dim / 2)
        angle = ((position + offset)[..., None] * self.frequency(x.device)).unsqueeze(-2)
        cos, sin = angle.cos().to(x.dtype), angle.sin().to(x.dtype)
        # Both halves at once, in few passes over x: threads wait for each other after each.
        first, second = x.chunk(2, dim=-1)
        turned = torch.cat([second, first], dim=-1)
        cos, sin = torch.cat([cos, cos], dim=-1), torch.cat([-sin, sin], dim=-1)
        return torch.addcmul(x * cos, turned, sin)
