"""Cross-entropy over a large catalogue without the logits of the whole batch."""

import torch

from recbole_hydra.errors import BackendError
from recbole_hydra.ops.linear_cross_entropy.blocked import linear_cross_entropy_blocked
from recbole_hydra.ops.linear_cross_entropy.naive import linear_cross_entropy_naive
from recbole_hydra.ops.linear_cross_entropy.offsets import ScoreOffsets

__all__ = ["BACKENDS", "ScoreOffsets", "linear_cross_entropy"]

BACKENDS = ("numba", "blocked", "naive")


def linear_cross_entropy(hidden, weight, target, offsets=None, backend="auto"):
    """Mean cross-entropy of the scores ``hidden @ weight.T``, plus ``offsets``, against ``target``.

    The softmax over all items that next-item models are trained with (SASRec's and Mamba4Rec's CE).
    Extra memory is one block of rows of scores (96, fewer of a very large catalogue) and the two
    gradients.

    Args:
        hidden: states, (n, width), n >= 1.
        weight: item vectors, (n_items, width).
        target: item ids, (n,), int64, in 0 .. n_items - 1.
        offsets: :class:`ScoreOffsets`, what is added to single scores; none by default.
        backend: "numba" (CPU, float32, widths of a multiple of 16), "blocked" (torch, any device
            and dtype), "naive" (all scores at once, the specification) or "auto", the first that
            fits. float16 and bfloat16, autocast's included, are summed up in float32.

    Returns:
        The loss, a scalar, float32 or float64, differentiable once in ``hidden``, ``weight`` and
        the values of ``offsets``.

    Raises:
        BackendError: a shape or dtype that does not fit, an unknown backend, or a named one that
            does not fit the call.
        IndexError: a target outside the catalogue (on the CPU; on a GPU the process ends).
    """
    if hidden.dim() != 2 or len(hidden) < 1:
        raise BackendError(
            f"linear_cross_entropy: hidden must be (n >= 1, width), got {tuple(hidden.shape)}"
        )
    if weight.dim() != 2 or weight.shape[1] != hidden.shape[1]:
        raise BackendError(
            f"linear_cross_entropy: weight must be (n_items, {hidden.shape[1]}) to fit hidden, got "
            f"{tuple(weight.shape)}"
        )
    if target.shape != hidden.shape[:1] or target.is_floating_point():
        raise BackendError(
            f"linear_cross_entropy: target must be ({len(hidden)},) item ids to fit hidden, got "
            f"{tuple(target.shape)} {target.dtype}"
        )
    if offsets is not None:
        _check_offsets(offsets, len(hidden), len(weight))
    if backend not in ("auto", *BACKENDS):
        raise BackendError(
            f"linear_cross_entropy: unknown backend {backend!r}; use auto, {', '.join(BACKENDS)}"
        )
    objection = _objection_to_numba(hidden, weight)
    if backend == "auto":
        backend = "blocked" if objection else "numba"
    elif backend == "numba" and objection:
        raise BackendError(f"linear_cross_entropy: numba does not fit: {objection}")
    if backend == "numba":
        # Imported here: numba takes a second to load, which a GPU run need not spend.
        from recbole_hydra.ops.linear_cross_entropy.numba_cpu import linear_cross_entropy_numba

        return linear_cross_entropy_numba(hidden, weight, target, offsets)
    if backend == "blocked":
        return linear_cross_entropy_blocked(hidden, weight, target, offsets)
    return linear_cross_entropy_naive(hidden, weight, target, offsets)


def _check_offsets(offsets, n, n_items):
    rows, items, kinds, values = offsets
    if not rows.shape == items.shape == kinds.shape == (rows.numel(),) or values.dim() != 1:
        raise BackendError(
            "linear_cross_entropy: offsets must be rows, items and kinds of one length, and values "
            f"(kinds,), got {', '.join(str(tuple(part.shape)) for part in offsets)}"
        )
    if rows.device.type != "cpu" or not len(rows):
        return
    low, high = torch.stack([rows, items, kinds]).aminmax(dim=1)
    if bool((low < 0).any()) or any(
        int(most) >= size for most, size in zip(high, (n, n_items, len(values)), strict=True)
    ):
        raise IndexError(
            f"linear_cross_entropy: offsets must be in rows 0 .. {n - 1}, items 0 .. {n_items - 1}"
            f" and kinds 0 .. {len(values) - 1}, got {low.tolist()} to {high.tolist()}"
        )
    if bool((rows.diff() < 0).any()):
        raise BackendError("linear_cross_entropy: the rows of offsets must be ascending")


def _objection_to_numba(hidden, weight):
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
