import json
import os
import random
import re
import shlex
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pandas as pd
import psutil
import pytest
import ray
import torch
import yaml
from conftest import small, small_plan

from recbole_hydra import Hydra, default_config, run_recbole_hydra
from recbole_hydra.cli import main
from recbole_hydra.errors import DatasetError, TuneError
from recbole_hydra.tune import Sweep, tune
from recbole_hydra.tune.cluster import connection
from recbole_hydra.tune.datasets import Datasets
from recbole_hydra.tune.plan import FOLDER, read_trials, trial_folder, write_params
from recbole_hydra.tune.search import TrialSource, make_scheduler
from recbole_hydra.tune.trial import Job, run_trial, train_trial

#: What a sweep may set for its trials, next to what it searches.
# From noise: with vectors from co-occurrence a model that does not learn is not hopeless.
SETTINGS = {
    key: value
    for key, value in small("Hydra", item_initialization="normal").items()
    if key not in ("show_progress", "learning_rate")
}


def sweep(space, output_dir="out", **changes):
    """A small sweep of Hydra; ``changes`` to its settings or to the arguments of tune."""
    arguments = {"num_samples": None, "max_concurrent": 1, "show_progress": False}
    settings = {key: value for key, value in SETTINGS.items() if key not in space}
    for key, value in changes.items():
        (settings if key in SETTINGS else arguments)[key] = value
    return tune("Hydra", "tiny", space, output_dir, config_dict=settings, **arguments)


# -- a whole sweep --------------------------------------------------------------------------------


#: A good value, a hopeless one, and one that diverges.
SPACE = {"learning_rate": [0.02, 1e-5, 1e30]}


@pytest.fixture(scope="module")
def whole(local_ray, tmp_path_factory):
    """A sweep of them."""
    folder = tmp_path_factory.mktemp("whole")
    before = os.getcwd()
    os.chdir(folder)
    try:
        yield sweep(SPACE, "out", search="grid", epochs=8, grace_period=2, reduction_factor=2)
    finally:
        os.chdir(before)


def trial_of(done, learning_rate):
    """The trial with that learning rate."""
    return next(t for t in done.trials if t["params"] == {"learning_rate": learning_rate})


def test_asha_ends_a_hopeless_trial_and_the_good_one_finishes(whole):
    good, hopeless = (trial_of(whole, rate) for rate in (0.02, 1e-5))
    assert good["status"] == "finished" and good["history"][-1]["epoch"] == 8
    assert hopeless["status"] == "stopped" and hopeless["history"][-1]["epoch"] == 2
    assert whole.best["number"] == good["number"]
    assert good["best_score"] > 2 * hopeless["best_score"]


def test_trials_that_fail_are_recorded_and_not_fatal(whole):
    diverged = trial_of(whole, 1e30)
    assert diverged["status"] == "failed"
    assert "TrainingError: the loss is nan" in diverged["error"]
    assert len(whole.trials) == 3


def test_every_evaluation_is_reported_with_epoch_and_seconds(whole):
    history = whole.best["history"]
    assert [entry["epoch"] for entry in history] == list(range(1, 9))
    seconds = [entry["seconds"] for entry in history]
    assert seconds[0] > 0 and seconds == sorted(seconds)
    assert set(history[0]["metrics"]) == {"hit@10", "ndcg@10", "mrr@10"}
    assert all(entry["score"] == entry["metrics"]["ndcg@10"] for entry in history)
    assert whole.best["best_score"] == max(entry["score"] for entry in history)
    # What Ray itself keeps, for TensorBoard and its own tools, says the same.
    (ray_log,) = whole.folder.glob(f"ray/*/trial-{whole.best['number']:04d}/result.json")
    lines = [json.loads(line) for line in ray_log.read_text().splitlines()]
    reported = [line for line in lines if "best_score" in line]
    assert [line["epoch"] for line in reported][:8] == list(range(1, 9))
    assert reported[3]["ndcg@10"] == history[3]["score"]


def test_the_best_configuration_is_ready_to_train(whole, elsewhere):
    settings = yaml.safe_load((whole.folder / "best.yaml").read_text())
    assert settings == {**SETTINGS, "epochs": 8, "seed": 2020, "learning_rate": 0.02}
    assert whole.command.startswith("recbole-hydra --model=Hydra --dataset=tiny --config_files=")
    result = run_recbole_hydra(
        "Hydra", "tiny", [str(whole.folder / "best.yaml")], {"show_progress": False}
    )
    # The same run: the same seed, data and epochs, whatever the number of threads.
    assert result["best_valid_result"] == pytest.approx(whole.best["valid_result"], abs=2e-3)
    assert result["test_result"] == pytest.approx(whole.test_result, abs=2e-3)
    assert set(whole.test_result) == {"hit@10", "ndcg@10", "mrr@10"}


def test_the_table_and_the_picture(whole):
    frame = pd.read_csv(whole.folder / "trials.csv")
    assert list(frame["trial"])[0] == whole.best["number"]
    assert list(frame["valid ndcg@10"].dropna()) == sorted(
        frame["valid ndcg@10"].dropna(), reverse=True
    )
    assert set(frame["status"]) == {"finished", "stopped", "failed"}
    best = frame.iloc[0]
    assert float(best["learning_rate"]) == 0.02 and best["epochs"] == 8
    assert best["valid ndcg@10"] == whole.best["best_score"]
    assert frame["error"].notna().sum() == 1
    image = (whole.folder / "sweep.png").read_bytes()
    assert image.startswith(b"\x89PNG") and len(image) > 10_000


def test_the_dataset_is_built_once_for_all_trials(whole):
    """RecBole logs a dataset where it is built: not in the trials."""
    logs = [trial_folder(whole.folder, t["number"]) / "log.txt" for t in whole.trials]
    texts = [log.read_text() for log in logs]
    assert all("recbole" in text or "Error" in text for text in texts)
    assert not any("The number of inters" in text for text in texts)
    assert any("epoch 0 training" in text for text in texts)


def test_nothing_is_left_of_a_trial_but_its_best_epoch(whole):
    best = trial_folder(whole.folder, whole.best["number"])
    assert len(list(best.glob("checkpoints/*.best.pth"))) == 1
    for trial in whole.trials:
        if trial["status"] != "failed":
            assert not list(trial_folder(whole.folder, trial["number"]).glob("**/*.last.pth"))


def test_a_sweep_can_be_read_again_and_resumed_when_it_is_over(whole, monkeypatch):
    again = Sweep(whole.folder)
    assert again.best == whole.best and again.test_result == whole.test_result
    assert "1 finished, 1 stopped" in repr(again) and "1 failed" in repr(again)
    # Nothing is left to do: not even Ray is asked.
    monkeypatch.setattr("recbole_hydra.tune.cluster.connection", None)
    again = {"epochs": 8, "grace_period": 2, "reduction_factor": 2, "resume": True}
    for file in ("best.yaml", "trials.csv", "sweep.png"):  # as after a kill just before them
        (whole.folder / file).unlink()
    same = sweep(SPACE, whole.folder, search="grid", **again)
    assert same.test_result == whole.test_result
    for file in ("best.yaml", "trials.csv", "sweep.png"):
        assert (whole.folder / file).is_file()


# -- output folders -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({}, "holds results of this sweep; continue it with --resume=True"),
        ({"epochs": 9, "resume": True}, r"another sweep \(Hydra on tiny\), .* epochs: 8 there, 9"),
        ({"space": {"num_heads": [1, 2]}}, "another sweep .*differs in learning_rate: .* None now"),
        ({"scheduler": "none"}, "another sweep .* differs in scheduler"),
        ({"folder": "new", "resume": True}, "there is no sweep to resume"),
        ({"folder": "taken"}, "holds files that are no sweep's"),
        ({"folder": "sweep#2"}, "sweep#2: Ray takes # and [?] for parts of an address"),
    ],
)
def test_a_folder_that_is_taken_is_refused(whole, elsewhere, changes, message):
    (elsewhere / "taken").mkdir()
    (elsewhere / "taken" / "notes.txt").touch()
    settings = {
        "search": "grid", "epochs": 8, "grace_period": 2, "reduction_factor": 2, **changes,
    }  # fmt: skip
    if settings.get("scheduler") == "none":
        del settings["grace_period"], settings["reduction_factor"]
    space = settings.pop("space", SPACE)
    with pytest.raises(TuneError, match=message) as caught:
        sweep(space, settings.pop("folder", whole.folder), **settings)
    assert "\n" not in str(caught.value)


def test_a_missing_dataset_takes_no_folder(local_ray, elsewhere):
    with pytest.raises(DatasetError, match="dataset tny: there is no folder .*did you mean 'tiny'"):
        tune("Hydra", "tny", {"learning_rate": [0.1]}, "out", config_dict=SETTINGS)
    assert not (elsewhere / "out").exists()


def test_a_sweep_without_any_score_says_why(local_ray, elsewhere):
    space = {"history_as_one": [True], "repeat_bias": ["none"]}  # cannot be built
    with pytest.raises(TuneError, match="no trial came to a validation score; .*history_as_one"):
        sweep(space, num_samples=1)
    assert pd.read_csv("out/trials.csv")["status"].tolist() == ["failed"]
    with pytest.raises(TuneError, match="^out: no trial has a score$"):
        Sweep("out").best_settings()


# -- one trial, without Ray -----------------------------------------------------------------------


class Reports(list):
    """Takes what a trial reports; ends the trial at ``last``, as a kill would."""

    def __init__(self, last=None):
        self.last = last

    def __call__(self, metrics):
        self.append(metrics)
        if metrics["epoch"] == self.last:
            raise KeyboardInterrupt


@pytest.fixture
def make_trial(elsewhere):
    """Prepare a trial's folder and return a function that runs the trial in it."""
    from recbole_hydra.data import prepare_data

    def make(params, **settings):
        made = small_plan({name: [value] for name, value in params.items()}, **settings)
        folder = elsewhere / "sweep"
        if not folder.exists():
            FOLDER.claim(folder, made.identity, resume=False)
        write_params(folder, 0, params)
        job = Job(str(folder), "Hydra", "tiny", made.settings, 1, None)
        own = trial_folder(folder, 0)
        os.chdir(own)

        def run(report, load_data=prepare_data):
            train_trial(job, {"number": 0, "params": params}, report, load_data, "here")

        return run, own

    return make


def test_a_trial_is_configured_by_its_dict_alone(make_trial, monkeypatch):
    """Neither the worker's own arguments nor RecBole's choice of a GPU get in."""
    monkeypatch.setattr("sys.argv", ["worker.py", "--learning_rate=0.5", "--node-ip=10.0.0.1"])
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3")
    seen = {}
    run, _ = make_trial({"learning_rate": 0.01})

    def load(config):
        from recbole_hydra.data import prepare_data

        seen["config"] = config
        return prepare_data(config)

    run(Reports(), load)
    assert seen["config"]["learning_rate"] == 0.01
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "3"
    assert json.loads(Path("progress.json").read_text())["gpus"] == "3"


def test_a_trial_never_reads_the_test_set(make_trial, monkeypatch):
    from recbole_hydra.training import run as run_module

    make_loaders = run_module.make_loaders

    def without_test(config, data):
        return (*make_loaders(config, data)[:2], None)

    monkeypatch.setattr(run_module, "make_loaders", without_test)
    run, own = make_trial({"learning_rate": 0.01})
    reports = Reports()
    run(reports)
    assert [r["epoch"] for r in reports] == [1, 2]
    assert set(reports[0]) == {
        "epoch", "seconds", "best_score", "score", "train_loss", "hit@10", "ndcg@10", "mrr@10",
    }  # fmt: skip
    assert json.loads((own / "outcome.json").read_text())["status"] == "finished"


def test_a_trial_uses_the_threads_it_was_given(make_trial):
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        run, _ = make_trial({"learning_rate": 0.01})
        run(Reports())
        assert torch.get_num_threads() == 1
    finally:
        torch.set_num_threads(before)


def test_a_trial_that_was_killed_goes_on_and_reports_its_last_epoch_again(make_trial):
    settings = {"config_dict": {**SETTINGS, "epochs": 4}}
    run, own = make_trial({"learning_rate": 0.01}, **settings)
    whole = Reports()
    run(whole)
    for path in [*own.glob("checkpoints/*"), *own.glob("*.json")]:
        path.unlink()

    killed = Reports(last=2)
    with pytest.raises(KeyboardInterrupt):
        run(killed)
    assert not (own / "outcome.json").exists()
    again = Reports(last=2)
    with pytest.raises(KeyboardInterrupt):  # as ASHA would end it
        run(again)
    history = json.loads((own / "progress.json").read_text())["history"]
    assert [entry["epoch"] for entry in history] == [1, 2]  # nothing of before is lost
    again = Reports()
    run(again)
    assert [r["epoch"] for r in again] == [2, 3, 4]

    def scores(reports):
        return [{k: v for k, v in r.items() if k != "seconds"} for r in reports]

    assert scores(again) == scores(whole[1:])
    seconds = [r["seconds"] for r in again]
    assert seconds[0] == killed[1]["seconds"] and seconds == sorted(seconds)
    history = json.loads((own / "progress.json").read_text())["history"]
    assert [entry["epoch"] for entry in history] == [1, 2, 3, 4]


def test_seconds_are_those_of_epochs_without_an_evaluation_too(make_trial, monkeypatch):
    from recbole.trainer import Trainer

    train_epoch = Trainer._train_epoch

    def slow(*args, **kwargs):
        time.sleep(0.2)
        return train_epoch(*args, **kwargs)

    monkeypatch.setattr(Trainer, "_train_epoch", slow)
    run, _ = make_trial(
        {"learning_rate": 0.01}, config_dict={**SETTINGS, "epochs": 4, "eval_step": 2}
    )
    reports = Reports()
    run(reports)
    assert [r["epoch"] for r in reports] == [2, 4]
    assert reports[0]["seconds"] > 0.4 and reports[1]["seconds"] > 0.8


def test_a_score_that_is_no_number_ends_a_trial(make_trial, monkeypatch):
    from recbole.trainer import Trainer

    monkeypatch.setattr(
        Trainer, "_valid_epoch", lambda *_, **__: (float("nan"), {"ndcg@10": float("nan")})
    )
    run, own = make_trial({"learning_rate": 0.01})
    run(Reports())
    outcome = json.loads((own / "outcome.json").read_text())
    assert outcome["status"] == "failed"
    assert outcome["error"] == "TrainingError: the validation score is nan in epoch 0"


def test_a_folder_that_a_node_does_not_see_is_named(local_ray, elsewhere):
    job = Job(str(elsewhere / "nowhere"), "Hydra", "tiny", {}, 1, None)
    with pytest.raises(TuneError, match="output_dir .*nowhere: node .* does not see it"):
        run_trial({"number": 0, "params": {}}, job)


# -- datasets -------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["autoregressive", "augmentation"])
def test_trials_share_a_dataset_unless_they_change_it(local_ray, mode):
    from recbole_hydra.training.run import train
    from recbole_hydra.tune.datasets import loader_of

    actor = ray.remote(num_cpus=0)(Datasets).remote()
    settings = {**SETTINGS, "training_mode": mode, "seed": 2020}
    first, second, third = (
        ray.get(actor.get.remote("Hydra", "tiny", {**settings, **own}))[0]
        for own in ({"learning_rate": 0.1}, {"num_heads": 1}, {"MAX_ITEM_LIST_LENGTH": 5})
    )
    assert first == second != third
    assert ray.get(actor.count.remote()) == 2
    # A run on shared data is the run on data of its own.
    load = loader_of(actor, "Hydra", "tiny", settings)
    own, shared = (
        train("Hydra", "tiny", config_dict={**settings, "show_progress": False}, **more).result
        for more in ({}, {"load_data": load})
    )
    assert shared["best_valid_result"] == own["best_valid_result"]
    assert [e["train_loss"] for e in shared["history"]] == [e["train_loss"] for e in own["history"]]


# -- searching and stopping after a resume --------------------------------------------------------


def past(number, status, scores, **params):
    history = [
        {"epoch": epoch, "seconds": float(epoch), "score": score, "metrics": {}, "train_loss": 1.0}
        for epoch, score in enumerate(scores, 1)
    ]
    return {"number": number, "params": params, "status": status, "history": history}


def test_the_scheduler_remembers_the_trials_before_the_kill():
    made = small_plan(
        {"learning_rate": {"uniform": [0.001, 0.1]}}, grace_period=1, reduction_factor=2,
        config_dict={**SETTINGS, "epochs": 4},
    )  # fmt: skip
    before = [past(n, "finished", [0.4, 0.5, 0.6, 0.7], learning_rate=0.01) for n in range(3)]

    def decision(trials, score):
        from types import SimpleNamespace

        scheduler = make_scheduler(made, trials)
        trial = SimpleNamespace(trial_id="new")
        scheduler.on_trial_add(None, trial)
        return scheduler.on_trial_result(None, trial, {"epoch": 1, "best_score": score})

    assert decision([], 0.1) == "CONTINUE"  # with nothing to compare with
    assert decision(before, 0.1) == "STOP"
    assert decision(before, 0.45) == "CONTINUE"
    # One that goes on is told when it does.
    running = [past(0, "interrupted", [0.4], learning_rate=0.01)]
    assert decision(running, 0.1) == "CONTINUE"


def test_a_trial_that_goes_on_is_not_judged_again(elsewhere):
    """It had passed the first rung when nobody else was there; since, better ones have."""
    from types import SimpleNamespace

    made = small_plan(
        {"learning_rate": {"uniform": [0.001, 0.1]}}, grace_period=1, reduction_factor=2,
        config_dict={**SETTINGS, "epochs": 4}, num_samples=4,
    )  # fmt: skip
    trials = [past(n, "finished", [0.8] * 4, **made.configurations[n]) for n in range(1, 4)]
    trials.append(past(0, "interrupted", [0.1], **made.configurations[0]))
    scheduler = make_scheduler(made, trials)
    source = TrialSource(made, elsewhere, trials, scheduler)
    assert source.suggest("again")["number"] == 0
    trial = SimpleNamespace(trial_id="again")
    scheduler.on_trial_add(None, trial)
    assert scheduler.on_trial_result(None, trial, {"epoch": 1, "best_score": 0.1}) == "CONTINUE"
    assert scheduler.on_trial_result(None, trial, {"epoch": 2, "best_score": 0.1}) == "STOP"


def test_interrupted_trials_come_first_and_keep_their_numbers(elsewhere):
    made = small_plan({"learning_rate": {"uniform": [0.001, 0.1]}}, num_samples=4)
    done = made.configurations
    trials = [past(0, "finished", [0.5], **done[0]), past(2, "interrupted", [], **done[2])]
    source = TrialSource(made, elsewhere, trials, make_scheduler(made, trials))
    assert len(source) == 3
    handed = [source.suggest(f"id{n}") for n in range(3)]
    assert handed == [{"number": n, "params": done[n]} for n in (2, 1, 3)]
    assert source.suggest("id9") == TrialSource.FINISHED
    assert [t["number"] for t in read_trials(elsewhere)] == [1, 2, 3]


def test_optuna_proposes_and_remembers(elsewhere):
    space = {"learning_rate": {"uniform": [0.001, 0.1]}, "num_heads": [1, 2]}
    settings = {"data_path": SETTINGS["data_path"]}
    made = small_plan(space, search="optuna", num_samples=30, config_dict=settings)
    near = [
        past(n, "finished", [1 - abs(0.08 - rate)], learning_rate=rate, num_heads=2)
        for n, rate in enumerate([0.001 + 0.009 * k for k in range(11)])
    ]
    near.append(past(11, "failed", [], learning_rate=0.05, num_heads=1))
    near.append(past(12, "interrupted", [0.3], learning_rate=0.05, num_heads=1))
    source = TrialSource(made, elsewhere, near, make_scheduler(made, near))
    assert len(source.optuna._ot_study.trials) == 11
    assert source.suggest("old") == {"number": 12, "params": near[12]["params"]}
    source.on_trial_complete("old", {"best_score": 0.4})
    assert len(source.optuna._ot_study.trials) == 12
    broken = source.suggest("broken")
    folder = trial_folder(elsewhere, broken["number"])
    (folder / "outcome.json").write_text('{"status": "failed", "error": "x"}')
    source.on_trial_complete("broken", {"best_score": 0.9, "training_iteration": 1})
    assert [t.state.name for t in source.optuna._ot_study.trials].count("FAIL") == 1
    rates = []
    for number in range(14, 30):
        trial = source.suggest(f"new{number}")
        assert trial["number"] == number
        rates.append(trial["params"]["learning_rate"])
        score = 1 - abs(0.08 - rates[-1])
        source.on_trial_complete(f"new{number}", {"best_score": score, "training_iteration": 1})
    assert source.suggest("more") == TrialSource.FINISHED
    assert abs(sorted(rates)[len(rates) // 2] - 0.08) < 0.02  # it has learned where it is good


class Mine(Hydra):
    """A user's own model."""


def test_a_sweep_of_ones_own_model_with_optuna(local_ray, elsewhere):
    # As a class of a notebook or a script travels; Ray's workers cannot import this file.
    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])
    space = {"learning_rate": {"loguniform": [1e-3, 1e-1]}, "num_heads": [1, 2]}
    settings = {k: v for k, v in SETTINGS.items() if k != "num_heads"}
    done = tune(
        Mine, "tiny", space, "out", search="optuna", num_samples=3, max_concurrent=2,
        config_file_list=[default_config("Hydra")], config_dict={**settings, "epochs": 1},
        show_progress=False,
    )  # fmt: skip
    assert done.identity["model"] == "Mine" and done.test_result is not None
    assert [t["status"] for t in done.trials] == ["finished"] * 3
    assert all(t["params"]["num_heads"] in (1, 2) for t in done.trials)


def test_the_search_says_what_to_install(elsewhere, monkeypatch):
    monkeypatch.setitem(sys.modules, "optuna", None)
    made = small_plan({"learning_rate": [0.1]}, search="optuna", num_samples=1)
    with pytest.raises(TuneError, match="optuna is not installed; pip install optuna"):
        TrialSource(made, elsewhere, [], None)


# -- models that are not ours ---------------------------------------------------------------------


def test_a_model_without_checkpoints_is_swept_too(local_ray, elsewhere):
    done = tune(
        "ItemKNN", "tiny", {"k": [5, 50]}, "knn", search="grid", show_progress=False,
        config_dict={"data_path": SETTINGS["data_path"]},
    )  # fmt: skip
    assert [t["status"] for t in done.trials] == ["finished"] * 2
    assert done.checkpoint(0) is None and done.test_result["ndcg@10"] > 0


# -- the connection -------------------------------------------------------------------------------


def free_port() -> int:
    """A port that nobody listens at, nor picks by chance: above those that Ray gives its workers,
    below those that the system gives to whoever asks for any."""
    while True:
        port = random.randrange(20_000, 32_000)
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)):
                return port


def command(*arguments):
    return [sys.executable, "-m", "recbole_hydra.cli", "tune", *arguments]


def test_an_address_where_nothing_answers_is_refused_within_seconds(elsewhere):
    address = f"127.0.0.1:{free_port()}"
    start = time.monotonic()
    done = subprocess.run(
        command(
            "--model=Hydra", "--dataset=tiny", f"--data_path={SETTINGS['data_path']}",
            "--output_dir=out", f"--ray_address={address}",
        ),  # fmt: skip
        capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == 2
    assert f"recbole-hydra: error: ray_address: nothing answers at {address}" in done.stderr
    assert "Traceback" not in done.stderr and not Path("out").exists()
    assert time.monotonic() - start < 60  # importing torch and RecBole included


def answer_once(server, word):
    """Say ``word`` to the first who connects, and nothing else."""
    connected, _ = server.accept()
    connected.sendall(word)
    time.sleep(30)


def test_addresses_that_are_none(local_ray, elsewhere, monkeypatch):
    with pytest.raises(TuneError, match="this process is connected to Ray already"):
        with connection("127.0.0.1:1"):
            pass
    ray.shutdown()
    try:
        refused = [
            ("cluster", "expected HOST:PORT or auto, got 'cluster'"),
            ("ray://127.0.0.1:10001", "not through its client; give HOST:PORT of the head"),
            ("127.0.0.1:99999", "nothing answers at 127.0.0.1:99999"),
        ]
        # A server that is no Ray: one that says something else, and one that says nothing.
        for word in (b"220 mail.example.org\r\n", b""):
            server = socket.create_server(("127.0.0.1", 0))
            threading.Thread(target=answer_once, args=(server, word), daemon=True).start()
            port = server.getsockname()[1]
            refused.append((f"127.0.0.1:{port}", "is no head of a Ray cluster; check the port"))
        # This machine's last cluster is gone; it never was in one.
        monkeypatch.setenv("RAY_TMPDIR", str(elsewhere))
        gone = f"127.0.0.1:{free_port()}"
        (elsewhere / "ray").mkdir()
        (elsewhere / "ray" / "ray_current_cluster").write_text(gone)
        refused.append(("auto", f"nothing answers at {gone}"))
        for address, message in refused:
            start = time.monotonic()
            with pytest.raises(TuneError, match=message) as caught:
                with connection(address):
                    pass
            assert time.monotonic() - start < 20 and "\n" not in str(caught.value)
        (elsewhere / "ray" / "ray_current_cluster").unlink()
        with pytest.raises(TuneError, match="auto: this machine is no node of a cluster"):
            with connection("auto"):
                pass
    finally:
        monkeypatch.delenv("RAY_TMPDIR", raising=False)
        ray.init(
            address="local", num_cpus=2, include_dashboard=False, log_to_driver=False,
            logging_level=40,
        )  # fmt: skip


# -- kills ----------------------------------------------------------------------------------------


def wait_for(condition, process=None, seconds=120):
    """Wait until ``condition()`` holds, while ``process``, if it is given, lives."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, f"after {seconds} s: not {condition.__name__}"
        if process is not None:
            assert process.poll() is None, process.communicate()[1]
        time.sleep(0.1)


def statuses(folder="out"):
    return [trial["status"] for trial in read_trials(folder)]


def epochs_of(folder="out"):
    return {
        trial["number"]: trial["history"][-1]["epoch"]
        for trial in read_trials(folder)
        if trial["history"]
    }


def end_of(process):
    """Wait until a driver and all that it started are gone."""
    family = [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]
    return lambda: (process.wait(), psutil.wait_procs(family, timeout=60))


def test_a_sweep_survives_ctrl_c_and_a_kill_of_its_driver(elsewhere):
    """Three calls: interrupted, killed, finished."""
    Path("space.yaml").write_text("learning_rate: {choice: [0.02, 0.01]}\n")
    settings = {**SETTINGS, "epochs": 60, "stopping_step": 60}
    arguments = [
        "--model=Hydra", "--dataset=tiny", "--space=space.yaml", "--search=grid",
        "--scheduler=none", "--max_concurrent=2", "--output_dir=out",
        *(f"--{key}={value}" for key, value in settings.items()),
    ]  # fmt: skip

    def start(*more):
        return subprocess.Popen(
            command(*arguments, *more), stderr=subprocess.PIPE, text=True, start_new_session=True
        )

    def begun():
        return sum(epochs_of().values()) > 5 if Path("out").exists() else False

    first = start()
    wait_for(begun, first)
    gone = end_of(first)
    os.kill(first.pid, signal.SIGINT)
    _, message = first.communicate(timeout=60)
    gone()
    assert first.returncode == 130, message
    assert "interrupted; the report is of what is finished; --resume=True continues" in message
    assert "interrupted" in statuses() and "stopped" not in statuses()
    assert Path("out/trials.csv").exists() and not Path("out/result.json").exists()

    reached = epochs_of()
    second = start("--resume=True")

    def further():
        return sum(epochs_of().values()) > sum(reached.values()) + 10

    wait_for(further, second)
    gone = end_of(second)
    second.kill()
    gone()
    assert "interrupted" in statuses()
    killed_at = {t["number"]: len(t["history"]) for t in read_trials("out") if t["history"]}

    third = start("--resume=True")
    _, message = third.communicate(timeout=300)
    assert third.returncode == 0, message
    assert statuses() == ["finished"] * 2
    for trial in read_trials("out"):
        assert [entry["epoch"] for entry in trial["history"]] == list(range(1, 61))
    # What had begun went on where it was: an epoch is trained once.
    log = trial_folder("out", 0).joinpath("log.txt").read_text()
    assert "Resuming" in log
    assert len(re.findall(r"epoch 0 training", log)) == 1
    assert max(killed_at.values()) > 5
    assert Sweep("out").test_result is not None


# -- a cluster ------------------------------------------------------------------------------------


#: Current Ray asks those who connect for a token, where it is told to; older Ray does not read it.
TOKEN_MODE = {"RAY_AUTH_MODE": "token"}


@pytest.fixture
def start_node(elsewhere):
    """Start a node of a Ray cluster on this machine and wait until it says that it runs; all are
    killed in the end."""
    started = []

    def start(*arguments):
        path = Path(f"node-{len(started)}.log")
        with path.open("w") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", "ray.scripts.scripts", "start", "--block",
                 "--disable-usage-stats", "--num-cpus=1", "--num-gpus=1", *arguments],
                stdout=log, stderr=log, start_new_session=True, env={**os.environ, **TOKEN_MODE},
            )  # fmt: skip
        started.append(process)

        def runs():
            assert process.poll() is None, path.read_text()
            return "Ray runtime started" in path.read_text()

        wait_for(runs)
        return process

    yield start
    for process in started:
        kill_node(process)


def kill_node(process):
    """Kill a node and all its processes, as a power cut would."""
    try:
        family = psutil.Process(process.pid).children(recursive=True)
    except psutil.NoSuchProcess:
        return
    for member in [psutil.Process(process.pid), *family]:
        try:
            member.kill()
        except psutil.NoSuchProcess:
            pass
    process.wait()


def test_a_sweep_on_two_nodes_finishes_when_one_dies(start_node, monkeypatch):
    # The sweep shows the token by itself: its mode is not set.
    monkeypatch.setenv("RAY_AUTH_TOKEN", "0123456789abcdef" * 4)
    monkeypatch.delenv("RAY_AUTH_MODE", raising=False)
    port = free_port()
    address = f"127.0.0.1:{port}"
    # One after the other: nodes of one machine that start together may pick the same ports.
    start_node(
        "--head", f"--port={port}", "--include-dashboard=false", "--node-ip-address=127.0.0.1"
    )
    # Of an address of its own, or the driver might be a client of the node that dies.
    second = start_node(f"--address={address}", "--node-ip-address=127.0.0.2")

    def two_nodes():
        status = subprocess.run(
            [sys.executable, "-m", "ray.scripts.scripts", "status", f"--address={address}"],
            capture_output=True, text=True, env={**os.environ, **TOKEN_MODE},
        )  # fmt: skip
        return "/2.0 CPU" in status.stdout

    wait_for(two_nodes)
    Path("space.yaml").write_text("learning_rate: {choice: [0.02, 0.01]}\n")
    # So many that each node still trains when the other, seconds later, has begun.
    settings = {**SETTINGS, "epochs": 300, "stopping_step": 300}
    driver = subprocess.Popen(
        command(
            "--model=Hydra", "--dataset=tiny", "--space=space.yaml", "--search=grid",
            "--scheduler=none", "--max_concurrent=2", "--output_dir=out",
            f"--ray_address={address}",
            *(f"--{key}={value}" for key, value in settings.items()),
        ),
        stderr=subprocess.PIPE, text=True, start_new_session=True,
    )  # fmt: skip

    def both_nodes_train():
        trials = read_trials("out") if Path("out").exists() else []
        return len({t["node"] for t in trials if 0 < len(t["history"]) < 280}) == 2

    try:
        wait_for(both_nodes_train, driver)
        kill_node(second)
        _, message = driver.communicate(timeout=300)
    finally:
        driver.kill()
    assert driver.returncode == 0, message
    assert statuses() == ["finished"] * 2
    (survivor,) = {trial["node"] for trial in read_trials("out")}  # where each was last
    moved = [
        trial["number"]
        for trial in read_trials("out")
        if "Resuming" in trial_folder("out", trial["number"]).joinpath("log.txt").read_text()
    ]
    assert moved, "no trial was moved from the node that died"
    for trial in read_trials("out"):
        assert [entry["epoch"] for entry in trial["history"]] == list(range(1, 301))
        assert trial["gpus"] == "0"  # as Ray assigned it, and RecBole did not overwrite
    assert Sweep("out").test_result is not None


# -- the command line -----------------------------------------------------------------------------


def test_the_command_prints_the_way_on(local_ray, elsewhere, capsys):
    Path("space.test").write_text("learning_rate choice [0.02,0.01]\n")
    settings = {**SETTINGS, "epochs": 1}
    status = main(
        ["tune", "--model=Hydra", "--dataset=tiny", "--space=space.test", "--num_samples=2",
         "--max_concurrent=2", "--output_dir=my süß out",
         *(f"--{k}={v}" for k, v in settings.items())]
    )  # fmt: skip
    printed = capsys.readouterr()
    assert status == 0, printed.err
    assert "2 of 2 over (2 finished), best ndcg@10" in printed.err  # the live table's last line
    assert "learning_rate" in printed.out and "valid ndcg@10" in printed.out
    last = printed.out.strip().splitlines()[-1]
    best = Path("my süß out").absolute() / "best.yaml"
    words = shlex.split(last)
    assert words == ["recbole-hydra", "--model=Hydra", "--dataset=tiny", f"--config_files={best}"]
    assert main([*words[1:], "--saved=False", "--show_progress=False"]) == 0


def test_bad_input_is_one_line(elsewhere, capsys):
    assert main(["tune", "--model=Hydra", "--dataset=tiny"]) == 2
    assert "tune: --output_dir is missing" in capsys.readouterr().err
    assert main(["tune", "--help"]) == 0
    assert "--num_samples=20" in capsys.readouterr().out
    line = ["tune", "--model=Hydra", "--dataset=tiny", f"--data_path={SETTINGS['data_path']}"]
    assert main([*line, "--output_dir=out", "--config_file_list=a.yaml"]) == 2
    assert "unknown key 'config_file_list'" in capsys.readouterr().err
    assert main([*line, "--output_dir=out", "--num_sample=5"]) == 2
    assert "unknown key 'num_sample'; did you mean 'num_samples'" in capsys.readouterr().err
    assert main([*line, "--output_dir=out", "--space=nowhere.yaml"]) == 2
    assert "space nowhere.yaml: cannot be read (No such file" in capsys.readouterr().err


def test_the_table_is_redrawn_in_place_on_a_terminal(elsewhere):
    import io
    from types import SimpleNamespace

    from recbole_hydra.tune.progress import LiveTable

    class Terminal(io.StringIO):
        def isatty(self):
            return True

    terminal = Terminal()
    table = LiveTable(elsewhere, 3, "ndcg@10", True, terminal)
    trials = [
        SimpleNamespace(config={"number": number, "params": {"learning_rate": 0.1 * number}})
        for number in (1, 2)
    ]
    for trial in trials:
        table.on_trial_start(0, [], trial)
    result = {"epoch": 4, "score": 0.2, "best_score": 0.25, "seconds": 3.0}
    table.on_trial_result(0, [], trials[0], result)
    write_params(elsewhere, 1, {"learning_rate": 0.1})
    (trial_folder(elsewhere, 1) / "outcome.json").write_text('{"status": "stopped"}')
    table.on_trial_complete(0, [], trials[0])
    table.on_experiment_end([])
    shown = terminal.getvalue()
    assert "\x1b[" in shown  # it moves back up before it draws again
    final = shown[shown.rindex("F1 of 3") + 1 :] if "F1 of 3" in shown else shown
    assert "1 of 3 over (1 running, 1 stopped), best ndcg@10 0.2500 in trial 1" in final
    assert re.search(r"1\s+stopped\s+4\s+0\.2\s+0\.25\s+3\s+0\.1", final)
