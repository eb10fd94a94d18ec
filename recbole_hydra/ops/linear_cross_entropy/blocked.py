"""Cross-entropy of a linear layer in blocks of rows, with its gradients in the same sweep.

For a block of rows: the logits, their softmax in place, and from it the block's part of both
gradients,

::

    S = h W^T - less,   p = softmax(S),   loss = mean(log sum exp(S) - S[target])
    d loss / d h = (p W - W[target]) / n,   d loss / d W = (p^T h - onehot(target)^T h) / n

so that three matrix products are spent, none twice, and one block of logits exists at a time. The
items of a list that counts as one have ``less``, the log of their number, all others zero. The
backward pass scales the gradients that the forward pass left. A block is kept items x rows: the
first and the last product, whose long side is the catalogue, run faster so.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from recbole_hydra.ops.item_lists import ItemLists

#: Scores of a block on the CPU: as many as stay in the cache (3 MB as float32) ...
CACHED = 3 * 2**18
#: ... or, of a large catalogue, a twentieth of all, but no more than these (256 MB).
MOST = 2**26
#: Scores of a block on a GPU, which small products leave idle: a quarter of all, which is a tenth
#: of what torch's loss holds at once, but no fewer than these (32 MB as float32) ...
GPU_LEAST = 2**23
#: ... and no more than these (1 GB).
GPU_MOST = 2**28
#: Where every logit is known to lie within these, exp needs no shift by the largest one: sums over
#: 10^6 items stay below 10^33 and the smallest term is above 10^-27, inside float32's range.
SAFE_LOGIT = 60.0


class LinearCrossEntropy(torch.autograd.Function):
    """The loss of :func:`loss_and_gradients`; the gradients are left by the forward pass."""

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, target: Tensor, as_one: ItemLists | None,
        dtype: torch.dtype, products: Callable[..., tuple[Tensor, Tensor | None, Tensor | None]],
        wants_grad: bool,
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        loss, log_sum, *gradients = loss_and_gradients(
            hidden.detach(), weight.detach(), target, as_one, dtype, products, wants_grad
        )
        if wants_grad:
            ctx.save_for_backward(*gradients)
            ctx.dtypes = hidden.dtype, weight.dtype
        ctx.mark_non_differentiable(log_sum)
        return loss, log_sum

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        grads = zip(ctx.saved_tensors, ctx.dtypes, strict=True)
        return *((g * grad).to(dtype) for g, dtype in grads), None, None, None, None, None


def loss_and_gradients(
    hidden: Tensor, weight: Tensor, target: Tensor, as_one: ItemLists | None, dtype: torch.dtype,
    products: Callable[..., tuple[Tensor, Tensor | None, Tensor | None]], wants_grad: bool,
) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:  # fmt: skip
    """Return the loss, log sum exp(S), and the gradients of ``hidden`` and ``weight``.

    Args:
        as_one: ItemLists of the rows, or None.
        dtype: of the products.
        products: a function like :func:`softmax_products`.
        wants_grad: whether the gradients are wanted; otherwise None is returned for both.

    Returns:
        Tensors (), (n,), (n, width) and (n_items, width), float32 or float64.
    """
    n = len(hidden)
    h, W = hidden.to(dtype), weight.to(dtype)
    target_rows = W.index_select(0, target).to(sum_dtype(dtype))
    log_sum, grad_h, grad_W = products(h, W, wants_grad, as_one)
    h = h.to(log_sum.dtype)
    loss = log_sum.sum() - _scores(h, target_rows, dtype).sum()
    if as_one is not None:
        is_in = as_one.holds(target[:, None]).squeeze(1)
        loss = loss + (as_one.less.to(loss.dtype) * is_in).sum()
    loss = loss / n
    if grad_h is not None and grad_W is not None:
        grad_h.sub_(target_rows).div_(n)
        grad_W.index_add_(0, target, h, alpha=-1).div_(n)
    return loss, log_sum, grad_h, grad_W


def _scores(h: Tensor, rows: Tensor, dtype: torch.dtype) -> Tensor:
    """The scores of the targets, rounded as those in the softmax are: where it has all of its mass
    on the target, the loss would come out negative otherwise."""
    if dtype == h.dtype:
        return h * rows  # their sum is all that is wanted
    return (h * rows).sum(1).to(dtype).to(h.dtype)


def softmax_products(
    h: Tensor, W: Tensor, wants_grad: bool = True, as_one: ItemLists | None = None
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """Return log sum exp(S), p W and p^T h, with S = h W^T - less and p = softmax(S), one block at
    a time.

    Args:
        h: states, (n, width).
        W: item vectors, (n_items, width), of the same dtype.
        wants_grad: whether the products are wanted; otherwise None is returned for both.
        as_one: ItemLists of the rows, or None.

    Returns:
        Tensors (n,), (n, width) and (n_items, width), float32 or float64.
    """
    n, n_items, sums = len(h), len(W), sum_dtype(h.dtype)
    shifted = h.dtype != sums or _largest_logit(h, W) > SAFE_LOGIT
    less = None if as_one is None else as_one.less
    log_sums = h.new_empty(n, dtype=sums)
    p_W = h.new_empty(h.shape, dtype=sums) if wants_grad else None
    p_h = W.new_zeros(W.shape, dtype=sums) if wants_grad else None
    rows = rows_of_block(n, n_items, h.device)
    buffer = h.new_empty(n_items, rows)
    for start in range(0, n, rows):
        block = slice(start, start + rows)
        hb = h[block]
        logits = torch.mm(W, hb.T, out=buffer if len(hb) == rows else None)
        if as_one is not None and less is not None:
            row, item = as_one.places(start, start + rows)
            minus = less[block].neg().to(logits.dtype)[row]
            logits.index_put_((item, row), minus, accumulate=True)
        e, log_sums[block], scale = _exponentials(logits, sums, shifted)
        if p_W is not None and p_h is not None:
            # p = e * scale: the scale goes to the small factors of the products.
            scale = scale.unsqueeze(1)
            torch.mul(torch.mm(e.T, W), scale, out=p_W[block])
            if sums == h.dtype:
                p_h.addmm_(e, hb * scale)
            else:
                p_h += torch.mm(e, (hb.to(sums) * scale).to(h.dtype))
    return log_sums, p_W, p_h


def sum_dtype(dtype: torch.dtype) -> torch.dtype:
    """float16 and bfloat16 enter the products; sums, softmax and gradients are float32."""
    return torch.promote_types(dtype, torch.float32)


def rows_of_block(n: int, n_items: int, device: torch.device) -> int:
    """Rows whose logits exist at once."""
    if device.type == "cpu":
        rows = max(CACHED // n_items, min(n // 20, MOST // n_items), 32)
        rows -= rows % 32  # matrix products fill their vectors
    else:
        rows = max(min(max(GPU_LEAST // n_items, -(-n // 4)), GPU_MOST // n_items), 1)
    return min(rows, n)


def _largest_logit(h: Tensor, W: Tensor) -> float:
    """An upper bound of |h W^T| by Cauchy and Schwarz; infinite on a GPU, which it would stall."""
    if h.device.type != "cpu":
        return torch.inf
    bound = (h.norm(dim=1).max() * W.norm(dim=1).max()).item()
    return bound if bound == bound else torch.inf


def _exponentials(
    logits: Tensor, sums: torch.dtype, shifted: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Return e, log_sum and scale with softmax = e * scale, log_sum = log sum exp(logits), over the
    items, dimension 0. Overwrites ``logits`` where it has the dtype of the sums."""
    if not shifted:
        e = logits.exp_()
        total = e.sum(0)
        return e, total.log(), total.reciprocal()
    log_sum = torch.logsumexp(logits.to(sums), dim=0)
    if logits.dtype == sums:
        return logits.sub_(log_sum).exp_(), log_sum, torch.ones_like(log_sum)
    return (logits.to(sums) - log_sum).exp_().to(logits.dtype), log_sum, torch.ones_like(log_sum)


def products_dtype(hidden: Tensor, weight: Tensor) -> torch.dtype:
    """The dtype of the products: autocast's where it is on."""
    device = hidden.device.type
    dtype = torch.promote_types(hidden.dtype, weight.dtype)
    if torch.is_autocast_enabled(device) and dtype != torch.float64:
        return torch.get_autocast_dtype(device)
    return dtype


def gradients_wanted(hidden: Tensor, weight: Tensor) -> bool:
    """Whether a call's gradients may be asked for. To be asked before an autograd function is
    entered: inside, parameters want gradients under ``no_grad``, too."""
    return torch.is_grad_enabled() and (hidden.requires_grad or weight.requires_grad)


def linear_cross_entropy_blocked(
    hidden: Tensor, weight: Tensor, target: Tensor, as_one: ItemLists | None = None
) -> tuple[Tensor, Tensor]:
    """What :func:`.naive.linear_cross_entropy_naive` returns, on any device, in any dtype.

    Differentiable once in ``hidden`` and ``weight``. Under autocast the products run in its dtype.
    """
    dtype, wants_grad = products_dtype(hidden, weight), gradients_wanted(hidden, weight)
    with torch.autocast(hidden.device.type, enabled=False):
        return LinearCrossEntropy.apply(
            hidden, weight, target, as_one, dtype, softmax_products, wants_grad
        )
