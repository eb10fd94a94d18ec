"""What settings may be: every one has a rule, each rule takes what it should and no more."""

import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import DATASETS, small, small_plan
from hypothesis import given
from hypothesis import strategies as st
from recbole.model.sequential_recommender import SASRec

from recbole_hydra import Config, Hydra, Mamba4Rec, load_model, run_recbole_hydra
from recbole_hydra.checkpoint import plain_settings
from recbole_hydra.compare import compare
from recbole_hydra.data import create_dataset
from recbole_hydra.data.splits import parts_left_out
from recbole_hydra.errors import ConfigError, DatasetError, RecBoleHydraError, TuneError
from recbole_hydra.metrics import metric_names
from recbole_hydra.model import MODELS
from recbole_hydra.settings.derived import lenient_rules, read_yaml
from recbole_hydra.settings.known_keys import PROPERTIES, RECBOLE, RENAMED, computed_keys
from recbole_hydra.settings.options.learner import learners
from recbole_hydra.settings.spelling import parse_value
from recbole_hydra.settings.table import check, common_rules, rules_of, written_rules
from recbole_hydra.settings.values import WRITTEN_FOR_OURS, transforms

#: The yaml files whose every key has a rule.
GENERAL = (
    RECBOLE / "properties" / "overall.yaml",
    RECBOLE / "properties" / "dataset" / "sample.yaml",
    RECBOLE / "properties" / "dataset" / "ml-100k.yaml",
    PROPERTIES / "overall.yaml",
    PROPERTIES / "training.yaml",
    *(PROPERTIES / "dataset").glob("*.yaml"),
)


def config(model="Hydra", dataset="tiny", argv=(), files=None, **values):
    return Config(model, dataset, files, values, argv)


# -- the table -----------------------------------------------------------------------------------


@pytest.mark.parametrize("file", GENERAL, ids=lambda file: f"{file.parent.name}-{file.name}")
def test_every_key_has_a_rule_that_takes_its_default(file):
    rules = common_rules()
    for key, default in read_yaml(file).items():
        assert key in rules, f"{key} of {file} has no rule; write one in settings/values.py"
        assert check(key, default, rules) == default, key


@pytest.mark.parametrize("model", [Hydra, Mamba4Rec])
def test_every_key_of_our_models_has_a_rule_that_takes_its_default(model):
    rules = rules_of(model)
    for key, default in read_yaml(PROPERTIES / "model" / f"{model.__name__}.yaml").items():
        assert key in rules, f"{key} of {model.__name__} has no rule; write one"
        assert check(key, default, rules) == default, key


@pytest.mark.parametrize(
    "file", sorted((RECBOLE / "properties" / "model").glob("*.yaml")), ids=lambda file: file.stem
)
def test_every_default_of_recboles_models_passes(file):
    rules = {**lenient_rules(file), **common_rules()}
    for key, default in read_yaml(file).items():
        assert check(key, default, rules) == default, key


def test_no_rule_is_of_a_key_that_nothing_reads():
    made = {model: config(model) for model in MODELS}
    made["RecentPop"] = config("RecentPop", eval_args={"split": {"cut": 0.9}})
    for key in written_rules():
        assert made["Hydra"].unread_key(key) is None, key
    for key in WRITTEN_FOR_OURS:
        assert any(each.unread_key(key) is None for each in made.values()), key


def test_what_is_derived_from_recboles_code():
    assert learners() == ["adam", "adamw", "sgd", "adagrad", "rmsprop", "sparse_adam"]
    assert "mask_itemseq" in transforms() and "user_defined" in transforms()
    assert {"device", "eval_type", "MODEL_TYPE", "valid_neg_sample_args"} <= computed_keys()
    assert not computed_keys() & set(common_rules())


# -- values that are taken -----------------------------------------------------------------------


@pytest.mark.parametrize(
    "key, spellings, value",
    [
        ("epochs", ["3", 3, 3.0, np.int64(3), "3.0", torch.tensor(3)], 3),
        ("epochs", [0, "0"], 0),
        ("train_batch_size", ["1e3", 1e3, 1000, np.float32(1000)], 1000),
        ("learning_rate", ["1e-3", 1e-3, "0.001", np.float64(0.001)], 0.001),
        ("weight_decay", [0, 0.0, "0"], 0),
        ("seed", [0, "0", np.uint8(0)], 0),
        ("worker", ["2", 2], 2),
        ("use_gpu", ["True", "true", "TRUE", True, np.bool_(True)], True),
        ("show_progress", ["False", "false", False], False),
        ("learner", ["AdamW"], "AdamW"),
        ("learner", ["sgd"], "sgd"),
        ("state", ["debug"], "debug"),
        ("state", ["WARNING"], "WARNING"),
        ("state", [None], None),
        ("clip_grad_norm", [None, "~", "None"], None),
        ("clip_grad_norm", ["{'max_norm': 5}", "{max_norm: 5}"], {"max_norm": 5}),
        ("clip_grad_norm", [{"max_norm": "5"}, {"max_norm": np.int64(5)}], {"max_norm": 5}),
        ("clip_grad_norm", ["{max_norm: 1, norm_type: inf}"], {"max_norm": 1, "norm_type": "inf"}),
        ("topk", ["10,20", [10, 20], (10, 20), "[10, 20]", np.array([10, 20])], [10, 20]),
        ("topk", [10, "10", [10], ["10"]], [10]),
        ("metrics", ["Hit,NDCG", ["Hit", "NDCG"], "Hit NDCG"], ["Hit", "NDCG"]),
        ("gpu_id", ["0,1", [0, 1], (0, 1)], "0,1"),
        ("gpu_id", ["", 0 * [1]], ""),
        ("rm_dup_inter", ["None", None, "none", False, "False", "no"], None),
        ("rm_dup_inter", ["first"], "first"),
        ("user_inter_num_interval", ["[5,inf)"], "[5,inf)"),
        ("user_inter_num_interval", ["[5,10]", [5, 10]], "[5,10]"),
        ("user_inter_num_interval", [None, "~"], None),
        ("val_interval", [{"rating": "[3,inf)"}, "{rating: '[3,inf)'}"], {"rating": "[3,inf)"}),
        ("val_interval", [{"genre": ["a", "b", "c"]}], {"genre": ["a", "b", "c"]}),
        ("normalize_field", ["a b", "a,b", ["a", "b"]], ["a", "b"]),
        ("benchmark_filename", ["train,valid,test"], ["train", "valid", "test"]),
        ("load_col", [None, "~"], None),
        ("threshold", [{"rating": 4}, "{'rating': 4}"], {"rating": 4}),
        ("transform", [None, "~"], None),
        ("later_targets", [0.3, "0.3", [0.3], (0.3,)], [0.3]),
        ("later_targets", [[], None], []),
        ("domain_temperature", [1, "1.0", 1.0], 1),
        ("encoding", ["utf-8-sig"], "utf-8-sig"),
        ("wandb_project", [2024, "2024"], "2024"),
        ("repeat_bias", ["none"], "none"),
        ("rope_base", [None, "~"], None),
        ("num_heads", ["8", 8.0, np.int32(8)], 8),
        ("norm_eps", ["1e-6", 1e-6], 1e-6),
    ],
)  # fmt: skip
def test_spellings_of_a_value(key, spellings, value):
    for spelling in spellings:
        extra = {"valid_metric": "Hit@10"} if key == "metrics" else {}
        if key == "topk":
            extra = {"valid_metric": "NDCG@10"}
        if key == "learner":
            extra = {"loss_type": "CE"}
        found = config(**{key: spelling}, **extra)[key]
        assert found == value and type(found) is type(value) or found == value, spelling
        assert not isinstance(found, (np.generic, np.ndarray, torch.Tensor)), spelling


def test_numbers_in_yaml_files_are_numbers(tmp_path):
    (tmp_path / "mine.yaml").write_text(
        "learning_rate: 1e-3\nepochs: '4'\ntrain_batch_size: 1e3\nweight_decay: '1e-4'\n"
        "eval_args: {split: {RS: ['0.8', 0.1, 0.1]}}\nuse_gpu: 'false'\n"
    )
    made = config(files=["mine.yaml"])
    assert (made["learning_rate"], made["epochs"], made["train_batch_size"]) == (0.001, 4, 1000)
    assert made["weight_decay"] == 0.0001 and made["use_gpu"] is False
    assert made["eval_args"]["split"] == {"RS": [0.8, 0.1, 0.1]}


@pytest.mark.parametrize(
    "given",
    [
        {"split": {"LS": "valid_only"}},
        {"split": {"LS": "test_only"}},
        {"split": {"RS": [8, 1, 1]}},
        {"split": {"RS": (0.8, 0.2, 0)}},
        {"split": {"RS": [0.8, 0, 0.2]}, "group_by": "none"},
        {"split": {"TS": [0.8, 0.1, 0.1]}},
        {"group_by": None},
        {"mode": "uni100"},
        {"mode": "pop5"},
        {"mode": {"valid": "uni100", "test": "full"}},
        {"mode": {"test": "pop100"}},
        {},
    ],
)
def test_what_recbole_knows_of_evaluation_stays(given):
    made = config(eval_args=given)["eval_args"]
    for key, value in given.items():
        if key == "split":
            ((way, how),) = value.items()
            assert made[key] == {way: how if isinstance(how, str) else list(how)}
    assert set(made) == {"split", "order", "group_by", "mode"}
    assert made["mode"].keys() == {"valid", "test"}


@pytest.mark.parametrize(
    "given",
    [
        {"distribution": "uniform", "sample_num": 2},
        {"sample_num": "3"},
        {"distribution": "popularity", "alpha": 0.5},
        {"dynamic": True, "candidate_num": 3},
    ],
)
def test_what_recbole_knows_of_negative_sampling_stays(given):
    made = config("BPR", train_neg_sample_args=given)["train_neg_sample_args"]
    for key, value in given.items():
        assert made[key] == parse_value(str(value))
    assert made["distribution"] == given.get("distribution", "uniform")
    augmented = {"loss_type": "BPR", "training_mode": "augmentation"}
    assert config(train_neg_sample_args=given, **augmented)["train_neg_sample_args"] == made


@given(st.floats(min_value=1e-12, max_value=1e6))
def test_any_positive_number_is_a_learning_rate_however_it_is_written(rate):
    rules = common_rules()
    for spelling in (rate, str(rate), repr(np.float64(rate).item()), np.float64(rate)):
        assert check("learning_rate", spelling, rules) == rate


@given(st.one_of(st.integers(max_value=0), st.floats(max_value=0), st.text("abc.-", min_size=1)))
def test_nothing_else_is_a_batch_size(value):
    with pytest.raises(ConfigError, match="train_batch_size must be a positive integer, got"):
        check("train_batch_size", value, common_rules())


#: Values that are hardly what anybody means, each for every setting.
STRANGE = (
    None, "", "none", "~", -1, 2.5, 10**400, float("nan"), "1e400", True, [], [None], [[1]], {},
    {"a": None}, {"a": {"b": [1]}}, {1, 2}, b"x", object(), np.array([1, 2]), np.array([]),
    np.array(None), torch.ones(2), Path("~/x"), len, "[1,2", "{a: 1}", " 5 ", "0x10",
)  # fmt: skip


@pytest.mark.parametrize("model", [Hydra, Mamba4Rec, SASRec], ids=lambda model: model.__name__)
def test_any_value_is_read_or_refused_in_one_line(model):
    rules = rules_of(model)
    for key in rules:
        for value in STRANGE:
            try:
                check(key, value, rules)
            except ConfigError as error:
                assert "\n" not in str(error) and key in str(error)


# -- values that are not -------------------------------------------------------------------------


WRONG = [
    ("learner", "sdg", "learner must be one of adam.*, got 'sdg'; did you mean 'sgd'"),
    ("learner", None, "learner must be one of adam.*, got None"),
    ("learner", "sparse_adam", "learner: sparse_adam is for sparse gradients, .*use adam"),
    ("train_batch_size", 0, "train_batch_size must be a positive integer, got 0"),
    ("train_batch_size", -5, "train_batch_size must be a positive integer, got -5"),
    ("eval_batch_size", 0, "eval_batch_size must be a positive integer, got 0"),
    ("eval_batch_size", "many", "eval_batch_size must be a positive integer, got 'many'"),
    ("epochs", -1, "epochs must be an integer of at least 0, got -1"),
    ("epochs", 2.5, "epochs must be an integer of at least 0, got 2.5"),
    ("epochs", True, "epochs must be an integer of at least 0, got True"),
    ("epochs", None, "epochs must be .*, got None"),
    ("epochs", "inf", "epochs must be .*, got 'inf'"),
    ("epochs", [3], "epochs must be .*, got \\[3\\]"),
    ("learning_rate", -0.1, "learning_rate must be a number of at least 0, got -0.1"),
    ("learning_rate", "fast", "learning_rate must be a number of at least 0, got 'fast'"),
    ("learning_rate", float("nan"), "learning_rate must be a number of at least 0, got nan"),
    ("weight_decay", -0.1, "weight_decay must be a number of at least 0, got -0.1"),
    ("seed", None, "seed must be an integer in 0 .. 4294967295, got None"),
    ("seed", -1, "seed must be an integer in"),
    ("seed", 2**32, "seed must be an integer in"),
    ("worker", -1, "worker must be an integer of at least 0, got -1"),
    ("clip_grad_norm", 5, "clip_grad_norm must be a dict such as {max_norm: 5}.*, got 5"),
    ("clip_grad_norm", {"maxnorm": 5}, "unknown key 'maxnorm' in clip_grad_norm.*'max_norm'"),
    ("clip_grad_norm", {"max_norm": -1}, "clip_grad_norm: max_norm must be a positive number"),
    ("clip_grad_norm", {"norm_type": 2}, "clip_grad_norm: max_norm is missing"),
    ("eval_step", -1, "eval_step must be an integer of at least 0"),
    ("stopping_step", -1, "stopping_step must be an integer of at least 0"),
    ("state", "LOUD", "state must be one of info, debug"),
    ("use_gpu", "maybe", "use_gpu must be True or False, got 'maybe'"),
    ("use_gpu", 1, "use_gpu must be True or False, got 1"),
    ("shuffle", None, "shuffle must be True or False, got None"),
    ("gpu_id", "first", "gpu_id must be the number of a GPU"),
    ("transform", "mask_item", "transform must be one of mask_.*did you mean 'mask_itemseq'"),
    ("save_dataset", True, "save_dataset must be off, got True: data are loaded anew"),
    ("metrics", [], "metrics must be a list of metrics"),
    ("metrics", ["Hit", "NDGC"], "metrics must be .*not 'NDGC'; did you mean 'ndcg'"),
    ("topk", [10, -1], "topk must be positive integers, got \\[10, -1\\]"),
    ("topk", None, "topk must be positive integers, got None"),
    ("topk", 2.5, "topk must be positive integers, got 2.5"),
    ("valid_metric", None, "valid_metric must be the name of a metric"),
    ("valid_metric_bigger", False, "valid_metric_bigger follows from valid_metric"),
    ("amp_dtype", "bf61", "amp_dtype must be one of bf16, fp16, got 'bf61'; did you mean 'bf16'"),
    ("training_mode", "autoregresive", "training_mode must be .*did you mean 'autoregressive'"),
    ("MAX_ITEM_LIST_LENGTH", 0, "MAX_ITEM_LIST_LENGTH must be a positive integer, got 0"),
    ("window_overlap", -1, "window_overlap must be an integer of at least 0"),
    ("rm_dup_inter", True, "rm_dup_inter must be first, last, or None to keep all, got True"),
    ("rm_dup_inter", "frist", "rm_dup_inter must be .*did you mean 'first'"),
    ("user_inter_num_interval", "[5,2]", "user_inter_num_interval must be an interval"),
    ("val_interval", ["rating"], "val_interval must be a dict of columns, such as"),
    ("seq_len", {"title": 0}, "seq_len of title must be a positive integer, got 0"),
    ("threshold", {"a": 1, "b": 2}, "threshold must be a dict of one column"),
    ("threshold", 4, "threshold must be a dict of one column"),
    ("load_col", "*", "load_col must be a dict such as .* or ~ for all columns, got '\\*'"),
    ("discretization", {"price": {"method": "EQ"}}, "discretization: price: method must be one of"),
    ("encoding", "utf88", "encoding must be a text encoding .*; did you mean 'utf-8'"),
    ("USER_ID_FIELD", None, "USER_ID_FIELD must be the name of a column, got None"),
    ("field_separator", "", "field_separator must be"),
    ("data_path", None, "data_path must be a folder, got None"),
    ("data_path", ["a"], "data_path must be a folder, got \\['a'\\]"),
    ("nproc", 2, "nproc must be 1, got 2: runs of several processes are not supported"),
    ("head_dim", 7, "head_dim must be even"),
    ("dropout_prob", 1, "dropout_prob must be a number in \\[0, 1\\)"),
    ("dropout_places", ["gate"], "dropout_places must be one of item, mamba, ffn, output"),
    ("scan_backend", "tritn", "scan_backend must be .*did you mean 'triton'"),
    ("domain_settings", ["a"], "domain_settings must be a dict such as"),
    (
        "domain_settings", {"a": {"USER_ID_FIELD": None}},
        "domain_settings: a: USER_ID_FIELD must be the name of a column, got None",
    ),
    ("eval_args", "RS", "eval_args must be a dict such as"),
    ("eval_args", {"split": {"RS": [0.8, 0.2]}}, "eval_args: split: RS must be three n.*: 2 of"),
    ("eval_args", {"split": {"RS": [0.8, 0.1, 0.1, 0]}}, "RS must be three numbers"),
    ("eval_args", {"split": {"RS": [0.8, -0.1, 0.3]}}, "RS must be three numbers.* not -0.1"),
    ("eval_args", {"split": {"RS": [0, 0.5, 0.5]}}, "RS must be .*nothing to train on"),
    ("eval_args", {"split": {"RS": [1, 0, 0]}}, "RS must be .*nothing to validate or test on"),
    ("eval_args", {"split": {"RS": "valid_only"}}, "eval_args: split: RS must be three numbers"),
    ("eval_args", {"split": {"TS": [0.5, 0.5]}}, "eval_args: split: TS must be three numbers"),
    ("eval_args", {"split": {}}, "eval_args: split must be a dict such as .*, got {}"),
    (
        "eval_args", {"split": {"LS": "valid_and_test", "RS": [8, 1, 1]}},
        "eval_args: split must be a dict such as .*one way of splitting",
    ),
    ("eval_args", {"split": "RS"}, "eval_args: split must be a dict such as .*, got 'RS'"),
    ("eval_args", {"split": None}, "eval_args: split must be a dict such as .*, got None"),
    ("eval_args", {"split": {"SL": "valid_only"}}, "eval_args: split must be by one of RS, TS, LS"),
    ("eval_args", {"split": {"LS": "valid"}}, "split: LS must be one of .*'valid_only'"),
    ("eval_args", {"split": {"LS": None}}, "eval_args: split: LS must be one of"),
    ("eval_args", {"group_by": "session"}, "eval_args: group_by must be user or none, got 'sess"),
    ("eval_args", {"order": "RT"}, "eval_args: order must be one of TO, RO, got 'RT'"),
    ("eval_args", {"order": "RO"}, "eval_args: order RO mixes up the histories; set order: TO"),
    ("eval_args", {"mode": "uni0"}, "eval_args: mode must be full, .*got 'uni0'"),
    ("eval_args", {"mode": "uni"}, "eval_args: mode must be full, .*got 'uni'"),
    ("eval_args", {"mode": "pop-3"}, "eval_args: mode must be full, .*got 'pop-3'"),
    ("eval_args", {"mode": None}, "eval_args: mode must be full, .*got None"),
    ("eval_args", {"mode": {"vald": "full"}}, "unknown key 'vald' in eval_args: mode.*'valid'"),
    ("eval_args", {"mode": {"valid": "uni0"}}, "eval_args: mode: valid must be full, .*'uni0'"),
    ("eval_args", {"mode": "labeled"}, "eval_args: mode: labeled compares predictions with labels"),
    ("eval_args", {"ordr": "TO"}, "unknown key 'ordr' in eval_args; did you mean 'order'"),
]  # fmt: skip


@pytest.mark.parametrize("key, value, message", WRONG)
def test_other_values_are_one_line(key, value, message):
    # What is evaluated does not depend on how training goes through the data.
    for mode in ("auto", "augmentation") if key == "eval_args" else ("auto",):
        with pytest.raises(ConfigError, match=message) as caught:
            config(**{"training_mode": mode, key: value})
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "given, message",
    [
        ({"sample_num": 0}, "train_neg_sample_args: sample_num must be a positive integer, got 0"),
        ({"distribution": "zipf"}, "train_neg_sample_args: distribution must be one of uniform"),
        ({"num": 1}, "unknown key 'num' in train_neg_sample_args"),
        ({"dynamic": True}, "candidate_num must be a positive integer"),
        ({"dynamic": "often"}, "train_neg_sample_args: dynamic must be True or False"),
        ({"alpha": "high"}, "train_neg_sample_args: alpha must be a number"),
        (3, "train_neg_sample_args must be a dict such as .*, got 3"),
        ("uniform", "train_neg_sample_args must be a dict such as .*, got 'uniform'"),
    ],
)
@pytest.mark.parametrize("model", ["BPR", "Hydra", "SASRec"])
def test_negative_sampling_that_cannot_be(model, given, message):
    with pytest.raises(ConfigError, match=message):
        config(model, train_neg_sample_args=given)


@pytest.mark.parametrize("nothing", [None, "none", {"distribution": "none"}])
def test_a_model_of_pairs_needs_negatives(nothing):
    with pytest.raises(ConfigError, match="train_neg_sample_args: BPR learns from pairs"):
        config("BPR", train_neg_sample_args=nothing)


@pytest.mark.parametrize("model", ["Hydra", "Mamba4Rec", "SASRec", "BPR", "Pop", "NeuMF", "DIN"])
def test_the_settings_of_a_run_can_be_given_again(model):
    """As those of a comparison's settings.yaml."""
    first = Config(model, "ml-100k")
    plain = {k: v for k, v in plain_settings(first).items() if k != "data_path"}
    again = Config(model, "ml-100k", config_dict=plain)
    assert again.final_config_dict == first.final_config_dict


@pytest.mark.parametrize("where", ["command line", "config_dict", "mine.yaml"])
def test_wrong_in_every_layer(tmp_path, where):
    (tmp_path / "mine.yaml").write_text("learner: sdg\n")
    layers = {
        "command line": {"argv": ["--learner=sdg"]},
        "config_dict": {"learner": "sdg"},
        "mine.yaml": {"files": ["mine.yaml"]},
    }
    with pytest.raises(ConfigError, match="learner must be one of"):
        config(**layers[where])


@pytest.mark.parametrize(
    "model, key, value",
    [
        ("SASRec", "hidden_size", 0),
        ("SASRec", "hidden_size", "wide"),
        ("SASRec", "n_layers", "two"),
        ("SASRec", "hidden_dropout_prob", 1.5),
        ("GRU4Rec", "embedding_size", -8),
        ("LightGCN", "reg_weight", "small"),
        ("CDAE", "loss_type", "MES"),
        ("NeuMF", "mlp_hidden_size", "wide"),
        ("S3Rec", "pretrain_epochs", 0),
        ("S3Rec", "save_step", 0),
    ],
)
def test_values_of_recboles_models_by_type(model, key, value):
    with pytest.raises(ConfigError, match=f"^{key} must be "):
        config(model, **{key: value})


@pytest.mark.parametrize(
    "model, key, value, read",
    [
        ("NeuMF", "mlp_hidden_size", "128,64", [128, 64]),
        ("SASRec", "layer_norm_eps", "1e-12", 1e-12),
        ("SASRec", "n_layers", "3", 3),
        ("SASRec", "hidden_act", "swish", "swish"),
        ("NeuMF", "use_pretrain", "false", False),
        ("LightGCN", "reg_weight", 1, 1),
        ("GRU4RecCPR", "reranker_CAN_NUM", "500,100,20", (500, 100, 20)),
        ("DIN", "mlp_hidden_size", [64], [64]),
    ],
)
def test_values_that_recboles_models_take(model, key, value, read):
    assert config(model, "ml-100k", **{key: value})[key] == read


@pytest.mark.parametrize("model", ["SASRec", "BERT4Rec", "LightSANs"])
def test_what_only_a_recbole_model_knows_is_one_line_too(make_dataset, model):
    rows = [(u, i, i) for u in "abc" for i in range(1, 7)]
    message = f"^{model}: The hidden size .* is not a multiple of the number of attention heads"
    with pytest.raises(ConfigError, match=message) as caught:
        run(model, make_dataset("a", rows), n_heads=3)
    assert "\n" not in str(caught.value)


class Own(Hydra):
    """A user's model, with a key of its own beside Hydra's."""

    def __init__(self, config, dataset):
        self.own_key = config["own_key"]


class Other(SASRec):
    def __init__(self, config, dataset):
        self.num_heads = config["num_heads"]


def test_a_users_own_class_has_the_rules_of_its_base_and_its_own_keys_are_free():
    for value in ("anything", None, [1], {"a": 1}, -3):
        assert Config(Own, "tiny", config_dict={"own_key": value})["own_key"] == value
    with pytest.raises(ConfigError, match="num_heads must be a positive integer, got 'x'"):
        Config(Own, "tiny", config_dict={"own_key": 1, "num_heads": "x"})
    # num_heads is Hydra's; in a model of other descent it may be anything.
    settings = {"num_heads": "x", "hidden_size": 8, "loss_type": "CE"}
    made = Config(Other, "tiny", config_dict={**settings, "train_neg_sample_args": None})
    assert made["num_heads"] == "x" and made["hidden_size"] == 8


def test_a_package_that_is_missing_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    real = __import__("importlib.util").util.find_spec
    monkeypatch.setattr(
        "importlib.util.find_spec", lambda name, *rest: None if name == "wandb" else real(name)
    )
    with pytest.raises(ConfigError, match="log_wandb needs .*pip install wandb"):
        config(log_wandb=True)
    assert config(log_wandb=False)["log_wandb"] is False


# -- keys ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("key", sorted(computed_keys()))
def test_computed_keys_cannot_be_set(key):
    with pytest.raises(ConfigError, match=f"command line: computed key '{key}': it follows from"):
        config(argv=[f"--{key}=cuda:3"])


@pytest.mark.parametrize("key", sorted(RENAMED))
def test_old_keys_are_told_what_they_are_called_today(key):
    with pytest.raises(ConfigError, match=f"unknown key '{key}'.*'{RENAMED[key]}'"):
        config(**{key: 1})


@pytest.mark.parametrize(
    "key", [*RENAMED, "neg_sample_args", "eval_typ", "devic", "MODEL_TYP", "test_neg_sample_arg"]
)
def test_hints_name_no_key_that_is_overwritten(key):
    with pytest.raises(ConfigError, match="unknown key") as caught:
        config(**{key: 1})
    named = re.findall(r"'(\w+)'", str(caught.value).partition(";")[2])
    assert not set(named) & computed_keys()


# -- paths and names -----------------------------------------------------------------------------


@pytest.fixture
def at_home(tmp_path, monkeypatch):
    """The home folder is a folder of the test's."""
    folder = tmp_path / "home"
    folder.mkdir()
    monkeypatch.setenv("HOME", str(folder))
    return folder


def test_the_home_folder_in_settings(at_home):
    made = config(argv=["--data_path=~/sets", "--checkpoint_dir=~/saved", "--item_llm=~/llm"])
    assert made["data_path"] == str(at_home / "sets" / "tiny")
    assert made["checkpoint_dir"] == str(at_home / "saved")
    assert made["item_llm"] == str(at_home / "llm")
    assert config(argv=["--data_path=~"])["data_path"] == str(at_home / "tiny")
    assert config(data_path=Path("~/sets"))["data_path"] == str(at_home / "sets" / "tiny")
    assert config("NeuMF", mf_pretrain_path="~/a")["mf_pretrain_path"] == str(at_home / "a")
    (at_home / "mine.yaml").write_text("data_path: ~/yaml\nitem_llm: ~\nadapt_from: ~\n")
    made = config(files=["~/mine.yaml"])
    assert made["data_path"] == str(at_home / "yaml" / "tiny")
    assert made["item_llm"] is None and made["adapt_from"] is None
    assert config(argv=["--item_llm=~", "--item_llm_cache=~"])["item_llm_cache"] is None


def test_the_home_folder_in_runs(at_home):
    settings = small("Hydra", epochs=1, checkpoint_dir="~/saved", state="ERROR")
    result = run_recbole_hydra("Hydra", "tiny", config_dict=settings)
    assert Path(result["best_checkpoint"]).parent == at_home / "saved"
    assert load_model("~/saved/" + Path(result["best_checkpoint"]).name)
    last = "~/saved/" + Path(result["last_checkpoint"]).name
    again = run_recbole_hydra(resume=last, config_dict={"epochs": 2})
    assert again["epochs_run"] == 2 and Path(again["best_checkpoint"]).parent == at_home / "saved"


@pytest.mark.parametrize("name", ["data/tiny", "~/data/tiny", "/data/tiny", "data\\tiny", "./tiny"])
def test_a_path_is_no_dataset_name(name, at_home):
    for names in ({"dataset": name}, {"dataset": None, "domains": [name, "other"]}):
        with pytest.raises(
            ConfigError, match="is a path, not a name; .*tiny --data_path="
        ) as caught:
            config(**names)
        assert "\n" not in str(caught.value)
    with pytest.raises(ConfigError, match="is a path, not a name"):
        Config("Hydra", config_dict={"dataset": name})


# -- splits and sampling, through whole runs -----------------------------------------------------


ROWS = [(f"u{u}", f"i{(u * 7 + t * t) % 15}", t + 1) for u in range(40) for t in range(9)]


def run(model, data_path, name="a", **changes):
    settings = {
        **small(model),
        "epochs": 1,
        "topk": [5],
        "valid_metric": "NDCG@5",
        "state": "ERROR",
    }
    settings = {**settings, "data_path": data_path, **changes}
    return run_recbole_hydra(model, name, config_dict=settings)


@pytest.mark.parametrize(
    "split, has_valid, has_test",
    [
        ({"LS": "valid_only"}, True, False),
        ({"LS": "test_only"}, False, True),
        ({"RS": [0.8, 0.2, 0]}, True, False),
        ({"RS": [0.8, 0, 0.2]}, False, True),
        ({"TS": [0.7, 0, 0.3]}, False, True),
    ],
)
@pytest.mark.parametrize(
    "model, training, mode",
    [
        ("Hydra", "auto", "full"),
        ("Hydra", "augmentation", "full"),
        ("Hydra", "auto", "uni5"),
        ("BPR", "auto", "full"),
    ],
)
def test_runs_without_validation_or_test(
    make_dataset, model, training, mode, split, has_valid, has_test
):
    arguments = {"split": split, "mode": mode}
    result = run(model, make_dataset("a", ROWS), training_mode=training, eval_args=arguments)
    assert (
        (result["best_valid_result"] is not None)
        == has_valid
        == (result["best_valid_score"] is not None)
    )
    assert (result["test_result"] is not None) == has_test
    assert parts_left_out({"split": split}) == (has_valid, has_test)


def test_domains_without_validation_or_test(make_dataset):
    path = make_dataset("a", ROWS)
    make_dataset("b", ROWS[::-1])
    for way in ("valid_only", "test_only"):
        result = run("Hydra", path, None, domains=["a", "b"], eval_args={"split": {"LS": way}})
        assert (result["best_valid_result"] is None) == (way == "test_only")
        assert (result["test_result"] is None) == (way == "valid_only")


def test_a_split_that_leaves_nothing_is_named(make_dataset):
    path = make_dataset("a", [(f"u{u}", f"i{t}", 5) for u in range(9) for t in range(6)])
    for model in ("Hydra", "BPR"):  # all at once: nothing is later than the cut
        with pytest.raises(DatasetError, match="eval_args .*TS.* leaves no interaction to test on"):
            run(model, path, eval_args={"split": {"TS": [0.8, 0.1, 0.1]}})


@pytest.mark.parametrize("model", ["Hydra", "FM"])
def test_labels_that_are_not_there(make_dataset, model):
    labeled = {"metrics": ["AUC"], "valid_metric": "AUC", "eval_args": {"mode": "labeled"}}
    with pytest.raises(DatasetError, match="reads labels, and there is no column 'label'"):
        run(model, make_dataset("a", ROWS), **labeled)


def test_labels_that_are_there(make_dataset):
    columns = ("user_id:token", "item_id:token", "timestamp:float", "label:float")
    path = make_dataset("a", [(*row, n % 2) for n, row in enumerate(ROWS)], columns)
    labeled = {
        "metrics": ["AUC"], "valid_metric": "AUC",
        "eval_args": {"mode": "labeled", "split": {"RS": [0.6, 0.2, 0.2]}},
        "load_col": {"inter": ["user_id", "item_id", "timestamp", "label"]},
    }  # fmt: skip
    for model in ("Hydra", "FM"):
        assert 0 <= run(model, path, **labeled)["test_result"]["auc"] <= 1


ONE_ITEM = [(f"u{u}", "i0", t) for u in range(20) for t in range(6)]
ALL_ITEMS = [(f"u{u}", f"i{t % 4}", t) for u in range(20) for t in range(6)]
POPULAR = {"train_neg_sample_args": {"distribution": "popularity", "sample_num": 1}}


@pytest.mark.parametrize(
    "model, rows, changes",
    [
        ("Hydra", ONE_ITEM, {"loss_type": "BPR"}),
        ("Hydra", ONE_ITEM, {"loss_type": "BPR", **POPULAR}),
        ("Hydra", ONE_ITEM, {"loss_type": "BPR", "training_mode": "augmentation"}),
        ("Hydra", ONE_ITEM, {"loss_type": "BPR", "training_mode": "augmentation", "worker": 1}),
        ("Hydra", ONE_ITEM, {"eval_args": {"mode": "uni5"}}),
        ("Hydra", ONE_ITEM, {"eval_args": {"mode": {"valid": "full", "test": "pop5"}}}),
        ("SASRec", ONE_ITEM, {"loss_type": "BPR"}),
        ("BPR", ONE_ITEM, {}),
        ("BPR", ONE_ITEM, POPULAR),
        ("BPR", ONE_ITEM, {"train_neg_sample_args": {"dynamic": True, "candidate_num": 2}}),
        ("BPR", ALL_ITEMS, {"repeatable": False}),
        ("BPR", ALL_ITEMS, {"repeatable": False, **POPULAR}),
        ("NeuMF", ONE_ITEM, {}),
        ("BERT4Rec", ALL_ITEMS, {"mask_ratio": 0.9}),
        ("LINE", ALL_ITEMS, {}),
    ],
)
def test_sampling_that_cannot_succeed_is_one_line(make_dataset, model, rows, changes):
    changes = {"topk": [1], "valid_metric": "NDCG@1", **changes}
    with pytest.raises(DatasetError, match="^negative sampling") as caught:
        run(model, make_dataset("a", rows), **changes)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "changes",
    [{}, {"loss_type": "SampledCE", "num_negatives": 1}, {"loss_type": "gBCE", "num_negatives": 1}],
)
def test_one_item_is_enough_for_other_losses(make_dataset, changes):
    result = run("Hydra", make_dataset("a", ONE_ITEM), topk=[1], valid_metric="NDCG@1", **changes)
    assert result["test_result"]["hit@1"] == 1


def test_recboles_samplers_are_guarded_themselves():
    """As in code of the user's own, without our loaders."""
    from recbole.sampler import KGSampler, RepeatableSampler, Sampler, SeqSampler

    def sampler(kind, distribution="uniform", **attributes):
        made = object.__new__(kind)
        made.distribution = distribution
        vars(made).update({"item_num": 3, **attributes})
        return made

    full, free = {1, 2}, {1}
    made = sampler(Sampler, used_ids=np.array([free, full], dtype=object))
    assert made.sample_by_user_ids([0, 0], [1, 1], 2).tolist() == [2, 2, 2, 2]
    for users in ([1], [0, 1]):
        with pytest.raises(DatasetError, match="items: 2"):
            made.sample_by_user_ids(users, [1] * len(users), 1)
    popular = {"prob": {1: 1.0}, "alias": {1: -1}}
    made = sampler(Sampler, "popularity", used_ids=np.array([free, {2}], dtype=object), **popular)
    assert made.sample_by_user_ids([1], [2], 3).tolist() == [1, 1, 1]
    with pytest.raises(DatasetError, match="items: 1"):
        made.sample_by_user_ids([0], [1], 1)
    made = sampler(RepeatableSampler, item_num=2, user_num=2)
    with pytest.raises(DatasetError, match="items: 1"):
        made.sample_by_user_ids([1, 0], [1, 1], 1)
    made = sampler(KGSampler, entity_num=3, used_ids=np.array([set(), full], dtype=object))
    assert set(made.sample_by_entity_ids([0], 4).tolist()) <= full
    with pytest.raises(DatasetError, match="entities: 2"):
        made.sample_by_entity_ids([1])
    made = sampler(SeqSampler, item_num=2)
    with pytest.raises(DatasetError, match="items: 1"):
        made.sample_neg_sequence(torch.tensor([1, 1]))


# -- the commands --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "arguments",
    [["--learner=sdg"], ["--eval_args={'split': {'RS': [0.8, 0.2]}}"], ["--device=cuda:3"]],
)
def test_compare_refuses_before_anything_trains(tmp_path, arguments):
    with pytest.raises(RecBoleHydraError, match="learner must|RS must be three|computed key 'dev"):
        compare(["Hydra", "SASRec"], ["tiny"], [1], "out", argv=arguments)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "space, message",
    [
        ({"learner": ["adam", "sgd", "sdg"]}, "space: learner must be .*did you mean 'sgd'"),
        ({"learning_rate": [0.1, "fast"]}, "space: learning_rate must be a number of at least 0"),
        ({"learning_rate": {"uniform": [-0.1, 0.1]}}, "space: learning_rate must be a number of"),
        ({"d_conv": {"uniform": [1, 4]}}, "space: d_conv must be a positive integer"),
        ({"d_conv": {"int": [0, 4]}}, "space: d_conv must be a positive integer, got 0"),
        ({"d_conv": {"quniform": [0, 8, 4]}}, "space: d_conv must be a positive integer"),
        ({"device": ["cpu"]}, "computed key 'device'"),
    ],
)
@pytest.mark.parametrize("search", ["random", "optuna"])
def test_tune_refuses_a_space_with_a_wrong_value(space, message, search):
    with pytest.raises(TuneError, match=message):
        small_plan(space, search=search)


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"eval_args": {"split": {"LS": "valid_only"}}}, "a sweep chooses on validation"),
        ({"eval_args": {"split": {"RS": [0.8, 0, 0.2]}}}, "a sweep chooses on validation"),
        ({"eval_step": 0}, "eval_step: 0 never evaluates"),
    ],
)
def test_tune_needs_both_parts(changes, message):
    taken = {"show_progress", "learning_rate"}
    settings = {key: value for key, value in small("Hydra").items() if key not in taken}
    with pytest.raises(TuneError, match=message):
        small_plan({"d_conv": [2]}, config_dict={**settings, **changes})


def test_on_the_command_line_it_is_the_only_line(tmp_path):
    command = [sys.executable, "-m", "recbole_hydra.cli"]
    line = "--model=Hydra --dataset=ml-100k --learner=sdg".split()
    root = str(Path(__file__).parents[1])
    environment = {**os.environ, "PYTHONPATH": root}
    done = subprocess.run([*command, *line], capture_output=True, text=True, env=environment)
    assert done.returncode == 2 and done.stdout == ""
    (said,) = done.stderr.splitlines()
    assert said.startswith("recbole-hydra: error: learner must be one of") and "'sgd'" in said


def test_metrics_with_and_without_places():
    assert metric_names(["NDCG", "GAUC"], [5, 10]) == ["NDCG@5", "NDCG@10", "GAUC"]
    assert metric_names(["ItemCoverage"], [5]) == ["ItemCoverage@5"]
    assert metric_names(["AUC", "LogLoss"], [5]) == ["AUC", "LogLoss"]


# -- columns -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "changes",
    [
        {"ITEM_LIST_LENGTH_FIELD": "item_id"},
        {"ITEM_LIST_LENGTH_FIELD": "user_id"},
        {"USER_ID_FIELD": "item_id"},
        {"TIME_FIELD": "user_id"},
        {"POSITION_FIELD": "timestamp"},
        {"LABEL_FIELD": "item_id"},
    ],
    ids=str,
)
@pytest.mark.parametrize("model", ["Hydra", "BPR"])
def test_a_column_has_one_meaning(model, changes):
    ((key, name),) = changes.items()
    with pytest.raises(ConfigError, match=f"{key}.*both are '{name}', and a column has one"):
        Config(model, "tiny", config_dict={"data_path": str(DATASETS), **changes})


@pytest.mark.parametrize("model", ["Hydra", "FM"])
def test_threshold_loads_its_column(make_dataset, model):
    columns = ("user_id:token", "item_id:token", "rating:float", "timestamp:float")
    rows = [(f"u{u}", f"i{(u + n) % 9}", 1 + (u + n) % 5, n) for u in range(14) for n in range(7)]
    path = make_dataset("rated", rows, columns)
    given = {"data_path": path, "threshold": {"rating": 3}}
    if model == "FM":
        given["load_col"] = {"inter": ["user_id", "item_id", "timestamp"]}
    made = Config(model, "rated", config_dict=given)
    assert "rating" in made["load_col"]["inter"]
    assert any("loading rating, too, for threshold" in note for note in made.notes)
    create_dataset(made)


@pytest.mark.parametrize("name", ["timestamp", "user_id", "item_id"])
def test_threshold_is_not_of_ids_and_times(name):
    with pytest.raises(ConfigError, match=f"threshold: {name} is .*_FIELD, of which no labels"):
        Config("Hydra", "tiny", config_dict={"data_path": str(DATASETS), "threshold": {name: 3}})
