"""The selective scan as a Triton kernel, for GPUs; Triton comes with torch.

A program has one batch row and some neighbouring channels of one group, and walks time in chunks. A
chunk is a tile, (steps, channels); for one state after the other, the recurrence runs through it as
an associative scan of pairs (Blelloch 1990, section 1.4)::

    (a_1, x_1) o (a_2, x_2) = (a_1 a_2, a_2 x_1 + x_2)
    a_t = exp(delta_t A),  x_t = delta_t B_t u_t

No tensor of size batch x length x channels x d_state exists: what passes from chunk to chunk, and
is stored for the backward pass, is the state at chunk ends. The backward pass walks the chunks from
the last to the first, computes the states of a chunk again, and scans the gradient

    g_t = C_t dy_t + a_{t+1} g_{t+1}

from its end to its start. All heads are in one launch: they are the groups of the channels.
"""

import torch
import triton
import triton.language as tl

from recbole_hydra.ops.triton_support import dense

#: Steps of a chunk, and channels of a program, at most. Compiled for sm_90 with four warps, the
#: forward pass then takes 95 registers a thread and the backward pass 190, and none are spilled;
#: with twice the steps the latter has all 255.
CHUNK, BLOCK = 32, 16

_LOG2E = tl.constexpr(1.4426950408889634)


@triton.jit
def _combine(a_1, x_1, a_2, x_2):
    return a_1 * a_2, a_2 * x_1 + x_2


@triton.jit
def _softplus(x):
    """log(1 + e^x), as torch's, which is linear from 20 on; a series where 1 + e^x loses digits."""
    e = tl.exp(tl.minimum(x, 20.0, propagate_nan=tl.PropagateNan.ALL))
    s = tl.minimum(e, 0.02)
    series = s * (1.0 - s * (1.0 / 2 - s * (1.0 / 3 - s * (1.0 / 4 - s / 5))))
    return tl.where(x > 20.0, x, tl.where(e < 0.02, series, tl.log(1.0 + e)))


@triton.jit
def _channels(channels, groups, BLOCK: tl.constexpr):
    """The group, the part of it and the channels of a program, and which of its lanes have one."""
    per_group = channels // groups
    parts = tl.cdiv(per_group, BLOCK)
    group, part = tl.program_id(1) // parts, tl.program_id(1) % parts
    offset = part * BLOCK + tl.arange(0, BLOCK)
    return group, part, group * per_group + offset, offset < per_group


@triton.jit
def _at(x, row, batch_stride, t, time_stride, c):
    """Where the steps t, of 64 bits, of the channels c of a batch row are."""
    return x + row * batch_stride + t[:, None] * time_stride + c[None, :]


@triton.jit
def _forward(
    u, delta, A, B, C, D, bias, z, y, states,
    u_batch, u_time, d_batch, d_time, b_batch, b_time, b_group, c_batch, c_time, c_group,
    z_batch, z_time,
    length, channels, groups,
    N: tl.constexpr, SOFTPLUS: tl.constexpr, HAS_D: tl.constexpr, HAS_BIAS: tl.constexpr,
    HAS_Z: tl.constexpr, CHUNK: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    group, _, c, inside = _channels(channels, groups, BLOCK)
    step = tl.arange(0, CHUNK)
    chunks = tl.cdiv(length, CHUNK)
    d_skip = tl.load(D + c, inside, 0.0) if HAS_D else tl.zeros([BLOCK], tl.float32)
    d_bias = tl.load(bias + c, inside, 0.0) if HAS_BIAS else tl.zeros([BLOCK], tl.float32)
    for chunk in range(chunks):
        t = tl.cast(chunk, tl.int64) * CHUNK + step
        within = t < length
        mask = within[:, None] & inside[None, :]
        ut = tl.load(_at(u, row, u_batch, t, u_time, c), mask, 0.0)
        dt = tl.load(_at(delta, row, d_batch, t, d_time, c), mask, 0.0)
        ut, dt = ut.to(tl.float32), dt.to(tl.float32) + d_bias[None, :]
        if SOFTPLUS:
            dt = _softplus(dt)
        dt = tl.where(mask, dt, 0.0)  # a step that does not exist leaves the state as it is
        w = dt * ut
        yt = d_skip[None, :] * ut
        before = states + ((row * (chunks + 1) + chunk) * N) * channels
        B_rows = B + row * b_batch + t * b_time + group * b_group
        C_rows = C + row * c_batch + t * c_time + group * c_group
        for n in range(N):
            a = tl.exp2(dt * (tl.load(A + c * N + n, inside, 0.0) * _LOG2E)[None, :])
            bt = tl.load(B_rows + n, within, 0.0)
            ct = tl.load(C_rows + n, within, 0.0)
            h = tl.load(before + n * channels + c, inside, 0.0)
            x = w * bt.to(tl.float32)[:, None]
            a, x = tl.associative_scan((a, x), 0, _combine)
            x += a * h[None, :]
            yt += x * ct.to(tl.float32)[:, None]
            h = tl.sum(tl.where(step[:, None] == CHUNK - 1, x, 0.0), 0)
            tl.store(before + (N + n) * channels + c, h, inside)
        tl.debug_barrier()  # other threads of the program may read these states next
        if HAS_Z:
            zt = tl.load(_at(z, row, z_batch, t, z_time, c), mask, 0.0)
            zt = zt.to(tl.float32)
            yt *= zt * tl.sigmoid(zt)
        tl.store(_at(y, row, length * channels, t, channels, c), yt, mask)


@triton.jit
def _backward(
    u, delta, A, B, C, D, bias, z, states, gy,
    gu, gdelta, gA, gB, gC, gD, gbias, gz, gh,
    u_batch, u_time, d_batch, d_time, b_batch, b_time, b_group, c_batch, c_time, c_group,
    z_batch, z_time,
    length, channels, groups,
    N: tl.constexpr, SOFTPLUS: tl.constexpr, HAS_D: tl.constexpr, HAS_BIAS: tl.constexpr,
    HAS_Z: tl.constexpr, CHUNK: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """gA and gh, (2, batch, N, channels), are what the chunks so far add up to and hand on: a chunk
    reads one half and writes the other, since no thread waits for another between the two. The
    first half starts as zeros, and as the gradient of the final state."""
    row = tl.program_id(0).to(tl.int64)
    group, part, c, inside = _channels(channels, groups, BLOCK)
    step = tl.arange(0, CHUNK)
    chunks = tl.cdiv(length, CHUNK)
    d_skip = tl.load(D + c, inside, 0.0) if HAS_D else tl.zeros([BLOCK], tl.float32)
    d_bias = tl.load(bias + c, inside, 0.0) if HAS_BIAS else tl.zeros([BLOCK], tl.float32)
    sum_D, sum_bias = tl.zeros([BLOCK], tl.float32), tl.zeros([BLOCK], tl.float32)
    state = row * N * channels + c
    for k in range(chunks):
        chunk = chunks - 1 - k
        half = tl.num_programs(0) * N * tl.cast(channels, tl.int64)
        old, new = state + k % 2 * half, state + (k + 1) % 2 * half
        t = tl.cast(chunk, tl.int64) * CHUNK + step
        within = t < length
        mask = within[:, None] & inside[None, :]
        # Within the chunk, a_{t+1} is there; what comes from behind it arrives complete.
        followed = ((t + 1 < length) & (step + 1 < CHUNK))[:, None] & inside[None, :]
        ut = tl.load(_at(u, row, u_batch, t, u_time, c), mask, 0.0)
        ut = ut.to(tl.float32)
        at = _at(delta, row, d_batch, t, d_time, c)
        raw = tl.load(at, mask, 0.0).to(tl.float32) + d_bias[None, :]
        next_dt = tl.load(at + d_time, followed, 0.0).to(tl.float32) + d_bias[None, :]
        dt = raw
        if SOFTPLUS:
            dt, next_dt = _softplus(raw), _softplus(next_dt)
        dt, next_dt = tl.where(mask, dt, 0.0), tl.where(followed, next_dt, 0.0)
        out = _at(0, row, length * channels, t, channels, c)
        gyt = tl.load(gy + out, mask, 0.0).to(tl.float32)
        if HAS_Z:
            zt = tl.load(_at(z, row, z_batch, t, z_time, c), mask, 0.0)
            zt = zt.to(tl.float32)
            gate = tl.sigmoid(zt)
            # d silu(z) / d z = sigmoid(z) (1 + z (1 - sigmoid(z))), times y below
            gzt = gyt * gate * (1.0 + zt * (1.0 - gate))
            gyt *= zt * gate
        w = dt * ut
        yt = d_skip[None, :] * ut
        through_w = tl.zeros([CHUNK, BLOCK], tl.float32)  # sum_n d loss / d (delta_t u_t)
        through_a = tl.zeros([CHUNK, BLOCK], tl.float32)  # sum_n d loss / d (delta_t A) * A
        before = states + (row * (chunks + 1) + chunk) * N * channels
        B_rows = B + row * b_batch + t * b_time + group * b_group
        C_rows = C + row * c_batch + t * c_time + group * c_group
        # (part, batch, group, state, time): the steps of a store lie side by side
        sums = ((part * tl.num_programs(0) + row) * groups + group) * N * length + t
        for n in range(N):
            A_n = tl.load(A + c * N + n, inside, 0.0)
            bt = tl.load(B_rows + n, within, 0.0)
            ct = tl.load(C_rows + n, within, 0.0)
            bt, ct = bt.to(tl.float32), ct.to(tl.float32)
            h = tl.load(before + n * channels + c, inside, 0.0)
            a = tl.exp2(dt * (A_n * _LOG2E)[None, :])
            x = w * bt[:, None]
            product, now = tl.associative_scan((a, x), 0, _combine)
            now += product * h[None, :]  # the states after each step
            g = tl.load(gh + old + n * channels, inside, 0.0)
            next_a = tl.exp2(next_dt * (A_n * _LOG2E)[None, :])
            product, grad = tl.associative_scan((next_a, gyt * ct[:, None]), 0, _combine, True)
            grad += product * g[None, :]
            g = tl.sum(tl.where(step[:, None] == 0, a * grad, 0.0), 0)
            tl.store(gh + new + n * channels, g, inside)
            through_w += grad * bt[:, None]
            gx = grad * (now - x)  # a_t h_{t-1} = h_t - x_t: d loss / d (delta_t A)
            through_a += gx * A_n[None, :]
            sum_A = tl.load(gA + old + n * channels, inside, 0.0) + tl.sum(gx * dt, 0)
            tl.store(gA + new + n * channels, sum_A, inside)
            yt += now * ct[:, None]
            tl.store(gB + sums + n * length, tl.sum(grad * w, 1), within)
            tl.store(gC + sums + n * length, tl.sum(gyt * now, 1), within)
        tl.debug_barrier()  # other threads of the program may read gh and gA next
        tl.store(gu + out, through_w * dt + d_skip[None, :] * gyt, mask)
        gdt = through_w * ut + through_a
        if SOFTPLUS:
            gdt = tl.where(raw > 20.0, gdt, gdt * tl.sigmoid(raw))
        tl.store(gdelta + out, gdt, mask)
        if HAS_Z:
            tl.store(gz + out, gzt * yt, mask)
        if HAS_D:
            sum_D += tl.sum(gyt * ut, 0)
        if HAS_BIAS:
            sum_bias += tl.sum(tl.where(mask, gdt, 0.0), 0)
    if HAS_D:
        tl.store(gD + row * channels + c, sum_D, inside)
    if HAS_BIAS:
        tl.store(gbias + row * channels + c, sum_bias, inside)


def _launch(kernel, u, delta, A, B, C, D, bias, z, *others, softplus):
    """Run a kernel over all rows and channels; ``others`` follow z in its arguments."""
    batch, length, channels = u.shape
    groups = B.shape[2]
    block, parts = _sizes(channels, groups)
    u, delta, B, C, D, bias, z = map(dense, (u, delta, B, C, D, bias, z))
    of_z = (0, 0) if z is None else z.stride()[:2]
    with torch.cuda.device_of(u):  # Triton's own choice is the current device
        kernel[batch, groups * parts](
            u, delta, A.contiguous(), B, C, D, bias, z, *others,
            *u.stride()[:2], *delta.stride()[:2], *B.stride()[:3], *C.stride()[:3], *of_z,
            length, channels, groups, N=A.shape[1], SOFTPLUS=softplus, HAS_D=D is not None,
            HAS_BIAS=bias is not None, HAS_Z=z is not None, CHUNK=_chunk(length), BLOCK=block,
        )  # fmt: skip


def _sizes(channels, groups) -> tuple[int, int]:
    """Channels of a program, and programs per group."""
    block = min(BLOCK, triton.next_power_of_2(channels // groups))
    return block, triton.cdiv(channels // groups, block)


def _chunk(length) -> int:
    """Steps of a chunk: a tile of short sequences has few rows without a step."""
    return 16 if length <= 16 else CHUNK


@torch.library.custom_op("recbole_hydra::selective_scan", mutates_args=())
def _scan(
    u: torch.Tensor, delta: torch.Tensor, A: torch.Tensor, B: torch.Tensor, C: torch.Tensor,
    D: torch.Tensor | None, bias: torch.Tensor | None, z: torch.Tensor | None,
    initial_state: torch.Tensor | None, softplus: bool,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:  # fmt: skip
    """Returns y, the final state, and the states at chunk ends, the initial one first."""
    y, final_state, states = _results(u, A)
    states[:, 0] = 0.0 if initial_state is None else initial_state.transpose(1, 2)
    _launch(_forward, u, delta, A, B, C, D, bias, z, y, states, softplus=softplus)
    final_state.copy_(states[:, -1].transpose(1, 2))
    return y, final_state, states


def _results(u, A):
    batch, length, channels = u.shape
    d_state = A.shape[1]
    y = torch.empty(u.shape, dtype=u.dtype, device=u.device)
    state = u.new_empty((batch, channels, d_state), dtype=torch.float32)
    # With channels last, neighbouring threads have neighbouring addresses.
    chunks = -(-length // _chunk(length))
    return y, state, state.new_empty((batch, 1 + chunks, d_state, channels))


@_scan.register_fake
def _(u, delta, A, B, C, D, bias, z, initial_state, softplus):
    return _results(u, A)


@torch.library.custom_op("recbole_hydra::selective_scan_backward", mutates_args=())
def _scan_backward(
    gy: torch.Tensor, gfinal: torch.Tensor | None, u: torch.Tensor, delta: torch.Tensor,
    A: torch.Tensor, B: torch.Tensor, C: torch.Tensor, D: torch.Tensor | None,
    bias: torch.Tensor | None, z: torch.Tensor | None, states: torch.Tensor, softplus: bool,
) -> list[torch.Tensor]:  # fmt: skip
    """Returns the gradients of u, delta, A, B, C, the initial state, D, bias and z; of the last
    three an empty tensor where there is none."""
    batch, length, channels = u.shape
    groups, d_state = B.shape[2:]
    gu, gdelta, gz = (
        x if x is None else torch.empty(x.shape, dtype=x.dtype, device=x.device)
        for x in (u, delta, z)
    )
    parts = _sizes(channels, groups)[1]
    gB = states.new_empty((parts, batch, groups, d_state, length))
    gC = torch.empty_like(gB)
    gA = states.new_zeros((2, batch, d_state, channels))
    gh = torch.zeros_like(gA)  # d loss / d state, walking backwards
    if gfinal is not None:
        gh[0] = gfinal.transpose(1, 2)
    gD, gbias = (x if x is None else x.new_empty((batch, channels)) for x in (D, bias))
    _launch(
        _backward, u, delta, A, B, C, D, bias, z, states, gy.contiguous(),
        gu, gdelta, gA, gB, gC, gD, gbias, gz, gh, softplus=softplus,
    )  # fmt: skip
    last = (states.shape[1] - 1) % 2  # the half that the first chunk wrote
    none = states.new_empty(0)
    return [
        gu,
        gdelta,
        gA[last].sum(0).T.contiguous(),
        gB.sum(0).permute(0, 3, 1, 2).to(B.dtype, memory_format=torch.contiguous_format),
        gC.sum(0).permute(0, 3, 1, 2).to(C.dtype, memory_format=torch.contiguous_format),
        gh[last].transpose(1, 2).contiguous(),
        none if gD is None else gD.sum(0),
        none.clone() if gbias is None else gbias.sum(0),
        none.clone() if gz is None else gz,
    ]


@_scan_backward.register_fake
def _(gy, gfinal, u, delta, A, B, C, D, bias, z, states, softplus):
    like = [u, delta, A, B, C, states[:, 0].transpose(1, 2), D, bias, z]
    none = states.new_empty(0)
    return [
        torch.empty(x.shape, dtype=x.dtype, device=u.device) if x is not None else none.clone()
        for x in like
    ]


def _setup_context(ctx, inputs, output):
    *tensors, initial_state, ctx.softplus = inputs
    ctx.has_initial_state = initial_state is not None
    ctx.save_for_backward(*tensors, output[2])
    ctx.set_materialize_grads(False)  # those of the states, and mostly of the final state, are None


def _differentiate(ctx, gy, gfinal, _):
    u, delta, A, B, C, D, bias, z, states = ctx.saved_tensors
    gy = torch.zeros_like(u) if gy is None else gy
    *found, gstate, gD, gbias, gz = _scan_backward(
        gy, gfinal, u, delta, A, B, C, D, bias, z, states, ctx.softplus
    )
    optional = [g if x is not None else None for g, x in ((gD, D), (gbias, bias), (gz, z))]
    return *found, *optional, gstate if ctx.has_initial_state else None, None


_scan.register_autograd(_differentiate, setup_context=_setup_context)


def selective_scan_triton(
    u, delta, A, B, C, D=None, initial_state=None, z=None, delta_bias=None, delta_softplus=False
):
    """The scan of :func:`.naive.selective_scan_naive`, with what surrounds it in a Mamba block.

    ::

        delta = softplus(delta + delta_bias)        with delta_softplus
        y = y * silu(z)                             with z

    u, delta, B, C and z may be float32, bfloat16 or float16, of any strides; states, and what the
    kernel computes, are float32. Differentiable once in every input and through both states.

    Returns:
        ``(y, final_state)``: y in the dtype of u, the state in float32.
    """
    A, D, delta_bias, initial_state = (
        x if x is None else x.float() for x in (A, D, delta_bias, initial_state)
    )
    inputs = (u, delta, A, B, C, D, delta_bias, z, initial_state)
    y, final_state, _ = _scan(*inputs, bool(delta_softplus))
    return y, final_state
