"""Metrics of what is recommended, against what their definitions say in plain Python."""

import math
import random
from collections import Counter

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import small
from hypothesis import given, settings
from hypothesis import strategies as st
from recbole.config import Config as RecBoleConfig
from recbole.data import create_dataset as recbole_create_dataset
from recbole.data import data_preparation
from recbole.trainer import Trainer

import recbole_hydra
from recbole_hydra.compare import compare
from recbole_hydra.errors import ConfigError
from recbole_hydra.metrics import list_metric, metric_names
from recbole_hydra.settings.config import Config
from recbole_hydra.training.run import read_test_set, train

NAMES = ["ItemCoverage", "AveragePopularity", "GiniIndex", "ShannonEntropy", "TailPercentage"]
K = 3
SETTINGS = {"metrics": ["NDCG", "GAUC", *NAMES], "topk": [1, K], "valid_metric": "GAUC"}


def by_definition(lists, popularity, ids, tail_ratio=0.1):
    """The five metrics of lists of raw ids, and nothing of numpy.

    Args:
        lists: one list of items per user. popularity: training interactions of every candidate.
        ids: where the candidates stand among those that are equally popular.
    """
    times = Counter(item for items in lists for item in items)
    total, n = sum(times.values()), len(popularity)
    each = [times[item] for item in popularity]
    order = sorted(popularity, key=lambda item: (popularity[item], ids[item]))
    tail = set(order[: max(int(n * tail_ratio), 1)])
    if tail_ratio > 1:
        tail = {item for item in popularity if popularity[item] <= tail_ratio}
    mean_of_lists = lambda value: sum(sum(map(value, x)) / len(x) for x in lists) / len(lists)  # noqa: E731
    return {
        "itemcoverage": len(times) / n,
        # Half the mean difference of two items, relative to their mean.
        "giniindex": sum(abs(a - b) for a in each for b in each) / (2 * n * sum(each)),
        "shannonentropy": -sum(t / total * math.log(t / total) for t in times.values()),
        "averagepopularity": mean_of_lists(popularity.get),
        "tailpercentage": mean_of_lists(lambda item: item in tail),
    }


@settings(deadline=None, max_examples=80)
@given(
    lists=st.lists(st.sets(st.integers(1, 9), min_size=4, max_size=4), min_size=1, max_size=6),
    popularity=st.lists(st.integers(0, 4), min_size=9, max_size=9),
    tail_ratio=st.sampled_from([None, 0.1, 0.25, 0.5, 1.0, 2, 3.0]),
)
def test_definitions(lists, popularity, tail_ratio):
    lists = [sorted(items) for items in lists]
    counts = np.array([-1, *popularity])
    known = dict(enumerate(popularity, start=1))
    expected = by_definition(lists, known, {i: i for i in known}, tail_ratio or 0.1)
    for name, value in expected.items():
        ours = np.mean(list_metric(f"{name}@4", np.array(lists), counts, tail_ratio))
        assert ours == pytest.approx(value), name


def test_places_without_a_candidate_are_no_recommendations():
    counts = np.array([-1, 5, 3, 1])
    lists = np.array([[1, 2, 0], [1, 0, 0]])
    assert list_metric("itemcoverage@3", lists, counts) == pytest.approx(2 / 3)
    assert list(list_metric("averagepopularity@3", lists, counts)) == [4, 5]
    assert list(list_metric("tailpercentage@3", lists, counts, 0.7)) == [0.5, 0]
    assert list_metric("shannonentropy@3", lists, counts) == pytest.approx(
        -(2 / 3) * math.log(2 / 3) - math.log(1 / 3) / 3
    )


def write(make_dataset, name, lengths, items=20, seed=0, start=lambda user: 1):
    rng = random.Random(seed)
    rows = [
        (f"u{user}", f"i{rng.randrange(items)}", start(user) + t)
        for user, length in enumerate(lengths)
        for t in range(length)
    ]
    rng.shuffle(rows)
    return make_dataset(name, rows), rows


def training_interactions(rows, sequential):
    """All but each user's last two, as RecBole leaves them out of short histories."""
    users = {}
    for user, item, _ in sorted(rows, key=lambda row: (row[0], row[2])):
        users.setdefault(user, []).append(item)
    kept = []
    for items in users.values():
        # Sequential rows are one fewer; each keeps at least one of its rows.
        left_out = max(0, min(2, len(items) - (2 if sequential else 1)))
        kept += items[: len(items) - left_out]
    return Counter(kept)


def recommended(run, loader, k):
    """Every user's k best items by raw id, of the scores that RecBole ranks, and each target's
    share of candidates below it."""
    lists, shares = [], []
    dataset = run.data.dataset
    run.trainer.model.eval()
    for batch in loader:
        with torch.no_grad():
            _, scores, row, target = run.trainer._full_sort_batch_eval(batch)
        best = scores.topk(k).indices.tolist()  # which of equal scores come first, torch decides
        for index, scored in enumerate(scores.tolist()):
            candidates = [i for i, score in enumerate(scored) if score > -math.inf]
            best_here = [i for i in best[index] if i in candidates]
            lists.append([str(dataset.id2token("item_id", i)) for i in best_here])
            targets = target[row == index].tolist()
            for own in targets:
                others = [scored[i] for i in candidates if i not in targets]
                below = sum(s < scored[own] for s in others)
                shares.append(
                    (below + sum(s == scored[own] for s in others) / 2) / max(len(others), 1)
                )
    return lists, sum(shares) / len(shares)


def check(run, popularity, k=K):
    dataset = run.data.dataset
    ids = dataset.field2token_id["item_id"]
    items = [str(token) for token in dataset.field2id_token["item_id"][1:]]
    assert "[PAD]" not in items
    popularity = {item: popularity.get(item, 0) for item in items}
    lists, gauc = recommended(run, run.loaders[2], k)
    assert run.result["test_result"]["gauc"] == pytest.approx(gauc, abs=1e-4)
    for at in (1, k):
        expected = by_definition([items[:at] for items in lists], popularity, ids)
        for name, value in expected.items():
            ours = run.result["test_result"][f"{name}@{at}"]
            assert ours == pytest.approx(value, abs=1e-4), f"{name}@{at}"


def trained(model, dataset, data_path, saved=False, **changes):
    own = {"epochs": 1, "data_path": data_path, **SETTINGS, **changes}
    run = train(model, dataset, config_dict=small(model, **own), saved=saved)
    read_test_set(run)
    return run


RUNS = [
    ("Hydra", {}),
    ("Hydra", {"carry_state": True}),
    ("Hydra", {"training_mode": "augmentation"}),
    ("Hydra", {"MAX_ITEM_LIST_LENGTH": 3}),
    ("SASRec", {}),
    ("SASRec", {"training_mode": "augmentation", "MAX_ITEM_LIST_LENGTH": 3}),
    ("FPMC", {}),
    ("Pop", {}),
    ("EASE", {}),
    ("BPR", {}),
    ("BPR", {"repeatable": False}),
]


@pytest.mark.parametrize("model, changes", RUNS)
@pytest.mark.parametrize("lengths", [[8] * 24, [1, 2, 3, 4, 5, 9] * 4], ids=["long", "short"])
def test_every_model_and_mode(make_dataset, model, changes, lengths):
    path, rows = write(make_dataset, "a", lengths)
    if model == "BPR":
        rows = list(dict.fromkeys(rows))
    run = trained(model, "a", path, **changes)
    # Not numpy's: a number is printed as one.
    assert {type(value) for value in run.result["test_result"].values()} == {float}
    sequential = model in ("Hydra", "SASRec", "FPMC")
    check(run, training_interactions(rows, sequential))


def test_all_items_recommended_is_a_coverage_of_one(make_dataset):
    path, _ = write(make_dataset, "a", [8] * 24, items=5)
    run = trained("Pop", "a", path, topk=[5])
    result = run.result["test_result"]
    assert result["itemcoverage@5"] == 1.0 and result["giniindex@5"] == 0.0
    assert result["shannonentropy@5"] == pytest.approx(math.log(5), abs=1e-4)


@pytest.mark.parametrize("model", ["Hydra", "FPMC", "Pop"])
def test_a_cut_in_time_knows_nothing_of_users_who_come_later(make_dataset, model):
    lengths = [5, 1, 6, 4, 7, 1, 5, 6, 4, 1]  # users follow each other in time
    path, rows = write(make_dataset, "a", lengths, start=lambda user: 100 * user, items=8)
    cut = {"split": {"RS": [0.6, 0.2, 0.2]}, "group_by": None}
    run = trained(model, "a", path, eval_args=cut)
    rows = sorted(rows, key=lambda row: row[2])
    asked = [row for row in rows if row[2] % 100] if model != "Pop" else rows
    held_out = [int(len(asked) * 0.2)] * 2
    latest = asked[len(asked) - sum(held_out) - 1][2]
    check(run, Counter(item for _, item, time in rows if time <= latest))


def test_ready_made_rows_count_the_first_history_and_the_targets(make_dataset, tmp_path):
    _, rows = write(make_dataset, "a", [8] * 12)
    users = pd.DataFrame(rows, columns=["u", "i", "t"]).sort_values("t").groupby("u")["i"]
    header = "user_id:token\titem_id_list:token_seq\titem_id:token"
    parts = {"train": [], "valid": [], "test": []}
    for user, items in users:
        items = list(items)
        for t in range(2, 8):  # the shortest row has a history of two
            part = {6: "valid", 7: "test"}.get(t, "train")
            parts[part].append(f"{user}\t{' '.join(items[:t])}\t{items[t]}")
    folder = tmp_path / "data" / "rows"
    folder.mkdir()
    for part, lines in parts.items():
        (folder / f"rows.{part}.inter").write_text("\n".join([header, *lines]) + "\n")
    run = trained(
        "SASRec", "rows", str(folder.parent), training_mode="augmentation",
        benchmark_filename=["train", "valid", "test"], alias_of_item_id=["item_id_list"],
    )  # fmt: skip
    check(run, training_interactions(rows, True))


def test_recboles_own_trainer_has_them_too(make_dataset):
    path, rows = write(make_dataset, "a", [8] * 12)
    values = {**small("SASRec"), "data_path": path, "epochs": 1, **SETTINGS}
    values.update(
        eval_args={"split": {"LS": "valid_and_test"}, "order": "TO", "group_by": "user",
                   "mode": {"valid": "full", "test": "full"}},
        load_col={"inter": ["user_id", "item_id", "timestamp"]},
        train_neg_sample_args=None, repeatable=True,
    )  # fmt: skip
    config = RecBoleConfig("SASRec", "a", config_dict=values)
    loaders = data_preparation(config, recbole_create_dataset(config))
    model = config.model_class if hasattr(config, "model_class") else None
    model = (model or recbole_hydra.model.get_model("SASRec"))(config, loaders[0]._dataset)
    trainer = Trainer(config, model)
    trainer.fit(*loaders[:2], saved=False, verbose=False)
    result = trainer.evaluate(loaders[2], load_best_model=False)
    run = type("Run", (), {})()
    run.trainer, run.loaders, run.result = trainer, loaders, {"test_result": result}
    run.data = type("Data", (), {"dataset": loaders[0]._dataset})
    check(run, training_interactions(rows, True))


def test_items_nobody_had_are_candidates(make_ring):
    path = make_ring("ring", items=12, users=20, cold=6)
    run = trained("SASRec", "ring", path, rank_all_items=True, topk=[1, K])
    assert run.data.dataset.item_num - 1 == 18
    lines = open(f"{path}/ring/ring.inter").read().splitlines()[1:]
    rows = [(u, i, int(t)) for u, i, t in (line.split("\t") for line in lines)]
    check(run, training_interactions(rows, True))


def test_domains_are_measured_each_on_its_own_items(make_ring):
    path = make_ring("first", items=10, users=16)
    make_ring("second", items=14, users=18, seed=1)
    own = {"epochs": 1, "data_path": path, **SETTINGS, "domains": ["first", "second"]}
    run = train("Hydra", config_dict=small("Hydra", **own), saved=False)
    read_test_set(run)
    result = run.result["test_result"]
    for name, loader in run.loaders[2].by_name.items():
        run.trainer.domains = run.loaders[2].domains
        lists, _ = recommended(run, loader, K)
        lines = open(f"{path}/{name}/{name}.inter").read().splitlines()[1:]
        rows = [(u, f"{name}:{i}", int(t)) for u, i, t in (line.split("\t") for line in lines)]
        popularity = training_interactions(rows, True)
        popularity = {i: popularity[i] for _, i, _ in rows}
        ids = run.data.dataset.field2token_id["item_id"]
        expected = by_definition(lists, popularity, ids)
        for metric, value in expected.items():
            assert result[f"{metric}@{K} {name}"] == pytest.approx(value, abs=1e-4), metric
    mean = (result[f"itemcoverage@{K} first"] + result[f"itemcoverage@{K} second"]) / 2
    assert result[f"itemcoverage@{K}"] == pytest.approx(mean, abs=1e-4)


def test_a_resumed_run_that_was_over_has_them(make_dataset):
    path, rows = write(make_dataset, "a", [8] * 12)
    run = trained("SASRec", "a", path, saved=True)
    again = train(resume=run.result["last_checkpoint"])
    read_test_set(again)
    assert again.result["test_result"] == run.result["test_result"]


@pytest.mark.parametrize("metric", ["GAUC", "gauc", "GiniIndex@3", "AveragePopularity@1"])
def test_any_of_them_may_choose_the_epoch(make_dataset, metric):
    path, _ = write(make_dataset, "a", [8] * 12)
    run = trained("SASRec", "a", path, valid_metric=metric, epochs=3)
    scores = [entry["valid_result"][metric.lower()] for entry in run.result["history"]]
    best = max(scores) if metric.lower() == "gauc" else min(scores)
    assert run.result["best_valid_score"] == pytest.approx(best)


def test_what_valid_metric_may_be():
    assert metric_names(["NDCG", "GAUC", "GiniIndex"], [5]) == ["NDCG@5", "GAUC", "GiniIndex@5"]
    assert metric_names(["AUC", "LogLoss"], [5]) == ["AUC", "LogLoss"]
    for wrong in ("GAUC@3", "GiniIndex", "AUC", "MRR@3"):
        with pytest.raises(ConfigError, match="is not computed; .* GAUC, ItemCoverage@1"):
            changes = {**SETTINGS, "valid_metric": wrong}
            Config("SASRec", "tiny", config_dict=small("SASRec", **changes))


def test_in_compare_both_rankings_have_them(make_dataset, tmp_path):
    path, rows = write(make_dataset, "a", [8] * 24)
    own = {key: value for key, value in small("SASRec").items() if key != "show_progress"}
    own.update(data_path=path, epochs=2, **{**SETTINGS, "valid_metric": f"GiniIndex@{K}"})
    done = compare(["SASRec"], ["a"], [1], tmp_path / "out", config_dict=own, show_progress=False)
    assert [run["status"] for run in done.runs] == ["ok", "ok"]
    assert done.unfair("a") == []
    table = done.to_pandas().set_index("model")
    for run in done.runs:
        row = table.loc[run["model"]]
        for name, value in run["test_result"].items():
            # The popular items of a tie come in any order, and a rank takes the middle of them.
            assert row[name] == pytest.approx(value, abs=1e-4) or (run["model"], name[:4]) == (
                "Pop", "ndcg",
            ), name  # fmt: skip
        scores = [entry["valid_score"] for entry in run["history"]]
        assert scores[run["best_epoch"]] == min(scores)
    # Pop recommends the same to all; with the history masked, to each the most popular new ones.
    popularity = training_interactions(rows, False)
    ids = {item: int(item[1:]) for item in popularity}
    histories = {}
    for user, item, _ in sorted(rows, key=lambda row: (row[0], row[2])):
        histories.setdefault(user, []).append(item)
    lists = []
    for items in histories.values():
        masked = {*items[:-1]} - {items[-1]}
        order = sorted(popularity, key=lambda item: -popularity[item])
        lists.append([item for item in order if item not in masked][:K])
    expected = by_definition(lists, popularity, ids)
    assert table.loc["Pop", f"averagepopularity@{K}, masked"] == pytest.approx(
        expected["averagepopularity"], abs=1e-6
    )
    summary = done.summary("a").set_index(["model", "ranking", "metric"])
    assert set(summary["baseline"]) <= {"SASRec", "Pop"}
    for ranking in ("rank", "rank_masked"):
        values = summary.xs((ranking, f"giniindex@{K}"), level=("ranking", "metric"))
        assert set(values["baseline"]) == {values["mean"].idxmin()}
        assert values["p"].isna().all()
    report = (tmp_path / "out" / "report.md").read_text()
    for name in ("GAUC", f"ItemCoverage@{K}", f"TailPercentage@{K}, masked"):
        assert f"| {name} |" in report
    assert "AveragePopularity and GiniIndex the smaller is the better" in report
