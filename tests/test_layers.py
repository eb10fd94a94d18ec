import math

import pytest
import torch
import torch.nn.functional as F

from recbole_hydra.errors import ConfigError
from recbole_hydra.layers import Dropout, Mamba, MultiHeadMamba, RotaryPositions


def mamba_written_out(
    x, in_proj, conv_w, conv_b, x_proj, dt_w, dt_b, A_log, D, out_proj, B_bias=0.0, C_bias=0.0
):
    """The Mamba block of the paper, one sequence position after the other."""
    batch, length, _ = x.shape
    d_inner, width = conv_w.shape
    rank, d_state = dt_w.shape[1], A_log.shape[1]
    h = torch.zeros(batch, d_inner, d_state, dtype=x.dtype)
    inner = x @ in_proj.T
    signal, gate = inner[..., :d_inner], inner[..., d_inner:]
    out = []
    for t in range(length):
        window = [signal[:, s] if s >= 0 else 0 * signal[:, 0] for s in range(t - width + 1, t + 1)]
        s = F.silu(sum(w * conv_w[:, k] for k, w in enumerate(window)) + conv_b)
        projected = s @ x_proj.T
        dt, B, C = projected.split([rank, d_state, d_state], dim=-1)
        B, C = B + B_bias, C + C_bias
        delta = F.softplus(dt @ dt_w.T + dt_b)
        h = torch.exp(delta[..., None] * -torch.exp(A_log)) * h
        h = h + delta[..., None] * B[:, None] * s[..., None]
        y = (h * C[:, None]).sum(-1) + D * s
        out.append((y * F.silu(gate[:, t])) @ out_proj.T)
    return torch.stack(out, 1)


def test_mamba_is_the_papers_block():
    torch.manual_seed(0)
    block = Mamba(20, d_state=4, d_conv=3, expand=2).double()
    x = torch.randn(2, 9, 20, dtype=torch.float64)
    want = mamba_written_out(
        x, block.in_proj.weight, block.conv1d.weight[:, 0], block.conv1d.bias, block.x_proj.weight,
        block.dt_proj.weight, block.dt_proj.bias, block.A_log, block.D, block.out_proj.weight,
    )  # fmt: skip
    torch.testing.assert_close(block(x), want)


@pytest.mark.parametrize("start", ["mamba", "memory"])
@pytest.mark.parametrize("heads, expand", [(1, 2), (4, 1), (5, 2)])
def test_each_head_is_a_mamba(heads, expand, start):
    torch.manual_seed(0)
    layer = MultiHeadMamba(heads, 6, d_state=4, d_conv=3, expand=expand, start=start).double()
    biases = [()] * heads
    if start == "memory":
        torch.nn.init.normal_(layer.BC_bias)
        biases = [bias.chunk(2) for bias in layer.BC_bias]
    X = torch.randn(2, 9, heads, 6, dtype=torch.float64)
    Y = layer(X)
    assert Y.shape == X.shape
    for i in range(heads):
        rows = slice(i * 6 * expand, (i + 1) * 6 * expand)
        want = mamba_written_out(
            X[:, :, i], layer.in_proj[i], layer.conv_weight[rows], layer.conv_bias[rows],
            layer.x_proj[i], layer.dt_proj[i], layer.dt_bias[rows], layer.A_log[rows],
            layer.D[rows], layer.out_proj[i], *biases[i],
        )  # fmt: skip
        torch.testing.assert_close(Y[:, :, i], want)


def test_one_head_has_the_parameters_of_a_mamba():
    mamba, heads = Mamba(16, expand=1), MultiHeadMamba(1, 16, expand=1)
    count = lambda m: sum(p.numel() for p in m.parameters())  # noqa: E731
    assert count(mamba) == count(heads)


def test_step_sizes_start_between_their_bounds():
    torch.manual_seed(0)
    for bias in (Mamba(64).dt_proj.bias, MultiHeadMamba(4, 16).dt_bias):
        dt = F.softplus(bias.detach())
        assert 0.99e-3 <= float(dt.min()) and float(dt.max()) <= 0.101
        assert float(dt.max()) / float(dt.min()) > 5


def test_with_a_memory_early_inputs_reach_the_output():
    def reach(start):
        torch.manual_seed(0)
        layer = MultiHeadMamba(4, 16, start=start)
        X = torch.randn(1, 12, 4, 16, requires_grad=True)
        layer(X)[0, -1].square().sum().backward()
        strength = X.grad[0].flatten(1).norm(dim=1)
        return float(strength[0] / strength[-1])  # of the first input, to that of the last

    assert reach("memory") > 5 * reach("mamba")
    dt = F.softplus(MultiHeadMamba(4, 16, start="memory").dt_bias.detach())
    assert 0.99e-2 <= float(dt.min()) and float(dt.max()) <= 1.01
    with pytest.raises(ConfigError, match="mamba_start must be one of memory, mamba, got 'old'"):
        MultiHeadMamba(4, 16, start="old")


def test_float32_runs_on_numba_and_agrees_with_float64():
    torch.manual_seed(0)
    block = MultiHeadMamba(3, 8, scan_backend="numba")
    x = torch.randn(2, 30, 3, 8)
    got = block(x)
    block.scan_backend = "naive"
    torch.testing.assert_close(got.double(), block.double()(x.double()), atol=1e-5, rtol=1e-4)


def test_rotary_inner_products_depend_on_distance_only():
    rope = RotaryPositions(8)
    q, k = torch.randn(1, 1, 1, 8), torch.randn(1, 1, 1, 8)
    products = [float((rope(q, offset=t + 5) * rope(k, offset=t)).sum()) for t in (0, 1, 7, 300)]
    assert products == pytest.approx([products[0]] * 4, abs=1e-3)


def test_rotary_tells_positions_apart_in_a_model_of_half_precision():
    x = torch.ones(1, 1, 1, 4)
    half = torch.nn.Sequential(RotaryPositions(4)).bfloat16()[0](x.bfloat16(), offset=301)
    torch.testing.assert_close(half.float(), RotaryPositions(4)(x, offset=301), atol=0.02, rtol=0)


def test_rotary_turns_pairs_by_the_papers_angles():
    rope = RotaryPositions(4, base=100.0)
    x = torch.tensor([1.0, 1.0, 0.0, 0.0]).expand(1, 3, 1, 4)
    y = rope(x)[0, :, 0]
    for t in range(3):
        angles = [t, t / 10]  # base^0, base^(-1/2)
        want = [math.cos(a) for a in angles] + [math.sin(a) for a in angles]
        assert y[t].tolist() == pytest.approx(want, abs=1e-6)


def test_rotary_offset_continues_positions():
    rope, x = RotaryPositions(4), torch.randn(2, 7, 3, 4)
    both = torch.cat([rope(x[:, :4]), rope(x[:, 4:], offset=4)], dim=1)
    torch.testing.assert_close(both, rope(x))


@pytest.mark.parametrize("bad", [0, -1, 1.5, "8", True, None])
@pytest.mark.parametrize("name", ["d_state", "d_conv", "expand"])
def test_sizes_must_be_positive_integers(name, bad):
    with pytest.raises(ConfigError, match=f"{name} must be a positive integer, got {bad!r}"):
        Mamba(8, **{name: bad})
    with pytest.raises(ConfigError, match=f"{name} must be a positive integer, got {bad!r}"):
        MultiHeadMamba(2, 8, **{name: bad})


def test_an_odd_head_cannot_be_rotated():
    with pytest.raises(ConfigError, match="head_dim must be even.*got 7"):
        RotaryPositions(7)
    with pytest.raises(ConfigError, match="rope_base must be a positive number"):
        RotaryPositions(8, base=0)


@pytest.mark.parametrize("p", [0.0, 0.2, 0.5, 0.999999])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_dropout_drops_its_share_and_keeps_the_mean(p, dtype):
    layer, x = Dropout(p), torch.ones(333, 301, dtype=dtype, requires_grad=True)
    torch.manual_seed(0)
    y = layer(x)
    assert y.dtype == dtype and y.shape == x.shape
    assert float((y.detach() == 0).float().mean()) == pytest.approx(p, abs=0.005)
    if p < 0.9:
        assert float(y.detach().float().mean()) == pytest.approx(1.0, abs=0.01)
    assert len(y.unique()) <= 2  # every kept element has the same scale
    y.sum().backward()
    assert torch.equal(x.grad, y.detach())  # of ones, the gradient is the mask with its scale
    torch.manual_seed(0)
    assert torch.equal(layer(x), y)
    assert not torch.equal(layer(x), y) or p in (0.0, 0.999999)
    assert torch.equal(layer.eval()(x), x)


def test_dropout_does_not_repeat_itself():
    torch.manual_seed(0)
    dropped = Dropout(0.5)(torch.ones(64, 64)) == 0
    # Neighbouring elements share a draw of the generator: they must not agree more than by chance.
    for step in (1, 2, 3, 4, 64):
        same = (dropped.flatten()[step:] == dropped.flatten()[:-step]).float().mean()
        assert float(same) == pytest.approx(0.5, abs=0.04)


@pytest.mark.parametrize("layer", ["Mamba", "MultiHeadMamba"])
@pytest.mark.parametrize("cuts", [(1,), (3, 5), (2, 2, 2, 2)])
def test_a_state_carries_a_layer_from_piece_to_piece(layer, cuts):
    torch.manual_seed(0)
    if layer == "Mamba":
        module, x = Mamba(16, d_state=3), torch.randn(2, 9, 16)
    else:
        module, x = MultiHeadMamba(2, 8, d_state=3), torch.randn(2, 9, 2, 8)
    whole = module(x)
    state, pieces = module.initial_state(2), []
    for piece in x.split([*cuts, 9 - sum(cuts)], dim=1):
        y, state = module(piece, state)
        pieces.append(y)
    assert torch.allclose(torch.cat(pieces, dim=1), whole, atol=1e-6)


def test_rotary_positions_with_an_offset_per_row():
    x = torch.randn(3, 5, 2, 8)
    rotary = RotaryPositions(8)
    offset = torch.tensor([0, 7, 100])
    rows = [rotary(x[i : i + 1], int(offset[i])) for i in range(3)]
    assert torch.allclose(rotary(x, offset), torch.cat(rows), atol=1e-6)


@pytest.mark.parametrize("positions", [(2, 3), (7, 5), (40,)])
def test_the_gradient_of_a_head_is_summed_in_parts_on_a_gpu(monkeypatch, positions):
    from recbole_hydra.layers import mamba

    monkeypatch.setattr(mamba, "PART", 8)
    generator = torch.Generator().manual_seed(0)
    x, weight = (
        torch.randn(*size, generator=generator, dtype=torch.float64, requires_grad=True)
        for size in ((*positions, 3, 4), (3, 5, 4))
    )
    want = mamba._per_head(x, weight)
    got = mamba._PerHead.apply(x, weight)
    assert torch.equal(got, want)
    for a, b in zip(
        torch.autograd.grad(got, (x, weight), got.cos()),
        torch.autograd.grad(want, (x, weight), got.cos()),
        strict=True,
    ):
        torch.testing.assert_close(a, b)


def test_prefixes_of_similar_length_go_together():
    from recbole_hydra.model.sequential_recommender.base import similar_lengths

    length = torch.tensor([1, 300, 4, 5, 16, 17, 64, 65, 200, 2])
    groups = [length[rows].tolist() for rows in similar_lengths(length)]
    assert groups == [[1, 4, 2], [5], [16], [17], [64], [65], [200], [300]]
