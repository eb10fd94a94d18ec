"""Cross-entropy of a linear layer on a GPU: :mod:`.blocked` with its softmax in one Triton kernel.

The products of a block of rows are the library's, whose matrix products are the fastest there are;
between them the kernel turns the block's logits into probabilities in place, reading them twice and
writing them once, where torch's own operations go over them five times.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from recbole_hydra.ops.item_lists import ItemLists
from recbole_hydra.ops.linear_cross_entropy.blocked import (
    gradients_wanted,
    loss_and_gradients,
    products_dtype,
    rows_of_block,
    sum_dtype,
)

#: Items that a program reads at once.
ITEMS = 2048


@triton.jit
def _softmax(logits, log_sums, n_items, stride, ITEMS: tl.constexpr):
    """Row by row, in place: exp(logits - log sum exp(logits)); the latter into log_sums."""
    row = tl.program_id(0)
    logits += row.to(tl.int64) * stride
    item = tl.arange(0, ITEMS)
    largest, total = -float("inf"), 0.0
    for start in range(0, n_items, ITEMS):
        x = tl.load(logits + start + item, start + item < n_items, -float("inf")).to(tl.float32)
        now = tl.maximum(largest, tl.max(x, 0))
        total = total * tl.exp(largest - now) + tl.sum(tl.exp(x - now), 0)
        largest = now
    log_sum = largest + tl.log(total)
    tl.store(log_sums + row, log_sum)
    for start in range(0, n_items, ITEMS):
        there = start + item < n_items
        x = tl.load(logits + start + item, there, 0.0).to(tl.float32)
        tl.store(logits + start + item, tl.exp(x - log_sum), there)


def softmax_products(
    h: Tensor, W: Tensor, wants_grad: bool = True, as_one: ItemLists | None = None
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """What :func:`.blocked.softmax_products` returns, for float32, bfloat16 and float16."""
    n, n_items = len(h), len(W)
    sums = sum_dtype(h.dtype)
    log_sums = h.new_empty(n, dtype=sums)
    p_W = h.new_empty(h.shape, dtype=sums) if wants_grad else None
    p_h = W.new_zeros(W.shape, dtype=sums) if wants_grad else None
    rows = rows_of_block(n, n_items, h.device)
    buffer = h.new_empty(rows, n_items)
    less = None if as_one is None else as_one.less
    for start in range(0, n, rows):
        block = slice(start, start + rows)
        p = torch.mm(h[block], W.T, out=buffer[: len(h[block])])
        if as_one is not None and less is not None:
            places = as_one.places(start, start + rows)
            minus = less[block].neg().to(p.dtype)[places[0]]
            p.index_put_(places, minus, accumulate=True)
        with torch.cuda.device_of(p):  # Triton's own choice is the current device
            _softmax[(len(p),)](p, log_sums[block], n_items, p.stride(0), ITEMS=ITEMS)
        if p_W is None or p_h is None:
            continue
        if sums == h.dtype:
            torch.mm(p, W, out=p_W[block])
            p_h.addmm_(p.T, h[block])
        else:
            p_W[block] = torch.mm(p, W)
            p_h += torch.mm(p.T, h[block])
    return log_sums, p_W, p_h


@torch.library.custom_op("recbole_hydra::linear_cross_entropy", mutates_args=())
def _loss(
    hidden: Tensor, weight: Tensor, target: Tensor, items: Tensor | None,
    begin: Tensor | None, count: Tensor | None, dtype: torch.dtype, wants_grad: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """What :func:`.blocked.loss_and_gradients` returns, empty tensors for gradients not wanted."""
    as_one = None
    if items is not None and begin is not None and count is not None:
        as_one = ItemLists(items, begin, count)
    with torch.autocast(hidden.device.type, enabled=False):
        loss, log_sum, grad_hidden, grad_weight = loss_and_gradients(
            hidden, weight, target, as_one, dtype, softmax_products, wants_grad
        )
    if grad_hidden is None or grad_weight is None:
        grad_hidden, grad_weight = log_sum.new_empty(0), log_sum.new_empty(0)
    return loss, log_sum, grad_hidden, grad_weight


@_loss.register_fake
def _(
    hidden: Tensor, weight: Tensor, target: Tensor, items: Tensor | None, begin: Tensor | None,
    count: Tensor | None, dtype: torch.dtype, wants_grad: bool,
) -> tuple[Tensor, ...]:  # fmt: skip
    shapes = (), (len(hidden),), *((hidden.shape, weight.shape) if wants_grad else ((0,), (0,)))
    return tuple(hidden.new_empty(shape, dtype=sum_dtype(dtype)) for shape in shapes)


@torch.library.custom_op("recbole_hydra::linear_cross_entropy_backward", mutates_args=())
def _scaled(
    grad: Tensor, grad_hidden: Tensor, grad_weight: Tensor,
    hidden_dtype: torch.dtype, weight_dtype: torch.dtype,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """The gradients that :func:`_loss` left, times that of the loss; an operation of its own, which
    has no derivative: a second one would be wrong, and is an error."""
    return (grad_hidden * grad).to(hidden_dtype), (grad_weight * grad).to(weight_dtype)


@_scaled.register_fake
def _(
    grad: Tensor, grad_hidden: Tensor, grad_weight: Tensor,
    hidden_dtype: torch.dtype, weight_dtype: torch.dtype,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    return (
        torch.empty_like(grad_hidden, dtype=hidden_dtype),
        torch.empty_like(grad_weight, dtype=weight_dtype),
    )


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    hidden, weight, *_ = inputs
    ctx.dtypes = hidden.dtype, weight.dtype
    ctx.save_for_backward(*output[2:])


def _differentiate(ctx: Any, grad: Tensor, *_: Any) -> tuple[Tensor | None, ...]:
    return *_scaled(grad, *ctx.saved_tensors, *ctx.dtypes), *(None for _ in range(6))


_loss.register_autograd(_differentiate, setup_context=_setup_context)


def linear_cross_entropy_triton(
    hidden: Tensor, weight: Tensor, target: Tensor, as_one: ItemLists | None = None
) -> tuple[Tensor, Tensor]:
    """What :func:`.naive.linear_cross_entropy_naive` returns, on a GPU.

    Differentiable once in ``hidden`` and ``weight``. Under autocast the products run in its dtype.
    """
    dtype = products_dtype(hidden, weight)
    wants_grad = gradients_wanted(hidden, weight)
    lists = as_one or (None, None, None)
    loss, log_sum, _, _ = _loss(hidden, weight, target, *lists, dtype, wants_grad)
    return loss, log_sum.detach()
