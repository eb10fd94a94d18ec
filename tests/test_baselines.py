"""The baselines of ``benchmarks/baselines``: against their equations, and in runs."""

import importlib.util
import math
from pathlib import Path

import pytest
import torch
import yaml
from conftest import small

from recbole_hydra import Config, run_recbole_hydra
from recbole_hydra.compare import Comparison, compare
from recbole_hydra.data import create_dataset, split_dataset
from recbole_hydra.errors import ConfigError
from recbole_hydra.model.causal import check_causal, is_causal
from recbole_hydra.model.from_file import class_in_file
from recbole_hydra.training.window_loss import WindowLoss

BASELINES = Path(__file__).parents[1] / "benchmarks" / "baselines"
NAMES = {
    name: f"{BASELINES / file}:{name}"
    for name, file in (("BSARec", "bsarec.py"), ("eSASRec", "esasrec.py"), ("LRURec", "lrurec.py"))
}
CAUSAL = ("eSASRec", "LRURec")


def settings(name, **changes):
    """A run's settings: the published ones, made small."""
    published = yaml.safe_load((BASELINES / f"{name}.yaml").read_text())
    own = {"layer_norm_eps": 1e-12, "train_batch_size": 256, **({"n_layers": 2})}
    tiny = {**small(name), "eval_step": 1, "num_negatives": 10, "inner_size": 32}
    known = {key: value for key, value in tiny.items() if key in published or key in small(name)}
    kept = {key: value for key, value in published.items() if key not in ("layer_norm_eps",)}
    return {**kept, **known, **{k: v for k, v in own.items() if k in published}, **changes}


def module_of(name):
    return __import__("sys").modules[class_in_file(NAMES[name]).__module__]


@pytest.fixture(scope="module")
def made():
    """A model of each class on the tiny dataset, once."""
    models = {}

    def make(name, **changes):
        key = name, tuple(changes.items())
        if key not in models:
            torch.manual_seed(3)
            config = Config(NAMES[name], "tiny", config_dict=settings(name, **changes))
            loaders = split_dataset(config, create_dataset(config))
            model = config.model_class(config, loaders[0]._dataset)
            models[key] = config, model, loaders
        return models[key]

    return make


def random_rows(model, rows=4):
    """Items padded on the right, and how many there are."""
    length = torch.randint(1, model.max_seq_length + 1, (rows,))
    items = torch.randint(1, model.n_items, (rows, model.max_seq_length))
    return items * (torch.arange(model.max_seq_length) < length[:, None]), length


# -- in runs ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_it_learns_with_its_published_settings(name):
    changes = {"dropout_prob": 0.1, "hidden_dropout_prob": 0.1, "lru_dropout_prob": 0.1}
    published = settings(name)
    changes = {key: value for key, value in changes.items() if key in published}
    result = run_recbole_hydra(
        NAMES[name], "tiny", saved=False, config_dict=settings(name, epochs=3, **changes)
    )
    first, *_, last = (entry["train_loss"] for entry in result["history"])
    assert last < first and 0 <= result["test_result"]["ndcg@10"] <= 1


@pytest.mark.parametrize("name", NAMES)
def test_every_setting_of_its_yaml_is_read(name):
    config = Config(NAMES[name], "tiny", config_file_list=[str(BASELINES / f"{name}.yaml")])
    assert not any("does not read" in note for note in config.notes)
    assert config["training_mode"] == ("autoregressive" if name in CAUSAL else "augmentation")


def test_in_a_comparison():
    Path("eSASRec.yaml").write_text(yaml.safe_dump(settings("eSASRec", epochs=1)))
    compare(
        [NAMES["eSASRec"]], "tiny", seeds=[1], output_dir="out", popularity=False,
        model_config={"eSASRec": ["eSASRec.yaml"]},
        config_dict={"data_path": settings("eSASRec")["data_path"]},
    )  # fmt: skip
    table = Comparison("out").to_pandas().set_index("model")
    assert table["status"]["eSASRec"] == "ok"


@pytest.mark.parametrize("name", NAMES)
def test_shapes_and_scores(made, name):
    _, model, _ = made(name)
    model.eval()
    items, length = random_rows(model)
    candidates = torch.randint(1, model.n_items, (len(items),))
    batch = {model.ITEM_SEQ: items, model.ITEM_SEQ_LEN: length, model.ITEM_ID: candidates}
    scores = model.full_sort_predict(batch)
    assert scores.shape == (len(items), model.n_items)
    own = scores.gather(1, candidates[:, None]).squeeze(1)
    torch.testing.assert_close(model.predict(batch), own)


@pytest.mark.parametrize("name", CAUSAL)
def test_it_is_causal(made, name):
    config, model, _ = made(name)
    assert is_causal(type(model)) and config["training_mode"] == "autoregressive"
    check_causal(model, model.max_seq_length)


def test_bsarec_is_refused_on_every_position(made):
    with pytest.raises(ConfigError, match="training_mode: autoregressive is for .* not for BSARec"):
        Config(
            NAMES["BSARec"], "tiny", config_dict=settings("BSARec", training_mode="autoregressive")
        )


@pytest.mark.parametrize(
    "name, changes, message",
    [
        ("BSARec", {"alpha": 1.5}, "alpha"),
        ("BSARec", {"loss_type": "BPR"}, "loss_type"),
        ("BSARec", {"c": 0}, "c must be a positive"),
        ("BSARec", {"n_heads": 3}, "n_heads: 3 heads do not divide hidden_size 16"),
        ("BSARec", {"alpha": None}, "BSARec needs the config key 'alpha'; its published settings"),
        ("eSASRec", {"n_heads": 3}, "n_heads: 3 heads do not divide hidden_size 16"),
        ("eSASRec", {"loss_type": "CE"}, "own_negatives: for loss_type SampledCE, not CE"),
        ("eSASRec", {"dropout_prob": 2}, "dropout_prob"),
        ("LRURec", {"lru_dropout_prob": -1}, "lru_dropout_prob"),
        ("LRURec", {"loss_type": "BPR"}, "LRURec predicts first items, too; use CE or SampledCE"),
        ("LRURec", {"n_layers": 0}, "n_layers must be a positive"),
    ],
)
def test_settings_that_cannot_be_are_one_line(made, name, changes, message):
    with pytest.raises(ConfigError, match=message) as caught:
        made(name, **changes)
    assert "\n" not in str(caught.value)


# -- BSARec ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("length", [1, 2, 7, 12, 50])
@pytest.mark.parametrize("c", [1, 3, 5, 9])
def test_low_frequencies_are_those_of_a_fourier_transform(length, c):
    module, kept = module_of("BSARec"), c // 2 + 1
    layer = module.Filter(length, 6, kept, 0.0, 1e-12)
    H = torch.randn(3, length, 6)
    spectrum = torch.fft.rfft(H, dim=1, norm="ortho")
    spectrum[:, kept:] = 0
    low = torch.fft.irfft(spectrum, n=length, dim=1, norm="ortho")
    torch.testing.assert_close(layer.low(H), low, atol=1e-5, rtol=1e-4)
    # The same by the sums of the transform's definition.
    dense = torch.zeros(3, length, 6, dtype=torch.complex128)
    for k in [k for k in range(length) if min(k, length - k) < kept]:
        wave = torch.exp(2j * math.pi * k * torch.arange(length, dtype=torch.float64) / length)
        dense += (
            wave[:, None]
            * torch.einsum("t,btd->bd", wave.conj(), H.double() + 0j)[:, None]
            / length
        )
    torch.testing.assert_close(layer.low(H), dense.real.float(), atol=1e-5, rtol=1e-4)
    expected = layer.norm(H + low + layer.beta**2 * (H - low))
    torch.testing.assert_close(layer(H), expected, atol=1e-4, rtol=1e-4)


def naive_bsarec(model, item_seq, length):
    """The state of one row, layer by layer at all positions, attention pair by pair."""
    size = model.max_seq_length
    row = torch.zeros(size, dtype=torch.long)
    if length:
        row[size - length :] = item_seq[:length]
    H = model.norm(model.item_embedding(row) + model.position_embedding.weight)
    for layer in model.layers:
        attention = layer.attention
        Q, K, V = attention.query(H), attention.key(H), attention.value(H)
        mixed = torch.zeros_like(H)
        d = H.shape[1] // attention.heads
        for head in range(attention.heads):
            own = slice(head * d, (head + 1) * d)
            for t in range(size):
                scores = torch.stack(
                    [
                        Q[t, own] @ K[s, own] / d**0.5 - (0 if s <= t and row[s] > 0 else 10000)
                        for s in range(size)
                    ]
                )
                mixed[t, own] = torch.softmax(scores, 0) @ V[:, own]
        attended = attention.norm(H + attention.dense(mixed))
        Z = layer.alpha * layer.filter(H[None])[0] + (1 - layer.alpha) * attended
        H = layer.ffn.norm(Z + layer.ffn.outer(torch.nn.functional.gelu(layer.ffn.inner(Z))))
    return H[-1]


@pytest.mark.parametrize("heads", [1, 2])
def test_bsarec_is_its_equations(made, heads):
    _, model, _ = made("BSARec", n_heads=heads)
    model.eval()
    items, length = random_rows(model, 3)
    items[0], length[0] = 0, 0  # a row of padding alone
    got = model.forward(items, length)
    for row in range(3):
        expected = naive_bsarec(model, items[row], int(length[row]))
        torch.testing.assert_close(got[row], expected, atol=1e-4, rtol=1e-4)


def test_bsarec_does_not_depend_on_how_far_rows_are_padded(made):
    _, model, _ = made("BSARec")
    model.eval()
    items, length = random_rows(model)
    items, length = items[:, :5], length.clamp_max(5)
    wide = torch.cat([items, torch.zeros(4, 7, dtype=torch.long)], dim=1)
    torch.testing.assert_close(model.forward(items, length), model.forward(wide, length))


@pytest.mark.parametrize("predicted", [True, False])
def test_first_items_are_rows_of_the_loss(made, predicted):
    _, model, _ = made("BSARec", predict_first_item=predicted)
    model.eval()
    items, length = random_rows(model)
    length[:2] = 1
    items[:2, 1:] = 0
    targets = torch.randint(1, model.n_items, (4,))
    batch = {model.ITEM_SEQ: items, model.ITEM_SEQ_LEN: length, model.POS_ITEM_ID: targets}
    rows, wanted = [(items[r], int(length[r])) for r in range(4)], targets.tolist()
    if predicted:
        rows += [(items[r], 0) for r in range(2)]
        wanted += items[:2, 0].tolist()
    states = torch.stack([naive_bsarec(model, *row) for row in rows])
    scores = states @ model.item_embedding.weight.T
    expected = torch.nn.functional.cross_entropy(scores, torch.tensor(wanted))
    torch.testing.assert_close(model.calculate_loss(batch), expected, atol=1e-4, rtol=1e-4)


# -- eSASRec ---------------------------------------------------------------------------------------


def test_ligr_layers_are_their_equations(made):
    _, model, _ = made("eSASRec", n_heads=2)
    model.eval()
    items = torch.randint(1, model.n_items, (2, 6))
    H = model.item_embedding(items) + model.position_embedding.weight[:6]
    for layer in model.layers:
        X, width = layer.attention_norm(H), H.shape[-1]
        Q, K, V = layer.attention.projection(X).split(width, dim=-1)
        mixed = torch.zeros_like(H)
        for t in range(6):
            for own in (slice(0, width // 2), slice(width // 2, width)):
                scores = torch.einsum("bd,bsd->bs", Q[:, t, own], K[:, : t + 1, own])
                weights = torch.softmax(scores / (width // 2) ** 0.5, dim=1)
                mixed[:, t, own] = torch.einsum("bs,bsd->bd", weights, V[:, : t + 1, own])
        H = H + torch.sigmoid(layer.attention_gate(H)) * layer.attention.dense(mixed)
        X, swiglu = layer.swiglu_norm(H), layer.swiglu
        fed = swiglu.down(swiglu.gate(X) * torch.sigmoid(swiglu.gate(X)) * swiglu.up(X))
        H = H + torch.sigmoid(layer.swiglu_gate(H)) * fed
    torch.testing.assert_close(model.states(items), H, atol=1e-5, rtol=1e-4)


def test_esasrec_starts_and_samples_as_published(made):
    _, model, _ = made("eSASRec")
    assert not model.logq_correction and model.loss_type == "SampledCE"
    table = model.item_embedding.weight
    assert float(table.std()) == pytest.approx((2 / sum(table.shape)) ** 0.5, rel=0.1)
    assert not bool(model.layers[0].attention.projection.bias.any())


@pytest.mark.parametrize("width", [16, 2])
def test_each_target_has_negatives_of_its_own(made, width, monkeypatch):
    """Both ways to compute the scores, by the number of items and of draws."""
    _, model, _ = made("eSASRec", hidden_size=width)
    states, targets = torch.randn(5, width), torch.randint(1, model.n_items, (5,))
    drawn = torch.randint(1, model.n_items, (5, 10))
    monkeypatch.setattr(torch, "randint", lambda low, high, shape, device: drawn)
    table = model.item_embedding.weight
    s = torch.einsum("td,tkd->tk", states, table[torch.cat([targets[:, None], drawn], 1)])
    expected = (torch.logsumexp(s, 1) - s[:, 0]).mean()
    torch.testing.assert_close(model.target_loss(states, targets, None), expected)


def test_negatives_may_be_shared(made):
    _, model, loaders = made("eSASRec", own_negatives=False)
    batch = next(iter(loaders[0]))
    items, targets = batch[model.ITEM_SEQ], batch[model.POS_ITEM_ID].flatten()
    kept = targets.nonzero().squeeze(1)
    with model.step(items, targets[kept], None):
        states = model.encode(items, keep=kept)
        loss = model.target_loss(states, targets[kept], (items, kept))
    assert loss > 0 and loss.requires_grad


# -- LRURec ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("length", [2, 3, 8, 13])
def test_the_scan_is_the_recurrence(length):
    u = torch.randn(2, length, 5, dtype=torch.complex128, requires_grad=True)
    eigenvalues = torch.polar(torch.rand(5).double(), 6 * torch.rand(5).double()).requires_grad_()
    h, steps = torch.zeros(2, 5, dtype=torch.complex128), []
    for t in range(length):
        h = eigenvalues * h + u[:, t]
        steps.append(h)
    expected, got = torch.stack(steps, 1), module_of("LRURec").scan(u, eigenvalues)
    torch.testing.assert_close(got, expected)
    weight = torch.randn_like(expected)
    for ours, theirs in zip(
        torch.autograd.grad((got * weight).sum().real, (u, eigenvalues)),
        torch.autograd.grad((expected * weight).sum().real, (u, eigenvalues)),
        strict=True,
    ):
        torch.testing.assert_close(ours, theirs)


def test_an_lru_is_its_complex_equations():
    lru = module_of("LRURec").LRU(4)
    X = torch.randn(2, 6, 4)
    B, b = torch.complex(*lru.into.weight.chunk(2)), torch.complex(*lru.into.bias.chunk(2))
    real, imaginary = lru.out.weight.chunk(2, dim=1)
    C = torch.complex(real, -imaginary)  # Re(C h) = Re C Re h - Im C Im h
    eigenvalues = torch.exp(-torch.exp(lru.nu) + 1j * torch.exp(lru.theta))
    h, states = torch.zeros(2, 8, dtype=torch.complex64), []
    for t in range(6):
        h = eigenvalues * h + torch.exp(lru.gamma) * (X[:, t].to(B.dtype) @ B.T + b)
        states.append((h @ C.T).real + lru.out.bias)
    torch.testing.assert_close(lru(X), torch.stack(states, 1), atol=1e-5, rtol=1e-4)


def test_an_lru_starts_on_its_ring():
    lru = module_of("LRURec").LRU(64)
    radius = lru.eigenvalues().abs()
    assert 0.8 <= float(radius.min()) < float(radius.max()) <= 0.99
    torch.testing.assert_close(lru.gamma.exp(), torch.sqrt(1 - radius**2), atol=1e-5, rtol=1e-4)


def test_lrurec_scores_have_the_items_biases(made):
    _, model, _ = made("LRURec")
    model.eval()
    items = torch.randint(1, model.n_items, (2, 6))
    states, table = model.states(items), model.item_table
    own = states[..., :16] @ model.item_embedding.weight.T + model.item_bias[:, 0]
    torch.testing.assert_close(states @ table.T, own, atol=1e-5, rtol=1e-4)
    assert float(model.item_embedding.weight.abs().max()) <= 0.04


@pytest.mark.parametrize("predicted", [True, False])
@pytest.mark.parametrize("mode", ["autoregressive", "augmentation"])
def test_first_items_are_targets_once(made, predicted, mode):
    _, model, loaders = made("LRURec", predict_first_item=predicted, training_mode=mode)
    model.eval()
    counted, seen = [0, 0], []

    def loss(states, table, wanted, *rest, **more):
        counted[0] += len(wanted)
        blank = model.states(torch.zeros(1, 1, dtype=torch.long))[0, 0]
        alike = (states - blank).abs().amax(1) < 1e-5
        counted[1] += int(alike.sum())
        seen.extend(wanted[alike].tolist())
        return states.sum()

    module = __import__("sys").modules["recbole_hydra.model.target_losses"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "cross_entropy", loss)
        for batch in loaders[0]:
            (WindowLoss(model) if mode == "autoregressive" else model.calculate_loss)(batch)
    rows = loaders[0]._dataset.inter_feat
    users, first = torch.unique(rows["user_id"]), []
    assert counted == [len(rows) + predicted * len(users), predicted * len(users)]
    if mode == "augmentation" and predicted:
        first = rows["item_id_list"][rows["item_length"] == 1, 0].tolist()
        assert sorted(seen) == sorted(first)


# -- the script ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location("reproduce", BASELINES / "reproduce.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_script_validates_without_the_history_and_tests_with_both(
    script, monkeypatch, tmp_path
):
    monkeypatch.setattr(script.report, "RESULTS", tmp_path / "results")
    monkeypatch.setattr(
        "sys.argv",
        [
            "reproduce.py", "LRURec", f"--data_path={settings('LRURec')['data_path']}",
            "--dataset=tiny", "--folder=runs",
            "--change={epochs: 2, eval_step: 1, hidden_size: 16, MAX_ITEM_LIST_LENGTH: 12}",
        ],
    )  # fmt: skip
    script.main()
    (run,) = script.read("LRURec").values()
    assert run["epochs"] == 2 and 0 <= run["test"]["ndcg@10"] <= 1
    assert set(run["test"]) >= {"ndcg@10", "ndcg@10, masked"}
    monkeypatch.setattr("sys.argv", ["reproduce.py", "table"])
    script.main()
    assert "| LRURec | tiny |" in (tmp_path / "results" / "baselines.md").read_text()


def test_scores_of_the_history_are_hidden_in_training_alone(script, made):
    _, model, _ = made("LRURec")
    chosen = script.without_history(type(model)).__new__(type(model))
    assert type(chosen) is type(model)  # the class itself stays as it is
    config, _, loaders = made("LRURec")
    hidden = script.without_history(type(model))(config, loaders[0]._dataset)
    hidden.eval()
    items, length = random_rows(hidden)
    batch = {hidden.ITEM_SEQ: items, hidden.ITEM_SEQ_LEN: length}
    before = hidden.full_sort_predict(batch)
    assert torch.isfinite(before).all()
    hidden.train()
    hidden.eval()
    after = hidden.full_sort_predict(batch)
    assert torch.isinf(after.gather(1, items)).all()
    kept = torch.isfinite(after)
    torch.testing.assert_close(after[kept], before[kept])
