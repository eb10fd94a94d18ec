import subprocess
import sys
import textwrap
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import DATASETS
from recbole.data.interaction import Interaction

from recbole_hydra import Hydra, Mamba4Rec, compat, default_config, load_model, recommend
from recbole_hydra.compat.loading import _without_barrier
from recbole_hydra.model import get_model


def test_a_users_own_script_on_recboles_plain_classes(tmp_path, monkeypatch):
    """RecBole's Config, create_dataset, data_preparation and Trainer, as it documents them."""
    monkeypatch.setattr("sys.argv", ["script.py"])
    from recbole.config import Config
    from recbole.data import create_dataset, data_preparation
    from recbole.trainer import Trainer
    from recbole.utils import init_logger, init_seed

    (tmp_path / "mine.yaml").write_text(
        f"data_path: {DATASETS}\nload_col: {{inter: [user_id, item_id, timestamp]}}\n"
        "epochs: 2\nhidden_size: 16\nd_state: 4\nshow_progress: False\n"
    )
    for model in (Hydra, Mamba4Rec):
        config = Config(
            model=model,
            dataset="tiny",
            config_file_list=[default_config(model.__name__), "mine.yaml"],
        )
        init_seed(config["seed"], config["reproducibility"])
        init_logger(config)
        dataset = create_dataset(config)
        train, valid, test = data_preparation(config, dataset)
        net = model(config, train.dataset).to(config["device"])
        trainer = Trainer(config, net)
        score, result = trainer.fit(train, valid)
        assert result["mrr@10"] == score
        fitted = trainer.evaluate(test)  # loads the best model from its file
        state = torch.load(trainer.saved_model_file, weights_only=True)
        assert state["model"] == model.__name__

        # The file continues training, and is read by our own functions too.
        again = Trainer(config, model(config, train.dataset).to(config["device"]))
        again.resume_checkpoint(trainer.saved_model_file)
        assert again.start_epoch == state["epoch"] + 1
        assert again.evaluate(test, load_best_model=False) == fitted
        assert type(load_model(trainer.saved_model_file)) is model
        assert len(recommend(trainer.saved_model_file, ["i1", "i2"], k=3)) == 3
        with pytest.raises(ValueError, match="holds no users' histories.*pass the history"):
            recommend(trainer.saved_model_file, "u5")


def test_torch_and_its_load_are_left_alone():
    code = """
        import pickle, torch
        before = {name: id(getattr(torch, name)) for name in ("load", "save", "optim", "nn")}
        import recbole_hydra
        assert before == {name: id(getattr(torch, name)) for name in before}
        class Config: pass
        torch.save({"config": Config()}, "x.pth")
        try:
            torch.load("x.pth")
        except pickle.UnpicklingError:
            print("REFUSED")
        """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True
    )
    assert "REFUSED" in done.stdout, done.stderr


def test_numpys_aliases_are_there():
    assert (np.float_, np.complex_, np.unicode_) == (np.float64, np.complex128, np.str_)


def test_a_run_prints_no_warnings_of_recboles_own_lines():
    from conftest import small

    code = (
        "from recbole_hydra import run_recbole_hydra\n"
        f"run_recbole_hydra('Hydra', 'tiny', config_dict={small('Hydra')!r})\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0 and "FutureWarning" not in done.stderr


def test_applying_twice_changes_nothing():
    from recbole.trainer import Trainer

    before = dict(vars(Trainer))
    compat.apply()
    assert dict(vars(Trainer)) == before


def test_a_finished_download_is_not_an_error(tmp_path):
    """RecBole ends every download in a barrier of a process group that one process has not."""

    class Dataset:
        dataset_path, dataset_name = str(tmp_path), "movies"

        def download(self):
            torch.distributed.barrier()

    download = _without_barrier(Dataset.download)
    with pytest.raises((ValueError, RuntimeError)):
        download(Dataset())  # nothing arrived
    (tmp_path / "movies.inter").write_text("user_id:token\n")
    download(Dataset())


def test_pop_counts_every_interaction_whatever_the_batch(run_small):
    few, many = (run_small("Pop", saved=False, train_batch_size=n) for n in (16, 4096))
    assert few["test_result"] == many["test_result"]
    batch = Interaction({"item_id": torch.tensor([3, 1, 3, 3])})
    pop = get_model("Pop")
    counted = SimpleNamespace(
        ITEM_ID="item_id", item_cnt=torch.zeros(5, 1, dtype=torch.long), device="cpu"
    )
    pop.calculate_loss(counted, batch)
    assert counted.item_cnt.flatten().tolist() == [0, 1, 0, 3, 0] and counted.max_cnt == 3


def test_every_item_says_when_it_can_go():
    files = [file for file in Path(compat.__file__).parent.glob("*.py") if "__" not in file.name]
    assert len(files) >= 8
    for file in files:
        assert "elete when" in file.read_text(), file


def test_anomaly_mode_which_recboles_sine_switches_on_is_off():
    code = "import recbole.model.sequential_recommender, torch; print(torch.is_anomaly_enabled())"
    plain = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert plain.stdout.split()[-1:] in (["True"], [])  # [] where plain RecBole cannot be imported
    code = "import recbole_hydra, torch; print(torch.is_anomaly_enabled())"
    ours = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ours.stdout.split()[-1] == "False"
