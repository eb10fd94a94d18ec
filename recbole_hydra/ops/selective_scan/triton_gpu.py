"""The selective scan as a Triton kernel, for GPUs; Triton comes with torch.

A program is one warp: it has one batch row and 16 neighbouring channels of one group, and walks
through time with their states in registers, a tile (channels of a lane, d_state, lanes)::

    h_t = exp(delta_t A) h_{t-1} + delta_t B_t u_t,    y_t = <C_t, h_t> + D u_t

Rows, groups and channels run beside each other, steps one after the other. Compiled for sm_90 that
is 14 instructions per step, channel and state forward and 56 backward, where a scan within tiles of
time (Blelloch 1990) has 68 and 142, with barriers. All heads are in one launch: they are the groups
of the channels.

No tensor of size batch x length x channels x d_state exists. What is kept for the backward pass is
the state after every 16th step, and delta after its softplus. From the last four steps to the first
that pass computes their states again, from the last kept, and walks back through them with the
gradient of the state::

    g_t = C_t dy_t + exp(delta_{t+1} A) g_{t+1}

Where rows and channels are too few to fill the GPU, time is cut into segments that run beside each
other. Both recurrences are linear: what a segment makes of the state (or gradient) that it is
handed is that, decayed by exp(A sum delta), plus what it makes of zero. A pass before each kernel
finds the latter and the sums of all segments, and a program begins by going through those of the
segments before its own (after it, backwards).
"""

from collections.abc import Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from recbole_hydra.ops.triton_support import dense

#: Lanes of a warp that have channels, and channels of each, at most. The other lanes, four times
#: eight are a warp, share out the states.
LANES, PER_LANE = 8, 2
#: With more states than these, one channel for a lane: its states stay in registers.
MANY = 32
#: Steps from one stored state to the next: a multiple of the four that the backward pass takes.
CHUNK = 16
#: Warps that a multiprocessor is to have before time is no longer cut: of 8, 16, 32 and 64 the one
#: after which an H200 gains no more; and steps of a segment at least.
WARPS, SEGMENT = 32, 64
#: Numbers of the gradients of B and C before they are summed over programs, at most: 256 MiB each.
LARGEST = 2**26

_LOG2E, _LN2 = tl.constexpr(1.4426950408889634), tl.constexpr(0.6931471805599453)


@triton.jit
def _softplus(x):
    """log(1 + e^x), as torch's, which is linear from 20 on; a series where 1 + e^x loses digits."""
    e = tl.exp2(tl.minimum(x, 20.0, propagate_nan=tl.PropagateNan.ALL) * _LOG2E)
    s = tl.minimum(e, 0.02)
    series = s * (1.0 - s * (1.0 / 2 - s * (1.0 / 3 - s * (1.0 / 4 - s * (1.0 / 5)))))
    return tl.where(x > 20.0, x, tl.where(e < 0.02, series, tl.log2(1.0 + e) * _LN2))


@triton.jit
def _softplus_slope(y):
    """The derivative of softplus where its value is y: 1 - e^-y."""
    s = tl.minimum(y, 0.06, propagate_nan=tl.PropagateNan.ALL)
    series = s * (1.0 - s * (1.0 / 2) * (1.0 - s * (1.0 / 3) * (1.0 - s * (1.0 / 4))))
    return tl.where(y < 0.06, series, 1.0 - tl.exp2(-y * _LOG2E))


@triton.jit
def _sigmoid(x):
    return 1.0 / (1.0 + tl.exp2(-x * _LOG2E))


@triton.jit
def _channels(channels, groups, LANES: tl.constexpr, PER_LANE: tl.constexpr):
    """The group, the part of it and the channels, (PER_LANE, LANES), of a program, and which
    exist."""
    per_group = channels // groups
    parts = tl.cdiv(per_group, LANES * PER_LANE)
    group, part = tl.program_id(1) // parts, tl.program_id(1) % parts
    offset = (part * PER_LANE + tl.arange(0, PER_LANE)[:, None]) * LANES
    offset += tl.arange(0, LANES)[None, :]
    return group, part, group * per_group + offset, offset < per_group


@triton.jit
def _read(x, offset, mask):
    return tl.load(x + offset, mask, 0.0).to(tl.float32)


@triton.jit
def _states(channels, c, inside, n, exists, zero):
    """Where the states of a program are in a matrix (N, channels), and which exist.

    What is read and written there decides how Triton lays out all tiles (PER_LANE, STATES, LANES):
    neighbouring channels go to neighbouring lanes, one each. Were they known to begin where four
    can be read at once, a lane would have four, and a sum over the states go through more lanes; so
    nothing is known of ``zero``.
    """
    at = n[None, :, None] * channels + c[:, None, :] + zero
    return at, inside[:, None, :] & exists[None, :, None]


@triton.jit
def _step(rate, h, dt, ut, bt):
    """The decay of a step and the states after it."""
    a = tl.exp2(dt[:, None, :] * rate)
    return a, a * h + (dt * ut)[:, None, :] * bt[None, :, None]


@triton.jit(do_not_specialize=["length", "zero"])
def _forward(
    u, delta, A, B, C, D, bias, z, y, steps, states, ends_of, sums_of,
    u_batch, u_time, d_batch, d_time, b_batch, b_time, b_group, c_batch, c_time, c_group,
    z_batch, z_time,
    length, channels, groups, zero, span, every,
    N: tl.constexpr, STATES: tl.constexpr, SOFTPLUS: tl.constexpr, HAS_D: tl.constexpr,
    HAS_BIAS: tl.constexpr, HAS_Z: tl.constexpr, KEEP: tl.constexpr, SPLIT: tl.constexpr,
    LANES: tl.constexpr, PER_LANE: tl.constexpr,
):  # fmt: skip
    """A is (N, channels); states, (batch, 1 + parts, N, channels), begins with the initial one, and
    gets that after every part of ``every`` steps; steps gets delta as it is used, with KEEP. With
    SPLIT, ends_of and sums_of are what :func:`_ends` found of the segments, ``span`` steps each."""
    row = tl.program_id(0).to(tl.int64)
    group, part, c, inside = _channels(channels, groups, LANES, PER_LANE)
    n = tl.arange(0, STATES)
    exists = n < N
    at, tile = _states(channels, c, inside, n, exists, zero)
    rate = _read(A, at, tile) * _LOG2E
    d_skip = _read(D, c, inside) if HAS_D else tl.zeros([PER_LANE, LANES], tl.float32)
    d_bias = _read(bias, c, inside) if HAS_BIAS else tl.zeros([PER_LANE, LANES], tl.float32)
    first, last = _segment(length, span)
    states += row * (tl.cdiv(length, every) + 1) * N * channels
    u += row * u_batch + first * u_time
    delta += row * d_batch + first * d_time
    B += row * b_batch + group * b_group + first * b_time
    C += row * c_batch + group * c_group + first * c_time
    y += (row * length + first) * channels
    if KEEP:
        steps += (row * length + first) * channels
    if HAS_Z:
        z += row * z_batch + first * z_time
    h = _read(states, at, tile)
    if SPLIT:
        for segment in range(tl.program_id(2)):
            h = _through(row, segment, h, rate, ends_of, sums_of, c, inside, at, tile, channels, N)
    ends, states_end = tl.where(inside, last, 0), tl.where(exists, last, 0)
    # What a step reads is there when its turn comes: it was asked for one step before.
    ut, dt = _read(u, c, inside), _read(delta, c, inside)
    bt, ct = _read(B, n, exists), _read(C, n, exists)
    zt = _read(z, c, inside) if HAS_Z else ut
    for start in range(first, last, every):
        stop = tl.minimum(start + every, last)
        for t in range(start, stop):
            u += u_time
            delta += d_time
            B += b_time
            C += c_time
            if HAS_Z:
                z += z_time
            more, more_states = t + 1 < ends, t + 1 < states_end
            next_u, next_d = _read(u, c, more), _read(delta, c, more)
            next_b, next_c = _read(B, n, more_states), _read(C, n, more_states)
            next_z = _read(z, c, more) if HAS_Z else next_u
            if HAS_BIAS:
                dt += d_bias
            if SOFTPLUS:
                dt = _softplus(dt)
            if KEEP:
                tl.store(steps + c, dt, inside)
                steps += channels
            a, h = _step(rate, h, dt, ut, bt)
            yt = tl.sum(h * ct[None, :, None], 1)
            if HAS_D:
                yt += d_skip * ut
            if HAS_Z:
                yt *= zt * _sigmoid(zt)
            tl.store(y + c, yt, inside)
            y += channels
            ut, dt, bt, ct, zt = next_u, next_d, next_b, next_c, next_z
        if (stop == start + every) | (stop == length):
            tl.store(states + (start // every + 1) * N * channels + at, h, tile)


@triton.jit
def _segment(length, span):
    """The first step of a program's segment, and the one behind its last."""
    first = tl.program_id(2).to(tl.int64) * span
    return first, tl.minimum(first + span, length)


@triton.jit
def _through(row, segment, x, rate, found, sums, c, inside, at, tile, channels, N: tl.constexpr):
    """What a segment makes of x, states before it or a gradient of those after it: x decayed over
    all its steps, and what it makes of zero."""
    place = row * tl.num_programs(2) + segment
    decay = tl.exp2(_read(sums + place * channels, c, inside)[:, None, :] * rate)
    return decay * x + _read(found + place * N * channels, at, tile)


@triton.jit(do_not_specialize=["length", "zero"])
def _ends(
    u, delta, A, B, C, D, bias, z, ends_of, sums_of,
    u_batch, u_time, d_batch, d_time, b_batch, b_time, b_group, c_batch, c_time, c_group,
    z_batch, z_time,
    length, channels, groups, zero, span,
    N: tl.constexpr, STATES: tl.constexpr, SOFTPLUS: tl.constexpr, HAS_D: tl.constexpr,
    HAS_BIAS: tl.constexpr, HAS_Z: tl.constexpr,
    LANES: tl.constexpr, PER_LANE: tl.constexpr,
):  # fmt: skip
    """The states that every segment ends in when it begins with zeros, ends_of (batch, segments, N,
    channels), and its sum of delta as it is used, sums_of (batch, segments, channels)."""
    row = tl.program_id(0).to(tl.int64)
    group, part, c, inside = _channels(channels, groups, LANES, PER_LANE)
    n = tl.arange(0, STATES)
    exists = n < N
    at, tile = _states(channels, c, inside, n, exists, zero)
    rate = _read(A, at, tile) * _LOG2E
    d_bias = _read(bias, c, inside) if HAS_BIAS else tl.zeros([PER_LANE, LANES], tl.float32)
    first, last = _segment(length, span)
    u += row * u_batch + first * u_time
    delta += row * d_batch + first * d_time
    B += row * b_batch + group * b_group + first * b_time
    ends, states_end = tl.where(inside, last, 0), tl.where(exists, last, 0)
    h = tl.zeros([PER_LANE, STATES, LANES], tl.float32)
    total = tl.zeros([PER_LANE, LANES], tl.float32)
    ut, dt, bt = _read(u, c, inside), _read(delta, c, inside), _read(B, n, exists)
    for t in range(first, last):
        u += u_time
        delta += d_time
        B += b_time
        more = t + 1 < ends
        next_u, next_d = _read(u, c, more), _read(delta, c, more)
        next_b = _read(B, n, t + 1 < states_end)
        if HAS_BIAS:
            dt += d_bias
        if SOFTPLUS:
            dt = _softplus(dt)
        total += dt
        a, h = _step(rate, h, dt, ut, bt)
        ut, dt, bt = next_u, next_d, next_b
    place = row * tl.num_programs(2) + tl.program_id(2)
    tl.store(ends_of + place * N * channels + at, h, tile)
    tl.store(sums_of + place * channels + c, total, inside)


@triton.jit(do_not_specialize=["length", "zero"])
def _pulls(
    u, steps, A, B, C, D, bias, z, gy, pulls_of, sums_of,
    u_batch, u_time, d_batch, d_time, b_batch, b_time, b_group, c_batch, c_time, c_group,
    z_batch, z_time,
    length, channels, groups, zero, span,
    N: tl.constexpr, STATES: tl.constexpr, HAS_D: tl.constexpr, HAS_BIAS: tl.constexpr,
    HAS_Z: tl.constexpr, LANES: tl.constexpr, PER_LANE: tl.constexpr,
):  # fmt: skip
    """:func:`_ends` backwards: the gradients that every segment hands to the states before it when
    it is handed zeros, pulls_of (batch, segments, N, channels), and sums_of as there."""
    row = tl.program_id(0).to(tl.int64)
    group, part, c, inside = _channels(channels, groups, LANES, PER_LANE)
    n = tl.arange(0, STATES)
    exists = n < N
    at, tile = _states(channels, c, inside, n, exists, zero)
    rate = _read(A, at, tile) * _LOG2E
    first, last = _segment(length, span)
    end = last - 1
    steps += row * d_batch + end * d_time
    C += row * c_batch + group * c_group + end * c_time
    gy += (row * length + end) * channels
    if HAS_Z:
        z += row * z_batch + end * z_time
    g = tl.zeros([PER_LANE, STATES, LANES], tl.float32)
    total = tl.zeros([PER_LANE, LANES], tl.float32)
    dt, gyt, ct = _read(steps, c, inside), _read(gy, c, inside), _read(C, n, exists)
    zt = _read(z, c, inside) if HAS_Z else gyt
    left, states_left = tl.where(inside, last - first, 0), tl.where(exists, last - first, 0)
    for t in range(last - first):
        steps -= d_time
        gy -= channels
        C -= c_time
        if HAS_Z:
            z -= z_time
        more = t + 1 < left
        next_d, next_gy = _read(steps, c, more), _read(gy, c, more)
        next_c = _read(C, n, t + 1 < states_left)
        next_z = _read(z, c, more) if HAS_Z else next_gy
        if HAS_Z:
            gyt *= zt * _sigmoid(zt)
        total += dt
        a, g = tl.exp2(dt[:, None, :] * rate), g + gyt[:, None, :] * ct[None, :, None]
        g *= a
        dt, gyt, ct, zt = next_d, next_gy, next_c, next_z
    place = row * tl.num_programs(2) + tl.program_id(2)
    tl.store(pulls_of + place * N * channels + at, g, tile)
    tl.store(sums_of + place * channels + c, total, inside)


@triton.jit
def _inputs(u, steps, B, t, u_time, d_time, b_time, c, n, ends, states_end):
    """What step t reads; behind the last one zeros, which leave the states as they are."""
    far, here = tl.cast(t, tl.int64), t < ends
    ut, dt = _read(u + far * u_time, c, here), _read(steps + far * d_time, c, here)
    return ut, dt, _read(B + far * b_time, n, t < states_end)


@triton.jit
def _reverse(
    t, a, h, before, dt, ut, bt, rate, g, sum_A, sum_D, sum_bias,
    C, d_skip, z, gy, gu, gdelta, gB, gC, gz,
    c, n, ends, states_end, c_time, z_time, channels, width,
    SOFTPLUS: tl.constexpr, HAS_D: tl.constexpr, HAS_BIAS: tl.constexpr, HAS_Z: tl.constexpr,
):  # fmt: skip
    """Step t backwards: from g, the gradient of the states h after it but for what comes through
    y_t, to that of the states before; and the sums over time, with t in them."""
    far = tl.cast(t, tl.int64)
    here, of_state = t < ends, t < states_end
    at, at_B = far * channels + c, far * width + n
    gyt = _read(gy, at, here)
    ct = _read(C + far * c_time, n, of_state)
    if HAS_Z:
        zt = _read(z + far * z_time, c, here)
        gate = _sigmoid(zt)
        yt = tl.sum(h * ct[None, :, None], 1)
        if HAS_D:
            yt += d_skip * ut
        # d silu(z) / d z = sigmoid(z) (1 + z (1 - sigmoid(z)))
        tl.store(gz + at, gyt * yt * gate * (1.0 + zt * (1.0 - gate)), here)
        gyt *= zt * gate
    g += gyt[:, None, :] * ct[None, :, None]
    through_w = tl.sum(g * bt[None, :, None], 1)  # d loss / d (delta_t u_t)
    through_a = g * (a * before)  # d loss / d (delta_t A)
    sum_A += through_a * dt[:, None, :]
    gut = through_w * dt
    gdt = through_w * ut + tl.sum(through_a * rate, 1) * _LN2
    if HAS_D:
        gut += d_skip * gyt
        sum_D += gyt * ut
    if SOFTPLUS:
        gdt *= _softplus_slope(dt)
    if HAS_BIAS:
        sum_bias += gdt
    tl.store(gu + at, gut, here)
    tl.store(gdelta + at, gdt, here)
    tl.store(gB + at_B, tl.sum(tl.sum(g * (dt * ut)[:, None, :], 0), 1), of_state)
    tl.store(gC + at_B, tl.sum(tl.sum(h * gyt[:, None, :], 0), 1), of_state)
    return a * g, sum_A, sum_D, sum_bias


@triton.jit(do_not_specialize=["length", "zero"])
def _backward(
    u, steps, A, B, C, D, bias, z, states, gy,
    gu, gdelta, gA, gB, gC, gD, gbias, gz, gfinal, ginitial, pulls_of, sums_of,
    u_batch, u_time, d_batch, d_time, b_batch, b_time, b_group, c_batch, c_time, c_group,
    z_batch, z_time,
    length, channels, groups, zero, span,
    N: tl.constexpr, STATES: tl.constexpr, SOFTPLUS: tl.constexpr, HAS_D: tl.constexpr,
    HAS_BIAS: tl.constexpr, HAS_Z: tl.constexpr, CHUNK: tl.constexpr, SPLIT: tl.constexpr,
    LANES: tl.constexpr, PER_LANE: tl.constexpr,
):  # fmt: skip
    """steps is delta as it was used. gfinal and ginitial, (batch, N, channels), are the gradients
    of the states; gA, (batch, segments, N, channels), gD and gbias, (batch, segments, channels),
    are for one segment of a batch row each; gB and gC, (parts, batch, length, groups, N), for the
    channels of one program each; pulls_of and sums_of are of :func:`_pulls`, with SPLIT."""
    row = tl.program_id(0).to(tl.int64)
    group, part, c, inside = _channels(channels, groups, LANES, PER_LANE)
    n = tl.arange(0, STATES)
    exists = n < N
    at, tile = _states(channels, c, inside, n, exists, zero)
    rate = _read(A, at, tile) * _LOG2E
    d_skip = _read(D, c, inside) if HAS_D else tl.zeros([PER_LANE, LANES], tl.float32)
    states += row * (tl.cdiv(length, CHUNK) + 1) * N * channels
    u += row * u_batch
    steps += row * d_batch
    B += row * b_batch + group * b_group
    C += row * c_batch + group * c_group
    if HAS_Z:
        z += row * z_batch
        gz += row * length * channels
    gB += ((part * tl.num_programs(0) + row) * length * groups + group) * N
    gC += ((part * tl.num_programs(0) + row) * length * groups + group) * N
    gy += row * length * channels
    gu += row * length * channels
    gdelta += row * length * channels
    first, last = _segment(length, span)
    segments = tl.num_programs(2)
    g = _read(gfinal + row * N * channels, at, tile)
    if SPLIT:
        for k in range(segments - 1 - tl.program_id(2)):
            segment = segments - 1 - k
            g = _through(row, segment, g, rate, pulls_of, sums_of, c, inside, at, tile, channels, N)
    sum_A = tl.zeros([PER_LANE, STATES, LANES], tl.float32)
    sum_D = tl.zeros([PER_LANE, LANES], tl.float32)
    sum_bias = tl.zeros([PER_LANE, LANES], tl.float32)
    ends, states_end = tl.where(inside, length, 0), tl.where(exists, length, 0)
    width = groups * N
    fours = tl.cdiv(last - first, 4)
    for k in range(fours):
        t = first + (fours - 1 - k) * 4
        chunk = t // CHUNK
        h0 = _read(states + tl.cast(chunk, tl.int64) * N * channels, at, tile)
        for s in range(chunk * CHUNK, t):
            us, ds, bs = _inputs(u, steps, B, s, u_time, d_time, b_time, c, n, ends, states_end)
            a0, h0 = _step(rate, h0, ds, us, bs)
        # Written out step by step: an array of tiles would not be in registers.
        u0, d0, b0 = _inputs(u, steps, B, t, u_time, d_time, b_time, c, n, ends, states_end)
        u1, d1, b1 = _inputs(u, steps, B, t + 1, u_time, d_time, b_time, c, n, ends, states_end)
        u2, d2, b2 = _inputs(u, steps, B, t + 2, u_time, d_time, b_time, c, n, ends, states_end)
        u3, d3, b3 = _inputs(u, steps, B, t + 3, u_time, d_time, b_time, c, n, ends, states_end)
        a0, h1 = _step(rate, h0, d0, u0, b0)
        a1, h2 = _step(rate, h1, d1, u1, b1)
        a2, h3 = _step(rate, h2, d2, u2, b2)
        a3, h4 = _step(rate, h3, d3, u3, b3)
        g, sum_A, sum_D, sum_bias = _reverse(
            t + 3, a3, h4, h3, d3, u3, b3, rate, g, sum_A, sum_D, sum_bias,
            C, d_skip, z, gy, gu, gdelta, gB, gC, gz,
            c, n, ends, states_end, c_time, z_time, channels, width,
            SOFTPLUS, HAS_D, HAS_BIAS, HAS_Z,
        )  # fmt: skip
        g, sum_A, sum_D, sum_bias = _reverse(
            t + 2, a2, h3, h2, d2, u2, b2, rate, g, sum_A, sum_D, sum_bias,
            C, d_skip, z, gy, gu, gdelta, gB, gC, gz,
            c, n, ends, states_end, c_time, z_time, channels, width,
            SOFTPLUS, HAS_D, HAS_BIAS, HAS_Z,
        )  # fmt: skip
        g, sum_A, sum_D, sum_bias = _reverse(
            t + 1, a1, h2, h1, d1, u1, b1, rate, g, sum_A, sum_D, sum_bias,
            C, d_skip, z, gy, gu, gdelta, gB, gC, gz,
            c, n, ends, states_end, c_time, z_time, channels, width,
            SOFTPLUS, HAS_D, HAS_BIAS, HAS_Z,
        )  # fmt: skip
        g, sum_A, sum_D, sum_bias = _reverse(
            t, a0, h1, h0, d0, u0, b0, rate, g, sum_A, sum_D, sum_bias,
            C, d_skip, z, gy, gu, gdelta, gB, gC, gz,
            c, n, ends, states_end, c_time, z_time, channels, width,
            SOFTPLUS, HAS_D, HAS_BIAS, HAS_Z,
        )  # fmt: skip
    if tl.program_id(2) == 0:
        tl.store(ginitial + row * N * channels + at, g, tile)
    place = row * segments + tl.program_id(2)
    tl.store(gA + place * N * channels + at, sum_A, tile)
    if HAS_D:
        tl.store(gD + place * channels + c, sum_D, inside)
    if HAS_BIAS:
        tl.store(gbias + place * channels + c, sum_bias, inside)


class _Plan(NamedTuple):
    """How a scan is shared out among programs: lanes with channels, channels of each, programs per
    group, segments of time, and the steps of a segment."""

    lanes: int
    per_lane: int
    parts: int
    segments: int
    span: int

    @classmethod
    def of(cls, u: Tensor, B: Tensor) -> "_Plan":
        batch, length, channels = u.shape
        groups, d_state = B.shape[2:]
        per_group = channels // groups
        lanes = min(LANES, _power_of_two(per_group))
        most = PER_LANE if d_state <= MANY else 1
        per_lane = min(most, _power_of_two(-(-per_group // lanes)))
        parts = -(-per_group // (lanes * per_lane))
        wanted = WARPS * _processors(u.device) // (batch * groups * parts)
        segments = max(1, min(wanted, length // SEGMENT))
        span = -(-length // (segments * CHUNK)) * CHUNK
        return cls(lanes, per_lane, parts, -(-length // span), span)


def _power_of_two(number: int) -> int:
    """The next one; triton.next_power_of_2 takes ten times as long outside of a kernel."""
    return 1 << (number - 1).bit_length()


@lru_cache
def _processors(device: torch.device) -> int:
    """The multiprocessors of a GPU; 1 of what runs the interpreter."""
    if device.type != "cuda":
        return 1
    return torch.cuda.get_device_properties(device).multi_processor_count


class _Inputs(NamedTuple):
    """What all kernels begin with, as they address it; A is transposed."""

    u: Tensor
    delta: Tensor
    A: Tensor
    B: Tensor
    C: Tensor
    D: Tensor | None
    bias: Tensor | None
    z: Tensor | None

    @classmethod
    def of(
        cls, u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor | None,
        bias: Tensor | None, z: Tensor | None,
    ) -> "_Inputs":  # fmt: skip
        D, bias, z = (dense(x) for x in (D, bias, z))
        return cls(dense(u), dense(delta), A.T.contiguous(), dense(B), dense(C), D, bias, z)

    def rows(self, some: slice) -> "_Inputs":
        z = None if self.z is None else self.z[some]
        return self._replace(
            u=self.u[some], delta=self.delta[some], B=self.B[some], C=self.C[some], z=z
        )


def _launch(
    kernel: Any, plan: _Plan, x: _Inputs, *others: Tensor | None, sizes: Sequence[int] = (),
    **constants: Any,
) -> None:  # fmt: skip
    """Run a kernel over all rows, channels and segments; ``others`` follow the inputs in its
    arguments, ``sizes`` the sizes, ``constants`` are constexprs."""
    batch, length, channels = x.u.shape
    groups, d_state = x.B.shape[2:]
    of_z = (0, 0) if x.z is None else x.z.stride()[:2]
    with torch.cuda.device_of(x.u):  # Triton's own choice is the current device
        kernel[batch, groups * plan.parts, plan.segments](
            *x, *others,
            *x.u.stride()[:2], *x.delta.stride()[:2], *x.B.stride()[:3], *x.C.stride()[:3], *of_z,
            length, channels, groups, 0, plan.span, *sizes,
            N=d_state, STATES=_power_of_two(d_state), HAS_D=x.D is not None,
            HAS_BIAS=x.bias is not None, HAS_Z=x.z is not None, LANES=plan.lanes,
            PER_LANE=plan.per_lane, num_warps=1, **constants,
        )  # fmt: skip


def _found(plan: _Plan, states: Tensor, batch: int) -> tuple[Tensor, ...]:
    """Room for what a pass before a kernel finds of the segments of ``batch`` rows: two tensors,
    none where time is not cut."""
    if plan.segments == 1:
        return ()
    d_state, channels = states.shape[2:]
    return (
        states.new_empty((batch, plan.segments, d_state, channels)),
        states.new_empty((batch, plan.segments, channels)),
    )


@torch.library.custom_op("recbole_hydra::selective_scan", mutates_args=())
def _scan(
    u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor,
    D: Tensor | None, bias: Tensor | None, z: Tensor | None,
    initial_state: Tensor | None, softplus: bool, keep: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """Returns y, the final state, the states at chunk ends, the initial one first, and delta as it
    was used, or nothing where it is delta itself; without ``keep``, for a backward pass, the third
    holds but the first and the last, and the fourth nothing."""
    y, final_state, states, steps = _results(u, A, bias, softplus, keep)
    states[:, 0] = 0.0 if initial_state is None else initial_state.transpose(1, 2)
    plan, x = _Plan.of(u, B), _Inputs.of(u, delta, A, B, C, D, bias, z)
    found = _found(plan, states, len(u))
    if found:
        _launch(_ends, plan, x, *found, SOFTPLUS=softplus)
    _launch(
        _forward, plan, x, y, steps, states, *(found or (None, None)),
        sizes=[CHUNK if keep else u.shape[1]], SOFTPLUS=softplus, KEEP=steps.numel() > 0,
        SPLIT=bool(found),
    )  # fmt: skip
    final_state.copy_(states[:, -1].transpose(1, 2))
    return y, final_state, states, steps


def _results(
    u: Tensor, A: Tensor, bias: Tensor | None, softplus: bool, keep: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    batch, length, channels = u.shape
    d_state = A.shape[1]
    y = torch.empty(u.shape, dtype=u.dtype, device=u.device)
    state = u.new_empty((batch, channels, d_state), dtype=torch.float32)
    chunks = -(-length // CHUNK) if keep else 1
    # With channels last, neighbouring lanes have neighbouring addresses.
    states = state.new_empty((batch, 1 + chunks, d_state, channels))
    steps = state.new_empty(u.shape if keep and (softplus or bias is not None) else 0)
    return y, state, states, steps


@_scan.register_fake
def _(
    u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor | None,
    bias: Tensor | None, z: Tensor | None, initial_state: Tensor | None, softplus: bool, keep: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    return _results(u, A, bias, softplus, keep)


@torch.library.custom_op("recbole_hydra::selective_scan_backward", mutates_args=())
def _scan_backward(
    gy: Tensor, gfinal: Tensor | None, u: Tensor, steps: Tensor,
    A: Tensor, B: Tensor, C: Tensor, D: Tensor | None,
    bias: Tensor | None, z: Tensor | None, states: Tensor, softplus: bool,
) -> list[Tensor]:  # fmt: skip
    """Returns the gradients of u, delta, in the dtype of ``steps``, which is delta as it was used,
    A, B, C, the initial state, D, bias and z; of the last three an empty tensor where there is
    none."""
    batch, length, channels = u.shape
    groups, d_state = B.shape[2:]
    plan, x = _Plan.of(u, B), _Inputs.of(u, steps, A, B, C, D, bias, z)
    gu, gdelta = (torch.empty(x.shape, dtype=x.dtype, device=x.device) for x in (u, steps))
    gz = None if z is None else torch.empty(z.shape, dtype=z.dtype, device=z.device)
    gA = states.new_empty((batch, plan.segments, d_state, channels))
    gB, gC = (torch.empty(x.shape, dtype=x.dtype, device=x.device) for x in (B, C))
    gD, gbias = (
        None if x is None else states.new_empty((batch, plan.segments, channels)) for x in (D, bias)
    )
    ginitial = states.new_empty((batch, d_state, channels))
    if gfinal is None:
        gfinal = torch.zeros_like(ginitial)
    else:
        gfinal = gfinal.transpose(1, 2).contiguous()

    def some_rows(x: _Inputs, *rows: Tensor | None) -> None:
        """The backward pass of some rows; ``rows`` is what there is one of per row."""
        states, gy, gu, gdelta, gA, gB, gC, gD, gbias, gz, gfinal, ginitial = rows
        assert states is not None and gA is not None and gB is not None and gC is not None
        parts = gB, gC
        if plan.parts > 1:
            parts = gA.new_empty((plan.parts, *gB.shape)), gA.new_empty((plan.parts, *gC.shape))
        found = _found(plan, states, len(states))
        if found:
            _launch(_pulls, plan, x, gy, *found)
        _launch(
            _backward, plan, x, states, gy, gu, gdelta, gA, *parts, gD, gbias, gz, gfinal,
            ginitial, *(found or (None, None)), SOFTPLUS=softplus, CHUNK=CHUNK, SPLIT=bool(found),
        )  # fmt: skip
        # In an order that is fixed.
        if plan.parts > 1 and gB.dtype == gA.dtype:
            torch.sum(parts[0], 0, out=gB)
            torch.sum(parts[1], 0, out=gC)
        elif plan.parts > 1:
            gB.copy_(parts[0].sum(0))
            gC.copy_(parts[1].sum(0))

    per_row = states, gy.contiguous(), gu, gdelta, gA, gB, gC, gD, gbias, gz, gfinal, ginitial
    # What several programs of a group find of gB and gC is summed up after some rows.
    at_once = batch
    if plan.parts > 1:
        at_once = max(1, LARGEST // (plan.parts * length * groups * d_state))
    if at_once >= batch:
        some_rows(x, *per_row)
    else:
        for first in range(0, batch, at_once):
            some = slice(first, first + at_once)
            some_rows(x.rows(some), *(None if y is None else y[some] for y in per_row))
    none = states.new_empty(0)
    return [
        gu,
        gdelta,
        gA.sum((0, 1)).T.contiguous(),
        gB,
        gC,
        ginitial.transpose(1, 2).contiguous(),
        none if gD is None else gD.sum((0, 1)),
        none.clone() if gbias is None else gbias.sum((0, 1)),
        none.clone() if gz is None else gz,
    ]


@_scan_backward.register_fake
def _(
    gy: Tensor, gfinal: Tensor | None, u: Tensor, steps: Tensor, A: Tensor, B: Tensor, C: Tensor,
    D: Tensor | None, bias: Tensor | None, z: Tensor | None, states: Tensor, softplus: bool,
) -> list[Tensor]:  # fmt: skip
    like = [u, steps, A, B, C, states[:, 0].transpose(1, 2), D, bias, z]
    none = states.new_empty(0)
    return [
        torch.empty(x.shape, dtype=x.dtype, device=u.device) if x is not None else none.clone()
        for x in like
    ]


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    u, delta, *others, initial_state, ctx.softplus, _ = inputs
    _, _, states, steps = output
    ctx.has_initial_state = initial_state is not None
    ctx.dtype = delta.dtype
    ctx.save_for_backward(u, steps if steps.numel() else delta, *others, states)
    ctx.set_materialize_grads(False)  # those of the states, and mostly of the final state, are None


def _differentiate(
    ctx: Any, gy: Tensor | None, gfinal: Tensor | None, *_: Any
) -> tuple[Tensor | None, ...]:
    u, steps, A, B, C, D, bias, z, states = ctx.saved_tensors
    gy = torch.zeros_like(u) if gy is None else gy
    gu, gdelta, *found, gstate, gD, gbias, gz = _scan_backward(
        gy, gfinal, u, steps, A, B, C, D, bias, z, states, ctx.softplus
    )
    optional = [g if x is not None else None for g, x in ((gD, D), (gbias, bias), (gz, z))]
    state = gstate if ctx.has_initial_state else None
    return gu, gdelta.to(ctx.dtype), *found, *optional, state, None, None


_scan.register_autograd(_differentiate, setup_context=_setup_context)


def selective_scan_triton(
    u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor | None = None,
    initial_state: Tensor | None = None, z: Tensor | None = None,
    delta_bias: Tensor | None = None, delta_softplus: bool = False,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """The scan of :func:`.naive.selective_scan_naive`, with what surrounds it in a Mamba block.

    ::

        delta = softplus(delta + delta_bias)        with delta_softplus
        y = y * silu(z)                             with z

    u, delta, B, C and z may be float32, bfloat16 or float16, of any strides; states, and what the
    kernel computes, are float32. Differentiable once in every input and through both states.

    Returns:
        ``(y, final_state)``: y in the dtype of u, the state in float32.
    """
    A = A.float()
    D, delta_bias, initial_state = (
        x if x is None else x.float() for x in (D, delta_bias, initial_state)
    )
    inputs = (u, delta, A, B, C, D, delta_bias, z, initial_state)
    keep = torch.is_grad_enabled() and any(x is not None and x.requires_grad for x in inputs)
    y, final_state, _, _ = _scan(*inputs, bool(delta_softplus), keep)
    return y, final_state
