"""Hydra: multi-head latent Mamba for sequential recommendation (Yuan 2025, arXiv 2504.07398).

The model, top to bottom. d is ``hidden_size``, v ``num_heads``, d_c ``head_dim``, n the length::

    item model          H0 = E[items], or W LLM(text, [ITEM]), or their sum     n x d
                        H = RMSNorm(Dropout(H0))

    Hydra layer,        Ht = RMSNorm(H)
    num_layers times    X = Split(SiLU(W_X Ht)) = [X_1 .. X_v]                  history branch
                        Z = RoPE(SiLU(W_Z Ht))                                  item branch
                        Y = Concat(Mamba_1(X_1) .. Mamba_v(X_v))                n x (v d_c)
                        H = H + Dropout(W_O (norm(Y) * Z) + W_Y norm(Y))
                        H = H + Dropout(FFN(RMSNorm(H)))

    prediction          scores = Dropout(RMSNorm(H))_last H0_all^T + repeat bias

What the paper writes is above, but for W_Y and the places of dropout. What it leaves open is ours,
a config key each: the norms on Y (``y_norm``) and before prediction (``output_norm``), the form and
width of the FFN (``ffn_type``, ``ffn_size``), Mamba's expansion inside a head (``expand``), whether
prediction shares the item embeddings (``tie_embeddings``), the base of RoPE (``rope_base``), where
dropout is (``dropout_places``), how weights begin (``initializer_range`` for items,
``linear_initializer_range``, ``mamba_start`` inside the heads). benchmarks/ablation.py measures
them, one at a time.

Ours is W_Y (``history_path``): the history also goes on by itself, so that what it says of the next
item need not be learned anew for every last item. Ours is the repeat bias (``repeat_bias``):
through the residuals the last item's vector reaches the state that is compared with all items, so
that this item ranks first, on most data wrongly; a learned number on the scores of items in the
history, and another for each item, say how often it is right. They are learned beside the scores,
whose loss does not know of them: what the user has had stays what the model must tell the next item
apart from, hardest of all. A long history would be most of that; it counts as one item, in that
each of its h items has log h less in the softmax of the loss (``history_as_one``). Ours is also the
sum of both item models, in which E starts at zero: an item is what its text says, and what its
users add to that (as in collaborative topic regression, Wang and Blei 2011); one without users is
its text alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch.nn.functional as F
from torch import Tensor, nn

from recbole_hydra.checks import boolean, one_of, positive_int, positive_number
from recbole_hydra.errors import ConfigError
from recbole_hydra.layers import FeedForward, RMSNorm, RotaryPositions
from recbole_hydra.layers.dropout import Dropout, dropout_by_place
from recbole_hydra.layers.mamba import MultiHeadMamba, kept
from recbole_hydra.layers.stack import Stack, StackPerDomain
from recbole_hydra.model.items import ENCODERS, Items, text_items
from recbole_hydra.model.sequential_recommender.base import StateSpaceRecommender

if TYPE_CHECKING:
    from recbole.config import Config
    from recbole.data.dataset import Dataset


class Hydra(StateSpaceRecommender):
    """Multi-head latent Mamba (Yuan 2025, arXiv 2504.07398); equations in the module's docstring.

    Config keys: hidden_size, num_layers, num_heads, head_dim, d_state, d_conv, expand,
    dropout_prob, dropout_places, ffn_type, ffn_size, y_norm, history_path, output_norm,
    rope_base, tie_embeddings, repeat_bias, history_as_one, initializer_range,
    linear_initializer_range, norm_eps, loss_type, scan_backend, user_model, item_encoder and, for
    text, the item_* and llm_* and lora_* keys. Defaults and meanings:
    ``properties/model/Hydra.yaml``.

    With text the dataset has the texts of its items, ``item_text`` (n_items,), and the catalogue
    may have items without interactions; the loss tells targets apart from items of training only.
    With several domains the dataset has ``domains``, see :mod:`recbole_hydra.data.domains`.

    Raises:
        ConfigError: a key that is missing or out of range, such as an odd ``head_dim``.
    """

    OWN_REPEAT_BIAS = True  # behind the others, as its checkpoints have it

    def __init__(self, config: Config, dataset: Dataset) -> None:
        has_text = "text" in str(config["item_encoder"])
        super().__init__(config, dataset, trained_only=has_text)
        d = positive_int("hidden_size", self.setting("hidden_size"))
        keys = ("initializer_range", "linear_initializer_range")
        std, linear_std = (positive_number(key, self.setting(key)) for key in keys)
        eps = positive_number("norm_eps", self.setting("norm_eps"))
        tied = boolean("tie_embeddings", self.setting("tie_embeddings"))
        encoder = one_of("item_encoder", self.setting("item_encoder"), ENCODERS)
        if has_text and not tied:
            raise ConfigError(
                "tie_embeddings: False gives the scores a table of ids; item_encoder "
                f"{encoder} needs True"
            )
        dropout = dropout_by_place(self.setting("dropout_prob"), self.setting("dropout_places"))
        by_id = "id" in encoder
        self.item_embedding = nn.Embedding(self.n_items, d, padding_idx=0) if by_id else None
        self.item_norm = RMSNorm(d, eps)
        self.dropout = Dropout(dropout["item"])
        #: With ``user_model: per_domain`` the layers of each domain, otherwise those of all.
        self.layers = self._stacks(dataset, d, dropout, eps)
        normed = boolean("output_norm", self.setting("output_norm"))
        self.output_norm = RMSNorm(d, eps) if normed else nn.Identity()
        self.output_dropout = Dropout(dropout["output"])
        self.output_embedding = None if tied else nn.Embedding(self.n_items, d, padding_idx=0)
        self.prepare_repeat_bias(self.setting("repeat_bias"), by_id)

        for module in self.modules():
            if isinstance(module, nn.Embedding):
                nn.init.normal_(module.weight, std=std)
            elif isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, std=linear_std)
        tables = self.item_embedding, self.output_embedding
        self.items = Items(self.n_items, *tables, bool(config["show_progress"]))
        self.item_text = None
        if has_text:
            self.item_text = text_items(self.setting, config, dataset, d, std, self.loss_type)
            self.items.describe(self.item_text)
        del self._config

    def _stacks(
        self, dataset: Dataset, d: int, dropout: Mapping[str, float], eps: float
    ) -> Stack | StackPerDomain:
        """The Hydra layers: of all users, or of each domain's."""
        num_layers = positive_int("num_layers", self.setting("num_layers"))
        keys = ("rope_base", "y_norm", "history_path", "ffn_type", "ffn_size")
        mamba = {key: self.setting(key) for key in ("d_state", "d_conv", "expand", "scan_backend")}

        def stack() -> Stack:
            heads = self.setting("num_heads"), self.setting("head_dim")
            own = {**mamba, "start": self.setting("mamba_start")}
            others = {key: self.setting(key) for key in keys}
            return Stack(
                HydraLayer(d, *heads, own, **others, dropout=dropout, eps=eps)
                for _ in range(num_layers)
            )

        choice = one_of("user_model", self.setting("user_model"), ("shared", "per_domain"))
        domains = getattr(dataset, "domains", None)
        if choice == "shared" or domains is None:
            return stack()
        start = [first for first, _ in domains.ranges()]
        return StackPerDomain([stack() for _ in start], start)

    def initial_state(self, batch: int) -> tuple[Tensor, ...]:
        """The state before the first item; see :meth:`encode`."""
        return self.layers.initial_state(batch)

    def encode(  # type: ignore[override]
        self, item_seq: Tensor, state: tuple[Tensor, ...] | None = None, keep: Tensor | None = None
    ) -> Tensor | tuple[Tensor, tuple[Tensor, ...]]:
        """Map item ids, (batch, length), to states, (batch, length, hidden_size).

        ``state`` is the position of the first item, (batch,), then two tensors per layer; see
        :meth:`recbole_hydra.layers.Mamba.forward`. With it, returns (states, state after the last).
        With ``keep``, see :func:`recbole_hydra.layers.kept`, the states are those positions' only.
        """
        H0 = self.items.vectors(item_seq)
        H = self.item_norm(self.dropout(H0))
        H, state = self.layers(H, state, keep, item_seq)
        H = self.output_dropout(self.output_norm(H))
        return H if state is None else (H, state)

    def add_items(self, texts: Sequence[str], place: int, config: Config) -> None:
        """See the base class; the domains behind move up."""
        super().add_items(texts, place, config)
        self.layers.move_items(place, len(texts))


class HydraLayer(nn.Module):
    """One Hydra layer, pre-norm and residual: multi-head latent Mamba, then a feed-forward network.

    Args:
        d: width of the model.
        num_heads, head_dim: v latent subspaces, each d_c wide (even, for RoPE).
        mamba: keyword arguments of :class:`~recbole_hydra.layers.MultiHeadMamba`.
        rope_base: base of the rotary positions; None leaves the item branch without positions.
        history_path: whether Y also reaches the output by a map of its own, not only in its product
            with Z.
        y_norm: "rms" normalises Concat(Y_1 .. Y_v), "head_rms" each Y_i, "none" neither.
        ffn_type: "gelu", W_2 GELU(W_1 x), or "swiglu", W_2 (SiLU(W_1 x) * W_3 x).
        ffn_size: inner width of the feed-forward network.
        dropout: probabilities of dropout on the residual branches, "mamba" and "ffn".
        eps: of the RMS norms.
    """

    def __init__(
        self, d: int, num_heads: int, head_dim: int, mamba: Mapping[str, Any],
        rope_base: float | None, y_norm: str, history_path: bool, ffn_type: str, ffn_size: int,
        dropout: Mapping[str, float], eps: float,
    ) -> None:  # fmt: skip
        super().__init__()
        self.heads = (num_heads, head_dim)
        self.mamba = MultiHeadMamba(num_heads, head_dim, **mamba)  # checks both sizes
        width = num_heads * head_dim
        self.input_norm = RMSNorm(d, eps)
        self.W_X = nn.Linear(d, width, bias=False)
        self.W_Z = nn.Linear(d, width, bias=False)
        # RotaryPositions refuses an odd head_dim, also where the positions are switched off, so
        # that switching them on later needs no other model.
        rope = RotaryPositions(head_dim, 10_000.0 if rope_base is None else rope_base)
        self.rope = None if rope_base is None else rope
        self.y_norm = {
            "rms": nn.Sequential(nn.Flatten(-2), RMSNorm(width, eps)),
            "head_rms": nn.Sequential(RMSNorm(head_dim, eps), nn.Flatten(-2)),
            "none": nn.Flatten(-2),
        }[one_of("y_norm", y_norm, ("rms", "head_rms", "none"))]
        self.W_O = nn.Linear(width, d, bias=False)
        has_path = boolean("history_path", history_path)
        self.W_Y = nn.Linear(width, d, bias=False) if has_path else None
        self.ffn_norm = RMSNorm(d, eps)
        self.ffn = FeedForward(d, ffn_type, ffn_size)
        self.mamba_dropout = Dropout(dropout["mamba"])
        self.ffn_dropout = Dropout(dropout["ffn"])

    def forward(
        self, H: Tensor, position: int | Tensor = 0, state: tuple[Tensor, Tensor] | None = None,
        keep: Tensor | None = None,
    ) -> Tensor | tuple[Tensor, tuple[Tensor, Tensor]]:  # fmt: skip
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
        Y = self.y_norm(Y)
        out = self.W_O(Y * Z.flatten(-2))
        if self.W_Y is not None:
            out = out + self.W_Y(Y)
        H = kept(H, keep) + self.mamba_dropout(out)
        H = H + self.ffn_dropout(self.ffn(self.ffn_norm(H)))
        return H if state is None else (H, state)

    def _rotate(
        self, Z: Tensor, position: int | Tensor, keep: Tensor | None, length: int
    ) -> Tensor:
        """Apply RoPE to Z, (batch, length, v, d_c), or to the positions kept of it."""
        assert self.rope is not None
        if keep is None:
            return self.rope(Z, position)
        if isinstance(position, Tensor):
            position = position.index_select(0, keep // length)
        # Every kept position is a sequence of one, with its own offset.
        return self.rope(Z.unsqueeze(1), position + keep % length).squeeze(1)
