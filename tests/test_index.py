"""An index of the items: what it finds is ranked exactly, and its file is never another's."""

import logging
import os
import sys
import threading

import numpy as np
import pytest
import torch
from conftest import small

from recbole_hydra import Recommender, load_model, run_recbole_hydra
from recbole_hydra.errors import ConfigError
from recbole_hydra.serving import index as module
from recbole_hydra.serving.index import AIM, ItemIndex, Part, build, open_index
from recbole_hydra.serving.top_k import top_k

pytest.importorskip("faiss")

WIDTH = 16


def grouped(number, seed=0):
    """Items in groups, and users among them, as trained tables have them."""
    generator = np.random.default_rng(seed)
    middles = generator.normal(size=(60, WIDTH))
    items = middles[generator.integers(0, 60, number)] + generator.normal(size=(number, WIDTH)) / 3
    users = middles[generator.integers(0, 60, 200)] + generator.normal(size=(200, WIDTH)) / 3
    return items.astype(np.float32), users.astype(np.float32)


ITEMS, USERS = grouped(12_000)
ALL, DOMAINS = (1, 12_000), [(1, 7_000), (7_000, 12_000)]


def nothing(rows):
    return [(np.empty(0, np.int64), np.empty(0, np.float32))] * rows


@pytest.fixture(scope="module")
def built():
    return build("ivf", ITEMS, ALL, USERS[::2].copy())


def assert_same(got, expected):
    np.testing.assert_array_equal(got[0], expected[0])
    np.testing.assert_allclose(got[1], expected[1], rtol=1e-5, atol=1e-5)


def test_it_finds_nearly_all_of_other_users_best(built):
    assert min(built.recall) >= AIM and built.reach < built.index.nlist / 2
    index, held = ItemIndex("ivf", ITEMS, [built]), USERS[1::2].copy()
    ids, scores = index.top_k(held, 10, ALL, nothing(len(held)))
    truth, exact = top_k(held, ITEMS, 10, ALL)
    found = np.mean([len(set(a) & set(b)) / 10 for a, b in zip(ids, truth, strict=True)])
    assert found >= 0.985
    same = (ids == truth).all(axis=1)
    np.testing.assert_allclose(scores[same], exact[same], rtol=1e-5)
    one_by_one = [index.top_k(row[None], 10, ALL, nothing(1))[0][0] for row in held]
    np.testing.assert_array_equal(np.stack(one_by_one), ids)


@pytest.mark.parametrize("k", [1, 10, 100])
@pytest.mark.parametrize("what", ["repeat bias", "excluded", "worse", "all of it"])
def test_offsets_are_applied_exactly(built, k, what):
    # An index that looks through everything: the rest has to be exact.
    index = ItemIndex("ivf", ITEMS, [Part(ALL, built.index, built.index.nlist, (1, 1))])
    generator, offsets, users = np.random.default_rng(1), [], USERS[:24].copy()
    for i, ranked in enumerate(top_k(users, ITEMS, 60, ALL)[0]):
        far = generator.integers(1, 12_000, i % 7)
        if what == "all of it":
            far = np.arange(1, 12_000)  # more than an index is asked for
        ids = np.unique(np.concatenate([ranked[: 5 * (i % 12)], far]))
        low, high = {"repeat bias": (0, 30), "worse": (-9, 0)}.get(what, (-np.inf, -np.inf))
        amount = np.full(len(ids), -np.inf)
        if low > -np.inf:
            amount = generator.uniform(low, high, len(ids))
        if what == "all of it":
            amount = generator.normal(size=len(ids))
        offsets.append((ids, amount.astype(np.float32)))
    assert_same(index.top_k(users, k, ALL, offsets), top_k(users, ITEMS, k, ALL, offsets))


def test_domains_have_an_index_each(tmp_path):
    path = tmp_path / "m.pth"
    index = open_index("ivf", ITEMS, DOMAINS, path, lambda number: USERS[:number])
    again = open_index("ivf", ITEMS, DOMAINS, path, None)  # from the file: no users are asked for
    for begin, end in DOMAINS:
        ids, scores = index.top_k(USERS, 10, (begin, end), nothing(len(USERS)))
        assert ids.min() >= begin and ids.max() < end
        truth, _ = top_k(USERS, ITEMS, 10, (begin, end))
        assert np.mean(ids == truth) > 0.95
        assert_same(again.top_k(USERS, 10, (begin, end), nothing(len(USERS))), (ids, scores))
    # Of a range that has none, and for more than was measured, all items are looked at.
    assert_same(index.top_k(USERS, 10, (5, 50), nothing(200)), top_k(USERS, ITEMS, 10, (5, 50)))
    whole = top_k(USERS, ITEMS, 101, DOMAINS[0])
    assert_same(index.top_k(USERS, 101, DOMAINS[0], nothing(200)), whole)


def test_where_it_finds_too_few_all_items_are_looked_at(built):
    few = Part(ALL, built.index, 1, (0, 0))  # one cell has fewer than a hundred
    index, users = ItemIndex("ivf", ITEMS, [few]), USERS[:20].copy()
    ids, scores = index.top_k(users, 100, ALL, nothing(20))
    assert (ids > 0).all() and (scores > -np.inf).all()
    sizes = (module.search(built.index, users, 100, 1) >= 0).sum(axis=1)
    assert (sizes < 100).any()
    rows = sizes < 100
    assert_same((ids[rows], scores[rows]), top_k(users[rows], ITEMS, 100, ALL))


def test_auto_is_for_large_ranges(tmp_path, monkeypatch):
    path = tmp_path / "m.pth"
    assert open_index("auto", ITEMS, [ALL], path, None) is None
    assert open_index(None, ITEMS, [ALL], path, None) is None
    monkeypatch.setattr(module, "LARGE", 6_000)
    found = open_index("auto", ITEMS, DOMAINS, path, lambda number: USERS[:number])
    assert list(found.parts) == [(1, 7_000)] and os.listdir(tmp_path) == ["m.pth.ivf.faiss"]


# -- the file -------------------------------------------------------------------------------------


def spoil(file, where):
    data = bytearray(file.read_bytes())
    if where == "cut":
        data = data[: len(data) // 2]
    elif where == "empty":
        data = b""
    else:
        at = {"body": len(data) // 3, "end": len(data) - 40, "mark": len(data) - 3}[where]
        data[at] ^= 0xFF
    file.write_bytes(data)


@pytest.mark.parametrize("where", ["cut", "empty", "body", "end", "mark"])
def test_a_damaged_file_is_built_anew(tmp_path, caplog, where):
    items, path = ITEMS[:1_000], tmp_path / "m.pth"
    open_index("ivf", items, [(1, 1_000)], path, lambda number: USERS)
    file = tmp_path / "m.pth.ivf.faiss"
    whole = file.read_bytes()
    spoil(file, where)
    with caplog.at_level(logging.WARNING):
        found = open_index("ivf", items, [(1, 1_000)], path, lambda number: USERS)
    assert "m.pth.ivf.faiss is damaged; it is built anew" in caplog.text
    assert file.read_bytes() == whole and found.parts  # the same from the same items
    assert os.listdir(tmp_path) == [file.name]


def test_another_table_has_another_index(tmp_path, caplog):
    path, asked = tmp_path / "m.pth", []

    def users(number):
        asked.append(number)
        return USERS

    changed = ITEMS[:1_000].copy()
    changed[7, 3] += 1
    for table in (ITEMS[:1_000], changed, changed):
        with caplog.at_level(logging.INFO):
            open_index("ivf", table, [(1, 1_000)], path, users)
    assert len(asked) == 2 and caplog.text.count("is of another table of items") == 1
    open_index("ivf", changed, [(1, 500), (500, 1_000)], path, users)
    assert len(asked) == 3


def test_a_folder_that_takes_no_file(tmp_path, caplog):
    path = tmp_path / "missing" / "m.pth"
    with caplog.at_level(logging.WARNING):
        found = open_index("ivf", ITEMS[:1_000], [(1, 1_000)], path, lambda number: USERS)
    assert found.parts and "cannot be written (No such file or directory)" in caplog.text


def test_a_full_disk_leaves_nothing(tmp_path, caplog, monkeypatch):
    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(module.os, "fsync", full)
    with caplog.at_level(logging.WARNING):
        open_index("ivf", ITEMS[:1_000], [(1, 1_000)], tmp_path / "m", lambda number: USERS)
    assert "No space left on device" in caplog.text and os.listdir(tmp_path) == []


def test_faiss_reads_the_file_too(tmp_path):
    import faiss

    open_index("ivf", ITEMS[:1_000], [(1, 1_000)], tmp_path / "m", lambda number: USERS)
    assert faiss.read_index(str(tmp_path / "m.ivf.faiss")).ntotal == 999


# -- in a Recommender -----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory):
    folder = str(tmp_path_factory.mktemp("saved"))
    return {
        model: run_recbole_hydra(
            model, "tiny", config_dict=small(model, epochs=1, checkpoint_dir=folder)
        )["best_checkpoint"]
        for model in ("Hydra", "SASRec")
    }


def test_recommendations_are_those_of_all_items(checkpoints):
    model = load_model(checkpoints["Hydra"])
    items = [str(token) for token in Recommender(model).ranking.tokens[1:]]
    for _ in range(2):  # built, and read
        with Recommender(model) as plain, Recommender(model, index="ivf") as service:
            assert plain.ranking.index is None and service.ranking.index.kind == "ivf"
            users = [*plain.trained_users()[:20], "nobody"]
            for service_ in (plain, service):
                service_.observe_many([("u1", items[3]), ("u2", items[5]), ("u2", items[3])])
            for given in (
                {}, {"exclude_history": True}, {"candidates": items[:9]}, {"k": len(items)},
            ):  # fmt: skip
                got, expected = service.recommend_many(users, **given), plain.recommend_many(
                    users, **given
                )  # fmt: skip
                for mine, other in zip(got, expected, strict=True):
                    assert mine.fallback == other.fallback and len(mine) == len(other)
                    np.testing.assert_allclose(
                        [s for _, s in mine], [s for _, s in other], atol=1e-5
                    )
    assert os.path.exists(f"{checkpoints['Hydra']}.ivf.faiss")


def test_auto_ranks_a_small_catalogue_exactly(checkpoints):
    for model in checkpoints.values():
        with Recommender(model, index="auto") as service:
            assert service.ranking.index is None and service.recommend("u1", 3)


def test_a_large_catalogue_is_offered_one(checkpoints, caplog, monkeypatch):
    monkeypatch.setattr("recbole_hydra.serving.ranking.LARGE", 50)
    with caplog.at_level(logging.INFO), Recommender(checkpoints["Hydra"]) as service:
        assert service.ranking.index is None
    assert "items are looked at; index='auto' looks at the nearest" in caplog.text


def test_what_cannot_be_indexed(checkpoints, tmp_path, monkeypatch):
    for index in ("hnws", 5, True, ""):
        with pytest.raises(ConfigError, match="index must be one of auto, ivf, None, got"):
            Recommender(checkpoints["Hydra"], tmp_path / "s", index=index)
    with pytest.raises(ConfigError, match="index: SASRec scores all items by itself, .* leave ind"):
        Recommender(checkpoints["SASRec"], index="ivf")
    monkeypatch.setitem(sys.modules, "faiss", None)
    with pytest.raises(ConfigError, match="faiss is not installed; pip install 'recbole-hydra\\[i"):
        Recommender(checkpoints["Hydra"], tmp_path / "s", index="auto")
    with Recommender(checkpoints["Hydra"], tmp_path / "s") as service:
        assert service.recommend("u1")


# -- beside torch and numba -----------------------------------------------------------------------


def test_it_works_beside_torch_s_and_numba_s_threads(built):
    import faiss

    index, expected = ItemIndex("ivf", ITEMS, [built]), None
    before = torch.get_num_threads(), faiss.omp_get_max_threads()
    found, errors = [], []

    def ask():
        try:
            for _ in range(5):
                found.append(index.top_k(USERS, 10, ALL, nothing(len(USERS)))[0])
                found.append(top_k(USERS, ITEMS, 10, ALL)[0][:0])
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=ask) for _ in range(3)]
    for thread in threads:
        thread.start()
    layer = torch.nn.Linear(512, 512)
    for _ in range(20):  # torch's threads, forward and back, meanwhile
        layer(torch.randn(256, 512)).square().mean().backward()
    for thread in threads:
        thread.join(60)
    assert not errors and len(found) == 30
    expected = found[0]
    assert all(np.array_equal(ids, expected) for ids in found if len(ids))
    assert (torch.get_num_threads(), faiss.omp_get_max_threads()) == before
