"""Hydra: multi-head latent Mamba for sequential recommendation (Yuan 2025, arXiv 2504.07398).

The model, top to bottom. d is ``hidden_size``, v ``num_heads``, d_c ``head_dim``, n the length::

    item model          H = RMSNorm(Dropout(E[items]))                          n x d

    Hydra layer,        Ht = RMSNorm(H)
    num_layers times    X = Split(SiLU(W_X Ht)) = [X_1 .. X_v]                  history branch
                        Z = RoPE(SiLU(W_Z Ht))                                  item branch
                        Y = Concat(Mamba_1(X_1) .. Mamba_v(X_v))                n x (v d_c)
                        H = H + Dropout(W_O (norm(Y) * Z))
                        H = H + Dropout(FFN(RMSNorm(H)))

    prediction          scores = RMSNorm(H)_last E^T

What the paper writes is above. What it leaves open is ours, a config key each: the norm on Y
(``y_norm``), the form and width of the FFN (``ffn_type``, ``ffn_size``), Mamba's expansion inside a
head (``expand``), whether prediction shares the item embeddings (``tie_embeddings``), the base of
RoPE (``rope_base``).
"""

import torch
import torch.nn.functional as F
from torch import nn

from recbole_hydra.checks import boolean, one_of, positive_int, positive_number, probability
from recbole_hydra.layers import Dropout, MultiHeadMamba, RotaryPositions, kept
from recbole_hydra.model.sequential_recommender.base import StateSpaceRecommender, per_layer


class Hydra(StateSpaceRecommender):
    """Multi-head latent Mamba (Yuan 2025, arXiv 2504.07398); equations in the module's docstring.

    Config keys: hidden_size, num_layers, num_heads, head_dim, d_state, d_conv, expand,
    dropout_prob, ffn_type, ffn_size, y_norm, rope_base, tie_embeddings, initializer_range,
    norm_eps, loss_type, scan_backend. Defaults and meanings:
    ``properties/model/Hydra.yaml``.

    Raises:
        ConfigError: a key that is missing or out of range, such as an odd ``head_dim``.
    """

    def __init__(self, config, dataset):
        super().__init__(config, dataset)
        d = positive_int("hidden_size", self.setting("hidden_size"))
        num_layers = positive_int("num_layers", self.setting("num_layers"))
        std = positive_number("initializer_range", self.setting("initializer_range"))
        eps = positive_number("norm_eps", self.setting("norm_eps"))
        tied = boolean("tie_embeddings", self.setting("tie_embeddings"))
        dropout = probability("dropout_prob", self.setting("dropout_prob"))

        self.item_embedding = nn.Embedding(self.n_items, d, padding_idx=0)
        self.item_norm = nn.RMSNorm(d, eps)
        self.dropout = Dropout(dropout)
        self.layers = nn.ModuleList(
            HydraLayer(
                d,
                self.setting("num_heads"),
                self.setting("head_dim"),
                mamba={k: self.setting(k) for k in ("d_state", "d_conv", "expand", "scan_backend")},
                rope_base=self.setting("rope_base"),
                y_norm=self.setting("y_norm"),
                ffn_type=self.setting("ffn_type"),
                ffn_size=self.setting("ffn_size"),
                dropout=dropout,
                eps=eps,
            )
            for _ in range(num_layers)
        )
        self.output_norm = nn.RMSNorm(d, eps)
        self.output_embedding = None if tied else nn.Embedding(self.n_items, d, padding_idx=0)

        for module in self.modules():
            if isinstance(module, (nn.Linear, nn.Embedding)):
                nn.init.normal_(module.weight, std=std)
        del self._config

    @property
    def item_table(self):
        """The vectors that states are compared with, (n_items, hidden_size)."""
        return (self.output_embedding or self.item_embedding).weight

    def initial_state(self, batch):
        """The state before the first item; see :meth:`encode`."""
        position = torch.zeros(batch, dtype=torch.long, device=self.item_table.device)
        return position, *(part for x in self.layers for part in x.mamba.initial_state(batch))

    def encode(self, item_seq, state=None, keep=None):
        """Map item ids, (batch, length), to states, (batch, length, hidden_size).

        ``state`` is the position of the first item, (batch,), then two tensors per layer; see
        :meth:`recbole_hydra.layers.Mamba.forward`. With it, returns (states, state after the last).
        With ``keep``, see :func:`recbole_hydra.layers.kept`, the states are those positions' only.
        """
        H = self.item_norm(self.dropout(self.item_embedding(item_seq)))
        last = len(self.layers) - 1
        if state is None:
            for i, layer in enumerate(self.layers):
                H = layer(H, keep=keep if i == last else None)
            return self.output_norm(H)
        position, *parts = state
        after = [position + item_seq.shape[1]]
        for i, mamba_state in enumerate(per_layer(parts)):
            to_keep = keep if i == last else None
            H, mamba_state = self.layers[i](H, position, mamba_state, to_keep)
            after += mamba_state
        return self.output_norm(H), tuple(after)


class HydraLayer(nn.Module):
    """One Hydra layer, pre-norm and residual: multi-head latent Mamba, then a feed-forward network.

    Args:
        d: width of the model.
        num_heads, head_dim: v latent subspaces, each d_c wide (even, for RoPE).
        mamba: keyword arguments of :class:`~recbole_hydra.layers.MultiHeadMamba`.
        rope_base: base of the rotary positions; None leaves the item branch without positions.
        y_norm: "rms" normalises Concat(Y_1 .. Y_v), "head_rms" each Y_i, "none" neither.
        ffn_type: "gelu", W_2 GELU(W_1 x), or "swiglu", W_2 (SiLU(W_1 x) * W_3 x).
        ffn_size: inner width of the feed-forward network.
        dropout: probability of dropout on both residual branches.
        eps: of the RMS norms.
    """

    def __init__(
        self, d, num_heads, head_dim, mamba, rope_base, y_norm, ffn_type, ffn_size, dropout, eps
    ):
        super().__init__()
        self.heads = (num_heads, head_dim)
        self.mamba = MultiHeadMamba(num_heads, head_dim, **mamba)  # checks both sizes
        width = num_heads * head_dim
        self.input_norm = nn.RMSNorm(d, eps)
        self.W_X = nn.Linear(d, width, bias=False)
        self.W_Z = nn.Linear(d, width, bias=False)
        # RotaryPositions refuses an odd head_dim, also where the positions are switched off, so
        # that switching them on later needs no other model.
        rope = RotaryPositions(head_dim, 10_000.0 if rope_base is None else rope_base)
        self.rope = None if rope_base is None else rope
        self.y_norm = {
            "rms": nn.Sequential(nn.Flatten(-2), nn.RMSNorm(width, eps)),
            "head_rms": nn.Sequential(nn.RMSNorm(head_dim, eps), nn.Flatten(-2)),
            "none": nn.Flatten(-2),
        }[one_of("y_norm", y_norm, ("rms", "head_rms", "none"))]
        self.W_O = nn.Linear(width, d, bias=False)
        self.ffn_norm = nn.RMSNorm(d, eps)
        self.ffn = FeedForward(d, ffn_type, ffn_size)
        self.dropout = Dropout(dropout)

    def forward(self, H, position=0, state=None, keep=None):
        """(batch, length, d) to the same; position t sees positions up to t.

        With ``state``, that of the Mambas before position ``position``, (batch,), returns the pair
        (output, state after the last position); ``keep`` restricts the output to some positions.
        """
        Ht = self.input_norm(H)
        X = F.silu(self.W_X(Ht)).unflatten(-1, self.heads)  # (batch, length, v, d_c)
        Z = F.silu(self.W_Z(kept(Ht, keep))).unflatten(-1, self.heads)
        if self.rope is not None:
            Z = self._rotate(Z, position, keep, H.shape[1])
        Y = self.mamba(X, state, keep)
        if state is not None:
            Y, state = Y
        H = kept(H, keep)
        H = H + self.dropout(self.W_O(self.y_norm(Y) * Z.flatten(-2)))
        H = H + self.dropout(self.ffn(self.ffn_norm(H)))
        return H if state is None else (H, state)

    def _rotate(self, Z, position, keep, length):
        """Apply RoPE to Z, (batch, length, v, d_c), or to the positions kept of it."""
        if keep is None:
            return self.rope(Z, position)
        if isinstance(position, torch.Tensor):
            position = position.index_select(0, keep // length)
        # Every kept position is a sequence of one, with its own offset.
        return self.rope(Z.unsqueeze(1), position + keep % length).squeeze(1)


class FeedForward(nn.Module):
    """Position-wise feed-forward network, without biases; see :class:`HydraLayer`."""

    def __init__(self, d, ffn_type, ffn_size):
        super().__init__()
        one_of("ffn_type", ffn_type, ("gelu", "swiglu"))
        positive_int("ffn_size", ffn_size)
        self.w_1 = nn.Linear(d, ffn_size, bias=False)
        self.w_3 = nn.Linear(d, ffn_size, bias=False) if ffn_type == "swiglu" else None
        self.w_2 = nn.Linear(ffn_size, d, bias=False)

    def forward(self, x):
        """(batch, length, d) to the same."""
        if self.w_3 is None:
            return self.w_2(F.gelu(self.w_1(x)))
        return self.w_2(F.silu(self.w_1(x)) * self.w_3(x))
