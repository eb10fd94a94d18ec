"""Cross-entropy of a linear layer in blocks of rows, with its gradients in the same sweep.

For a block of rows: the logits, their softmax in place, and from it the block's part of both
gradients,

::

    p = softmax(h W^T),   loss = mean(log sum exp(h W^T) - <h, W[target]>)
    d loss / d h = (p W - W[target]) / n,   d loss / d W = (p^T h - onehot(target)^T h) / n

so that three matrix products are spent, none twice, and one block of logits exists at a time. The
backward pass scales the gradients that the forward pass left. A block is kept items x rows: the
first and the last product, whose long side is the catalogue, run faster so.
"""

import torch
from torch.autograd.function import once_differentiable

#: Scores of a block on the CPU: as many as stay in the cache (3 MB as float32) ...
CACHED = 3 * 2**18
#: ... or, of a large catalogue, a twentieth of all, but no more than these (256 MB).
MOST = 2**26
#: Rows of a block on a GPU, which small products leave idle: a sixteenth, and no fewer than these.
GPU_ROWS = 256
#: Where every logit is known to lie within these, exp needs no shift by the largest one: sums over
#: 10^6 items stay below 10^33 and the smallest term is above 10^-27, inside float32's range.
SAFE_LOGIT = 60.0


class _LinearCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx, hidden, weight, target, dtype):
        n, n_items = len(hidden), len(weight)
        wants_grad = hidden.requires_grad or weight.requires_grad
        h, W = hidden.detach().to(dtype), weight.detach().to(dtype)
        # float16 and bfloat16 enter the products; sums, softmax and gradients are float32.
        sums = torch.promote_types(dtype, torch.float32)
        h_sums = h.to(sums)
        target_rows = W.index_select(0, target).to(sums)
        loss = -(h_sums * target_rows).sum()
        shifted = dtype != sums or _largest_logit(h, W) > SAFE_LOGIT
        grad_h = torch.empty_like(h_sums) if wants_grad else None
        grad_W = W.new_zeros(W.shape, dtype=sums) if wants_grad else None
        rows = _rows_of_block(n, n_items, h.device)
        buffer = h.new_empty(n_items, rows, dtype=dtype)
        for start in range(0, n, rows):
            block = slice(start, start + rows)
            hb = h[block]
            logits = torch.mm(W, hb.T, out=buffer if len(hb) == rows else None)
            e, log_sum, scale = _exponentials(logits, sums, shifted)
            loss += log_sum.sum()
            if wants_grad:
                # p = e * scale: the scale goes to the small factors of the products.
                scale = scale.unsqueeze(1)
                torch.mul(torch.mm(e.T, W), scale, out=grad_h[block])
                if sums == dtype:
                    grad_W.addmm_(e, hb * scale)
                else:
                    grad_W += torch.mm(e, (h_sums[block] * scale).to(dtype))
        if wants_grad:
            grad_h -= target_rows
            grad_W.index_add_(0, target, h_sums, alpha=-1)
            ctx.save_for_backward(grad_h.div_(n), grad_W.div_(n))
            ctx.dtypes = hidden.dtype, weight.dtype
        return loss / n

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        grads = zip(ctx.saved_tensors, ctx.dtypes, strict=True)
        return *((g * grad).to(dtype) for g, dtype in grads), None, None


def _rows_of_block(n, n_items, device):
    if device.type == "cpu":
        rows = max(CACHED // n_items, min(n // 20, MOST // n_items), 32)
        rows -= rows % 32  # matrix products fill their vectors
    else:
        rows = max(GPU_ROWS, -(-n // 16))
    return min(rows, n)


def _largest_logit(h, W) -> float:
    """An upper bound of |h W^T| by Cauchy and Schwarz; infinite on a GPU, which it would stall."""
    if h.device.type != "cpu":
        return torch.inf
    bound = (h.norm(dim=1).max() * W.norm(dim=1).max()).item()
    return bound if bound == bound else torch.inf


def _exponentials(logits, sums, shifted):
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


def linear_cross_entropy_blocked(hidden, weight, target):
    """The loss of :func:`.naive.linear_cross_entropy_naive` on any device, in any dtype.

    Differentiable once in ``hidden`` and ``weight``. Under autocast the products run in its dtype.
    """
    device = hidden.device.type
    dtype = torch.promote_types(hidden.dtype, weight.dtype)
    if torch.is_autocast_enabled(device) and dtype != torch.float64:
        dtype = torch.get_autocast_dtype(device)
    with torch.autocast(device, enabled=False):
        return _LinearCrossEntropy.apply(hidden, weight, target, dtype)
