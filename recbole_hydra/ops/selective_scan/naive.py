"""The selective scan as the paper writes it: one step of the recurrence after the other."""

import torch
from torch import Tensor


def selective_scan_naive(
    u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor | None = None,
    initial_state: Tensor | None = None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Run the recurrence step by step; the specification of every other backend.

    For each batch row, with channel c in group g(c) = c // (channels // groups)::

        h_t = exp(delta_t A) h_{t-1} + delta_t B_t u_t        state, (channels, d_state)
        y_t = <C_t, h_t> + D u_t                              output, (channels,)

    (Gu and Dao 2023, arXiv 2312.00752, algorithm 2, with B discretised by Euler's rule as in their
    code.) Any device, any floating dtype; autograd differentiates it. Shapes as in
    :func:`~recbole_hydra.ops.selective_scan.selective_scan`.

    Returns:
        ``(y, final_state)``, (batch, length, channels) and (batch, channels, d_state).
    """
    batch, length, channels = u.shape
    per_group = channels // B.shape[2]
    B = B.repeat_interleave(per_group, dim=2)  # (batch, length, channels, d_state)
    C = C.repeat_interleave(per_group, dim=2)

    h = u.new_zeros(batch, channels, A.shape[1]) if initial_state is None else initial_state
    ys = []
    for t in range(length):
        decay = torch.exp(delta[:, t, :, None] * A)  # (batch, channels, d_state)
        h = decay * h + (delta[:, t] * u[:, t])[..., None] * B[:, t]
        ys.append((h * C[:, t]).sum(-1))
    y = torch.stack(ys, dim=1)
    if D is not None:
        y = y + D * u
    return y, h
