import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import small

from recbole_hydra import run_recbole_hydra
from recbole_hydra.errors import CheckpointError, ConfigError, TrainingError
from recbole_hydra.settings.config import Config
from recbole_hydra.training import trainer

#: What must be the same, to the last digit, after a kill.
COMPARED = ("best_valid_score", "best_valid_result", "test_result", "epochs_run", "parameters")

SETTINGS = {
    "Hydra": {},
    "Mamba4Rec": {"num_layers": 2},
    "SASRec": {"n_layers": 1, "inner_size": 16},
    "GRU4Rec": {"embedding_size": 16, "num_layers": 1},
    "BPR": {"embedding_size": 8},  # samples negatives with numpy
    "MultiVAE": {"mlp_hidden_size": [16], "latent_dimension": 8},  # counts its steps
    "RecVAE": {"hidden_dimension": 16, "latent_dimension": 8},  # two optimizers
}


def weights(path):
    return torch.load(path, weights_only=True)["state_dict"]


class KilledError(Exception):
    pass


def run_killed_in(epoch, model, monkeypatch, **settings):
    """Run until epoch ``epoch`` (from 0) has trained two batches; return the last checkpoint."""
    base = trainer.ResumableTrainer._check_nan

    def kill(self, loss):
        base(self, loss)
        if self._epoch == epoch and self._batch == min(2, len(self._train_data)):
            raise KilledError

    with monkeypatch.context() as patch:
        patch.setattr(trainer.ResumableTrainer, "_check_nan", kill)
        with pytest.raises(KilledError):
            run_recbole_hydra(model, "tiny", config_dict=small(model, **settings))
    (last,) = Path("saved").glob(f"{model}-*.last.pth")
    return str(last)


@pytest.mark.parametrize("model", SETTINGS)
def test_a_resumed_run_ends_as_the_one_that_was_not_killed(model, monkeypatch, elsewhere):
    settings = {**SETTINGS[model], "epochs": 5}
    whole = run_recbole_hydra(
        model, "tiny", config_dict=small(model, checkpoint_dir="whole", **settings)
    )
    last = run_killed_in(3, model, monkeypatch, **settings)
    torch.manual_seed(123)  # whatever the resuming process did before
    resumed = run_recbole_hydra(resume=last)

    for key in COMPARED:
        assert resumed[key] == whole[key], key
    assert [e["train_loss"] for e in resumed["history"]] == [
        e["train_loss"] for e in whole["history"]
    ]
    assert resumed["last_checkpoint"] == last
    for kind in ("best_checkpoint", "last_checkpoint"):
        got, want = weights(resumed[kind]), weights(whole[kind])
        assert all(torch.equal(got[name], want[name]) for name in want)


def test_after_a_real_kill_from_the_command_line(elsewhere):
    command = [sys.executable, "-m", "recbole_hydra.cli"]
    values = small("Hydra", epochs=6, show_progress=False)
    settings = [f"--{key}={value}" for key, value in values.items()]
    whole = run_recbole_hydra("Hydra", "tiny", config_dict={**values, "checkpoint_dir": "whole"})
    process = subprocess.Popen(
        [*command, "--model=Hydra", "--dataset=tiny", *settings],
        stderr=subprocess.PIPE,
        text=True,
    )
    for line in process.stderr:
        if "epoch 2 training" in line:
            process.send_signal(signal.SIGKILL)
            break
    assert process.wait() == -signal.SIGKILL
    process.stderr.close()
    (last,) = Path("saved").glob("*.last.pth")
    # The kill may come an epoch or two after the line that it answers to.
    assert 1 <= torch.load(last, weights_only=True)["epoch"] < 5

    done = subprocess.run([*command, f"--resume={last}"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    for metric, value in whole["test_result"].items():  # the table at the end of the log
        rows = [line.split() for line in done.stderr.splitlines() if line.startswith(metric)]
        assert rows[-1] == [metric, f"{whole['best_valid_result'][metric]:.4f}", f"{value:.4f}"]
    got, want = weights(last), weights(whole["last_checkpoint"])
    assert all(torch.equal(got[name], want[name]) for name in want)


@pytest.mark.parametrize("model", ["Hydra", "Pop"])  # Pop's counts are outside its parameters
def test_a_finished_run_is_only_tested_again(run_small, model):
    whole = run_small(model)
    before = Path(whole["last_checkpoint"]).read_bytes()
    again = run_recbole_hydra(resume=whole["last_checkpoint"])
    for key in COMPARED:
        assert again[key] == whole[key], key
    assert Path(whole["last_checkpoint"]).read_bytes() == before


def test_epochs_can_be_raised_on_resuming(run_small, caplog):
    whole = run_small("Hydra", epochs=4, checkpoint_dir="whole")
    short = run_small("Hydra", epochs=2)
    longer = run_recbole_hydra(resume=short["last_checkpoint"], config_dict={"epochs": 4})
    for key in COMPARED:
        assert longer[key] == whole[key], key


def test_early_stopping_counters_survive(monkeypatch):
    settings = {"epochs": 30, "stopping_step": 2, "learning_rate": 0.05}
    whole = run_recbole_hydra(
        "Hydra", "tiny", config_dict=small("Hydra", checkpoint_dir="whole", **settings)
    )
    assert 4 < whole["epochs_run"] < 30  # it was stopped
    last = run_killed_in(whole["epochs_run"] - 1, "Hydra", monkeypatch, **settings)
    resumed = run_recbole_hydra(resume=last)
    for key in COMPARED:
        assert resumed[key] == whole[key], key
    again = run_recbole_hydra(resume=last)
    assert again["epochs_run"] == whole["epochs_run"]


def test_a_learning_rate_given_on_resuming_is_used(run_small):
    short = run_small("Hydra", epochs=1)
    last = short["last_checkpoint"]
    before = weights(last)
    run_recbole_hydra(resume=last, config_dict={"epochs": 2, "learning_rate": 0.0})
    after = weights(last)
    assert all(torch.equal(before[name], after[name]) for name in before)


def rates_of_epochs(monkeypatch):
    """The list to which every epoch from now on adds the learning rates of its optimizer."""
    rates, step = [], trainer.ResumableTrainer._train_epoch

    def train_epoch(self, *args, **kwargs):
        result = step(self, *args, **kwargs)
        rates.append([group["lr"] for group in self.optimizer.param_groups])
        return result

    monkeypatch.setattr(trainer.ResumableTrainer, "_train_epoch", train_epoch)
    return rates


@pytest.mark.parametrize("model", ["Hydra", "SASRec", "BPR"])
def test_the_learning_rate_falls_and_goes_on_falling_on_resuming(run_small, monkeypatch, model):
    rates = rates_of_epochs(monkeypatch)
    settings = {"learning_rate": 0.01, "learning_rate_decay": 4, "stopping_step": 10}
    whole = run_small(model, epochs=6, checkpoint_dir="whole", **settings)
    want = [[0.01], [0.0075], [0.005], [0.0025], [0.0002], [0.0002]]
    assert rates == [pytest.approx(rate) for rate in want]
    rates.clear()
    short = run_small(model, epochs=2, **settings)
    longer = run_recbole_hydra(resume=short["last_checkpoint"], config_dict={"epochs": 6})
    assert rates == [pytest.approx(rate) for rate in want]
    for key in COMPARED:
        assert longer[key] == whole[key], key
    rates.clear()
    changed = {"epochs": 8, "learning_rate_decay": None}
    run_recbole_hydra(resume=short["last_checkpoint"], config_dict=changed)
    assert rates == [[0.01], [0.01]]


@pytest.mark.parametrize("wrong", [0, -3, 2.5, True])
def test_learning_rate_decay_is_a_number_of_epochs(wrong):
    with pytest.raises(ConfigError, match="learning_rate_decay must be a positive integer, .*got"):
        Config("Hydra", "tiny", config_dict=small("Hydra", learning_rate_decay=wrong))


@pytest.mark.parametrize(
    "key, value",
    [
        ("seed", 1),
        ("learner", "sgd"),
        ("valid_metric", "MRR@10"),
        ("eval_args", {"mode": "uni50"}),
    ],
)
def test_what_cannot_change_on_resuming_is_refused(run_small, key, value):
    last = run_small("Hydra", epochs=1)["last_checkpoint"]
    with pytest.raises(CheckpointError, match=f"{key} cannot change on resuming, from .* to"):
        run_recbole_hydra(resume=last, config_dict={"epochs": 2, key: value})


def test_resume_refuses(run_small, tmp_path):
    result = run_small("Hydra")
    best, last = result["best_checkpoint"], result["last_checkpoint"]
    with pytest.raises(CheckpointError, match="--resume takes the .last.pth file"):
        run_recbole_hydra(resume=best)
    with pytest.raises(CheckpointError, match="its model is Hydra, not SASRec"):
        run_recbole_hydra("SASRec", resume=last)
    with pytest.raises(CheckpointError, match="its dataset is tiny, not ml-100k"):
        run_recbole_hydra(dataset="ml-100k", resume=last)
    with pytest.raises(ConfigError, match="saved: a resumed run writes"):
        run_recbole_hydra(resume=last, saved=False)
    Path(best).unlink()
    with pytest.raises(CheckpointError, match="the best model so far, .*best.pth, is missing"):
        run_recbole_hydra(resume=last)


def test_a_nan_loss_names_epoch_and_batch_and_keeps_the_last_good_state(monkeypatch):
    from recbole_hydra import Hydra

    calls = []
    target_loss = Hydra.target_loss

    def broken(self, *args):
        calls.append(1)
        loss = target_loss(self, *args)
        return loss * float("nan") if len(calls) == per_epoch[0] + 2 else loss

    per_epoch = [10**9]
    settings = small("Hydra", epochs=3)
    whole = run_recbole_hydra("Hydra", "tiny", config_dict={**settings, "checkpoint_dir": "whole"})
    monkeypatch.setattr(Hydra, "target_loss", broken)
    run_recbole_hydra("Hydra", "tiny", config_dict={**settings, "epochs": 1}, saved=False)
    per_epoch[0] = len(calls)
    calls.clear()
    with pytest.raises(TrainingError, match=r"the loss is nan in batch 2 of epoch 1; .*last.pth"):
        run_recbole_hydra("Hydra", "tiny", config_dict=settings)
    (last,) = Path("saved").glob("*.last.pth")
    assert torch.load(last, weights_only=True)["epoch"] == 0
    resumed = run_recbole_hydra(resume=last)  # the fault was passing: the run goes on from there
    for key in COMPARED:
        assert resumed[key] == whole[key], key


def test_a_step_that_breaks_the_weights_does_not_reach_the_checkpoint(monkeypatch):
    step = torch.optim.Adam.step
    with monkeypatch.context() as patch:

        def breaking(self, *args, **kwargs):
            step(self, *args, **kwargs)
            with torch.no_grad():
                self.param_groups[0]["params"][0][1, 1] = float("nan")

        patch.setattr(torch.optim.Adam, "step", breaking)
        with pytest.raises(TrainingError, match="batch 2 of epoch 0; there is no checkpoint yet"):
            run_recbole_hydra("Hydra", "tiny", config_dict=small("Hydra"))
        one_batch = small("Hydra", train_batch_size=100_000)
        with pytest.raises(TrainingError, match="a parameter is not a finite number.*of epoch 0"):
            run_recbole_hydra("Hydra", "tiny", config_dict=one_batch)
    assert list(Path("saved").glob("*.pth")) == []
