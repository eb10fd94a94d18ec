"""Co-occurrence on large and on flat catalogues: bounded, said in the log, shown where asked."""

import logging

import numpy as np
import pytest
import torch
from conftest import small
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.sparse import coo_array, csr_array

import recbole_hydra.settings.options.item_initialization as module
from recbole_hydra.data import prepare_data
from recbole_hydra.settings.config import Config
from recbole_hydra.settings.options.item_initialization import (
    POWER,
    cooccurrence_counts,
    initialize_items,
    item_vectors,
    randomized_left_part,
)


def flat_counts(items, interactions, seed=0):
    """Of items drawn one after the other at random: no direction stands out."""
    drawn = np.random.default_rng(seed).integers(1, items, interactions)
    pairs = np.concatenate([drawn[:-1], drawn[:-2]]), np.concatenate([drawn[1:], drawn[2:]])
    weights = np.repeat([1.0, 0.5], [interactions - 1, interactions - 2])
    counts = coo_array((weights, pairs), shape=(items, items)).tocsr()
    return counts + counts.T


def group_counts(items, groups, seed=0):
    """Of items that stand near those of their own group: as many directions as groups."""
    generator = np.random.default_rng(seed)
    group = np.arange(items) % groups
    row, column = generator.integers(0, items, (2, 60 * items))
    near = (group[row] == group[column]) & (row != column)
    counts = coo_array((np.ones(near.sum()), (row[near], column[near])), shape=(items,) * 2).tocsr()
    return csr_array(counts + counts.T)


def alike(first, second):
    """How far the geometry of two sets of vectors agrees: 1 where it is the same."""
    grams = [(v @ v.T).ravel() for v in (first, second)]
    return np.corrcoef(*grams)[0, 1]


@settings(deadline=None, max_examples=30)
@given(
    rows=st.integers(5, 60), rank=st.integers(1, 5), more=st.integers(0, 4), seed=st.integers(0, 99)
)
def test_the_randomized_decomposition_is_exact_up_to_the_rank(rows, rank, more, seed):
    generator = np.random.default_rng(seed)
    factors = generator.standard_normal((2, rows, rank))
    matrix = csr_array(factors[0] @ factors[1].T)
    left, values = randomized_left_part(matrix, rank + more)
    expected = np.linalg.svd(matrix.toarray())
    np.testing.assert_allclose(values[::-1], expected[1][:rank], rtol=1e-6)
    assert len(values) == rank and left.shape == (rows, rank)
    u, s = expected[0][:, :rank], expected[1][:rank]
    np.testing.assert_allclose((left * values) @ left.T, (u * s) @ u.T, atol=1e-6 * s[0])


def test_what_is_large_gets_what_arpack_would_give(monkeypatch, caplog):
    caplog.set_level(logging.INFO)
    counts = group_counts(900, groups=12)
    exact = item_vectors(counts, 8)
    assert "randomized" not in caplog.text
    monkeypatch.setattr(module, "MOST_WORK", 0)
    quick = item_vectors(counts, 8)
    assert "by a randomized decomposition in 6 passes" in caplog.text
    assert quick.shape == exact.shape and alike(exact, quick) > 0.95
    np.testing.assert_array_equal(quick, item_vectors(counts, 8))


def test_what_arpack_cannot_separate_is_not_waited_for(monkeypatch):
    calls = []
    monkeypatch.setattr(module, "RESTARTS", 1)
    monkeypatch.setattr(module, "randomized_left_part", lambda *a: calls.append(a) or original(*a))
    vectors = item_vectors(flat_counts(2000, 40_000), 32)
    assert calls and vectors.shape == (2000, 32) and np.isfinite(vectors).all()


original = randomized_left_part


@pytest.mark.parametrize("items, width", [(60_000, 64), (3_000, 1_200)])
def test_work_is_bounded_by_the_size_of_the_catalogue_and_of_the_vectors(monkeypatch, items, width):
    products = []

    def counted(matrix, number, show_progress):
        products.append(matrix.nnz * number)
        assert matrix.dtype == np.float32
        return np.zeros((items, number), np.float32), np.zeros(number)

    monkeypatch.setattr(module, "randomized_left_part", counted)
    monkeypatch.setattr(module, "MOST_OF_A_PASS", 2e7)
    monkeypatch.setattr("scipy.sparse.linalg.svds", None)  # ARPACK is not tried
    item_vectors(flat_counts(items, 100_000), width)
    assert 0 < products[0] <= 2e7


def test_no_pair_above_chance_is_no_vector(monkeypatch):
    items = 700
    counts = csr_array(np.eye(items) * 3.0)  # every item near itself alone
    np.testing.assert_array_equal(item_vectors(csr_array((items, items)), 8), 0)
    assert np.isfinite(item_vectors(counts, 8)).all()


def tiny(**changes):
    return prepare_data(Config("Hydra", "tiny", config_dict=small("Hydra", **changes)))


@pytest.mark.parametrize("mode", ["autoregressive", "augmentation"])
def test_of_a_long_log_a_sample_is_read(mode):
    split = tiny(training_mode=mode).splits[0]
    everything = cooccurrence_counts(split)
    assert (cooccurrence_counts(split, len(split.inter_feat)) != everything).nnz == 0
    half = cooccurrence_counts(split, len(split.inter_feat) // 2)
    assert 0.35 < half.sum() / everything.sum() < 0.65
    assert ((everything - half).toarray() > -1e-12).all()
    assert (cooccurrence_counts(split, len(split.inter_feat) // 2) != half).nnz == 0
    np.testing.assert_allclose(half.toarray(), half.toarray().T)


def test_the_log_says_what_is_read_and_how_long_it_took(monkeypatch, caplog):
    caplog.set_level(logging.INFO)
    split = tiny().splits[0]
    initialize_items(torch.nn.Embedding(61, 16), split)
    number = len(split.inter_feat)
    assert (
        f"which of 60 items stand near each other at {number:,} training targets\n" in caplog.text
    )
    assert "60 of 60 items have pairs; 0." in caplog.text and "sample" not in caplog.text
    caplog.clear()
    monkeypatch.setattr(module, "MOST_TARGETS", 100)
    initialize_items(torch.nn.Embedding(61, 16), split)
    assert f"{number:,} training targets, a sample of 100 of them" in caplog.text


@pytest.mark.parametrize("shown", [True, False])
def test_progress_is_shown_where_it_is_asked_for(monkeypatch, capsys, shown):
    monkeypatch.setattr(module, "MOST_WORK", 0)
    item_vectors(flat_counts(1500, 20_000), 8, show_progress=shown)
    error = capsys.readouterr().err
    assert (f"{2 * POWER + 2}/{2 * POWER + 2}" in error) is shown
    assert ("co-occurrence" in error) is shown
