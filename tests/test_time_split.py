"""A cut in time: who is trained, validated and tested on what, and the comparison made of it."""

import os
import random
from collections import Counter, defaultdict
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import SMALL, small
from scipy import stats

import recbole_hydra.compare
from recbole_hydra import Config, run_recbole_hydra
from recbole_hydra.cli import main
from recbole_hydra.compare import compare, statistics
from recbole_hydra.compare.agreement import agreement, agreement_words
from recbole_hydra.compare.in_time import groups
from recbole_hydra.compare.ranks import rank_targets, targets_of
from recbole_hydra.compare.worker import RESULT, run
from recbole_hydra.data import create_dataset, make_loaders, prepare_data, user_histories
from recbole_hydra.data import dataset as dataset_module
from recbole_hydra.errors import ComparisonError, ConfigError, DatasetError
from recbole_hydra.metrics import training_counts
from recbole_hydra.model import get_model
from recbole_hydra.output_folder import write_json

#: Ten interactions. At a cut of 0.6 the test begins at the time of number 6 of 1 2 2 3 6 7 7 8 9 9,
#: which is 7, and validation at that of number 3 of the five before, which is 3.
ROWS = [
    ("a", "x", 1), ("a", "y", 2), ("a", "z", 6), ("a", "x", 9),
    ("b", "y", 2), ("b", "w", 3), ("b", "x", 7), ("b", "v", 8),
    ("c", "z", 7), ("c", "y", 9),
]  # fmt: skip
TRAINED = [("a", "x", "y")]
VALIDATED = [("a", "xy", "z"), ("b", "y", "w")]
TESTED = [("a", "xyz", "x"), ("b", "yw", "x"), ("b", "ywx", "v"), ("c", "z", "y")]

#: Every kind of loader: windows, carried states, RecBole's prefixes, users by id.
KINDS = [
    ("Hydra", {}),
    ("Hydra", {"carry_state": True, "MAX_ITEM_LIST_LENGTH": 2}),
    ("Hydra", {"MAX_ITEM_LIST_LENGTH": 2}),
    ("SASRec", {"training_mode": "augmentation"}),
    ("FPMC", {}),
    ("BPR", {}),
    ("Pop", {}),
]
SEQUENTIAL = ("Hydra", "SASRec", "FPMC")


def cut_at(share, **changes):
    return {"eval_args": {"split": {"cut": share}}, **changes}


def prepared(model, name, path, share, **changes):
    config = Config(
        model, name, config_dict=small(model, data_path=path, **cut_at(share), **changes)
    )
    data = prepare_data(config)
    return config, data, make_loaders(config, data)


def asked_in(dataset, loader, sequential):
    """``[(user, history, target)]`` of an evaluation loader by raw ids; no history of others."""
    found = []
    for rows, history, row, target in loader:
        assert history is None and row.tolist() == list(range(len(target)))
        for i in range(len(target)):
            user = dataset.id2token("user_id", int(rows["user_id"][i]))
            item = dataset.id2token("item_id", int(target[i]))
            items = ""
            if sequential:
                items = rows["item_id_list"][i][: rows["item_length"][i]].tolist()
                items = "".join(dataset.id2token("item_id", items))
            found.append((str(user), items, str(item)))
    return sorted(found)


def trained_in(dataset, loader, sequential):
    """``[(user, history or "", target)]`` that a train loader counts, by raw ids."""
    found = []
    for batch in loader:
        if "item_id_list" not in batch:
            pairs = zip(batch["user_id"].tolist(), batch["item_id"].tolist(), strict=True)
            found += [(user, [], item) for user, item in pairs]
        elif batch["item_id"].dim() == 1:
            for i in range(len(batch)):
                history = batch["item_id_list"][i][: batch["item_length"][i]].tolist()
                found.append((int(batch["user_id"][i]), history, int(batch["item_id"][i])))
        else:
            for row, position in (batch["item_id"] > 0).nonzero().tolist():
                history = batch["item_id_list"][row, : position + 1].tolist()
                target = int(batch["item_id"][row, position])
                found.append((int(batch["user_id"][row]), history, target))
    return sorted(
        (
            str(dataset.id2token("user_id", user)),
            "".join(dataset.id2token("item_id", history)) if history else "",
            str(dataset.id2token("item_id", item)),
        )
        for user, history, item in found
    )


# -- the split -----------------------------------------------------------------------------------


@pytest.mark.parametrize("model, changes", KINDS)
def test_every_row_of_hand_made_data(make_dataset, model, changes):
    path, sequential = make_dataset("few", ROWS), model in SEQUENTIAL
    _, data, (train, valid, test) = prepared(model, "few", path, 0.6, **changes)
    full, cut = data.dataset, data.dataset.time_cut
    most = changes.get("MAX_ITEM_LIST_LENGTH", 12) if not changes.get("carry_state") else 12
    expected = {
        name: sorted((u, history[-most:] if sequential else "", i) for u, history, i in part)
        for name, part in (("valid", VALIDATED), ("test", TESTED))
    }  # fmt: skip
    assert asked_in(full, valid, sequential) == expected["valid"]
    assert asked_in(full, test, sequential) == expected["test"]
    # A model that knows users by their ids trains on every user's first interaction, too.
    trained = TRAINED if sequential else [("a", "", "x"), ("a", "", "y"), ("b", "", "y")]
    assert trained_in(full, train, sequential) == trained
    assert (cut.valid_from, cut.test_from) == (3, 7)
    summary = {"trained": 3, "validated": 2, "tested": 4, "first_after_cut": 1}
    assert summary.items() <= cut.summary().items()
    counts = training_counts(train._dataset)
    assert {i: counts[full.token2id("item_id", i)] for i in "xyzwv"} == {
        "x": 1, "y": 2, "z": 0, "w": 0, "v": 0,
    }  # fmt: skip


@pytest.mark.parametrize("model, changes", KINDS)
def test_who_is_tested_and_what_is_new(make_dataset, model, changes):
    path = make_dataset("few", ROWS)
    _, data, _ = prepared(model, "few", path, 0.6, **changes)
    table = targets_of(data.dataset, data.histories)
    names = {
        key: list(map(str, data.dataset.id2token(f"{key}_id", table[key].to_numpy())))
        for key in ("user", "item")
    }
    assert names == {"user": list("abbc"), "item": list("xxvy")}
    assert list(table["event"]) == [0, 0, 1, 0]
    assert list(table["history_length"]) == [3, 2, 3, 1]
    assert list(table["item_count"]) == [1, 1, 0, 2]
    assert list(table["repeat"]) == [True, False, False, False]
    assert list(table["user_since"]) == ["training"] * 3 + ["test"]
    assert list(table["item_since"]) == ["training", "training", "test", "training"]
    found = {name: rows.tolist() for name, rows in groups(table).items()}
    assert found == {
        "known": [True, True, False, False],
        "new users": [False, False, False, True],
        "new items": [False, False, True, False],
    }
    later = table.assign(item_since=["validation", "training", "test", "validation"])
    assert groups(later)["first seen in validation"].tolist() == [True, False, False, True]


@pytest.mark.parametrize("seed", range(6))
def test_the_moments_are_exact_whatever_the_times(make_dataset, seed):
    """Against plain Python: many equal times, dates, fractions, times that float32 rounds."""
    draw = random.Random(seed)
    kind = ("few", "seconds", "fractions")[seed % 3]
    step = {"few": 1, "seconds": 7, "fractions": 0.25}[kind]
    start = {"few": 0, "seconds": 1_700_000_000, "fractions": 0}[kind]
    rows = [
        (f"u{draw.randrange(8)}", f"i{draw.randrange(9)}", start + step * draw.randrange(40))
        for _ in range(100)
    ]
    path = make_dataset("some", rows)
    for share in (0.57, 0.7, 0.9):  # 0.57 of 100 is 57, of floats 56
        in_time = sorted(time for *_, time in rows)
        test_from = in_time[round(share * 100)]
        before = [time for time in in_time if time < test_from]
        valid_from = before[int(share * len(before) + 1e-9)]
        histories = defaultdict(list)
        for row in sorted(rows, key=lambda row: row[2]):  # stable, as the file has them
            histories[row[0]].append(row)
        asked = {"train": [], "valid": [], "test": []}
        for user, own in histories.items():
            for place, (_, item, time) in enumerate(own[1:], start=1):
                part = "test" if time >= test_from else "valid" if time >= valid_from else "train"
                history = "".join(item for _, item, _ in own[:place][-12:])
                asked[part].append((user, history, item))
        for model in ("Hydra", "BPR"):
            _, data, (train, valid, test) = prepared(model, "some", path, share)
            assert data.dataset.time_cut.test_from == test_from
            assert data.dataset.time_cut.valid_from == valid_from
            sequential = model == "Hydra"
            for name, loader in (("valid", valid), ("test", test)):
                wanted = asked[name] if sequential else [(u, "", i) for u, _, i in asked[name]]
                assert asked_in(data.dataset, loader, sequential) == sorted(wanted)
            counted = Counter(str(item) for _, item, time in rows if time < valid_from)
            counts = training_counts(train._dataset)
            assert {
                str(data.dataset.id2token("item_id", i)): n for i, n in enumerate(counts) if n
            } == counted


def test_a_carried_state_reads_the_whole_history(make_dataset):
    path = make_dataset("few", ROWS)
    changes = {"carry_state": True, "MAX_ITEM_LIST_LENGTH": 2}
    _, data, (_, _, test) = prepared("Hydra", "few", path, 0.6, **changes)
    assert ("b", "ywx", "v") in asked_in(data.dataset, test, True)


@pytest.mark.parametrize("model, changes", [KINDS[0], KINDS[3], KINDS[5]])
@pytest.mark.parametrize("moved", ["test to train", "test to validation", "validation to train"])
def test_a_split_that_leaks_is_refused(make_dataset, monkeypatch, model, changes, moved):
    real = dataset_module.split_at

    def tampered(dataset, cut):
        parts = real(dataset, cut)
        source, target = (
            {"train": 0, "validation": 1, "test": 2}[name] for name in moved.split(" to ")
        )
        rows = [parts[which].inter_feat for which in (target, source)]
        columns = {k: torch.cat([r[k] for r in (rows[0], rows[1][:1])]) for k in rows[0].columns}
        parts[target].inter_feat = type(rows[0])(columns)
        return parts

    monkeypatch.setattr(dataset_module, "split_at", tampered)
    doing = "trains on" if moved.endswith("train") else "validates on"
    with pytest.raises(DatasetError, match=f"dataset few: the split in time leaks: it {doing} "):
        prepared(model, "few", make_dataset("few", ROWS), 0.6, **changes)


def test_a_history_that_leaks_is_refused(make_dataset, monkeypatch):
    real = dataset_module.split_at

    def tampered(dataset, cut):
        parts = real(dataset, cut)
        parts[0].inter_feat["timestamp_list"][0, 0] = 8
        return parts

    monkeypatch.setattr(dataset_module, "split_at", tampered)
    with pytest.raises(
        DatasetError, match="it trains on an interaction at 8, and validates on one"
    ):
        prepared("SASRec", "few", make_dataset("few", ROWS), 0.6, training_mode="augmentation")


def test_a_window_that_leaks_is_refused(make_dataset, monkeypatch):
    """Windows are looked at themselves, not the rows that they are made of."""
    loader = dataset_module.WindowLoader
    real = loader._cut

    def tampered(self, dataset):
        windows = real(self, dataset)
        windows.length[0] += 2
        return windows

    monkeypatch.setattr(loader, "_cut", tampered)
    with pytest.raises(DatasetError, match="the split in time leaks: it trains on"):
        prepared("Hydra", "few", make_dataset("few", ROWS), 0.6)


# -- ranks and figures ---------------------------------------------------------------------------


def fixed_ranks(model, path, scores, **changes):
    """The ranks of a run whose model gives everyone the same scores, by raw item id."""
    config, data, loaders = prepared(model, "few", path, 0.6, **changes)
    row = torch.zeros(data.dataset.item_num)
    for token, value in scores.items():
        row[data.dataset.token2id("item_id", token)] = value

    def full_sort(batch):
        interaction, _, positive_u, positive_i = batch
        every = row.repeat(len(interaction), 1)
        every[:, 0] = -torch.inf
        return interaction, every, positive_u, positive_i

    trainer = SimpleNamespace(_full_sort_batch_eval=full_sort, model=torch.nn.Identity())
    done = SimpleNamespace(data=data, loaders=loaders, trainer=trainer)
    targets = targets_of(data.dataset, data.histories)
    return rank_targets(done, targets, ["averagepopularity@1"])


@pytest.mark.parametrize("model, changes", KINDS)
def test_events_are_ranked_in_their_turn(make_dataset, model, changes):
    scores = {"v": 0.1, "w": 0.2, "x": 0.3, "y": 0.4, "z": 0.5}
    table = fixed_ranks(model, make_dataset("few", ROWS), scores, **changes)
    assert list(table["user"]) == list("abbc") and list(table["item"]) == list("xxvy")
    # a: z y x w v, of which z and y are masked, x itself stays. b: z y x; y w masked; then v, with
    # x masked, too. c: z, masked, y.
    assert list(table["rank"]) == [3, 3, 5, 2]
    assert list(table["rank_masked"]) == [1, 2, 2, 1]
    # The best of all is z, which no training interaction has; unmasked for nobody but b.
    assert list(table["averagepopularity@1"]) == [0, 0, 0, 0]
    assert list(table["averagepopularity@1, masked"]) == [1, 0, 0, 2]


def test_the_users_are_the_clusters_of_a_paired_test():
    index = pd.MultiIndex.from_tuples(
        [("a", 0), ("a", 1), ("a", 2), ("b", 0), ("c", 0), ("c", 1)], names=["user", "event"]
    )
    first = pd.Series([1.0, 0.0, 1.0, 1.0, 0.0, 1.0], index)
    second = pd.Series([0.0, 0.0, 0.0, 1.0, 0.0, 0.0], index)
    # Differences a 1 0 1, b 0, c 0 1: mean 1/2; sums of what is beside it: a 1/2, b -1/2, c 0.
    error = np.sqrt(3 / 2 * (1 / 4 + 1 / 4)) / 6
    expected = 2 * stats.t.sf(0.5 / error, 2)
    assert statistics.paired_p(first, second) == pytest.approx(expected)
    shuffled = second.sample(frac=1, random_state=0)
    assert statistics.paired_p(first, shuffled) == pytest.approx(expected)
    # With one event each it is the paired t-test.
    draw = np.random.default_rng(0)
    single = pd.MultiIndex.from_product([range(30), [0]], names=["user", "event"])
    one, other = (pd.Series(draw.random(30), single) for _ in range(2))
    t_test = stats.ttest_rel(one, other).pvalue
    assert statistics.paired_p(one, other) == pytest.approx(t_test)
    assert statistics.paired_p(first, first) == 1.0
    assert statistics.paired_p(first[["a"]], second[["a"]]) == 1.0  # of one user nothing is known


def test_recent_popularity_is_what_is_counted_by_hand(make_dataset):
    days = [(user, item, 86_400 * time) for user, item, time in ROWS]
    path = make_dataset("few", days)
    counts = {}
    for recent in (1, 5, 100):
        config, data, loaders = prepared("RecentPop", "few", path, 0.6, recent_days=recent)
        model = get_model("RecentPop")(config, loaders[0]._dataset)
        rows = [next(iter(loader))[0] for loader in loaders[1:]]
        scores = [model.full_sort_predict(r).view(len(r), -1) for r in rows]
        for phase, found in zip(("valid", "test"), scores, strict=True):
            assert (found == found[0]).all()
            for item in "xyzwv":
                counts[recent, phase, item] = float(
                    found[0, data.dataset.token2id("item_id", item)]
                )
    # Before day 3: x on 1, y twice on 2. Before day 7: x on 1, y twice on 2, w on 3, z on 6.
    # Equal counts are in the order of all that came before, a fraction below 1.
    for item, valid, test in (("x", 0, 0), ("y", 2, 0), ("z", 0, 1), ("w", 0, 0), ("v", 0, 0)):
        assert int(counts[1, "valid", item]) == valid and int(counts[1, "test", item]) == test
    for item, test in (("x", 0), ("y", 2), ("z", 1), ("w", 1), ("v", 0)):
        assert int(counts[5, "test", item]) == test
        assert counts[100, "test", item] == pytest.approx(
            {"x": 1, "y": 2, "z": 1, "w": 1, "v": 0}[item] * (1 + 1 / 6)
        )
    assert counts[1, "test", "y"] > counts[1, "test", "x"] > counts[1, "test", "v"] == 0
    # The times of the file are dates there, nanoseconds inside.
    dated = [(u, i, f"2024-01-{time:02}") for u, i, time in ROWS]
    path = make_dataset("dated", dated, ("user_id:token", "item_id:token", "timestamp:token"))
    config, data, loaders = prepared("RecentPop", "dated", path, 0.6, recent_days=1)
    model = get_model("RecentPop")(config, loaders[0]._dataset)
    z = data.dataset.token2id("item_id", "z")
    assert model.counts[1, z] == pytest.approx(1 + 1 / 6)
    assert data.dataset.time_cut.summary()["test_from"] == "2024-01-07 00:00:00 UTC"


def order(**means):
    """A comparison of which only the means are known, by hand."""
    table = pd.DataFrame(
        [
            {"ranking": ranking, "metric": metric, "model": model, "mean": mean}
            for ranking in ("rank", "rank_masked")
            for metric in ("ndcg@10", "giniindex@10")
            for model, mean in means.items()
        ]
    )
    return SimpleNamespace(summary=lambda dataset: table, metrics=lambda dataset: ["ndcg@10"])


def test_agreement_is_kendalls_tau_by_hand():
    one = order(A=0.4, B=0.3, C=0.2, D=0.1, Pop=0.0)
    other = order(A=0.9, B=0.5, C=0.7, D=0.1, Extra=1.0)
    table = agreement(one, other, "d").set_index(["ranking", "metric"])
    # Of the six pairs of A B C D one is the other way round.
    assert table["tau"].to_numpy() == pytest.approx([4 / 6] * 4)
    assert set(table["models"]) == {4}
    assert table.loc[("rank", "ndcg@10"), "swapped"] == [("B", "C")]
    assert table.loc[("rank", "giniindex@10"), "swapped"] == [("C", "B")]  # the smaller is better
    assert agreement_words(one, other, "d") == [
        "NDCG@10: Kendall's tau 0.67 over 4 models; only here: B above C",
        "NDCG@10, masked: Kendall's tau 0.67 over 4 models; only here: B above C",
    ]
    # Tau-b with a tie: 5 pairs agree, one is tied in the other: 5 / sqrt(6 * 5).
    tied = agreement(one, order(A=0.9, B=0.5, C=0.5, D=0.1), "d")
    assert tied["tau"].to_numpy() == pytest.approx([5 / np.sqrt(30)] * 4)
    reverse = agreement(one, order(A=1, B=2, C=3, D=4, Pop=5), "d")
    assert reverse["tau"].to_numpy() == pytest.approx([-1] * 4) and len(reverse["swapped"][0]) == 10
    (line, _) = agreement_words(one, order(A=1), "d")
    assert line == "NDCG@10: no order of 1 models to agree on"
    nothing = SimpleNamespace(summary=lambda dataset: pd.DataFrame())
    (line,) = agreement_words(one, nothing, "d")
    assert line.startswith("nothing to compare: no model is finished in both")


# -- the comparison ------------------------------------------------------------------------------

SETTINGS = {key: value for key, value in SMALL.items() if key != "show_progress"}


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """Comparisons with leave-one-out and with a cut in time, their runs in this process."""
    root = tmp_path_factory.mktemp("both")

    def run_here(plan, show_progress):
        for task in map(asdict, plan.tasks):
            Path(task["folder"]).mkdir(parents=True)
            os.chdir(task["folder"])
            result = run(task, lambda **event: None)
            which = {key: task[key] for key in ("dataset", "model", "seed")}
            write_json(Path(task["folder"]) / RESULT, {**which, **result})

    here = os.getcwd()
    settings = {**SETTINGS, "epochs": 1, "recent_days": 30}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(recbole_hydra.compare, "run_tasks", run_here)
        given = {"config_dict": settings, "show_progress": False}
        models = ["GRU4Rec", "BPR"]
        left_out = compare(models, ["tiny"], 1, root / "left", **given)
        in_time = compare(
            models, ["tiny"], 1, root / "time", **given, split="time", cut=0.8,
            agreement_with=root / "left",
        )  # fmt: skip
    os.chdir(here)
    return left_out, in_time


def test_a_small_comparison_from_end_to_end(finished):
    left_out, in_time = finished
    assert list(left_out.identity["models"]) == ["GRU4Rec", "BPR", "Pop"]
    assert list(in_time.identity["models"]) == ["GRU4Rec", "BPR", "Pop", "RecentPop"]
    assert set(in_time.to_pandas()["status"]) == {"ok"}
    # RecBole's own figures are means over the same events.
    assert in_time.unfair("tiny") == []
    facts = in_time.identity["fingerprints"]["tiny"]
    tables = in_time.ranks("tiny")
    assert {len(table) for table in tables.values()} == {facts["cut"]["tested"]}
    assert facts["test_users"] == next(iter(tables.values()))["user"].nunique()
    assert facts["cut"]["tested"] > facts["test_users"]  # later events of a user, too
    summary = in_time.summary("tiny")
    assert summary["p"].notna().any()
    text = (in_time.folder / "report.md").read_text()
    for words in (
        "Cut in time at 0.8 of the interactions: trained on the ",
        "RecentPop counts the last 30 days before the cut",
        "new users (", "Agreement with leave-one-out on the order of the models:",
        "- NDCG@10, masked: Kendall's tau ", "| RecentPop |",
    ):  # fmt: skip
        assert words in text, words
    assert "<li>NDCG@10: Kendall" in (in_time.folder / "report.html").read_text()
    table = in_time.agreement(left_out, "tiny")
    assert set(table["models"]) == {3} and table["tau"].between(-1, 1).all()
    text = (left_out.folder / "report.md").read_text()
    assert "Leave-one-out in the order of time" in text and "Kendall" not in text


def test_the_command_line_says_the_agreement_of_what_is_there(finished, capsys):
    left_out, in_time = finished
    arguments = [f"--{key}={value}" for key, value in SETTINGS.items() if key != "epochs"]
    command = ["compare", "--models=GRU4Rec,BPR", "--dataset=tiny", "--seeds=1", "--epochs=1"]
    command += ["--recent_days=30", "--split=time", "--cut=0.8", "--resume=True"]
    command += [f"--output_dir={in_time.folder}", f"--agreement_with={left_out.folder}"]
    assert main([*command, "--show_progress=False", *arguments]) == 0
    out = capsys.readouterr().out
    assert "agreement with leave-one-out:\nNDCG@10: Kendall's tau" in out


@pytest.mark.parametrize("model", ["Hydra", "RecentPop"])
def test_a_plain_run_can_be_cut_in_time(model):
    result = run_recbole_hydra(model, "tiny", config_dict=small(model, epochs=1, **cut_at(0.8)))
    assert 0 < result["test_result"]["ndcg@10"] <= 1


# -- bad input -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "arguments, error, message",
    [
        ({"cut": 0}, ConfigError, r"cut must be a number in \(0, 1\), got 0"),
        ({"cut": 1}, ConfigError, r"cut must be a number in \(0, 1\), got 1"),
        ({"cut": 1.5}, ConfigError, "got 1.5"),
        ({"cut": "soon"}, ConfigError, "got 'soon'"),
        ({"cut": True}, ConfigError, "got True"),
        ({"cut": float("nan")}, ConfigError, "got nan"),
        ({"split": "weekly"}, ConfigError, "split must be one of leave_one_out, time, got"),
        ({"split": "leave_one_out", "cut": 0.9}, ComparisonError, "cut: .* add --split=time"),
        ({"split": "leave_one_out", "models": ["RecentPop"]}, ConfigError, "there is none; set"),
        ({"argv": ["--eval_args={'mode': 'full'}"]}, ComparisonError, "eval_args: .* --split and"),
        ({"argv": ["--recent_days=0"]}, ConfigError, "recent_days must be a positive number"),
        ({"argv": ["--time_order=recbole"]}, ConfigError, "cut is exact, which time_order"),
        ({"cut": 0.001}, DatasetError, "leaves no one to train on: no user has an interaction bef"),
        ({"cut": 0.9999}, DatasetError, "leaves 1 users to test; a comparison needs 10"),
        ({"agreement_with": "nowhere"}, ComparisonError, "nowhere: holds no comparison"),
        (
            {"models": ["FM"], "popularity": False},
            ConfigError, "split: cut: FM cannot take part: it predicts from the columns",
        ),
    ],
)  # fmt: skip
def test_bad_input_of_a_comparison_is_one_line(tmp_path, arguments, error, message):
    given = {"models": ["Hydra"], "split": "time", "config_dict": SETTINGS, **arguments}
    with pytest.raises(error, match=message) as raised:
        compare(datasets="tiny", output_dir=tmp_path / "out", show_progress=False, **given)
    assert "\n" not in str(raised.value)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"models": ["GRU4Rec", "BPR"], "split": "leave_one_out", "popularity": True},
         "it splits tiny as this comparison does"),
        ({"models": ["Hydra"]}, "0 of its models GRU4Rec, BPR, Pop are in this"),
        ({"models": ["BPR", "Hydra"]}, "1 of its models GRU4Rec, BPR, Pop is in this"),
        ({"models": ["GRU4Rec", "BPR"], "argv": ["--item_inter_num_interval=[16,inf)"]},
         "its tiny has other items"),
    ],
)  # fmt: skip
def test_a_comparison_that_none_can_agree_with(finished, tmp_path, changes, message):
    given = {"split": "time", "cut": 0.8, "popularity": False, "config_dict": SETTINGS, **changes}
    if given["split"] != "time":
        given["cut"] = None
    with pytest.raises(ComparisonError, match=message):
        compare(
            datasets="tiny", output_dir=tmp_path / "out", show_progress=False,
            agreement_with=finished[0].folder, **given,
        )  # fmt: skip


def test_a_comparison_of_other_data_cannot_agree(finished, tmp_path, make_ring):
    path = make_ring("ring")
    with pytest.raises(ComparisonError, match="it is of tiny, not of ring"):
        compare(
            ["GRU4Rec", "BPR"], "ring", output_dir=tmp_path / "out", show_progress=False,
            split="time", cut=0.6, config_dict={**SETTINGS, "data_path": path},
            agreement_with=finished[0].folder,
        )  # fmt: skip


@pytest.mark.parametrize(
    "rows, share, message",
    [
        ([(u, i, t + 1) for u in "ab" for t, i in enumerate("xyz")], 0.5,
         "the times of every user are 1, 2, ...: places in a history"),
        ([(u, i, t) for u in "abc" for t, i in enumerate("xyzw"[: 2 + (u == "a")])], 0.5,
         "the times of every user are 0, 1, ..."),
        ([(u, i, 7) for u in "ab" for i in "xyz"], 0.5, "leaves no one to train on: .* before 7"),
        # All that comes late are first interactions; then all of validation are.
        ([("a", "x", 1), ("a", "y", 2), ("a", "z", 3), ("a", "x", 4), ("b", "y", 9),
          ("c", "y", 9)], 0.7, "leaves no one to test: no user has an interaction from 9 on"),
        ([("a", "x", 1), ("a", "y", 2), ("b", "x", 5), ("a", "z", 9)], 0.7,
         "leaves no one to train on|leaves no one to validate on: .* from 2 and before 5"),
    ],
)  # fmt: skip
def test_a_cut_that_cannot_be(make_dataset, rows, share, message):
    for model in ("Hydra", "Pop"):
        path = make_dataset(f"few{model}", rows)
        with pytest.raises(DatasetError, match=message):
            prepared(model, f"few{model}", path, share)


@pytest.mark.parametrize("model", ["Hydra", "Pop"])
def test_a_dataset_without_times(make_dataset, model):
    path = make_dataset("bare", [(u, i) for u, i, _ in ROWS], ("user_id:token", "item_id:token"))
    with pytest.raises(
        DatasetError, match="has no column 'timestamp' .TIME_FIELD., it has user_id"
    ):
        prepared(model, "bare", path, 0.6)


@pytest.mark.parametrize(
    "model, changes, error, message",
    [
        ("Hydra", {"eval_args": {"split": {"cut": 2}}}, ConfigError, "split: cut must be a number"),
        ("Hydra", {"eval_args": {"split": {"cut": 0.6}, "mode": "uni100"}}, ConfigError,
         "cut ranks all items after every event, not mode: uni100"),
        ("BPR", {"eval_args": {"split": {"cut": 0.6}, "order": "RO"}}, ConfigError,
         "cut is in the order of time; set order: TO"),
        ("BPR", {"repeatable": False}, ConfigError, "set repeatable: True"),
        ("BPR", {"benchmark_filename": ["train", "valid", "test"]}, ConfigError,
         "not of benchmark_filename; remove it"),
        ("Hydra", {"unused_col": {"inter": ["timestamp"]}}, DatasetError,
         "unused_col has timestamp"),
        ("BPR", {"dataloaders_save_path": "x"}, DatasetError, "its loaders are split already"),
    ],
)  # fmt: skip
def test_settings_that_a_cut_cannot_be_combined_with(make_dataset, model, changes, error, message):
    path = make_dataset("few", ROWS)
    settings = small(model, data_path=path, **{**cut_at(0.6), **changes})
    with pytest.raises(error, match=message):
        config = Config(model, "few", config_dict=settings)
        make_loaders(config, prepare_data(config))


def test_several_domains_are_no_one_log():
    settings = {**SMALL, "domains": ["tiny", "other"], **cut_at(0.6)}
    with pytest.raises(ConfigError, match="not of domains; take one dataset"):
        Config("Hydra", config_dict=settings)


def test_ready_made_rows_have_no_moment(make_dataset):
    columns = ("user_id:token", "item_id_list:token_seq", "item_id:token", "timestamp:float")
    rows = [("a", "x y", "z", 1), ("a", "x y z", "w", 2), ("b", "x", "y", 3), ("b", "x y", "z", 4)]
    path = make_dataset("rows", rows, columns)
    with pytest.raises(DatasetError, match="its rows are ready-made"):
        prepared("SASRec", "rows", path, 0.6)


def test_histories_are_those_that_a_checkpoint_keeps(make_dataset):
    """The cut's log is in the order of user_histories, by which ranks are masked."""
    config = Config("Hydra", "few", config_dict={"data_path": make_dataset("few", ROWS)})
    config["eval_args"]["split"] = {"cut": 0.6}
    dataset = create_dataset(config)
    histories = user_histories(dataset)
    cut = dataset_module.find_cut(dataset, 0.6)
    assert histories["items"].tolist() == cut.items.tolist()
