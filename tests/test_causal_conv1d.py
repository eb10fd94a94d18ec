import sys
import types
from importlib import import_module

import pytest
import torch
import torch.nn.functional as F
from triton_interpreter import DEVICE, TRITON, needs_triton

from recbole_hydra.errors import BackendError
from recbole_hydra.ops import causal_conv1d
from recbole_hydra.ops.causal_conv1d import cuda_package

# batch, length, channels, width
SHAPES = [(1, 1, 1, 1), (2, 1, 3, 4), (2, 2, 3, 4), (3, 50, 8, 4), (1, 1000, 4, 2), (2, 9, 5, 12)]
BACKENDS = ["naive", "torch"]
#: Under the name of the module stands the function of that name.
causal_conv1d_module = import_module("recbole_hydra.ops.causal_conv1d")


def make_inputs(shape, dtype=torch.float64):
    """x, weight, bias, initial_state."""
    batch, length, channels, width = shape
    generator = torch.Generator().manual_seed(0)
    sizes = (batch, length, channels), (channels, width), (channels,), (batch, channels, width - 1)
    return [torch.randn(*s, generator=generator, dtype=torch.float64).to(dtype) for s in sizes]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("shape", SHAPES)
def test_is_the_convolution_written_out(shape, backend):
    x, weight, bias, state = make_inputs(shape)
    y, final = causal_conv1d(x, weight, bias, state, True, backend=backend)
    width = shape[-1]
    seen = torch.cat([state.transpose(1, 2), x], dim=1)
    for t in range(shape[1]):
        want = bias + sum(weight[:, k] * seen[:, t + k] for k in range(width))
        torch.testing.assert_close(y[:, t], want)
    torch.testing.assert_close(final, seen[:, seen.shape[1] - width + 1 :].transpose(1, 2))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("shape", SHAPES)
def test_torch_agrees_with_naive_with_gradients(shape, dtype):
    results = []
    for backend, kind in (("torch", dtype), ("naive", torch.float64)):
        inputs = [x.requires_grad_() for x in make_inputs(shape, kind)]
        y, final = causal_conv1d(*inputs, True, activation="silu", backend=backend)
        loss = (y * torch.cos(torch.arange(y.numel())).view(y.shape)).sum() + (final**2).sum()
        results.append([y, final, *torch.autograd.grad(loss, inputs)])
    for got, want in zip(*results, strict=True):
        torch.testing.assert_close(got.double(), want, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("activation", [None, "silu"])
@pytest.mark.parametrize("with_state", [True, False])
@pytest.mark.parametrize("shape", [*SHAPES, (1, 70, 64, 4), (40, 5, 32, 4), (1, 3, 48, 3)])
@pytest.mark.parametrize("backend", ["numba", TRITON])
def test_backends_agree_with_naive_with_gradients(backend, shape, with_state, activation):
    results = []
    for name, kind in ((backend, torch.float32), ("naive", torch.float64)):
        device = DEVICE if name == "triton" else "cpu"
        x, weight, bias, state = [x.to(device).requires_grad_() for x in make_inputs(shape, kind)]
        start = state if with_state else None
        y, final = causal_conv1d(x, weight, bias, start, True, activation, name)
        weights = torch.cos(torch.arange(y.numel())).view(y.shape).to(y)
        loss = (y * weights).sum() + (final**2).sum()
        inputs = [x, weight, bias, state] if with_state else [x, weight, bias]
        results.append([y, final, *torch.autograd.grad(loss, inputs)])
    for got, want in zip(*results, strict=True):
        torch.testing.assert_close(got.double().cpu(), want, atol=1e-4, rtol=1e-4)


@needs_triton
def test_triton_takes_strided_and_half_precision_inputs_and_no_bias():
    x, weight, _, state = (x.to(DEVICE) for x in make_inputs((2, 9, 5, 4)))
    want = causal_conv1d(x, weight, None, state, activation="silu", backend="naive")
    for dtype, tolerance in ((torch.float32, 1e-5), (torch.bfloat16, 0.05)):
        inputs = [t.to(dtype) for t in (x, weight, state)]
        strided = inputs[0].transpose(1, 2).contiguous().transpose(1, 2).requires_grad_()
        y = causal_conv1d(strided, *inputs[1:2], None, inputs[2], activation="silu",
                          backend="triton")  # fmt: skip
        assert y.dtype == dtype
        assert (y.double() - want).abs().max() < tolerance
        (gx,) = torch.autograd.grad(y.sum(), strided)
        assert gx.dtype == dtype
    with pytest.raises(BackendError, match="'triton' cannot be used: it computes in float32"):
        causal_conv1d(x, weight, backend="triton")


def test_numba_takes_what_it_can_and_says_so():
    x, weight, bias, _ = make_inputs((2, 9, 5, 4), torch.float32)
    torch.testing.assert_close(
        causal_conv1d(x, weight, backend="numba"), causal_conv1d(x, weight, backend="naive")
    )
    with pytest.raises(BackendError, match="'numba' cannot be used: it computes in float32"):
        causal_conv1d(x.double(), weight.double(), backend="numba")
    x[0, 3, 2] = float("nan")
    assert causal_conv1d(x, weight, bias, activation="silu")[0, 3:7, 2].isnan().all()


@pytest.mark.parametrize("backend", BACKENDS)
def test_state_bias_and_activation_are_optional(backend):
    x, weight, bias, state = make_inputs((2, 9, 5, 4))
    plain = causal_conv1d(x, weight, backend=backend)
    torch.testing.assert_close(
        plain, causal_conv1d(x, weight, torch.zeros(5).double(), torch.zeros_like(state))
    )
    activated = causal_conv1d(x, weight, bias, activation="silu", backend=backend)
    torch.testing.assert_close(activated, F.silu(plain + bias))


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_sequence_in_two_halves_is_the_sequence(backend):
    x, weight, bias, state = make_inputs((2, 9, 5, 4))
    y, final = causal_conv1d(x, weight, bias, state, True, backend=backend)
    first, middle = causal_conv1d(x[:, :2], weight, bias, state, True, backend=backend)
    second, last = causal_conv1d(x[:, 2:], weight, bias, middle, True, backend=backend)
    torch.testing.assert_close(torch.cat([first, second], 1), y)
    torch.testing.assert_close(last, final)


@pytest.mark.parametrize("backend", BACKENDS)
def test_any_strides_and_bfloat16(backend):
    x, weight, bias, _ = make_inputs((2, 9, 5, 4))
    strided = x.transpose(1, 2).contiguous().transpose(1, 2)
    want = causal_conv1d(x, weight, bias)
    torch.testing.assert_close(causal_conv1d(strided, weight, bias, backend=backend), want)
    half = causal_conv1d(*(t.bfloat16() for t in (x, weight, bias)), backend=backend)
    assert half.dtype == torch.bfloat16
    torch.testing.assert_close(half.double(), want, atol=0.1, rtol=0.05)


@pytest.mark.parametrize("backend", ["numba", TRITON])
def test_any_strides_of_the_weights(backend):
    inputs = make_inputs((2, 9, 5, 4), torch.float32)[:3]
    strided = [torch.stack([x, x], -1)[..., 0] for x in inputs]
    assert not any(x.is_contiguous() for x in strided)
    want = causal_conv1d(*inputs, backend="naive")
    device = DEVICE if backend == "triton" else "cpu"
    got = causal_conv1d(*(x.to(device) for x in strided), backend=backend)
    torch.testing.assert_close(got.cpu(), want)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_numba_takes_a_bias_and_a_state_of_another_dtype(dtype):
    x, weight, bias, state = make_inputs((2, 9, 5, 4), torch.float32)
    bias, state = bias.to(dtype).requires_grad_(), state.to(dtype)
    want = causal_conv1d(x, weight, bias.float(), state.float(), backend="naive")
    for backend in ("auto", "numba"):
        y = causal_conv1d(x, weight, bias, state, backend=backend)
        torch.testing.assert_close(y, want)
        assert torch.autograd.grad(y.sum(), bias)[0].dtype == dtype


@pytest.mark.parametrize("backend", ["naive", "torch", "numba", TRITON])
def test_a_final_state_does_not_keep_the_input_in_memory(backend):
    device = DEVICE if backend == "triton" else "cpu"
    x, weight = (t.to(device) for t in make_inputs((2, 50, 5, 4), torch.float32)[:2])
    _, final = causal_conv1d(x, weight, return_final_state=True, backend=backend)
    assert final.untyped_storage().nbytes() == final.numel() * final.element_size()


def test_bad_calls_are_named():
    x, weight, bias, state = make_inputs((2, 9, 5, 4))
    with pytest.raises(BackendError, match="weight must be"):
        causal_conv1d(x, weight[:3])
    with pytest.raises(BackendError, match="bias must be"):
        causal_conv1d(x, weight, bias[:3])
    with pytest.raises(BackendError, match="initial_state must be"):
        causal_conv1d(x, weight, bias, state[..., :1])
    with pytest.raises(BackendError, match="length >= 1"):
        causal_conv1d(x[:, :0], weight)
    with pytest.raises(BackendError, match="activation must be None or 'silu'"):
        causal_conv1d(x, weight, activation="gelu")
    with pytest.raises(BackendError, match="unknown backend 'cudnn'"):
        causal_conv1d(x, weight, backend="cudnn")
    with pytest.raises(BackendError, match="'causal_conv1d' cannot be used.*CUDA only"):
        causal_conv1d(x, weight, backend="causal_conv1d")


@pytest.mark.parametrize(
    "shape, dtype, why",
    [
        ((2, 9, 16, 4), torch.float32, None),
        ((2, 9, 18, 4), torch.float32, "multiples of 8, got 18"),
        ((2, 9, 16, 5), torch.float32, "widths 2 to 4, got 5"),
        ((2, 9, 16, 4), torch.float64, "no float64"),
    ],
)
def test_what_the_cuda_kernel_refuses_goes_to_another(monkeypatch, shape, dtype, why):
    monkeypatch.setattr(cuda_package, "why_not_importable", lambda: None)
    batch, length, channels, width = shape
    x = types.SimpleNamespace(
        device=torch.device("cuda"), dtype=dtype, shape=(batch, length, channels)
    )
    weight = torch.zeros(channels, width, dtype=dtype)
    objection = causal_conv1d_module._objection("causal_conv1d", x, weight, False)
    assert why in objection if why else objection is None


def test_the_cuda_kernel_is_called_in_its_layout(monkeypatch):
    def causal_conv1d_fn(x, weight, bias=None, activation=None):
        assert x.stride(1) == 1  # the kernel's "channel last"
        assert bias.stride(0) == 1 and bias.dtype == weight.dtype
        y = causal_conv1d(x.transpose(1, 2), weight, bias, activation=activation, backend="naive")
        return y.transpose(1, 2)

    package = types.ModuleType("causal_conv1d")
    package.causal_conv1d_fn = causal_conv1d_fn
    monkeypatch.setitem(sys.modules, "causal_conv1d", package)
    monkeypatch.setitem(sys.modules, "causal_conv1d_cuda", types.ModuleType("x"))
    cuda_package.load_kernel.cache_clear()
    x, weight, bias, _ = make_inputs((2, 9, 5, 4))
    strided_bias = torch.stack([bias, bias], 1)[:, 0]
    got = cuda_package.causal_conv1d_cuda(x, weight, strided_bias, "silu")
    cuda_package.load_kernel.cache_clear()
    torch.testing.assert_close(got, causal_conv1d(x, weight, bias, activation="silu"))
