"""The selective scan on the CPU, float32, compiled by numba.

The recurrence is sequential in time and independent over batch rows and channels. One task is one
batch row and one block of channels of one group; tasks run in parallel. Within a task the state is
kept transposed, (d_state, block), so that every inner loop runs over contiguous channels and is
vectorised, and the sums over channels that the gradients of B and C need are plain reductions.

No tensor of size batch x length x channels x d_state exists. The forward pass stores the state
before every ``CHUNK``-th step (training only); the backward pass walks the chunks from the last to
the first, recomputes the states of one chunk into a buffer that fits the cache, and sweeps it.
"""

import numpy as np
import torch
from numba import njit, prange
from torch.autograd.function import once_differentiable

from recbole_hydra.ops.numba_support import FASTMATH, LOG2E, compiled, exp2, use_torch_threads

#: Steps between stored states. With d_state 16 the stored states are as large as one activation.
CHUNK = 16
#: Channels of a task: as many as keep the state of a task in the first-level cache ...
MAX_BLOCK = 128
#: ... and not fewer than fill a few vector registers, when a small batch is split over channels.
MIN_BLOCK = 16


@njit(inline="always", fastmath=FASTMATH)
def _step(h, a2, delta, w, Bt, Ct, y):
    """Advance ``h`` (d_state, block) by one step and add <C_t, h_t> to ``y`` (block,)."""
    block = y.shape[0]
    for n in range(h.shape[0]):
        hn = h[n]
        an = a2[n]
        b = Bt[n]
        c = Ct[n]
        for i in range(block):
            hi = exp2(delta[i] * an[i]) * hn[i] + w[i] * b
            hn[i] = hi
            y[i] += c * hi


@compiled
def _forward(u, delta, a2, B, C, D, h0, block, y, final, stored):
    batch, length, channels = u.shape
    d_state = a2.shape[1]
    per_group = channels // B.shape[2]
    blocks = channels // block
    for task in prange(batch * blocks):
        b = task // blocks
        k = task % blocks
        lo = k * block
        g = lo // per_group
        h = np.empty((d_state, block), np.float32)
        w = np.empty(block, np.float32)
        a = a2[k]
        d = D[lo : lo + block]
        for n in range(d_state):
            for i in range(block):
                h[n, i] = h0[b, lo + i, n]
        for t in range(length):
            if stored.shape[0] > 0 and t % CHUNK == 0:
                stored[b, t // CHUNK, k] = h
            ut = u[b, t, lo : lo + block]
            dt = delta[b, t, lo : lo + block]
            yt = y[b, t, lo : lo + block]
            for i in range(block):
                w[i] = dt[i] * ut[i]
                yt[i] = d[i] * ut[i]
            _step(h, a, dt, w, B[b, t, g], C[b, t, g], yt)
        for n in range(d_state):
            for i in range(block):
                final[b, lo + i, n] = h[n, i]


@compiled
def _backward(
    u, delta, a2, A, B, C, D, stored, block, gy, gfinal,
    gu, gdelta, gA, gB, gC, gD, gh0,
):  # fmt: skip
    batch, length, channels = u.shape
    d_state = a2.shape[1]
    per_group = channels // B.shape[2]
    blocks = channels // block
    blocks_per_group = per_group // block
    for task in prange(batch * blocks):
        b = task // blocks
        k = task % blocks
        lo = k * block
        g = lo // per_group
        part = k % blocks_per_group
        states = np.empty((CHUNK + 1, d_state, block), np.float32)
        grad = np.empty((d_state, block), np.float32)  # d loss / d h_t
        grad_a = np.zeros((d_state, block), np.float32)
        grad_d = np.zeros(block, np.float32)
        w = np.empty(block, np.float32)
        through_w = np.empty(block, np.float32)  # sum_n d loss / d (delta_t u_t)
        through_a = np.empty(block, np.float32)  # sum_n d loss / d (delta_t A) * A
        a = a2[k]
        a_natural = A[k]
        d = D[lo : lo + block]
        for n in range(d_state):
            for i in range(block):
                grad[n, i] = gfinal[b, lo + i, n]
        for chunk in range((length - 1) // CHUNK, -1, -1):
            start = chunk * CHUNK
            stop = min(start + CHUNK, length)
            # Recompute the states of this chunk; states[j] is the state before step start + j.
            states[0] = stored[b, chunk, k]
            for t in range(start, stop):
                ut = u[b, t, lo : lo + block]
                dt = delta[b, t, lo : lo + block]
                before = states[t - start]
                after = states[t - start + 1]
                Bt = B[b, t, g]
                for i in range(block):
                    w[i] = dt[i] * ut[i]
                for n in range(d_state):
                    hn = before[n]
                    out = after[n]
                    an = a[n]
                    bn = Bt[n]
                    for i in range(block):
                        out[i] = exp2(dt[i] * an[i]) * hn[i] + w[i] * bn
            for t in range(stop - 1, start - 1, -1):
                ut = u[b, t, lo : lo + block]
                dt = delta[b, t, lo : lo + block]
                gyt = gy[b, t, lo : lo + block]
                gut = gu[b, t, lo : lo + block]
                gdt = gdelta[b, t, lo : lo + block]
                before = states[t - start]
                after = states[t - start + 1]
                Bt = B[b, t, g]
                Ct = C[b, t, g]
                gBt = gB[part, b, t, g]
                gCt = gC[part, b, t, g]
                for i in range(block):
                    w[i] = dt[i] * ut[i]
                    through_w[i] = 0.0
                    through_a[i] = 0.0
                    grad_d[i] += gyt[i] * ut[i]
                for n in range(d_state):
                    prev = before[n]
                    cur = after[n]
                    gn = grad[n]
                    an = a[n]
                    en = a_natural[n]
                    gan = grad_a[n]
                    bn = Bt[n]
                    cn = Ct[n]
                    sum_b = np.float32(0.0)
                    sum_c = np.float32(0.0)
                    for i in range(block):
                        decay = exp2(dt[i] * an[i])
                        gh = gn[i] + gyt[i] * cn
                        sum_c += gyt[i] * cur[i]
                        sum_b += gh * w[i]
                        through_w[i] += gh * bn
                        gh = gh * decay
                        gn[i] = gh
                        gx = gh * prev[i]  # d loss / d (delta_t A)
                        through_a[i] += gx * en[i]
                        gan[i] += gx * dt[i]
                    gBt[n] = sum_b
                    gCt[n] = sum_c
                for i in range(block):
                    gdt[i] = through_a[i] + through_w[i] * ut[i]
                    gut[i] = through_w[i] * dt[i] + d[i] * gyt[i]
        for i in range(block):
            gD[b, lo + i] = grad_d[i]
        for n in range(d_state):
            for i in range(block):
                gA[b, lo + i, n] = grad_a[n, i]
                gh0[b, lo + i, n] = grad[n, i]


def _block_size(batch: int, per_group: int, groups: int, threads: int) -> int:
    """Channels of one task: the largest divisor of ``per_group`` up to ``MAX_BLOCK`` that leaves
    every thread two tasks or more, but not below ``MIN_BLOCK``."""
    sizes = [n for n in range(per_group, 0, -1) if per_group % n == 0 and n >= MIN_BLOCK]
    for size in sizes:
        if size <= MAX_BLOCK and batch * groups * (per_group // size) >= 2 * threads:
            return size
    return sizes[-1] if sizes else per_group


def _blocked(A: np.ndarray, block: int) -> np.ndarray:
    """(channels, d_state) -> (channels // block, d_state, block), contiguous."""
    return np.ascontiguousarray(A.reshape(-1, block, A.shape[1]).transpose(0, 2, 1))


class _SelectiveScan(torch.autograd.Function):
    @staticmethod
    def forward(ctx, u, delta, A, B, C, D, initial_state):
        batch, length, channels = u.shape
        d_state, groups = A.shape[1], B.shape[2]
        u, delta, B, C = (x.contiguous() for x in (u, delta, B, C))
        D_ = u.new_zeros(channels) if D is None else D.contiguous()
        if initial_state is None:
            h0 = u.new_zeros(batch, channels, d_state)
        else:
            h0 = initial_state.contiguous()
        y = torch.empty_like(u)
        final = torch.empty_like(h0)
        threads = use_torch_threads()
        block = _block_size(batch, channels // groups, groups, threads)
        blocks = channels // block
        if any(ctx.needs_input_grad):
            stored = u.new_empty(batch, -(-length // CHUNK), blocks, d_state, block)
        else:
            stored = u.new_empty(0, 0, blocks, d_state, block)
        a2 = _blocked(A.detach().numpy() * LOG2E, block)
        arrays = [x.detach().numpy() for x in (u, delta, B, C, D_, h0, y, final, stored)]
        u_, delta_, B_, C_, D_np, h0_, y_, final_, stored_ = arrays
        _forward(u_, delta_, a2, B_, C_, D_np, h0_, block, y_, final_, stored_)
        ctx.save_for_backward(u, delta, A, B, C, D_, stored)
        ctx.block = block
        ctx.has_D = D is not None
        ctx.has_initial_state = initial_state is not None
        return y, final

    @staticmethod
    @once_differentiable
    def backward(ctx, gy, gfinal):
        u, delta, A, B, C, D, stored = ctx.saved_tensors
        batch, _, channels = u.shape
        block = ctx.block
        parts = channels // B.shape[2] // block
        gu, gdelta = torch.empty_like(u), torch.empty_like(u)
        gA = u.new_empty(batch, channels, A.shape[1])
        gh0 = torch.empty_like(gA)
        gD = u.new_empty(batch, channels)
        gB = B.new_empty(parts, *B.shape)
        gC = torch.empty_like(gB)
        use_torch_threads()
        A_np = A.detach().numpy()
        inputs = [x.detach().numpy() for x in (B, C, D, stored)]
        grads = [x.contiguous().numpy() for x in (gy, gfinal)]
        outputs = [x.numpy() for x in (gu, gdelta, gA, gB, gC, gD, gh0)]
        B_, C_, D_, stored_ = inputs
        _backward(
            u.detach().numpy(), delta.detach().numpy(),
            _blocked(A_np * LOG2E, block), _blocked(A_np, block),
            B_, C_, D_, stored_, block, *grads, *outputs,
        )  # fmt: skip
        return (
            gu,
            gdelta,
            gA.sum(0),
            gB.sum(0),
            gC.sum(0),
            gD.sum(0) if ctx.has_D else None,
            gh0 if ctx.has_initial_state else None,
        )


def selective_scan_numba(u, delta, A, B, C, D=None, initial_state=None):
    """The scan of :func:`.naive.selective_scan_naive` for float32 CPU tensors, any strides.

    Differentiable once in every input and through both states. Returns ``(y, final_state)``.
    """
    return _SelectiveScan.apply(u, delta, A, B, C, D, initial_state)
