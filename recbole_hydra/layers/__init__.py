"""``nn.Module``s built on :mod:`recbole_hydra.ops`. Nothing here imports RecBole."""

from recbole_hydra.layers.dropout import Dropout
from recbole_hydra.layers.mamba import Mamba, MultiHeadMamba, kept
from recbole_hydra.layers.rotary import RotaryPositions

__all__ = ["Dropout", "Mamba", "MultiHeadMamba", "RotaryPositions", "kept"]
