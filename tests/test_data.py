import numpy as np
import pytest
from conftest import small
from recbole.data import create_dataset as recbole_create_dataset

from recbole_hydra import Config, run_recbole_hydra
from recbole_hydra.data import create_dataset, split_dataset, user_histories
from recbole_hydra.errors import DatasetError

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
        ({"load_col": "*"}, r"load_col must be a dict .* or ~ for all columns, got '\*'"),
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


def test_histories_are_in_recboles_order(make_dataset):
    rng = np.random.default_rng(0)
    # Unix seconds that fall together as float32, ties, repeats, users with one interaction.
    rows = [
        (f"u{rng.integers(20)}", f"i{rng.integers(9)}", 1_600_000_000 + int(rng.integers(300)))
        for _ in range(300)
    ] + [("once", "i3", 1_600_000_000)]
    made = config("ties", make_dataset("ties", rows), MAX_ITEM_LIST_LENGTH=400)
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
