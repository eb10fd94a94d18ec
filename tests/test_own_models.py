"""A model of one's own, named by its file and class wherever a model is named."""

from pathlib import Path

import pytest
from conftest import small

from recbole_hydra import Config, Recommender, load_model, recommend, run_recbole_hydra
from recbole_hydra.cli import main
from recbole_hydra.compare import Comparison, compare
from recbole_hydra.errors import CheckpointError, ComparisonError, ConfigError
from recbole_hydra.tune import tune

MINE = """
import torch
from torch import nn
from recbole.model.sequential_recommender import SASRec
from recbole_hydra import CausalRecommender, Items


class Mine(CausalRecommender):
    def __init__(self, config, dataset):
        super().__init__(config, dataset)
        self.item_embedding = nn.Embedding(self.n_items, config["hidden_size"], padding_idx=0)
        self.items = Items(self.n_items, self.item_embedding)
        self.scale = nn.Parameter(torch.full((), float(config["my_scale"] or 1)))

    def states(self, item_seq):
        return self.scale * self.items.vectors(item_seq).cumsum(1)


class Hydra(SASRec):
    pass


class Other:
    pass
"""


@pytest.fixture
def mine():
    Path("mine.py").write_text(MINE)
    return "mine.py:Mine"


def given(**changes):
    return {key: value for key, value in small("Mine", **changes).items() if key != "show_progress"}


def line(**changes):
    return [f"--{key}={value}" for key, value in given(**changes).items()]


def test_in_a_run_and_after_it(mine, capsys):
    assert main([f"--model={mine}", "--dataset=tiny", *line(), "--show_progress=False"]) == 0
    best, last = (next(Path("saved").glob(f"Mine-*.{kind}.pth")) for kind in ("best", "last"))
    with pytest.raises(CheckpointError, match="--model=FILE.py:Mine, or pass the class"):
        load_model(best)
    model = load_model(best, model=mine)
    assert type(model).__name__ == "Mine" and len(recommend(model, ["i1"], 3)) == 3
    with Recommender(model) as service:
        service.observe("u", "i1")
        assert [i for i, _ in service.recommend("u", 3)] == [
            i for i, _ in recommend(model, ["i1"], 3)
        ]
    assert main([f"--resume={last}", f"--model={mine}", "--epochs=3"]) == 0
    with pytest.raises(CheckpointError, match="its model is Mine, not Hydra"):
        load_model(best, model="mine.py:Hydra")


def test_its_own_settings_are_known(mine):
    config = Config(mine, "tiny", config_dict=given(my_scale=3))
    assert config["my_scale"] == 3 and config["hidden_size"] == 16 and config["model"] == "Mine"
    assert Config(mine, "tiny")["hidden_size"] == 64
    with pytest.raises(ConfigError, match="unknown key 'my_scal'; did you mean 'my_scale'"):
        Config(mine, "tiny", config_dict=given(my_scal=3))


def test_in_a_comparison(mine, tmp_path):
    Path("own.yaml").write_text("my_scale: 2\n")
    config = ["--model_config=Mine:own.yaml", "--popularity=False", "--seeds=1"]
    models = f"--models={mine},GRU4Rec"
    arguments = ["compare", models, "--dataset=tiny", "--output_dir=out", *config, *line()]
    assert main(arguments) == 0
    table = Comparison("out").to_pandas().set_index("model")
    assert dict(table["status"]) == {"Mine": "ok", "GRU4Rec": "ok"}
    assert "| Mine |" in Path("out/report.md").read_text()
    assert main([*arguments, "--resume=True"]) == 0


def test_two_models_of_one_name(mine):
    Path("more.py").write_text(MINE)
    for models in (["Hydra", "mine.py:Hydra"], ["mine.py:Mine", "more.py:Mine"]):
        with pytest.raises(ComparisonError, match="models: two of .* have the same name"):
            compare(models, "tiny", output_dir="out", config_dict=given())


def test_in_a_sweep(mine, local_ray):
    settings = given(epochs=1)
    del settings["learning_rate"]
    found = tune(
        mine, "tiny", {"learning_rate": [0.02, 0.01]}, "out", config_dict=settings,
        num_samples=None, search="grid", max_concurrent=1, show_progress=False,
    )  # fmt: skip
    assert [trial["status"] for trial in found.trials] == ["finished"] * 2
    assert found.test_result is not None


@pytest.mark.parametrize(
    "model, message",
    [
        ("no.py:Mine", "model: no.py:Mine: there is no file .*no.py"),
        ("mine.py:Min", "mine.py has no class 'Min'; did you mean 'Mine'"),
        ("mine.py:", "mine.py has no class ''"),
        ("mine.py:Other", "Other of .*mine.py is no recommender: let it be a subclass of"),
        ("mine.py:torch", "torch of .*mine.py is no recommender"),
        ("broken.py:Mine", "broken.py cannot be run \\(ZeroDivisionError: division by zero\\)"),
        ("mine.txt:Mine", "mine.txt: a model's file ends in .py"),
        ("Zzzzzzz", "there is no model 'Zzzzzzz'; one of your own is named with its file, FILE.py"),
    ],
)
def test_names_that_are_none_are_one_line(mine, model, message, capsys):
    Path("broken.py").write_text("1 / 0\n")
    Path("mine.txt").write_text(MINE)
    with pytest.raises(ConfigError, match=message):
        Config(model, "tiny", config_dict=given())
    assert main([f"--model={model}", "--dataset=tiny", *line()]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_without_a_position_that_sees_no_later_one_it_is_refused(mine):
    text = MINE.replace("cumsum(1)", "flip(1).cumsum(1).flip(1)")
    Path("later.py").write_text(text)
    with pytest.raises(ConfigError, match="Mine is registered as causal, but its state at pos"):
        run_recbole_hydra("later.py:Mine", "tiny", config_dict=small("Mine"))
