"""LRURec: linear recurrent units (Yue et al., WSDM 2024, arXiv 2310.02367).

::

    X = LN(dropout(E[items]))                               there are no positions
    h_t = lambda * h_(t-1) + gamma * (B x_t + b)            complex, section 4.2; all t by a scan
    lambda = exp(-exp(nu) + i exp(theta)),    |lambda| < 1
    X = LN(X + dropout(Re(C h + c)))                        section 4.3
    X = LN(X + dropout(W_2 dropout(gelu(W_1 X))))           the next layer's
    scores = E x_t + o,    loss: cross-entropy over all items at every position, section 4.4

h has twice the width of X. Re(C h + c) is a real linear map of the real and imaginary parts of h,
B x + b one that makes them: real matrices stand for complex ones here.

Read from the authors' release: |lambda| starts uniform on the ring from 0.8 to 0.99, gamma as
sqrt(1 - |lambda|^2), all other weights and biases as a normal distribution of standard deviation
0.02, cut at 0.04; and a user's first item is predicted, too, from a position of padding, which
leaves nothing to the items after it. Their rows are padded on the left, and what padding leaves in
h is cut off before the first item: it is the recurrence from the first item on, which rows padded
on the right have by themselves. Ours decays all parameters, theirs neither biases nor norms.

Settings:
    hidden_size, n_layers: width and number of layers.
    predict_first_item: train on first items, as the release does.
    dropout_prob: on vectors and in the feed-forward network. lru_dropout_prob: on what an LRU says.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from recbole.config import Config
from recbole.data.dataset import Dataset
from torch import Tensor, nn

from recbole_hydra import CausalRecommender, Items
from recbole_hydra.checks import boolean, positive_int, probability
from recbole_hydra.errors import ConfigError
from recbole_hydra.layers import Dropout

#: Inner radius and outer radius of the ring on which lambda starts.
RING = 0.8, 0.99
#: Standard deviation that weights start with, and where it is cut.
STD, CUT = 0.02, 0.04
#: Columns beside x_t: one for the items' biases, the others zero, since the loss is fastest where
#: the width is a multiple of 16.
COLUMNS = 16


class LRURec(CausalRecommender):
    """See the module.

    Raises:
        ConfigError: a setting that is missing, or cannot be.
    """

    def __init__(self, config: Config, dataset: Dataset) -> None:
        super().__init__(config, dataset)
        width = positive_int("hidden_size", self.setting("hidden_size"))
        dropout = probability("dropout_prob", self.setting("dropout_prob"))
        lru = probability("lru_dropout_prob", self.setting("lru_dropout_prob"))
        number = positive_int("n_layers", self.setting("n_layers"))
        if self.loss_type == "BPR":  # whose negatives are of the targets that there are
            raise ConfigError("loss_type: LRURec predicts first items, too; use CE or SampledCE")
        self.predict_first_item = boolean("predict_first_item", self.setting("predict_first_item"))
        self.item_embedding = nn.Embedding(self.n_items, width)
        self.items = Items(self.n_items, self.item_embedding)
        self.item_bias = nn.Parameter(torch.empty(self.n_items, 1))
        self.dropout, self.norm = Dropout(dropout), nn.LayerNorm(width)
        self.layers = nn.ModuleList(LRULayer(width, dropout, lru) for _ in range(number))
        self.apply(_start)
        nn.init.trunc_normal_(self.item_bias, std=STD, a=-CUT, b=CUT)

    @property
    def item_table(self) -> Tensor:
        """E with o as one more column, (n_items, width + 16): scores are inner products."""
        return torch.cat([self.items.table, F.pad(self.item_bias, (0, COLUMNS - 1))], dim=1)

    def states(self, item_seq: Tensor) -> Tensor:
        """Map item ids, (batch, length), to states, (batch, length, width + 16): x_t, 1, zeros."""
        X = self.norm(self.dropout(self.items.vectors(item_seq)))
        for layer in self.layers:
            X = layer(X)
        return torch.cat(
            [X, X.new_ones(*X.shape[:2], 1), X.new_zeros(*X.shape[:2], COLUMNS - 1)], -1
        )

    def target_loss(
        self,
        states: Tensor,
        targets: Tensor,
        history: tuple[Tensor, Tensor],
        negatives: Tensor | None = None,
    ) -> Tensor:
        """The loss of ``loss_type``; with ``predict_first_item``, of first items as well: those of
        the rows whose first position has a target."""
        item_seq, last = history
        begun = last[last % item_seq.shape[1] == 0]  # positions of first items
        if self.predict_first_item and len(begun):
            blank = self.states(torch.zeros_like(begun)[:, None]).squeeze(1)
            states = torch.cat([states, blank])
            targets = torch.cat([targets, item_seq.flatten()[begun]])
        return super().target_loss(states, targets, history, negatives)


class LRULayer(nn.Module):
    """A linear recurrent unit and a feed-forward network, each with a residual and a norm."""

    def __init__(self, width: int, dropout: float, lru_dropout: float) -> None:
        super().__init__()
        self.lru = LRU(width)
        self.lru_dropout, self.lru_norm = Dropout(lru_dropout), nn.LayerNorm(width)
        self.inner, self.outer = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
        self.dropout, self.norm = Dropout(dropout), nn.LayerNorm(width)

    def forward(self, X: Tensor) -> Tensor:
        """Map (batch, length, width) to the same."""
        X = self.lru_norm(X + self.lru_dropout(self.lru(X)))
        fed = self.outer(self.dropout(F.gelu(self.inner(X))))
        return self.norm(X + self.dropout(fed))


class LRU(nn.Module):
    """Re(C h + c) with h_t = lambda * h_(t-1) + gamma * (B x_t + b), h complex."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.size = 2 * width
        least, most = (radius**2 for radius in RING)
        square = least + (most - least) * torch.rand(self.size)  # of lambda's absolute value
        self.nu = nn.Parameter(torch.log(-0.5 * torch.log(square)))
        self.theta = nn.Parameter(torch.log(2 * math.pi * torch.rand(self.size)))
        self.gamma = nn.Parameter(0.5 * torch.log(1 - square))
        self.into = nn.Linear(width, 2 * self.size)
        self.out = nn.Linear(2 * self.size, width)

    def eigenvalues(self) -> Tensor:
        """lambda, (2 width,) complex."""
        return torch.exp(torch.complex(-self.nu.exp(), self.theta.exp()))

    def forward(self, X: Tensor) -> Tensor:
        """Map (batch, length, width) to the same."""
        real, imaginary = (self.into(X) * self.gamma.exp().repeat(2)).chunk(2, dim=-1)
        h = scan(torch.complex(real, imaginary), self.eigenvalues())
        return self.out(torch.cat([h.real, h.imag], dim=-1))


def scan(u: Tensor, eigenvalues: Tensor) -> Tensor:
    """All h_t = lambda h_(t-1) + u_t, from h = 0 on, in log2(length) steps over all positions.

    After step k, h_t is the sum over the last 2^(k+1) inputs; it takes in as many from before them.

    Args:
        u: (batch, length, size) complex. eigenvalues: lambda, (size,) complex.
    """
    shift, power = 1, eigenvalues
    while shift < u.shape[1]:
        u = torch.cat([u[:, :shift], u[:, shift:] + power * u[:, :-shift]], dim=1)
        shift, power = 2 * shift, power * power
    return u


def _start(module: nn.Module) -> None:
    if isinstance(module, (nn.Linear, nn.Embedding)):
        nn.init.trunc_normal_(module.weight, std=STD, a=-CUT, b=CUT)
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.bias, std=STD, a=-CUT, b=CUT)
