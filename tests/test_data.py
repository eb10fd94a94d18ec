from pathlib import Path

import numpy as np
import pytest
from conftest import small
from recbole.data import create_dataset as recbole_create_dataset

from recbole_hydra import Config, run_recbole_hydra
from recbole_hydra.data import create_dataset, split_dataset, user_histories
from recbole_hydra.errors import ConfigError, DatasetError

ROWS = [(u, f"i{n}", n) for u in ("a", "b") for n in range(6)]


def config(name, data_path, model="Hydra", **changes):
    values = small(model, data_path=data_path, **changes)
    return Config(model, name, config_dict=values)


def test_an_unknown_dataset_offers_the_nearest(make_dataset):
    path = make_dataset("movies", ROWS)
    with pytest.raises(DatasetError, match=r"no folder .*movis; did you mean 'movies'\? pass"):
        create_dataset(config("movis", path))
    with pytest.raises(DatasetError, match="did you mean 'ml-100k'"):
        create_dataset(config("ml-100", path))


def test_a_folder_without_its_inter_file(make_dataset, tmp_path):
    path = make_dataset("movies", ROWS)
    (tmp_path / "data" / "empty").mkdir()
    with pytest.raises(DatasetError, match=r"empty.inter is missing"):
        create_dataset(config("empty", path))


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"TIME_FIELD": "time"}, "no column 'time' .TIME_FIELD.*user_id, item_id, timestamp"),
        ({"ITEM_ID_FIELD": "item"}, "no column 'item' .ITEM_ID_FIELD"),
        (
            {"load_col": {"inter": ["user_id", "item_id", "timestap"]}},
            "load_col asks for column 'timestap'.*did you mean 'timestamp'",
        ),
        (
            {"load_col": {"inter": ["user_id", "item_id"]}},
            "'timestamp' .TIME_FIELD. is not loaded; add it to load_col",
        ),
    ],
)
def test_a_missing_column_is_named(make_dataset, changes, message):
    if "load_col" not in changes:
        changes = {**changes, "load_col": {"inter": "*"}}
    with pytest.raises(DatasetError, match=message):
        create_dataset(config("movies", make_dataset("movies", ROWS), **changes))


@pytest.mark.parametrize(
    "columns, message",
    [
        ("user_id item_id timestamp", "'user_id' of .* has the type ''; .* as in user_id:token"),
        ("user_id:int item_id:token timestamp:float", "has the type 'int'; .* one of token, float"),
        (
            "user_id:float item_id:token timestamp:float",
            "USER_ID_FIELD. .* is float; .* user_id:to",
        ),
        (
            "user_id:token item_id:token timestamp:token_seq",
            "TIME_FIELD. .* is token_seq; .* timestamp:float",
        ),
        ("\ufeffuser_id:token item_id:token timestamp:float", "byte order mark; .* utf-8-sig"),
    ],
)
def test_the_types_of_columns(make_dataset, columns, message):
    path = make_dataset("movies", ROWS, columns.split())
    with pytest.raises(DatasetError, match=message):
        create_dataset(config("movies", path, load_col={"inter": "*"}))


def test_columns_that_commas_separate(make_dataset):
    path = make_dataset("movies", [("a,i0,1",)], ["user_id:token,item_id:token,timestamp:float"])
    with pytest.raises(DatasetError, match="not separated by field_separator, '.t'; set it"):
        create_dataset(config("movies", path, load_col={"inter": "*"}))


def test_ids_are_any_text(make_dataset):
    names = ["NA", "null", "nan", "None", '"x', "'y'", '"z"', "#", "0012", "süß"]
    path = make_dataset("odd", [(u, name, n) for u in ("a", "NA") for n, name in enumerate(names)])
    dataset = create_dataset(config("odd", path))
    assert list(dataset.field2id_token["item_id"][1:]) == names
    assert list(dataset.field2id_token["user_id"][1:]) == ["a", "NA"]
    assert len(dataset.inter_feat) == 20


def test_a_filter_on_a_column_that_nobody_asked_for(make_dataset):
    columns = ("user_id:token", "item_id:token", "timestamp:float", "rating:float")
    path = make_dataset("rated", [(*row, row[2] % 3) for row in ROWS], columns)
    made = config("rated", path, val_interval={"rating": "[1,inf)"})
    assert len(create_dataset(made).inter_feat) == 8


def test_topk_above_the_number_of_items_is_refused_before_training(make_dataset):
    given = small("Hydra", data_path=make_dataset("movies", ROWS), topk=[10, 7])
    with pytest.raises(ConfigError, match="topk: 10 places for the 6 items of dataset movies; low"):
        run_recbole_hydra("Hydra", "movies", config_dict=given)


@pytest.mark.parametrize("model", ["Hydra", "BERT4Rec"])
def test_saved_data_is_refused(make_dataset, model):
    path = make_dataset("movies", ROWS)
    for key in ("save_dataset", "save_dataloaders", "dataset_save_path"):
        with pytest.raises(ConfigError, match=f"{key} .*anew, in seconds"):
            config("movies", path, model, **{key: True})
    made = config("movies", path, model)
    split_dataset(made, create_dataset(made))
    saved = Path(made["checkpoint_dir"]) / "movies-SequentialDataset.pth"
    saved.parent.mkdir(exist_ok=True)
    saved.touch()
    with pytest.raises(DatasetError, match="RecBole would take saved/movies-Seq.*; remove it"):
        create_dataset(made)


def test_ready_made_rows_need_no_time(tmp_path):
    folder = tmp_path / "data" / "bench"
    folder.mkdir(parents=True)
    rows = ["user_id:token\titem_id_list:token_seq\titem_id:token"]
    rows += [f"u{n}\ti{n} i{n + 1}\ti{n + 2}" for n in range(8)]
    for part in ("train", "valid", "test"):
        (folder / f"bench.{part}.inter").write_text("\n".join(rows) + "\n")
    result = run_recbole_hydra(
        "SASRec", "bench", config_dict=small(
            "SASRec", data_path=str(folder.parent), training_mode="augmentation", epochs=1,
            topk=[5], valid_metric="NDCG@5", benchmark_filename=["train", "valid", "test"],
            alias_of_item_id=["item_id_list"],
        ),
    )  # fmt: skip
    assert 0 <= result["test_result"]["ndcg@5"] <= 1


def test_nothing_left_after_filtering(make_dataset):
    path = make_dataset("movies", ROWS)
    with pytest.raises(DatasetError, match=r"no interactions are left.*user_inter_num_interval"):
        create_dataset(config("movies", path, user_inter_num_interval="[100,inf)"))
    with pytest.raises(DatasetError, match="no interactions"):
        create_dataset(config("none", make_dataset("none", [])))


@pytest.mark.parametrize("model, longest, needed", [("Hydra", 3, 4), ("Pop", 2, 3)])
def test_no_user_long_enough_to_split(make_dataset, model, longest, needed):
    short = make_dataset("short", [("a", f"i{n}", n) for n in range(longest)])
    made = config("short", short, model)
    with pytest.raises(DatasetError, match=f"takes a user with {needed} .*longest has {longest}"):
        split_dataset(made, create_dataset(made))

    rows = [("a", f"i{n}", n) for n in range(needed)] + [("b", "i0", 1), ("b", "i1", 2)]
    made = config("enough", make_dataset("enough", rows), model)
    assert all(len(part.dataset) > 0 for part in split_dataset(made, create_dataset(made)))


def test_the_users_own_ml_100k_is_read(make_dataset):
    columns = ("user_id:token", "item_id:token", "rating:float", "timestamp:float")
    rows = [(u, i, 5, t) for u, i, t in ROWS]
    made = config("ml-100k", make_dataset("ml-100k", rows, columns))
    assert len(create_dataset(made).inter_feat) == len(ROWS)
    without = config("ml-100k", "nowhere")
    assert "dataset_example" in without["data_path"]


@pytest.mark.parametrize("order", ["exact", "recbole"])
def test_histories_are_in_the_order_of_rows(make_dataset, order):
    rng = np.random.default_rng(0)
    # Unix seconds that fall together as float32, ties, repeats, users with one interaction.
    rows = [
        (f"u{rng.integers(20)}", f"i{rng.integers(9)}", 1_600_000_000 + int(rng.integers(300)))
        for _ in range(300)
    ] + [("once", "i3", 1_600_000_000)]
    changes = {"MAX_ITEM_LIST_LENGTH": 400, "time_order": order}
    made = config("ties", make_dataset("ties", rows), **changes)
    histories = user_histories(create_dataset(made))
    assert histories["start"][-1] == len(rows)

    dataset = recbole_create_dataset(made)
    _, _, test = dataset.build()
    seen = 0
    for row in range(len(test)):
        user, length = int(test["user_id"][row]), int(test["item_length"][row])
        want = test["item_id_list"][row][:length].tolist() + [int(test["item_id"][row])]
        start, stop = histories["start"][user : user + 2].tolist()
        assert histories["items"][start:stop].tolist() == want
        seen += len(want)
    assert seen == len(rows) - 1  # all but the user with one interaction


def test_a_run_on_bad_data_ends_in_the_same_error(make_dataset):
    path = make_dataset("short", ROWS[:2])
    with pytest.raises(DatasetError, match="no user is long enough to split"):
        run_recbole_hydra("Hydra", "short", config_dict=small("Hydra", data_path=path))
