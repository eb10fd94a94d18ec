import pytest
import torch
import torch.nn.functional as F
from triton_interpreter import DEVICE, TRITON, needs_triton

from recbole_hydra.errors import BackendError
from recbole_hydra.ops import ItemLists, linear_cross_entropy, triton_support
from recbole_hydra.ops.linear_cross_entropy import blocked, numba_cpu

try:
    from recbole_hydra.ops.linear_cross_entropy import triton_gpu
except ImportError:
    triton_gpu = None


def inputs(n, width, n_items, scale=1.0, dtype=torch.float32, seed=0):
    generator = torch.Generator().manual_seed(seed)
    hidden = torch.randn(n, width, generator=generator, dtype=torch.float64)
    weight = scale * torch.randn(n_items, width, generator=generator, dtype=torch.float64)
    target = torch.randint(0, n_items, (n,), generator=generator)
    return hidden.to(dtype).requires_grad_(), weight.to(dtype).requires_grad_(), target


def loss_and_gradients(loss, hidden, weight):
    hidden.grad = weight.grad = None
    loss.backward()
    return loss.detach(), hidden.grad, weight.grad


def assert_close(got, want, tolerance):
    for x, y in zip(got, want, strict=True):
        size = float(y.abs().max())
        assert float((x.double() - y.double()).abs().max()) <= tolerance * size


SHAPES = [(1, 1, 2), (1, 8, 5), (7, 8, 5), (1, 16, 2), (5, 16, 3), (300, 16, 50), (333, 16, 4001)]
SHAPES += [(97, 48, 101), (2048, 64, 1683)]


def backends(hidden):
    fits = hidden.dtype == torch.float32 and hidden.shape[1] % 16 == 0
    return ("auto", "blocked", "naive", *(["numba"] if fits else []))


@pytest.mark.parametrize("scale", [0.1, 1.0, 8.0])  # the last needs the shift by the largest logit
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype, tolerance", [(torch.float32, 1e-5), (torch.float64, 1e-12)])
def test_equals_the_definition(shape, scale, dtype, tolerance):
    hidden, weight, target = inputs(*shape, scale, dtype)
    h, w = (x.detach().double().requires_grad_() for x in (hidden, weight))
    want = loss_and_gradients(F.cross_entropy(h @ w.T, target), h, w)
    for backend in backends(hidden):
        loss, log_sum = linear_cross_entropy(
            hidden, weight, target, return_log_sum=True, backend=backend
        )
        assert loss.dtype == log_sum.dtype == dtype and not log_sum.requires_grad
        assert_close([log_sum], [torch.logsumexp(h.detach() @ w.detach().T, 1)], tolerance)
        # Larger logits are rounded more coarsely, in the definition as well.
        got = loss_and_gradients(loss, hidden, weight)
        assert_close(got, want, tolerance * max(1.0, scale))


def some_lists(n, n_items):
    """Of the rows of users with 23 positions each, some without an item; first in order of time,
    then in any order."""
    generator = torch.Generator().manual_seed(1)
    items = torch.randint(0, n_items, (-(-n // 23), 23), generator=generator)
    items *= torch.rand(items.shape, generator=generator) < 0.7
    later = n // 2 + torch.randperm(n - n // 2, generator=generator)
    return ItemLists.of_histories(items, torch.cat([torch.arange(n // 2), later]))


def wanted_with(lists, hidden, weight, target):
    """Loss, gradients and log sum exp as the definition has them, in float64."""
    h, w = (x.detach().double().requires_grad_() for x in (hidden, weight))
    row, item = lists.places()
    less = torch.zeros(len(hidden), len(weight), dtype=torch.float64)
    less[row, item] = lists.less.double()[row]
    scores = h @ w.T - less
    loss = loss_and_gradients(F.cross_entropy(scores, target), h, w)
    return *loss, torch.logsumexp(scores.detach(), 1)


@pytest.mark.parametrize("scale", [0.1, 1.0, 8.0])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype, tolerance", [(torch.float32, 1e-5), (torch.float64, 1e-12)])
def test_lists_of_items_that_count_as_one(shape, scale, dtype, tolerance):
    hidden, weight, target = inputs(*shape, scale, dtype)
    lists = some_lists(shape[0], shape[2])
    row, item = lists.places()
    if len(row):  # a target that is in its row's list
        target[row[-1]] = item[-1]
    want = wanted_with(lists, hidden, weight, target)
    for backend in backends(hidden):
        loss, log_sum = linear_cross_entropy(
            hidden, weight, target, lists, return_log_sum=True, backend=backend
        )
        got = *loss_and_gradients(loss, hidden, weight), log_sum
        for x, y in zip(got, want, strict=True):
            size = max(0.3 / shape[0], float(y.abs().max()))  # one row may have next to no loss
            assert float((x - y).abs().max()) <= tolerance * max(1.0, scale) * size


@needs_triton
@pytest.mark.parametrize(
    "dtype, tolerance", [(torch.float32, 1e-5), (torch.bfloat16, 0.03), (torch.float16, 0.01)]
)
def test_triton_counts_lists_as_one(monkeypatch, dtype, tolerance):
    monkeypatch.setattr(triton_gpu, "rows_of_block", lambda n, *_: min(n, 128))
    hidden, weight, target = inputs(300, 48, 101, 0.5, dtype)
    lists = some_lists(300, 101)
    want = wanted_with(lists, hidden, weight, target)
    moved = [x.detach().to(DEVICE).requires_grad_(x.requires_grad) for x in (hidden, weight)]
    loss, log_sum = linear_cross_entropy(
        *moved, target.to(DEVICE), ItemLists(*(x.to(DEVICE) for x in lists)),
        return_log_sum=True, backend="triton",
    )  # fmt: skip
    got = *loss_and_gradients(loss, *moved), log_sum
    assert_close([x.cpu() for x in got], want, tolerance)


@pytest.mark.parametrize(
    "change, error, message",
    [
        ({"begin": torch.zeros(19).long()}, BackendError, r"count .20,. to fit .* .k?.*.19,."),
        ({"items": torch.zeros(6, 1).long()}, BackendError, r"items .k,., .* got .6, 1."),
        ({"items": torch.full((6,), 30)}, IndexError, "items of as_one must be in 0 .. 29, got 30"),
        ({"items": torch.tensor([0, -2])}, IndexError, "must be in 0 .. 29, got -2"),
        ({"count": torch.full((20,), 7)}, IndexError, "within its 6 items, got 0 to before 7"),
        ({"count": torch.full((20,), -1)}, IndexError, "no fewer than -1 items in a list"),
    ],
)
def test_lists_that_do_not_fit(change, error, message):
    lists = ItemLists(torch.arange(6), torch.zeros(20).long(), torch.full((20,), 6))
    with pytest.raises(error, match=f"linear_cross_entropy: .*{message}"):
        linear_cross_entropy(*inputs(20, 16, 30), lists._replace(**change))


@needs_triton
@pytest.mark.parametrize("shape", [(1, 1, 2), (7, 8, 5), (33, 16, 4001), (300, 48, 101)])
@pytest.mark.parametrize(
    "dtype, tolerance", [(torch.float32, 1e-5), (torch.bfloat16, 0.02), (torch.float16, 0.005)]
)
def test_triton_equals_the_definition(monkeypatch, shape, dtype, tolerance):
    monkeypatch.setattr(triton_gpu, "rows_of_block", lambda n, *_: min(n, 128))
    hidden, weight, target = inputs(*shape, 0.5, dtype)
    h, w = (x.detach().double().requires_grad_() for x in (hidden, weight))
    want = loss_and_gradients(F.cross_entropy(h @ w.T, target), h, w)
    moved = [x.detach().to(DEVICE).requires_grad_(x.requires_grad) for x in (hidden, weight)]
    loss, log_sum = linear_cross_entropy(
        *moved, target.to(DEVICE), return_log_sum=True, backend="triton"
    )
    assert loss.dtype == log_sum.dtype == torch.float32 and not log_sum.requires_grad
    got = loss_and_gradients(loss, *moved)
    assert [x.dtype for x in got[1:]] == [dtype, dtype]
    assert_close([x.cpu() for x in got], want, tolerance)
    want = torch.logsumexp(h.detach() @ w.detach().T, 1)
    assert_close([log_sum.cpu()], [want], tolerance)
    with torch.no_grad():
        again = linear_cross_entropy(*moved, target.to(DEVICE), backend="triton")
    torch.testing.assert_close(again, loss.detach())


@needs_triton
def test_the_operation_of_triton_keeps_the_rules_of_torch_library():
    hidden, weight, target = (x.detach().to(DEVICE) for x in inputs(7, 16, 30))
    checks = ("test_schema", "test_faketensor", "test_autograd_registration")
    lists = [x.to(DEVICE) for x in some_lists(7, 30)]
    for wants_grad, as_one in ((False, (None, None, None)), (True, lists)):
        tensors = [x.clone().requires_grad_(wants_grad) for x in (hidden, weight)]
        args = (*tensors, target, *as_one, torch.bfloat16, wants_grad)
        torch.library.opcheck(triton_gpu._loss, args, test_utils=checks)


@needs_triton
def test_torch_compile_sees_through_the_operation_of_triton():
    hidden, weight, target = (x.to(DEVICE) for x in inputs(7, 16, 30))
    hidden, weight = (x.detach().bfloat16().requires_grad_() for x in (hidden, weight))

    def doubled(hidden, weight):
        return 2 * linear_cross_entropy(hidden, weight, target, backend="triton")

    results = []
    for function in (doubled, torch.compile(doubled, fullgraph=True, backend="aot_eager")):
        loss = function(hidden, weight)
        results.append([loss, *torch.autograd.grad(loss, (hidden, weight))])
    for eager, compiled in zip(*results, strict=True):
        torch.testing.assert_close(compiled, eager)


@pytest.mark.parametrize("backend", ["numba", "blocked", TRITON])
def test_a_second_derivative_is_an_error(backend):
    device = DEVICE if backend == "triton" else "cpu"
    hidden, weight, target = (x.detach().to(device) for x in inputs(7, 16, 30))
    hidden.requires_grad_()
    loss = linear_cross_entropy(hidden, weight, target, backend=backend)
    (grad,) = torch.autograd.grad(loss, hidden, create_graph=True)
    with pytest.raises(RuntimeError):
        grad.sum().backward()


@needs_triton
def test_triton_is_taken_on_a_gpu_and_named_elsewhere(monkeypatch):
    hidden, weight, target = inputs(20, 8, 30)
    assert triton_support.automatic(["triton", "naive"], torch.device("cuda"))[0] == "triton"
    assert triton_support.automatic(["triton", "naive"], torch.device("cpu")) == ["naive"]
    monkeypatch.setattr(triton_gpu, "softmax_products", None)
    linear_cross_entropy(hidden, weight, target)  # not in the interpreter
    with pytest.raises(BackendError, match="triton does not fit: .*float64; use blocked"):
        double = (x.to(DEVICE, torch.float64) for x in (hidden, weight))
        linear_cross_entropy(*double, target.to(DEVICE), backend="triton")
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    with pytest.raises(BackendError, match="triton does not fit: .*GPU only.*; use blocked"):
        linear_cross_entropy(hidden, weight, target, backend="triton")


@pytest.mark.parametrize("rows", [1, 7, 20])
def test_any_size_of_block(monkeypatch, rows):
    monkeypatch.setattr(blocked, "rows_of_block", lambda *_: rows)
    hidden, weight, target = inputs(20, 8, 30)
    want = loss_and_gradients(
        linear_cross_entropy(hidden, weight, target, backend="naive"), hidden, weight
    )
    got = loss_and_gradients(linear_cross_entropy(hidden, weight, target), hidden, weight)
    assert_close(got, want, 1e-5)


def test_numba_takes_off_what_exceeds_the_safe_range(monkeypatch):
    """Scores whose exp overflows are computed, and not handed on."""
    monkeypatch.setattr(blocked, "softmax_products", None)
    hidden, weight, target = inputs(200, 16, 50)
    with torch.no_grad():
        hidden += 6 * weight[torch.arange(200) % 50]
    assert float((hidden @ weight.T).detach().max()) > 90
    want = loss_and_gradients(
        linear_cross_entropy(hidden, weight, target, backend="naive"), hidden, weight
    )
    got = loss_and_gradients(
        linear_cross_entropy(hidden, weight, target, backend="numba"), hidden, weight
    )
    assert_close(got, want, 2e-5)


def test_numba_hands_on_scores_far_below_their_bound():
    hidden, weight, target = inputs(20, 16, 30)
    with torch.no_grad():
        hidden[7] = -20.0
        weight[:] = weight.abs() + 3  # all scores of row 7 are near -1000, their bound is +1000
    want = loss_and_gradients(
        linear_cross_entropy(hidden, weight, target, backend="naive"), hidden, weight
    )
    got = loss_and_gradients(
        linear_cross_entropy(hidden, weight, target, backend="numba"), hidden, weight
    )
    assert_close(got, want, 1e-5)


@pytest.mark.parametrize("scores", [2**20, 4096, 1])  # one sweep, several; items shared out
@pytest.mark.parametrize("threads", [1, 2, 3, 5, 64])
@pytest.mark.parametrize("n, n_items", [(1, 2), (17, 50), (300, 101)])
def test_any_number_of_threads(monkeypatch, n, n_items, threads, scores):
    """More of them than rows or items, too."""
    monkeypatch.setattr(numba_cpu, "SCORES", scores)
    hidden, weight, target = inputs(n, 16, n_items)
    lists = some_lists(n, n_items)
    want = wanted_with(lists, hidden, weight, target)
    results = []
    for number in (1, threads):
        monkeypatch.setattr(numba_cpu, "use_torch_threads", lambda number=number: number)
        loss, log_sum = linear_cross_entropy(
            hidden, weight, target, lists, return_log_sum=True, backend="numba"
        )
        results.append((*loss_and_gradients(loss, hidden, weight), log_sum))
    assert_close(results[1], want, 1e-5)
    if scores == 2**20:  # nothing is summed over threads
        rows = numba_cpu._rows_of_sweep(n, n_items, threads)
        assert rows[0] >= n and rows[1] == threads
        assert_close(results[1], results[0], 1e-6)


@pytest.mark.parametrize("n", [1, 95, 2048, 10**6])
@pytest.mark.parametrize("n_items", [2, 1683, 12101, 10**5, 10**6])
@pytest.mark.parametrize("threads", [1, 2, 16, 128])
def test_room_for_scores_is_bounded(n, n_items, threads):
    most, owners = numba_cpu._rows_of_sweep(n, n_items, threads)
    assert most % numba_cpu.LANES == 0 and owners in (1, threads)
    assert most * n_items <= max(2 * numba_cpu.SCORES, numba_cpu.ROWS * n_items)
    assert owners > 1 or threads == 1 or most <= numba_cpu.ROWS  # one block, whose items are shared


def test_fewer_rows_at_once_for_a_very_large_catalogue(monkeypatch):
    hidden, weight, target = inputs(200, 16, 50)
    want = loss_and_gradients(linear_cross_entropy(hidden, weight, target), hidden, weight)
    monkeypatch.setattr(numba_cpu, "VERY_LARGE", 40)
    monkeypatch.setattr(numba_cpu, "FEW_ROWS", 16)
    got = loss_and_gradients(linear_cross_entropy(hidden, weight, target), hidden, weight)
    assert_close(got, want, 1e-6)


def test_the_upstream_gradient_scales_both():
    hidden, weight, target = inputs(20, 8, 30)
    once = loss_and_gradients(linear_cross_entropy(hidden, weight, target), hidden, weight)
    thrice = loss_and_gradients(3 * linear_cross_entropy(hidden, weight, target), hidden, weight)
    assert_close(thrice, [3 * x for x in once], 1e-6)


def test_only_one_side_wants_a_gradient():
    hidden, weight, target = inputs(20, 8, 30)
    want = loss_and_gradients(linear_cross_entropy(hidden, weight, target), hidden, weight)
    hidden.grad = None
    linear_cross_entropy(hidden, weight.detach(), target).backward()
    assert_close([hidden.grad], [want[1]], 1e-6)
    with torch.no_grad():
        assert_close([linear_cross_entropy(hidden, weight, target)], [want[0]], 1e-6)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_low_precision_is_summed_in_float32(dtype):
    hidden, weight, target = inputs(200, 16, 500)
    want = loss_and_gradients(F.cross_entropy(hidden @ weight.T, target), hidden, weight)
    with torch.autocast("cpu", dtype=dtype):
        with pytest.raises(BackendError, match="numba does not fit: .* autocast's dtype"):
            linear_cross_entropy(hidden, weight, target, backend="numba")
        loss = linear_cross_entropy(hidden, weight, target)
    assert loss.dtype == torch.float32
    got = loss_and_gradients(loss, hidden, weight)
    assert got[1].dtype == got[2].dtype == torch.float32
    assert_close(got, want, 0.03)
    low = [x.detach().to(dtype).requires_grad_() for x in (hidden, weight)]
    loss = linear_cross_entropy(*low, target)
    got = loss_and_gradients(loss, *low)
    assert loss.dtype == torch.float32 and got[1].dtype == dtype
    assert_close(got, want, 0.03)


def test_mixed_dtypes_give_each_its_own_gradient():
    hidden, weight, target = inputs(20, 8, 30)
    low = hidden.detach().bfloat16().requires_grad_()
    linear_cross_entropy(low, weight, target).backward()
    assert low.grad.dtype == torch.bfloat16 and weight.grad.dtype == torch.float32


def test_never_holds_all_logits():
    hidden, weight, target = inputs(2048, 64, 12101)
    sizes = []

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            out = function(*args, **(kwargs or {}))
            if isinstance(out, torch.Tensor):
                sizes.append(out.untyped_storage().nbytes())
            return out

    with Watch():
        linear_cross_entropy(hidden, weight, target, some_lists(2048, 12101)).backward()
    assert max(sizes) < 2048 * 12101 * 4 / 10


@pytest.mark.parametrize("where", ["hidden", "weight"])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("width", [8, 16])
def test_a_number_that_is_not_finite_reaches_the_loss(width, where, value):
    hidden, weight, target = inputs(20, width, 30)
    with torch.no_grad():
        (hidden if where == "hidden" else weight)[3, 2] = value
    assert not torch.isfinite(linear_cross_entropy(hidden, weight, target))


@pytest.mark.parametrize("width", [8, 16])
def test_a_target_outside_the_catalogue(width):
    hidden, weight, target = inputs(20, width, 30)
    for wrong in (30, -1):
        target[5] = wrong
        with pytest.raises(IndexError):
            linear_cross_entropy(hidden, weight, target)
    target[5] = -100  # which torch's own leaves out
    with pytest.raises(IndexError, match="targets must be in 0 .. 29, got -100"):
        linear_cross_entropy(hidden, weight, target, backend="naive")


def test_a_block_of_a_gpu_has_a_limit():
    gpu = torch.device("cuda")
    assert blocked.rows_of_block(16_384, 3_000, gpu) == 4096
    assert blocked.rows_of_block(2_048, 3_000, gpu) == 2048  # 25 MB
    assert blocked.rows_of_block(16_384, 10**6, gpu) * 10**6 <= blocked.GPU_MOST
    assert blocked.rows_of_block(10, 10**9, gpu) == 1


@pytest.mark.parametrize("width", [8, 16])
def test_without_gradients_none_are_computed(monkeypatch, width):
    hidden, weight, target = inputs(20, width, 30)
    asked = []

    def products(h, W, wants_grad, as_one):
        asked.append(wants_grad)
        return torch.zeros(len(h)), None, None

    for module in (blocked, numba_cpu):
        monkeypatch.setattr(module, "softmax_products", products)
    with torch.no_grad():
        linear_cross_entropy(hidden, weight.requires_grad_(), target)
    assert asked == [False]


@pytest.mark.parametrize("backend", ["blocked", TRITON])
def test_a_loss_in_half_precision_is_not_negative(backend):
    """Its scores are rounded to 8 bits, 64.3 to 64.5, in the softmax and out of it."""
    weight = torch.linspace(7, 9, 16, device=DEVICE).diag().bfloat16()
    target = torch.arange(16, device=DEVICE)
    assert abs(float(linear_cross_entropy(weight, weight, target, backend=backend))) < 1e-5


@pytest.mark.parametrize(
    "change, message",
    [
        ({"hidden": torch.zeros(2, 3, 8)}, r"hidden must be .n >= 1, width., got .2, 3, 8."),
        ({"hidden": torch.zeros(0, 8)}, r"hidden must be"),
        ({"weight": torch.zeros(30, 7)}, r"weight must be .n_items >= 1, 8. .* got .30, 7."),
        ({"weight": torch.zeros(0, 8)}, r"weight must be .n_items >= 1, 8. .* got .0, 8."),
        ({"target": torch.zeros(19).long()}, r"target must be .20,. item ids, int64, .* .19,."),
        ({"target": torch.zeros(20)}, r"target must be .* torch.float32"),
        ({"target": torch.zeros(20).int()}, r"target must be .* int64.* torch.int32"),
        ({"backend": "fast"}, "unknown backend 'fast'; use auto, numba, triton, blocked, naive"),
        ({"backend": "numba"}, "numba does not fit: it takes widths of a multiple of 16, got 8"),
        (
            {"backend": "numba", "hidden": torch.zeros(20, 8).double()},
            "numba does not fit: it takes float32 only, got torch.float64 and torch.float32",
        ),
    ],
)
def test_what_does_not_fit_is_named(change, message):
    arguments = dict(zip(("hidden", "weight", "target"), inputs(20, 8, 30), strict=True))
    with pytest.raises(BackendError, match=f"linear_cross_entropy: {message}"):
        linear_cross_entropy(**{**arguments, **change})
