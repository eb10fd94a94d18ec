"""The best items of all users in a file: the rows, and what happens to a call that is killed."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from conftest import small

from recbole_hydra import Recommender, load_model, recommend, run_recbole_hydra
from recbole_hydra.cli import main
from recbole_hydra.errors import BulkError, ConfigError
from recbole_hydra.serving import bulk
from recbole_hydra.serving.bulk import recommend_all, write_vectors


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    folder = str(tmp_path_factory.mktemp("saved"))
    given = small("Hydra", MAX_ITEM_LIST_LENGTH=6, checkpoint_dir=folder)
    return run_recbole_hydra("Hydra", "tiny", config_dict=given)["best_checkpoint"]


@pytest.fixture(scope="module")
def other_checkpoint(tmp_path_factory):
    folder = str(tmp_path_factory.mktemp("saved"))
    given = small("SASRec", MAX_ITEM_LIST_LENGTH=6, checkpoint_dir=folder)
    return run_recbole_hydra("SASRec", "tiny", config_dict=given)["best_checkpoint"]


def users_of(model):
    vocabulary = model.checkpoint["vocabulary"]
    return [str(user) for user in vocabulary.field2id_token[vocabulary.uid_field][1:]]


@pytest.mark.parametrize("out", [False, True])
@pytest.mark.parametrize("block", [1024, 7])
def test_rows_are_what_recommend_says(checkpoint, out, block, monkeypatch):
    monkeypatch.setattr(bulk, "USERS", block)
    model = load_model(checkpoint)
    line = ["recommend", f"--checkpoint={checkpoint}", "--output=recs.parquet", "--k=4"]
    assert main([*line, f"--exclude_history={out}", "--show_progress=False"]) == 0
    table = pd.read_parquet("recs.parquet")
    assert list(table.columns) == ["user", "rank", "item", "score"]
    assert list(dict.fromkeys(table["user"])) == users_of(model)
    for user, rows in table.groupby("user"):
        expected = recommend(model, user, 4, exclude_history=out)
        assert list(rows["rank"]) == [1, 2, 3, 4]
        np.testing.assert_allclose(rows["score"], [score for _, score in expected], atol=1e-5)
        assert list(rows["item"]) == [item for item, _ in expected]
    assert not Path("recs.parquet.parts").exists()


def test_a_model_that_scores_by_itself(other_checkpoint):
    with Recommender(other_checkpoint) as service:
        recommend_all(service, "recs.parquet", k=3, show_progress=False)
        user = users_of(service.model)[5]
        rows = pd.read_parquet("recs.parquet").query("user == @user")
        assert list(rows["item"]) == [item for item, _ in recommend(service.model, user, 3)]


def test_users_of_a_file(checkpoint, capsys):
    users = users_of(load_model(checkpoint))
    Path("who.txt").write_text(f"{users[7]}\n\n{users[2]}\nnobody\n")
    line = ["recommend", f"--checkpoint={checkpoint}", "--output=recs.parquet", "--users=who.txt"]
    assert main([*line, "--k=2", "--show_progress=False"]) == 0
    assert "recs.parquet: 3 users" in capsys.readouterr().out
    table = pd.read_parquet("recs.parquet")
    assert list(table["user"]) == [u for u in (users[7], users[2], "nobody") for _ in range(2)]


def test_users_as_they_live_in_a_store(checkpoint):
    model = load_model(checkpoint)
    with Recommender(model, "states") as service:
        service.observe_many([("new", "i3"), ("new", "i4")])
    Path("who.txt").write_text("new\n")
    line = ["recommend", f"--checkpoint={checkpoint}", "--output=recs.parquet", "--users=who.txt"]
    assert main([*line, "--store=states", "--k=3", "--show_progress=False"]) == 0
    items = list(pd.read_parquet("recs.parquet")["item"])
    assert items == [item for item, _ in recommend(model, ["i3", "i4"], 3)]


def test_fewer_items_than_k_are_fewer_rows(checkpoint):
    with Recommender(checkpoint) as service:
        most = len(service.ranking.tokens) - 1
        recommend_all(service, "recs.parquet", k=most, exclude_history=True, show_progress=False)
        counts = pd.read_parquet("recs.parquet").groupby("user").size()
        for user in users_of(service.model):
            assert counts[user] == most - len(set(service.history(user)))


# -- killed, and gone on --------------------------------------------------------------------------


SLOW = """
import sys, time
from recbole_hydra.serving import bulk
from recbole_hydra.cli import main
bulk.USERS = 5
rows = bulk._rows
def slowly(*arguments):
    time.sleep(0.1)
    return rows(*arguments)
bulk._rows = slowly
sys.exit(main(sys.argv[1:]))
"""


@pytest.mark.parametrize("sent, status", [(signal.SIGKILL, -9), (signal.SIGINT, 130)])
def test_a_killed_call_goes_on(checkpoint, sent, status, monkeypatch):
    monkeypatch.setattr(bulk, "USERS", 5)
    line = ["recommend", f"--checkpoint={checkpoint}", "--output=recs.parquet", "--k=3"]
    process = subprocess.Popen(
        [sys.executable, "-c", SLOW, *line], stderr=subprocess.PIPE, text=True
    )
    end = time.monotonic() + 120
    while not Path("recs.parquet.parts/00000002.parquet").exists():
        assert time.monotonic() < end and process.poll() is None, process.communicate()
        time.sleep(0.01)
    process.send_signal(sent)
    _, error = process.communicate(timeout=60)
    assert process.returncode == status and not Path("recs.parquet").exists()
    if sent == signal.SIGINT:
        assert "interrupted; --resume=True continues" in error
    first = os.stat("recs.parquet.parts/00000000.parquet").st_mtime_ns
    assert main([*line, "--show_progress=False"]) == 2  # not without saying so
    assert main([*line, "--k=4", "--resume=True"]) == 2  # nor as another call
    assert os.stat("recs.parquet.parts/00000000.parquet").st_mtime_ns == first
    assert main([*line, "--resume=True", "--show_progress=False"]) == 0
    with Recommender(checkpoint) as service:
        recommend_all(service, "whole.parquet", k=3, show_progress=False)
    pd.testing.assert_frame_equal(pd.read_parquet("recs.parquet"), pd.read_parquet("whole.parquet"))


# -- vectors --------------------------------------------------------------------------------------


def test_vectors_give_the_scores(checkpoint):
    line = ["recommend", f"--checkpoint={checkpoint}", "--vectors=vectors"]
    assert main(line) == 0
    items, users = (pd.read_parquet(f"vectors/{name}.parquet") for name in ("items", "users"))
    model = load_model(checkpoint)
    assert list(users["id"]) == users_of(model)
    scores = np.stack(users["vector"]) @ np.stack(items["vector"]).T
    for row, user in enumerate(users["id"][:10]):
        # Without its history: what is there has the repeat bias on top.
        for item, score in recommend(model, user, 5, exclude_history=True):
            column = list(items["id"]).index(item)
            assert scores[row, column] == pytest.approx(score, abs=1e-5)
    assert json.loads(Path("vectors/vectors.json").read_text())["width"] == 16


# -- bad input ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--checkpoint=x.pth"], "recommend: --output or --vectors is missing"),
        (["--output=a.parquet"], "recommend: --checkpoint is missing"),
        (["--checkpoint=x.pth", "--output=a.parquet", "--user=all"], "unknown key 'user'; did you"),
        (["--checkpoint=x.pth", "--output=a.parquet", "--k=0"], "k must be a positive integer"),
        (["--checkpoint=x.pth", "--output=a.parquet", "--k=ten"], "k must be a positive integer"),
        (["--checkpoint=x.pth", "--output=a.parquet", "--resume=maybe"], "resume must be True or"),
        (["--checkpoint=x.pth", "--output=a.parquet"], "x.pth"),
        (["--checkpoint=x.pth", "--output=a.parquet", "--users=no.txt"], "users no.txt: cannot be"),
    ],
)
def test_bad_input_is_one_line(arguments, message, capsys):
    assert main(["recommend", *arguments]) == 2
    error = capsys.readouterr().err
    assert message in error and len(error.splitlines()) == 1


def test_outputs_that_cannot_be(checkpoint):
    with Recommender(checkpoint) as service:
        Path("there.parquet").write_text("x")
        for output, given, error, message in (
            ("there.parquet", {}, BulkError, "is there already"),
            ("no/folder.parquet", {}, BulkError, "there is no folder no; make it"),
            ("new.parquet", {"resume": True}, BulkError, "there is no call to resume"),
            ("new.parquet", {"k": 10_000}, ConfigError, "k must be in 1 .."),
            ("new.parquet", {"users": []}, BulkError, "users: there are none"),
            ("new.parquet", {"domain": "a"}, ConfigError, "this model has no domains"),
        ):
            with pytest.raises(error, match=message):
                recommend_all(service, output, show_progress=False, **given)
        assert Path("there.parquet").read_text() == "x" and not Path("new.parquet.parts").exists()
        Path("full").mkdir()
        Path("full/a").write_text("x")
        with pytest.raises(BulkError, match="vectors full: holds files"):
            write_vectors(service, "full")


def test_a_model_without_vectors(other_checkpoint):
    with Recommender(other_checkpoint) as service:
        with pytest.raises(ConfigError, match="SASRec has no vectors of users"):
            write_vectors(service, "vectors")
    assert not Path("vectors").exists()
