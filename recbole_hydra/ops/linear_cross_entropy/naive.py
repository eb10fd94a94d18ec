"""Cross-entropy of a linear layer, as the definition has it."""

import torch
import torch.nn.functional as F
from torch import Tensor

from recbole_hydra.ops.item_lists import ItemLists


def linear_cross_entropy_naive(
    hidden: Tensor, weight: Tensor, target: Tensor, as_one: ItemLists | None = None
) -> tuple[Tensor, Tensor]:
    """Mean of -log softmax(S)[target], and log sum exp(S), (n,), the latter without a gradient.

    S = hidden weight^T, with log h less for the h items of a row's list in ``as_one``. Holds all
    (n, n_items) logits.
    """
    # cross_entropy would leave out rows whose target is its ignore_index, -100.
    if target.device.type == "cpu":
        least, most = int(target.min()), int(target.max())
        if not 0 <= least <= most < len(weight):
            raise IndexError(
                f"linear_cross_entropy: targets must be in 0 .. {len(weight) - 1}, got {least} to "
                f"{most}"
            )
    logits = hidden @ weight.T
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    if as_one is not None:
        row, item = as_one.places()
        less = as_one.less.to(logits.dtype)
        logits = logits.index_put((row, item), -less[row], accumulate=True)
    return F.cross_entropy(logits, target), torch.logsumexp(logits.detach(), dim=1)
