"""Users' states in memory, in a folder, in Redis: the same tests for all."""

import multiprocessing
import os
import signal
import threading
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recbole_hydra.errors import StoreError
from recbole_hydra.serving.stores import Change, Entry, MemoryStore, open_store

STATE = 5


@pytest.fixture(params=["memory", "lmdb", "redis"])
def place(request, tmp_path):
    """Where a store is; opened twice it is the same one, but for memory."""
    if request.param == "redis":
        return request.getfixturevalue("redis_url")
    return "memory://" if request.param == "memory" else str(tmp_path / "states.lmdb")


@pytest.fixture
def store(place):
    opened = open_store(place)
    yield opened
    opened.close()


def change(user, before, items, fill=0.0, model=b"m" * 16):
    count = before + len(items)
    state = np.full(STATE, fill, np.float32)
    entry = Entry(count, count, model, 3, state, np.empty(0, np.int32))
    return Change(user, before, np.array(items, np.int32), entry)


def test_nothing_is_known_at_first(store):
    assert store.read(["a", "b"], 5) == [None, None]
    assert store.read([], 5) == [] and store.write([]) == []
    assert len(store) == 0 and list(store.users()) == [] and store.history("a").tolist() == []
    assert store.model() == b"" and store.tokens() == []


def test_what_was_written_is_read(store):
    assert store.write([change("a", 0, [4, 5], 1.5), change("ü b/c", 0, [6], 2.5)]) == [True, True]
    first, none, second = store.read(["a", "nobody", "ü b/c"], 10)
    assert none is None
    assert (first.count, first.position, first.stack, first.model) == (2, 2, 3, b"m" * 16)
    assert first.state.tolist() == [1.5] * STATE and first.state.dtype == np.float32
    assert first.recent.tolist() == [4, 5] and second.recent.tolist() == [6]
    assert sorted(store.users()) == ["a", "ü b/c"] and len(store) == 2


def test_a_history_grows_at_its_end(store):
    rng, all_items = np.random.default_rng(0), []
    for length in (1, 62, 1, 1, 63, 64, 65, 200, 1):  # chunks of 64 that fill, or nearly
        items = rng.integers(0, 2**31 - 1, size=length).tolist()
        assert store.write([change("a", len(all_items), items)]) == [True]
        all_items += items
        assert store.history("a").tolist() == all_items
        for recent in (1, 50, 64, 1000):
            assert store.read(["a"], recent)[0].recent.tolist() == all_items[-recent:]
    assert len(store) == 1


def test_who_is_late_changes_nothing(store):
    store.write([change("a", 0, [1, 2])])
    assert store.write([change("a", 0, [9]), change("b", 0, [7])]) == [False, True]
    assert store.write([change("a", 1, [9])]) == [False]
    assert store.write([change("a", 3, [9])]) == [False]
    assert store.history("a").tolist() == [1, 2] and store.read(["a"], 0)[0].count == 2


def test_a_state_alone_can_change(store):
    store.write([change("a", 0, [1, 2], 1.0)])
    assert store.write([change("a", 2, [], 8.0, b"n" * 16)]) == [True]
    entry = store.read(["a"], 2)[0]
    assert (entry.count, entry.model, entry.state[0]) == (2, b"n" * 16, 8.0)
    assert entry.recent.tolist() == [1, 2]


def test_items_have_numbers_once_and_for_all(store):
    assert store.numbers(["x", "y", "x"]).tolist() == [0, 1, 0]
    assert store.numbers(["z", "y"]).tolist() == [2, 1]
    assert store.tokens() == ["x", "y", "z"]
    many = [f"item {i}" for i in range(12_000)]
    assert store.numbers(many).tolist() == list(range(3, 12_003))


def test_the_model_is_remembered(store):
    assert store.model(replace=b"\0" * 16) == b"\0" * 16
    assert store.model() == b"\0" * 16


def test_users_whose_ids_begin_alike_are_apart(store):
    users = ["1", "11", "1\0", "1\0\0\0\0\1", "111"]
    for i, user in enumerate(users):
        store.write([change(user, 0, [i] * (i + 70))])
    for i, user in enumerate(users):
        assert store.history(user).tolist() == [i] * (i + 70)


def test_an_id_too_long_for_a_key_is_refused(store):
    with pytest.raises(StoreError, match="longer than 400 bytes"):
        store.write([change("x" * 401, 0, [1])])
    store.write([change("x" * 400, 0, [1])])
    assert len(store) == 1


@settings(max_examples=25, deadline=None)
@given(st.lists(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 9)), max_size=9), max_size=20))
def test_any_batches_against_lists(batches):
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        for opened in (MemoryStore(), open_store(os.path.join(folder, "s"))):
            expected = {}
            for batch in batches:
                rows = {}
                for user, item in batch:
                    rows.setdefault(f"u{user}", []).append(item)
                changes = [change(u, len(expected.get(u, [])), new) for u, new in rows.items()]
                assert all(opened.write(changes))
                for user, new in rows.items():
                    expected.setdefault(user, []).extend(new)
            assert {u: opened.history(u).tolist() for u in opened.users()} == expected
            opened.close()


# -- opened again, and by others ------------------------------------------------------------------


def test_all_is_there_after_closing(place):
    if place == "memory://":
        return  # gone with the process, as it says
    with_items = open_store(place)
    with_items.numbers(["x", "y"])
    with_items.write([change("a", 0, list(range(100)), 4.0)])
    with_items.model(replace=b"k" * 16)
    with_items.close()
    with_items.close()
    again = open_store(place)
    assert again.history("a").tolist() == list(range(100)) and again.model() == b"k" * 16
    assert again.tokens() == ["x", "y"] and again.numbers(["y"]).tolist() == [1]
    again.close()


def test_two_servers_on_one_redis_lose_nothing(redis_url):
    """Both write events of the same users at once; each tries again when the other was faster."""

    def serve(name):
        store = open_store(redis_url)
        for i in range(60):
            user = f"u{i % 3}"
            while True:
                entry = store.read([user], 0)[0]
                before = 0 if entry is None else entry.count
                if store.write([change(user, before, [name * 1000 + i])])[0]:
                    break
        store.close()

    servers = [threading.Thread(target=serve, args=(name,)) for name in (1, 2)]
    for server in servers:
        server.start()
    for server in servers:
        server.join()
    store = open_store(redis_url)
    for user in range(3):
        items = store.history(f"u{user}").tolist()
        assert store.read([f"u{user}"], 0)[0].count == len(items) == 40
        for name in (1, 2):
            mine = [item for item in items if item // 1000 == name]
            assert mine == sorted(mine) and len(mine) == 20
    store.close()


def test_a_folder_is_one_process_s(tmp_path):
    first = open_store(tmp_path / "s")
    with pytest.raises(StoreError, match="is in use, by another process or by this one; .* Redis"):
        open_store(tmp_path / "s")
    first.close()
    open_store(tmp_path / "s").close()


def test_a_redis_that_lost_its_data_takes_nothing_more(redis_url):
    """Numbers of items that another server gives from then on mean other items."""
    import redis

    store = open_store(redis_url)
    store.numbers(["x", "y"])
    store.write([change("a", 0, [0, 1])])
    redis.Redis.from_url(redis_url).flushdb()
    for ask in (lambda: store.write([change("b", 0, [1])]), lambda: store.numbers(["z"])):
        with pytest.raises(StoreError, match="the data that were there are gone"):
            ask()
    again = open_store(redis_url)
    assert again.numbers(["y"]).tolist() == [0] and len(again) == 0


def test_a_redis_without_memory_takes_none_of_a_block(redis_url):
    import redis

    store, client = open_store(redis_url), redis.Redis.from_url(redis_url)
    client.config_set("maxmemory", client.info("memory")["used_memory"] + 300_000)
    try:
        count = 0
        with pytest.raises(StoreError, match="Redis does not do its work"):
            while True:
                store.write([change(f"u{count}-{i}", 0, [1] * 500) for i in range(100)])
                count += 1
    finally:
        client.config_set("maxmemory", 0)
    assert len(store) == 100 * count == len(list(store.users()))


def _write_until_killed(folder, acknowledged):
    store = open_store(folder)
    entry = store.read(["a"], 0)[0]
    count = 0 if entry is None else entry.count
    while True:
        items = list(range(count, count + 3))
        store.write([change("a", count, items, float(count))])
        count += 3
        acknowledged.value = count


def test_a_kill_loses_no_acknowledged_event(tmp_path):
    folder, context = str(tmp_path / "s"), multiprocessing.get_context("spawn")
    for _ in range(4):
        acknowledged = context.Value("q", 0)
        writer = context.Process(target=_write_until_killed, args=(folder, acknowledged))
        writer.start()
        end = time.monotonic() + 60
        while acknowledged.value < 100:
            assert time.monotonic() < end and writer.is_alive()
            time.sleep(0.003)
        os.kill(writer.pid, signal.SIGKILL)
        writer.join()
        store = open_store(folder)
        entry, items = store.read(["a"], 0)[0], store.history("a").tolist()
        assert items == list(range(entry.count)) and entry.count >= acknowledged.value
        assert entry.state[0] == entry.count - 3  # of the same transaction
        store.close()


# -- what is none ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "where, message",
    [
        ("rediss+x://a", "store: rediss\\+x:// is not known"),
        ("reddis://localhost", "reddis:// is not known; did you mean 'redis'"),
        ("postgres://localhost/x", "postgres:// is not known; give a folder, or redis://"),
        ("redis://127.0.0.1:1/0", "redis://127.0.0.1:1/0: Redis does not do its work"),
        ("redis://me:secret@127.0.0.1:1/0", "^127.0.0.1:1/0: Redis does not"),
        ("redis://127.0.0.1:1/0?password=secret", "^redis://127.0.0.1:1/0: Redis does not"),
        ("redis://127.0.0.1:1/0?foo=bar", "127.0.0.1:1/0: "),
        ("", "store: '' is no name of a folder"),
        ("a\0b", "is no name of a folder"),
        ("x" * 300, "cannot be written .File name too long"),
        ("redis://localhost:port/0", "is no address of Redis"),
    ],
)
def test_addresses_that_are_none(where, message):
    with pytest.raises(StoreError, match=message) as caught:
        open_store(where)
    assert "\n" not in str(caught.value) and "secret" not in str(caught.value)


def test_folders_that_are_none(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(StoreError, match="a store is a folder, and this is a file"):
        open_store(tmp_path / "file")
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "a.jpg").write_text("x")
    with pytest.raises(StoreError, match="holds no states of recbole_hydra"):
        open_store(tmp_path / "photos")
    assert [p.name for p in (tmp_path / "photos").iterdir()] == ["a.jpg"]
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "data.mdb").write_bytes(b"no database" * 1000)
    with pytest.raises(StoreError, match="is no store, or is damaged"):
        open_store(tmp_path / "broken")


def test_a_newer_format_is_refused(tmp_path, redis_url):
    import lmdb
    import redis

    open_store(tmp_path / "s").close()
    with lmdb.open(str(tmp_path / "s"), max_dbs=5) as env, env.begin(write=True) as txn:
        txn.put(b"format", b"2", db=env.open_db(b"meta", txn))
    redis.Redis.from_url(redis_url).set("recbole_hydra:format", 2)
    for where in (tmp_path / "s", redis_url):
        with pytest.raises(StoreError, match="written by a newer version .*format 2.* knows 1"):
            open_store(where)


def test_another_program_s_lmdb_is_refused(tmp_path):
    import lmdb

    with lmdb.open(str(tmp_path / "s"), max_dbs=5) as env, env.begin(write=True) as txn:
        txn.put(b"theirs", b"x", db=env.open_db(b"meta", txn))
    with pytest.raises(StoreError, match="holds no states of recbole_hydra"):
        open_store(tmp_path / "s")


def test_a_full_disk_is_one_line_and_changes_nothing(tmp_path, monkeypatch):
    from recbole_hydra.serving.stores import embedded

    monkeypatch.setattr(embedded, "MAP_SIZE", 1 << 17)  # as full as a disk
    store = open_store(tmp_path / "s")
    count = 0
    with pytest.raises(StoreError, match="cannot be written .*MAP_FULL"):
        while True:
            store.write([change("a", count, [1] * 1000)])
            count += 1000
    assert len(store.history("a")) == count == store.read(["a"], 0)[0].count
    store.close()


def test_what_is_not_installed_is_named(tmp_path, monkeypatch):
    import sys

    for module in ("lmdb", "recbole_hydra.serving.stores.embedded"):
        monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(StoreError, match="is not installed; pip install .*serve"):
        open_store(tmp_path / "s")


def test_a_store_that_is_neither_folder_nor_address_is_named():
    with pytest.raises(StoreError, match="store: must be a folder or an address, got 5"):
        open_store(5)
