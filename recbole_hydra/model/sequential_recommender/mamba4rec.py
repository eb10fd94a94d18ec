"""Mamba4Rec (Liu et al. 2024, arXiv 2403.03900)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

import torch.nn.functional as F
from torch import Tensor, nn

from recbole_hydra.checks import boolean, positive_int, probability
from recbole_hydra.layers import Dropout, Mamba, kept, per_layer
from recbole_hydra.model.items import Items
from recbole_hydra.model.sequential_recommender.base import StateSpaceRecommender

if TYPE_CHECKING:
    from recbole.config import Config
    from recbole.data.dataset import Dataset


class Mamba4Rec(StateSpaceRecommender):
    """Mamba for sequential recommendation: the first selective-state-space sequential recommender.

    ::

        H = LayerNorm(Dropout(Embedding(items)))                       section 3.2
        N times:                                                       section 3.3
            H = LayerNorm(Dropout(Mamba(H)) [+ H, only when N > 1])
            H = LayerNorm(Dropout(W_2 Dropout(GELU(W_1 H))) + H)
        scores = <H at the last item, item embeddings>                 section 3.4

    ``state_dict`` keys and shapes are those of the authors' release. So is the initialisation: it
    overwrites every Linear, Mamba's own ones included, with N(0, 0.02) and zero biases, which
    discards Mamba's initial step sizes; ``keep_mamba_init: True`` keeps them.

    Config keys: hidden_size, num_layers, dropout_prob, d_state, d_conv, expand, keep_mamba_init,
    repeat_bias, history_as_one, loss_type, scan_backend. Defaults:
    ``properties/model/Mamba4Rec.yaml``.

    Raises:
        ConfigError: a key that is missing or out of range.
    """

    def __init__(self, config: Config, dataset: Dataset) -> None:
        super().__init__(config, dataset)
        hidden_size = positive_int("hidden_size", self.setting("hidden_size"))
        num_layers = positive_int("num_layers", self.setting("num_layers"))
        dropout = probability("dropout_prob", self.setting("dropout_prob"))
        mamba = {key: self.setting(key) for key in ("d_state", "d_conv", "expand", "scan_backend")}
        keep_mamba_init = boolean("keep_mamba_init", self.setting("keep_mamba_init"))

        self.item_embedding = nn.Embedding(self.n_items, hidden_size, padding_idx=0)
        self.items = Items(self.n_items, self.item_embedding)
        self.LayerNorm = nn.LayerNorm(hidden_size, eps=1e-12)
        self.dropout = Dropout(dropout)
        self.mamba_layers = nn.ModuleList(
            MambaLayer(hidden_size, dropout, residual=num_layers > 1, **mamba)
            for _ in range(num_layers)
        )

        kept: set[nn.Module] = set()
        if keep_mamba_init:
            kept = {m for layer in self.mamba_layers for m in cast(Mamba, layer.mamba).modules()}
        for module in self.modules():
            if isinstance(module, (nn.Linear, nn.Embedding)) and module not in kept:
                nn.init.normal_(module.weight, std=0.02)
                if getattr(module, "bias", None) is not None:
                    nn.init.zeros_(cast(Tensor, module.bias))
        del self._config

    def initial_state(self, batch: int) -> tuple[Tensor, ...]:
        """The state before the first item; see :meth:`encode`."""
        mambas = [cast(Mamba, layer.mamba) for layer in self.mamba_layers]
        return tuple(part for mamba in mambas for part in mamba.initial_state(batch))

    def encode(  # type: ignore[override]
        self,
        item_seq: Tensor,
        state: tuple[Tensor, ...] | None = None,
        keep: Tensor | None = None,
    ) -> Tensor | tuple[Tensor, tuple[Tensor, ...]]:
        """Map item ids, (batch, length), to states, (batch, length, hidden_size).

        ``state`` is two tensors per layer; see :meth:`recbole_hydra.layers.Mamba.forward`. With it,
        returns (states, state after the last item). With ``keep``, see
        :func:`recbole_hydra.layers.kept`, the states are those positions' only.
        """
        H = self.LayerNorm(self.dropout(self.items.vectors(item_seq)))
        last = len(self.mamba_layers) - 1
        if state is None:
            for i, layer in enumerate(self.mamba_layers):
                H = layer(H, keep=keep if i == last else None)
            return H
        after: list[Tensor] = []
        for i, mamba_state in enumerate(per_layer(state)):
            H, mamba_state = self.mamba_layers[i](H, mamba_state, keep if i == last else None)
            after += mamba_state
        return H, tuple(after)


class MambaLayer(nn.Module):
    """A Mamba block and a feed-forward network, each followed by LayerNorm."""

    def __init__(self, hidden_size: int, dropout: float, residual: bool, **mamba: Any) -> None:
        super().__init__()
        self.residual = residual
        self.mamba = Mamba(hidden_size, **mamba)
        self.dropout = Dropout(dropout)
        self.LayerNorm = nn.LayerNorm(hidden_size, eps=1e-12)
        self.ffn = FeedForward(hidden_size, 4 * hidden_size, dropout)

    def forward(
        self,
        H: Tensor,
        state: tuple[Tensor, Tensor] | None = None,
        keep: Tensor | None = None,
    ) -> Tensor | tuple[Tensor, tuple[Tensor, Tensor]]:
        """(batch, length, hidden_size) to the same; with ``state``, (output, state after it);
        ``keep`` restricts the output to some positions."""
        out = self.mamba(H, state, keep)
        if state is not None:
            out, state = out
        out = self.dropout(out)
        out = self.ffn(self.LayerNorm(out + kept(H, keep) if self.residual else out))
        return out if state is None else (out, state)


class FeedForward(nn.Module):
    """Position-wise feed-forward network with GELU, residual and LayerNorm."""

    def __init__(self, hidden_size: int, inner_size: int, dropout: float) -> None:
        super().__init__()
        self.w_1 = nn.Linear(hidden_size, inner_size)
        self.w_2 = nn.Linear(inner_size, hidden_size)
        self.dropout = Dropout(dropout)
        self.LayerNorm = nn.LayerNorm(hidden_size, eps=1e-12)

    def forward(self, H: Tensor) -> Tensor:
        """(batch, length, hidden_size) to the same."""
        out = self.dropout(self.w_2(self.dropout(F.gelu(self.w_1(H)))))
        return self.LayerNorm(out + H)
