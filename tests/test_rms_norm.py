import subprocess
import sys

import pytest
import torch

from recbole_hydra.errors import BackendError
from recbole_hydra.layers import RMSNorm
from recbole_hydra.ops import rms_norm
from recbole_hydra.ops.rms_norm import numba_cpu
from recbole_hydra.ops.rms_norm.naive import rms_norm_naive

EPS = 1e-6


def inputs(shape, scale=1.0, dtype=torch.float32):
    generator = torch.Generator().manual_seed(0)
    x = scale * torch.randn(shape, generator=generator, dtype=torch.float64)
    weight = 1 + torch.randn(shape[-1], generator=generator, dtype=torch.float64)
    upstream = torch.randn(shape, generator=generator, dtype=torch.float64)
    return x.to(dtype).requires_grad_(), weight.to(dtype).requires_grad_(), upstream.to(dtype)


def values(function, x, weight, upstream):
    y = function(x, weight, EPS)
    return y.detach(), *torch.autograd.grad(y, (x, weight), upstream)


def assert_close(got, want, tolerance=1e-5):
    for a, b in zip(got, want, strict=True):
        assert a.shape == b.shape
        assert float((a.double() - b.double()).abs().max()) <= tolerance * float(b.abs().max())


#: Fewer rows than parts, none, several dimensions, and enough numbers for threads.
SHAPES = [(1, 16), (5, 64), (3, 7, 2, 16), (31, 48), (700, 64), (40, 50, 4, 16)]


@pytest.mark.parametrize("small", [0, 2**30], ids=["threads", "one thread"])
@pytest.mark.parametrize("scale", [1e-4, 1.0, 1e4])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_equals_the_definition(monkeypatch, shape, scale, small):
    monkeypatch.setattr(numba_cpu, "SMALL", small)
    x, weight, upstream = inputs(shape, scale)
    wide = [t.detach().double().requires_grad_() for t in (x, weight)]
    want = values(rms_norm_naive, *wide, upstream.double())
    for backend in ("auto", "numba", "torch", "naive"):

        def function(*args, backend=backend):
            return rms_norm(*args, backend=backend)

        assert_close(values(function, x, weight, upstream), want)


def test_any_strides():
    x, weight, upstream = inputs((64, 20, 30))
    weight = weight.detach()[:1].repeat(64).requires_grad_()
    x, upstream = x.transpose(0, 2), upstream.transpose(0, 2)
    want = values(rms_norm_naive, x, weight, upstream)
    got = values(lambda *args: rms_norm(*args, backend="numba"), x, weight, upstream)
    assert_close(got, want)


def test_a_vector_of_zeros_and_no_vectors_at_all():
    weight = torch.ones(16, requires_grad=True)
    x = torch.zeros(3, 16, requires_grad=True)
    assert_close(
        values(rms_norm, x, weight, torch.ones(3, 16)),
        values(rms_norm_naive, x, weight, torch.ones(3, 16)),
    )
    empty = torch.zeros(0, 16, requires_grad=True)
    y = rms_norm(empty, weight, EPS)
    assert y.shape == (0, 16)
    assert not torch.autograd.grad(y.sum(), weight)[0].any()


def test_the_number_of_threads_changes_nothing():
    """Not a bit, in processes of their own: threads are started once."""
    code = (
        "import sys, torch; from recbole_hydra.ops import rms_norm; torch.manual_seed(0);"
        "x = torch.randn(999, 64, requires_grad=True); w = torch.randn(64, requires_grad=True);"
        "torch.set_num_threads(int(sys.argv[1])); y = rms_norm(x, w, 1e-6, 'numba');"
        "y.square().sum().backward(); print([float(t.double().sum()) for t in (x.grad, w.grad)])"
    )
    found = {
        subprocess.run(
            [sys.executable, "-c", code, number], check=True, capture_output=True, text=True
        ).stdout
        for number in ("1", "2")
    }
    assert len(found) == 1


def test_the_layer_has_torch_s_parameters_and_values():
    layer, torchs = RMSNorm(32, EPS), torch.nn.RMSNorm(32, EPS)
    layer.load_state_dict(torchs.state_dict())
    x = torch.randn(9, 32)
    assert_close([layer(x).detach()], [torchs(x).detach()])
    for dtype in (torch.bfloat16, torch.float64):
        assert layer.to(dtype)(x.to(dtype)).dtype == dtype
    torch.testing.assert_close(layer.double()(x.double()), torchs.double()(x.double()))


def test_a_second_derivative_is_an_error():
    x, weight, upstream = inputs((3, 16))
    y = rms_norm(x, weight, EPS, "numba")
    (grad,) = torch.autograd.grad((y * upstream).sum(), x, create_graph=True)
    with pytest.raises(RuntimeError):
        grad.sum().backward()


@pytest.mark.parametrize(
    "x, weight, backend, message",
    [
        (torch.ones(3, 16), torch.ones(15), "auto", r"weight must be .* \(3, 16\), got \(15,\)"),
        (torch.ones(3, 16), torch.ones(1, 16), "auto", "weight must be"),
        (torch.ones(3, 16), torch.ones(16), "nubma", "unknown backend 'nubma'"),
        (torch.ones(3, 8), torch.ones(8), "numba", "widths of a multiple of 16, got 8; use torch"),
        (torch.ones(3, 16).double(), torch.ones(16), "numba", "float32 only, got torch.float64"),
        (torch.ones(3, 16, device="meta"), torch.ones(16), "numba", "CPU only, x is on meta"),
    ],
)
def test_what_does_not_fit_is_named(x, weight, backend, message):
    with pytest.raises(BackendError, match=message):
        rms_norm(x, weight, EPS, backend)
