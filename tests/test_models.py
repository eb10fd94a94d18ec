import json
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import small
from recbole.data.interaction import Interaction
from triton_interpreter import DEVICE, needs_triton

from recbole_hydra import Config, Hydra, Mamba4Rec
from recbole_hydra.errors import ConfigError, DatasetError
from recbole_hydra.ops import selective_scan, triton_support

PARITY = Path(__file__).with_name("mamba4rec_official_1layer.npz")
MODELS = {"Hydra": Hydra, "Mamba4Rec": Mamba4Rec}


class Items:
    """A dataset, as far as a model asks."""

    def __init__(self, n_items=30):
        self.n_items = n_items

    def num(self, field):
        return self.n_items


def build(model, n_items=30, **changes):
    config = Config(model, "tiny", config_dict=small(model, **changes))
    torch.manual_seed(0)
    return MODELS[model](config, Items(n_items)).eval()


def batch(n_items=30, rows=5, length=12, seed=0):
    """Right-padded sequences with lengths 1 .. length, targets and negatives."""
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(1, length + 1, (rows,), generator=generator)
    lengths[0], lengths[1] = 1, length
    items = torch.randint(1, n_items, (rows, length), generator=generator)
    items[torch.arange(length) >= lengths[:, None]] = 0
    target, negative = torch.randint(1, n_items, (2, rows), generator=generator)
    return Interaction(
        {"item_id_list": items, "item_length": lengths, "item_id": target, "neg_item_id": negative}
    )


# -- Mamba4Rec against the authors' release ------------------------------------------------------


@pytest.fixture(scope="module")
def release():
    return np.load(PARITY)


@pytest.fixture
def released_model(release):
    settings = json.loads(str(release["config"]))
    n_items = settings.pop("n_items")
    model = build("Mamba4Rec", n_items, **settings)
    keys = [key for key in release.files if key.startswith("param/")]
    state = {key.removeprefix("param/"): torch.from_numpy(release[key]) for key in keys}
    model.load_state_dict(state, strict=True)
    return model


@pytest.fixture
def released_batch(release):
    names = {"item_id_list": "item_seq", "item_length": "item_seq_len", "item_id": "pos_items"}
    return Interaction({ours: torch.from_numpy(release[name]) for ours, name in names.items()})


@pytest.mark.parametrize("backend", ["numba", "naive"])
def test_mamba4rec_agrees_with_the_release(release, released_model, released_batch, backend):
    for layer in released_model.mamba_layers:
        layer.mamba.scan_backend = backend
    state = released_model.forward(released_batch["item_id_list"], released_batch["item_length"])
    scores = released_model.full_sort_predict(released_batch)
    np.testing.assert_allclose(state.detach(), release["seq_output"], atol=1e-5)
    np.testing.assert_allclose(scores.detach(), release["full_sort_scores"], atol=1e-5)

    loss = released_model.calculate_loss(released_batch)
    loss.backward()
    assert loss.item() == pytest.approx(float(release["loss"]), abs=1e-5)
    names = [name for name, _ in released_model.named_parameters()]
    assert {f"grad/{name}" for name in names} == {k for k in release.files if k[:5] == "grad/"}
    for name, parameter in released_model.named_parameters():
        np.testing.assert_allclose(parameter.grad, release[f"grad/{name}"], atol=1e-5, err_msg=name)


def test_mamba4rec_initialises_as_released_or_keeps_mambas_own():
    released = build("Mamba4Rec", hidden_size=64)
    mamba = released.mamba_layers[0].mamba
    assert not mamba.dt_proj.bias.any()
    assert mamba.in_proj.weight.std().item() == pytest.approx(0.02, rel=0.1)
    kept = build("Mamba4Rec", hidden_size=64, keep_mamba_init=True)
    mamba = kept.mamba_layers[0].mamba
    assert 0.0009 < float(F.softplus(mamba.dt_proj.bias).min()) < 0.1
    assert mamba.in_proj.weight.std().item() > 0.05
    assert float(kept.mamba_layers[0].ffn.w_1.weight.std()) == pytest.approx(0.02, rel=0.1)


def test_mamba4rec_has_residuals_around_mamba_only_in_stacks():
    for layers in (1, 2):
        model = build("Mamba4Rec", num_layers=layers)
        for layer in model.mamba_layers:
            torch.nn.init.zeros_(layer.mamba.out_proj.weight)
        states = model.encode(batch()["item_id_list"])
        # Without the residual nothing of the items is left: every state is the same.
        assert torch.allclose(states, states[0, 0].expand_as(states)) == (layers == 1)


# -- Hydra against the equations, head by head ---------------------------------------------------


def hydra_written_out(model, item_seq, heads, head_dim, rope_base=10_000.0):
    """Hydra's states by the paper's equations, one head and one position at a time."""

    def rms(x, norm):
        return x / torch.sqrt((x**2).mean(-1, keepdim=True) + norm.eps) * norm.weight

    def rope(z):
        half = head_dim // 2
        out = z.clone()
        for t in range(z.shape[1]):
            for i in range(half):
                angle = torch.tensor(t * rope_base ** (-2 * i / head_dim), dtype=z.dtype)
                a, b = z[:, t, i], z[:, t, i + half]
                out[:, t, i] = a * angle.cos() - b * angle.sin()
                out[:, t, i + half] = a * angle.sin() + b * angle.cos()
        return out

    def mamba(m, i, x):
        d_inner = m.in_proj.shape[1] // 2
        rows = slice(i * d_inner, (i + 1) * d_inner)
        signal, gate = (x @ m.in_proj[i].T).chunk(2, -1)
        width = m.conv_weight.shape[1]
        padded = F.pad(signal, (0, 0, width - 1, 0))
        conv = torch.stack(
            [
                sum(padded[:, t + k] * m.conv_weight[rows, k] for k in range(width))
                for t in range(x.shape[1])
            ],
            1,
        )
        signal = F.silu(conv + m.conv_bias[rows])
        d_state = m.A_log.shape[1]
        dt, B, C = (signal @ m.x_proj[i].T).split([m.sizes[0], d_state, d_state], -1)
        B, C = B + m.BC_bias[i, :d_state], C + m.BC_bias[i, d_state:]
        delta = F.softplus(dt @ m.dt_proj[i].T + m.dt_bias[rows])
        y = selective_scan(
            signal, delta, -torch.exp(m.A_log[rows]), B[:, :, None], C[:, :, None], m.D[rows],
            backend="naive",
        )  # fmt: skip
        return (y * F.silu(gate)) @ m.out_proj[i].T

    H = rms(model.item_embedding(item_seq), model.item_norm)
    for layer in model.layers:
        Ht = rms(H, layer.input_norm)
        X, Z = F.silu(Ht @ layer.W_X.weight.T), F.silu(Ht @ layer.W_Z.weight.T)
        Ys, Zs = [], []
        for i in range(heads):
            columns = slice(i * head_dim, (i + 1) * head_dim)
            Ys.append(mamba(layer.mamba, i, X[..., columns]))
            Zs.append(rope(Z[..., columns]))
        Y = rms(torch.cat(Ys, -1), layer.y_norm[1])
        H = H + (Y * torch.cat(Zs, -1)) @ layer.W_O.weight.T + Y @ layer.W_Y.weight.T
        inner = rms(H, layer.ffn_norm)
        H = H + F.gelu(inner @ layer.ffn.w_1.weight.T) @ layer.ffn.w_2.weight.T
    return rms(H, model.output_norm)


@pytest.mark.parametrize("heads, expand", [(1, 1), (1, 2), (4, 1), (3, 2)])
def test_hydra_is_its_equations(heads, expand):
    model = build("Hydra", num_heads=heads, head_dim=6, expand=expand, initializer_range=0.3)
    item_seq = batch()["item_id_list"]
    got32 = model.encode(item_seq)
    model.double()
    want = hydra_written_out(model, item_seq, heads, 6)
    torch.testing.assert_close(model.encode(item_seq), want)
    torch.testing.assert_close(got32.double(), want, atol=1e-4, rtol=1e-3)  # through numba


@pytest.mark.parametrize(
    "open_choice",
    [
        {"ffn_type": "swiglu"},
        {"y_norm": "head_rms"},
        {"y_norm": "none"},
        {"history_path": False},
        {"mamba_start": "mamba"},
        {"rope_base": None},
        {"tie_embeddings": False},
        {"expand": 2},
        {"output_norm": False},
    ],
)
def test_hydras_open_choices_change_the_model_and_train(open_choice):
    usual, changed = build("Hydra"), build("Hydra", **open_choice)
    data = batch()
    assert not torch.allclose(usual.full_sort_predict(data), changed.full_sort_predict(data))
    changed.train().calculate_loss(data).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in changed.parameters())


def test_dropout_is_where_it_is_said_to_be():
    item_seq = batch()["item_id_list"]
    for places in ([], ["item"], ["mamba"], ["ffn"], ["output"]):
        model = build("Hydra", dropout_prob=0.5, dropout_places=places)
        still = model.encode(item_seq)
        assert torch.equal(model.train().encode(item_seq), still) == (not places)


def test_dropout_elsewhere():
    with pytest.raises(ConfigError, match="dropout_places must be one of .*, output, .*'gate'"):
        build("Hydra", dropout_places=["item", "gate"])


# -- both models ---------------------------------------------------------------------------------


@pytest.mark.parametrize("model", MODELS)
def test_a_state_sees_only_what_precedes_it(model):
    model = build(model, num_layers=2)
    one, other = torch.randint(1, 30, (2, 3, 12))
    other[:, :7] = one[:, :7]
    a, b = model.encode(one), model.encode(other)
    torch.testing.assert_close(a[:, :7], b[:, :7])
    assert not torch.allclose(a[:, 7:], b[:, 7:])


@pytest.mark.parametrize("model", MODELS)
def test_the_last_states_are_computed_without_most_of_the_padding(model, monkeypatch):
    model = build(model, MAX_ITEM_LIST_LENGTH=50).eval()
    length = torch.tensor([50, 1, 4, 5, 8, 9, 16, 17, 3, 2])
    item_seq = torch.randint(1, 21, (len(length), 50), generator=torch.Generator().manual_seed(0))
    item_seq = item_seq * (torch.arange(50) < length[:, None])
    whole = model.encode(item_seq)[torch.arange(len(length)), length - 1]
    encode, positions = model.encode, []
    monkeypatch.setattr(
        model, "encode", lambda seq, **kw: positions.append(seq.numel()) or encode(seq, **kw)
    )
    assert torch.allclose(model.forward(item_seq, length), whole, atol=1e-6)
    assert positions == [4 * 4, 2 * 8, 2 * 16, 17, 50]


@pytest.mark.parametrize("model", MODELS)
def test_padding_does_not_matter(model):
    model, data = build(model), batch()
    scores = model.full_sort_predict(data)
    for row in range(5):
        length = int(data["item_length"][row])
        alone = Interaction(
            {
                "item_id_list": data["item_id_list"][row : row + 1, :length],
                "item_length": data["item_length"][row : row + 1],
            }
        )
        torch.testing.assert_close(model.full_sort_predict(alone)[0], scores[row])


@pytest.mark.parametrize("model", MODELS)
def test_predict_is_a_column_of_full_sort_predict(model):
    model, data = build(model), batch()
    want = model.full_sort_predict(data)[torch.arange(5), data["item_id"]]
    torch.testing.assert_close(model.predict(data), want)


@pytest.mark.parametrize("model", MODELS)
def test_losses_are_the_textbooks(model):
    data = batch()
    each = {"history_as_one": False} if model == "Hydra" else {}
    for loss_type in ("CE", "BPR"):
        net = build(model, loss_type=loss_type, **each)
        scores, rows = net.full_sort_predict(data), torch.arange(5)
        if loss_type == "CE":
            want = -F.log_softmax(scores, -1)[rows, data["item_id"]].mean()
        else:
            margin = scores[rows, data["item_id"]] - scores[rows, data["neg_item_id"]]
            want = -F.logsigmoid(margin).mean()
        torch.testing.assert_close(net.calculate_loss(data), want)


@pytest.mark.parametrize("model", MODELS)
def test_every_parameter_gets_a_gradient(model):
    model = build(model, num_layers=2)
    model.train().calculate_loss(batch()).backward()
    missing = [n for n, p in model.named_parameters() if p.grad is None or not p.grad.any()]
    assert missing == []


SIZES = ["hidden_size", "num_layers", "d_state", "d_conv", "expand"]


@pytest.mark.parametrize("bad", [0, -3, 2.5])
@pytest.mark.parametrize(
    "model, name",
    [("Mamba4Rec", name) for name in SIZES]
    + [("Hydra", name) for name in [*SIZES, "num_heads", "head_dim", "ffn_size"]],
)
def test_sizes_must_be_positive_integers(model, name, bad):
    with pytest.raises(ConfigError, match=f"{name} must be a positive integer, got {bad}"):
        build(model, **{name: bad})


@pytest.mark.parametrize("rope_base", [10_000.0, None])
def test_an_odd_head_dim_is_refused(rope_base):
    with pytest.raises(ConfigError, match="head_dim must be even"):
        build("Hydra", head_dim=7, rope_base=rope_base)


@pytest.mark.parametrize("bad", [-0.1, 1, 1.5])
@pytest.mark.parametrize("model", MODELS)
def test_dropout_must_be_a_probability(model, bad):
    with pytest.raises(ConfigError, match=r"dropout_prob must be a number in \[0, 1\)"):
        build(model, dropout_prob=bad)


@pytest.mark.parametrize("key", ["ffn_type", "y_norm", "scan_backend"])
def test_unknown_choices_are_listed(key):
    with pytest.raises(ConfigError, match=f"{key} must be one of .*, got 'x'"):
        build("Hydra", **{key: "x"})


def test_a_missing_key_names_the_default_config():
    class PlainConfig(dict):
        def __getitem__(self, key):
            return self.get(key)

    config = PlainConfig(Config("Hydra", "tiny", config_dict=small("Hydra")).final_config_dict)
    del config["num_heads"]
    with pytest.raises(ConfigError, match=r"Hydra needs the config key 'num_heads'.*default"):
        Hydra(config, Items())


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("bad", [-1, 30, 10**9])
def test_ids_out_of_range_are_refused_at_predict(model, bad):
    model = build(model)
    for field in ("item_id_list", "item_id"):
        data = batch()
        data[field].view(-1)[-1] = bad
        with pytest.raises(DatasetError, match=rf"{field}: item ids must be in 0 .. 29, got {bad}"):
            model.predict(data)
    data = batch()
    data["item_length"][0] = 0
    with pytest.raises(DatasetError, match="item_length: every sequence needs 1 to 12 items"):
        model.full_sort_predict(data)


def test_a_named_backend_that_is_missing_says_what_to_install():
    model = build("Hydra", scan_backend="mamba_ssm")
    with pytest.raises(ValueError, match="mamba_ssm.*pip install.*recbole-hydra\\[cuda\\]"):
        model.full_sort_predict(batch())


@needs_triton
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("model", ["Hydra", "Mamba4Rec"])
def test_torch_compile_has_no_graph_break_in_a_layer(model, training, monkeypatch):
    monkeypatch.setattr(triton_support, "automatic", lambda backends, device: ["triton"])
    recommender = build(model, scan_backend="triton")
    layers = recommender.layers if model == "Hydra" else recommender.mamba_layers
    layer = layers[0].to(DEVICE).train(training)
    states = torch.randn(2, 7, 16, generator=torch.Generator().manual_seed(0)).to(DEVICE)
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    results = []
    for function in (layer, compiled):
        torch.manual_seed(0)
        H = states.clone().requires_grad_()
        out = function(H)
        parameters = [H, *layer.parameters()]
        results.append([out, *torch.autograd.grad((out**2).sum(), parameters)])
    if training:  # dropout draws other numbers in a compiled graph
        return
    for eager, other in zip(*results, strict=True):
        torch.testing.assert_close(other, eager)
