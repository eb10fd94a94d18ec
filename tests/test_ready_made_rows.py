"""Rows that files hold ready-made, and parts that were split before."""

import random

import numpy as np
import pytest
from conftest import small
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from recbole_hydra import Config, load_model, recommend, run_recbole_hydra
from recbole_hydra.data import create_dataset, split_dataset, user_histories
from recbole_hydra.data.list_padding import find_padding
from recbole_hydra.errors import ConfigError, DatasetError

PARTS = ["train", "valid", "test"]
ROW = ("user_id:token", "item_id:token", "item_id_list:token_seq")
PLAIN = ("user_id:token", "item_id:token", "timestamp:float")
ITEMS = 12


def ring(rows=40, users=10, longest=4, seed=0):
    """``(user, target, history)`` along a ring of items 1 .. 12."""
    rng = random.Random(seed)
    for n in range(rows):
        start, length = rng.randrange(ITEMS), rng.randint(1, longest)
        walk = [str((start + step) % ITEMS + 1) for step in range(length + 1)]
        yield f"u{n % users}", walk[-1], walk[:-1]


@pytest.fixture
def write(tmp_path):
    """Write a file of a dataset; returns data_path."""

    def write(name, suffix, rows, columns=ROW):
        folder = tmp_path / "data" / name
        folder.mkdir(parents=True, exist_ok=True)
        lines = ["\t".join(columns), *("\t".join(map(str, row)) for row in rows)]
        (folder / f"{name}.{suffix}").write_text("\n".join(lines) + "\n")
        return str(folder.parent)

    return write


@pytest.fixture
def write_rows(write):
    """Write three parts of ready-made rows, their lists changed by ``form``; returns data_path."""

    def write_rows(name="rows", form=lambda history: history, columns=ROW, **options):
        for seed, part in enumerate(PARTS):
            rows = [(u, i, " ".join(form(h))) for u, i, h in ring(seed=seed, **options)]
            path = write(name, f"{part}.inter", rows, columns)
        return path

    return write_rows


def config(name, path, model="Hydra", parts=PARTS, **changes):
    values = {"topk": [3], "valid_metric": "NDCG@3", "benchmark_filename": parts, **changes}
    if model in ("SASRec", "GRU4Rec"):
        values.setdefault("train_neg_sample_args", None)
    return Config(model, name, config_dict=small(model, data_path=path, epochs=1, **values))


def rows_of(part) -> list:
    """``(user, target, history)`` of a split part, as raw ids."""
    dataset = part._dataset if hasattr(part, "_dataset") else part
    users = dataset.field2id_token[dataset.uid_field]
    items = dataset.field2id_token[dataset.iid_field]
    if len(dataset) == 0:
        return []
    batch = dataset[np.arange(len(dataset))]
    histories = batch[f"{dataset.iid_field}_list"]
    return [
        (users[u], items[i], [items[x] for x in history[:n].tolist()])
        for u, i, n, history in zip(
            batch[dataset.uid_field].tolist(), batch[dataset.iid_field].tolist(),
            batch["item_length"].tolist(), histories, strict=True,
        )
    ]  # fmt: skip


# -- ready-made rows -----------------------------------------------------------------------------


@pytest.mark.parametrize("alias", [None, ["item_id_list"], "item_id_list"])
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"load_col": None},
        {"load_col": {"inter": "*"}},
        {"load_col": {"inter": ["user_id", "item_id"]}},
    ],
)
def test_given_lists_are_the_rows_and_share_the_ids_of_items(write_rows, alias, changes):
    path = write_rows()
    made = config("rows", path, alias_of_item_id=alias, **changes)
    assert "item_id_list" in made["alias_of_item_id"]
    assert made["training_mode"] == "augmentation"
    dataset = create_dataset(made)
    assert dataset.item_num == ITEMS + 1
    for seed, part in enumerate(split_dataset(made, dataset)):
        assert rows_of(part) == list(ring(seed=seed))
        assert part._dataset.inter_feat["item_id_list"].shape[1] == made["MAX_ITEM_LIST_LENGTH"]


def test_an_alias_that_is_no_column(write_rows):
    with pytest.raises(DatasetError, match="alias_of_item_id names 'item_lst', which is no column"):
        create_dataset(config("rows", write_rows(), alias_of_item_id=["item_lst"]))


def test_what_is_set_is_said_once(write_rows):
    notes = config("rows", write_rows(), load_col={"inter": ["user_id", "item_id"]}).notes
    for key in ("alias_of_item_id: item_id_list", "load_col: loading item_id_list",
                "training_mode: augmentation"):  # fmt: skip
        assert sum(note.startswith(key) for note in notes) == 1
    made = config("rows", write_rows(), alias_of_item_id=["item_id_list"])
    assert not any(note.startswith("alias_of_item_id") for note in made.notes)
    create_dataset(made)
    assert made["alias_of_item_id"] == ["item_id_list"]


@pytest.mark.parametrize("mode", ["auto", "augmentation"])
@pytest.mark.parametrize(
    "model",
    ["Hydra", "Mamba4Rec", "SASRec", "GRU4Rec", "BERT4Rec", "Caser", "FPMC", "BPR", "Pop"],
)
def test_every_model_trains_on_them(write_rows, model, mode):
    path = write_rows(longest=8)
    made = config("rows", path, model, training_mode=mode, MAX_ITEM_LIST_LENGTH=6)
    given = {key: made[key] for key in ("topk", "valid_metric", "benchmark_filename", "epochs")}
    given = small(model, data_path=path, training_mode=mode, MAX_ITEM_LIST_LENGTH=6, **given)
    if model in ("SASRec", "GRU4Rec"):
        given["train_neg_sample_args"] = None
    if model in ("BPR", "Pop"):
        del given["MAX_ITEM_LIST_LENGTH"]
    result = run_recbole_hydra(model, "rows", config_dict=given, saved=False)
    assert 0 <= result["test_result"]["ndcg@3"] <= 1
    assert create_dataset(made).item_num == ITEMS + 1


def test_autoregressive_is_refused_in_one_line(write_rows, write):
    with pytest.raises(ConfigError, match="benchmark_filename: rows.train.inter holds ready-made"):
        create_dataset(config("rows", write_rows(), training_mode="autoregressive"))
    timed = [(u, i, " ".join(h), n) for n, (u, i, h) in enumerate(ring())]
    path = write("one", "inter", timed, (*ROW, "timestamp:float"))
    with pytest.raises(ConfigError, match="item_id_list: one.inter holds ready-made rows"):
        create_dataset(config("one", path, parts=None, training_mode="autoregressive"))


@pytest.mark.parametrize("longest, seq_len, kept", [(16, None, 12), (16, 5, 5), (4, None, 4)])
@pytest.mark.parametrize("model", ["Hydra", "Caser"])
def test_long_lists_keep_their_last_items(write_rows, longest, seq_len, kept, model):
    changes = {} if seq_len is None else {"seq_len": {"item_id_list": seq_len}}
    made = config("rows", write_rows(longest=longest), model, **changes)
    for seed, part in enumerate(split_dataset(made, create_dataset(made))):
        want = [(u, i, h[-kept:]) for u, i, h in ring(longest=longest, seed=seed)]
        assert rows_of(part) == want
        assert part._dataset.inter_feat["item_id_list"].shape[1] == 12


def test_the_names_of_columns_are_the_users(write):
    columns = ("session:token", "p_id:token", "p_id_hist:token_seq")
    for seed, part in enumerate(PARTS):
        rows = [(u, i, " ".join(h)) for u, i, h in ring(seed=seed)]
        path = write("own", f"{part}.inter", rows, columns)
    made = config("own", path, USER_ID_FIELD="session", ITEM_ID_FIELD="p_id", LIST_SUFFIX="_hist")
    dataset = create_dataset(made)
    assert dataset.item_num == ITEMS + 1
    (train, _, _) = split_dataset(made, dataset)
    assert train._dataset.inter_feat["item_length"].max() == 4
    run_recbole_hydra("Hydra", "own", config_dict={
        **small("Hydra", data_path=path, epochs=1, topk=[3], valid_metric="NDCG@3"),
        "USER_ID_FIELD": "session", "ITEM_ID_FIELD": "p_id", "LIST_SUFFIX": "_hist",
        "benchmark_filename": PARTS,
    }, saved=False)  # fmt: skip


def test_other_lists_go_along(write):
    columns = (*ROW, "timestamp:float", "timestamp_list:float_seq")
    for part in PARTS:
        rows = [
            (u, i, " ".join([*h, *["0"] * (14 - len(h))]), 99, " ".join(map(str, range(14))))
            for u, i, h in ring(longest=14)
        ]
        path = write("timed", f"{part}.inter", rows, columns)
    made = config("timed", path)
    (train, _, _) = split_dataset(made, create_dataset(made))
    rows = train._dataset.inter_feat
    for (_, _, history), times in zip(ring(longest=14), rows["timestamp_list"], strict=True):
        want = list(range(len(history)))[-12:]
        assert times[: len(want)].tolist() == want


def test_rows_without_a_history_are_left_out_and_said(write_rows, write, caplog):
    path = write_rows()
    write("rows", "test.inter", [("u1", "1", ""), ("u2", "13", "1 2"), ("u3", "14", "")])
    caplog.set_level("INFO")
    made = config("rows", path)
    dataset = create_dataset(made)
    assert "item_id_list: 2 of 83 rows have no history, and are left out" in caplog.text
    assert rows_of(split_dataset(made, dataset)[2]) == [("u2", "13", ["1", "2"])]
    assert "14" in dataset.field2token_id["item_id"]  # an item all the same
    write("rows", "test.inter", [("u1", "1", "")])
    with pytest.raises(DatasetError, match="no row of test has a history in item_id_list"):
        create_dataset(config("rows", path))


def test_recommend_on_what_was_trained(write):
    """A user's history is that of the last row, with its target; all ids are of one vocabulary."""
    for part in PARTS:
        rows = [(u, i, " ".join(h)) for u, i, h in ring(rows=300)]
        path = write("ring", f"{part}.inter", rows)
    given = small(
        "Hydra", data_path=path, benchmark_filename=PARTS, topk=[3], valid_metric="NDCG@3",
    )  # fmt: skip
    result = run_recbole_hydra("Hydra", "ring", config_dict={**given, "epochs": 30})
    model = load_model(result["best_checkpoint"])
    right = sum(
        recommend(model, [str(n % ITEMS + 1) for n in (s, s + 1)], k=1)[0][0]
        == str((s + 2) % ITEMS + 1)
        for s in range(ITEMS)
    )
    assert right >= ITEMS - 1
    user, target, history = list(ring(rows=300))[-1]
    assert recommend(model, user, k=3) == recommend(model, [*history, target], k=3)


def test_histories_of_users_are_those_of_the_last_rows(write):
    rows = [("a", "2", "1", 5), ("a", "4", "1 2 3", 9), ("a", "3", "1 2", 7), ("b", "1", "4", 1)]
    columns = (*ROW, "timestamp:float")
    path = write("last", "inter", rows, columns)
    dataset = create_dataset(config("last", path, parts=None))
    found, tokens = user_histories(dataset), dataset.field2id_token["item_id"]
    items = [
        [tokens[i] for i in found["items"][start:stop].tolist()]
        for start, stop in zip(found["start"][1:-1], found["start"][2:], strict=True)
    ]
    assert items == [["1", "2", "3", "4"], ["4", "1"]]


# -- one file ------------------------------------------------------------------------------------


def single(write, rows, columns=(*ROW, "timestamp:float"), name="one"):
    return write(name, "inter", rows, columns)


def timed(users):
    return [(u, i, " ".join(h), n) for n, (u, i, h) in enumerate(ring(rows=60, users=users))]


@pytest.mark.parametrize("load_col", ["unset", {"inter": ["user_id", "item_id", "timestamp"]}])
@pytest.mark.parametrize("model", ["Hydra", "SASRec", "GRU4Rec", "Caser"])
def test_lists_of_one_file_are_the_rows(write, load_col, model):
    """Leave-one-out leaves a user's last rows out; none is made, and none overwritten."""
    path = single(write, timed(users=6))
    changes = {} if load_col == "unset" else {"load_col": load_col}
    made = config("one", path, model, parts=None, **changes)
    splits = [rows_of(part) for part in split_dataset(made, create_dataset(made))]
    by_user = {}
    for user, target, history, _ in timed(users=6):
        by_user.setdefault(user, []).append((user, target, history.split()))
    for split, cut in zip(splits, (slice(-2), slice(-2, -1), slice(-1, None)), strict=True):
        want = [row for rows in by_user.values() for row in rows[cut]]
        assert sorted(split) == sorted(want)


def test_one_row_a_user(write):
    path = single(write, timed(users=60))
    made = config("one", path, parts=None)
    with pytest.raises(DatasetError, match="no user has rows enough .*split: {RS: .*group_by: no"):
        split_dataset(made, create_dataset(made))
    for order in ("TO", "RO"):
        split = {"split": {"RS": [8, 1, 1]}, "group_by": "none", "order": order}
        made = config("one", path, parts=None, eval_args=split)
        splits = [rows_of(part) for part in split_dataset(made, create_dataset(made))]
        assert [len(rows) for rows in splits] == [48, 6, 6]
        want = [(u, i, h.split()) for u, i, h, _ in timed(users=60)]
        assert sorted(sum(splits, [])) == sorted(want)
        if order == "TO":
            assert sum(splits, []) == want


def test_one_file_without_times(write):
    path = single(write, [row[:3] for row in timed(users=6)], ROW)
    with pytest.raises(DatasetError, match="no column 'timestamp' .*or eval_args: {order: RO}"):
        create_dataset(config("one", path, parts=None))
    split = {"split": {"RS": [8, 1, 1]}, "group_by": "none", "order": "RO"}
    made = config("one", path, parts=None, eval_args=split)
    assert len(rows_of(split_dataset(made, create_dataset(made))[0])) == 48


def test_lists_that_are_unloaded_are_none(write):
    path = single(write, timed(users=6))
    unload = {"load_col": None, "unload_col": {"inter": ["item_id_list"]}}
    made = config("one", path, parts=None, **unload)
    assert made["training_mode"] == "autoregressive"
    (_, _, test) = split_dataset(made, create_dataset(made))
    assert max(len(history) for _, _, history in rows_of(test)) == 9


def test_domains_cannot_be_of_ready_made_rows(write, make_ring):
    path = single(write, timed(users=6))
    make_ring("other")
    given = small("Hydra", data_path=path, domains=["one", "other"])
    with pytest.raises(DatasetError, match="domains: one has ready-made rows"):
        create_dataset(Config("Hydra", config_dict=given))


# -- padding -------------------------------------------------------------------------------------


def left(token, width):
    return lambda history: [token] * (width - len(history)) + history


def right(token, width):
    return lambda history: history + [token] * (width - len(history))


@pytest.mark.parametrize(
    "token", ["0", "-1", "PAD", "[PAD]", "<pad>", "null", "nan", "None", "filler", "99999"]
)
@pytest.mark.parametrize("side", [left, right])
@pytest.mark.parametrize("width", [4, 6, 20])
@pytest.mark.parametrize("model", ["Hydra", "BPR"])
def test_padding_is_no_item(write_rows, token, side, width, model):
    made = config("rows", write_rows(form=side(token, width)), model)
    dataset = create_dataset(made)
    assert set(dataset.field2id_token["item_id"][1:]) == {str(n + 1) for n in range(ITEMS)}
    if model == "Hydra":
        for seed, part in enumerate(split_dataset(made, dataset)):
            assert rows_of(part) == list(ring(seed=seed))


@pytest.mark.parametrize("declared", ["x", ["x"], ["x", "y"]])
def test_padding_that_is_declared(write_rows, declared):
    path = write_rows(form=lambda history: ["x", *history])
    made = config("rows", path, item_list_padding=declared)
    assert create_dataset(made).item_num == ITEMS + 1
    with pytest.raises(DatasetError, match="item_list_padding: '1' is the target .* so it is an i"):
        create_dataset(config("rows", path, item_list_padding=1))


@pytest.mark.parametrize("no", ["none", None, False, "None"])
def test_padding_that_is_none(write_rows, no):
    path = write_rows(form=left("0", 4))
    assert create_dataset(config("rows", path, item_list_padding=no)).item_num == ITEMS + 2


def test_padding_is_said_and_leaves_the_item_file(write_rows, write, caplog):
    path = write_rows(form=left("0", 4))
    items = [(n, f"t{n}") for n in range(ITEMS + 1)]
    write("rows", "item", items, ("item_id:token", "title:token"))
    caplog.set_level("INFO")
    made = config("rows", path, load_col=None, rank_all_items=True)
    assert create_dataset(made).item_num == ITEMS + 1
    assert "item_list_padding: '0' is padding, no item; set it to none" in caplog.text


@pytest.mark.parametrize(
    "lists, targets",
    [
        (["a b", "b c", "c a"], "cab"),  # every token is a target
        (["r a", "r a b", "a b c"], "bca"),  # a rare item, first of one history
        (["r a b c", "s b", "a b c", "b c"], "cabc"),  # several of them
        (["r a b c", "a b c a"], "ab"),  # in one list alone
        (["0 a", "a 0 b", "0 b"], "bab"),  # between others
        (["0 a", "a b"], "0b"),  # a target
    ],
)
def test_what_is_no_padding(lists, targets):
    rows = [np.array(row.split()) for row in lists]
    assert find_padding("auto", rows, list(targets), [len(rows)]) == set()


@settings(max_examples=100, deadline=None)
@given(
    histories=st.lists(
        st.lists(st.integers(1, 6), min_size=1, max_size=5), min_size=2, max_size=12
    ),
    token=st.sampled_from(["0", "-1", "<pad>"]),
    on_the_left=st.booleans(),
    extra=st.integers(0, 3),
)
def test_padding_to_one_length_is_found(histories, token, on_the_left, extra):
    """Whatever the histories are: lists of one length, filled by a token of a usual name."""
    histories = [[str(item) for item in history] for history in histories]
    width = max(map(len, histories)) + extra
    pad = left(token, width) if on_the_left else right(token, width)
    rows = [np.array(pad(history)) for history in histories]
    targets = ["1"] * len(rows)
    assume(any(len(history) < width for history in histories))
    assert find_padding("auto", rows, targets, [len(rows)]) == {token}


# -- parts without lists -------------------------------------------------------------------------


def plain(write, parts, name="plain", columns=PLAIN):
    for part, rows in parts.items():
        path = write(name, f"{part}.inter", rows, columns)
    return path


def joined(parts) -> list:
    """The rows of every part by the definition: what a user had before, in whatever part."""
    everything = [(t, n, u, i, p) for p, rows in parts.items() for n, (u, i, t) in enumerate(rows)]
    order = {part: place for place, part in enumerate(parts)}
    everything.sort(key=lambda row: (row[0], order[row[4]], row[1]))
    seen, rows = {}, {part: [] for part in parts}
    for _, _, user, item, part in everything:
        history = seen.setdefault(user, [])
        if history:
            rows[part].append((user, item, history[-12:]))
        history.append(item)
    return list(rows.values())


def usual(users=8):
    cut = {"train": range(5), "valid": [5], "test": [6]}
    return {
        part: [(f"u{u}", f"i{(u + t) % 9}", t) for u in range(users) for t in times]
        for part, times in cut.items()
    }


@pytest.mark.parametrize("mode", ["auto", "autoregressive", "augmentation"])
@pytest.mark.parametrize("model", ["Hydra", "Mamba4Rec", "SASRec", "GRU4Rec"])
def test_plain_parts_are_joined_by_time(write, mode, model):
    path = plain(write, usual())
    made = config("plain", path, model, training_mode=mode)
    assert made["training_mode"] == ("augmentation" if mode == "augmentation" else "autoregressive")
    loaders = split_dataset(made, create_dataset(made))
    for part, want in zip(loaders, joined(usual()), strict=True):
        assert sorted(rows_of(part)) == sorted(want)
    if mode != "augmentation":
        assert loaders[0].windows.targets.sum() == len(joined(usual())[0])


@settings(max_examples=25, deadline=None)
@given(
    rows=st.lists(
        st.tuples(st.integers(0, 3), st.integers(0, 5), st.integers(0, 6), st.integers(0, 2)),
        min_size=1, max_size=30,
    ),
    mode=st.sampled_from(["autoregressive", "augmentation"]),
)  # fmt: skip
def test_any_parts_are_joined_by_the_definition(tmp_path_factory, rows, mode):
    parts = {part: [("base", "i0", 0), ("base", "i1", 9)] for part in PARTS}
    for user, item, time, part in rows:
        parts[PARTS[part]].append((f"u{user}", f"i{item}", time))
    folder = tmp_path_factory.mktemp("parts") / "plain"
    folder.mkdir()
    for part, own in parts.items():
        lines = ["\t".join(PLAIN), *("\t".join(map(str, row)) for row in own)]
        (folder / f"plain.{part}.inter").write_text("\n".join(lines) + "\n")
    made = config("plain", str(folder.parent), training_mode=mode)
    loaders = split_dataset(made, create_dataset(made))
    for part, want in zip(loaders, joined(parts), strict=True):
        assert sorted(rows_of(part)) == sorted(want)


@pytest.mark.parametrize("mode", ["auto", "augmentation"])
@pytest.mark.parametrize("model", ["Hydra", "SASRec", "BERT4Rec", "BPR", "Pop"])
def test_plain_parts_train(write, model, mode):
    path = plain(write, usual())
    given = small(
        model, data_path=path, benchmark_filename=PARTS, epochs=1, training_mode=mode, topk=[3],
        valid_metric="NDCG@3",
    )  # fmt: skip
    if model == "SASRec":
        given["train_neg_sample_args"] = None
    result = run_recbole_hydra(model, "plain", config_dict=given, saved=False)
    assert 0 <= result["test_result"]["ndcg@3"] <= 1


def test_first_interactions_make_no_row_and_are_said(write, caplog):
    parts = usual()
    parts["test"].append(("new", "i1", 3))
    caplog.set_level("INFO")
    made = config("plain", plain(write, parts))
    split_dataset(made, create_dataset(made))
    assert "test: 1 of its 9 interactions are their user's first" in caplog.text
    parts["test"] = [("new", "i1", 3)]
    made = config("plain", plain(write, parts))
    with pytest.raises(DatasetError, match="every interaction of part test is its user's first"):
        split_dataset(made, create_dataset(made))


def test_plain_parts_need_times(write):
    parts = {part: [row[:2] for row in rows] for part, rows in usual().items()}
    path = plain(write, parts, columns=PLAIN[:2])
    with pytest.raises(DatasetError, match="plain.train.inter has no column 'timestamp' .TIME_FIE"):
        create_dataset(config("plain", path))
    assert len(create_dataset(config("plain", path, "BPR")).inter_feat) == 56  # it has no histories


def test_plain_parts_resume(write, monkeypatch):
    from recbole_hydra.quick_start import load_data_and_model

    path = plain(write, usual())
    given = small(
        "Hydra", data_path=path, benchmark_filename=PARTS, topk=[3], valid_metric="NDCG@3"
    )
    result = run_recbole_hydra("Hydra", "plain", config_dict=given)
    _, _, _, _, _, test = load_data_and_model(result["best_checkpoint"])
    assert sorted(rows_of(test)) == sorted(joined(usual())[2])


# -- which parts ---------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["rows", "plain"])
@pytest.mark.parametrize("model", ["Hydra", "BPR"])
def test_two_parts_train_and_test(write, write_rows, kind, model):
    path = write_rows() if kind == "rows" else plain(write, usual())
    given = small(
        model, data_path=path, benchmark_filename=["train", "test"], epochs=2, topk=[3],
        valid_metric="NDCG@3",
    )  # fmt: skip
    result = run_recbole_hydra(model, kind, config_dict=given)
    assert result["best_valid_result"] is None
    assert 0 <= result["test_result"]["ndcg@3"] <= 1


@pytest.mark.parametrize(
    "parts, message",
    [
        (["train"], "train is one part; name train, valid and test"),
        ("train", "train is one part"),
        (["train", "valid"], "the part to test on is missing"),
        (["train", "dev"], "the part to test on is missing"),
        (["a", "b", "c", "d"], "are 4 parts"),
        (["train", "valid", "train"], "train is to be trained on and tested"),
    ],
)
def test_parts_that_are_none(write_rows, parts, message):
    with pytest.raises(ConfigError, match=f"benchmark_filename: .*{message}"):
        config("rows", write_rows(), parts=parts)


@pytest.mark.parametrize("no", [None, [], "none", "None", False])
def test_no_parts(make_dataset, no):
    path = make_dataset("d", [("a", f"i{n}", n) for n in range(6)])
    assert config("d", path, parts=no)["benchmark_filename"] is None


def test_validating_on_test(write_rows, write):
    made = config("rows", write_rows(), parts=["train", "test", "test"])
    _, valid, test = split_dataset(made, create_dataset(made))
    assert rows_of(valid) == rows_of(test)
    with pytest.raises(ConfigError, match="a part that is named twice would be its own history"):
        create_dataset(config("plain", plain(write, usual()), parts=["train", "test", "test"]))


@pytest.mark.parametrize(
    "columns, rows, message",
    [
        (ROW, [], "rows.valid.inter has no interactions .*take it out of benchmark_filename"),
        (ROW[:2], [("u1", "1")], "'item_id_list' is in .*rows.train.*, and not in .*rows.valid"),
        (ROW, [("u1", "", "1")], "rows.valid.inter, line 2: no item_id; add it"),
        (ROW, [("u1", "1", "2"), ("", "1", "3")], "rows.valid.inter, line 3: no user_id"),
        ((*ROW[:2], "item_id_list:token"), [("u", "1", "2")], "token_seq in .*train.* and token"),
        (("user_id:token", "item:token", ROW[2]), [("u", "1", "2")], "valid.inter has no column '"),
    ],
)  # fmt: skip
def test_parts_that_do_not_fit(write_rows, write, columns, rows, message):
    path = write_rows()
    write("rows", "valid.inter", rows, columns)
    with pytest.raises(DatasetError, match=message):
        create_dataset(config("rows", path))


@pytest.mark.parametrize(
    "name, changes, message",
    [
        ("item_id_list_field", {}, "call it item_id_list, or set LIST_SUFFIX: _list_field"),
        ("item_id_history", {}, "LIST_SUFFIX: _history"),
        (
            "history",
            {"alias_of_item_id": ["history"]},
            "lists in 'history', .*call it item_id_list",
        ),
    ],
)
def test_lists_under_another_name_are_not_passed_over(write_rows, name, changes, message):
    path = write_rows(columns=(*ROW[:2], f"{name}:token_seq"))
    with pytest.raises(DatasetError, match="no column 'timestamp'|" + message):
        create_dataset(config("rows", path, **changes))


def test_lists_that_are_no_lists(write_rows):
    path = write_rows(columns=(*ROW[:2], "item_id_list:token"))
    with pytest.raises(DatasetError, match="is token; .*write item_id_list:token_seq"):
        create_dataset(config("rows", path))


def test_filters_that_do_not_count_are_said_once(write_rows, caplog):
    made = config("rows", write_rows(), rm_dup_inter="first", val_interval={"x": ["y"]})
    said = "val_interval, rm_dup_inter are not applied"
    assert sum(said in note for note in made.notes) == 1
    caplog.set_level("INFO")
    assert len(create_dataset(made).inter_feat) == 120
    assert said not in caplog.text  # a run logs the notes
