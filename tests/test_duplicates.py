"""``rm_dup_inter``: its spellings, and which of several interactions stays."""

import numpy as np
import pytest
from conftest import small
from hypothesis import given, settings
from hypothesis import strategies as st

from recbole_hydra import Config
from recbole_hydra.data import create_dataset, split_dataset
from recbole_hydra.data.duplicates import remove, which_to_keep
from recbole_hydra.errors import ConfigError

#: u has i1 three times, the first two at one time; written newest first.
ROWS = [("u", "i1", 9), ("u", "i2", 8), ("u", "i1", 5), ("u", "i1", 5), ("u", "i3", 4)]
ROWS += [("u", f"j{n}", 20 + n) for n in range(4)]


def config(path, model="Hydra", **changes):
    return Config(model, "d", config_dict=small(model, data_path=path, **changes))


@pytest.mark.parametrize(
    "spelling",
    [None, False, "none", "None", "NONE", "no", "null", "~", "false", "False", "", "off"],
)
@pytest.mark.parametrize("model", ["Hydra", "BPR"])
def test_every_spelling_of_no_keeps_all(make_dataset, spelling, model):
    made = config(make_dataset("d", ROWS), model, rm_dup_inter=spelling)
    assert made["rm_dup_inter"] is None
    assert len(create_dataset(made).inter_feat) == len(ROWS)


@pytest.mark.parametrize("spelling", ["None", "False", "none", "no", "~", "null"])
def test_no_on_the_command_line(make_dataset, spelling):
    path = make_dataset("d", ROWS)
    made = Config(
        "Hydra",
        "d",
        config_dict=small("Hydra", data_path=path),
        argv=[f"--rm_dup_inter={spelling}"],
    )
    assert len(create_dataset(made).inter_feat) == len(ROWS)


@pytest.mark.parametrize(
    "value, message",
    [
        (True, "got True; which one shall be kept"),
        ("true", "got True; which"),
        (1, "got 1;"),
        (0, "got 0;"),
        ("frist", "got 'frist'; did you mean 'first'"),
        ("lats", "did you mean 'last'"),
        ("newest", "got 'newest'"),
        (["first"], r"got \['first'\]; which"),
    ],
)
def test_other_values_are_refused_by_name(make_dataset, value, message):
    with pytest.raises(ConfigError, match=f"rm_dup_inter must be first, last, .*{message}"):
        config(make_dataset("d", ROWS), rm_dup_inter=value)


@pytest.mark.parametrize("spelling", ["first", "First", " last ", "last"])
@pytest.mark.parametrize("model", ["Hydra", "Pop"])
def test_the_first_or_last_by_time_stays(make_dataset, spelling, model):
    made = config(make_dataset("d", ROWS), model, rm_dup_inter=spelling)
    frame = create_dataset(made).inter_feat
    times = {5.0} if "irst" in spelling else {9.0}
    dataset = create_dataset(made)
    i1 = dataset.field2token_id["item_id"]["i1"]
    assert set(frame["timestamp"][frame["item_id"] == i1].astype(float)) == times
    assert len(frame) == len(ROWS) - 2


def test_without_times_the_order_of_the_file_counts(make_dataset, caplog):
    columns = ("user_id:token", "item_id:token", "rating:float")
    path = make_dataset("d", [("u", "a", 1), ("u", "b", 2), ("u", "a", 3)], columns)
    made = config(
        path, "Pop", rm_dup_inter="last", load_col={"inter": "*"}, eval_args={"order": "RO"}
    )
    caplog.set_level("INFO")
    assert create_dataset(made).inter_feat["rating"].tolist() == [2, 3]
    assert "last in the order of the file, which has no column 'timestamp'" in caplog.text


@pytest.mark.parametrize("mode", ["autoregressive", "augmentation"])
def test_a_run_without_duplicates(make_dataset, mode):
    path = make_dataset("d", ROWS)
    made = config(path, rm_dup_inter="first", training_mode=mode)
    dataset = create_dataset(made)
    tokens = dataset.field2id_token["item_id"]
    _, _, test = split_dataset(made, dataset)
    row = test._dataset[[0]]
    length = int(row["item_length"][0])
    history = [tokens[i] for i in row["item_id_list"][0][:length].tolist()]
    assert history == ["i3", "i1", "i2", "j0", "j1", "j2"]


@settings(max_examples=60, deadline=None)
@given(
    rows=st.lists(
        st.tuples(st.integers(0, 2), st.integers(0, 3), st.integers(0, 3)), min_size=1, max_size=40
    ),
    keep=st.sampled_from(["first", "last"]),
    timed=st.booleans(),
)
def test_against_a_plain_stable_sort(rows, keep, timed):
    """The rows that stay, by line, are those that a dict of the sorted lines would keep."""
    import pandas as pd

    class Loaded:
        uid_field, iid_field, time_field = "u", "i", "t"

    columns = {"u": [r[0] for r in rows], "i": [r[1] for r in rows], "line": range(len(rows))}
    if timed:
        columns["t"] = np.array([r[2] for r in rows], dtype=np.int64)
    dataset = Loaded()
    dataset.config, dataset.inter_feat = (
        {"rm_dup_inter": keep, "time_order": "exact"},
        pd.DataFrame(columns),
    )
    remove(dataset)

    order = sorted(range(len(rows)), key=lambda n: rows[n][2]) if timed else range(len(rows))
    kept = {}
    for line in order:
        if keep == "last" or rows[line][:2] not in kept:
            kept[rows[line][:2]] = line
    assert dataset.inter_feat["line"].tolist() == sorted(kept.values())


def test_words_are_read_alone():
    assert which_to_keep("LAST") == "last"
    assert which_to_keep("None") is None
