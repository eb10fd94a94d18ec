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
"""

from collections.abc import Sequence
from typing import Any

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
    u, delta, A, B, C, D, bias, z, y, steps, states,
    u_batch, u_time, d_batch, d_time, b_batch, b_time, b_group, c_batch, c_time, c_group,
    z_batch, z_time,
    length, channels, groups, zero, every,
    N: tl.constexpr, STATES: tl.constexpr, SOFTPLUS: tl.constexpr, HAS_D: tl.constexpr,
    HAS_BIAS: tl.constexpr, HAS_Z: tl.constexpr, KEEP: tl.constexpr,
    LANES: tl.constexpr, PER_LANE: tl.constexpr,
):  # fmt: skip
    """A is (N, channels); states, (batch, 1 + parts, N, channels), begins with the initial one, and
    gets that after every part of ``every`` steps; steps gets delta as it is used, with KEEP."""
    row = tl.program_id(0).to(tl.int64)
    group, part, c, inside = _channels(channels, groups, LANES, PER_LANE)
    n = tl.arange(0, STATES)
    exists = n < N
    at, tile = _states(channels, c, inside, n, exists, zero)
    rate = _read(A, at, tile) * _LOG2E
    d_skip = _read(D, c, inside) if HAS_D else tl.zeros([PER_LANE, LANES], tl.float32)
    d_bias = _read(bias, c, inside) if HAS_BIAS else tl.zeros([PER_LANE, LANES], tl.float32)
    states += row * (tl.cdiv(length, every) + 1) * N * channels
    u += row * u_batch
    delta += row * d_batch
    B += row * b_batch + group * b_group
    C += row * c_batch + group * c_group
    y += row * length * channels
    if KEEP:
        steps += row * length * channels
    if HAS_Z:
        z += row * z_batch
    h = _read(states, at, tile)
    ends, states_end = tl.where(inside, length, 0), tl.where(exists, length, 0)
    # What a step reads is there when its turn comes: it was asked for one step before.
    ut, dt = _read(u, c, inside), _read(delta, c, inside)
    bt, ct = _read(B, n, exists), _read(C, n, exists)
    zt = _read(z, c, inside) if HAS_Z else ut
    for start in range(0, length, every):
        for t in range(start, tl.minimum(start + every, length)):
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
        states += N * channels
        tl.store(states + at, h, tile)


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
    gu, gdelta, gA, gB, gC, gD, gbias, gz, gh,
    u_batch, u_time, d_batch, d_time, b_batch, b_time, b_group, c_batch, c_time, c_group,
    z_batch, z_time,
    length, channels, groups, zero,
    N: tl.constexpr, STATES: tl.constexpr, SOFTPLUS: tl.constexpr, HAS_D: tl.constexpr,
    HAS_BIAS: tl.constexpr, HAS_Z: tl.constexpr, CHUNK: tl.constexpr,
    LANES: tl.constexpr, PER_LANE: tl.constexpr,
):  # fmt: skip
    """steps is delta as it was used. gh, (batch, N, channels), is the gradient of the final state,
    and becomes that of the initial one; gA, of the same shape, and gD and gbias, (batch, channels),
    are for one batch row each; gB and gC, (parts, batch, length, groups, N), for the channels of
    one program each."""
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
    gh += row * N * channels
    g = _read(gh, at, tile)
    sum_A = tl.zeros([PER_LANE, STATES, LANES], tl.float32)
    sum_D = tl.zeros([PER_LANE, LANES], tl.float32)
    sum_bias = tl.zeros([PER_LANE, LANES], tl.float32)
    ends, states_end = tl.where(inside, length, 0), tl.where(exists, length, 0)
    width = groups * N
    fours = tl.cdiv(length, 4)
    for k in range(fours):
        t = (fours - 1 - k) * 4
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
    tl.store(gh + at, g, tile)
    tl.store(gA + row * N * channels + at, sum_A, tile)
    if HAS_D:
        tl.store(gD + row * channels + c, sum_D, inside)
    if HAS_BIAS:
        tl.store(gbias + row * channels + c, sum_bias, inside)


def _launch(
    kernel: Any, u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor | None,
    bias: Tensor | None, z: Tensor | None, *others: Tensor | None, sizes: Sequence[int] = (),
    **constants: Any,
) -> None:  # fmt: skip
    """Run a kernel over all rows and channels; ``others`` follow z in its arguments, ``sizes`` the
    sizes, ``constants`` are constexprs."""
    batch, length, channels = u.shape
    groups, d_state = B.shape[2:]
    lanes, per_lane, parts = _sizes(channels, groups, d_state)
    u, delta, B, C = (dense(x) for x in (u, delta, B, C))
    D, bias, z = (dense(x) for x in (D, bias, z))
    of_z = (0, 0) if z is None else z.stride()[:2]
    with torch.cuda.device_of(u):  # Triton's own choice is the current device
        kernel[batch, groups * parts](
            u, delta, A.T.contiguous(), B, C, D, bias, z, *others,
            *u.stride()[:2], *delta.stride()[:2], *B.stride()[:3], *C.stride()[:3], *of_z,
            length, channels, groups, 0, *sizes,
            N=d_state, STATES=triton.next_power_of_2(d_state), HAS_D=D is not None,
            HAS_BIAS=bias is not None, HAS_Z=z is not None, LANES=lanes, PER_LANE=per_lane,
            num_warps=1, **constants,
        )  # fmt: skip


def _sizes(channels: int, groups: int, d_state: int) -> tuple[int, int, int]:
    """Lanes with channels, channels of each, and programs per group."""
    per_group = channels // groups
    lanes = min(LANES, triton.next_power_of_2(per_group))
    most = PER_LANE if d_state <= MANY else 1
    per_lane = min(most, triton.next_power_of_2(triton.cdiv(per_group, lanes)))
    return lanes, per_lane, triton.cdiv(per_group, lanes * per_lane)


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
    _launch(
        _forward, u, delta, A, B, C, D, bias, z, y, steps, states,
        sizes=[CHUNK if keep else u.shape[1]], SOFTPLUS=softplus, KEEP=steps.numel() > 0,
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
    parts = _sizes(channels, groups, d_state)[2]
    gu, gdelta = (torch.empty(x.shape, dtype=x.dtype, device=x.device) for x in (u, steps))
    gz = None if z is None else torch.empty(z.shape, dtype=z.dtype, device=z.device)
    gA = states.new_empty((batch, d_state, channels))
    gB, gC = (torch.empty(x.shape, dtype=x.dtype, device=x.device) for x in (B, C))
    gD, gbias = (x if x is None else x.new_empty((batch, channels)) for x in (D, bias))
    gh = torch.zeros_like(gA)  # d loss / d state, walking backwards
    if gfinal is not None:
        gh.copy_(gfinal.transpose(1, 2))
    # What several programs of a group find of gB and gC is summed up after some rows, in an order
    # that is fixed.
    rows = batch if parts == 1 else max(1, LARGEST // (parts * length * groups * d_state))
    for first in range(0, batch, rows):
        some = slice(first, first + rows)
        u_, steps_, B_, C_, states_, gy_, gu_, gdelta_, gA_, gB_, gC_, gh_ = (
            x[some]
            for x in (u, steps, B, C, states, gy.contiguous(), gu, gdelta, gA, gB, gC, gh)
        )  # fmt: skip
        z_, gD_, gbias_, gz_ = (x if x is None else x[some] for x in (z, gD, gbias, gz))
        found = (gB_, gC_) if parts == 1 else gA.new_empty((2, parts, *B_.shape))
        _launch(
            _backward, u_, steps_, A, B_, C_, D, bias, z_, states_, gy_,
            gu_, gdelta_, gA_, *found, gD_, gbias_, gz_, gh_, SOFTPLUS=softplus, CHUNK=CHUNK,
        )  # fmt: skip
        if parts > 1:
            gB_.copy_(found[0].sum(0))
            gC_.copy_(found[1].sum(0))
    none = states.new_empty(0)
    return [
        gu,
        gdelta,
        gA.sum(0).T.contiguous(),
        gB,
        gC,
        gh.transpose(1, 2).contiguous(),
        none if gD is None else gD.sum(0),
        none.clone() if gbias is None else gbias.sum(0),
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
