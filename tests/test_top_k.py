"""The best k without a row of all scores, against one."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recbole_hydra.serving import top_k as module
from recbole_hydra.serving.eight_bit import EightBitTable
from recbole_hydra.serving.top_k import top_k


def dense(vectors, table, k, items, offsets, allowed):
    """The scores of the best k, and all scores."""
    scores = vectors @ table.T
    for row, (ids, amounts) in enumerate(offsets):
        scores[row, ids] += amounts
    scores[:, : items[0]] = scores[:, items[1] :] = -np.inf
    if allowed is not None:
        scores[:, ~allowed] = -np.inf
    return -np.sort(-scores, axis=1)[:, :k], scores


@settings(max_examples=150, deadline=None)
@given(
    rows=st.integers(1, 5), n_items=st.integers(2, 900), k=st.integers(1, 40),
    few=st.booleans(), seed=st.integers(0, 2**16), block=st.sampled_from([256, 300, 1 << 14]),
    masked=st.booleans(),
)  # fmt: skip
def test_it_is_the_best_of_all(rows, n_items, k, few, seed, block, masked):
    generator = np.random.default_rng(seed)
    draw = (
        generator.integers(-2, 3, size=n_items * 8) if few else generator.normal(size=n_items * 8)
    )
    table = draw.reshape(n_items, 8).astype(np.float32)  # few: many items have the same score
    vectors = generator.normal(size=(rows, 8)).astype(np.float32)
    first = int(generator.integers(0, n_items))
    items = first, int(generator.integers(first + 1, n_items + 1))
    k = min(k, items[1] - items[0])
    offsets = []
    for _ in range(rows):
        ids = generator.choice(n_items, size=int(generator.integers(0, n_items)), replace=False)
        amounts = generator.choice([-np.inf, -3.0, 4.0], size=len(ids)).astype(np.float32)
        offsets.append((ids, amounts))
    allowed = generator.random(n_items) < 0.5 if masked else None
    before = module.BLOCK
    module.BLOCK = block
    try:
        ids, scores = top_k(vectors, table, k, items, offsets, allowed)
    finally:
        module.BLOCK = before
    expected, every = dense(vectors, table, k, items, offsets, allowed)
    np.testing.assert_allclose(scores, expected, rtol=0, atol=1e-5)
    for row in range(rows):
        there = ids[row] >= 0
        assert len(set(ids[row][there])) == there.sum()
        assert (scores[row][~there] == -np.inf).all()
        np.testing.assert_allclose(scores[row][there], every[row, ids[row][there]], atol=1e-5)


def test_without_offsets_and_filters():
    table = np.eye(5, dtype=np.float32)
    ids, scores = top_k(np.array([[0, 1, 3, 2, 0]], np.float32), table, 3, (1, 5))
    assert ids.tolist() == [[2, 3, 1]] and scores.tolist() == [[3, 2, 1]]


@pytest.mark.parametrize("rows", [1, 300])
def test_many_rows_share_the_room_for_scores(rows):
    generator = np.random.default_rng(0)
    table = generator.normal(size=(9000, 16)).astype(np.float32)
    vectors = generator.normal(size=(rows, 16)).astype(np.float32)
    ids, _ = top_k(vectors, table, 7, (1, 9000))
    every = vectors @ table[1:].T
    assert np.array_equal(ids, 1 + np.argsort(-every, axis=1)[:, :7])


@settings(max_examples=100, deadline=None)
@given(
    n_items=st.integers(2, 900), k=st.integers(1, 40), seed=st.integers(0, 2**16),
    kind=st.sampled_from(["normal", "few", "zero", "tiny", "huge", "outliers"]),
    masked=st.booleans(),
)  # fmt: skip
def test_a_table_of_eight_bits_finds_the_same(n_items, k, seed, kind, masked):
    generator = np.random.default_rng(seed)
    table = generator.normal(size=(n_items, 24)).astype(np.float32)
    if kind == "few":
        table = np.rint(table)
    table *= {"zero": 0.0, "tiny": 1e-12, "huge": 1e9}.get(kind, 1.0)
    if kind == "outliers":
        table[:, 3] *= 1e4
    vector = generator.normal(size=24).astype(np.float32)
    first = int(generator.integers(0, n_items))
    items = first, int(generator.integers(first + 1, n_items + 1))
    k = min(k, items[1] - items[0])
    ids = generator.choice(n_items, int(generator.integers(0, n_items)), replace=False)
    amounts = generator.choice([0.5, -3.0, -np.inf], len(ids)).astype(np.float32)
    allowed = generator.random(n_items) < 0.6 if masked else None
    found, scores = EightBitTable(table).top_k(vector, k, items, (ids, amounts), allowed)
    _, expected = top_k(vector[None], table, k, items, [(ids, amounts)], allowed)
    np.testing.assert_allclose(scores, expected[0], rtol=1e-5, atol=1e-5 * np.abs(table).max())
    there = scores > -np.inf
    assert len(set(found[there])) == there.sum() and (found[~there] == -1).all()
    assert ((found[there] >= items[0]) & (found[there] < items[1])).all()
    assert allowed is None or allowed[found[there]].all()
