"""Cross-entropy over a large catalogue without the logits of the whole batch."""

from typing import Literal, overload

import torch
from torch import Tensor

from recbole_hydra.errors import BackendError
from recbole_hydra.ops import triton_support
from recbole_hydra.ops.item_lists import ItemLists
from recbole_hydra.ops.linear_cross_entropy.blocked import linear_cross_entropy_blocked
from recbole_hydra.ops.linear_cross_entropy.naive import linear_cross_entropy_naive

__all__ = ["BACKENDS", "linear_cross_entropy"]

#: In the order in which "auto" tries them.
BACKENDS = ("numba", "triton", "blocked", "naive")


@overload
def linear_cross_entropy(
    hidden: Tensor, weight: Tensor, target: Tensor, as_one: ItemLists | None = None,
    return_log_sum: Literal[False] = False, backend: str = "auto",
) -> Tensor: ...  # fmt: skip
@overload
def linear_cross_entropy(
    hidden: Tensor, weight: Tensor, target: Tensor, as_one: ItemLists | None = None,
    *, return_log_sum: Literal[True], backend: str = "auto",
) -> tuple[Tensor, Tensor]: ...  # fmt: skip
def linear_cross_entropy(
    hidden: Tensor,
    weight: Tensor,
    target: Tensor,
    as_one: ItemLists | None = None,
    return_log_sum: bool = False,
    backend: str = "auto",
) -> Tensor | tuple[Tensor, Tensor]:
    """Mean cross-entropy of the scores ``hidden @ weight.T`` against ``target``.

    The softmax over all items that next-item models are trained with (SASRec's and Mamba4Rec's CE).
    Extra memory is the two gradients and some rows of scores: with "numba" 4 MB, or 96 rows where
    the catalogue is large, fewer where it is very large; otherwise on a CPU 3 MB, or up to 256 MB
    where the catalogue is large, on a GPU a quarter of the rows, up to 1 GB.

    Args:
        hidden: states, (n, width), n >= 1.
        weight: item vectors, (n_items, width).
        target: item ids, (n,), int64, in 0 .. n_items - 1.
        as_one: :class:`~recbole_hydra.ops.ItemLists` of the rows, whose items count as one: the
            score of each has the log of their number less, so that a list weighs in the softmax as
            much as its mean item would. None by default.
        return_log_sum: also return log sum exp of every row's scores, the log of its softmax's
            denominator.
        backend: "numba" (CPU, float32, widths of a multiple of 16), "triton" (GPU), "blocked"
            (torch, any device and dtype), "naive" (all scores at once, the specification) or
            "auto", the first that fits. float16 and bfloat16, autocast's included, are summed up
            in float32.

    Returns:
        The loss, a scalar, float32 or float64, differentiable once in ``hidden`` and ``weight``;
        with ``return_log_sum`` the pair of it and (n,) of the same dtype, without a gradient.

    Raises:
        BackendError: a shape or dtype that does not fit, an unknown backend, or a named one that
            does not fit the call.
        IndexError: a target, or an item of a list, outside the catalogue (on the CPU; on a GPU the
            process ends).
    """
    if hidden.dim() != 2 or len(hidden) < 1:
        raise BackendError(
            f"linear_cross_entropy: hidden must be (n >= 1, width), got {tuple(hidden.shape)}"
        )
    if weight.dim() != 2 or len(weight) < 1 or weight.shape[1] != hidden.shape[1]:
        raise BackendError(
            f"linear_cross_entropy: weight must be (n_items >= 1, {hidden.shape[1]}) to fit "
            f"hidden, got {tuple(weight.shape)}"
        )
    if target.shape != hidden.shape[:1] or target.dtype != torch.int64:
        raise BackendError(
            f"linear_cross_entropy: target must be ({len(hidden)},) item ids, int64, to fit "
            f"hidden, got {tuple(target.shape)} {target.dtype}"
        )
    if as_one is not None:
        _check_lists(as_one, len(hidden), len(weight))
    if backend not in ("auto", *BACKENDS):
        raise BackendError(
            f"linear_cross_entropy: unknown backend {backend!r}; use auto, {', '.join(BACKENDS)}"
        )
    if backend == "auto":
        names = triton_support.automatic(BACKENDS, hidden.device)
        backend = next(name for name in names if not _objection(name, hidden, weight))
    elif objection := _objection(backend, hidden, weight):
        raise BackendError(f"linear_cross_entropy: {backend} does not fit: {objection}")
    # Imported here: each takes a second to load, which a run on the other need not spend.
    if backend == "numba":
        from recbole_hydra.ops.linear_cross_entropy.numba_cpu import linear_cross_entropy_numba

        compute = linear_cross_entropy_numba
    elif backend == "triton":
        from recbole_hydra.ops.linear_cross_entropy.triton_gpu import linear_cross_entropy_triton

        compute = linear_cross_entropy_triton
    elif backend == "blocked":
        compute = linear_cross_entropy_blocked
    else:
        compute = linear_cross_entropy_naive
    loss, log_sum = compute(hidden, weight, target, as_one)
    return (loss, log_sum) if return_log_sum else loss


def _check_lists(lists: ItemLists, n: int, n_items: int) -> None:
    """Refuse what is not a list for every row of scores, of items of the catalogue."""
    items, begin, count = lists
    if items.dim() != 1 or begin.shape != (n,) or count.shape != (n,):
        raise BackendError(
            f"linear_cross_entropy: as_one must be items (k,), begin ({n},) and count ({n},) to "
            f"fit hidden, got {', '.join(str(tuple(part.shape)) for part in lists)}"
        )
    if items.device.type != "cpu":
        return
    if len(items) and not 0 <= int(items.min()) <= int(items.max()) < n_items:
        raise IndexError(
            f"linear_cross_entropy: items of as_one must be in 0 .. {n_items - 1}, got "
            f"{int(items.min())} to {int(items.max())}"
        )
    end = begin + count
    if int(begin.min()) < 0 or int(count.min()) < 0 or int(end.max()) > len(items):
        raise IndexError(
            f"linear_cross_entropy: lists of as_one must be within its {len(items)} items, got "
            f"{int(begin.min())} to before {int(end.max())}, and no fewer than {int(count.min())} "
            "items in a list"
        )


def _objection(name: str, hidden: Tensor, weight: Tensor) -> str | None:
    """One line about why backend ``name`` does not fit the call, or None."""
    if name == "numba":
        return _objection_to_numba(hidden, weight)
    if name == "triton":
        if objection := triton_support.objection(hidden.device):
            return f"{objection}; use blocked"
        if torch.float64 in (hidden.dtype, weight.dtype):
            return "it computes in float32, the input is float64; use blocked"
    return None


def _objection_to_numba(hidden: Tensor, weight: Tensor) -> str | None:
    """One line about why numba does not fit the call, or None."""
    if hidden.device.type != "cpu":
        return f"it runs on the CPU only, hidden is on {hidden.device}; use blocked"
    if {hidden.dtype, weight.dtype} != {torch.float32}:
        return f"it takes float32 only, got {hidden.dtype} and {weight.dtype}; use blocked"
    if torch.is_autocast_enabled("cpu"):
        return "it does not run in autocast's dtype; use blocked"
    if hidden.shape[1] % 16:
        return f"it takes widths of a multiple of 16, got {hidden.shape[1]}; use blocked"
    return None
