import os
import pickle
import subprocess
import sys
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest
import scipy.sparse
import torch
from conftest import small
from recbole.config import Config as RecBoleConfig

from recbole_hydra import Config, load_data_and_model, load_model, recommend, run_recbole_hydra
from recbole_hydra.checkpoint import load_checkpoint, save_checkpoint, to_plain
from recbole_hydra.errors import CheckpointError, DatasetError, RecBoleHydraError
from recbole_hydra.model import get_model
from recbole_hydra.training.trainer import run_name


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """The result of a run of Hydra on the tiny dataset; its files are absolute paths."""
    folder = tmp_path_factory.mktemp("trained")
    before = os.getcwd()
    os.chdir(folder)
    settings = small("Hydra", checkpoint_dir=str(folder / "saved"), epochs=4)
    result = run_recbole_hydra("Hydra", "tiny", config_dict=settings)
    os.chdir(before)
    return result


# -- what is in a file ---------------------------------------------------------------------------


def plain(value):
    if isinstance(value, dict):
        return all(type(k) in (str, int) and plain(v) for k, v in value.items())
    if type(value) is list:
        return all(map(plain, value))
    return value is None or type(value) in (bool, int, float, str, torch.Tensor)


def test_two_files_of_plain_data(trained):
    best, last = Path(trained["best_checkpoint"]), Path(trained["last_checkpoint"])
    assert sorted(p.name for p in best.parent.iterdir()) == sorted([best.name, last.name])
    assert best.name.removesuffix(".best.pth") == last.name.removesuffix(".last.pth")
    for path in (best, last):
        state = torch.load(path, weights_only=True)
        assert plain(state)
        assert state["config"]["hidden_size"] == 16
        assert state["vocabulary"]["item"][0] == "[PAD]" and len(state["vocabulary"]["item"]) == 61
        assert len(state["vocabulary"]["user"]) == 91
    training = state["training"]
    assert {"optimizers", "random", "generators", "cur_step", "best_valid_result"} <= set(training)


def test_names_of_runs_in_the_same_second_differ():
    config = Config("Hydra", "tiny")
    names = set()
    for _ in range(20):
        torch.manual_seed(0)
        np.random.seed(0)
        names.add(run_name(config))
    assert len(names) == 20


def test_values_become_plain():
    value = {
        "a": OrderedDict(x=np.float32(0.5), y=(1, 2)),
        3: np.int64(4),
        "s": np.str_("text"),
        "v": torch.__version__,
    }
    assert plain(to_plain(value, "value"))
    with pytest.raises(CheckpointError, match=r"value.a\[1\] is a scipy.sparse.*coo_matrix"):
        to_plain({"a": [1, scipy.sparse.coo_matrix((2, 2))]}, "value")


# -- writing -------------------------------------------------------------------------------------


def test_a_kill_while_writing_leaves_the_old_file(tmp_path):
    path = tmp_path / "run.last.pth"
    save_checkpoint(path, {"epoch": 1})
    code = (
        "import os, signal, sys, torch\n"
        "from recbole_hydra.checkpoint import save_checkpoint\n"
        "def half(state, file):\n"
        "    file.write(b'half a file'); file.flush(); os.kill(os.getpid(), signal.SIGKILL)\n"
        "torch.save = half\n"
        "save_checkpoint(sys.argv[1], {'epoch': 2})\n"
    )
    done = subprocess.run([sys.executable, "-c", code, str(path)])
    assert done.returncode == -9
    assert load_checkpoint(path)["epoch"] == 1


def test_a_full_disk_leaves_the_old_file_and_no_litter(tmp_path, monkeypatch):
    path = tmp_path / "run.last.pth"
    save_checkpoint(path, {"epoch": 1})

    def no_space(state, file):
        file.write(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", no_space)
    with pytest.raises(CheckpointError, match="run.last.pth: cannot be written .*No space left"):
        save_checkpoint(path, {"epoch": 2})
    monkeypatch.undo()
    assert load_checkpoint(path)["epoch"] == 1
    assert [p.name for p in tmp_path.iterdir()] == ["run.last.pth"]


def test_an_output_folder_that_cannot_be_written_stops_the_run_before_it_trains(
    tmp_path, run_small
):
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointError, match="file/saved: cannot be written.*--checkpoint_dir"):
        run_small("Hydra", checkpoint_dir=str(tmp_path / "file" / "saved"))
    os.makedirs("here")
    os.chdir("here")
    Path("log").write_text("a file where the log folder goes")
    with pytest.raises(RecBoleHydraError, match="log: cannot be written.*another folder"):
        run_small("Hydra")


def test_extra_state_that_is_not_plain_is_refused_by_name(run_small):
    class Odd(get_model("BPR")):
        def __init__(self, config, dataset):
            super().__init__(config, dataset)
            self.trees, self.other_parameter_name = {"first": [object()]}, ["trees"]

    message = r"Odd\.trees\.first\[0\] is a object; .*: Odd cannot be checkpointed; run it"
    with pytest.raises(CheckpointError, match=message):
        run_small(Odd, embedding_size=8)
    result = run_small(Odd, saved=False, embedding_size=8)
    assert result["test_result"]["hit@10"] > 0 and result["best_checkpoint"] is None


# -- reading what is not ours, or not whole ------------------------------------------------------


class Payload:
    """A pickle that touches a file when it is loaded."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (self.path,)


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("read", [load_checkpoint, load_model, load_data_and_model])
def test_a_payload_is_refused_and_not_run(tmp_path, read, legacy):
    path, sign = tmp_path / "bad.pth", tmp_path / "was_run"
    torch.save(
        {"state_dict": {}, "x": Payload(str(sign))},
        path,
        _use_new_zipfile_serialization=not legacy,
    )
    with pytest.raises(CheckpointError, match="refused, nothing was run: .*mkdir"):
        read(path)
    assert not sign.exists()


def test_a_bare_pickle_is_refused_and_not_run(tmp_path):
    path, sign = tmp_path / "bad.pth", tmp_path / "was_run"
    path.write_bytes(pickle.dumps(Payload(str(sign))))
    with pytest.raises(CheckpointError):
        load_checkpoint(path)
    assert not sign.exists()


def test_recboles_own_checkpoint_says_how_to_bring_it_over(tmp_path):
    config = RecBoleConfig("BPR", "ml-100k")
    path = tmp_path / "BPR.pth"
    weights = {"w": torch.ones(2)}
    torch.save({"config": config, "state_dict": weights}, path, pickle_protocol=4)
    with pytest.raises(CheckpointError, match="a checkpoint of RecBole itself") as caught:
        load_checkpoint(path)
    # The sentence works as printed.
    lines = str(caught.value).split("bring its weights over: ")[1].split(", then ")
    exec(lines[0].replace("FILE", repr(str(path))), {"torch": torch})
    assert torch.equal(torch.load("weights.pth")["w"], weights["w"])


def test_damaged_and_foreign_files(tmp_path, trained):
    whole = Path(trained["last_checkpoint"]).read_bytes()
    path = tmp_path / "x.pth"
    for damaged in (b"", b"no", whole[: len(whole) // 2], whole[:-50], os.urandom(2000)):
        path.write_bytes(damaged)
        with pytest.raises(CheckpointError, match=r"x.pth: (truncated or corrupt|refused)"):
            load_checkpoint(path)
    flipped = bytearray(whole)
    for position in range(len(whole) // 3, len(whole) // 3 + 2000):
        flipped[position] ^= 0xFF
    path.write_bytes(flipped)
    with pytest.raises(CheckpointError):
        load_checkpoint(path)

    torch.save({"item_embedding.weight": torch.ones(2)}, path)
    with pytest.raises(CheckpointError, match="not a checkpoint of recbole_hydra.*load_state_dict"):
        load_checkpoint(path)
    torch.save({"format": "recbole_hydra checkpoint", "version": 99}, path)
    with pytest.raises(CheckpointError, match="newer recbole_hydra"):
        load_checkpoint(path)
    with pytest.raises(CheckpointError, match="there is no such checkpoint file"):
        load_checkpoint(tmp_path / "nowhere.pth")


# -- loading -------------------------------------------------------------------------------------


def test_load_model_needs_no_dataset(trained, tmp_path):
    model = load_model(trained["best_checkpoint"])
    assert not model.training and type(model).__name__ == "Hydra"
    state = torch.load(trained["best_checkpoint"], weights_only=True)["state_dict"]
    assert all(torch.equal(v, state[k]) for k, v in model.state_dict().items())


def test_load_data_and_model_gives_recboles_tuple(trained):
    config, model, dataset, train, valid, test = load_data_and_model(trained["best_checkpoint"])
    assert config["model"] == "Hydra" and dataset.item_num == 61
    assert len(train) and len(valid) and len(test)
    from recbole_hydra.training.trainer import get_trainer

    trainer = get_trainer(config)(config, model)
    trainer.eval_collector.data_collect(train)
    assert trainer.evaluate(test, load_best_model=False) == trained["test_result"]


def test_a_dataset_that_changed_is_refused(trained, make_dataset):
    path = make_dataset("tiny", [("a", f"i{n}", n) for n in range(9)])
    with pytest.raises(CheckpointError, match="the users of dataset tiny are not .*90 then, 1"):
        load_data_and_model(trained["best_checkpoint"], config_dict={"data_path": path})


def test_interactions_that_changed_are_refused(make_dataset, run_small):
    """The same users and items with one interaction more: another target is left out."""
    rows = [(u, f"i{(n + k) % 12}", n) for k, u in enumerate("abcd") for n in range(12)]
    data = {"data_path": make_dataset("more", rows)}
    given = small("Hydra", **data, epochs=1)
    result = run_recbole_hydra("Hydra", "more", config_dict=given)
    load_data_and_model(result["best_checkpoint"])
    with (Path(data["data_path"]) / "more" / "more.inter").open("a") as file:
        file.write("a\ti0\t99\n")
    with pytest.raises(CheckpointError, match="the interactions of dataset more .*48 then, 49 now"):
        load_data_and_model(result["best_checkpoint"])
    with pytest.raises(CheckpointError, match="the interactions of dataset more are not those"):
        run_recbole_hydra(resume=result["last_checkpoint"], config_dict={"epochs": 2})


def test_recommend_works_on_raw_ids(trained):
    path = trained["best_checkpoint"]
    best = recommend(path, ["i7", "i8", "i9"], k=5)
    assert len(best) == 5 and all(item.startswith("i") for item, _ in best)
    scores = [score for _, score in best]
    assert scores == sorted(scores, reverse=True)
    model = load_model(path)
    assert recommend(model, ["i7", "i8", "i9"], k=5) == best
    kept = recommend(model, ["i7", "i8", "i9"], k=58, exclude_history=True)
    assert len(kept) == 57 and not {"i7", "i8", "i9"} & {item for item, _ in kept}

    # A known user is their history: the one in the file, in time order.
    rows = [line.split() for line in (Path(__file__).parents[1] / "dataset/tiny/tiny.inter").open()]
    history = [row[1] for row in rows if row[0] == "u50"]
    assert recommend(model, "u50", k=3) == recommend(model, history, k=3)


def test_recommend_for_models_of_recbole(run_small):
    general = run_small("BPR", embedding_size=8)["best_checkpoint"]
    assert len(recommend(general, "u5", k=4)) == 4
    with pytest.raises(RecBoleHydraError, match="BPR recommends to users it knows"):
        recommend(general, ["i1"])
    sequential = run_small("GRU4Rec", embedding_size=8, num_layers=1)["best_checkpoint"]
    assert len(recommend(sequential, ["i1", "i2"], k=4)) == 4
    graph = run_small("LightGCN", embedding_size=8)["best_checkpoint"]
    with pytest.raises(CheckpointError, match="LightGCN cannot be made without its dataset"):
        recommend(graph, "u5")
    assert load_data_and_model(graph)[1].n_items == 61


@pytest.mark.parametrize(
    "user, k, message",
    [
        ("nobody", 3, "user_id 'nobody' is not in the checkpoint's vocabulary of 90 ids"),
        (["i1", "i99"], 3, "item_id 'i99' is not in the checkpoint's vocabulary of 60 ids"),
        (["[PAD]"], 3, "is not in the checkpoint's vocabulary"),
        ([], 3, "history: it is empty"),
        ("u5", 0, "k must be in 1 .. 60, got 0"),
        ("u5", 61, "k must be in 1 .. 60, got 61"),
        (None, 3, "user: a raw id .* or a list of item ids, not None"),
    ],
)
def test_recommend_refuses(trained, user, k, message):
    with pytest.raises(RecBoleHydraError, match=message):
        recommend(trained["best_checkpoint"], user, k)


def test_recommend_without_histories(run_small, trained):
    ordered = {"order": "RO", "split": {"RS": [0.8, 0.1, 0.1]}}
    columns = {"inter": ["user_id", "item_id"]}
    path = run_small("BPR", embedding_size=8, eval_args=ordered, load_col=columns)[
        "best_checkpoint"
    ]
    assert len(recommend(path, "u5", k=np.int64(4))) == 4
    with pytest.raises(CheckpointError, match="no users' histories, .* exclude_history cannot be"):
        recommend(path, "u5", exclude_history=True)
    model = load_model(trained["best_checkpoint"])
    start = model.checkpoint["histories"]["start"]
    start[5:] -= start[5] - start[4]  # as of a user of a .user file who had nothing
    user = model.checkpoint["vocabulary"].field2id_token["user_id"][4]
    with pytest.raises(DatasetError, match=f"user_id '{user}' has no interactions .* pass a hist"):
        recommend(model, user)


def test_weights_of_other_sizes_are_refused(trained, tmp_path):
    state = load_checkpoint(trained["best_checkpoint"])
    state["config"]["hidden_size"] = 8
    save_checkpoint(tmp_path / "other.best.pth", state)
    with pytest.raises(CheckpointError, match="its weights do not fit this Hydra"):
        load_model(tmp_path / "other.best.pth")
