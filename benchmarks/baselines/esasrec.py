"""eSASRec: SASRec with LiGR layers and a sampled softmax (Tikhonovich et al., RecSys 2025, arXiv
2508.06450; the layers are those of LiGR, arXiv 2502.03417).

::

    H = dropout(E[items] + P)
    H = H + sigmoid(W_1 H + b_1) * dropout(MHA(LN(H)))        causal self-attention
    H = H + sigmoid(W_2 H + b_2) * dropout(SwiGLU(LN(H)))     no norm after the last
    SwiGLU(x) = W_d dropout(silu(W_g x) * W_u x)
    scores = E h_t
    loss = -log(exp(s+) / (exp(s+) + sum_k exp(s-_k)))        k uniform negatives, no correction

Read from the authors' release and RecTools, where the paper leaves it open: matrices and embeddings
start by Xavier's normal rule (section "Models" has the layers alone), SwiGLU has no biases.

One thing is ours. Positions count from the first item, there from the last one of a window, which
no causal model can: its states would change with every item that is added behind them.

Settings:
    hidden_size, n_layers, n_heads: widths. inner_multiple: inner width of SwiGLU by hidden_size.
    dropout_prob: at all four places, and on attention.
    own_negatives: each target has num_negatives of its own, as there (True), or the targets of a
        batch share as many, which takes a third of the time and is noisier (False).
    loss_type, num_negatives, logq_correction: SampledCE, 256 and False as published.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from recbole.config import Config
from recbole.data.dataset import Dataset
from torch import Tensor, nn

from recbole_hydra import CausalRecommender, Items
from recbole_hydra.checks import boolean, positive_int, probability
from recbole_hydra.errors import ConfigError
from recbole_hydra.layers import Dropout


class eSASRec(CausalRecommender):  # noqa: N801 (its name)
    """See the module.

    Raises:
        ConfigError: a setting that is missing, or cannot be.
    """

    def __init__(self, config: Config, dataset: Dataset) -> None:
        super().__init__(config, dataset)
        width = positive_int("hidden_size", self.setting("hidden_size"))
        heads = positive_int("n_heads", self.setting("n_heads"))
        if width % heads:
            raise ConfigError(f"n_heads: {heads} heads do not divide hidden_size {width}")
        inner = width * positive_int("inner_multiple", self.setting("inner_multiple"))
        dropout = probability("dropout_prob", self.setting("dropout_prob"))
        number = positive_int("n_layers", self.setting("n_layers"))
        self.item_embedding = nn.Embedding(self.n_items, width, padding_idx=0)
        self.items = Items(self.n_items, self.item_embedding)
        self.position_embedding = nn.Embedding(self.max_seq_length, width)
        self.dropout = Dropout(dropout)
        self.layers = nn.ModuleList(LiGRLayer(width, heads, inner, dropout) for _ in range(number))
        self.own_negatives = boolean("own_negatives", self.setting("own_negatives"))
        if self.own_negatives and self.loss_type != "SampledCE":
            raise ConfigError(f"own_negatives: for loss_type SampledCE, not {self.loss_type}")
        self.num_negatives = positive_int("num_negatives", self.setting("num_negatives"))
        for parameter in self.parameters():
            if parameter.dim() > 1:
                nn.init.xavier_normal_(parameter)

    def states(self, item_seq: Tensor) -> Tensor:
        """Map item ids, (batch, length), to states, (batch, length, width)."""
        H = self.items.vectors(item_seq) + self.position_embedding.weight[: item_seq.shape[1]]
        H = self.dropout(H)
        for layer in self.layers:
            H = layer(H)
        return H

    def target_loss(
        self,
        states: Tensor,
        targets: Tensor,
        history: tuple[Tensor, Tensor],
        negatives: Tensor | None = None,
    ) -> Tensor:
        """The loss of ``loss_type``; with ``own_negatives`` the mean of -log of the softmax of each
        target among itself and items drawn for it alone, with replacement, itself included."""
        if not self.own_negatives:
            return super().target_loss(states, targets, history, negatives)
        shape = len(targets), self.num_negatives
        drawn = torch.randint(1, self.n_items, shape, device=targets.device)
        items, table = torch.cat([targets[:, None], drawn], dim=1), self.item_table
        if self.n_items <= self.num_negatives * table.shape[1]:
            # Scores of all items take less than the vectors of those that are drawn.
            scores = (states @ table.T).gather(1, items)
        else:
            scores = (F.embedding(items, table) @ states.unsqueeze(2)).squeeze(2)
        return F.cross_entropy(scores, torch.zeros_like(targets))


class LiGRLayer(nn.Module):
    """Self-attention and SwiGLU, each behind a gate that the residual opens."""

    def __init__(self, width: int, heads: int, inner: int, dropout: float) -> None:
        super().__init__()
        self.attention, self.swiglu = (
            Attention(width, heads, dropout),
            SwiGLU(width, inner, dropout),
        )
        self.attention_norm, self.swiglu_norm = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention_gate, self.swiglu_gate = nn.Linear(width, width), nn.Linear(width, width)
        self.attention_dropout, self.swiglu_dropout = Dropout(dropout), Dropout(dropout)

    def forward(self, H: Tensor) -> Tensor:
        """Map (batch, length, width) to the same."""
        attended = self.attention_dropout(self.attention(self.attention_norm(H)))
        H = H + torch.sigmoid(self.attention_gate(H)) * attended
        fed = self.swiglu_dropout(self.swiglu(self.swiglu_norm(H)))
        return H + torch.sigmoid(self.swiglu_gate(H)) * fed


class Attention(nn.Module):
    """Causal multi-head self-attention with dropout on its weights."""

    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads, self.p = heads, dropout
        self.projection, self.dense = nn.Linear(width, 3 * width), nn.Linear(width, width)
        nn.init.zeros_(self.projection.bias)
        nn.init.zeros_(self.dense.bias)

    def forward(self, H: Tensor) -> Tensor:
        """Map (batch, length, width) to the same."""
        Q, K, V = self.projection(H).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        dropout = self.p if self.training else 0.0
        mixed = F.scaled_dot_product_attention(Q, K, V, dropout_p=dropout, is_causal=True)
        return self.dense(mixed.transpose(1, 2).flatten(2))


class SwiGLU(nn.Module):
    """W_d dropout(silu(W_g x) * W_u x)."""

    def __init__(self, width: int, inner: int, dropout: float) -> None:
        super().__init__()
        self.gate, self.up = (nn.Linear(width, inner, bias=False) for _ in range(2))
        self.down, self.dropout = nn.Linear(inner, width, bias=False), Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        """Map (..., width) to the same."""
        return self.down(self.dropout(F.silu(self.gate(x)) * self.up(x)))
