import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import DATASETS, SMALL_HYDRA, small

import recbole_hydra
from recbole_hydra import Hydra, run_recbole_hydra
from recbole_hydra.cli import main
from recbole_hydra.errors import ConfigError
from recbole_hydra.training.result import count_parameters
from recbole_hydra.training.trainer import ResumableTrainer


def test_the_result_is_recboles_and_what_it_cost(run_small):
    result = run_small("Hydra")
    assert result["valid_score_bigger"] is True
    assert set(result["test_result"]) == {"hit@10", "ndcg@10", "mrr@10"}
    assert result["best_valid_score"] == result["best_valid_result"]["ndcg@10"]
    assert result["epochs_run"] == 2 and result["wall_seconds"] > 0
    assert [entry["epoch"] for entry in result["history"]] == [0, 1]
    assert all(entry["train_seconds"] > 0 for entry in result["history"])
    parameters = result["parameters"]
    # 16 numbers and a repeat bias for each item.
    assert parameters["item_table"] == 61 * (16 + 1)
    assert parameters["total"] == parameters["item_table"] + parameters["other"]


def test_every_evaluated_epoch_is_announced():
    seen = []
    result = run_recbole_hydra(
        "GRU4Rec",
        "tiny",
        config_dict=small("GRU4Rec", epochs=4, eval_step=2),
        saved=False,
        on_epoch=lambda entry: seen.append(dict(entry)),
    )
    assert [entry["epoch"] for entry in seen] == [1, 3]
    assert seen == [entry for entry in result["history"] if "valid_score" in entry]


@pytest.mark.parametrize("model", ["Hydra", "Mamba4Rec"])
@pytest.mark.parametrize("loss_type", ["CE", "BPR"])
def test_our_models_learn_the_ring(run_small, model, loss_type):
    result = run_small(model, epochs=30, loss_type=loss_type, learning_rate=0.02, dropout_prob=0.0)
    # 85% of the steps are to the next of 60 items; chance is 10/60.
    assert result["test_result"]["hit@10"] > 0.5


@pytest.mark.parametrize(
    "model, changes",
    [
        ("SASRec", {"inner_size": 16, "n_layers": 1}),
        ("GRU4Rec", {"embedding_size": 16, "num_layers": 1, "loss_type": "BPR"}),
        ("BERT4Rec", {"inner_size": 16, "n_layers": 1}),
        ("Pop", {}),
        ("BPR", {"embedding_size": 8}),
        ("LightGCN", {"embedding_size": 8}),
        ("MultiVAE", {"mlp_hidden_size": "16", "latent_dimension": 8}),
    ],
)
def test_recboles_models_take_the_same_path(run_small, model, changes):
    result = run_small(model, **changes)
    assert 0 < result["test_result"]["hit@10"] <= 1
    assert result["best_checkpoint"].endswith(".best.pth")


def test_mixed_precision_trains(run_small):
    result = run_small("Hydra", enable_amp=True, epochs=30, learning_rate=0.02, dropout_prob=0.0)
    assert result["test_result"]["hit@10"] > 0.5


def test_pretraining_goes_through_too(run_small, make_dataset, tmp_path):
    # S3Rec pretrains, saves, and is finetuned from that file.
    rows = [(f"u{u}", f"i{(u + n) % 9}", n) for u in range(12) for n in range(8)]
    path = make_dataset("classes", rows)
    item_file = tmp_path / "data" / "classes" / "classes.item"
    lines = ["item_id:token\tclass:token_seq", *(f"i{n}\tc{n % 3} c{n % 2}" for n in range(9))]
    item_file.write_text("\n".join(lines) + "\n")
    settings = small(
        "S3Rec", data_path=path, n_layers=1, inner_size=16, item_attribute="class",
        load_col={"inter": ["user_id", "item_id", "timestamp"], "item": ["item_id", "class"]},
        pretrain_epochs=1, save_step=1,
    )  # fmt: skip
    run = {"model": "S3Rec", "dataset": "classes"}
    run_recbole_hydra(**run, config_dict={**settings, "train_stage": "pretrain"}, saved=False)
    tuned = {**settings, "train_stage": "finetune", "pre_model_path": "saved/S3Rec-classes-1.pth"}
    assert run_recbole_hydra(**run, config_dict=tuned)["test_result"]["hit@10"] > 0


def test_a_users_own_model_runs_and_loads(tmp_path, monkeypatch):
    (tmp_path / "wider.py").write_text(
        "from recbole_hydra import Hydra\n\n\nclass Wider(Hydra):\n    pass\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    from wider import Wider

    result = run_recbole_hydra(Wider, "tiny", config_dict=SMALL_HYDRA)
    path = result["best_checkpoint"]
    with pytest.raises(ValueError, match="no model 'Wider'"):
        recbole_hydra.load_model(path)
    assert isinstance(recbole_hydra.load_model(path, model=Wider), Wider)
    assert recbole_hydra.load_data_and_model(path, model=Wider)[0]["model"] == "Wider"


def test_runs_of_one_process_log_to_files_of_their_own(run_small, tmp_path):
    for model in ("Hydra", "Mamba4Rec"):
        run_small(model)
        (log,) = (tmp_path / "log" / model).glob("*.log")
        text = log.read_text()
        assert "epoch 1 training" in text and f"{model} on tiny: 2 epochs" in text
        assert "metric" in text and "hit@10" in text


def test_mixed_precision_computes_in_what_was_asked_for(run_small, monkeypatch):
    seen, step = [], ResumableTrainer._check_nan

    def check_nan(self, loss):
        seen.append((torch.get_autocast_dtype("cpu"), self.enable_scaler))
        step(self, loss)

    monkeypatch.setattr(ResumableTrainer, "_check_nan", check_nan)
    torch.set_autocast_dtype("cpu", torch.float16)  # what somebody else has asked for
    try:
        run_small("SASRec", enable_amp=True, epochs=1)
        assert set(seen) == {(torch.bfloat16, False)}
        assert torch.get_autocast_dtype("cpu") == torch.float16
    finally:
        torch.set_autocast_dtype("cpu", torch.bfloat16)
    with pytest.raises(ConfigError, match="amp_dtype: fp16 needs a GPU, .* use bf16"):
        run_small("SASRec", enable_amp=True, amp_dtype="fp16")
    with pytest.raises(ConfigError, match="amp_dtype must be one of bf16, fp16, got 'half'"):
        run_small("SASRec", amp_dtype="half")


def test_fp16_turns_the_scaler_on():
    trainer = ResumableTrainer.__new__(ResumableTrainer)
    trainer.device, trainer.clip_grad_norm, trainer.enable_scaler = (
        torch.device("cuda"),
        None,
        False,
    )
    trainer._turn_scaler_on()
    assert trainer.enable_scaler
    trainer.clip_grad_norm = {"max_norm": 5}
    with pytest.raises(ConfigError, match="clip_grad_norm, amp_dtype: with fp16, RecBole would"):
        trainer._turn_scaler_on()


def test_the_log_says_which_scan_was_taken_and_what_was_decided(monkeypatch):
    package = sys.modules["recbole_hydra.ops.selective_scan"]
    monkeypatch.setattr(package, "_announced", set())
    run_recbole_hydra("Hydra", "tiny", config_dict=small("Hydra", loss_type="BPR"))
    (log,) = Path("log/Hydra").glob("*.log")
    text = log.read_text()
    assert text.count("selective_scan: backend numba (compiled for this CPU)") == 1
    assert "train_neg_sample_args is set to {'distribution': 'uniform', 'sample_num': 1}" in text


def test_a_training_run_imports_neither_ray_nor_transformers():
    code = (
        "import sys\n"
        "from recbole_hydra import run_recbole_hydra\n"
        f"run_recbole_hydra('Hydra', 'tiny', config_dict={small('Hydra')!r})\n"
        "heavy = {'ray', 'transformers', 'mamba_ssm', 'causal_conv1d', 'lmdb', 'redis'}\n"
        "heavy |= {'recbole_hydra.serving.recommender', 'recbole_hydra.serving.stores'}\n"
        "heavy.add('recbole_hydra.ops.selective_scan.triton_gpu')\n"  # torch imports triton itself
        "print('IMPORTED', sorted(heavy & set(sys.modules)))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert "IMPORTED []" in done.stdout, done.stderr


def test_count_parameters():
    model = torch.nn.ModuleList([torch.nn.Embedding(7, 3), torch.nn.Linear(3, 2)])
    assert count_parameters(model, 7) == {"item_table": 21, "other": 8, "total": 29}


# -- the command line ----------------------------------------------------------------------------


def arguments(**values):
    return [f"--{key}={value}" for key, value in {**SMALL_HYDRA, **values}.items()]


def test_the_command_line_trains(tmp_path):
    (tmp_path / "a.yaml").write_text("epochs: 1\n")
    argv = ["--model", "Hydra", "--dataset=tiny", "--config_files=a.yaml", *arguments()]
    argv.remove("--epochs=2")
    assert main([*argv, "--topk=5,10", "--metrics=Hit,NDCG", "--saved=False"]) == 0
    (log,) = tmp_path.glob("log/Hydra/*.log")
    assert "Hydra on tiny: 1 epochs" in log.read_text() and "ndcg@5" in log.read_text()
    assert not list(tmp_path.glob("saved/*.pth"))


@pytest.mark.parametrize(
    "argv, message",
    [
        (["--model=Hydra", "--dataset=tiny", "--learning_rat=0.1"], "did you mean 'learning_rate'"),
        (["--model=Hydra", "--dataset=tiny", "--config_file=a.yaml"], "mean 'config_files'"),
        (["--model=Hydra", "--dataset=tiny", "--resum=a.pth"], "did you mean 'resume'"),
        (["--model=Hidra", "--dataset=tiny"], "no model 'Hidra'; did you mean 'Hydra'"),
        (["--model=Hydra", "--dataset=tinny"], "did you mean 'tiny'"),
        (["--dataset=tiny"], "model: not given; pass --model=NAME"),
        (["--model=Hydra", "--dataset=tiny", "--num_heads=0"], "num_heads must be a positive int"),
        (["--resume=nowhere.last.pth"], "nowhere.last.pth: there is no such checkpoint file"),
        (["frobnicate"], "unknown command 'frobnicate'"),
        (["--model=Hydra", "--dataset=tiny", "--nproc=2"], "several processes are not supported"),
        (["--model=Hydra", "--dataset=tiny", "--saved=perhaps"], "saved must be True or False"),
    ],
)
def test_an_error_is_one_line(argv, message, capfd):
    assert main([*argv, f"--data_path={DATASETS}"] if "--resume" not in argv[0] else argv) == 2
    lines = [line for line in capfd.readouterr().err.splitlines() if "error:" in line]
    assert len(lines) == 1 and lines[0].startswith("recbole-hydra: error: ")
    assert message in lines[0]


def test_help(capsys):
    assert main(["--help"]) == 0
    assert "--resume=FILE" in capsys.readouterr().out


def test_a_model_class_is_a_model():
    result = run_recbole_hydra(Hydra, "tiny", config_dict=SMALL_HYDRA, saved=False)
    assert result["best_checkpoint"] is None and result["test_result"]["hit@10"] > 0
