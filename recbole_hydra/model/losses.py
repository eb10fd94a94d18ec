"""Losses of targets against the catalogue, and against a sample of it.

The cost of the latter does not depend on the number of items. The negatives of a batch are drawn
once and shared by its targets, so that the scores of all of them are one matrix product. Where a
negative happens to be a row's target, it is left out for that row.

What is added to single scores (``offsets``, :class:`~recbole_hydra.ops.ScoreOffsets`) is learned
beside the scores: their own loss is of the scores without it, and gives the states and items their
gradients; what is added has the gradient that it would have on top of them as they are.

In a softmax, items of a history may count as one (``history``,
:class:`~recbole_hydra.ops.ItemLists`): each of the h has log h less, so that together they weigh as
much as their mean.
"""

import math
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from recbole.model.loss import BPRLoss
from torch import Tensor, nn

from recbole_hydra.checks import one_of, positive_int
from recbole_hydra.errors import ConfigError
from recbole_hydra.ops import ItemLists, ScoreOffsets, linear_cross_entropy, pair_scores

_BPR = BPRLoss()


class NegativeSampler:
    """Draws items, with replacement, from a fixed distribution over 1 .. n_items - 1.

    Args:
        n_items: size of the catalogue, the padding item 0 included.
        number: how many items :meth:`draw` returns.
        distribution: "uniform", or "popularity", in proportion to ``counts``.
        counts: interactions of every item, (n_items,); needed for "popularity" only.

    Raises:
        ConfigError: an unknown distribution, or more negatives than there are items.
    """

    def __init__(
        self,
        n_items: int,
        number: int,
        distribution: str = "uniform",
        counts: Sequence[float] | Tensor | None = None,
    ) -> None:
        self.n_items = n_items
        self.number = positive_int("num_negatives", number)
        if number > n_items - 1:
            raise ConfigError(
                f"num_negatives must be at most the number of items, {n_items - 1}, got {number}; "
                "loss_type CE ranks all of them"
            )
        one_of("negative_distribution", distribution, ("uniform", "popularity"))
        self.probability: Tensor | None = None
        self.cumulative: Tensor | None = None
        if distribution == "popularity":
            counts = torch.as_tensor(counts, dtype=torch.float64).clone()
            counts[0] = 0
            if not counts.sum():  # as of a domain that nobody trains on: all alike
                return
            self.probability = counts / counts.sum()
            self.cumulative = self.probability.cumsum(0)

    def draw(self, device: torch.device) -> tuple[Tensor, Tensor]:
        """Return item ids, (number,), and the log of how often each is expected to be drawn."""
        if self.probability is None or self.cumulative is None:
            items = torch.randint(1, self.n_items, (self.number,), device=device)
            expected = torch.full((self.number,), self.number / (self.n_items - 1), device=device)
            return items, expected.log()
        if self.cumulative.device != device:
            self.cumulative = self.cumulative.to(device)
            self.probability = self.probability.to(device)
        # By inversion: the search takes log(n_items) steps per draw. The total may be rounded to
        # below 1, so a draw above it belongs to the last item that can be drawn.
        draws = torch.rand(self.number, dtype=torch.float64, device=device) * self.cumulative[-1]
        items = torch.searchsorted(self.cumulative, draws, right=True)
        return items, (self.number * self.probability[items]).log().float()


class TargetGroup(nn.Module):
    """Items that targets are told apart from in training, instead of from the whole catalogue.

    Args:
        items: item ids, ascending, (members,).
        n_items: size of the catalogue, the padding item 0 included.
    """

    items: Tensor
    position: Tensor

    def __init__(self, items: Tensor, n_items: int) -> None:
        super().__init__()
        position = torch.full((n_items,), -1)
        position[items] = torch.arange(len(items))
        self.register_buffer("items", items, persistent=False)
        self.register_buffer("position", position, persistent=False)

    def rows(self, targets: Tensor) -> Tensor:
        """Which of ``targets``, item ids (targets,), are in the group."""
        return (self.position[targets] >= 0).nonzero().squeeze(1)


def cross_entropy(
    states: Tensor,
    item_table: Tensor,
    targets: Tensor,
    offsets: ScoreOffsets | None = None,
    history: ItemLists | None = None,
) -> Tensor:
    """Mean cross-entropy of each target against all items.

    ::

        loss = mean(log sum_j exp(s_j - d_j) - s_target + d_target),    p = softmax(s - d)
        of what is added:  mean(log(1 + sum_k p_k (exp(b_k + d_k) - 1)) - b_target - d_target)

    d_j is log h for the h items that count as one, otherwise 0. The second is the difference that
    adding b_k to the scores s of some items k, instead of taking d off, makes to the first.

    Args:
        states: (targets, width). item_table: (n_items, width). targets: (targets,).
        offsets: b, what is added to single scores, or None.
        history: the items that count as one, or None; those with offsets are all the history.
    """
    loss, log_sum = linear_cross_entropy(states, item_table, targets, history, return_log_sum=True)
    if offsets is None:
        return loss
    rows, items, kinds, values = offsets
    with torch.no_grad():
        scores = pair_scores(states, item_table, rows, items)
        d = 0.0 if history is None else history.less[rows]
        p = (scores - d - log_sum[rows]).exp()
        is_target = items == targets[rows]
    added = values[kinds].to(p.dtype) + d
    change = torch.zeros_like(log_sum).index_add(0, rows, p * torch.expm1(added))
    # Where the items have all of p to within rounding, their sum may come out above 1.
    change = torch.log1p(change.clamp(min=-1 + 1e-6)).sum() - (added * is_target).sum()
    return _with_gradient_of(loss, change / len(targets))


def bpr(
    states: Tensor,
    item_table: Tensor,
    targets: Tensor,
    negatives: Tensor,
    offsets: ScoreOffsets | None = None,
) -> Tensor:
    """Mean of -log sigmoid(s+ - s-), Bayesian personalised ranking (Rendle et al. 2009).

    Args: as :func:`cross_entropy`, and negatives, item ids, (targets, negatives).
    """
    positive = (states * F.embedding(targets, item_table)).sum(-1, keepdim=True)
    negative = (states.unsqueeze(1) * F.embedding(negatives, item_table)).sum(-1)

    def loss(positive: Tensor, negative: Tensor) -> Tensor:
        return _BPR(positive.expand_as(negative), negative)

    if offsets is None:
        return loss(positive, negative)
    own, others = offsets.of(targets[:, None]), offsets.of(negatives)
    return _beside(loss, positive, negative, own, others)


def sampled_cross_entropy(
    states: Tensor,
    item_table: Tensor,
    targets: Tensor,
    negatives: Tensor,
    log_expected: Tensor | None = None,
    offsets: ScoreOffsets | None = None,
    history: ItemLists | None = None,
) -> Tensor:
    """Mean cross-entropy of each target against itself and the sampled negatives.

    With ``log_expected`` (the logQ correction), exp(score) of a negative counts for 1 / expected
    draws: the sum over the sample is then an unbiased estimate of the sum over the catalogue
    (importance sampling, Bengio and Senecal 2008), and the loss one of the full softmax's.

    Args: as :func:`cross_entropy`, and
        negatives: (number,) item ids. log_expected: (number,) log expected draws, or None.
    """

    def loss(positive: Tensor, negative: Tensor) -> Tensor:
        if log_expected is not None:
            negative = negative - log_expected
        negative = negative.masked_fill(negatives == targets[:, None], -torch.inf)
        scores = torch.cat([positive[:, None], negative], dim=1)
        scores = scores.float() if scores.dtype.itemsize < 4 else scores
        return -F.log_softmax(scores, 1)[:, 0].mean()

    return _sampled(loss, states, item_table, targets, negatives, offsets, history)


def gbce(
    states: Tensor,
    item_table: Tensor,
    targets: Tensor,
    negatives: Tensor,
    t: float,
    n_items: int,
    offsets: ScoreOffsets | None = None,
) -> Tensor:
    """Mean generalised binary cross-entropy (Petrov and Macdonald 2023, arXiv 2308.07192, eq. 8-9).

    ::

        -1 / (k + 1) (beta log sigmoid(s+ - c) + sum_k log(1 - sigmoid(s- - c))),    c = log n
        beta = alpha (t (1 - 1 / alpha) + 1 / alpha),    alpha = k / n

    With t = 0 it is plain binary cross-entropy; t = 1 calibrates the scores to the sampling. Ours
    is c: scores begin near 0, which then means as likely as any other item. Without it the states
    and items would have to learn first that each item is far less likely than one half.

    Args: as :func:`sampled_cross_entropy`, t in [0, 1], and the number of items that can be drawn,
        n + 1: a target is not its own negative.
    """
    k, n = len(negatives), max(1, n_items - 1)
    alpha = k / n
    beta = alpha * (t * (1 - 1 / alpha) + 1 / alpha)
    chance = math.log(n)

    def loss(positive: Tensor, negative: Tensor) -> Tensor:
        is_target = negatives == targets[:, None]
        others = F.logsigmoid(chance - negative).masked_fill(is_target, 0.0).sum(1)
        return -(beta * F.logsigmoid(positive - chance) + others).mean() / (k + 1)

    return _sampled(loss, states, item_table, targets, negatives, offsets)


def _sampled(
    loss: Callable[[Tensor, Tensor], Tensor],
    states: Tensor,
    item_table: Tensor,
    targets: Tensor,
    negatives: Tensor,
    offsets: ScoreOffsets | None,
    history: ItemLists | None = None,
) -> Tensor:
    """``loss`` of the scores of targets, (targets,), and of the negatives, (targets, number)."""
    # One lookup for both: its backward pass makes a gradient as large as the table.
    rows = F.embedding(torch.cat([targets, negatives]), item_table)
    positive = (states * rows[: len(targets)]).sum(-1)
    negative = states @ rows[len(targets) :].T
    less: tuple[float | Tensor, float | Tensor] = 0.0, 0.0
    if history is not None:
        own, others = history.holds(targets[:, None]).squeeze(1), history.holds_shared(negatives)
        less = history.less * own, history.less[:, None] * others
    if offsets is None:
        return loss(positive - less[0], negative - less[1])
    own = offsets.of(targets[:, None]).squeeze(1)
    others = offsets.of_shared(negatives, (len(targets), len(item_table)))
    return _beside(loss, positive, negative, own, others, less)


def _beside(
    loss: Callable[[Tensor, Tensor], Tensor],
    positive: Tensor,
    negative: Tensor,
    own: Tensor,
    others: Tensor,
    less: tuple[float | Tensor, float | Tensor] = (0.0, 0.0),
) -> Tensor:
    """``loss`` of the scores, with something ``less`` on both, and the gradient of ``own`` and
    ``others`` if they were added to the scores."""
    with_offsets = loss(positive.detach() + own, negative.detach() + others)
    return _with_gradient_of(loss(positive - less[0], negative - less[1]), with_offsets)


def _with_gradient_of(loss: Tensor, other: Tensor) -> Tensor:
    """The value of ``loss``, with the gradients of both."""
    return loss + (other - other.detach())
