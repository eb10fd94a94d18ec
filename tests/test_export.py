"""Exported models: what the reader says in a process without torch is what `recommend` says."""

import hashlib
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from conftest import small
from test_compiled_encoder import CHOICES, by_modules, histories, make

from recbole_hydra import add_items, load_model, recommend, run_recbole_hydra
from recbole_hydra.cli import main
from recbole_hydra.errors import CheckpointError, ExportError
from recbole_hydra.serving.compiled import read_vectors, weights_of
from recbole_hydra.serving.export import export_model
from recbole_hydra.serving.onnx_graph import Encoder, Table, history_model, step_model
from recbole_hydra.serving.reader import Reader, ReaderError

#: What is trained, by name. Windows are shorter than most histories.
RUNS = {
    "Hydra": ("Hydra", {}),
    "Hydra carried": (
        "Hydra", {"carry_state": True, "num_layers": 2, "repeat_bias": "distance"}
    ),
    "Hydra shared": ("Hydra", {"repeat_bias": "shared", "tie_embeddings": False}),
    "Hydra with a memory": ("Hydra", {"item_memory": "linear"}),
    "Mamba4Rec": ("Mamba4Rec", {}),
    "Mamba4Rec carried": ("Mamba4Rec", {"carry_state": True, "num_layers": 2}),
}  # fmt: skip

#: Reads an export where neither torch nor RecBole nor this package can be imported: the lists of
#: all histories at once, and by steps.
READ = """
import json, sys
for name in ("torch", "recbole", "recbole_hydra", "numba", "pandas", "onnx"):
    sys.modules[name] = None
sys.path.insert(0, sys.argv[1])
from reader import Reader
reader, lists = Reader(sys.argv[1]), []
for history, k, exclude, domain in json.load(sys.stdin):
    state = reader.start()
    for item in history:
        vector, state = reader.step(item, state)
    lists.append([
        reader.recommend(history, k, exclude, domain),
        reader.top_k(vector, history, k, exclude, domain),
    ])
json.dump(lists, sys.stdout)
"""


@pytest.fixture(scope="module")
def checkpoint_of(train_once):
    """Train a run of the list above, once; returns its checkpoint."""

    def train(name):
        model, changes = RUNS[name]
        return train_once(model, **changes, epochs=1)

    return train


@pytest.fixture(scope="module")
def exported(checkpoint_of, tmp_path_factory):
    """An export that no test changes."""
    return export_model(checkpoint_of("Hydra"), tmp_path_factory.mktemp("exported") / "model")


def histories_of(model):
    """All users' histories, raw ids."""
    vocabulary, found = model.checkpoint["vocabulary"], model.checkpoint["histories"]
    tokens, start = vocabulary.field2id_token[vocabulary.iid_field], found["start"].tolist()
    items = [str(tokens[item]) for item in found["items"].tolist()]
    rows = [items[a:b] for a, b in zip(start[:-1], start[1:], strict=True)]
    return [row for row in rows if row]


def assert_same(got, expected, k):
    """The first ``k`` of a list that has one more where there are so many; items may trade places
    where their scores are the same."""
    assert len(got) == min(k, len(expected))
    scores = [score for _, score in expected]
    np.testing.assert_allclose([score for _, score in got], scores[:k], rtol=0, atol=1e-5)
    apart = [True, *(np.diff(scores) < -1e-5), True]
    for rank, (item, _) in enumerate(got):
        if apart[rank] and apart[rank + 1]:
            assert item == expected[rank][0]


def assert_all_the_same(folder, model, domains=(None,), k=8):
    asked = [
        (history, k, exclude, domain)
        for history in histories_of(model)
        for exclude in (False, True)
        for domain in domains
    ]
    command = [sys.executable, "-c", READ, str(folder)]
    done = subprocess.run(command, input=json.dumps(asked), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    lists = json.loads(done.stdout)
    assert len(lists) == len(asked) > 50
    for (history, _, exclude, domain), both in zip(asked, lists, strict=True):
        expected = recommend(model, history, k + 1, exclude, domain)
        for got in both:
            assert_same(got, expected, k)


@pytest.mark.parametrize("name", RUNS)
def test_lists_are_those_of_recommend(name, checkpoint_of):
    line = ["export", f"--checkpoint={checkpoint_of(name)}", "--output=model"]
    assert main(line) == 0
    model = load_model(checkpoint_of(name))
    assert_all_the_same("model", model)
    assert list(Path().glob(".*")) == []  # nothing of the work is left
    kind, changes = RUNS[name]
    about = json.loads(Path("model/manifest.json").read_text())
    carried = changes.get("carry_state", False)
    assert about["model"] == kind and about["reading"] == ("carry" if carried else "window")
    assert about["window"] == (None if carried else 6) and about["MAX_ITEM_LIST_LENGTH"] == 6
    others = {file.name for file in Path("model").iterdir()} - {"manifest.json"}
    assert about["sha256"] == {
        name: hashlib.sha256((Path("model") / name).read_bytes()).hexdigest() for name in others
    }


def test_items_by_text_need_no_language_model(make_ring, make_llm, tmp_path):
    make_ring("ring", cold=2)
    given = {
        "data_path": str(tmp_path / "data"), "item_encoder": "text", "item_llm": make_llm(),
        "item_text_fields": ["title", "brand"], "item_llm_cache": str(tmp_path / "cache"),
        "num_negatives": 8, "epochs": 1,
    }  # fmt: skip
    path = run_recbole_hydra("Hydra", "ring", config_dict=small("Hydra", **given))
    model = load_model(path["best_checkpoint"])
    add_items(model, {"new": {"title": "red three", "brand": "acme"}})
    export_model(model, "model")
    assert_all_the_same("model", model)
    assert Reader("model").recommend(["new"], 3)


@pytest.mark.parametrize("user_model, carry", [("shared", False), ("per_domain", True)])
def test_two_domains(user_model, carry, make_ring, tmp_path):
    make_ring("office", items=24, users=40)
    make_ring("tools", items=12, users=15, seed=1)
    given = {
        "domains": ["office", "tools"], "data_path": str(tmp_path / "data"),
        "user_model": user_model, "carry_state": carry, "MAX_ITEM_LIST_LENGTH": 4, "epochs": 1,
    }  # fmt: skip
    model = load_model(
        run_recbole_hydra("Hydra", config_dict=small("Hydra", **given))["best_checkpoint"]
    )
    export_model(model, "model")
    assert_all_the_same("model", model, domains=(None, "office", "tools"))
    about = json.loads(Path("model/manifest.json").read_text())
    assert about["domains"] == [
        {"name": "office", "first_item": 1, "end": 25},
        {"name": "tools", "first_item": 25, "end": 37},
    ]
    assert len(about["graphs"]) == (2 if user_model == "per_domain" else 1)
    with pytest.raises(ReaderError, match="domain must be one of office, tools, got 'books'"):
        Reader("model").recommend(["office:i3"], domain="books")


# -- graphs ---------------------------------------------------------------------------------------


def sessions(model, folder):
    """The graphs of a model, a step's and a history's."""
    weights, mambas = weights_of(model, lanes=1)
    table = read_vectors(model)
    np.save(folder / "items.npy", table)
    place = Table("items.npy", (folder / "items.npy").stat().st_size - table.nbytes, table.shape)
    encoder = Encoder(weights, mambas, range(mambas.conv.shape[0]), place)
    for made in (step_model(encoder), history_model(encoder)):
        path = folder / "graph.onnx"
        path.write_bytes(made.SerializeToString())
        onnx.checker.check_model(path, full_check=True)
        yield onnxruntime.InferenceSession(path), sum(encoder.parts)


@pytest.mark.parametrize("name, changes", CHOICES, ids=str)
def test_graphs_compute_what_the_modules_do(name, changes, tmp_path):
    model = make(name, changes)
    rows = histories(1, 2, 3, 50, 120)
    (step, size), (history, _) = sessions(model, tmp_path)
    expected, lengths = by_modules(model, rows), np.array([len(row) for row in rows])
    items = np.zeros((len(rows), 120), np.int64)
    for i, row in enumerate(rows):
        items[i, : len(row)] = row
    (at_once,) = history.run(None, {"items": items, "lengths": lengths})
    np.testing.assert_allclose(at_once, expected, rtol=0, atol=1e-5)
    state = np.zeros((len(rows), size), np.float32)
    for t in range(120):  # users go on beside each other; those at their end are read for nothing
        vectors, state = step.run(None, {"item": items[:, t], "state": state})
        done = lengths == t + 1
        np.testing.assert_allclose(vectors[done], expected[done], rtol=0, atol=1e-5)


def test_ten_thousand_steps_stay_close(tmp_path):
    model = make("Hydra", {})
    row = histories(10_000)[0]
    (step, size), (history, _) = sessions(model, tmp_path)
    expected = by_modules(model, [row])
    (vectors,) = history.run(None, {"items": row[None], "lengths": np.array([len(row)])})
    np.testing.assert_allclose(vectors, expected, rtol=0, atol=1e-4)
    state = np.zeros((1, size), np.float32)
    for item in row:
        vectors, state = step.run(None, {"item": item[None], "state": state})
    np.testing.assert_allclose(vectors, expected, rtol=0, atol=1e-4)


# -- bad input ------------------------------------------------------------------------------------


def copied(folder, changed=None, **manifest):
    """A copy of an export, with a changed file or other words in its manifest."""
    copy = Path("copy")
    copy.mkdir()
    for file in folder.iterdir():
        (copy / file.name).write_bytes(file.read_bytes())
    about = json.loads((copy / "manifest.json").read_text())
    (copy / "manifest.json").write_text(json.dumps({**about, **manifest}))
    if changed:
        content = bytearray((copy / changed).read_bytes())
        content[-1] ^= 1
        (copy / changed).write_bytes(content)
    return copy


FILES = ["items.npy", "step.onnx", "history.onnx", "repeat_bias.npy", "vocabulary.json"]


@pytest.mark.parametrize("name", FILES)
def test_files_that_are_damaged_or_missing(exported, name):
    copy = copied(exported, changed=name)
    with pytest.raises(ReaderError, match=f"{name}: is damaged"):
        Reader(copy)
    (copy / name).unlink()
    with pytest.raises(ReaderError, match=f"{name}: cannot be read \\(No such file"):
        Reader(copy)


def test_a_manifest_that_says_something_else(exported):
    with pytest.raises(ReaderError, match="manifest.json: is damaged"):
        Reader(copied(exported, window=7))


def test_a_reader_of_one_s_own_is_no_damage(exported):
    copy = copied(exported)
    (copy / "reader.py").write_text("# mine\n")
    assert Reader(copy).recommend(["i1"])


def test_folders_that_are_no_exports(exported):
    copy = copied(exported, format=3)
    with pytest.raises(ReaderError, match="format 3, newer than 2.* use the reader.py of that"):
        Reader(copy)
    for text in ("{", "[]", '{"sha256": {}}'):
        (copy / "manifest.json").write_text(text)
        with pytest.raises(ReaderError, match="is no export of recbole-hydra") as caught:
            Reader(copy)
        assert "\n" not in str(caught.value)
    with pytest.raises(ReaderError, match="is no export of recbole-hydra \\(No such file"):
        Reader("nowhere")


def test_what_a_reader_cannot_answer(exported):
    reader = Reader(exported)
    for history, message in (
        ([], "history: it is empty; a recommendation needs at least one item"),
        ("i1", "history: must be a list of item ids, got 'i1'"),
        (None, "history: must be a list"),
        (["i1", "x"], "history: item 'x': the model does not know it"),
        (["[PAD]"], "history: item '\\[PAD\\]'"),
    ):
        with pytest.raises(ReaderError, match=message):
            reader.recommend(history)
    for k in (0, -1, 10_000, 2.5, True, "3", None):
        with pytest.raises(ReaderError, match="^k must be in 1 .. 60, got"):
            reader.recommend(["i1"], k)
    with pytest.raises(ReaderError, match="domain: this model has no domains, got 'a'"):
        reader.recommend(["i1"], domain="a")
    state = reader.start()
    with pytest.raises(ReaderError, match="item 'x'"):
        reader.step("x", state)
    assert state.position == 0 and not state.values.any()


def test_a_step_leaves_the_state_before_it_as_it_is(exported):
    reader = Reader(exported)
    _, before = reader.step("i1", reader.start())
    first, _ = reader.step("i2", before)
    reader.step("i3", before)
    again, _ = reader.step("i2", before)
    assert np.array_equal(first, again)
    assert reader.recommend(["i1", "i2"]) and before.position == 1


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--output=a"], "export: --checkpoint is missing; see recbole-hydra export --help"),
        (["--checkpoint=x.pth"], "export: --output is missing"),
        (["--checkpoint=x.pth", "--output=a", "--ouput=b"], "unknown key 'ouput'; did you mean"),
        (["--checkpoint=x.pth", "--output=a"], "x.pth"),
        (["--checkpoint=none.pth", "--output=a"], "none.pth"),
        (["--checkpoint=x.pth", "--output=."], "output .: is the current folder; name a new one"),
        (["--checkpoint=x.pth", "--output=x.pth"], "output x.pth: holds files"),
        (["--checkpoint=x.pth", "--output=full"], "output full: holds files; choose an empty"),
    ],
)
def test_bad_input_is_one_line(arguments, message, capsys):
    Path("x.pth").write_bytes(b"nothing")
    Path("full").mkdir()
    Path("full/a").write_text("mine")
    assert main(["export", *arguments]) == 2
    error = capsys.readouterr().err
    assert message in error and len(error.splitlines()) == 1
    assert sorted(path.name for path in Path().iterdir()) == ["full", "x.pth"]


def test_models_and_places_that_cannot_be(checkpoint_of, monkeypatch):
    given = small("SASRec", MAX_ITEM_LIST_LENGTH=6, checkpoint_dir="saved", epochs=1)
    other = run_recbole_hydra("SASRec", "tiny", config_dict=given)["best_checkpoint"]
    with pytest.raises(ExportError, match="SASRec has no graph; Hydra and Mamba4Rec themselves"):
        export_model(other, "model")
    with pytest.raises(CheckpointError, match="Hydra: is no model of load_model"):
        export_model(make("Hydra", {}), "model")
    Path("file").write_text("x")
    with pytest.raises(ExportError, match="output .*file/model: cannot be written"):
        export_model(checkpoint_of("Hydra"), "file/model")
    # Whatever goes wrong on the way, nothing is left.
    monkeypatch.setattr("recbole_hydra.serving.export.CLOSE", 0.0)
    with pytest.raises(ExportError, match="ONNX Runtime computes other vectors than the model"):
        export_model(checkpoint_of("Hydra"), "model")
    assert not Path("model").exists() and not list(Path().glob(".*"))
    Path("model").mkdir()  # an empty folder is free
    monkeypatch.undo()


def test_an_empty_folder_is_free(checkpoint_of):
    Path("model").mkdir()
    export_model(checkpoint_of("Hydra"), "model")
    assert Reader("model").recommend(["i1"], 1)


@pytest.mark.parametrize("name", ["onnx", "onnxruntime"])
def test_a_missing_package_names_the_extra(name, checkpoint_of, monkeypatch):
    monkeypatch.setitem(sys.modules, name, None)
    for module in ("onnx_graph", "reader"):
        monkeypatch.delitem(sys.modules, f"recbole_hydra.serving.{module}")
    with pytest.raises(ExportError, match=f"{name} is not installed; pip install .*\\[export\\]"):
        export_model(checkpoint_of("Hydra"), "model")
