import math
from pathlib import Path
from types import SimpleNamespace

import pytest
from conftest import small, small_plan
from hypothesis import given, settings
from hypothesis import strategies as st
from recbole.utils import ModelType

from recbole_hydra.errors import ConfigError, RecBoleHydraError, TuneError
from recbole_hydra.settings.config import PROPERTIES, Config
from recbole_hydra.tune.cluster import share_out
from recbole_hydra.tune.space import read_space

# -- the space ------------------------------------------------------------------------------------


def test_yaml_names_every_kind(tmp_path):
    file = tmp_path / "space.yaml"
    file.write_text(
        "learning_rate: {loguniform: [1e-4, 1e-2]}\n"  # which yaml's own reader takes for text
        "dropout_prob: {uniform: [0, 0.5]}\n"
        "ffn_size: {quniform: [32, 128, 32]}\n"
        "weight_decay: {quniform: [0.1, 0.3, 0.1]}\n"
        "num_layers: {int: [1, 3]}\n"
        "ffn_type: {choice: [gelu, swiglu]}\n"
        "num_heads: [2, 4]\n"
    )
    space = read_space(file)
    assert space.as_plain() == {
        "learning_rate": {"loguniform": [1e-4, 1e-2]},
        "dropout_prob": {"uniform": [0.0, 0.5]},
        "ffn_size": {"quniform": [32, 128, 32]},
        "weight_decay": {"quniform": [0.1, 0.3, 0.1]},
        "num_layers": {"int": [1, 3]},
        "ffn_type": {"choice": ["gelu", "swiglu"]},
        "num_heads": {"choice": [2, 4]},
    }
    drawn = space.draw(200, seed=1)
    assert {p["num_layers"] for p in drawn} == {1, 2, 3}
    assert {p["ffn_size"] for p in drawn} == {32, 64, 96, 128}
    assert all(type(p["ffn_size"]) is int and type(p["num_layers"]) is int for p in drawn)
    assert {p["weight_decay"] for p in drawn} == {0.1, 0.2, 0.3}
    assert {p["ffn_type"] for p in drawn} == {"gelu", "swiglu"}
    assert all(1e-4 <= p["learning_rate"] <= 1e-2 for p in drawn)
    # Evenly on a logarithmic scale: about half of the draws are in the lower decade.
    assert 70 < sum(p["learning_rate"] < 1e-3 for p in drawn) < 130
    assert 70 < sum(p["dropout_prob"] < 0.25 for p in drawn) < 130


def test_recboles_lines_are_read_as_they_are(tmp_path):
    file = tmp_path / "hyper.test"
    file.write_text(
        "learning_rate choice [0.01, 0.005,0.001]\n"
        "# a comment\n\n"
        "dropout_prob uniform 0.1,0.5\n"
        "hidden_size quniform 16,64,16\n"
        "weight_decay loguniform -8, 0\n"
        "ffn_type choice ['gelu','swiglu']\n"
    )
    found = read_space(file).as_plain()
    assert found.pop("weight_decay") == {"loguniform": [pytest.approx(math.exp(-8)), 1.0]}
    assert found == {
        "learning_rate": {"choice": [0.01, 0.005, 0.001]},
        "dropout_prob": {"uniform": [0.1, 0.5]},
        "hidden_size": {"quniform": [16, 64, 16]},
        "ffn_type": {"choice": ["gelu", "swiglu"]},
    }


def test_recboles_own_reader_agrees(tmp_path):
    """RecBole reads the same lines with hyperopt, where it is installed; its code says the rest."""
    import inspect

    from recbole.trainer import HyperTuning

    source = inspect.getsource(HyperTuning._build_space_from_file)
    for kind in ("choice", "uniform", "quniform", "loguniform"):
        assert f'para_type == "{kind}"' in source
    assert "hp.loguniform(para_name, float(low), float(high))" in source  # of logarithms


kinds = st.one_of(
    st.lists(st.integers(0, 99), min_size=1, max_size=5, unique=True).map(lambda v: {"choice": v}),
    st.tuples(st.integers(-9, 9), st.integers(1, 9)).map(lambda v: {"int": [v[0], v[0] + v[1]]}),
    st.tuples(st.floats(-9, 9), st.floats(0.1, 9)).map(lambda v: {"uniform": [v[0], v[0] + v[1]]}),
    st.tuples(st.floats(0.01, 9), st.floats(1.1, 9)).map(
        lambda v: {"loguniform": [v[0], v[0] * v[1]]}
    ),
    st.tuples(st.integers(-9, 9), st.integers(1, 40), st.sampled_from([0.1, 0.25, 2, 3])).map(
        lambda v: {"quniform": [v[0], v[0] + v[1] * v[2], v[2]]}
    ),
)


@settings(max_examples=60, deadline=None)
@given(st.dictionaries(st.sampled_from("abcd"), kinds, min_size=1), st.integers(0, 9))
def test_draws_lie_in_the_space_and_survive_the_searchers_coding(written, seed):
    space = read_space(written)
    drawn = space.draw(8, seed)
    assert drawn == space.draw(20, seed)[: len(drawn)]  # a longer sweep begins as the shorter
    assert len({tuple(sorted(p.items())) for p in drawn}) == len(drawn)
    for params in drawn:
        assert space.decode(space.encode(params)) == params
        for name, value in params.items():
            ((kind, values),) = written[name].items()
            if kind == "choice":
                assert value in values
            else:
                assert values[0] - 1e-9 <= value <= values[1] + 1e-9
            if kind == "quniform":
                assert abs(value / values[2] - round(value / values[2])) < 1e-9


def test_a_small_space_is_drawn_once():
    space = read_space({"num_layers": [1, 2], "num_heads": {"int": [1, 3]}})
    drawn = space.draw(50, seed=0)
    assert len(drawn) == 6
    assert sorted(map(str, drawn)) == sorted(map(str, space.grid()))
    assert small_plan({"num_layers": [1, 2]}, num_samples=50).number == 2


def test_bounds_of_recboles_loguniform_that_are_no_logarithms(tmp_path):
    path = tmp_path / "hyper.test"
    path.write_text("learning_rate loguniform 1,800\n")
    with pytest.raises(TuneError, match="line 1: learning_rate: .* are logarithms .* e.800 is no"):
        read_space(path)


@pytest.mark.parametrize("model", ["Hydra", "Mamba4Rec", "SASRec", "GRU4Rec"])
def test_every_model_has_a_space_that_its_config_takes(model):
    space = read_space(PROPERTIES / "tune" / f"{model}.yaml")
    made = small_plan(None, model, config_dict={"data_path": small(model)["data_path"]})
    assert made.space.as_plain() == space.as_plain()
    assert made.number == 20
    defaults = Config(model, "tiny", config_dict={"data_path": small(model)["data_path"]})
    for name, parameter in space.parameters.items():
        low, high = min(parameter.values), max(parameter.values)
        assert low <= defaults[name] <= high, name  # the defaults are within


@pytest.mark.parametrize(
    ("space", "message"),
    [
        ({}, "space: names no hyperparameter"),
        ({"learning_rate": {"choice": []}}, r"learning_rate: choice \[\]: there is nothing"),
        ({"learning_rate": [0.1, 0.1]}, "0.1 is given twice"),
        ({"learning_rate": {"uniform": [0.1, 0.01]}}, r"uniform \[0.1, 0.01\]: low must be below"),
        ({"learning_rate": {"uniform": [0.1, 0.1]}}, "low must be below high"),
        ({"learning_rate": {"uniform": [0.1]}}, r"uniform takes \[low, high\], all numbers"),
        ({"learning_rate": {"uniform": [0, float("inf")]}}, "all numbers"),
        ({"learning_rate": {"loguniform": [-8, 0]}}, "must be above 0; .* not their logarithms"),
        ({"num_layers": {"int": [1, 2.5]}}, "int takes whole numbers"),
        ({"ffn_size": {"quniform": [33, 63, 64]}}, "no multiple of the step is in the range"),
        ({"ffn_size": {"quniform": [32, 64, 0]}}, "the step must be above 0"),
        ({"ffn_size": {"quniform": [32, 64]}}, r"quniform takes \[low, high, step\]"),
        ({"learning_rate": {"lognuniform": [1, 2]}}, "no kind 'lognuniform'; did you mean 'log"),
        ({"learning_rate": 0.1}, "expected {kind: values} .* a fixed value belongs in"),
        ({"learning_rate": {"uniform": [0, 1], "choice": [1]}}, "expected {kind: values}"),
        ({"learning_rate": {"uniform": "0,1"}}, r"uniform takes \[low, high\], got '0,1'"),
        ({"learning_rte": [0.1]}, "space: unknown key 'learning_rte'; did you mean 'learning_ra"),
        ({"n_heads": [1, 2]}, "Hydra does not read 'n_heads'; did you mean 'num_heads'"),
        ({"seed": [1, 2]}, "seed: cannot be swept: the luckiest seed"),
        ({"topk": [[5], [10]]}, "topk: cannot be swept: another value is another task"),
        ({"gpu_id": [0, 1]}, "gpu_id: cannot be swept: .*Ray assigns the GPUs"),
        ({"hidden_size": [16, 32]}, "hidden_size: is also set to 16, .* remove one"),
    ],
)
def test_a_space_that_cannot_be_searched_is_refused(space, message):
    with pytest.raises(RecBoleHydraError, match=message) as caught:
        small_plan(space)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("missing.yaml", None, "missing.yaml: cannot be read"),
        ("list.yaml", "- a\n", "expected 'key: {kind: values}' lines"),
        ("broken.yaml", "a: [1\n", "not valid yaml"),
        ("a.test", "learning_rate choice\n", "line 1: expected 'key kind values'"),
        ("b.test", "\nlearning_rate choose [1]\n", "line 2: learning_rate: there is no kind"),
        ("c.test", "learning_rate choice [a, b]\n", "line 1: cannot be read as values"),
        ("d.test", "num_layers choice [1]\nnum_layers choice [2]\n", "line 2: .* is given twice"),
        ("e.test", "dropout_prob uniform 0.5,0.1\n", "line 1: dropout_prob: .*low must be below"),
    ],
)
def test_a_file_that_is_no_space_is_refused(tmp_path, name, text, message):
    if text is not None:
        (tmp_path / name).write_text(text)
    with pytest.raises(TuneError, match=message) as caught:
        small_plan(tmp_path / name)
    assert "\n" not in str(caught.value)


# -- the plan -------------------------------------------------------------------------------------

ONE = {"learning_rate": [0.001, 0.01]}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"search": "bayes"}, "search must be one of random, grid, optuna"),
        ({"scheduler": "median"}, "scheduler must be one of asha, none"),
        ({"num_samples": 0}, "num_samples must be a positive integer"),
        ({"search": "grid", "num_samples": 1}, "the grid has 2 configurations; leave it out"),
        ({"grace_period": 9}, "grace_period: 9 epochs, but a trial has no more than 2"),
        ({"grace_period": 0}, "grace_period must be a positive integer"),
        ({"reduction_factor": 1}, "reduction_factor must be a number above 1"),
        ({"scheduler": "none", "grace_period": 1}, "grace_period: is for --scheduler=asha"),
        ({"argv": ["--learning_rate=0.1"]}, "learning_rate: is also set to '0.1'"),
        ({"argv": ["--valid_metric=NDCG@20"]}, "NDCG@20 is not computed; metrics and topk give"),
        ({"argv": ["--gpu_id=1"]}, "gpu_id: .* Ray assigns the GPUs; use --gpus_per_trial"),
        ({"argv": ["--checkpoint_dir=x"]}, "checkpoint_dir: .* use --output_dir"),
        ({"argv": ["--learning_rat=1"]}, "command line: unknown key 'learning_rat'"),
    ],
)
def test_what_cannot_be_swept_is_refused(changes, message):
    with pytest.raises(RecBoleHydraError, match=message) as caught:
        small_plan(ONE, **changes)
    assert "\n" not in str(caught.value)


def test_a_continuous_range_has_no_grid():
    with pytest.raises(TuneError, match="grid: dropout_prob is a continuous range"):
        small_plan({"dropout_prob": {"uniform": [0, 0.5]}}, search="grid")


def test_a_value_that_no_config_takes_is_found_before_anything_trains():
    with pytest.raises(TuneError, match="loss_type.* must be one of CE, BPR"):
        small_plan({"loss_type": ["softmax"]})


def test_models_without_a_space_of_ours_need_one():
    with pytest.raises(TuneError, match="space: not given, .* for BERT4Rec .*pass --space=FILE"):
        small_plan(None, "BERT4Rec")


def test_a_model_that_trains_outside_torch_is_refused(monkeypatch):
    """As RecBole's decision trees do, whose libraries are not installed here."""
    outside = SimpleNamespace(DECISIONTREE=ModelType.SEQUENTIAL)
    monkeypatch.setattr("recbole_hydra.tune.plan.ModelType", outside)
    with pytest.raises(TuneError, match="SASRec trains outside torch, .*: no epoch can be"):
        small_plan(ONE, "SASRec")


def test_our_space_is_found_from_any_folder():
    assert not Path("properties").exists()
    settings = {"data_path": small("Hydra")["data_path"]}
    found = small_plan("properties/tune/Hydra.yaml", config_dict=settings)
    assert "num_heads" in found.space.parameters


def test_a_file_may_set_what_the_space_searches(tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text("learning_rate: 0.5\n")
    made = small_plan(ONE, config_file_list=[str(file)])
    assert "learning_rate" not in made.settings
    assert {p["learning_rate"] for p in made.configurations} == {0.001, 0.01}


def test_the_scheduler_fits_short_sweeps():
    assert small_plan(ONE).identity["scheduler"] == {
        "max_t": 2, "grace_period": 2, "reduction_factor": 3,
    }  # fmt: skip
    with pytest.raises(ConfigError):
        small_plan(ONE, grace_period="1")


# -- sharing out the machines ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("nodes", "asked", "expected"),
    [
        # nodes as (CPUs, GPUs); asked: trials at a time, CPUs and GPUs of each
        ([(2, 0)], (None, None, None), (1, 2, 0)),
        ([(2, 0)], (2, None, None), (2, 1, 0)),
        ([(8, 0)], (3, None, None), (3, 2, 0)),
        ([(8, 0)], (None, None, None), (4, 2, 0)),
        ([(4, 0), (4, 0)], (3, None, None), (3, 2, 0)),  # a third with 4 would find no node
        ([(2, 0)], (5, None, None), (2, 1, 0)),  # no more than there are CPUs
        ([(16, 1)], (None, None, None), (1, 16, 1.0)),
        ([(16, 1)], (3, None, None), (3, 5, pytest.approx(1 / 3))),
        ([(16, 2)], (3, None, None), (3, 5, 0.5)),
        ([(16, 1)], (4, 2, 0.25), (4, 2, 0.25)),
        ([(16, 1)], (4, None, 0), (4, 4, 0)),
        ([(16, 1)], (8, 1, 0.5), (2, 1, 0.5)),  # no more than fit the GPU
    ],
)
def test_trials_never_oversubscribe_the_machines(nodes, asked, expected):
    nodes = [{"CPU": float(cpu), "GPU": float(gpu)} for cpu, gpu in nodes]
    assert share_out(nodes, 20, *asked) == expected


def test_few_trials_get_more_each():
    assert share_out([{"CPU": 8.0}], 2, 4, None, None) == (2, 4, 0)


def test_gpus_are_left_alone_where_the_run_is_on_the_cpu():
    assert share_out([{"CPU": 8.0, "GPU": 1.0}], 20, 2, None, None, use_gpu=False) == (2, 4, 0)


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ((None, 16, None), "no node has 16 CPUs and 0 GPUs; the largest have 8 CPUs, 0 GPUs"),
        ((None, None, 1), "no node has .* and 1 GPUs"),
        ((0, None, None), "max_concurrent must be a positive integer"),
        ((None, 0.5, None), "cpus_per_trial must be a positive integer"),
        ((None, None, -1), "gpus_per_trial must be a positive number"),
    ],
)
def test_a_share_that_no_node_has_is_refused(asked, message):
    with pytest.raises(RecBoleHydraError, match=message):
        share_out([{"CPU": 8.0}, {"CPU": 4.0}], 20, *asked)
