import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import DATASETS, SMALL
from recbole.data.interaction import Interaction

from recbole_hydra import Config
from recbole_hydra.cli import main
from recbole_hydra.compare import Comparison, compare, statistics
from recbole_hydra.compare.ranks import left_out_targets, metric, rank_targets
from recbole_hydra.data import create_dataset, split_dataset, user_histories
from recbole_hydra.errors import ComparisonError, ConfigError, DatasetError

SETTINGS = {key: value for key, value in SMALL.items() if key != "show_progress"}
#: As a user would write them for all models at once.
ARGUMENTS = [f"--{key}={value}" for key, value in SETTINGS.items()]


def compare_small(output_dir, models=("Hydra", "GRU4Rec"), seeds=(1, 2), **arguments):
    arguments = {"config_dict": SETTINGS, "show_progress": False, **arguments}
    return compare(list(models), ["tiny"], seeds, output_dir, **arguments)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """Two models and Pop, two seeds: six runs, and their report."""
    folder = tmp_path_factory.mktemp("finished") / "comparison"
    settings = {**SETTINGS, "topk": [5, 10], "valid_metric": "NDCG@10"}
    return compare_small(folder, config_dict=settings, latex=True)


# -- ranks ---------------------------------------------------------------------------------------


@pytest.fixture
def few_users(make_dataset):
    """Users a (4 interactions, buys x again), b (3), c (2: nothing to test)."""
    rows = [("a", "x", 1), ("a", "y", 2), ("a", "z", 3), ("a", "x", 4)]
    rows += [("b", "y", 1), ("b", "x", 2), ("b", "w", 3), ("c", "w", 1), ("c", "y", 2)]
    return make_dataset("few", rows)


def ranks_by(model, data_path, scores):
    """The ranks of a run whose model gives every user the same scores, by raw id."""
    config = Config(model, "few", config_dict={"data_path": data_path, "epochs": 1})
    dataset = create_dataset(config)
    histories = user_histories(dataset)
    loaders = split_dataset(config, dataset)
    row = torch.zeros(dataset.item_num)
    for token, value in scores.items():
        row[dataset.token2id("item_id", token)] = value

    def full_sort(batch):
        interaction, _, positive_u, positive_i = batch
        every = row.repeat(len(interaction), 1)
        every[:, 0] = -torch.inf
        return interaction, every, positive_u, positive_i

    trainer = SimpleNamespace(_full_sort_batch_eval=full_sort, model=torch.nn.Identity())
    data = SimpleNamespace(dataset=dataset, histories=histories)
    run = SimpleNamespace(data=data, loaders=loaders, trainer=trainer)
    return rank_targets(run, left_out_targets(histories, dataset.item_num))


@pytest.mark.parametrize("model", ["Hydra", "SASRec", "FPMC", "Pop", "BPR"])
def test_ranks_of_both_rankings(few_users, model):
    """Every kind of loader tests the same users on the same items."""
    table = ranks_by(model, few_users, {"w": 0.1, "x": 0.2, "y": 0.3, "z": 0.4}).set_index("user")
    assert list(table.index) == ["a", "b"]
    assert list(table["item"]) == ["x", "w"]
    # a: z and y are better than x, and masked; x itself stays, though a has had it.
    # b: all are better than w; y and x are masked, z is not.
    assert list(table["rank"]) == [3, 4]
    assert list(table["rank_masked"]) == [1, 2]
    assert list(table["history_length"]) == [3, 2]
    assert list(table["repeat"]) == [True, False]
    # Training has x, y of a, y, x of b (who has no validation row), w, y of c.
    assert list(table["item_count"]) == [2, 1]


def test_items_with_the_same_score_share_the_middle_place(few_users):
    table = ranks_by("Hydra", few_users, dict.fromkeys("wxyz", 1.0)).set_index("user")
    assert list(table["rank"]) == [2, 2] and list(table["ties"]) == [3, 3]


def test_targets_with_tied_times_are_the_last_of_the_file(make_dataset):
    path = make_dataset("few", [("a", item, 7) for item in "wxyz"] + [("b", "w", 1)] * 3)
    assert list(ranks_by("Pop", path, {})["item"]) == ["z", "w"]


def test_metrics_of_a_rank():
    ranks = np.array([1, 2, 3, 11])
    assert list(metric("hit@10", ranks)) == [1, 1, 1, 0]
    assert list(metric("recall@2", ranks)) == [1, 1, 0, 0]
    assert list(metric("precision@10", ranks)) == [0.1, 0.1, 0.1, 0]
    np.testing.assert_allclose(metric("ndcg@10", ranks), [1, 1 / np.log2(3), 0.5, 0])
    np.testing.assert_allclose(metric("mrr@10", ranks), [1, 1 / 2, 1 / 3, 0])
    np.testing.assert_allclose(metric("map@10", ranks), [1, 1 / 2, 1 / 3, 0])


# -- statistics ----------------------------------------------------------------------------------


def result(model, seed, **changes):
    own = {
        "model": model, "seed": seed, "metrics": ["hit@1"], "test_result": {"hit@1": 0.0},
        "fingerprint": {"test_users": 4, "test_targets": "t", "items": "i", "candidates": 9},
    }  # fmt: skip
    return {**own, **changes}


def ranks_of(all_items, masked):
    users = list("abcdefgh")[: len(all_items)]
    return pd.DataFrame({"user": users, "rank": all_items, "rank_masked": masked, "ties": 0})


def test_the_summary_against_hand_computed_values():
    """Hit@1 of two seeds, four users; the masked ranking hits always."""
    always = [1, 1, 1, 1]
    ranks = {
        ("Hydra", 1): ranks_of([1, 1, 1, 9], always),  # 0.75
        ("Hydra", 2): ranks_of([1, 1, 9, 9], always),  # 0.50
        ("SASRec", 1): ranks_of([1, 9, 9, 9], always),  # 0.25
        ("SASRec", 2): ranks_of([1, 9, 9, 1], always),  # 0.50
        ("Pop", 1): ranks_of([9, 9, 9, 9], always),
        ("Pop", 2): ranks_of([9, 9, 9, 9], always),
    }
    runs = [result(model, seed) for model, seed in ranks]
    table = statistics.summary(runs, ranks, ["hit@1"]).set_index(["model", "ranking"])
    hydra, sasrec, pop = (table.loc[m, "rank"] for m in ("Hydra", "SASRec", "Pop"))
    assert hydra["mean"] == 0.625 and sasrec["mean"] == 0.375 and pop["mean"] == 0
    assert hydra["std"] == pytest.approx(0.125 * np.sqrt(2))  # n - 1
    assert hydra["baseline"] == "SASRec" and hydra["gain"] == pytest.approx(0.625 / 0.375 - 1)
    assert np.isnan(sasrec["gain"]) and np.isnan(sasrec["p"]) and pop["gain"] == -1

    # Users' means: Hydra 1, 1, .5, 0; SASRec 1, 0, 0, .5; Pop zeros. Differences to SASRec:
    # Hydra 0, 1, .5, -.5, mean .25, s = sqrt(5/12), t = .25 / (s / 2) = .7746, 3 degrees;
    # Pop -1, 0, 0, -.5, mean -.375, s = sqrt(.2291667), t = -1.5667.
    # Two-sided p of Student's t with 3 degrees of freedom, by its closed form:
    def p_of(t):
        x = abs(t) / np.sqrt(3)
        return 1 - 2 / np.pi * (np.arctan(x) + x / (1 + x * x))

    p_hydra, p_pop = p_of(0.25 / np.sqrt(5 / 12) * 2), p_of(0.375 / np.sqrt(0.2291667) * 2)
    assert p_pop < p_hydra
    # In the masked ranking Pop is no better than SASRec, all are 1: two more tests with p = 1.
    # Benjamini-Hochberg of four: p_(i) 4 / i, made monotone from above.
    assert pop["p"] == pytest.approx(min(p_pop * 4, p_hydra * 2, 1.0), rel=1e-5)
    assert hydra["p"] == pytest.approx(min(p_hydra * 2, 1.0), rel=1e-5)
    assert table.loc["Hydra", "rank_masked"]["p"] == 1.0
    assert table.loc["Hydra", "rank_masked"]["gain"] == 0


def test_the_best_baseline_may_differ_by_metric_and_ours_is_none():
    ranks = {
        ("Hydra", 1): ranks_of([1, 9], [1, 1]),
        ("SASRec", 1): ranks_of([2, 2], [1, 9]),
        ("Pop", 1): ranks_of([1, 9], [9, 9]),
    }
    runs = [result(model, seed) for model, seed in ranks]
    table = statistics.summary(runs, ranks, ["hit@1", "hit@2"])
    table = table[table["model"] == "Hydra"].set_index(["metric", "ranking"])
    assert table.loc["hit@1", "rank"]["baseline"] == "Pop"
    assert table.loc["hit@2", "rank"]["baseline"] == "SASRec"
    alone = statistics.summary(runs[:1], ranks, ["hit@1"])
    assert alone["baseline"].isna().all() and alone["p"].isna().all() and alone["std"].isna().all()


def test_paired_p_pairs_by_user():
    first = pd.Series([1.0, 0.0, 1.0], index=["a", "b", "c"])
    assert statistics.paired_p(first, first.iloc[::-1]) == 1.0
    assert statistics.paired_p(first, first - 1) == 0.0
    assert statistics.paired_p(first, first.iloc[:0]) == 1.0
    assert [statistics.mark(p) for p in (0.001, 0.03, 0.2, float("nan"))] == ["**", "*", "", ""]


def test_with_domains_the_mean_over_domains_is_tested():
    """Worse for the many users of one domain, better for the few of the other."""
    rng = np.random.default_rng(0)
    domains = pd.Series(["big"] * 2000 + ["small"] * 40)
    second = pd.Series(rng.random(2040))
    better = np.where(domains == "small", 0.3, -0.1) + rng.normal(0, 0.3, 2040)
    p = statistics.paired_p(second + better, second, domains)
    means = pd.Series(better).groupby(domains).mean()
    assert pd.Series(better).mean() < 0 < means.mean()
    big, small = (better[domains == name] for name in ("big", "small"))
    z = means.sum() / np.sqrt(big.var(ddof=1) / 2000 + small.var(ddof=1) / 40)
    assert 3 < z and 1e-6 < p < 0.005
    swapped = statistics.paired_p(second, second + better, domains)
    assert swapped == pytest.approx(p)
    # Domains of the same distribution and size: the plain test, nearly.
    even = pd.Series(["a", "b"] * 1020)
    noise = second + rng.normal(0.01, 0.3, 2040)
    assert statistics.paired_p(noise, second, even) == pytest.approx(
        statistics.paired_p(noise, second), rel=0.05
    )


def test_users_that_only_recbole_tests_and_few_digits_are_no_difference():
    table = ranks_of([1, 9, 9, 9], [1] * 4)
    run = result("Hydra", 1, test_result={"hit@1": 0.2})  # of five users, one of them not ours
    assert statistics.unfair([run], {("Hydra", 1): table})
    table.attrs["others"] = 1
    assert not statistics.unfair([run], {("Hydra", 1): table})
    table.attrs["others"] = 0
    run = result("Hydra", 1, test_result={"hit@1": 0.3}, metric_decimal_place=1)
    assert not statistics.unfair([run], {("Hydra", 1): table})


def test_runs_that_differ_are_marked():
    ranks = {("Hydra", 1): ranks_of([1, 9, 9, 9], [1] * 4), ("Pop", 1): ranks_of([9] * 4, [1] * 4)}
    fair = [result("Hydra", 1, test_result={"hit@1": 0.25}), result("Pop", 1)]
    assert statistics.unfair(fair, ranks) == []
    for key, words in (
        ("test_users", "number of test users"), ("test_targets", "split"), ("items", "item set"),
        ("candidates", "number of candidates"),
    ):  # fmt: skip
        other = {**fair[1]["fingerprint"], key: "other"}
        (line,) = statistics.unfair([fair[0], {**fair[1], "fingerprint": other}], ranks)
        assert words in line and "other (Pop seed 1)" in line
        (line,) = statistics.unfair(fair, ranks, other)
        assert "the comparison's own" in line
    (line,) = statistics.unfair([fair[0], {**fair[1], "metrics": ["hit@5"]}], ranks)[:1]
    assert line.startswith("the metrics differ")
    (line,) = statistics.unfair([result("Hydra", 1), fair[1]], ranks)
    assert line == "hit@1 of Hydra seed 1 is 0.0 in RecBole and 0.2500 from the saved ranks"


def test_groups_of_users_of_about_equal_size():
    table = pd.DataFrame({"n": [1, 1, 1, 1, 2, 3, 4, 5, 6, 7]})
    groups = statistics.by_group(table, "n", 3)
    assert list(groups.cat.categories) == ["1", "2-4", "5-7"]
    assert list(groups[:5]) == ["1"] * 4 + ["2-4"]
    same = statistics.by_group(pd.DataFrame({"n": [3, 3, 3]}), "n")
    assert list(same.cat.categories) == ["3"]


# -- a whole comparison --------------------------------------------------------------------------


def test_the_table_of_runs(finished):
    table = finished.to_pandas()
    assert list(table["model"]) == ["Hydra", "Hydra", "GRU4Rec", "GRU4Rec", "Pop", "Pop"]
    assert set(table["status"]) == {"ok"} and list(table["seed"][:2]) == [1, 2]
    assert list(table["training_mode"]) == ["autoregressive"] * 4 + ["augmentation"] * 2
    for run, (_, row) in zip(finished.runs, table.iterrows(), strict=True):
        for name, value in run["test_result"].items():
            assert row[name] == pytest.approx(value, abs=1e-4) or run["model"] == "Pop"
            assert row[f"{name}, masked"] >= row[name]
    for column in ("seconds_per_epoch", "seconds_to_best", "test_seconds_per_user"):
        assert (table[column] > 0).all()
    assert (table["peak_memory"] > 50 * 2**20).all()
    hydra = table.iloc[0]
    assert hydra["item_table_parameters"] == (16 + 1) * 61 and hydra["other_parameters"] > 0
    written = pd.read_csv(finished.folder / "results.csv")
    assert list(written.columns) == list(table.columns) and len(written) == 6
    # Pop has no seed in it.
    assert table["ndcg@10"].iloc[4] == table["ndcg@10"].iloc[5]


def test_a_metric_can_be_added_from_the_saved_ranks(finished):
    table = pd.read_parquet(finished.folder / "runs/tiny/Hydra/seed-1/ranks.parquet")
    assert metric("hit@20", table["rank"]).mean() >= finished.to_pandas()["hit@10"].iloc[0]
    assert table["user"].is_unique and (table["rank_masked"] <= table["rank"]).all()


def test_the_report(finished):
    text = (finished.folder / "report.md").read_text()
    for words in (
        "| NDCG@5 |", "NDCG@10, masked", "gain", "of the targets are repeats",
        "s to best", "peak memory", "| Pop |", "± ", "6 of 6 runs",
    ):  # fmt: skip
        assert words in text, words
    assert "may not be compared" not in text
    page = (finished.folder / "report.html").read_text()
    assert page.count("data:image/png;base64,") == 3
    assert not re.search(r"(src|href)=.(?!data:)", page)  # opens without a network
    heads = finished.identity["settings"]["tiny"]["Hydra"]["num_heads"]
    assert page.count(f"num_heads: {heads}") == 1  # in Hydra's own configuration
    tex = (finished.folder / "table.tex").read_text()
    assert tex.count(r"\\") == 4 and r"\begin{tabular}" in tex and "±" not in tex
    assert "6 ok" in repr(finished)


def test_the_report_renders_in_a_browser(finished, tmp_path):
    browser = shutil.which("chromium") or shutil.which("chromium-browser")
    if browser is None:
        assert "CI" not in os.environ, "CI installs Debian's chromium"
        pytest.skip("needs chromium")
    picture = tmp_path / "report.png"
    page = (finished.folder / "report.html").absolute()
    command = [browser, "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars"]
    profile = [f"--user-data-dir={tmp_path / 'profile'}", "--window-size=1200,1600"]
    command += [*profile, f"--screenshot={picture}", page.as_uri()]
    subprocess.run(command, check=True, capture_output=True, timeout=120)
    from matplotlib import image

    pixels = image.imread(picture)[..., :3]
    assert pixels.shape[:2] == (1600, 1200)
    # Text and coloured lines on white, from top to bottom.
    bands = pixels.reshape(8, 200, 1200, 3)
    assert all((band < 0.5).any() for band in bands)
    colourful = pixels.max(axis=2) - pixels.min(axis=2) > 0.3
    assert colourful.sum() > 500


def test_finished_runs_are_not_repeated(finished, tmp_path):
    folder = tmp_path / "copy"
    shutil.copytree(finished.folder, folder)
    files = sorted(folder.rglob("result.json"))
    before = [file.stat().st_mtime_ns for file in files]
    (folder / "report.md").unlink()
    settings = {**SETTINGS, "topk": [5, 10], "valid_metric": "NDCG@10"}
    again = compare_small(folder, config_dict=settings, resume=True)
    assert [file.stat().st_mtime_ns for file in files] == before
    pd.testing.assert_frame_equal(again.to_pandas(), finished.to_pandas())
    assert (folder / "report.md").exists()
    with pytest.raises(ComparisonError, match="holds results of this comparison; .*--resume=True"):
        compare_small(folder, config_dict=settings)
    with pytest.raises(ComparisonError, match="another comparison .* differs in seeds"):
        compare_small(folder, config_dict=settings, seeds=[1, 2, 3], resume=True)
    with pytest.raises(ComparisonError, match="learning_rate of Hydra: 0.01 there, 0.02 now"):
        compare_small(folder, config_dict={**settings, "learning_rate": 0.02}, resume=True)
    # What was changed behind its back is marked in the report.
    run = json.loads(files[0].read_text())
    run["fingerprint"]["items"] = "others"
    files[0].write_text(json.dumps(run))
    Comparison(folder).write()
    for report in ("report.md", "report.html"):
        assert "the item set differs" in (folder / report).read_text()
    (files[0].parent / "ranks.parquet").unlink()
    with pytest.raises(ComparisonError, match="ranks.parquet: cannot be read"):
        Comparison(folder)


def test_a_failing_run_is_reported_and_does_not_stop_the_others(tmp_path, capsys):
    (tmp_path / "broken.yaml").write_text("learning_rate: 1.0e+30\n")
    arguments = ["--models=SASRec,Hydra", "--dataset=tiny", "--output_dir=out", *ARGUMENTS]
    config = ["--model_config=SASRec:broken.yaml", "--epochs=1", "--show_progress=False"]
    arguments = [a for a in arguments if not a.startswith(("--epochs", "--learning_rate"))]
    assert main(["compare", *arguments, *config]) == 0
    table = Comparison("out").to_pandas().set_index("model")
    assert dict(table["status"]) == {"SASRec": "failed", "Hydra": "ok", "Pop": "ok"}
    assert "TrainingError" in table.loc["SASRec", "error"]
    alone = ["--models=SASRec", "--popularity=False", "--output_dir=none", *arguments[1:2]]
    assert main(["compare", *alone, *arguments[3:], *config]) == 1
    capsys.readouterr()
    assert main(["compare", *arguments, *config, "--resume=True"]) == 0
    assert "SASRec, seed 2020: failed, TrainingError" in Path("out/report.md").read_text()
    assert "| Hydra |" in capsys.readouterr().out


def test_pop_and_two_item_users_stand_beside_models_evaluated_every_other_epoch(tmp_path):
    settings = {**SETTINGS, "epochs": 4, "eval_step": 2, "embedding_size": 8}
    done = compare_small(tmp_path / "out", ["GRU4Rec", "BPR"], [1], config_dict=settings)
    assert list(done.to_pandas()["status"]) == ["ok"] * 3
    assert (tmp_path / "out" / "report.html").exists()
    assert done.unfair("tiny") == []  # RecBole tests a user of BPR more
    table = pd.read_parquet(tmp_path / "out/runs/tiny/BPR/seed-1/ranks.parquet")
    assert table.attrs["others"] == 1


def start(*arguments):
    command = [sys.executable, "-m", "recbole_hydra.cli", "compare", "--models=GRU4Rec,Hydra"]
    # Long enough to be met in the middle on a busy machine.
    command += ["--dataset=tiny", "--output_dir=out", *ARGUMENTS, "--epochs=120"]
    command += ["--stopping_step=120", *arguments]
    command = [a for a in command if a != f"--epochs={SMALL['epochs']}"]
    return subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def wait_for(pattern, process):
    deadline = time.time() + 120
    while not list(Path("out").glob(pattern)):
        assert time.time() < deadline and process.poll() is None, process.communicate()
        time.sleep(0.02)


def workers(*parent):
    """Process ids of runs, of all comparisons on this machine or of one process."""
    command = ["pgrep", *(f"-P{process.pid}" for process in parent), "-f", "compare.worker"]
    return set(subprocess.run(command, capture_output=True).stdout.split())


def test_after_a_kill_the_comparison_continues_where_it_stopped():
    process = start()
    first = "runs/tiny/GRU4Rec/seed-2020"
    wait_for("runs/tiny/Hydra/seed-2020/checkpoints/*.last.pth", process)
    own = workers(process)
    assert own
    process.send_signal(signal.SIGKILL)
    process.communicate()
    deadline = time.time() + 20
    while own & workers() and time.time() < deadline:
        time.sleep(0.1)
    assert not own & workers(), "a run outlives its comparison"
    before = (Path("out") / first / "result.json").stat().st_mtime_ns
    assert not Path("out/runs/tiny/Hydra/seed-2020/result.json").exists()
    process = start("--resume=True")
    out, err = process.communicate(timeout=200)
    assert process.returncode == 0, err
    assert (Path("out") / first / "result.json").stat().st_mtime_ns == before
    assert "Resuming" in Path("out/runs/tiny/Hydra/seed-2020/log.txt").read_text()
    table = Comparison("out").to_pandas()
    assert set(table["status"]) == {"ok"} and "3/3" in err and "report: out/report.html" in out
    assert "best 0." in err  # the bar shows the best score


def test_an_interrupted_comparison_leaves_a_valid_partial_report():
    process = start()
    wait_for("runs/tiny/Hydra/seed-2020/checkpoints/*.last.pth", process)
    own = workers(process)
    assert own
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130 and "--resume=True continues" in err
    assert not own & workers()
    assert list(Comparison("out").to_pandas()["status"]) == ["ok", "not run", "not run"]
    text = Path("out/report.md").read_text()
    assert "Hydra, seed 2020: not run" in text and "| GRU4Rec |" in text


# -- bad input -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "arguments, error, message",
    [
        ({"models": ["Hidra"]}, ConfigError, "no model 'Hidra'; did you mean 'Hydra'"),
        ({"models": []}, ComparisonError, "models: none given"),
        ({"models": ["Hydra", "Hydra"]}, ComparisonError, "models: Hydra given twice"),
        ({"seeds": [1, 2, 1]}, ComparisonError, "seeds: 1 given twice"),
        ({"seeds": ["a"]}, ComparisonError, "seeds: integers from 0 on, not 'a'"),
        ({"models": ["Hydra", "BERT4Rec"]}, ComparisonError, "BERT4Rec cannot train on every"),
        ({"model_config": {"SASRec": "a.yaml"}}, ComparisonError, "'SASRec' is not among the"),
        ({"model_config": {"Hydra": "none.yaml"}}, ConfigError, "none.yaml: No such file"),
        ({"config_dict": {**SETTINGS, "seed": 3}}, ComparisonError, "seed: .* use --seeds"),
        ({"argv": ["--checkpoint_dir=x"]}, ComparisonError, "checkpoint_dir: .* --output_dir"),
        ({"argv": ["--model=SASRec"]}, ComparisonError, "model: .* use --models"),
        ({"argv": ["--nproc=4"]}, ComparisonError, "nproc: .* one process"),
        (
            {"argv": ["--metrics=AUC", "--valid_metric=AUC"]},
            ConfigError,
            "eval_args: mode: full ranks all items, which AUC cannot measure",
        ),
        ({"argv": ["--eval_args={'order': 'RO'}"]}, ConfigError, "eval_args: order RO"),
        ({"argv": ["--eval_args={'mode': 'uni100'}"]}, ComparisonError, "ranks all items"),
        ({"argv": ["--learning_rat=1"]}, ConfigError, "unknown key 'learning_rat'"),
        ({"argv": ["--populrity=False"]}, ConfigError, "did you mean 'popularity'"),
        ({"argv": ["--latex=True"]}, ConfigError, "'latex'; it is an argument of its own"),
        ({"argv": ["--training_mode=slow"]}, ConfigError, "training_mode must be one of"),
        ({"resume": True}, ComparisonError, "there is no comparison to resume"),
        ({"resume": "yes"}, ConfigError, "resume must be True or False"),
    ],
)
def test_bad_input_is_refused_before_anything_runs(tmp_path, arguments, error, message):
    given = {"models": ["Hydra"], "seeds": [1], **arguments}
    with pytest.raises(error, match=message):
        compare_small(tmp_path / "out", **given)
    assert not (tmp_path / "out").exists()


def test_a_protocol_that_differs_between_models_is_refused(tmp_path):
    (tmp_path / "filter.yaml").write_text('user_inter_num_interval: "[5,inf)"\n')
    with pytest.raises(ComparisonError, match="user_inter_num_interval: .* one protocol"):
        compare_small(tmp_path / "out", model_config={"GRU4Rec": tmp_path / "filter.yaml"})


def test_settings_of_one_model_that_would_be_overridden_are_refused(tmp_path):
    (tmp_path / "aug.yaml").write_text("training_mode: augmentation\n")
    with pytest.raises(ComparisonError, match="aug.yaml: training_mode augmentation for Hydra, "):
        compare_small(tmp_path / "out", model_config={"Hydra": tmp_path / "aug.yaml"})
    (tmp_path / "seed.yaml").write_text("seed: 7\n")
    for layer in (
        {"config_file_list": tmp_path / "seed.yaml"},
        {"model_config": {"Hydra": tmp_path / "seed.yaml"}},
    ):
        with pytest.raises(ComparisonError, match="seed.yaml: seed: a comparison sets it"):
            compare_small(tmp_path / "out", **layer)


def test_another_gpu_and_the_same_folder_are_no_other_comparison(tmp_path, monkeypatch):
    from recbole_hydra.compare.plan import make_plan

    best = tmp_path / "best.yaml"
    best.write_text(f"data_path: {DATASETS}\n")
    monkeypatch.chdir(DATASETS.parent)
    layers = [None, {"Hydra": best}, {**SETTINGS, "data_path": "dataset"}, (), False]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    first = make_plan(["GRU4Rec", "Hydra"], "tiny", 1, tmp_path / "out", *layers)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")
    again = make_plan(["GRU4Rec", "Hydra"], "tiny", 1, tmp_path / "out", *layers)
    assert first.identity == again.identity


def test_a_dataset_without_enough_users(few_users, tmp_path):
    with pytest.raises(DatasetError, match="dataset few: 2 users have .* a comparison needs 10"):
        compare(["Hydra"], "few", 1, tmp_path / "out", config_dict={"data_path": few_users})


def test_a_folder_with_something_else_is_left_alone(tmp_path):
    (tmp_path / "thesis.tex").write_text("x")
    with pytest.raises(ComparisonError, match="holds files that are no comparison's"):
        compare_small(tmp_path)


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--models=Hydra", "--dataset=tiny"], "--output_dir is missing"),
        (["--models=Hydra", "--dataset=tiny", "--output_dir=o", "--model_config=a"], "MODEL:FILE"),
        (["--models=Hydra", "--dataset=absent", "--output_dir=o"], "no folder"),
    ],
)
def test_errors_on_the_command_line_are_one_line(capsys, arguments, message):
    assert main(["compare", *arguments]) == 2
    err = capsys.readouterr().err
    assert message in err and err.count("\n") == 1
    assert main(["compare", "--help"]) == 0 and "--seeds" in capsys.readouterr().out


def test_the_mode_can_be_augmentation_for_models_that_are_not_causal(tmp_path):
    from recbole_hydra.compare.plan import make_plan

    models, nothing = ["Hydra", "BERT4Rec"], (None, None)
    argv = [*ARGUMENTS, "--training_mode=augmentation"]
    plan = make_plan(models, "tiny", 1, tmp_path / "out", *nothing, None, argv, True)
    assert plan.identity["training_mode"] == "augmentation"
    modes = {m: s["training_mode"] for m, s in plan.identity["settings"]["tiny"].items()}
    assert modes == dict.fromkeys(["Hydra", "BERT4Rec", "Pop"], "augmentation")


def test_a_plan_is_every_dataset_model_and_seed_with_its_own_layers(tmp_path):
    from recbole_hydra.compare.plan import make_plan

    for name in ("one", "two"):  # two datasets in a folder given relative to the current one
        shutil.copytree(DATASETS / "tiny", tmp_path / "mine" / name)
        os.rename(tmp_path / "mine" / name / "tiny.inter", tmp_path / f"mine/{name}/{name}.inter")
    (tmp_path / "all.yaml").write_text("learning_rate: 0.003\nepochs: 7\n")
    (tmp_path / "sasrec.yaml").write_text("learning_rate: 0.004\n")
    argv = ["--data_path=mine", "--epochs=3"]
    layers = (["all.yaml"], {"SASRec": "sasrec.yaml"}, None, argv)
    plan = make_plan(["Hydra", "SASRec"], ["one", "two"], [5, 6], "out", *layers, False)
    found = [(task.dataset, task.model, task.seed) for task in plan.tasks]
    assert found == [(d, m, s) for d in ("one", "two") for m in ("Hydra", "SASRec") for s in (5, 6)]
    for task in plan.tasks:  # as the process of a run, in its own folder, reads it
        os.chdir("/")
        config = Config(task.model, task.dataset, task.config_files, task.settings, task.argv)
        assert config["learning_rate"] == (0.004 if task.model == "SASRec" else 0.003)
        assert config["epochs"] == 3 and config["seed"] == task.seed
        assert Path(config["data_path"]) == tmp_path / "mine" / task.dataset
        assert config["training_mode"] == "autoregressive"


def test_left_out_targets_are_recboles_test_rows(few_users):
    config = Config("SASRec", "few", config_dict={"data_path": few_users})
    dataset = create_dataset(config)
    targets = left_out_targets(user_histories(dataset), dataset.item_num)
    _, _, test = split_dataset(config, dataset)
    rows = [batch[0] for batch in test]
    assert all(isinstance(row, Interaction) for row in rows)
    users = torch.cat([row["user_id"] for row in rows])
    items = torch.cat([batch[3] for batch in test])
    assert sorted(zip(users.tolist(), items.tolist(), strict=True)) == sorted(
        zip(targets["user"], targets["item"], strict=True)
    )
