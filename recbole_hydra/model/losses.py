"""Losses against a sample of the catalogue, whose cost does not depend on the number of items.

The negatives of a batch are drawn once and shared by its targets, so that the scores of all of them
are one matrix product. Where a negative happens to be a row's target, it is left out for that row.
"""

import torch
import torch.nn.functional as F
from torch import nn

from recbole_hydra.checks import one_of, positive_int
from recbole_hydra.errors import ConfigError


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

    def __init__(self, n_items, number, distribution="uniform", counts=None):
        self.n_items = n_items
        self.number = positive_int("num_negatives", number)
        if number > n_items - 1:
            raise ConfigError(
                f"num_negatives must be at most the number of items, {n_items - 1}, got {number}; "
                "loss_type CE ranks all of them"
            )
        one_of("negative_distribution", distribution, ("uniform", "popularity"))
        self.probability = self.cumulative = None
        if distribution == "popularity":
            counts = torch.as_tensor(counts, dtype=torch.float64).clone()
            counts[0] = 0
            self.probability = counts / counts.sum()
            self.cumulative = self.probability.cumsum(0)

    def draw(self, device):
        """Return item ids, (number,), and the log of how often each is expected to be drawn."""
        if self.probability is None:
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

    def __init__(self, items, n_items):
        super().__init__()
        position = torch.full((n_items,), -1)
        position[items] = torch.arange(len(items))
        self.register_buffer("items", items, persistent=False)
        self.register_buffer("position", position, persistent=False)

    def rows(self, targets):
        """Which of ``targets``, item ids (targets,), are in the group."""
        return (self.position[targets] >= 0).nonzero().squeeze(1)


def sampled_cross_entropy(states, item_table, targets, negatives, log_expected=None, offsets=None):
    """Mean cross-entropy of each target against itself and the sampled negatives.

    With ``log_expected`` (the logQ correction), exp(score) of a negative counts for 1 / expected
    draws: the sum over the sample is then an unbiased estimate of the sum over the catalogue
    (importance sampling, Bengio and Senecal 2008), and the loss one of the full softmax's.

    Args:
        states: (targets, width). item_table: (n_items, width). targets: (targets,).
        negatives: (number,) item ids. log_expected: (number,) log expected draws, or None.
        offsets: what is added to single scores, :class:`~recbole_hydra.ops.ScoreOffsets`, or None.
    """
    positive, negative = _scores(states, item_table, targets, negatives, offsets)
    if log_expected is not None:
        negative = negative - log_expected
    negative = negative.masked_fill(negatives == targets[:, None], -torch.inf)
    scores = torch.cat([positive[:, None], negative], dim=1)
    return -F.log_softmax(scores.float() if scores.dtype.itemsize < 4 else scores, 1)[:, 0].mean()


def gbce(states, item_table, targets, negatives, t, n_items, offsets=None):
    """Mean generalised binary cross-entropy (Petrov and Macdonald 2023, arXiv 2308.07192, eq. 8-9).

    ::

        -1 / (k + 1) (beta log sigmoid(s+) + sum_k log(1 - sigmoid(s-)))
        beta = alpha (t (1 - 1 / alpha) + 1 / alpha),    alpha = k / (n_items - 1)

    With t = 0 it is plain binary cross-entropy; t = 1 calibrates the scores to the sampling.

    Args: as :func:`sampled_cross_entropy`, t in [0, 1], and the number of items that can be drawn.
    """
    positive, negative = _scores(states, item_table, targets, negatives, offsets)
    k = len(negatives)
    alpha = k / max(1, n_items - 1)  # the target is not its own negative
    beta = alpha * (t * (1 - 1 / alpha) + 1 / alpha)
    others = F.logsigmoid(-negative).masked_fill(negatives == targets[:, None], 0.0).sum(1)
    return -(beta * F.logsigmoid(positive) + others).mean() / (k + 1)


def _scores(states, item_table, targets, negatives, offsets):
    """Scores of the targets, (targets,), and of the negatives, (targets, number)."""
    # One lookup for both: its backward pass makes a gradient as large as the table.
    rows = F.embedding(torch.cat([targets, negatives]), item_table)
    positive = (states * rows[: len(targets)]).sum(-1)
    negative = states @ rows[len(targets) :].T
    if offsets is not None:
        positive = positive + offsets.of(targets[:, None]).squeeze(1)
        negative = negative + offsets.of_shared(negatives, (len(targets), len(item_table)))
    return positive, negative
