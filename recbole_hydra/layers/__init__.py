"""``nn.Module``s built on :mod:`recbole_hydra.ops`. Nothing here imports RecBole."""

from recbole_hydra.layers.dropout import Dropout, dropout_by_place
from recbole_hydra.layers.feed_forward import FeedForward
from recbole_hydra.layers.item_llm import ItemLLM, find_llm, frozen_states, hash_llm
from recbole_hydra.layers.item_memory import ItemMemory
from recbole_hydra.layers.mamba import Mamba, MultiHeadMamba, kept
from recbole_hydra.layers.repeat_bias import RepeatBias
from recbole_hydra.layers.rms_norm import RMSNorm
from recbole_hydra.layers.rotary import RotaryPositions
from recbole_hydra.layers.stack import Stack, StackPerDomain, per_layer
from recbole_hydra.layers.text_items import TextItems

__all__ = [
    "Dropout",
    "FeedForward",
    "ItemLLM",
    "ItemMemory",
    "Mamba",
    "MultiHeadMamba",
    "RMSNorm",
    "RepeatBias",
    "RotaryPositions",
    "Stack",
    "StackPerDomain",
    "TextItems",
    "dropout_by_place",
    "find_llm",
    "frozen_states",
    "hash_llm",
    "kept",
    "per_layer",
]
