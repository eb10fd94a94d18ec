"""Events in, recommendations out: what streams is what `recommend` says of the whole history."""

import random
import threading

import numpy as np
import pytest
import torch
from conftest import small

from recbole_hydra import Recommender, add_items, load_model, recommend, run_recbole_hydra
from recbole_hydra.errors import CheckpointError, ConfigError, DatasetError, StoreError

#: What is trained, by name. Windows are shorter than most histories.
RUNS = {
    "Hydra": ("Hydra", {}),
    "Hydra carried": ("Hydra", {"carry_state": True}),
    "Hydra by distance": ("Hydra", {"carry_state": True, "repeat_bias": "distance"}),
    "Hydra without bias": ("Hydra", {"repeat_bias": "none", "num_layers": 2}),
    "Hydra with a memory": ("Hydra", {"item_memory": "linear"}),
    "LinearMap": ("LinearMap", {}),
    "Mamba4Rec": ("Mamba4Rec", {}),
    "Mamba4Rec carried": ("Mamba4Rec", {"carry_state": True}),
    "SASRec": ("SASRec", {}),
    "GRU4Rec": ("GRU4Rec", {}),
    "FPMC": ("FPMC", {"training_mode": "augmentation"}),
}


@pytest.fixture(scope="module")
def checkpoint_of(train_once):
    """Train a run of the list above, once; returns its checkpoint."""

    def train(name):
        model, changes = RUNS[name]
        return train_once(model, **changes)

    return train


def stores(tmp_path, redis_url):
    return {"memory": None, "lmdb": tmp_path / "states", "redis": redis_url}


def assert_same(got, expected):
    assert len(got) == len(expected)
    np.testing.assert_allclose([s for _, s in got], [s for _, s in expected], rtol=1e-6, atol=1e-5)
    if len({round(score, 4) for _, score in expected}) == len(expected):
        assert [item for item, _ in got] == [item for item, _ in expected]


def ids_of(model):
    vocabulary = model.checkpoint["vocabulary"]
    fields = vocabulary.uid_field, vocabulary.iid_field
    return [[str(x) for x in vocabulary.field2id_token[field][1:]] for field in fields]


@pytest.mark.parametrize("kind", ["memory", "lmdb", "redis"])
@pytest.mark.parametrize("name", [name for name in RUNS if name != "FPMC"])
def test_streaming_is_the_whole_history(name, kind, checkpoint_of, tmp_path, redis_url):
    model = load_model(checkpoint_of(name))
    users, items = ids_of(model)
    rng = random.Random(0)
    people = [*users[:4], "new one", "new two"]
    with Recommender(model, stores(tmp_path, redis_url)[kind]) as service:
        had = {user: service.history(user) for user in people}
        for step in range(25):
            if step % 5 == 4:
                events = [(rng.choice(people), rng.choice(items)) for _ in range(8)]
                assert service.observe_many(events) == 8
            else:
                events = [(rng.choice(people), rng.choice(items))]
                service.observe(*events[0])
            for user, item in events:
                had[user].append(item)
            user = events[0][0]
            assert service.history(user) == had[user]
            for out in (False, True):
                expected = recommend(model, had[user], 5, exclude_history=out)
                assert_same(service.recommend(user, 5, exclude_history=out), expected)
                assert_same(service.recommend_to_history(had[user], 5, out), expected)
        many = service.recommend_many(people, 3)
        for user, got in zip(people, many, strict=True):
            assert_same(got, service.recommend(user, 3))


@pytest.mark.parametrize("name", ["Hydra", "Hydra carried", "SASRec"])
def test_users_of_the_training_are_there_from_the_start(name, checkpoint_of):
    model = load_model(checkpoint_of(name))
    users, _ = ids_of(model)
    with Recommender(model) as service:
        lazily = [service.recommend(user, 4) for user in users]
        assert len(service.store) == 0
        assert service.load_users() == len(users) == len(service.store)
        assert service.load_users() == 0
        for user, before, after in zip(
            users, lazily, service.recommend_many(users, 4), strict=True
        ):
            assert_same(before, recommend(model, user, 4))
            assert_same(after, before)


@pytest.mark.parametrize("name", ["Hydra", "Hydra carried"])
def test_what_was_loaded_and_what_came_lazily_go_on_alike(name, checkpoint_of):
    users, items = ids_of(load_model(checkpoint_of(name)))
    with Recommender(checkpoint_of(name)) as early, Recommender(checkpoint_of(name)) as late:
        early.load_users()
        for service in (early, late):
            service.observe_many([(users[3], items[1]), (users[3], items[2])])
        assert early.history(users[3]) == late.history(users[3])
        assert_same(early.recommend(users[3]), late.recommend(users[3]))


def test_popular_items_for_those_of_whom_nothing_is_known(checkpoint_of, tmp_path):
    model = load_model(checkpoint_of("Hydra"))
    histories, (_, items) = model.checkpoint["histories"], ids_of(model)
    counts = np.bincount(histories["items"].numpy(), minlength=len(items) + 1)
    with Recommender(model) as service:
        got = service.recommend("nobody", 3)
        assert got.fallback == "popular" and len(got) == 3
        assert [score for _, score in got] == sorted(counts.tolist(), reverse=True)[:3]
        assert service.recommend("nobody", 2, candidates=[items[0], items[5]]).fallback
        service.observe("nobody", items[0])
        assert service.recommend("nobody", 3).fallback is None


def test_candidates(checkpoint_of):
    model = load_model(checkpoint_of("Hydra"))
    users, items = ids_of(model)
    with Recommender(model) as service:
        whole = dict(service.recommend(users[0], len(items)))
        got = service.recommend(users[0], 3, candidates=items[4:9])
        assert_same(got, sorted(((i, whole[i]) for i in items[4:9]), key=lambda x: -x[1])[:3])
        assert len(service.recommend(users[0], 10, candidates=items[:2])) == 2
        with pytest.raises(DatasetError, match="candidates: item_id 'x': the model does not know"):
            service.recommend(users[0], 3, candidates=["x"])


def test_similar_items(checkpoint_of):
    model = load_model(checkpoint_of("Hydra"))
    _, items = ids_of(model)
    table = model.item_table.detach().numpy()[1:]
    unit = table / np.linalg.norm(table, axis=1, keepdims=True)
    with Recommender(model) as service:
        got = service.similar(items[3], 4)
    cosines = unit @ unit[3]
    cosines[3] = -1
    np.testing.assert_allclose([s for _, s in got], np.sort(cosines)[::-1][:4], atol=1e-5)
    assert items[3] not in dict(got)


# -- what goes wrong changes nothing --------------------------------------------------------------


@pytest.mark.parametrize(
    "events, message",
    [
        ([("u", "i1"), ("u", "nothing")], "event 1: item_id 'nothing': the model does not know"),
        ([("u", "i1"), ("u",)], "event 1: must be a pair \\(user, item\\), got \\('u',\\)"),
        ([("u", "i1"), "ui"], "event 1: must be a pair"),
        ([("u", "i1"), None], "event 1: must be a pair"),
        ([(None, "i1")], "event 0: None is no user id"),
        ([("", "i1")], "event 0: '' is no user id"),
        ([(True, "i1")], "event 0: True is no user id"),
        ([("u", "[PAD]")], "event 0: item_id '\\[PAD\\]': the model does not know"),
        ([("u", None)], "event 0: item_id None"),
        ("ui", "events: must be a list of pairs \\(user, item\\), got 'ui'"),
        (None, "events: must be a list of pairs"),
        ([b"1\x05"], "event 0: must be a pair"),
        ([np.zeros((3, 3))], "event 0: must be a pair"),
        ([("u", "i1"), ("u", ["i1"])], "event 1: item_id \\['i1'\\]"),
    ],
)
def test_of_events_with_a_malformed_one_none_is_taken_in(checkpoint_of, events, message):
    with Recommender(checkpoint_of("Hydra carried")) as service:
        with pytest.raises(DatasetError, match=message):
            service.observe_many(events)
        assert service.history("u") == [] and len(service.store) == 0


def test_an_unknown_item_changes_nothing(checkpoint_of):
    with Recommender(checkpoint_of("Hydra carried")) as service:
        service.observe("u", "i1")
        before = service.recommend("u")
        with pytest.raises(DatasetError, match="item_id 'x': the model does not know this item"):
            service.observe("u", "x")
        assert service.recommend("u") == before and service.history("u") == ["i1"]


@pytest.mark.parametrize("k", [0, -1, 10_000, 2.5, True, "3", None])
def test_k_out_of_range(checkpoint_of, k):
    with Recommender(checkpoint_of("Hydra")) as service:
        for ask in (lambda: service.recommend("u", k), lambda: service.similar("i1", k)):
            with pytest.raises(ConfigError, match="^k must be in 1 .. "):
                ask()


def test_histories_that_are_none(checkpoint_of):
    with Recommender(checkpoint_of("Hydra")) as service:
        for history, message in (
            ([], "history: it is empty"),
            ("i1", "history: must be a list of item ids, got 'i1'"),
            (None, "history: must be a list"),
            (["i1", "x"], "history: item_id 'x'"),
        ):
            with pytest.raises(DatasetError, match=message):
                service.recommend_to_history(history)


@pytest.mark.parametrize(
    "name, reading, message",
    [
        ("Hydra", "carry", "carry is for a model trained with carry_state: True; .* use window"),
        ("SASRec", "carry", "SASRec has no state that goes on, as Hydra and .* use window"),
        ("Hydra", "windows", "reading must be one of window, carry, got 'windows'"),
    ],
)
def test_readings_that_a_model_does_not_have(checkpoint_of, tmp_path, name, reading, message):
    for store in (None, tmp_path / "s"):  # which is free again afterwards
        with pytest.raises(ConfigError, match=message):
            Recommender(checkpoint_of(name), store, reading=reading)


def test_a_carried_model_can_be_read_by_windows(checkpoint_of):
    with Recommender(checkpoint_of("Hydra carried"), reading="window") as service:
        assert service.reading == "window"
        for item in ("i1", "i2", "i3", "i4", "i5", "i6", "i7", "i8"):
            service.observe("u", item)
        last = ["i3", "i4", "i5", "i6", "i7", "i8"]
        assert_same(service.recommend("u"), service.recommend_to_history(last))


def test_files_that_are_no_checkpoints(tmp_path):
    (tmp_path / "x.pth").write_bytes(b"nothing")
    for path in (tmp_path / "x.pth", tmp_path / "missing.pth"):
        with pytest.raises(CheckpointError):
            Recommender(path, tmp_path / "states")
    assert not (tmp_path / "states").exists()


def test_text_is_no_list(checkpoint_of):
    with Recommender(checkpoint_of("Hydra")) as service:
        with pytest.raises(DatasetError, match="users: must be a list of user ids, got '12'"):
            service.recommend_many("12")
        for candidates in ("i1", 5):
            with pytest.raises(DatasetError, match="candidates: must be a list of item ids"):
                service.recommend("u", 3, candidates=candidates)
        for history in ("i1", None, {"i1": 1}):
            with pytest.raises(DatasetError, match="history: must be a list of item ids"):
                service.recommend_to_history(history)


@pytest.mark.parametrize("user", ["\ud800", "x" * 401], ids=["surrogate", "long"])
@pytest.mark.parametrize("kind", ["memory", "lmdb", "redis"])
def test_users_that_no_store_takes(checkpoint_of, tmp_path, redis_url, kind, user):
    with Recommender(checkpoint_of("Hydra"), stores(tmp_path, redis_url)[kind]) as service:
        for ask in (
            lambda: service.observe_many([("a", "i1"), (user, "i2")]),
            lambda: service.recommend(user),
        ):
            with pytest.raises(StoreError, match="is no Unicode text|longer than 400 bytes"):
                ask()
        assert service.history("a") == [] and len(service.store) == 0


@pytest.mark.parametrize("kind", ["memory", "lmdb", "redis"])
def test_after_closing_every_call_says_so(checkpoint_of, tmp_path, redis_url, kind):
    service = Recommender(checkpoint_of("Hydra"), stores(tmp_path, redis_url)[kind])
    service.close()
    service.close()
    for ask in (
        lambda: service.observe("u", "i1"),
        lambda: service.recommend("u"),
        lambda: service.recommend_to_history(["i1"]),
        lambda: service.history("u"),
        lambda: service.load_users(),
        lambda: service.similar("i1"),
    ):
        with pytest.raises(StoreError, match="this Recommender was closed; make another"):
            ask()


def test_items_stay_while_a_model_is_served(checkpoint_of):
    model = load_model(checkpoint_of("Hydra"))
    Recommender(model)
    model.item_text = object()  # as of a model that takes new items
    with pytest.raises(ConfigError, match="add_items: a Recommender uses this model"):
        add_items(model, {"new": {"title": "ink"}})


def test_models_that_read_no_history_are_refused(tmp_path):
    given = small("BPR", embedding_size=8)
    path = run_recbole_hydra("BPR", "tiny", config_dict=given)["best_checkpoint"]
    with pytest.raises(ConfigError, match="BPR: reads no history, .* use recommend\\(model, user"):
        Recommender(path, tmp_path / "states")
    with pytest.raises(CheckpointError, match="Linear: is no model of load_model"):
        Recommender(torch.nn.Linear(1, 1))


def test_models_that_read_the_user(checkpoint_of):
    model = load_model(checkpoint_of("FPMC"))
    users, _ = ids_of(model)
    with Recommender(model) as service:
        for user in users[:9]:
            assert_same(service.recommend(user, 5), recommend(model, user, 5))


def test_states_do_not_keep_those_of_a_whole_block(checkpoint_of):
    with Recommender(checkpoint_of("Hydra carried")) as service:
        service.observe_many([(f"u{i}", "i1") for i in range(300)])
        assert all(e.state.base is None for e in service.store.read(["u0", "u299"], 0))


# -- another model --------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["lmdb", "redis"])
@pytest.mark.parametrize(
    "old, new",
    [
        ("Hydra carried", "Mamba4Rec carried"),
        ("Hydra carried", "Hydra"),
        ("Hydra", "Hydra carried"),
        ("Hydra", "SASRec"),
    ],
)
def test_a_store_of_another_model(old, new, kind, checkpoint_of, tmp_path, redis_url):
    """Refused, unless its histories are to be read anew; then they are."""
    where = stores(tmp_path, redis_url)[kind]
    model = load_model(checkpoint_of(new))
    users, items = ids_of(model)
    with Recommender(checkpoint_of(old), where) as service:
        service.observe_many([("u", item) for item in items[:9]])
        service.observe(users[0], items[0])
        had = {user: service.history(user) for user in ("u", users[0])}
    with pytest.raises(StoreError, match="holds states of another model, .* recompute=True"):
        Recommender(model, where)
    with Recommender(model, where, recompute=True) as service:
        for user, history in had.items():
            assert service.history(user) == history
            assert_same(service.recommend(user), recommend(model, history))
            service.observe(user, items[11])
            assert_same(service.recommend(user), recommend(model, [*history, items[11]]))
    with Recommender(model, where) as service:  # it is this one's now
        assert service.history("u")[-1] == items[11]


def test_the_same_model_by_another_reading(checkpoint_of, tmp_path):
    path = checkpoint_of("Hydra carried")
    with Recommender(path, tmp_path / "s", reading="window") as service:
        service.observe_many([("u", f"i{i}") for i in range(1, 10)])
    with pytest.raises(StoreError, match="holds states of another model, or reading"):
        Recommender(path, tmp_path / "s")
    with Recommender(path, tmp_path / "s", recompute=True) as service:
        whole = [f"i{i}" for i in range(1, 10)]
        assert_same(service.recommend("u"), service.recommend_to_history(whole))
        service.observe("u", "i3")
        assert_same(service.recommend("u"), service.recommend_to_history([*whole, "i3"]))


def test_items_that_the_new_model_does_not_know_are_left_out(checkpoint_of, make_dataset, tmp_path):
    rng = random.Random(0)
    rows = [(f"u{u}", f"i{rng.randint(1, 9)}", t) for u in range(40) for t in range(8)]
    data_path = make_dataset("few", rows)
    changes = {"carry_state": True, "data_path": data_path}
    few = run_recbole_hydra("Hydra", "few", config_dict=small("Hydra", **changes))
    with Recommender(checkpoint_of("Hydra carried"), tmp_path / "s") as service:
        service.observe_many([("someone", item) for item in ("i3", "i20", "i4", "i21")])
    model = load_model(few["best_checkpoint"])
    with Recommender(model, tmp_path / "s", recompute=True) as service:
        assert service.history("someone") == ["i3", "i4"]
        assert_same(service.recommend("someone", 5), recommend(model, ["i3", "i4"], 5))
        service.observe("someone", "i5")
        assert_same(service.recommend("someone", 5), recommend(model, ["i3", "i4", "i5"], 5))
    with Recommender(checkpoint_of("Hydra carried"), tmp_path / "s", recompute=True) as service:
        assert service.history("someone") == ["i3", "i20", "i4", "i21", "i5"]


# -- several at once ------------------------------------------------------------------------------


def test_two_servers_share_users(checkpoint_of, redis_url):
    """An event that one takes in is there for the other; events at once are both there."""
    model = load_model(checkpoint_of("Hydra carried"))
    _, items = ids_of(model)
    first, second = Recommender(model, redis_url), Recommender(model, redis_url)
    first.observe("u", items[0])
    assert second.history("u") == [items[0]]

    def send(service, own):
        for item in own:
            service.observe("u", item)

    parts = (first, items[1:13]), (second, items[13:25])
    senders = [threading.Thread(target=send, args=part) for part in parts]
    for sender in senders:
        sender.start()
    for sender in senders:
        sender.join()
    history = first.history("u")
    assert sorted(history) == sorted(items[:25])
    assert_same(second.recommend("u"), recommend(model, history))
    first.close()
    second.close()


def test_threads_share_a_recommender(checkpoint_of):
    model = load_model(checkpoint_of("Mamba4Rec carried"))
    _, items = ids_of(model)
    with Recommender(model) as service:

        def send(name):
            for i in range(20):
                service.observe(name, items[i])
                service.recommend("shared", 3)
                service.observe("shared", items[i])

        threads = [threading.Thread(target=send, args=(f"t{n}",)) for n in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(service.history("shared")) == 80
        assert_same(service.recommend("shared"), recommend(model, service.history("shared")))
        for n in range(4):
            assert service.history(f"t{n}") == items[:20]


def test_an_entry_has_the_same_size_whatever_the_history(checkpoint_of):
    with Recommender(checkpoint_of("Hydra carried")) as service:
        sizes = set()
        for length in (1, 10, 3000):
            service.observe_many([(f"u{length}", f"i{1 + i % 20}") for i in range(length)])
            sizes.add(len(service.store.read([f"u{length}"], 0)[0].packed()))
        assert sizes == {service.bytes_per_user}
    with Recommender(checkpoint_of("Hydra")) as service:
        assert service.bytes_per_user < 50


def test_a_large_catalogue_is_looked_at_through_its_copy(checkpoint_of, monkeypatch):
    from recbole_hydra.serving import ranking

    model = load_model(checkpoint_of("Hydra"))
    service = Recommender(model)
    user = service.trained_users()[3]
    how = {"k": 7, "exclude_history": True}
    expected = service.recommend(user), service.recommend(user, **how)
    narrowed = service.recommend(user, 3, candidates=["i5", "i9", "i11", "i20"])
    monkeypatch.setattr(ranking, "LARGE", 10)
    assert_same(service.recommend(user), expected[0])
    assert_same(service.recommend(user, **how), expected[1])
    assert_same(service.recommend(user, 3, candidates=["i5", "i9", "i11", "i20"]), narrowed)
    assert service.ranking._copy is not None
    for found, one in zip(
        service.recommend_many([user] * 5, **how), [expected[1]] * 5, strict=True
    ):
        assert_same(found, one)
