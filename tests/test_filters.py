"""``val_interval``: filters by what columns of any file say."""

import pytest
from conftest import small

from recbole_hydra import Config, run_recbole_hydra
from recbole_hydra.data import create_dataset
from recbole_hydra.errors import ConfigError, DatasetError

USERS, ITEMS, LENGTH = 12, 8, 8
INTER = ("user_id:token", "item_id:token", "timestamp:float", "rating:float", "device:token",
         "tags:token_seq", "scores:float_seq")  # fmt: skip


def interactions():
    for user in range(USERS):
        for t in range(LENGTH):
            n = user + t
            yield (f"u{user}", f"i{n % ITEMS}", t, n % 5, ("tv", "phone")[n % 2],
                   "new hot" if n % 3 else "old", "1 2")  # fmt: skip


@pytest.fixture
def films(make_dataset, tmp_path):
    path = make_dataset("films", list(interactions()), INTER)
    genres = ["Comedy", "Action Drama"]
    lines = ["item_id:token\tgenre:token_seq\tyear:float\tcode:token"]
    lines += [f"i{n}\t{genres[n % 2]}\t{1990 + n}\t{n}" for n in range(ITEMS)]
    (tmp_path / "data" / "films" / "films.item").write_text("\n".join(lines) + "\n")
    lines = ["user_id:token\tage:token\tborn:float"]
    lines += [f"u{n}\t{(18, 30, 45)[n % 3]}\t{1980 + n}" for n in range(USERS)]
    (tmp_path / "data" / "films" / "films.user").write_text("\n".join(lines) + "\n")
    return path


def config(path, intervals, model="Hydra", **changes):
    values = small(model, data_path=path, val_interval=intervals, **changes)
    return Config(model, "films", config_dict=values)


def count(test) -> int:
    return sum(map(test, interactions()))


@pytest.mark.parametrize(
    "intervals, test",
    [
        ({"rating": "[3,inf)"}, lambda row: row[3] >= 3),
        ({"rating": "(1,3]"}, lambda row: 1 < row[3] <= 3),
        ({"rating": [1, 2]}, lambda row: 1 <= row[3] <= 2),
        ({"rating": (1, 3)}, lambda row: 1 < row[3] < 3),
        ({"rating": "[0,0];[4,4]"}, lambda row: row[3] in (0, 4)),
        ({"rating": "(-INF, 1.5e0]"}, lambda row: row[3] <= 1),
        ({"timestamp": "[2,inf)"}, lambda row: row[2] >= 2),
        ({"device": ["tv"]}, lambda row: row[4] == "tv"),
        ({"device": "tv"}, lambda row: row[4] == "tv"),
        ({"device": ["tv", "phone"]}, lambda row: True),
        ({"tags": ["old"]}, lambda row: row[5] == "old"),
        ({"tags": ["hot", "old"]}, lambda row: True),
        ({"item_id": ["i1", "i2"]}, lambda row: row[1] in ("i1", "i2")),
        ({"genre": ["Comedy"]}, lambda row: int(row[1][1:]) % 2 == 0),
        ({"genre": ["Drama", "none"]}, lambda row: int(row[1][1:]) % 2 == 1),
        ({"year": "[1993,1995)"}, lambda row: int(row[1][1:]) in (3, 4)),
        ({"code": [3, "4"]}, lambda row: row[1] in ("i3", "i4")),
        ({"age": [18]}, lambda row: int(row[0][1:]) % 3 == 0),
        ({"born": "[1985,inf)"}, lambda row: int(row[0][1:]) >= 5),
        (
            {"age": ["18", "30"], "genre": ["Comedy"], "rating": "[1,inf)"},
            lambda row: int(row[0][1:]) % 3 < 2 and int(row[1][1:]) % 2 == 0 and row[3] >= 1,
        ),
        ({"rating": None}, lambda row: True),
        ({}, lambda row: True),
        (None, lambda row: True),
    ],
)
@pytest.mark.parametrize("model", ["Hydra", "Pop"])
def test_what_stays(films, intervals, test, model):
    expected = count(test)
    assert 0 < expected
    assert len(create_dataset(config(films, intervals, model)).inter_feat) == expected


@pytest.mark.parametrize(
    "changes, says",
    [
        ({}, True),
        ({"load_col": {"inter": ["user_id", "item_id", "timestamp"]}}, True),
        ({"load_col": {"inter": "*", "item": ["item_id"]}}, True),
        ({"load_col": {"inter": ["user_id", "item_id", "timestamp"], "item": "*"}}, False),
        ({"load_col": None}, False),
    ],
)
def test_columns_are_loaded_by_themselves(films, changes, says, caplog):
    made = config(films, {"genre": ["Comedy"], "device": ["tv"]}, **changes)
    caplog.set_level("INFO")
    want = count(lambda row: int(row[1][1:]) % 2 == 0 and row[4] == "tv")
    assert len(create_dataset(made).inter_feat) == want
    assert ("val_interval: loading genre of films.item for its filter" in caplog.text) == says


@pytest.mark.parametrize("mode", ["autoregressive", "augmentation"])
def test_what_is_loaded_for_a_filter_is_no_feature(films, mode):
    from recbole_hydra.data import split_dataset

    made = config(films, {"genre": ["Comedy"], "device": ["tv", "phone"]}, training_mode=mode)
    train, _, test = split_dataset(made, create_dataset(made))
    for part in (train._dataset, test._dataset):
        assert "genre" not in part.item_feat
        row = part[[0]]
        assert not {"genre", "device", "device_list"} & set(row.interaction)


@pytest.mark.parametrize(
    "intervals, message",
    [
        ("rating", "val_interval must be a dict of columns, .* got 'rating'"),
        (["rating"], "val_interval must be a dict of columns"),
        ({"rating": 3}, "val_interval of rating must be an interval .*, got 3"),
        ({"rating": "[3,inf"}, "val_interval of rating must be an interval"),
        ({"rating": "3-5"}, "val_interval of rating must be an interval"),
        ({"rating": "[a,5]"}, "val_interval of rating must be an interval"),
        ({"rating": "[1,2];[3"}, "val_interval of rating must be an interval"),
        ({"rating": "[1.2.3,4]"}, "val_interval of rating must be an interval"),
        ({"rating": [1, 2, 3]}, "val_interval of rating must be an interval"),
        ({"rating": ""}, "val_interval of rating must be an interval"),
        ({"rating": "[5,3]"}, "val_interval of rating must be .*it is empty, since 5 > 3"),
        ({"age": "[18,30]"}, "age: '.18,30.' is an interval, and age is token.*write age:float"),
        ({"device": []}, "device must be a list of the values that stay"),
        ({"device": {"tv": 1}}, "device must be an interval .*, or a list of values"),
        ({"device": [["tv"]]}, "device must be a list of the values that stay"),
        ({"scores": "[1,2]"}, "scores: it is float_seq"),
        ({"genra": ["x"]}, "no column 'genra' in films.inter, .*did you mean 'genre'"),
        ({"zzz": ["x"]}, "no column 'zzz' in .*which have user_id, .*genre"),
    ],
)
@pytest.mark.parametrize("model", ["Hydra", "Pop"])
def test_what_is_no_filter(films, intervals, message, model):
    with pytest.raises(ConfigError, match=message):
        create_dataset(config(films, intervals, model))


def test_filters_that_would_not_count(films):
    with pytest.raises(ConfigError, match="genre is a column of films.item, and filter_inter_by"):
        create_dataset(config(films, {"genre": ["Comedy"]}, filter_inter_by_user_or_item=False))
    changes = {"load_col": None, "unload_col": {"item": ["genre"]}}
    with pytest.raises(ConfigError, match="genre is in unload_col"):
        create_dataset(config(films, {"genre": ["Comedy"]}, **changes))


def test_a_value_that_no_row_has_is_said(films, caplog):
    create_dataset(config(films, {"genre": ["Comedy", "drama"]}))
    assert "val_interval of genre: no row has 'drama'; did you mean 'Drama'?" in caplog.text
    with pytest.raises(DatasetError, match="no interactions are left .*val_interval={'genre'"):
        create_dataset(config(films, {"genre": ["drama"]}))


@pytest.mark.parametrize("model", ["Hydra", "SASRec", "BPR", "Pop"])
def test_a_filtered_run(films, model):
    given = small(
        model, data_path=films, val_interval={"genre": ["Comedy"], "age": ["18", "30"]}, epochs=1,
        topk=[2], valid_metric="NDCG@2", train_neg_sample_args=None,
    )  # fmt: skip
    if model in ("BPR", "Pop"):
        del given["train_neg_sample_args"]
    assert 0 <= run_recbole_hydra(model, "films", config_dict=given)["test_result"]["ndcg@2"] <= 1
