"""The server: what it answers, what it refuses, and that it loses nothing."""

import asyncio
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

import pytest
import torch
from conftest import small
from starlette.testclient import TestClient

from recbole_hydra import Recommender, load_model, recommend, run_recbole_hydra
from recbole_hydra.cli import main
from recbole_hydra.errors import StoreError
from recbole_hydra.serving.server import gate, run
from recbole_hydra.serving.server.app import make_app
from recbole_hydra.serving.server.batching import Batcher, Events, OfUser, Other
from recbole_hydra.serving.server.live import LiveModel, Watch
from recbole_hydra.serving.server.service import Service
from recbole_hydra.serving.stores import MemoryStore, open_store

TOKEN = "a token of many letters"


def has_ray_serve():
    try:
        import grpc_reflection  # noqa: F401  # of ray[serve], which ray[tune] does not need
        import ray
    except ImportError:
        return False
    return int(ray.__version__.split(".")[1]) >= 50


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """A folder with two checkpoints of the same dataset, and a file that is none."""
    folder = tmp_path_factory.mktemp("models")
    for name, carried in (("first", True), ("second", False)):
        given = small(
            "Hydra", MAX_ITEM_LIST_LENGTH=6, checkpoint_dir=str(folder / name), carry_state=carried
        )
        done = run_recbole_hydra("Hydra", "tiny", config_dict=given)
        shutil.copy(done["best_checkpoint"], folder / f"{name}.pth")
        shutil.rmtree(folder / name)
    (folder / "bad.pth").write_bytes(b"no checkpoint")
    return folder


@pytest.fixture
def client(models):
    with TestClient(make_app(Service(LiveModel(models / "first.pth", MemoryStore())))) as client:
        yield client


def answer(response, status=200):
    assert response.status_code == status, response.text
    return response.json()


def pairs(found):
    return [(row["item"], pytest.approx(row["score"], abs=1e-5)) for row in found["items"]]


# -- what is asked for ---------------------------------------------------------------------------


def test_an_event_changes_what_is_recommended_as_recommend_has_it(client, models):
    model = load_model(models / "first.pth")
    assert answer(client.get("/recommendations/newcomer"))["fallback"] == "popular"
    history = ["i5", "i9", "i5", "i12"]
    for item in history:
        assert (
            answer(client.post("/events", json={"user": "newcomer", "item": item}))["stored"] == 1
        )
    found = answer(client.get("/recommendations/newcomer?k=5"))
    assert found["user"] == "newcomer" and found["fallback"] is None
    assert pairs(found) == recommend(model, history, k=5)
    found = answer(client.get("/recommendations/newcomer?k=5&exclude_history=true"))
    assert pairs(found) == recommend(model, history, k=5, exclude_history=True)
    had = answer(client.get("/users/newcomer/history?limit=2"))
    assert [row["item"] for row in had["history"]] == ["i5", "i12"] and had["number"] == 4


def test_a_list_of_events_of_several_users_and_ids_that_are_numbers_or_paths(client):
    events = [{"user": user, "item": "i7"} for user in (17, "a/b c", "ü", "17")]
    assert answer(client.post("/events", json={"events": events}))["stored"] == 4
    for path, number in (("17", 2), ("a%2Fb%20c", 1), ("a/b c", 1), ("%C3%BC", 1)):
        assert answer(client.get(f"/users/{path}/history"))["number"] == number


def test_histories_of_users_nobody_knows(client, models):
    model = load_model(models / "first.pth")
    one = answer(client.post("/recommendations", json={"history": ["i5", "i9"], "k": 4}))
    assert pairs(one) == recommend(model, ["i5", "i9"], k=4)
    many = {"histories": [["i5", "i9"], ["i3"]], "k": 4, "exclude_history": True}
    found = answer(client.post("/recommendations", json=many))["results"]
    assert pairs(found[1]) == recommend(model, ["i3"], k=4, exclude_history=True)
    assert (
        answer(client.get("/users"))["number"]
        == len(model.checkpoint["vocabulary"].field2id_token["user_id"]) - 1
    )


def test_similar_items_and_users(client, models):
    service = Recommender(models / "first.pth")
    assert pairs(answer(client.get("/items/i5/similar?k=3"))) == service.similar("i5", 3)
    assert answer(client.get("/users?limit=2"))["users"] == service.trained_users()[:2]


def test_the_state_of_the_server(client, models):
    service = Recommender(models / "first.pth")
    version = service.states.version.hex()[:16]
    assert answer(client.get("/health")) == {"status": "ok"}
    assert answer(client.get("/ready")) == {"status": "ready", "model": version}
    assert answer(client.get("/model")) == {"model": version, "checkpoint": "first.pth"}
    client.post("/events", json={"user": "u", "item": "i7"})
    client.get("/recommendations/u")
    text = client.get("/metrics").text
    assert 'recbole_hydra_requests_total{path="/events",status="200"} 1.0' in text
    path = "/recommendations/{user:path}"
    assert f'recbole_hydra_request_seconds_count{{path="{path}"}} 1.0' in text
    assert "recbole_hydra_events_total 1.0" in text and "recbole_hydra_users 1.0" in text
    assert f'recbole_hydra_model{{model="{version}"}} 1.0' in text


def test_names_are_those_of_the_item_file(make_ring):
    folder = make_ring("ring")
    given = small("Hydra", data_path=folder, carry_state=True)
    path = run_recbole_hydra("Hydra", "ring", config_dict=given)["best_checkpoint"]
    with TestClient(make_app(Service(LiveModel(path, MemoryStore())))) as client:
        found = answer(client.post("/recommendations", json={"history": ["i0"], "k": 1}))
        first = found["items"][0]
        assert len(first["name"].split()) == 2
    file = Path(folder) / "ring" / "ring.item"
    moved = file.rename(file.with_name("elsewhere.item"))
    live = LiveModel(path, MemoryStore(), items=moved)
    assert live.names[first["item"]] == first["name"]
    assert LiveModel(path, MemoryStore()).names == {}


# -- what is refused -----------------------------------------------------------------------------

LONG = "x" * 401
BAD = [
    ("POST", "/events", {"user": "u", "item": "nope"}, "item_id 'nope': the model does not know"),
    ("POST", "/events", {"user": "u"}, "body.item: Field required"),
    ("POST", "/events", {"user": "", "item": "i1"}, "body.user: .*1 to 400 bytes"),
    ("POST", "/events", {"user": LONG, "item": "i1"}, "body.user: .*1 to 400 bytes"),
    ("POST", "/events", {"user": True, "item": "i1"}, "body.user"),
    ("POST", "/events", {"user": "\ud800", "item": "i1"}, "body.user: .*is no Unicode text"),
    ("POST", "/events", {"user": "u", "item": "i1", "time": 3}, "body.time: Extra inputs"),
    ("POST", "/events", {"events": []}, "body.events: .*at least 1"),
    ("POST", "/events", {"events": [{"user": "u", "item": "i1"}, {"user": "u"}]}, "events.1.item"),
    ("POST", "/events", {"events": [{"user": "u", "item": "i1"}, 5]}, "body.events.1: "),
    (
        "POST", "/events",
        {"events": [{"user": "u", "item": "i1"}, {"user": "u", "item": "nope"}]}, "^events.1: item",
    ),
    ("POST", "/events", {"events": [{"user": "u", "item": "i1"}] * 1001}, "at most 1000"),
    ("POST", "/events", [1, 2], "body"),
    ("POST", "/events", "no JSON", "body: is no JSON"),
    ("GET", "/recommendations/u?k=0", None, "query.k: .*greater than or equal to 1"),
    ("GET", "/recommendations/u?k=999", None, "k must be in 1 .. "),
    ("GET", "/recommendations/u?k=ten", None, "query.k: "),
    ("GET", "/recommendations/u?domain=books", None, "domain"),
    ("GET", f"/recommendations/{LONG}", None, "path.user: .*1 to 400 bytes"),
    ("POST", "/recommendations", {"history": []}, "body.history: .*at least 1"),
    ("POST", "/recommendations", {"history": ["nope"]}, "history: item_id 'nope'"),
    ("POST", "/recommendations", {"histories": [["i1"], []]}, "body.histories.1: .*at least 1"),
    ("POST", "/recommendations", {"history": ["i1"], "k": 5000}, "body.k: .*less than or equal"),
    ("POST", "/recommendations", {"history": ["i1"], "k": True}, "body.k"),
    ("POST", "/recommendations", {"history": ["i1"], "exclude_history": "yes"}, "exclude_history"),
    ("GET", "/items/i5/similar?k=-1", None, "query.k: "),
    ("POST", "/model", {"checkpoint": "bad.pth"}, "bad.pth"),
    ("POST", "/model", {"checkpoint": "nothing.pth"}, "nothing.pth'?: there is no such"),
    ("POST", "/model", {"checkpoint": "../../etc/passwd"}, "must be a file in the folder"),
]  # fmt: skip


@pytest.mark.parametrize("method, path, body, line", BAD)
def test_bad_input_is_one_line_and_changes_nothing(client, method, path, body, line):
    content = body if isinstance(body, str) else json.dumps(body)
    headers = {"content-type": "application/json"}
    response = client.request(method, path, content=content if body else None, headers=headers)
    error = answer(response, 422)["error"]
    assert "\n" not in error
    assert re.search(line, error), error
    assert answer(client.get("/users/u/history"))["number"] == 0
    assert answer(client.get("/model"))["checkpoint"] == "first.pth"


def test_models_that_cannot_take_over(models, make_ring):
    state = torch.load(models / "second.pth", weights_only=True)
    for name in state["state_dict"]:
        state["state_dict"][name] = state["state_dict"][name] * float("nan")
    torch.save(state, models / "nan.pth")
    data = bytearray((models / "second.pth").read_bytes())
    data[len(data) // 2] ^= 255
    (models / "damaged.pth").write_bytes(data)
    other = run_recbole_hydra(
        "Hydra", "ring", config_dict=small("Hydra", data_path=make_ring("ring"))
    )
    with TestClient(make_app(Service(LiveModel(models / "first.pth", MemoryStore())))) as client:
        shutil.copy(other["best_checkpoint"], models / "ring.pth")
        for name, line in (
            ("nan.pth", "recommends nothing, its scores are no numbers"),
            ("damaged.pth", "truncated or corrupt"),
            ("ring.pth", "knows .* items of the model that answers"),
            ("\0", "is no name of a file"),
            ("x" * 300, "is no name of a file|there is no such file"),
        ):
            error = answer(client.post("/model", json={"checkpoint": name}), 422)["error"]
            assert re.search(line, error), error
        assert answer(client.get("/model"))["checkpoint"] == "first.pth"
        assert answer(client.get("/recommendations/u1"))["items"]


def test_without_a_token_other_names_and_bodies_of_forms_are_refused(models):
    app = make_app(
        Service(LiveModel(models / "first.pth", MemoryStore())), hosts=("localhost", "::1")
    )
    with TestClient(app) as client:
        for host in ("localhost", "localhost:8000", "[::1]:8000", "LOCALHOST"):
            assert answer(client.get("/users", headers={"host": host}))
        for host in ("evil.example", "evil.example:8000", "", "localhost.evil.example"):
            response = client.get("/users", headers={"host": host})
            assert answer(response, 403)["error"].startswith("host: ")
        form = {"host": "localhost", "content-type": "text/plain"}
        content = json.dumps({"user": "u", "item": "i5"})
        assert answer(client.post("/events", content=content, headers=form), 422)


def test_a_process_that_starts_again_takes_the_store_as_it_is(
    models, redis_url, monkeypatch, capsys
):
    live = LiveModel(models / "first.pth", open_store(redis_url))
    live.replace("second.pth")
    plan = run.Plan(str(models / "first.pth"), redis_url, workers=2)
    monkeypatch.setenv(run.PLAN, json.dumps(asdict(plan)))
    with TestClient(run.app_of_process(), base_url="http://127.0.0.1") as client:
        assert answer(client.get("/ready"))
    monkeypatch.setenv(run.PLAN, json.dumps({**asdict(plan), "store": "unix:///nowhere"}))
    with pytest.raises(SystemExit):
        run.app_of_process()
    assert capsys.readouterr().err.count("\n") == 1


def test_what_is_not_there_or_too_large(client):
    assert "nope" in answer(client.get("/items/nope/similar"), 404)["error"]
    assert answer(client.get("/nothing"), 404) == {"error": "Not Found"}
    assert answer(client.delete("/events"), 405)["error"] == "Method Not Allowed"
    for content in (b"x" * (gate.BODY + 1), iter([b"x" * gate.BODY, b"x"])):
        assert answer(client.post("/events", content=content), 413)["error"].startswith("body: ")


def test_with_a_token_nothing_is_said_without(models):
    server = Service(LiveModel(models / "first.pth", MemoryStore()))
    with TestClient(make_app(server, TOKEN)) as client:
        for path in ("/recommendations/u", "/users", "/metrics", "/openapi.json", "/nothing"):
            for headers in ({}, {"authorization": "Bearer no"}, {"authorization": TOKEN}):
                response = client.get(path, headers=headers)
                assert answer(response, 401)["error"].startswith("token: ")
        assert answer(client.post("/events", json={"user": "u", "item": "i5"}), 401)
        right = {"authorization": f"bearer {TOKEN}"}
        assert answer(client.get("/users/u/history", headers=right))["number"] == 0
        for path in ("/", "/health", "/ready"):
            assert client.get(path).status_code == 200


# -- together, and one model after another -------------------------------------------------------


def test_what_arrives_together_is_computed_together(models):
    sizes = []

    async def ask():
        service = Recommender(models / "first.pth")
        batcher = Batcher(lambda: service, seen=sizes.append)
        batcher.start()
        jobs = [Events([(f"v{i}", "i5"), (f"v{i}", "i7")]) for i in range(40)]
        jobs[7] = Events([("v7", "i5"), ("v7", "nope")])
        jobs += [OfUser(f"v{i}", 3, False, None) for i in range(40)]
        jobs += [OfUser("v1", 10_000, False, None), OfUser("v1", 2, False, "books")]
        jobs += [Other(lambda service: len(service.store)), Other(lambda service: 1 / 0)]
        found = await asyncio.gather(*map(batcher.submit, jobs), return_exceptions=True)
        found = [x if isinstance(x, Exception) else x[0] for x in found]
        await batcher.stop()
        return service, found

    service, found = asyncio.run(ask())
    assert sizes == [84]
    assert [x for i, x in enumerate(found[:40]) if i != 7] == [2] * 39
    assert "nope" in str(found[7]) and found[47].fallback == "popular"  # of the list, nothing
    alone = service.recommend("v1", 3)
    assert [score for _, score in found[41]] == pytest.approx([score for _, score in alone])
    assert "k must be" in str(found[80]) and "domain" in str(found[81])
    assert found[82] == 39 and isinstance(found[83], ZeroDivisionError)


@contextmanager
def asking(client, user):
    """Ask for recommendations and send events from another thread, until the end; yields what
    failed, and the number of events that were stored."""
    failed, stored, stop = [], [0], threading.Event()

    def ask():
        while not stop.is_set():
            for response in (
                client.get(f"/recommendations/{user}"),
                client.post("/events", json={"user": user, "item": "i5"}),
            ):
                if response.status_code != 200:
                    failed.append(response.text)
            stored[0] += 1

    thread = threading.Thread(target=ask)
    thread.start()
    yield failed, stored
    stop.set()
    thread.join()


def test_another_model_takes_over_without_a_stop(client, models):
    history = ["i5", "i9", "i12"]
    events = [{"user": "kept", "item": item} for item in history]
    client.post("/events", json={"events": events})
    old = answer(client.get("/model"))["model"]
    with asking(client, "busy") as (failed, stored):
        new = answer(client.post("/model", json={"checkpoint": "second.pth"}))
        assert new["checkpoint"] == "second.pth" and new["model"] != old
        time.sleep(0.2)
    assert failed == [] and stored[0] > 1
    found = answer(client.get("/recommendations/kept?k=5"))
    assert found["model"] == new["model"]
    assert pairs(found) == recommend(load_model(models / "second.pth"), history, k=5)
    assert answer(client.get("/users/busy/history?limit=1"))["number"] == stored[0]
    # And back: states are computed anew from what was stored meanwhile.
    client.post("/events", json={"user": "kept", "item": "i3"})
    assert answer(client.post("/model", json={"checkpoint": "first.pth"}))["model"] == old
    found = answer(client.get("/recommendations/kept?k=5"))
    assert pairs(found) == recommend(load_model(models / "first.pth"), [*history, "i3"], k=5)


def test_the_newest_checkpoint_of_a_folder_takes_over(models, tmp_path, caplog):
    folder = tmp_path / "models"
    folder.mkdir()
    shutil.copy2(models / "first.pth", folder / "first.pth")
    live = LiveModel(folder / "first.pth", MemoryStore())
    watch = Watch(live, seconds=0.01)
    watch.start()

    def wait(happened):
        end = time.monotonic() + 20
        while not happened():
            assert time.monotonic() < end
            time.sleep(0.01)

    shutil.copy(models / "bad.pth", folder / "worse.pth")
    wait(lambda: "worse.pth: not taken over" in caplog.text)
    shutil.copy(models / "second.pth", folder / "x.last.pth")  # of a run that goes on
    assert live.checkpoint.name == "first.pth" and live.store.model() == live.service.states.version
    shutil.copy(models / "second.pth", folder / "next.part")
    os.utime(folder / "next.part")
    (folder / "next.part").rename(folder / "next.pth")
    wait(lambda: live.checkpoint.name == "next.pth")
    (folder / "next.pth").unlink()  # an older one does not come back
    time.sleep(0.2)
    watch.stop()
    assert live.checkpoint.name == "next.pth"
    assert caplog.text.count("not taken over") == 1 and live.generation == 2


def test_a_store_that_fails_is_503_and_comes_back(client, monkeypatch):
    def fails(*_):
        raise StoreError("states: cannot be written (no space)")

    event = {"user": "u", "item": "i5"}
    with monkeypatch.context() as patch:
        patch.setattr(MemoryStore, "write", fails)
        patch.setattr(MemoryStore, "numbers", fails)
        assert answer(client.post("/events", json=event), 503) == {
            "error": "states: cannot be written (no space)"
        }
        assert "no space" in answer(client.get("/ready"), 503)["error"]
        assert answer(client.get("/health"))
    assert answer(client.post("/events", json=event))["stored"] == 1
    assert answer(client.get("/users/u/history"))["number"] == 1
    assert answer(client.get("/ready"))


# -- processes -----------------------------------------------------------------------------------


@contextmanager
def serving(*arguments, **environment):
    """A server in a process of its own, at a free port; yields the process and its address."""
    command = [sys.executable, "-m", "recbole_hydra.cli", "serve", "--port=0", *arguments]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, text=True, env={**os.environ, **environment}
    )
    try:
        line = process.stdout.readline()
        assert line.startswith("http://"), line
        address = line.split(": ")[0]
        end = time.monotonic() + 120
        while True:
            try:
                call(f"{address}/ready")
                break
            except OSError:
                assert time.monotonic() < end and process.poll() is None
                time.sleep(0.1)
        yield process, address
    finally:
        process.kill()
        process.wait()


def call(url, body=None):
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url, data, {"content-type": "application/json"})
    with urllib.request.urlopen(request, timeout=60) as response:
        return json.load(response)


def until_it_ends(address, stored, user):
    """Send events until no answer comes; counts those that were acknowledged."""
    try:
        while True:
            call(f"{address}/events", {"user": user, "item": "i5"})
            stored[user] += 1
    except (OSError, urllib.error.URLError):
        pass


def test_no_acknowledged_event_is_lost_to_kill_or_sigterm(models, tmp_path):
    arguments = f"--checkpoint={models / 'first.pth'}", f"--store={tmp_path / 'states'}"
    stored = {"a": 0, "b": 0}
    for how in (signal.SIGKILL, signal.SIGTERM):
        with serving(*arguments) as (process, address):
            threads = [
                threading.Thread(target=until_it_ends, args=(address, stored, user))
                for user in stored
            ]
            for thread in threads:
                thread.start()
            time.sleep(1)
            process.send_signal(how)
            assert process.wait(30) is not None
            for thread in threads:
                thread.join()
        with Recommender(models / "first.pth", tmp_path / "states") as service:
            for user, number in stored.items():
                there = len(service.history(user))
                assert number <= there <= number + 1  # the answer of one may have been lost
                assert there > 0
                stored[user] = there
            best = service.recommend("a", k=3)
            expected = recommend(load_model(models / "first.pth"), ["i5"] * stored["a"], k=3)
            assert [item for item, _ in best] == [item for item, _ in expected]


def test_several_processes_share_users_by_redis(models, redis_url):
    arguments = f"--checkpoint={models / 'first.pth'}", f"--store={redis_url}", "--workers=2"
    with serving(*arguments) as (process, address):
        threads = [
            threading.Thread(
                target=lambda: [
                    call(f"{address}/events", {"user": "a", "item": "i5"}) for _ in range(20)
                ]
            )
            for _ in range(4)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert call(f"{address}/users/a/history")["number"] == 80
        with pytest.raises(urllib.error.HTTPError) as error:
            call(f"{address}/model", {"checkpoint": "second.pth"})
        assert "--watch=FOLDER" in json.load(error.value)["error"]
        process.terminate()
        process.wait(60)


@pytest.fixture
def cluster(monkeypatch):
    """Two nodes on this machine, one CPU each."""
    from ray.cluster_utils import Cluster

    # The nodes of a real cluster have addresses of their own.
    monkeypatch.setenv("TEST_WORKER_NODE_HTTP_PORT", str(free_port()))
    nodes = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
    nodes.add_node(num_cpus=1)
    nodes.wait_for_nodes()
    yield nodes
    nodes.shutdown()


def free_port():
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


@pytest.mark.skipif(not has_ray_serve(), reason="needs current Ray with ray[serve]")
def test_a_cluster_goes_on_without_one_of_its_nodes(models, redis_url, cluster):
    address = f"http://127.0.0.1:{free_port()}"
    command = [sys.executable, "-m", "recbole_hydra.cli", "serve", f"--port={address[17:]}"]
    command += [f"--checkpoint={models / 'first.pth'}", f"--store={redis_url}"]
    command += [f"--ray_address={cluster.address}"]
    done = subprocess.run([*command, "--replicas=2"], capture_output=True, text=True, timeout=180)
    assert done.returncode == 0 and done.stdout.strip().endswith(address), done.stderr[-3000:]
    stored, failed = {"a": 0, "b": 0}, []
    stop = threading.Event()

    def send(user):
        while not stop.is_set():
            try:
                call(f"{address}/events", {"user": user, "item": "i5"})
                stored[user] += 1
            except OSError as error:
                failed.append(error)

    threads = [threading.Thread(target=send, args=(user,)) for user in stored]
    for thread in threads:
        thread.start()
    time.sleep(2)
    cluster.remove_node(list(cluster.worker_nodes)[0], allow_graceful=False)
    before = dict(stored)
    time.sleep(5)
    stop.set()
    for thread in threads:
        thread.join()
    assert all(stored[user] > before[user] for user in stored)  # it goes on
    for user, number in stored.items():
        there = call(f"{address}/users/{user}/history")["number"]
        assert number <= there <= number + len(failed)
    done = subprocess.run([*command, "--replicas=0"], capture_output=True, text=True, timeout=60)
    assert done.stdout.strip().endswith("taken down")  # Ray may speak before
    with pytest.raises(OSError):
        call(f"{address}/users/a/history")


def test_what_cannot_be_started_is_one_line(models, tmp_path, capsys, monkeypatch):
    monkeypatch.delenv("RECBOLE_HYDRA_TOKEN", raising=False)
    checkpoint = f"--checkpoint={models / 'first.pth'}"
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        token, short = tmp_path / "token", tmp_path / "short"
        token.write_text(TOKEN)
        token.chmod(0o644)
        short.write_text("short")
        short.chmod(0o600)
        for arguments, line in (
            (["--port=0"], "--checkpoint is missing"),
            ([checkpoint, f"--port={taken.getsockname()[1]}"], "in use.*choose another --port"),
            ([checkpoint, "--port=70000"], "port must be an integer in 0 .. 65535"),
            ([checkpoint, "--hots=x"], "unknown key 'hots'; did you mean 'host'"),
            ([checkpoint, "--host=0.0.0.0"], "host 0.0.0.0: .*--token_file=FILE"),
            ([checkpoint, "--host=0.0.0.0", f"--token_file={token}"], "others can read.*chmod 600"),
            ([checkpoint, f"--token_file={short}"], "at least 16"),
            ([checkpoint, f"--token_file={tmp_path / 'none'}"], "token_file .*cannot be read"),
            ([checkpoint, f"--token={TOKEN}"], "not on the command line"),
            ([checkpoint, "--workers=2"], "2 processes share users by Redis"),
            ([checkpoint, "--replicas=2"], "--ray_address and --replicas belong together"),
            ([checkpoint, "--ray_address=auto", "--replicas=2"], "share users by Redis|Ray"),
            ([checkpoint, "--workers=none"], "workers must be a positive integer"),
            ([checkpoint, f"--watch={tmp_path / 'none'}"], "watch: there is no folder"),
            ([checkpoint, "--store=mongo://x"], "mongo"),
            ([checkpoint, "--index=best"], "index"),
            ([checkpoint, "--items=none.item", "--port=0"], "none.item"),
            ([f"--checkpoint={models / 'bad.pth'}", "--port=0"], "bad.pth"),
        ):
            assert main(["serve", *arguments]) == 2, arguments
            error = capsys.readouterr().err
            assert error.count("\n") == 1 and re.search(line, error), error


# -- a browser, and whatever else one may send ---------------------------------------------------


@contextmanager
def listening(app):
    """The application at an address, from a thread."""
    import uvicorn

    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        server = uvicorn.Server(uvicorn.Config(app, log_level="error"))
        thread = threading.Thread(target=server.run, args=([listener],))
        thread.start()
        while not server.started:
            time.sleep(0.01)
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        server.should_exit = True
        thread.join()


#: Chooses a user, and clicks the first item twice.
CLICKS = """
<script>
const wait = async done => { while (!done()) await new Promise(go => setTimeout(go, 20)); };
(async () => {
  const rows = id => document.querySelectorAll(`#${id} li`);
  await wait(() => rows("items").length === 10 && at("user").value === "somebody");
  at("user").value = "nobody";
  at("choose").requestSubmit();
  await wait(() => at("fallback").textContent);
  for (const number of ["1", "2"]) {
    document.querySelector("#items button").click();
    await wait(() => at("number").textContent === number && rows("items").length === 10);
  }
  if (getComputedStyle(at("login")).display === "none") document.title = "clicked";
})();
</script>
"""


def test_the_page_in_a_browser_by_clicking(models, tmp_path):
    browser = shutil.which("chromium") or shutil.which("chromium-browser")
    if browser is None:
        assert "CI" not in os.environ, "CI installs Debian's chromium"
        pytest.skip("needs chromium")
    app = make_app(Service(LiveModel(models / "first.pth", MemoryStore())))

    async def with_clicks(scope, receive, send):
        async def send_more(message):
            if message["type"] == "http.response.body":
                message["body"] += CLICKS.encode()
            elif message["type"] == "http.response.start":
                kept = [pair for pair in message["headers"] if pair[0] != b"content-length"]
                message["headers"] = kept
            await send(message)

        is_page = scope["type"] == "http" and scope["path"] == "/"
        await app(scope, receive, send_more if is_page else send)

    with listening(with_clicks) as address:
        command = [browser, "--headless", "--no-sandbox", "--disable-gpu", "--dump-dom"]
        command += [f"--user-data-dir={tmp_path / 'profile'}", "--virtual-time-budget=20000"]
        done = subprocess.run(
            [*command, f"{address}/?user=somebody"], capture_output=True, text=True, timeout=120
        )
        had = [row["item"] for row in call(f"{address}/users/nobody/history")["history"]]
    dom = done.stdout
    assert "<title>clicked</title>" in dom, dom[-2000:]
    assert len(had) == 2
    assert f"<li>{had[1]}</li><li>{had[0]}</li>" in dom  # the newest first
    assert dom.count("data-item=") == 10 and 'role="alert"></p>' in dom
    assert "event " in dom and "recommendations " in dom  # the time that it took
    page = (Path(gate.__file__).parent / "page.html").read_text(encoding="utf-8")
    assert "http://" not in page and "https://" not in page  # no foreign host


def test_no_input_makes_a_5xx(models):
    schemathesis = pytest.importorskip("schemathesis")
    import hypothesis

    app = make_app(Service(LiveModel(models / "first.pth", MemoryStore())))
    with listening(app) as address:
        schema = schemathesis.openapi.from_url(f"{address}/openapi.json")
        seen = set()
        for operation in schema.get_all_operations():
            operation = operation.ok()

            @hypothesis.settings(
                max_examples=25, deadline=None, database=None,
                suppress_health_check=list(hypothesis.HealthCheck),
            )  # fmt: skip
            @hypothesis.given(case=operation.as_strategy())
            def send(case):
                response = case.call()
                assert response.status_code < 500, (case.as_curl_command(), response.text)
                seen.add(f"{case.method} {case.path}")

            send()
    assert len(seen) >= 9
