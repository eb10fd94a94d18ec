import logging
import math
import sys
import types
from functools import partial

import numpy as np
import pytest
import torch
from triton_interpreter import DEVICE, TRITON, needs_triton

from recbole_hydra.errors import BackendError
from recbole_hydra.ops import selective_scan
from recbole_hydra.ops import selective_scan as scan_function
from recbole_hydra.ops.selective_scan import contest, mamba_ssm_cuda, numba_cpu

scan_package = sys.modules["recbole_hydra.ops.selective_scan"]

NAMES = ["u", "delta", "A", "B", "C", "D", "initial_state"]

# batch, length, channels, d_state, groups
SHAPES = [
    (1, 1, 1, 1, 1),
    (3, 1, 8, 4, 2),
    (2, 15, 8, 16, 1),
    (2, 16, 8, 16, 1),
    (2, 17, 24, 5, 3),
    (1, 33, 64, 16, 1),  # a batch of one is split over channels
    (3, 50, 16, 8, 16),  # one channel per group
    (2, 40, 264, 3, 1),  # more channels than a task takes
    (2, 20, 12, 5, 1),  # channels and states that do not fill their vectors
    (2, 20, 40, 6, 2),
    (40, 18, 64, 16, 4),  # several groups in a task
    (1, 1000, 8, 4, 2),
]


def make_inputs(shape, delta="usual", seed=0):
    """Inputs in float64: u, delta, A, B, C, D, initial_state."""
    batch, length, channels, d_state, groups = shape
    generator = torch.Generator().manual_seed(seed)

    def normal(*size):
        return torch.randn(*size, generator=generator, dtype=torch.float64)

    scale = {"usual": 0.1, "tiny": 1e-9, "huge": 1e3}[delta]
    return [
        normal(batch, length, channels),
        torch.nn.functional.softplus(normal(batch, length, channels)) * scale,
        -torch.exp(normal(channels, d_state)),
        normal(batch, length, groups, d_state),
        normal(batch, length, groups, d_state),
        normal(channels),
        normal(batch, channels, d_state),
    ]


def forward_and_gradients(inputs, dtype, backend, with_state=True):
    """Outputs and the gradients of every input, through y and the final state."""
    device = DEVICE if backend == "triton" else "cpu"
    inputs = [x.to(device, dtype).requires_grad_() for x in inputs]
    *args, state = inputs
    y, final = selective_scan(
        *args, initial_state=state if with_state else None, return_final_state=True, backend=backend
    )
    weight_y = torch.cos(torch.arange(y.numel(), dtype=torch.float64)).view(y.shape)
    weight_h = torch.sin(torch.arange(final.numel(), dtype=torch.float64)).view(final.shape)
    loss = (y * weight_y.to(y)).sum() + (final * weight_h.to(final)).sum()
    grads = torch.autograd.grad(loss, inputs if with_state else args)
    return [x.detach().cpu() for x in (y, final, *grads)]


def on_device(backend, inputs, dtype=torch.float32):
    """The inputs where a backend runs."""
    return [x.to(DEVICE if backend == "triton" else "cpu", dtype) for x in inputs]


def assert_close(got, want, names, tolerance):
    for name, a, b in zip(names, got, want, strict=True):
        scale = max(1.0, float(b.abs().max()))
        assert float((a.double() - b).abs().max()) <= tolerance * scale, name


@pytest.mark.parametrize("shape", SHAPES)
def test_naive_is_the_recurrence(shape):
    u, delta, A, B, C, D, state = make_inputs(shape)
    y, final = selective_scan(u, delta, A, B, C, D, state, True, backend="naive")
    batch, length, channels, _, groups = shape
    want, h = np.zeros(u.shape), state.numpy().copy()
    for b in range(batch):
        for t in range(length):
            for c in range(channels):
                g = c // (channels // groups)
                step = float(delta[b, t, c])
                h[b, c] = np.exp(step * A[c].numpy()) * h[b, c]
                h[b, c] += step * B[b, t, g].numpy() * float(u[b, t, c])
                want[b, t, c] = C[b, t, g].numpy() @ h[b, c] + float(D[c] * u[b, t, c])
    np.testing.assert_allclose(y, want, rtol=1e-10, atol=1e-10)
    np.testing.assert_allclose(final, h, rtol=1e-10, atol=1e-10)


#: Triton's interpreter takes a second for 30 steps of a program: in place of what is large it has
#: less of the same, and that with the usual delta only.
SMALLER = {
    (3, 50, 16, 8, 16): (2, 18, 16, 8, 16),
    (2, 40, 264, 3, 1): (1, 18, 72, 3, 1),
    (40, 18, 64, 16, 4): (3, 18, 64, 16, 4),
    (1, 1000, 8, 4, 2): (1, 100, 8, 4, 2),
}
CASES = [
    (SMALLER.get(shape, shape) if backend == "triton" else shape, delta, backend)
    for shape in SHAPES
    for delta in ("usual", "tiny", "huge")
    for backend in ("numba", "triton")
    if backend == "numba" or delta == "usual" or math.prod(shape[:3]) < 1000
]


@pytest.mark.parametrize("shape, delta, backend", CASES)
def test_backends_agree_with_naive_in_float64(shape, delta, backend):
    if backend == "triton":
        pytest.importorskip("triton")
    inputs = make_inputs(shape, delta)
    got = forward_and_gradients(inputs, torch.float32, backend)
    want = forward_and_gradients(inputs, torch.float64, "naive")
    # The gradient of delta sums over d_state what is large and nearly cancels when delta is huge.
    tolerance = 1e-4 if delta == "huge" else 2e-5
    assert_close(got, want, ["y", "final_state", *NAMES], tolerance)


def surroundings(shape):
    """z, and a delta before softplus with its bias, in float64."""
    batch, length, channels, *_ = shape
    generator = torch.Generator().manual_seed(1)
    z, delta = torch.randn(2, batch, length, channels, generator=generator, dtype=torch.float64)
    bias = torch.linspace(-9, 25, channels, dtype=torch.float64)  # both ends of softplus
    return z, delta, bias


@pytest.mark.parametrize("backend", ["naive", "numba", TRITON])
@pytest.mark.parametrize("shape", [(2, 17, 24, 5, 3), (1, 70, 6, 3, 1)])
def test_what_surrounds_the_scan_may_be_left_to_it(backend, shape):
    u, _, A, B, C, D, state = make_inputs(shape)
    z, delta, bias = surroundings(shape)
    silu, softplus = torch.nn.functional.silu, torch.nn.functional.softplus

    def run(backend, dtype, fused):
        device = DEVICE if backend == "triton" else "cpu"
        tensors = (u, delta, A, B, C, D, state, z, bias)
        tensors = [x.to(device, dtype).requires_grad_() for x in tensors]
        u_, delta_, A_, B_, C_, D_, state_, z_, bias_ = tensors
        if fused:
            around = {"z": z_, "delta_bias": bias_, "delta_softplus": True}
            args = (u_, delta_, A_, B_, C_, D_, state_, True, backend)
            y, final = selective_scan(*args, **around)
        else:
            args = (u_, softplus(delta_ + bias_), A_, B_, C_, D_, state_, True, backend)
            y, final = selective_scan(*args)
            y = y * silu(z_)
        weight = torch.cos(torch.arange(y.numel(), dtype=torch.float64)).view(y.shape)
        loss = (y * weight.to(y)).sum() + (final**2).sum()
        return [x.detach().cpu() for x in (y, final, *torch.autograd.grad(loss, tensors))]

    got, want = run(backend, torch.float32, True), run("naive", torch.float64, False)
    names = ["y", "final_state", *NAMES, "z", "delta_bias"]
    assert_close(got, want, names, 1e-4)


@pytest.mark.parametrize("backend", ["naive", "numba", TRITON])
def test_states_and_skip_are_optional(backend):
    inputs = make_inputs((2, 20, 8, 4, 2))
    got = forward_and_gradients(inputs, torch.float32, backend, with_state=False)
    zero = [*inputs[:-1], torch.zeros_like(inputs[-1])]
    want = forward_and_gradients(zero, torch.float64, "naive")
    assert_close(got, want[:-1], ["y", "final_state", *NAMES[:-1]], 1e-5)

    u, delta, A, B, C, D, _ = on_device(backend, inputs)
    with_skip = selective_scan(u, delta, A, B, C, D, backend=backend)
    without = selective_scan(u, delta, A, B, C, backend=backend)
    torch.testing.assert_close(with_skip - without, D * u, atol=1e-5, rtol=0)


@pytest.mark.parametrize("backend", ["naive", "numba", TRITON])
def test_a_scan_in_two_halves_is_the_scan(backend):
    u, delta, A, B, C, D, state = on_device(backend, make_inputs((2, 37, 8, 4, 2)))
    y, final = selective_scan(u, delta, A, B, C, D, state, True, backend)
    halves, h = [], state
    for part in (slice(0, 19), slice(19, None)):
        half, h = selective_scan(
            u[:, part], delta[:, part], A, B[:, part], C[:, part], D, h, True, backend
        )
        halves.append(half)
    torch.testing.assert_close(torch.cat(halves, 1), y, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(h, final, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("backend", ["naive", "numba", TRITON])
def test_any_strides(backend):
    inputs = [x.float() for x in make_inputs((2, 20, 8, 4, 2))]
    strided = [x.flip(0).transpose(0, -1).contiguous().transpose(0, -1).flip(0) for x in inputs]
    for i in (0, 5):  # u and D
        strided[i] = torch.stack([inputs[i], inputs[i]], -1)[..., 0]
    assert not any(x.is_contiguous() for x in strided[:6])
    got = forward_and_gradients(strided, torch.float32, backend)
    want = forward_and_gradients(inputs, torch.float64, "naive")
    assert_close(got, [w.double() for w in want], ["y", "final_state", *NAMES], 2e-5)


def test_naive_passes_gradcheck():
    inputs = [x.requires_grad_() for x in make_inputs((2, 4, 4, 2, 2))]
    assert torch.autograd.gradcheck(
        lambda *x: selective_scan(*x, return_final_state=True, backend="naive"), inputs
    )


@pytest.mark.parametrize("backend", ["numba", "naive", TRITON])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_keeps_its_dtype_and_a_float32_state(dtype, backend):
    inputs = make_inputs((2, 20, 8, 4, 2))
    *args, state = on_device(backend, inputs, dtype)
    y, final = selective_scan(*args, state, True, backend)
    assert (y.dtype, final.dtype) == (dtype, torch.float32)
    want = selective_scan(*(x.to(dtype).double() for x in inputs), backend="naive")
    scale = float(want.abs().max())
    assert float((y.double().cpu() - want).abs().max()) < 0.01 * scale
    got = forward_and_gradients(inputs, dtype, backend)
    assert {x.dtype for x in got[2:]} == {dtype}
    want = forward_and_gradients([x.to(dtype) for x in inputs], torch.float64, "naive")
    assert_close(got, want, ["y", "final_state", *NAMES], 0.02)
    gated = selective_scan(*args, backend=backend, z=args[0].float())
    assert gated.dtype == dtype


@pytest.mark.parametrize("backend", ["numba", "naive", TRITON])
def test_a_small_step_in_half_precision_is_not_lost(backend):
    """softplus(-18) is 1.5e-8, which float16 does not have."""
    u, _, A, B, C, _, _ = on_device(backend, make_inputs((1, 3, 4, 2, 1)), torch.float16)
    u, delta = torch.full_like(u, 1000.0), torch.full_like(u, -18.0)
    got, want = (
        selective_scan(
            *(x.to(dtype) for x in (u, delta, A, B, C)), return_final_state=True,
            backend=name, delta_softplus=True,
        )[1]
        for name, dtype in ((backend, torch.float16), ("naive", torch.float32))
    )  # fmt: skip
    torch.testing.assert_close(got, want, rtol=1e-3, atol=1e-9)


def test_numba_stores_nothing_without_gradients(monkeypatch):
    stored, forward = [], numba_cpu._forward

    def record(*args):
        stored.append(args[-1].size)
        return forward(*args)

    monkeypatch.setattr(numba_cpu, "_forward", record)
    inputs = [x.float().requires_grad_() for x in make_inputs((2, 20, 8, 4, 2))]
    with torch.no_grad():
        selective_scan(*inputs, backend="numba")
    selective_scan(*inputs, backend="numba")
    assert stored[0] == 0 < stored[1]


@pytest.mark.parametrize("backend", ["numba", "naive", TRITON])
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_what_is_not_finite_stays_so(backend, bad):
    inputs = on_device(backend, make_inputs((1, 20, 4, 4, 1)))
    for broken in (0, 1):  # u, delta
        args = [x.clone() for x in inputs]
        args[broken][0, 5, 0] = bad
        y = selective_scan(*args, backend=backend)
        assert not torch.isfinite(y[0, 5, 0])
        assert torch.isfinite(y[0, :5]).all() and torch.isfinite(y[0, :, 1:]).all()


def test_nothing_of_size_batch_length_channels_state_is_allocated():
    batch, length, channels, d_state = shape = (4, 512, 64, 64)
    inputs = [x.float() for x in make_inputs((*shape, 1))]
    sizes = []

    class Record(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            out = function(*args, **(kwargs or {}))
            for x in out if isinstance(out, (list, tuple)) else [out]:
                if isinstance(x, torch.Tensor):
                    sizes.append(x.numel())
            return out

    for x in inputs:
        x.requires_grad_()
    with Record():
        selective_scan(*inputs, backend="numba").sum().backward()
    assert 0 < max(sizes) <= batch * length * channels * d_state // 16


# -- choosing a backend --------------------------------------------------------------------------


def test_auto_takes_numba_for_float32_and_says_so_once(caplog, monkeypatch):
    monkeypatch.setattr(scan_package, "_announced", set())
    inputs = [x.float() for x in make_inputs((2, 5, 8, 4, 2))]
    with caplog.at_level(logging.INFO):
        for _ in range(3):
            y = selective_scan(*inputs)
    torch.testing.assert_close(y, selective_scan(*inputs, backend="numba"))
    assert [r.message for r in caplog.records] == [
        "selective_scan: backend numba (compiled for this CPU)"
    ]


def test_auto_sends_float64_to_naive(caplog, monkeypatch):
    monkeypatch.setattr(scan_package, "_announced", set())
    inputs = make_inputs((2, 5, 8, 4, 2))
    with caplog.at_level(logging.INFO):
        assert selective_scan(*inputs).dtype == torch.float64
    assert "backend naive" in caplog.text and "float64" in caplog.text


def test_a_named_backend_is_never_replaced(monkeypatch):
    inputs = make_inputs((2, 5, 8, 4, 2))
    with pytest.raises(BackendError, match="numba.*float64; use naive"):
        selective_scan(*inputs, backend="numba")
    with pytest.raises(BackendError, match="mamba_ssm.*pip install.*MAMBA_KEEP_CUDA_BUILD"):
        selective_scan(*inputs[:-1], backend="mamba_ssm")
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    with pytest.raises(BackendError, match="triton.*GPU only, the input is on cpu; use numba"):
        selective_scan(*inputs, backend="triton")
    with pytest.raises(BackendError, match="unknown backend 'cuda'; use auto, mamba_ssm, triton"):
        selective_scan(*inputs, backend="cuda")


@pytest.mark.parametrize("position", range(7))
def test_a_shape_that_does_not_fit_is_named(position):
    inputs = make_inputs((2, 5, 8, 4, 2))
    name = NAMES[position] if position else "A"  # u defines the number of channels
    inputs[position] = inputs[position][:3] if name == "A" else inputs[position][..., :3]
    if position == 0:
        inputs[0] = make_inputs((2, 5, 6, 4, 2))[0]
    with pytest.raises(BackendError, match=f"selective_scan: {name} must be"):
        selective_scan(*inputs)


def test_an_empty_sequence_is_refused():
    u, *rest = make_inputs((2, 5, 8, 4, 2))
    with pytest.raises(BackendError, match="length >= 1"):
        selective_scan(u[:, :0], *rest)


@pytest.fixture
def fake_mamba_ssm(monkeypatch):
    """mamba-ssm with a kernel that computes by ``naive`` in the kernel's own layout."""

    def selective_scan_fn(
        u, delta, A, B, C, D=None, z=None, delta_bias=None, delta_softplus=False,
        return_last_state=False,
    ):  # fmt: skip
        assert u.dtype == delta.dtype == B.dtype == C.dtype and A.dtype == torch.float32
        args = u.transpose(1, 2), delta.transpose(1, 2), A, B.permute(0, 3, 1, 2)
        around = {"delta_bias": delta_bias, "delta_softplus": delta_softplus}
        around["z"] = None if z is None else z.transpose(1, 2)
        y, state = scan_function(
            *args, C.permute(0, 3, 1, 2), D, return_final_state=True, backend="naive", **around
        )
        return (y.transpose(1, 2), state) if return_last_state else y.transpose(1, 2)

    interface = types.ModuleType("mamba_ssm.ops.selective_scan_interface")
    interface.selective_scan_fn = selective_scan_fn
    monkeypatch.setitem(sys.modules, "selective_scan_cuda", types.ModuleType("x"))
    for name in ("mamba_ssm", "mamba_ssm.ops"):
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
    monkeypatch.setitem(sys.modules, interface.__name__, interface)
    mamba_ssm_cuda.load_kernel.cache_clear()
    yield
    mamba_ssm_cuda.load_kernel.cache_clear()


def test_mamba_ssm_is_called_in_its_layout(fake_mamba_ssm):
    inputs = [x.float() for x in make_inputs((2, 20, 8, 4, 2))[:-1]]
    y, state = mamba_ssm_cuda.selective_scan_mamba_ssm(*inputs)
    want, want_state = selective_scan(*inputs, return_final_state=True, backend="naive")
    torch.testing.assert_close(y, want)
    torch.testing.assert_close(state, want_state)
    z, delta, bias = (x.float() for x in surroundings((2, 20, 8, 4, 2)))
    around = {"z": z, "delta_bias": bias, "delta_softplus": True}
    inputs[1] = delta
    y, _ = mamba_ssm_cuda.selective_scan_mamba_ssm(*inputs, **around)
    torch.testing.assert_close(y, selective_scan(*inputs, backend="naive", **around))


def test_mamba_ssm_takes_only_the_calls_it_computes_right(fake_mamba_ssm, monkeypatch):
    device = torch.device("cuda")
    monkeypatch.setattr(scan_package.triton_support, "objection", lambda device: "no triton")

    def objection(dtype=torch.float32, d_state=16, state=False, final_grad=False):
        call = scan_package._Call(device, dtype, d_state, state, final_grad)
        found = scan_package._objection("mamba_ssm", call)
        assert scan_package._choose(call)[0] == ("naive" if found else "mamba_ssm")
        return found

    assert objection() is None
    assert "no float64" in objection(dtype=torch.float64)
    assert "d_state up to 256" in objection(d_state=512)
    assert "no initial state" in objection(state=True)
    assert "gradient of the final state" in objection(final_grad=True)


@pytest.fixture
def both_on_cuda(monkeypatch, fake_mamba_ssm):
    """A machine that has mamba-ssm's kernel and triton, to the eyes of the dispatcher."""
    monkeypatch.setattr(scan_package.triton_support, "objection", lambda device: None)
    monkeypatch.setattr(contest, "_winners", {})
    monkeypatch.setattr(scan_package, "_announced", set())


def call_of(batch=4, length=50, wants_grad=True, device="cuda", **changes):
    size = (wants_grad, torch.float32, 2, batch, length, 16)
    call = scan_package._Call(torch.device(device), torch.float32, 8, False, False, size)
    return call._replace(**changes)


def test_auto_takes_the_one_that_was_faster_here(both_on_cuda, monkeypatch):
    measured = []

    def seconds(scan, name, call):
        measured.append((name, call.size[3]))
        long = call.size[4] > 100
        return {"mamba_ssm": 0.004 if long else 0.001, "triton": 0.002}[name]

    monkeypatch.setattr(contest, "_seconds", seconds)
    name, why = scan_package._choose(call_of())
    assert name == "mamba_ssm"
    assert why == (
        "the faster one at batch 4, length 64, 16 channels, 2 groups, d_state 8, float32, "
        "training, cuda: mamba_ssm 1 ms, triton 2 ms"
    )
    assert scan_package._choose(call_of(batch=3, length=33)) == (name, why)  # the same class
    assert scan_package._choose(call_of(length=200))[0] == "triton"
    assert measured == [("mamba_ssm", 4), ("triton", 4)] * 2
    assert scan_package._choose(call_of(wants_grad=False))[0] == "mamba_ssm"
    assert len(measured) == 6
    # What one of them cannot take is the other's, without a contest.
    for changes in ({"has_initial_state": True}, {"final_state_grad": True}, {"d_state": 300}):
        name, why = scan_package._choose(call_of(**changes))
        assert name == "triton" and why.startswith("mamba_ssm: its")
    assert len(measured) == 6


def test_a_contest_runs_both(monkeypatch):
    monkeypatch.setattr(contest, "_winners", {})
    seen = []

    def scan(*inputs, backend):
        seen.append((backend, torch.is_grad_enabled(), inputs[0].shape))
        return selective_scan(*inputs, backend=backend)

    monkeypatch.setattr(contest, "LARGEST", 3 * 50 * 16)
    state = torch.get_rng_state()
    for wants_grad in (True, False):
        call = call_of(device="cpu", wants_grad=wants_grad)
        name, why = contest.faster(["naive", "numba"], call, scan)
        assert name == "numba" and "naive " in why and "numba " in why
    assert torch.equal(torch.get_rng_state(), state)
    assert len(seen) == 2 * 2 * (1 + contest.RUNS)
    assert {grad for _, grad, _ in seen} == {True, False}
    assert {shape for *_, shape in seen} == {(3, 50, 16)}  # four rows would be too large


def test_auto_on_cuda_with_neither_warns_and_names_what_is_missing(monkeypatch, caplog):
    monkeypatch.setattr(scan_package, "_announced", set())
    monkeypatch.setattr(scan_package.triton_support, "why_not_importable", lambda: "no such module")
    mamba_ssm_cuda.load_kernel.cache_clear()
    choice = scan_package._choose(call_of())
    scan_package._announce(*choice)
    assert choice[0] == "naive"
    (record,) = caplog.records
    assert record.levelname == "WARNING"
    assert "slow" in record.message and "recbole-hydra[cuda]" in record.message
    assert "triton, which comes with torch for CUDA on Linux, is not imp" in record.message


@needs_triton
def test_torch_compile_sees_through_the_operations_of_triton():
    from recbole_hydra.ops import causal_conv1d

    def block(x, weight, bias, A, B, C, D, z):
        x = causal_conv1d(x, weight, bias, activation="silu", backend="triton")
        return selective_scan(
            x, x, A, B, C, D, backend="triton", z=z, delta_bias=bias, delta_softplus=True
        )

    u, _, A, B, C, D, _ = make_inputs((2, 20, 8, 4, 2))
    z, _, bias = surroundings((2, 20, 8, 4, 2))
    inputs = [u, A[:, :3].clone(), bias, A, B, C, D, z]
    inputs = [x.to(DEVICE, torch.float32).requires_grad_() for x in inputs]
    results = []
    for function in (block, torch.compile(block, fullgraph=True, backend="aot_eager")):
        y = function(*inputs)
        results.append([y, *torch.autograd.grad((y**2).sum(), inputs)])
    for eager, compiled in zip(*results, strict=True):
        torch.testing.assert_close(compiled, eager)


@needs_triton
def test_operations_of_triton_keep_the_rules_of_torch_library():
    from recbole_hydra.ops.causal_conv1d.triton_gpu import _conv
    from recbole_hydra.ops.selective_scan.triton_gpu import _scan

    u, delta, A, B, C, D, state = on_device("triton", make_inputs((2, 5, 4, 2, 2)))
    z = torch.ones_like(u)
    checks = ("test_schema", "test_faketensor", "test_autograd_registration")
    for args in ((D, D, z, state, True, True), (None, None, None, None, False, False)):
        inputs = [x.clone().requires_grad_() for x in (u, delta, A, B, C)]
        torch.library.opcheck(_scan, (*inputs, *args), test_utils=checks)
    weight, conv_state = A[:, :2].clone(), state[..., :1].clone()
    for args in ((D, conv_state, True), (None, None, False)):
        inputs = (u.clone().requires_grad_(), weight.requires_grad_())
        torch.library.opcheck(_conv, (*inputs, *args), test_utils=checks)


@needs_triton
def test_triton_finds_the_gradients_of_some_rows_at_a_time(monkeypatch):
    from recbole_hydra.ops.selective_scan import triton_gpu

    inputs = make_inputs((5, 6, 40, 3, 2))  # two programs for each group
    want = forward_and_gradients(inputs, torch.float32, "triton")
    monkeypatch.setattr(triton_gpu, "LARGEST", 2 * 2 * 6 * 2 * 3)  # of two rows
    launch, rows = triton_gpu._launch, []
    monkeypatch.setattr(
        triton_gpu, "_launch", lambda *x, **y: rows.append(len(x[2].u)) or launch(*x, **y)
    )
    got = forward_and_gradients(inputs, torch.float32, "triton")
    assert rows == [5, 2, 2, 1]
    for a, b in zip(got, want, strict=True):
        assert torch.equal(a, b)


@needs_triton
@pytest.mark.parametrize("shape", [(2, 50, 24, 5, 3), (1, 33, 5, 3, 1)])
@pytest.mark.parametrize("around", [False, True])
def test_triton_cuts_time_where_rows_and_channels_are_few(monkeypatch, shape, around):
    from recbole_hydra.ops.selective_scan import triton_gpu

    monkeypatch.setattr(triton_gpu, "WARPS", 1000)
    monkeypatch.setattr(triton_gpu, "SEGMENT", 16)
    launch, passes = triton_gpu._launch, []
    monkeypatch.setattr(
        triton_gpu,
        "_launch",
        lambda kernel, plan, *x, **y: passes.append(plan.segments) or launch(kernel, plan, *x, **y),
    )
    inputs, results = make_inputs(shape), {}
    extra = {"z": inputs[0].cos(), "delta_bias": inputs[5] - 2} if around else {}
    for backend, dtype in (("triton", torch.float32), ("naive", torch.float64)):
        mine = [x.requires_grad_() for x in on_device(backend, inputs, dtype)]
        *args, state = mine
        given = dict(zip(extra, on_device(backend, extra.values(), dtype), strict=True))
        scan = partial(
            selective_scan, return_final_state=True, delta_softplus=around, backend=backend
        )
        with torch.no_grad():
            alone = scan(*args, state, **given)
        given = {key: x.requires_grad_() for key, x in given.items()}
        y, final = scan(*args, state, **given)
        assert torch.equal(alone[0], y) and torch.equal(alone[1], final)
        loss = (y * y.detach().sin()).sum() + (final * final.detach().cos()).sum()
        found = torch.autograd.grad(loss, [*mine, *given.values()])
        results[backend] = [x.detach().cpu() for x in (y, final, *found)]
    # Two kernels each: without gradients, with, backward.
    assert passes == passes[:1] * 6 and passes[0] > 1
    names = ["y", "final_state", *NAMES, *extra]
    assert_close(results["triton"], results["naive"], names, 2e-5)


@needs_triton
def test_triton_keeps_states_for_the_backward_pass_alone(monkeypatch):
    from recbole_hydra.ops.selective_scan import triton_gpu

    inputs = on_device("triton", make_inputs((2, 40, 4, 3, 2)))
    kept = []
    monkeypatch.setattr(
        triton_gpu, "_scan", lambda *x, scan=triton_gpu._scan: kept.append(scan(*x)) or kept[-1]
    )
    around = {"delta_bias": torch.ones_like(inputs[5]), "delta_softplus": True}
    y = selective_scan(*inputs, backend="triton", **around)
    inputs[1].requires_grad_()
    assert torch.equal(selective_scan(*inputs, backend="triton", **around), y)
    (*_, few, nothing), (*_, states, steps) = kept
    assert few.shape[1] == 2 and nothing.numel() == 0
    assert states.shape[1] == 1 + 3 and steps.shape == y.shape


def test_inputs_of_different_precision_are_computed_in_the_highest():
    u, delta, A, B, C, D, state = make_inputs((2, 20, 8, 4, 2))
    want = selective_scan(u, delta, A, B, C, D, state)
    mixed = [u.float(), delta.float(), A, B.bfloat16(), C.bfloat16(), D, state]
    assert selective_scan(*mixed).dtype == torch.float32
    with pytest.raises(BackendError, match="float64; use naive"):
        selective_scan(*mixed, backend="numba")
    autocast = [u.bfloat16(), delta.float(), A.float(), B.bfloat16(), C.bfloat16(), D.float()]
    y = selective_scan(*autocast, state.float(), backend="numba")
    assert y.dtype == torch.bfloat16
    assert float((y.double() - want).abs().max()) < 0.02 * float(want.abs().max())


def test_compiles_without_a_folder_for_the_result(monkeypatch):
    from recbole_hydra.ops import numba_support

    def njit_without_folder(cache=False, **options):
        if cache:
            raise RuntimeError("cannot cache function: no locator available")
        return lambda function: (function, options["parallel"])

    monkeypatch.setattr(numba_support, "njit", njit_without_folder)
    assert numba_support.compiled(len) == (len, True)
