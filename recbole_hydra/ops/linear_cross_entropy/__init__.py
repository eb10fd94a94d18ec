"""Cross-entropy over a large catalogue without the logits of the whole batch."""

from recbole_hydra.errors import BackendError
from recbole_hydra.ops.linear_cross_entropy.blocked import linear_cross_entropy_blocked
from recbole_hydra.ops.linear_cross_entropy.naive import linear_cross_entropy_naive

__all__ = ["BACKENDS", "linear_cross_entropy"]

BACKENDS = {"blocked": linear_cross_entropy_blocked, "naive": linear_cross_entropy_naive}


def linear_cross_entropy(hidden, weight, target, backend="auto"):
    """Mean cross-entropy of the scores ``hidden @ weight.T`` against ``target``.

    The softmax over all items that next-item models are trained with (SASRec's and Mamba4Rec's CE).
    Extra memory is one block of 64 rows of scores (on the CPU) and the two gradients.

    Args:
        hidden: states, (n, width), n >= 1.
        weight: item vectors, (n_items, width).
        target: item ids, (n,), int64, in 0 .. n_items - 1.
        backend: "blocked", "naive" (all scores at once, the specification) or "auto", which is
            "blocked". Both run on any device and in any dtype; float16 and bfloat16, autocast's
            included, are summed up in float32.

    Returns:
        The loss, a scalar, float32 or float64, differentiable once in ``hidden`` and ``weight``.

    Raises:
        BackendError: a shape or dtype that does not fit, or an unknown backend.
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
    if backend not in ("auto", *BACKENDS):
        raise BackendError(
            f"linear_cross_entropy: unknown backend {backend!r}; use auto, {', '.join(BACKENDS)}"
        )
    return BACKENDS["blocked" if backend == "auto" else backend](hidden, weight, target)
