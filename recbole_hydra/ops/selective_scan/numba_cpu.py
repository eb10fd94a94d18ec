"""The selective scan on the CPU, float32, compiled by numba.

The recurrence is sequential in time and independent over batch rows and channels. The unit of work
is an octet: eight channels of one group with all their states, computed in vectors of eight
channels times two states (:mod:`recbole_hydra.ops.simd`). A group whose channels are no multiple of
eight has empty lanes in its last octet. One task is one batch row and some neighbouring octets;
tasks run in parallel.

Time is walked in chunks. Within a chunk, a task takes its octets one after the other, so that the
state of an octet stays in the first-level cache, and delta_t, u_t and y_t in registers. No tensor
of size batch x length x channels x d_state exists: the forward pass stores the states before every
chunk (training only); the backward pass walks the chunks from the last to the first, recomputes the
states of a chunk, and sweeps it.
"""

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numba import njit, prange
from torch import Tensor
from torch.autograd.function import once_differentiable

from recbole_hydra.ops.numba_support import compiled, use_torch_threads
from recbole_hydra.ops.simd import (
    CHANNELS,
    LANES,
    LOG2E,
    even,
    exp2,
    fma,
    load,
    load_each_twice,
    load_pair,
    store,
    store_channel_sums,
    store_pair_sums,
    zero,
)

#: Steps between stored states. With d_state 16 the stored states are as large as one activation.
CHUNK = 16
#: Most octets of a task.
MAX_OCTETS = 16

_ZERO = np.float32(0.0)

# Arrays are passed flat and addressed by offsets: a view per step and octet, with its reference
# count, would take as long as the step. The names of offsets: "at" counts (batch, time), so that
# at * channels is a row of u, and (at * groups + g) * d_state one of B.


@njit(inline="always")
def _get(x: np.ndarray, first: int, count: int, spare: np.ndarray) -> Any:
    """``x[first : first + count]``, each number twice, zeros behind; ``spare`` is 8 zeros."""
    if count == CHANNELS:
        return load_each_twice(x, first)
    for i in range(count):
        spare[i] = x[first + i]
    return load_each_twice(spare, 0)


@njit(inline="always")
def _put(vector: Any, x: np.ndarray, first: int, count: int, spare: np.ndarray) -> None:
    """Write the first ``count`` sums over pairs of lanes of ``vector`` to ``x[first:]``."""
    if count == CHANNELS:
        store_pair_sums(x, first, vector)
    else:
        store_pair_sums(spare, 0, vector)
        for i in range(count):
            x[first + i] = spare[i]
        for i in range(CHANNELS):
            spare[i] = _ZERO


@compiled
def _forward(
    sizes: tuple[int, ...], u: np.ndarray, delta: np.ndarray, a2: np.ndarray, B: np.ndarray,
    C: np.ndarray, D: np.ndarray, h0: np.ndarray, y: np.ndarray, final: np.ndarray,
    stored: np.ndarray,
) -> None:  # fmt: skip
    batch, octets, of_task = sizes[0], sizes[5], sizes[7]
    tasks = octets // of_task
    for task in prange(batch * tasks):
        begin = (task % tasks) * of_task
        _forward_task(task // tasks, begin, sizes, u, delta, a2, B, C, D, h0, y, final, stored)


@njit
def _forward_task(
    b: int, begin: int, sizes: tuple[int, ...], u: np.ndarray, delta: np.ndarray, a2: np.ndarray,
    B: np.ndarray, C: np.ndarray, D: np.ndarray, h0: np.ndarray, y: np.ndarray, final: np.ndarray,
    stored: np.ndarray,
) -> None:  # fmt: skip
    _, length, channels, groups, d_state, octets, per_group_octets, of_task = sizes
    per_group = channels // groups
    size = d_state * CHANNELS
    chunks = (length + CHUNK - 1) // CHUNK
    spare = np.zeros(CHANNELS, np.float32)
    first = (b * octets + begin) * size
    h = h0[first : first + of_task * size].copy()
    for chunk in range(chunks):
        start = b * length + chunk * CHUNK
        stop = min(start + CHUNK, (b + 1) * length)
        for k in range(begin, begin + of_task):
            g = k // per_group_octets
            offset = (k % per_group_octets) * CHANNELS
            c, count = g * per_group + offset, min(CHANNELS, per_group - offset)
            hk, ak = (k - begin) * size, k * size
            if len(stored) > 0:
                keep = ((b * chunks + chunk) * octets + k) * size
                for o in range(0, size, LANES):
                    store(stored, keep + o, load(h, hk + o))
            d = even(_get(D, c, count, spare))
            for at in range(start, stop):
                ut = _get(u, at * channels + c, count, spare)
                dt = _get(delta, at * channels + c, count, spare)
                bc = (at * groups + g) * d_state
                w = dt * ut
                yt = d * ut
                for n in range(0, d_state, 2):
                    o = n * CHANNELS
                    decay = exp2(dt * load(a2, ak + o))
                    ht = fma(decay, load(h, hk + o), w * load_pair(B, bc + n))
                    store(h, hk + o, ht)
                    yt = fma(load_pair(C, bc + n), ht, yt)
                _put(yt, y, at * channels + c, count, spare)
    final[first : first + of_task * size] = h


@compiled
def _backward(
    sizes: tuple[int, ...], u: np.ndarray, delta: np.ndarray, a2: np.ndarray, A: np.ndarray,
    B: np.ndarray, C: np.ndarray, D: np.ndarray, stored: np.ndarray, gy: np.ndarray,
    gfinal: np.ndarray, gu: np.ndarray, gdelta: np.ndarray, gA: np.ndarray, gB: np.ndarray,
    gC: np.ndarray, gD: np.ndarray, gh0: np.ndarray,
) -> None:  # fmt: skip
    batch, octets, of_task = sizes[0], sizes[5], sizes[7]
    tasks = octets // of_task
    for task in prange(batch * tasks):
        begin = (task % tasks) * of_task
        _backward_task(
            task // tasks, begin, sizes, u, delta, a2, A, B, C, D, stored, gy, gfinal,
            gu, gdelta, gA, gB, gC, gD, gh0,
        )  # fmt: skip


@njit
def _backward_task(
    b: int, begin: int, sizes: tuple[int, ...], u: np.ndarray, delta: np.ndarray, a2: np.ndarray,
    A: np.ndarray, B: np.ndarray, C: np.ndarray, D: np.ndarray, stored: np.ndarray, gy: np.ndarray,
    gfinal: np.ndarray, gu: np.ndarray, gdelta: np.ndarray, gA: np.ndarray, gB: np.ndarray,
    gC: np.ndarray, gD: np.ndarray, gh0: np.ndarray,
) -> None:  # fmt: skip
    batch, length, channels, groups, d_state, octets, per_group_octets, of_task = sizes
    per_group = channels // groups
    size = d_state * CHANNELS
    chunks = (length + CHUNK - 1) // CHUNK
    spare = np.zeros(CHANNELS, np.float32)
    states = np.empty((CHUNK + 1) * size, np.float32)  # of one octet
    sum_b = np.zeros(CHUNK * size, np.float32)  # over the octets of a group, for d loss / d B
    sum_c = np.zeros(CHUNK * size, np.float32)
    first, last = (b * octets + begin) * size, (b * octets + begin + of_task) * size
    gh0[first:last] = gfinal[first:last]  # d loss / d h_t, walking backwards
    gA[first:last] = _ZERO
    gD[(b * octets + begin) * LANES : (b * octets + begin + of_task) * LANES] = _ZERO
    part = (begin % per_group_octets) // of_task  # a task has whole groups, or a part of one
    for chunk in range(chunks - 1, -1, -1):
        start = b * length + chunk * CHUNK
        stop = min(start + CHUNK, (b + 1) * length)
        for k in range(begin, begin + of_task):
            g = k // per_group_octets
            offset = (k % per_group_octets) * CHANNELS
            c, count = g * per_group + offset, min(CHANNELS, per_group - offset)
            ak, hk = k * size, (b * octets + k) * size
            d = even(_get(D, c, count, spare))
            # The states of this chunk again; states[j * size] is the one before step start + j.
            kept = ((b * chunks + chunk) * octets + k) * size
            for o in range(0, size, LANES):
                store(states, o, load(stored, kept + o))
            for at in range(start, stop):
                dt = _get(delta, at * channels + c, count, spare)
                w = dt * _get(u, at * channels + c, count, spare)
                bc = (at * groups + g) * d_state
                before = (at - start) * size
                for n in range(0, d_state, 2):
                    o = before + n * CHANNELS
                    decay = exp2(dt * load(a2, ak + n * CHANNELS))
                    ht = fma(decay, load(states, o), w * load_pair(B, bc + n))
                    store(states, o + size, ht)
            grad_d = load(gD, (b * octets + k) * LANES)
            for at in range(stop - 1, start - 1, -1):
                ut = _get(u, at * channels + c, count, spare)
                dt = _get(delta, at * channels + c, count, spare)
                gyt = _get(gy, at * channels + c, count, spare)
                bc = (at * groups + g) * d_state
                before = (at - start) * size
                w = dt * ut
                through_w = zero()  # sum_n d loss / d (delta_t u_t)
                through_a = zero()  # sum_n d loss / d (delta_t A) * A
                for n in range(0, d_state, 2):
                    o = n * CHANNELS
                    gh = fma(gyt, load_pair(C, bc + n), load(gh0, hk + o))
                    now = load(states, before + size + o)
                    store(sum_c, before + o, fma(gyt, now, load(sum_c, before + o)))
                    store(sum_b, before + o, fma(gh, w, load(sum_b, before + o)))
                    through_w = fma(gh, load_pair(B, bc + n), through_w)
                    gh = gh * exp2(dt * load(a2, ak + o))
                    store(gh0, hk + o, gh)
                    gx = gh * load(states, before + o)  # d loss / d (delta_t A)
                    through_a = fma(gx, load(A, ak + o), through_a)
                    store(gA, hk + o, fma(gx, dt, load(gA, hk + o)))
                grad_d = fma(gyt, ut, grad_d)
                _put(fma(through_w, ut, through_a), gdelta, at * channels + c, count, spare)
                _put(fma(through_w, dt, d * gyt), gu, at * channels + c, count, spare)
            store(gD, (b * octets + k) * LANES, grad_d)
            if k + 1 == begin + of_task or (k + 1) % per_group_octets == 0:  # the group's last
                for at in range(start, stop):
                    bc = ((part * batch * length + at) * groups + g) * d_state
                    before = (at - start) * size
                    for n in range(0, d_state, 2):
                        o = before + n * CHANNELS
                        store_channel_sums(gB, bc + n, load(sum_b, o))
                        store_channel_sums(gC, bc + n, load(sum_c, o))
                        store(sum_b, o, zero())
                        store(sum_c, o, zero())


def _octets_of_task(batch: int, groups: int, octets_per_group: int, threads: int) -> int:
    """Octets of one task: as many as leave every thread four tasks, and ``MAX_OCTETS`` at most;
    whole groups or an equal part of one."""
    wholes = [n * octets_per_group for n in range(groups, 0, -1) if groups % n == 0]
    parts = [n for n in range(octets_per_group - 1, 0, -1) if octets_per_group % n == 0]
    for octets in wholes + parts:
        tasks = batch * groups * octets_per_group // octets
        if octets <= MAX_OCTETS and tasks >= 4 * threads:
            return octets
    return 1


class _Octets:
    """How channels lie in octets, and states in vectors.

    The channels of a group are side by side; a vector has two states of eight channels, so that
    an odd ``d_state`` gets a state that stays zero.
    """

    def __init__(self, channels: int, groups: int, d_state: int) -> None:
        self.groups, self.per_group = groups, channels // groups
        self.per_group_octets = -(-self.per_group // CHANNELS)
        self.number = groups * self.per_group_octets
        self.d_state, self.even_d_state = d_state, d_state + d_state % 2
        self.size = self.even_d_state * CHANNELS

    def pack(self, x: Tensor) -> Tensor:
        """(..., channels, d_state) -> (..., octets, size)."""
        x = x.detach()
        empty = self.per_group_octets * CHANNELS - self.per_group
        if empty or self.even_d_state != self.d_state:
            x = x.unflatten(-2, (self.groups, self.per_group))
            x = F.pad(x, (0, self.even_d_state - self.d_state, 0, empty)).flatten(-3, -2)
        x = x.unflatten(-1, (-1, 2)).unflatten(-3, (self.number, CHANNELS))
        return x.transpose(-3, -2).flatten(-3).contiguous()  # (..., pair of states, channel, 2)

    def unpack(self, x: Tensor) -> Tensor:
        """The inverse of :meth:`pack`."""
        x = x.unflatten(-1, (-1, CHANNELS, 2)).transpose(-3, -2).flatten(-2)
        x = x.flatten(-3, -2).unflatten(-2, (self.groups, -1))
        return x[..., : self.per_group, : self.d_state].flatten(-3, -2)

    def pack_sequence(self, x: Tensor) -> Tensor:
        """B or C, (batch, length, groups, d_state), with an even number of states."""
        x = x.detach().contiguous()
        return x if self.even_d_state == self.d_state else F.pad(x, (0, 1))


def _flat(*tensors: Tensor) -> list[np.ndarray]:
    return [x.view(-1).numpy() for x in tensors]


class _SelectiveScan(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor | None,
        initial_state: Tensor | None, training: bool,
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        batch, length, channels = u.shape
        groups = B.shape[2]
        octets = _Octets(channels, groups, A.shape[1])
        u, delta = u.detach().contiguous(), delta.detach().contiguous()
        A, B, C = octets.pack(A), octets.pack_sequence(B), octets.pack_sequence(C)
        states = (batch, octets.number, octets.size)
        h0 = u.new_zeros(states) if initial_state is None else octets.pack(initial_state)
        D_ = u.new_zeros(channels) if D is None else D.detach().contiguous()
        y, final = torch.empty_like(u), torch.empty_like(h0)
        stored = u.new_empty(batch if training else 0, -(-length // CHUNK), *states[1:])
        threads = use_torch_threads()
        of_task = _octets_of_task(batch, groups, octets.per_group_octets, threads)
        per_group = octets.per_group_octets
        sizes = (batch, length, channels, groups, B.shape[3], octets.number, per_group, of_task)
        _forward(sizes, *_flat(u, delta, A * float(LOG2E), B, C, D_, h0, y, final, stored))
        ctx.save_for_backward(u, delta, A, B, C, D_, stored)
        ctx.octets, ctx.sizes = octets, sizes
        ctx.has_D, ctx.has_initial_state = D is not None, initial_state is not None
        ctx.set_materialize_grads(False)  # the gradient of the final state mostly is None
        return y, octets.unpack(final)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gy: Tensor | None, gfinal: Tensor | None) -> tuple[Tensor | None, ...]:
        u, delta, A, B, C, D, stored = ctx.saved_tensors
        octets, d_state = ctx.octets, ctx.octets.d_state
        gu, gdelta = torch.empty_like(u), torch.empty_like(u)
        gh0 = u.new_empty(len(u), *A.shape)
        gA = torch.empty_like(gh0)
        gD = u.new_empty(len(u), octets.number, LANES)
        gy = torch.zeros_like(u) if gy is None else gy.contiguous()
        gfinal = torch.zeros_like(gh0) if gfinal is None else octets.pack(gfinal)
        parts = max(1, octets.per_group_octets // ctx.sizes[-1])
        gB = B.new_empty(parts, *B.shape)
        gC = torch.empty_like(gB)
        use_torch_threads()
        inputs = (u, delta, A * float(LOG2E), A, B, C, D, stored)
        _backward(ctx.sizes, *_flat(*inputs, gy, gfinal, gu, gdelta, gA, gB, gC, gD, gh0))
        gB, gC = (x[0] if parts == 1 else x.sum(0) for x in (gB, gC))
        if ctx.has_D:
            # Both states of a channel hold the same sum.
            gD = gD.sum(0).view(octets.groups, -1, 2)[:, : octets.per_group, 0].flatten()
        return (
            gu,
            gdelta,
            octets.unpack(gA.sum(0)),
            gB[..., :d_state],
            gC[..., :d_state],
            gD if ctx.has_D else None,
            octets.unpack(gh0) if ctx.has_initial_state else None,
            None,
        )


def selective_scan_numba(
    u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor | None = None,
    initial_state: Tensor | None = None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """The scan of :func:`.naive.selective_scan_naive` for float32 CPU tensors, any strides.

    Differentiable once in every input and through both states. Returns ``(y, final_state)``.
    """
    inputs = (u, delta, A, B, C, D, initial_state)
    # Asked here: within an autograd function parameters want gradients under no_grad, too.
    training = torch.is_grad_enabled() and any(x is not None and x.requires_grad for x in inputs)
    return _SelectiveScan.apply(*inputs, training)
