"""Checkpoints of RecBole's models, by the kind of what they keep: saved, tested at the best epoch,
made again, and continued."""

import inspect

import numpy as np
import pytest
import scipy.sparse
import torch
from conftest import small
from hypothesis import given, settings
from hypothesis import strategies as st
from recbole.utils import init_seed

from recbole_hydra.checkpoint import _decoded, _encoded, load_checkpoint, to_plain
from recbole_hydra.errors import CheckpointError
from recbole_hydra.model import get_model
from recbole_hydra.quick_start import load_data_and_model
from recbole_hydra.training.run import read_test_set, train

FORMATS = ["csr", "csc", "coo", "lil", "dok", "dia", "bsr"]


@settings(deadline=None, max_examples=60)
@given(
    layout=st.sampled_from(FORMATS),
    family=st.sampled_from(["matrix", "array"]),
    kind=st.sampled_from([np.float32, np.float64, np.int64]),
    shape=st.tuples(st.integers(1, 6), st.integers(1, 6)),
    seed=st.integers(0, 99),
)
def test_a_sparse_matrix_is_what_it_was(layout, family, kind, shape, seed, tmp_path_factory):
    dense = np.random.default_rng(seed).integers(0, 3, shape).astype(kind)
    matrix = getattr(scipy.sparse, f"{layout}_{family}")(dense)
    plain = to_plain(_encoded({"deep": [matrix]}), "model")
    path = tmp_path_factory.mktemp("plain") / "x.pth"
    torch.save(plain, path)
    (back,) = _decoded(torch.load(path, weights_only=True), "cpu")["deep"]
    assert type(back) is type(matrix) and back.dtype == matrix.dtype
    np.testing.assert_array_equal(back.toarray(), dense)


@pytest.mark.parametrize("value", [np.arange(6).reshape(2, 3), np.asmatrix(np.eye(3)), np.ones(4)])
def test_an_array_is_what_it_was(value):
    back = _decoded(to_plain(_encoded({1: (value,)}), "model"), "cpu")[1][0]
    assert type(back) is type(value) and back.dtype == value.dtype
    np.testing.assert_array_equal(back, value)


@pytest.mark.parametrize("value", [object(), np.array(["a"]), np.array([None]), {"x": [print]}])
def test_what_is_no_data_is_refused(value):
    with pytest.raises(CheckpointError, match="a checkpoint holds tensors"):
        to_plain(_encoded(value), "model")


#: Small enough, whatever the model calls it.
SIZES = {
    "embedding_size": 8, "hidden_size": 8, "inner_size": 8, "n_layers": 1, "n_heads": 2,
    "mlp_hidden_size": [8, 8], "latent_dimension": 4, "num_layers": 1,
}  # fmt: skip
CLICKS = {"load_col": {"inter": ["user_id", "item_id", "timestamp"], "item": ["item_id", "brand"]}}
GRAPH = {"load_col": {"inter": ["user_id", "item_id", "timestamp"],
                      "kg": ["head_id", "relation_id", "tail_id"],
                      "link": ["item_id", "entity_id"]}}  # fmt: skip
FEATURES = {"selected_features": ["brand", "title"]}

MODELS = [
    ("SASRecF", FEATURES), ("GRU4RecF", FEATURES), ("FDSA", FEATURES),  # modules, in state_dict
    ("DIN", CLICKS), ("DIEN", CLICKS),
    ("ItemKNN", {}), ("AsymKNN", {}), ("SLIMElastic", {}),  # SciPy's matrices
    ("EASE", {}),  # and one of numpy's
    ("ADMMSLIM", {}), ("NCEPLRec", {}),
    ("LightGCN", {}), ("NGCF", {}), ("DMF", {}), ("Pop", {}),  # tensors
    ("FwFM", {"load_col": {"inter": ["user_id", "item_id", "label"]}}),  # no parameter
    ("CKE", GRAPH), ("KGCN", GRAPH), ("RippleNet", {**GRAPH, "n_memory": 4}),
    ("RecVAE", {}), ("FPMC", {}), ("FISM", {}),
]  # fmt: skip


@pytest.fixture
def rich(make_ring):
    """A dataset with item features, real text included, and a graph of the items."""
    path = make_ring("rich", items=16, users=20)
    with open(f"{path}/rich/rich.inter") as file:
        header, *lines = file.read().splitlines()
    lines = [f"{header}\tlabel:float", *(f"{line}\t{n % 2}" for n, line in enumerate(lines))]
    with open(f"{path}/rich/rich.inter", "w") as file:
        file.write("\n".join(lines) + "\n")
    links = ["item_id:token\tentity_id:token", *(f"i{n}\te{n}" for n in range(16))]
    graph = [f"e{n}\tr{n % 2}\te{(3 * n + 1) % 16}" for n in range(16)]
    graph = ["head_id:token\trelation_id:token\ttail_id:token", *graph]
    for suffix, lines in (("link", links), ("kg", graph)):
        with open(f"{path}/rich/rich.{suffix}", "w") as file:
            file.write("\n".join(lines) + "\n")
    return path


def arguments(model, path, changes):
    reads = inspect.getsource(inspect.getmodule(get_model(model)))
    sizes = {key: value for key, value in SIZES.items() if f'"{key}"' in reads}
    base = {k: v for k, v in small(model).items() if k != "hidden_size"}
    return {**base, **sizes, "data_path": path, "epochs": 1, **changes}


def scores(model, loader):
    """The scores of the first batch, of all items or of those that it has."""
    batch = next(iter(loader))[0]
    torch.manual_seed(0)
    np.random.seed(0)
    with torch.no_grad():
        try:
            return model.eval().full_sort_predict(batch)
        except NotImplementedError:
            return model.eval().predict(batch)


@pytest.mark.parametrize("model, changes", MODELS, ids=[name for name, _ in MODELS])
def test_saved_made_again_and_continued(rich, model, changes):
    config_dict = arguments(model, rich, changes)
    run = train(model, "rich", config_dict=config_dict)
    assert read_test_set(run)["test_result"]
    for path in (run.result["best_checkpoint"], run.result["last_checkpoint"]):
        torch.load(path, weights_only=True)
        _, again, _, _, _, test = load_data_and_model(path)
        batch = list(run.loaders[2])[:1]
        expected = scores(run.trainer.model, batch)
        torch.testing.assert_close(scores(again, batch), expected, rtol=0, atol=0)
        assert len(test) == len(run.loaders[2])
    # An epoch more is what two epochs at once are.
    more = train(resume=run.result["last_checkpoint"], config_dict={"epochs": 2})
    whole = train(model, "rich", config_dict={**config_dict, "epochs": 2})
    assert more.result["history"][-1]["train_loss"] == whole.result["history"][-1]["train_loss"]
    for name, value in whole.trainer.model.state_dict().items():
        torch.testing.assert_close(more.trainer.model.state_dict()[name], value, rtol=0, atol=0)
    results = []
    for run in (more, whole):
        init_seed(0, True)  # some draw their candidates, or noise, as they are tested
        results.append(read_test_set(run)["test_result"])
    assert results[0] == results[1]


@pytest.mark.parametrize("save_step", [1, 50])
@pytest.mark.parametrize("model", ["S3Rec", "RaCT"])
def test_pretraining_is_continued_too(rich, model, save_step):
    changes = {"pretrain_epochs": 2, "save_step": save_step}
    if model == "S3Rec":
        changes["item_attribute"] = "title"
    config_dict = arguments(model, rich, changes)
    run = train(model, "rich", config_dict=config_dict)
    assert read_test_set(run)["test_result"] and run.result["epochs_run"] == 2
    assert run.result["best_checkpoint"].endswith(".best.pth")
    over = train(resume=run.result["last_checkpoint"])
    assert over.result["epochs_run"] == 2
    assert read_test_set(over)["test_result"] == run.result["test_result"]
    more = train(resume=run.result["last_checkpoint"], config_dict={"pretrain_epochs": 3})
    assert more.result["epochs_run"] == 3 and read_test_set(more)["test_result"]


def test_a_module_is_stored_once(rich):
    run = train("SASRecF", "rich", config_dict=arguments("SASRecF", rich, FEATURES))
    state = load_checkpoint(run.result["best_checkpoint"])
    assert state["other_parameter"] == {}
    assert any(key.startswith("feature_embed_layer.") for key in state["state_dict"])
