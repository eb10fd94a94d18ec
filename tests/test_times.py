"""The order in time, held against a plain stable sort by (user, time, line) in Python integers."""

import datetime
import pickle
import random
from collections import Counter, defaultdict

import numpy as np
import pytest
import torch
from conftest import small
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from recbole_hydra import Config, checkpoint, load_data_and_model, recommend, run_recbole_hydra
from recbole_hydra.compare import compare
from recbole_hydra.data import create_dataset, split_dataset, user_histories
from recbole_hydra.data.time_order import describe_difference, order_difference
from recbole_hydra.data.times import parse_times
from recbole_hydra.errors import (
    CheckpointError,
    ComparisonError,
    ConfigError,
    DatasetError,
    TuneError,
)
from recbole_hydra.settings.options.item_initialization import cooccurrence_counts
from recbole_hydra.tune import tune

#: What a step of a clock is in each unit, and where today is.
UNITS = {
    "steps": (1, 1),
    "seconds": (1, 1_700_000_000),
    "milliseconds": (1, 1_700_000_000_000),
    "microseconds": (1, 1_700_000_000_000_000),
    "nanoseconds": (1, 1_700_000_000_000_000_000),
}

ROWS = [(u, f"i{n}", n) for u in ("a", "b") for n in range(6)]


def config(name, data_path, model="Hydra", **changes):
    return Config(model, name, config_dict=small(model, data_path=data_path, **changes))


@st.composite
def logs(draw, unit=None):
    """Interactions in any order of lines, many with equal times: [(user, item, time)]."""
    step, today = UNITS[unit or draw(st.sampled_from(sorted(UNITS)))]
    users = draw(st.integers(2, 5))
    rows = [
        (f"u{user}", f"i{item}", today + step * draw(st.integers(0, 12)))
        for user in range(users)
        for item in range(draw(st.integers(4, 9)))
    ]
    return draw(st.permutations(rows))


def in_order(rows):
    """{user: [item, ...]} by (time, line)."""
    histories = defaultdict(list)
    for _, _, user, item in sorted((time, line, u, i) for line, (u, i, time) in enumerate(rows)):
        histories[user].append(item)
    return dict(histories)


def write(folder, name, rows, columns=("user_id:token", "item_id:token", "timestamp:float")):
    (folder / name).mkdir(parents=True, exist_ok=True)
    lines = ["\t".join(columns), *("\t".join(map(str, row)) for row in rows)]
    (folder / name / f"{name}.inter").write_text("\n".join(lines) + "\n")
    return str(folder)


def raw_histories(dataset):
    """{raw user: [raw item, ...]} of :func:`user_histories`."""
    histories, tokens = user_histories(dataset), dataset.field2id_token
    items, start = histories["items"].tolist(), histories["start"].tolist()
    return {
        str(tokens["user_id"][u]): [
            str(tokens["item_id"][i]) for i in items[start[u] : start[u + 1]]
        ]
        for u in range(1, dataset.user_num)
    }


def split_rows(loader):
    """[(raw user, (raw items of the history), raw target)] of a split of a sequential model."""
    dataset = loader._dataset
    user, item = dataset.field2id_token["user_id"], dataset.field2id_token["item_id"]
    rows = dataset[torch.arange(len(dataset))]
    return [
        (str(user[u]), tuple(str(item[i]) for i in history[:n]), str(item[target]))
        for u, history, n, target in zip(
            rows["user_id"].tolist(), rows["item_id_list"].tolist(), rows["item_length"].tolist(),
            rows["item_id"].tolist(), strict=True,
        )
    ]  # fmt: skip


FEW = settings(max_examples=15, deadline=None, suppress_health_check=list(HealthCheck))


@FEW
@given(rows=logs(), mode=st.sampled_from(["autoregressive", "augmentation"]))
def test_histories_and_rows_are_in_order(tmp_path_factory, rows, mode):
    path = write(tmp_path_factory.mktemp("log"), "log", rows)
    setting = config("log", path, training_mode=mode, MAX_ITEM_LIST_LENGTH=20)
    dataset = create_dataset(setting)
    expected = in_order(rows)
    assert raw_histories(dataset) == expected
    train, valid, test = split_dataset(setting, dataset)
    wanted = {
        (user, tuple(items[:n]), items[n])
        for user, items in expected.items()
        for n in range(1, len(items))
    }
    last = {(user, tuple(items[:-1]), items[-1]) for user, items in expected.items()}
    before = {(user, tuple(items[:-2]), items[-2]) for user, items in expected.items()}
    assert set(split_rows(test)) == last
    assert set(split_rows(valid)) == before
    assert set(split_rows(train)) == wanted - last - before


@FEW
@given(rows=logs())
def test_general_models_are_split_in_order(tmp_path_factory, rows):
    path = write(tmp_path_factory.mktemp("log"), "log", rows)
    setting = config("log", path, model="BPR")
    parts = split_dataset(setting, create_dataset(setting))
    expected = in_order(rows)
    for part, place in zip(parts[1:], (-2, -1), strict=True):
        rows = part._dataset.inter_feat
        tokens = part._dataset.field2id_token
        got = {
            str(tokens["user_id"][u]): str(tokens["item_id"][i])
            for u, i in zip(rows["user_id"].tolist(), rows["item_id"].tolist(), strict=True)
        }
        assert got == {user: items[place] for user, items in expected.items()}


SPLITS = [
    {"split": {"RS": [2, 1, 1]}, "group_by": "user"},
    {"split": {"RS": [2, 1, 1]}, "group_by": "none"},
    {"split": {"TS": [2, 1, 1]}, "group_by": "user"},
]


@pytest.mark.parametrize("model", ["Hydra", "BPR"])
@pytest.mark.parametrize("evaluation", SPLITS, ids=str)
@settings(FEW, max_examples=8)
@given(rows=logs())
def test_other_splits_are_those_of_the_ranks_of_the_times(
    tmp_path_factory, rows, evaluation, model
):
    """Ranks are small numbers, for which RecBole's own float32 order is exact."""
    rank = {time: index for index, time in enumerate(sorted({time for _, _, time in rows}))}
    folder = tmp_path_factory.mktemp("log")
    path = write(folder, "times", rows)
    write(folder, "ranks", [(user, item, rank[time]) for user, item, time in rows])
    found = {}
    for name, order in (("times", "exact"), ("ranks", "recbole")):
        changes = {"eval_args": evaluation, "time_order": order, "training_mode": "augmentation"}
        dataset = create_dataset(config(name, path, model, **changes))
        found[name] = [
            list(
                zip(
                    part.inter_feat["user_id"].tolist(),
                    part.inter_feat["item_id"].tolist(),
                    strict=True,
                )
            )
            for part in dataset.build()
        ]
    assert found["times"] == found["ranks"]


@FEW
@given(rows=logs(unit="nanoseconds"))
def test_recbole_s_order_is_that_of_float32(tmp_path_factory, rows):
    path = write(tmp_path_factory.mktemp("log"), "log", rows)
    rounded = [(user, item, int(np.float32(time))) for user, item, time in rows]
    dataset = create_dataset(config("log", path, time_order="recbole"))
    assert raw_histories(dataset) == in_order(rounded)
    difference = order_difference(create_dataset(config("log", path)))
    exact, other = in_order(rows), in_order(rounded)
    pairs = [(a, b) for user in exact for a, b in zip(exact[user], other[user], strict=True)]
    assert difference["positions"] == pytest.approx(np.mean([a != b for a, b in pairs]))
    last = [exact[user][-1] != other[user][-1] for user in exact]
    assert difference["test_targets"] == pytest.approx(np.mean(last))


@pytest.mark.parametrize("evaluation", [{"split": {"LS": "valid_and_test"}}, *SPLITS], ids=str)
@pytest.mark.parametrize("model", ["Hydra", "BPR"])
def test_the_share_of_other_test_targets_is_that_of_the_two_splits(tmp_path, evaluation, model):
    rng = random.Random(0)
    rows = [
        (f"u{u}", f"i{k}", 1_700_000_000 + rng.randrange(3_000))
        for u in range(12)
        for k in range(9)
    ]
    rng.shuffle(rows)
    path, keys = write(tmp_path, "log", rows), {}
    for order in ("exact", "recbole"):
        changes = {"eval_args": evaluation, "time_order": order, "training_mode": "augmentation"}
        dataset = create_dataset(config("log", path, model, **changes))
        difference = order_difference(dataset)
        test = dataset.build()[2].inter_feat
        keys[order] = set(zip(test["user_id"].tolist(), test["item_id"].tolist(), strict=True))
    share = len(keys["exact"] - keys["recbole"]) / len(keys["exact"])
    assert difference["test_targets"] == pytest.approx(share)
    assert difference["positions"] > 0


# -- what else reads times -----------------------------------------------------------------------


@pytest.mark.parametrize("keep", ["first", "last"])
@pytest.mark.parametrize("unit", sorted(UNITS))
def test_filters_keep_the_order(tmp_path, unit, keep):
    rng, today = random.Random(1), UNITS[unit][1]
    rows = [
        (f"u{rng.randrange(8)}", f"i{rng.randrange(9)}", today + rng.randrange(6))
        for _ in range(300)
    ]
    path = write(tmp_path, "log", rows)
    filters = {"user_inter_num_interval": "[3,inf)", "item_inter_num_interval": "[2,inf)"}
    dataset = create_dataset(config("log", path, rm_dup_inter=keep, **filters))
    expected = {}
    for user, items in in_order(rows).items():
        kept = items if keep == "first" else items[::-1]
        kept = list(dict.fromkeys(kept))
        expected[user] = kept if keep == "first" else kept[::-1]
    assert raw_histories(dataset) == expected


def test_models_read_the_numbers_that_recbole_reads(tmp_path):
    """Whatever the order, a batch has times as RecBole's float32, and their histories."""
    rows = [(u, f"i{n}", 1_700_000_000 + 1_000 * n) for u in ("a", "b") for n in range(6)]
    path = write(tmp_path, "log", rows)
    for normalize in (None, True):
        for numerical in ([], ["timestamp"]):
            batches = []
            for order in ("exact", "recbole"):
                changes = {"normalize_all": normalize, "numerical_features": numerical}
                setting = config(
                    "log", path, "SASRec", time_order=order, training_mode="augmentation", **changes
                )
                batches.append(create_dataset(setting).build()[0][torch.arange(6)])
            for name in ("timestamp", "timestamp_list"):
                exact, other = batches[0][name], batches[1][name]
                assert exact.dtype == other.dtype == torch.float32
                torch.testing.assert_close(exact, other)


def test_whole_histories_have_them_too(tmp_path):
    rows = [(u, f"i{n}", 1_700_000_000 + n) for u in ("a", "b") for n in range(6)]
    setting = config("log", write(tmp_path, "log", rows))
    train, _, _ = split_dataset(setting, create_dataset(setting))
    assert train._dataset.timeline["timestamp"].dtype == torch.int64
    assert train._dataset[torch.arange(2)]["timestamp_list"].dtype == torch.float32


def test_normalised_times_stay_in_order(tmp_path):
    """Nanoseconds over years cannot be told apart in 0 .. 1."""
    rng, today = random.Random(2), UNITS["nanoseconds"][1]
    rows = [(u, f"i{n}", today + rng.randrange(4)) for u in ("a", "b") for n in range(12)]
    rows.append(("a", "i0", 0))
    dataset = create_dataset(config("log", write(tmp_path, "log", rows), normalize_all=True))
    assert raw_histories(dataset) == in_order(rows)


def test_buckets_of_time_are_refused(tmp_path):
    path = write(tmp_path, "log", ROWS)
    buckets = {"timestamp": {"method": "ED", "bucket": 3}}
    with pytest.raises(ConfigError, match="discretization: timestamp is TIME_FIELD"):
        create_dataset(
            config("log", path, discretization=buckets, numerical_features=["timestamp"])
        )


def test_cooccurrence_is_of_neighbours_in_time(tmp_path):
    """Everyone walks i0, i1, ...; the file is sorted newest first, ten seconds apart."""
    rows = [
        (f"u{user}", f"i{n:02}", 1_700_000_000 + 10 * n + user)
        for user in range(4)
        for n in range(12)
    ]
    path = write(tmp_path, "log", sorted(rows, key=lambda row: -row[2]))
    setting = config("log", path)
    dataset = create_dataset(setting)
    train = split_dataset(setting, dataset)[0]._dataset
    counts = cooccurrence_counts(train).toarray()
    number = [-1, *(int(token[1:]) for token in dataset.field2id_token["item_id"][1:])]
    for item in range(1, 13):
        if 0 < number[item] < 9:
            near = {number[other] for other in np.flatnonzero(counts[item] >= counts.max() * 0.99)}
            assert near == {number[item] - 1, number[item] + 1}


def test_merged_users_have_one_timeline(tmp_path):
    today = UNITS["nanoseconds"][1]
    rng = random.Random(3)
    named = {
        name: [(f"u{u}", f"i{k}", today + rng.randrange(40)) for u in range(6) for k in range(6)]
        for name in ("one", "two")
    }
    for name, rows in named.items():
        path = write(tmp_path, name, rows)
    values = small("Hydra", data_path=path, domains=["one", "two"], merge_users=True)
    dataset = create_dataset(Config("Hydra", config_dict=values))
    rows = [(u, f"{name}:{i}", time) for name, rows in named.items() for u, i, time in rows]
    assert raw_histories(dataset) == in_order(rows)


def test_domains_of_dates_and_of_numbers_do_not_mix(tmp_path):
    dates = [(u, i, f"2024-01-01T00:00:{t:02}") for u, i, t in ROWS]
    write(tmp_path, "dates", dates)
    path = write(tmp_path, "numbers", ROWS)
    values = small("Hydra", data_path=path, domains=["dates", "numbers"])
    with pytest.raises(DatasetError, match="those of dates dates, those of numbers numbers"):
        create_dataset(Config("Hydra", config_dict=values))


@pytest.mark.parametrize("model", ["Hydra", "SASRec", "GRU4Rec", "BPR", "Pop", "DIN"])
def test_every_kind_of_model_trains(tmp_path, model):
    rows = [
        (f"u{u}", f"i{(u + n) % 9}", 1_700_000_000 + 10 * n) for u in range(20) for n in range(7)
    ]
    path = write(tmp_path, "log", rows[::-1])
    changes = {"epochs": 1, "topk": [5], "hidden_size": 16}
    if model != "DIN":
        changes["valid_metric"] = "NDCG@5"
    values = small(model, data_path=path, **changes)
    result = run_recbole_hydra(model, "log", config_dict=values, saved=model != "DIN")
    assert result["test_result"]


def test_the_next_click_is_recommended(tmp_path):
    """Clicks ten seconds apart, newest first in the file: most are wrong in RecBole's order."""
    rng, n, rows = random.Random(0), 12, []
    for user in range(80):
        first, begins = rng.randrange(n), 1_700_000_000 + rng.randrange(10**7)
        rows += [(f"u{user}", f"i{(first + k) % n}", begins + 10 * k) for k in range(8)]
    rows.sort(key=lambda row: -row[2])
    path = write(tmp_path, "log", rows)
    changes = {"epochs": 12, "learning_rate": 0.02, "topk": [3], "valid_metric": "NDCG@3"}
    result = run_recbole_hydra(
        "Hydra", "log", config_dict=small("Hydra", data_path=path, **changes)
    )
    right = 0
    for user, items in in_order(rows).items():
        ((item, _),) = recommend(result["best_checkpoint"], user, k=1)
        right += item == f"i{(int(items[-1][1:]) + 1) % n}"
    assert right >= 76


def test_datasets_can_be_pickled(tmp_path):
    dataset = create_dataset(config("log", write(tmp_path, "log", ROWS), "SASRec"))
    assert type(pickle.loads(pickle.dumps(dataset))) is type(dataset)


# -- dates ---------------------------------------------------------------------------------------


def seconds(*when):
    return int(datetime.datetime(*when, tzinfo=datetime.timezone.utc).timestamp())


@pytest.mark.parametrize(
    "text, nanoseconds",
    [
        ("2024-02-29", seconds(2024, 2, 29) * 10**9),
        ("2024-02-29T23:59:59", seconds(2024, 2, 29, 23, 59, 59) * 10**9),
        ("2024-02-29 23:59:59", seconds(2024, 2, 29, 23, 59, 59) * 10**9),
        ("2024-02-29T23:59:59Z", seconds(2024, 2, 29, 23, 59, 59) * 10**9),
        ("2024-02-29T23:59:59+00:00", seconds(2024, 2, 29, 23, 59, 59) * 10**9),
        ("2024-02-29T23:59:59+02:00", seconds(2024, 2, 29, 21, 59, 59) * 10**9),
        ("2024-02-29T23:59:59+0530", seconds(2024, 2, 29, 18, 29, 59) * 10**9),
        ("2024-02-29T23:59:59-08", seconds(2024, 3, 1, 7, 59, 59) * 10**9),
        ("2024-02-29T23:59:59.123", seconds(2024, 2, 29, 23, 59, 59) * 10**9 + 123_000_000),
        ("2024-02-29T23:59:59,123Z", seconds(2024, 2, 29, 23, 59, 59) * 10**9 + 123_000_000),
        ("2024-02-29T23:59:59.123456789Z", seconds(2024, 2, 29, 23, 59, 59) * 10**9 + 123_456_789),
        ("20240229T235959Z", seconds(2024, 2, 29, 23, 59, 59) * 10**9),
        ("1969-12-31T23:59:59Z", -(10**9)),
        ("2024-02-29T23:59", seconds(2024, 2, 29, 23, 59) * 10**9),
    ],
)
def test_dates_are_nanoseconds(text, nanoseconds):
    times, kind = parse_times([text], "times")
    assert (times.tolist(), times.dtype, kind) == ([nanoseconds], np.int64, "dates")


@pytest.mark.parametrize("kind", ["float", "token"])
@pytest.mark.parametrize("order", ["exact", "recbole"])
@pytest.mark.parametrize("mode", ["autoregressive", "augmentation"])
def test_dates_in_a_file(tmp_path, kind, order, mode):
    rng = random.Random(4)
    start = datetime.datetime(2024, 1, 1, tzinfo=datetime.timezone.utc)
    rows, dated = [], []
    for user in range(4):
        zone = datetime.timezone(datetime.timedelta(hours=user - 2))
        for item in range(7):
            hours = rng.randrange(100)
            rows.append((f"u{user}", f"i{item}", hours))
            when = (start + datetime.timedelta(hours=hours)).astimezone(zone)
            dated.append((f"u{user}", f"i{item}", when.isoformat()))
    columns = ("user_id:token", "item_id:token", f"timestamp:{kind}")
    path = write(tmp_path, "dated", dated, columns)
    setting = config("dated", path, training_mode=mode, time_order=order)
    dataset = create_dataset(setting)
    assert raw_histories(dataset) == in_order(rows)  # hours are more than float32 needs to tell
    assert len(split_dataset(setting, dataset)[0]) > 0


@pytest.mark.parametrize(
    "texts, dtype, values",
    [
        (["3", " 2 ", "+1"], np.int64, [3, 2, 1]),
        (["1700000000000000001", "1700000000000000000"], np.int64, [17 * 10**17 + 1, 17 * 10**17]),
        (["1.0", "2."], np.int64, [1, 2]),
        (["1e3", "-2E0"], np.int64, [1000, -2]),
        (["9007199254740993.0"], np.int64, [2**53 + 1]),
        (["1.5", "2"], np.float64, [1.5, 2.0]),
        (["1700000000.25"], np.float64, [1700000000.25]),
        ([], np.int64, []),
    ],
)
def test_numbers(texts, dtype, values):
    times, kind = parse_times(texts, "times")
    assert (times.dtype, times.tolist(), kind) == (dtype, values, "numbers")


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(-(2**63), 2**63 - 1), min_size=1))
def test_any_whole_number_is_exact(numbers):
    times, _ = parse_times([str(number) for number in numbers], "times")
    assert times.tolist() == numbers


@settings(max_examples=60, deadline=None)
@given(st.lists(st.floats(-1e15, 1e15), min_size=1))
def test_any_float_is_exact(numbers):
    times, _ = parse_times([repr(number) for number in numbers], "times")
    assert times.tolist() == numbers


@pytest.mark.parametrize(
    "texts, message",
    [
        (["1", "2", "2024-01-01"], "'2024-01-01' in line 4 is a date, those before it are numbers"),
        (["2024-01-01", "5"], "'5' in line 3 is a number, those before it are dates"),
        (["1", "", "3"], "1 of 3 interactions have no .* read, the first is '' in line 3"),
        (["1", "soon", "later"], "2 of 3 interactions .* read, the first is 'soon' in line 3"),
        (["nan"], "the first is 'nan' in line 2"),
        (["1", "inf"], "the first is 'inf' in line 3"),
        (["1_000"], "the first is '1_000' in line 2"),
        (["0x10"], "the first is '0x10' in line 2"),
        (["2024-13-01"], "the first is '2024-13-01' in line 2"),
        (["2024-01-01", "2024-02-30"], "the first is '2024-02-30' in line 3"),
        (["2024-01-01T00:00:00Z", "2024-01-01T00:00:00"], "line 3 has no time zone"),
        (["2024-01-01", "2024-01-01T00:00:00+01:00"], "line 3 has a time zone"),
        (
            ["1700000000.1234567891", "1700000000.1234567892"],
            "in line 2 and .* in line 3 differ by",
        ),
    ],
)
def test_a_bad_time_is_named_with_its_line(tmp_path, texts, message):
    with pytest.raises(DatasetError, match=message) as caught:
        parse_times(texts, "times")
    assert "\n" not in str(caught.value)
    users = [f"u{n}" for n in range(len(texts))]
    path = write(tmp_path, "log", zip(users, users, texts, strict=True))
    for mode in ("autoregressive", "augmentation"):
        with pytest.raises(DatasetError, match=message):
            create_dataset(config("log", path, training_mode=mode))


def test_blank_lines_are_counted(tmp_path):
    path = write(tmp_path, "log", [("a", "i", 1), ("", "", "")])
    file = tmp_path / "log" / "log.inter"
    file.write_text("user_id:token\titem_id:token\ttimestamp:float\n\na\ti\t1\n\nb\ti\tnever\n")
    with pytest.raises(DatasetError, match="'never' in line 5"):
        create_dataset(config("log", path))


def test_parts_have_one_kind(tmp_path):
    columns = ("user_id:token", "item_id:token", "item_id_list:token_seq", "timestamp:float")
    row = ("a", "i1", "i2 i3")
    for part, time in (("train", "5"), ("valid", "2024-01-01"), ("test", "7")):
        write(tmp_path, "parts", [(*row, time)], columns)
        (tmp_path / "parts" / "parts.inter").rename(tmp_path / "parts" / f"parts.{part}.inter")
    changes = {
        "benchmark_filename": ["train", "valid", "test"], "alias_of_item_id": ["item_id_list"],
        "training_mode": "augmentation",
    }  # fmt: skip
    with pytest.raises(DatasetError, match="they are dates, in the part before numbers"):
        create_dataset(config("parts", str(tmp_path), **changes))


# -- the setting ---------------------------------------------------------------------------------


@pytest.fixture
def apart(tmp_path):
    """A log whose two orders differ."""
    rows = [
        (f"u{u}", f"i{(u + n) % 12}", 1_700_000_000 + 10 * n) for u in range(30) for n in range(8)
    ]
    return write(tmp_path / "data", "apart", rows[::-1])


def test_the_log_says_how_far_recbole_is_off(apart, caplog):
    caplog.set_level("INFO")
    for order, words in (("exact", "would be other items"), ("recbole", "time_order: exact puts")):
        values = small("Hydra", data_path=apart, epochs=1, time_order=order)
        run_recbole_hydra("Hydra", "apart", config_dict=values)
        (line,) = [r.getMessage() for r in caplog.records if "of all positions" in r.getMessage()]
        assert line.startswith(f"time_order: {order}") and words in line
        caplog.clear()


def test_where_the_orders_agree_nothing_is_said(tmp_path):
    dataset = create_dataset(config("log", write(tmp_path, "log", ROWS)))
    assert order_difference(dataset) == {"positions": 0.0, "test_targets": 0.0}
    assert describe_difference("exact", order_difference(dataset)) is None


@pytest.mark.parametrize("value", ["exakt", "RecBole", None, True, 1])
def test_another_word_is_refused(tmp_path, value):
    with pytest.raises(ConfigError, match="time_order must be one of exact, recbole"):
        config("log", write(tmp_path, "log", ROWS), time_order=value)


def test_a_comparison_has_one_order(apart, tmp_path):
    (tmp_path / "sasrec.yaml").write_text("time_order: recbole\n")
    with pytest.raises(
        ComparisonError, match="time_order: 'exact' for Hydra, 'recbole' for SASRec"
    ):
        compare(
            ["Hydra", "SASRec"], ["apart"], seeds=[1], output_dir=tmp_path / "out",
            model_config={"SASRec": tmp_path / "sasrec.yaml"}, config_dict={"data_path": apart},
        )  # fmt: skip


def test_a_sweep_has_one_order(apart, tmp_path):
    with pytest.raises(TuneError, match="time_order"):
        tune(
            "Hydra", "apart", space={"time_order": ["exact", "recbole"]},
            output_dir=tmp_path / "out", config_dict={"data_path": apart},
        )  # fmt: skip


def as_an_older_version(path):
    """A checkpoint of before there was a time_order."""
    state = checkpoint.load_checkpoint(path)
    del state["config"]["time_order"]
    checkpoint.save_checkpoint(path, state)


def test_checkpoints_remember_their_order(apart, caplog):
    values = small("Hydra", data_path=apart, epochs=1, time_order="recbole")
    result = run_recbole_hydra("Hydra", "apart", config_dict=values)
    older = Counter()
    for _ in range(2):
        setting = load_data_and_model(result["best_checkpoint"])[0]
        assert setting["time_order"] == "recbole"
        saved = checkpoint.load_checkpoint(result["best_checkpoint"])["histories"]
        assert torch.equal(saved["items"], user_histories(create_dataset(setting))["items"])
        caplog.set_level("INFO")
        resumed = run_recbole_hydra(resume=result["last_checkpoint"], config_dict={"epochs": 2})
        assert resumed["epochs_run"] == 2
        older[any("the order that" in r.getMessage() for r in caplog.records)] += 1
        caplog.clear()
        result = run_recbole_hydra("Hydra", "apart", config_dict=values)
        for path in (result["best_checkpoint"], result["last_checkpoint"]):
            as_an_older_version(path)
    assert older == {False: 1, True: 1}


def test_a_checkpoint_is_not_continued_in_another_order(apart):
    values = small("Hydra", data_path=apart, epochs=1)
    result = run_recbole_hydra("Hydra", "apart", config_dict=values)
    with pytest.raises(CheckpointError, match="interactions of dataset apart are not those"):
        run_recbole_hydra(resume=result["last_checkpoint"], config_dict={"time_order": "recbole"})
