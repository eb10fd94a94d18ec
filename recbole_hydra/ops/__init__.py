"""Pure functions on tensors, one folder per operation.

Each folder holds ``naive.py``, the short version that is also the specification, beside the fast
backends that are tested against it. Nothing here imports RecBole.
"""

from recbole_hydra.ops.causal_conv1d import causal_conv1d
from recbole_hydra.ops.item_lists import ItemLists
from recbole_hydra.ops.linear_cross_entropy import linear_cross_entropy
from recbole_hydra.ops.pair_scores import pair_scores
from recbole_hydra.ops.rms_norm import rms_norm
from recbole_hydra.ops.score_offsets import ScoreOffsets
from recbole_hydra.ops.selective_scan import selective_scan

__all__ = [
    "ItemLists",
    "ScoreOffsets",
    "causal_conv1d",
    "linear_cross_entropy",
    "pair_scores",
    "rms_norm",
    "selective_scan",
]
