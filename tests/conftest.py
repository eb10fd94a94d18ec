import logging
from pathlib import Path

import pytest
import torch

import recbole_hydra

DATASETS = Path(__file__).parents[1] / "dataset"

#: Small enough to train in a second.
SMALL = {
    "data_path": str(DATASETS),
    "epochs": 2,
    "train_batch_size": 256,
    "show_progress": False,
    "MAX_ITEM_LIST_LENGTH": 12,
    "hidden_size": 16,
    "learning_rate": 0.01,
}
SMALL_HYDRA = {**SMALL, "num_heads": 2, "head_dim": 8, "d_state": 4, "ffn_size": 16}
SMALL_MAMBA4REC = {**SMALL, "d_state": 4}


def small(model: str, **changes) -> dict:
    """The settings of a run that takes a second, with ``changes``."""
    base = {"Hydra": SMALL_HYDRA, "Mamba4Rec": SMALL_MAMBA4REC}.get(model, SMALL)
    return {**base, **changes}


def small_plan(space, model="Hydra", **changes):
    """A sweep of ``space`` on the tiny dataset, with ``changes`` to ``make_plan``'s arguments."""
    from recbole_hydra.tune.plan import make_plan

    taken = {"show_progress", "learning_rate"}
    settings = {key: value for key, value in small(model).items() if key not in taken}
    arguments = {
        "num_samples": None, "search": "random", "scheduler": "asha", "grace_period": None,
        "reduction_factor": None, "config_file_list": None, "config_dict": settings, "argv": (),
    }  # fmt: skip
    return make_plan(model, "tiny", space, **{**arguments, **changes})


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    """Run every test in a folder of its own: RecBole writes into the current one."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["pytest", "--a_foreign=argument"])
    yield tmp_path
    logging.getLogger().setLevel(logging.WARNING)


@pytest.fixture
def run_small():
    """Train a model on the tiny dataset and return the result."""

    def run(model, saved=True, resume=None, **changes):
        return recbole_hydra.run_recbole_hydra(
            model, "tiny", config_dict=small(model, **changes), saved=saved, resume=resume
        )

    return run


@pytest.fixture
def make_dataset(tmp_path):
    """Write a dataset of ``(user, item, timestamp)`` rows and return its data_path."""

    def make(name, rows, columns=("user_id:token", "item_id:token", "timestamp:float")):
        folder = tmp_path / "data" / name
        folder.mkdir(parents=True)
        lines = ["\t".join(columns), *("\t".join(map(str, row)) for row in rows)]
        (folder / f"{name}.inter").write_text("\n".join(lines) + "\n")
        return str(folder.parent)

    return make


@pytest.fixture(autouse=True, scope="session")
def two_threads():
    torch.set_num_threads(min(2, torch.get_num_threads()))
