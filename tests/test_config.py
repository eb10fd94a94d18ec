import os
import sys

import pytest
import torch
from conftest import SMALL_HYDRA, small
from recbole.model.sequential_recommender import SASRec

from recbole_hydra import Config, Hydra, default_config
from recbole_hydra.errors import ConfigError
from recbole_hydra.model import MODELS, get_model, recbole_model_names
from recbole_hydra.settings.spelling import parse_arguments, parse_list, parse_paths, parse_value


def config(model="Hydra", dataset="tiny", argv=(), files=None, **values):
    return Config(model, dataset, files, values, argv)


@pytest.fixture
def yaml_file(tmp_path):
    def write(text, name="mine.yaml"):
        (tmp_path / name).write_text(text)
        return str(tmp_path / name)

    return write


# -- layers --------------------------------------------------------------------------------------


def test_ours_go_over_recboles_and_the_users_over_ours(yaml_file):
    assert config()["valid_metric"] == "NDCG@10"  # RecBole: MRR@10
    assert config()["metrics"] == ["Hit", "NDCG", "MRR"]
    assert config()["eval_args"]["split"] == {"LS": "valid_and_test"}
    assert config()["load_col"] == {"inter": ["user_id", "item_id", "timestamp"]}
    assert config()["num_heads"] == 4 and config()["epochs"] == 300

    file = yaml_file("epochs: 7\nnum_heads: 8\nseed: 1\n")
    assert config(files=[file])["num_heads"] == 8
    assert config(files=[file], epochs=6)["epochs"] == 6
    layered = config(files=[file], epochs=6, argv=["--epochs=5"])
    assert (layered["epochs"], layered["seed"]) == (5, 1)
    later = yaml_file("epochs: 9\n", "later.yaml")
    assert config(files=[file, later])["epochs"] == 9


@pytest.mark.parametrize("model", ["SASRec", "GRU4Rec", "Pop", "BPR", "LightGCN"])
def test_the_protocol_is_the_same_for_every_ranking_model(model):
    other, ours = config(model), config("Hydra")
    for key in ("eval_args", "metrics", "topk", "valid_metric", "repeatable"):
        assert other[key] == ours[key], key


def test_click_models_keep_recboles_evaluation():
    clicks = Config("FM", "ml-100k")
    assert clicks["metrics"] == ["AUC", "LogLoss"]
    assert any("predicts clicks" in note for note in clicks.notes)


@pytest.mark.parametrize("name", sorted({*recbole_model_names()} - {"xgboost", "lightgbm"}))
def test_every_model_of_recbole_has_a_config(name):
    made = Config(name, "ml-100k", config_dict={"save_step": 1} if name == "S3Rec" else None)
    assert made["model"] == name and made.model_class is get_model(name)


def test_classes_are_models_too():
    assert Config(Hydra, "tiny")["model"] == "Hydra"
    assert Config(SASRec, "tiny")["train_neg_sample_args"]["distribution"] == "none"
    assert MODELS["Hydra"] is Hydra and get_model("SASRec") is SASRec


def test_a_foreign_command_line_is_not_read(monkeypatch):
    monkeypatch.setattr("sys.argv", ["worker", "--epochs=77", "--nonsense=1", "--seed=3"])
    assert config()["epochs"] == 300 and config()["seed"] == 2020


def test_default_config_is_a_file_for_recboles_config():
    assert os.path.isfile(default_config("Hydra")) and os.path.isfile(default_config("Mamba4Rec"))
    with pytest.raises(ConfigError, match="'Hidra'; did you mean 'Hydra'"):
        default_config("Hidra")


def test_a_model_whose_library_is_missing_says_so(monkeypatch):
    monkeypatch.setitem(sys.modules, "lightgbm", None)
    with pytest.raises(ConfigError, match="lightgbm needs a library: .*lightgbm.*pip install"):
        config("lightgbm")


# -- bad input -----------------------------------------------------------------------------------


def test_unknown_models_are_named_with_the_nearest():
    with pytest.raises(ConfigError, match="no model 'Hydro'; did you mean 'Hydra'"):
        config("Hydro")
    with pytest.raises(ConfigError, match="no model 'sasrec'; did you mean 'SASRec'"):
        config("sasrec")
    with pytest.raises(ConfigError, match="model: not given; pass --model=NAME"):
        Config(dataset="tiny")
    with pytest.raises(ConfigError, match="dataset: not given; pass --dataset=NAME"):
        Config("Hydra")


def test_a_mistyped_key_is_an_error_in_every_layer(yaml_file):
    with pytest.raises(ConfigError, match="command line: unknown key 'learning_rat'.*'learning_"):
        config(argv=["--learning_rat=0.1"])
    with pytest.raises(ConfigError, match=r"mine.yaml: unknown key 'hiden_size'.*'hidden_size'"):
        config(files=[yaml_file("hiden_size: 64\n")])
    with pytest.raises(ConfigError, match="config_dict: unknown key 'num_head'.*'num_heads'"):
        config(num_head=2)
    with pytest.raises(ConfigError, match="unknown key 'splt' in eval_args; did you mean 'split'"):
        config(eval_args={"splt": {"LS": "valid_only"}})
    with pytest.raises(ConfigError, match="unknown key 'zzzzzz'$"):
        config(zzzzzz=1)


def test_keys_that_are_read_without_being_listed_are_known():
    config(encoding="utf-8", numerical_features=[], wandb_project="x", benchmark_filename=None)
    config("GRU4Rec", embedding_size=8)
    assert config("RippleNet", dataset="ml-100k", n_memory=3)["n_memory"] == 3


def test_keys_of_other_models_are_noted():
    made = config("GRU4Rec", n_layers=3)
    assert any("GRU4Rec does not read 'n_layers'" in note for note in made.notes)


def test_keys_of_a_users_own_model_are_known(tmp_path, monkeypatch):
    (tmp_path / "own_model.py").write_text(
        "from recbole_hydra import Hydra\n"
        "class Own(Hydra):\n"
        "    def __init__(self, config, dataset):\n"
        "        self.own_key = config['own_key']\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    from own_model import Own

    settings = dict(SMALL_HYDRA, own_key=3, loss_type="CE", ffn_size=8)
    made = Config(Own, "tiny", config_dict=settings)
    assert made["own_key"] == 3
    with pytest.raises(ConfigError, match="unknown key 'own_kez'; did you mean 'own_key'"):
        Config(Own, "tiny", config_dict={"own_kez": 3, "loss_type": "CE"})


def test_files_that_are_not_config_files(yaml_file):
    with pytest.raises(ConfigError, match="config file nowhere.yaml: No such file"):
        config(files=["nowhere.yaml"])
    with pytest.raises(ConfigError, match="mine.yaml: not valid yaml: "):
        config(files=[yaml_file("a: [1\nb: 2")])
    with pytest.raises(ConfigError, match="expected 'key: value' lines"):
        config(files=[yaml_file("- epochs")])
    assert config(files=[yaml_file("# nothing\n")])["epochs"] == 300


@pytest.mark.parametrize(
    "values, message",
    [
        ({"metrics": "Hits"}, "metrics must be a list of .*, got 'Hits'; did you mean 'hit'"),
        ({"valid_metric": "NDCG@20"}, "valid_metric: NDCG@20 is not computed.*NDCG@10"),
        ({"topk": [0]}, "topk must be positive integers"),
        ({"topk": "ten"}, "topk must be positive integers"),
        ({"epochs": "many"}, "epochs must be an integer of at least 0, got 'many'"),
        ({"show_progress": "maybe"}, "show_progress must be True or False, got 'maybe'"),
        ({"eval_args": "full"}, "eval_args must be a dict such as .*, got 'full'"),
        (
            {"eval_args": {"mode": "ful"}},
            "eval_args: mode must be full, .* uniN .*'ful'; did you mean 'full'",
        ),
        (
            {"metrics": ["Hit", "AUC"], "valid_metric": "Hit@10"},
            "metrics: Hit are of rankings, AUC of single",
        ),
        ({"loss_type": "CEE"}, "loss_type must be one of CE, BPR, SampledCE, gBCE, got 'CEE'"),
    ],
)
def test_bad_values_are_named(values, message):
    with pytest.raises(ConfigError, match=message):
        config(**values)


# -- negative sampling ---------------------------------------------------------------------------


@pytest.mark.parametrize("model", ["Hydra", "Mamba4Rec", "SASRec", "GRU4Rec"])
def test_negative_sampling_follows_the_loss(model):
    ce = config(model, loss_type="CE")
    assert ce["train_neg_sample_args"]["distribution"] == "none"
    bpr = config(model, loss_type="BPR")
    sampling = bpr["train_neg_sample_args"]
    assert (sampling["distribution"], sampling["sample_num"]) == ("uniform", 1)
    changed = bpr if model in MODELS else ce  # RecBole's default is BPR's, our yaml's is CE's
    assert any("train_neg_sample_args is set to" in note for note in changed.notes)


def test_only_a_contradiction_the_user_wrote_is_an_error(yaml_file):
    uniform = {"distribution": "uniform", "sample_num": 1}
    with pytest.raises(ConfigError, match="contradicts loss_type CE.*remove train_neg_sample_args"):
        config(loss_type="CE", train_neg_sample_args=uniform)
    with pytest.raises(ConfigError, match="contradicts loss_type BPR; BPR needs negatives"):
        config(files=[yaml_file("train_neg_sample_args: ~\n")], argv=["--loss_type=BPR"])
    config(loss_type="CE", train_neg_sample_args=None)
    config(loss_type="CE", train_neg_sample_args={"distribution": "none"})
    popular = config(
        loss_type="BPR", train_neg_sample_args={"distribution": "popularity", "sample_num": 1}
    )
    assert popular["train_neg_sample_args"]["distribution"] == "popularity"


# -- values --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text, value",
    [
        ("1e-3", 0.001),
        ("5", 5),
        ("true", True),
        ("False", False),
        ("None", None),
        ("~", None),
        ("none", "none"),
        ("ml-100k", "ml-100k"),
        ("{'LS': 'valid_only'}", {"LS": "valid_only"}),
        ("{LS: valid_only}", {"LS": "valid_only"}),
        ("[1, 2]", [1, 2]),
        ("__import__('os').getcwd()", "__import__('os').getcwd()"),
    ],
)
def test_values_are_read_not_evaluated(text, value):
    assert parse_value(text) == value


@pytest.mark.parametrize("text", ["10,20", "10 20", "[10, 20]", "(10,20)"])
def test_lists_are_comma_or_space_separated(text):
    assert parse_list(text) == [10, 20]
    assert config(argv=[f"--topk={text}"])["topk"] == [10, 20]
    assert config(topk=text)["topk"] == [10, 20]


def test_paths_may_have_spaces(tmp_path):
    for name in ("my conf.yaml", "a.yaml", "b.yaml"):
        (tmp_path / name).touch()
    assert parse_paths("my conf.yaml, a.yaml") == ["my conf.yaml", "a.yaml"]
    assert parse_paths("a.yaml b.yaml") == ["a.yaml", "b.yaml"]  # as RecBole's command has it
    assert parse_paths("no file.yaml") == ["no file.yaml"]
    assert parse_paths("") == []


def test_lists_of_names():
    assert config(argv=["--metrics=Hit,MRR", "--valid_metric=MRR@10"])["metrics"] == ["Hit", "MRR"]
    assert config(normalize_field="timestamp rating")["normalize_field"] == ["timestamp", "rating"]


def test_arguments_with_and_without_equals():
    arguments = parse_arguments(["--model=Hydra", "--epochs", "3", "--a=b=c"])
    assert arguments == {"model": "Hydra", "epochs": "3", "a": "b=c"}
    with pytest.raises(ConfigError, match="expected --key=value, got 'epochs=3'"):
        parse_arguments(["epochs=3"])
    with pytest.raises(ConfigError, match="--epochs has no value"):
        parse_arguments(["--epochs", "--seed=1"])
    with pytest.raises(ConfigError, match="--seed is given twice, as '1' and '2'"):
        parse_arguments(["--seed=1", "--seed=2"])


def test_part_of_eval_args_keeps_the_rest_of_the_protocol():
    made = config(eval_args={"mode": "uni100"})["eval_args"]
    assert made["split"] == {"LS": "valid_and_test"} and made["order"] == "TO"
    assert made["mode"] == {"valid": "uni100", "test": "uni100"}


def test_the_callers_dict_is_left_alone():
    values = {"topk": "10,20", "learning_rate": "0.01"}
    Config("Hydra", "tiny", config_dict=values)
    assert values == {"topk": "10,20", "learning_rate": "0.01"}


def test_columns_are_chosen_where_nobody_names_them():
    made = config(dataset="unheard-of", TIME_FIELD="time")
    assert made["load_col"] == {"inter": ["user_id", "item_id", "time"]}
    assert any("load_col is not set" in note for note in made.notes)
    chosen = {"inter": ["user_id", "item_id", "time", "price"]}
    assert config(dataset="unheard-of", load_col=chosen)["load_col"] == chosen


# -- device --------------------------------------------------------------------------------------


def test_a_schedulers_gpu_assignment_stands(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3")
    assert config()["gpu_id"] == "3" and os.environ["CUDA_VISIBLE_DEVICES"] == "3"
    assert config(gpu_id="1")["gpu_id"] == "1" and os.environ["CUDA_VISIBLE_DEVICES"] == "1"


def test_use_gpu_false_means_the_cpu(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert config()["device"].type == "cuda"
    assert config(use_gpu=False)["device"].type == "cpu"


def test_small_settings_of_the_tests_are_valid():
    for model in ("Hydra", "Mamba4Rec"):
        assert config(model, **small(model))["epochs"] == 2


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"user_inter_num_interval": 5}, "user_inter_num_interval must be an interval .*, got 5"),
        ({"item_inter_num_interval": "[a,inf)"}, "item_inter_num_interval must be an interval"),
        ({"MAX_ITEM_LIST_LENGTH": 0}, "MAX_ITEM_LIST_LENGTH must be a positive integer, got 0"),
    ],
)
def test_filters_and_lengths_that_recbole_takes_for_something_else(changes, message):
    with pytest.raises(ConfigError, match=message):
        config(**changes)


@pytest.mark.parametrize("text", ["[5,inf)", "(0, 1e3]", "[1,2];[5,6.5]"])
def test_intervals(text):
    assert config(user_inter_num_interval=text)["user_inter_num_interval"] == text
    closed = config(argv=["--user_inter_num_interval=[5,10]"])["user_inter_num_interval"]
    assert closed == "[5,10]"
