import pytest
import torch

from recbole_hydra.errors import BackendError
from recbole_hydra.ops import pair_scores
from recbole_hydra.ops.pair_scores.naive import pair_scores_naive


def inputs(n, n_items, width, pairs):
    generator = torch.Generator().manual_seed(0)
    states, table = (torch.randn(k, width, generator=generator) for k in (n, n_items))
    rows, items = (torch.randint(k, (pairs,), generator=generator) for k in (n, n_items))
    return states.requires_grad_(), table.requires_grad_(), rows, items


@pytest.mark.parametrize("backend", ["auto", "numba", "naive"])
@pytest.mark.parametrize(
    "shape", [(1, 1, 16, 1), (5, 7, 64, 0), (3, 9, 48, 31), (90, 700, 64, 5000)], ids=str
)
def test_equals_the_definition(shape, backend):
    states, table, rows, items = inputs(*shape)
    want = pair_scores_naive(states.double(), table.double(), rows, items)
    got = pair_scores(states, table, rows, items, backend)
    assert got.dtype == torch.float32 and not got.requires_grad
    torch.testing.assert_close(got.double(), want.detach(), rtol=1e-5, atol=1e-5)


def test_any_strides_and_what_is_not_finite():
    states, table, rows, items = inputs(40, 30, 32, 200)
    turned = (x.detach().T.contiguous().T for x in (states, table))
    got = pair_scores(*turned, rows.repeat_interleave(2)[::2], items, "numba")
    torch.testing.assert_close(got, pair_scores(states, table, rows, items, "naive"))
    with torch.no_grad():
        states[3, 5], table[4, 0] = float("nan"), float("inf")
    got = pair_scores(states, table, rows, items, "numba")
    want = pair_scores(states, table, rows, items, "naive")
    torch.testing.assert_close(got, want, equal_nan=True)


@pytest.mark.parametrize("width, dtype", [(10, torch.float32), (16, torch.bfloat16)])
def test_what_numba_does_not_take_is_computed_all_the_same(width, dtype):
    states, table, rows, items = inputs(4, 5, width, 6)
    states, table = states.to(dtype), table.to(dtype)
    want = pair_scores_naive(states, table, rows, items).detach()
    torch.testing.assert_close(pair_scores(states, table, rows, items), want)


@pytest.mark.parametrize("bad", [-1, 5])
@pytest.mark.parametrize("whose", ["rows", "items"])
def test_an_index_that_is_not_there_is_an_error(bad, whose):
    index = {"rows": torch.tensor([0, 1]), "items": torch.tensor([0, 1])}
    index[whose] = torch.tensor([0, bad])
    with pytest.raises(IndexError, match=r"indices from .* into 5 vectors"):
        pair_scores(torch.ones(5, 16), torch.ones(5, 16), **index)


ONE = torch.zeros(1, dtype=torch.int64)


@pytest.mark.parametrize(
    "states, table, rows, backend, message",
    [
        (torch.ones(3, 16), torch.ones(3, 8), ONE, "auto", r"got \(3, 16\) and \(3, 8\)"),
        (torch.ones(16), torch.ones(3, 16), ONE, "auto", "states must be"),
        (torch.ones(3, 16), torch.ones(3, 16), torch.zeros(2).long(), "auto", "of one length"),
        (torch.ones(3, 16), torch.ones(3, 16), ONE, "nubma", "unknown backend 'nubma'"),
        (torch.ones(3, 8), torch.ones(3, 8), ONE, "numba", "multiple of 16, got 8; use naive"),
        (torch.ones(3, 16).double(), torch.ones(3, 16), ONE, "numba", "float32 only"),
        (torch.ones(3, 16, device="meta"), torch.ones(3, 16), ONE, "numba", "on the CPU only"),
    ],
)
def test_what_does_not_fit_is_named(states, table, rows, backend, message):
    with pytest.raises(BackendError, match=message):
        pair_scores(states, table, rows, ONE, backend)
