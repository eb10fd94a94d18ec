"""Item columns of RecBole's feature models: read, or named in one line."""

import pytest
from conftest import small

from recbole_hydra.cli import main
from recbole_hydra.errors import ConfigError, DatasetError
from recbole_hydra.settings.config import Config
from recbole_hydra.training.run import train

COLUMNS = "item_id:token\tclass:token\ttags:token_seq\tprice:float\temb:float_seq"
NAMED = ["SASRecF", "GRU4RecF", "FDSA", "S3Rec"]


@pytest.fixture
def shop(make_dataset, tmp_path):
    rows = [(f"u{u}", f"i{(u + n) % 9}", n) for u in range(14) for n in range(7)]
    path = make_dataset("shop", rows)
    lines = [f"i{n}\tc{n % 3}\ta{n % 2} b\t{n}.5\t{n} 0.5" for n in range(9)]
    (tmp_path / "data" / "shop" / "shop.item").write_text("\n".join([COLUMNS, *lines]) + "\n")
    return path


def settings(model, path, features, **changes):
    key = "item_attribute" if model == "S3Rec" else "selected_features"
    own = {"data_path": path, "epochs": 1, "inner_size": 8, "n_layers": 1, "num_layers": 1,
           "pretrain_epochs": 1, key: features}  # fmt: skip
    unread = {"GRU4RecF": ("inner_size", "n_layers")}.get(model, ("num_layers",))
    unread += () if model == "S3Rec" else ("pretrain_epochs",)
    return {k: v for k, v in small(model, **own, **changes).items() if k not in unread}


def fit(model, path, features, **changes):
    config_dict = settings(model, path, features, **changes)
    return train(model, "shop", config_dict=config_dict, saved=False)


@pytest.mark.parametrize("model", NAMED)
@pytest.mark.parametrize("features", [["class"], ["tags"], ["class", "tags"]])
@pytest.mark.parametrize("load_col", [None, "ids", "named", "all"])
def test_tokens_are_read_however_they_are_loaded(shop, model, features, load_col):
    if model == "S3Rec":
        features = features[0]
    inter = ["user_id", "item_id", "timestamp"]
    given = {
        None: {},
        "ids": {"load_col": {"inter": inter}},
        "named": {"load_col": {"inter": inter, "item": ["item_id", "class", "tags"]}},
        "all": {"load_col": {"inter": inter, "item": "*"}},
    }[load_col]
    run = fit(model, shop, features, **given)
    assert run.result["epochs_run"] == 1


@pytest.mark.parametrize("model", ["SASRecF", "GRU4RecF", "FDSA"])
def test_numbers_are_read_as_numerical_features(shop, model):
    numbers = ["price"] if model == "SASRecF" else ["price", "emb"]
    assert fit(model, shop, ["class", *numbers], numerical_features=numbers).result["epochs_run"]


WRONG = [
    ("genre", "has no column 'genre'; it has item_id, class, tags, price, emb"),
    ("clas", "has no column 'clas'; did you mean 'class'"),
    ("timestamp", "has no column 'timestamp'"),
    ("emb", "'emb' of dataset shop is float_seq"),
    ("price", "'price' of dataset shop is float"),
]


@pytest.mark.parametrize("model", NAMED)
@pytest.mark.parametrize("feature, message", WRONG, ids=[feature for feature, _ in WRONG])
@pytest.mark.parametrize("others", [[], ["class"]])
def test_what_cannot_be_read_is_named_with_what_it_must_be(shop, model, feature, message, others):
    if model == "S3Rec" and others:
        return
    setting = "item_attribute" if model == "S3Rec" else "selected_features"
    with pytest.raises(DatasetError) as raised:
        fit(model, shop, [*others, feature] if model != "S3Rec" else feature)
    text = str(raised.value)
    assert text.startswith(f"{setting}: ") and message in text and "\n" not in text
    assert f"{model} takes item columns of type token or token_seq" in text


def test_what_load_col_leaves_out_on_purpose(shop):
    with pytest.raises(DatasetError, match="'class' is in .* and not loaded; .* unload_col not"):
        fit("SASRecF", shop, "class", load_col=None, unload_col={"item": ["class"]})


def test_without_an_item_file(make_dataset):
    path = make_dataset("shop", [(f"u{u}", f"i{n}", n) for u in range(9) for n in range(7)])
    with pytest.raises(DatasetError, match="no column 'class', as there is no .*shop.item"):
        fit("FDSA", path, "class")


def test_of_several_domains_there_are_no_columns(shop):
    config_dict = {**settings("SASRecF", shop, "class"), "domains": ["shop"]}
    with pytest.raises(DatasetError, match="'class' is not there, since several domains"):
        train("SASRecF", config_dict=config_dict, saved=False)


@pytest.mark.parametrize("value", [[], None, [1], {"class": 1}, 3])
def test_no_column_at_all(value):
    config_dict = {**small("SASRecF"), "selected_features": value}
    with pytest.raises(ConfigError, match="selected_features must name item columns"):
        Config("SASRecF", "tiny", config_dict=config_dict)


def test_an_attribute_is_one_column():
    config_dict = {**small("S3Rec"), "item_attribute": ["class", "tags"]}
    with pytest.raises(ConfigError, match="item_attribute must be one item column"):
        Config("S3Rec", "tiny", config_dict=config_dict)


def test_on_the_command_line_it_is_one_line(shop, capsys):
    argv = [f"--{k}={v}" for k, v in settings("SASRecF", shop, "emb").items()]
    assert main(["--model=SASRecF", "--dataset=shop", "--state=ERROR", *argv]) == 2
    error = capsys.readouterr().err.strip().splitlines()
    assert len(error) == 1 and error[0].startswith("recbole-hydra: error: selected_features: 'emb'")
