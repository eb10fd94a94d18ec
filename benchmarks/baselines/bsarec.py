"""BSARec: self-attention beside a filter of frequencies (Shin et al., AAAI 2024, arXiv 2312.10325).

::

    H = dropout(LN(E[items] + P))                         padded on the LEFT to L positions
    F(H) = low(H) + beta^2 (H - low(H))                   section 4.1, eq. 5-7; beta per channel
    A = LN(H + dropout(W_o softmax(Q K' / sqrt(d_h)) V))  self-attention, causal among items
    Z = alpha LN(H + dropout(F(H))) + (1 - alpha) A       section 4.2, eq. 8
    H = LN(Z + dropout(W_2 gelu(W_1 Z)))                  next layer
    scores = E h_L,    loss: cross-entropy over all items, section 4.4

low() keeps the lowest ``c // 2 + 1`` frequencies of a discrete Fourier transform over all L
positions, padding included. So a state depends on later items and on L: the model is not causal,
and is trained on RecBole's prefixes.

Read from the authors' release, where the paper leaves it open: padding positions have vectors, that
of item 0 plus their position's; scores of masked pairs are lowered by 10000, so that positions of
padding, which may attend to nothing, attend to everything; all weights start with a standard
deviation of 0.02, beta as a standard normal; item 0 has a score in the loss; and every user's first
item is predicted, too, from a row of padding alone.

Settings:
    hidden_size, n_layers, n_heads, inner_size: widths, inner_size that of W_1.
    hidden_dropout_prob, attn_dropout_prob: on vectors and branches; on attention.
    layer_norm_eps, initializer_range: 1e-12 and 0.02 in the release.
    alpha: weight of the filter against self-attention, 0 .. 1.
    c: how many frequencies are low, ``c // 2 + 1``.
    predict_first_item: train on rows without a history, as the release does.
    loss_type: CE.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from recbole.config import Config
from recbole.data.dataset import Dataset
from recbole.data.interaction import Interaction
from recbole.model.abstract_recommender import SequentialRecommender
from torch import Tensor, nn

from recbole_hydra.checks import boolean, fraction, one_of, positive_int, probability
from recbole_hydra.errors import ConfigError
from recbole_hydra.layers import Dropout
from recbole_hydra.ops import linear_cross_entropy

#: What scores of attention are lowered by where a position may not look.
_MASKED = -10000.0


class BSARec(SequentialRecommender):
    """See the module; of RecBole's form, its items are padded on the right.

    Raises:
        ConfigError: a setting that is missing, or cannot be.
    """

    def __init__(self, config: Config, dataset: Dataset) -> None:
        super().__init__(config, dataset)
        self._config = config
        width = positive_int("hidden_size", self.setting("hidden_size"))
        heads = positive_int("n_heads", self.setting("n_heads"))
        if width % heads:
            raise ConfigError(f"n_heads: {heads} heads do not divide hidden_size {width}")
        eps = self.setting("layer_norm_eps")
        dropout = probability("hidden_dropout_prob", self.setting("hidden_dropout_prob"))
        attention = probability("attn_dropout_prob", self.setting("attn_dropout_prob"))
        alpha = fraction("alpha", self.setting("alpha"))
        low = positive_int("c", self.setting("c")) // 2 + 1
        inner = positive_int("inner_size", self.setting("inner_size"))
        number = positive_int("n_layers", self.setting("n_layers"))
        self.predict_first_item = boolean("predict_first_item", self.setting("predict_first_item"))
        self.item_embedding = nn.Embedding(self.n_items, width, padding_idx=0)
        self.position_embedding = nn.Embedding(self.max_seq_length, width)
        self.norm = nn.LayerNorm(width, eps=eps)
        self.dropout = Dropout(dropout)
        self.layers = nn.ModuleList(
            BSARecLayer(
                Filter(self.max_seq_length, width, low, dropout, eps),
                Attention(width, heads, dropout, attention, eps),
                FeedForward(width, inner, dropout, eps),
                alpha,
            )
            for _ in range(number)
        )
        self.loss_type = one_of("loss_type", self.setting("loss_type"), ("CE",))
        self.std = self.setting("initializer_range")
        self.apply(self._start)
        del self._config

    def setting(self, key: str) -> Any:
        """Return config[key]; a key that nobody set is an error."""
        value = self._config[key]
        if value is None:
            raise ConfigError(
                f"BSARec needs the config key {key!r}; its published settings are in BSARec.yaml"
            )
        return value

    def _start(self, module: nn.Module) -> None:
        if isinstance(module, (nn.Linear, nn.Embedding)):
            nn.init.normal_(module.weight, std=self.std)
        if isinstance(module, nn.Linear):
            nn.init.zeros_(module.bias)

    def forward(self, item_seq: Tensor, item_seq_len: Tensor) -> Tensor:
        """Return the state at the last item of each row, (batch, width).

        Args:
            item_seq: item ids, padded on the right, (batch, length).
            item_seq_len: items of each row, (batch,); 0 is a row of padding alone.
        """
        item_seq = padded_on_the_left(item_seq, item_seq_len, self.max_seq_length)
        H = self.dropout(self.norm(self.item_embedding(item_seq) + self.position_embedding.weight))
        bias = attention_bias(item_seq)
        for layer in self.layers[:-1]:
            H = layer(H, bias)
        return self.layers[-1](H, bias, last=True).squeeze(1)  # nothing reads the other positions

    def calculate_loss(self, interaction: Interaction) -> Tensor:
        """Mean cross-entropy of a batch of RecBole's rows, those of first items beside them."""
        item_seq, length = interaction[self.ITEM_SEQ], interaction[self.ITEM_SEQ_LEN]
        targets = interaction[self.POS_ITEM_ID]
        if self.predict_first_item and bool((first := length == 1).any()):
            # Every user has one row with one item, which is the target of the row without any.
            targets = torch.cat([targets, item_seq[first, 0]])
            item_seq = torch.cat([item_seq, torch.zeros_like(item_seq[first])])
            length = torch.cat([length, torch.zeros_like(length[first])])
        states = self.forward(item_seq, length)
        return linear_cross_entropy(states, self.item_embedding.weight, targets)

    def predict(self, interaction: Interaction) -> Tensor:
        """Score of each row's one candidate, (batch,)."""
        states = self.forward(interaction[self.ITEM_SEQ], interaction[self.ITEM_SEQ_LEN])
        return (states * self.item_embedding(interaction[self.ITEM_ID])).sum(-1)

    def full_sort_predict(self, interaction: Interaction) -> Tensor:
        """Scores of all items for each row, (batch, n_items)."""
        states = self.forward(interaction[self.ITEM_SEQ], interaction[self.ITEM_SEQ_LEN])
        return states @ self.item_embedding.weight.T


class BSARecLayer(nn.Module):
    """A filter and self-attention beside each other, and a feed-forward network."""

    def __init__(
        self, low_pass: Filter, attention: Attention, ffn: FeedForward, alpha: float
    ) -> None:
        super().__init__()
        self.filter, self.attention, self.ffn, self.alpha = low_pass, attention, ffn, alpha

    def forward(self, H: Tensor, bias: Tensor, last: bool = False) -> Tensor:
        """Map (batch, L, width) to the same, or with ``last`` to (batch, 1, width), the last
        position alone. ``bias``: of :func:`attention_bias`."""
        filtered, attended = self.filter(H, last), self.attention(H, bias, last)
        return self.ffn(self.alpha * filtered + (1 - self.alpha) * attended)


class Filter(nn.Module):
    """LN(H + dropout(low + beta^2 (H - low))), low being the lowest frequencies of H.

    They are a projection on as many waves as there are, cosines and sines over the positions: two
    small matrix products instead of two Fourier transforms.

    Args:
        length: L, positions. low: how many frequencies are kept as they are.
    """

    waves: Tensor

    def __init__(self, length: int, width: int, low: int, dropout: float, eps: float) -> None:
        super().__init__()
        self.register_buffer("waves", lowest_waves(length, low), persistent=False)
        self.beta = nn.Parameter(torch.randn(width))
        self.dropout, self.norm = Dropout(dropout), nn.LayerNorm(width, eps=eps)

    def low(self, H: Tensor, last: bool = False) -> Tensor:
        """The low frequencies of H, (batch, L, width), at all positions or the last."""
        return (self.waves[-1:] if last else self.waves) @ (self.waves.T @ H)

    def forward(self, H: Tensor, last: bool = False) -> Tensor:
        """Map (batch, L, width) to the same, or with ``last`` to (batch, 1, width)."""
        low = self.low(H, last)
        H = H[:, -1:] if last else H
        share = self.beta**2
        return self.norm(H + self.dropout(share * H + (1 - share) * low))


class Attention(nn.Module):
    """LN(H + dropout(W_o softmax(Q K' / sqrt(d_h) + bias) V))."""

    def __init__(
        self, width: int, heads: int, dropout: float, attention: float, eps: float
    ) -> None:
        super().__init__()
        self.heads = heads
        self.query, self.key, self.value = (nn.Linear(width, width) for _ in range(3))
        self.dense, self.norm = nn.Linear(width, width), nn.LayerNorm(width, eps=eps)
        self.dropout, self.attention_dropout = Dropout(dropout), Dropout(attention)

    def forward(self, H: Tensor, bias: Tensor, last: bool = False) -> Tensor:
        """Map (batch, L, width) to the same, or with ``last`` to (batch, 1, width)."""
        own = H[:, -1:] if last else H
        bias = bias[:, :, -1:] if last else bias
        query = self._split(self.query(own)) / math.sqrt(H.shape[-1] // self.heads)
        weights = torch.softmax(query @ self._split(self.key(H)).transpose(2, 3) + bias, dim=-1)
        mixed = self.attention_dropout(weights) @ self._split(self.value(H))
        return self.norm(own + self.dropout(self.dense(mixed.transpose(1, 2).flatten(2))))

    def _split(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.heads, -1)).transpose(1, 2)


class FeedForward(nn.Module):
    """LN(Z + dropout(W_2 gelu(W_1 Z)))."""

    def __init__(self, width: int, inner: int, dropout: float, eps: float) -> None:
        super().__init__()
        self.inner, self.outer = nn.Linear(width, inner), nn.Linear(inner, width)
        self.dropout, self.norm = Dropout(dropout), nn.LayerNorm(width, eps=eps)

    def forward(self, Z: Tensor) -> Tensor:
        """Map (batch, length, width) to the same."""
        return self.norm(Z + self.dropout(self.outer(F.gelu(self.inner(Z)))))


def lowest_waves(length: int, number: int) -> Tensor:
    """Orthonormal cosines and sines of the ``number`` lowest frequencies, (length, waves): their
    outer product is the low-pass of a discrete Fourier transform of ``length`` positions."""
    t = torch.arange(length, dtype=torch.float64) * (2 * math.pi / length)
    waves = []
    for k in range(min(number, length // 2 + 1)):
        waves.append(torch.cos(k * t))
        if 0 < 2 * k < length:
            waves.append(torch.sin(k * t))
    return torch.stack([wave / wave.norm() for wave in waves], dim=1).float()


def padded_on_the_left(item_seq: Tensor, length: Tensor, size: int) -> Tensor:
    """Move the items of rows padded on the right, (batch, any), to the right end of (batch, size);
    of more than ``size`` items the last are kept."""
    place = torch.arange(-size, 0, device=item_seq.device) + length[:, None]
    return item_seq.gather(1, place.clamp_min(0)) * (place >= 0)


def attention_bias(item_seq: Tensor) -> Tensor:
    """What is added to attention's scores, (batch, 1, L, L): 0 where a position may look, at items
    up to itself, and -10000 elsewhere."""
    size = item_seq.shape[1]
    earlier = torch.ones(size, size, dtype=torch.bool, device=item_seq.device).tril()
    return torch.where(earlier & (item_seq > 0)[:, None, :], 0.0, _MASKED).unsqueeze(1)
