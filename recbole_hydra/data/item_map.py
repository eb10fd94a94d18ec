"""A linear map from the items of a history to the item that comes next, in closed form.

A row is a position of a training history, x the items around it, each weighted by g to the number
of steps between, y the item at it::

    x_t = sum_{k<t} g^(t-1-k) e_{i_k},  y_t = e_{i_t}        what came before
    x_t = sum_{k!=t} g^(|t-k|-1) e_{i_k},  y_t = e_{i_t}     what is on both sides
    B = (X'X + ridge I)^-1 X'Y                               over the rows of both kinds

It is a ridge regression, as EASE (Steck 2019, arXiv 1905.03375) and SLIST (Choi et al. 2021, arXiv
2103.16104) are, with order in both of its sides.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np
from tqdm import tqdm

from recbole_hydra.data.targets import POSITION, TargetDataset
from recbole_hydra.errors import ConfigError

if TYPE_CHECKING:
    from recbole.data.dataset import SequentialDataset
    from scipy.sparse import csr_array

#: How B is computed, see :func:`fit_item_map`.
SOLVERS = ("auto", "exact", "neighbours")

#: "auto" solves exactly up to so many items, which takes half a minute of one core; beyond MOST,
#: n_items^2 numbers do not fit.
AUTO_EXACT, MOST_EXACT = 8_000, 20_000

#: The items that "neighbours" explains a target by: those that are near it most.
NEIGHBOURS = 100

#: Steps at which a weight is below LEAST are left out, and those beyond FURTHEST.
LEAST, FURTHEST = 0.01, 50

#: Of more positions than this, a sample is read; and so many are rows of one product.
MOST_POSITIONS, POSITIONS_AT_ONCE = 1_000_000, 50_000

#: Rows of B that are computed together.
ROWS_AT_ONCE = 512


def training_histories(
    dataset: SequentialDataset | TargetDataset,
) -> tuple[np.ndarray, np.ndarray]:
    """The histories of a train split, each up to its last target.

    Args:
        dataset: the train split.

    Returns:
        Item ids, (interactions,) int64, and where each history begins in them and the last ends,
        (histories + 1,).
    """
    rows = dataset.inter_feat
    if isinstance(dataset, TargetDataset):
        target = np.sort(rows[POSITION].numpy())
        start = dataset.history_start[target]
        last = np.r_[start[1:] != start[:-1], True] if len(start) else np.empty(0, bool)
        begin, end = start[last], target[last] + 1
        begins = np.r_[0, np.cumsum(end - begin)]
        inside = np.arange(begins[-1]) + np.repeat(begin - begins[:-1], end - begin)
        return dataset.timeline[dataset.iid_field].numpy()[inside], begins
    items = rows[getattr(dataset, f"{dataset.iid_field}_list_field")].numpy()
    length = rows[dataset.item_list_length_field].numpy()
    target, user = rows[dataset.iid_field].numpy(), rows[dataset.uid_field].numpy()
    # RecBole's rows of a user are prefixes, each one item longer until the list is full.
    place = np.arange(len(length))
    latest = items[place, np.maximum(length - 1, 0)]
    goes_on = (
        (user[1:] == user[:-1])
        & (latest[1:] == target[:-1])
        & (length[1:] == np.minimum(length[:-1] + 1, items.shape[1]))
    )
    first = np.r_[True, ~goes_on] if len(length) else np.empty(0, bool)
    size = np.where(first, length, 0) + 1
    ends = np.cumsum(size)
    joined = np.empty(ends[-1] if len(ends) else 0, np.int64)
    joined[ends - 1] = target
    for row in np.flatnonzero(first):
        joined[ends[row] - size[row] : ends[row] - 1] = items[row, : length[row]]
    return joined, np.r_[(ends - size)[first], len(joined)]


def fit_item_map(
    items: np.ndarray,
    begins: np.ndarray,
    n_items: int,
    decay: float,
    ridge: float,
    entries: int,
    solver: str = "auto",
    show_progress: bool = False,
) -> csr_array:
    """B of the module's docstring, its rows cut to their largest entries.

    Args:
        items, begins: of :func:`training_histories`.
        n_items: size of the catalogue, the padding item 0 included.
        decay: g, in (0, 1). ridge: above 0.
        entries: the most that are kept of a row, those of the largest absolute values.
        solver: "exact"; "neighbours" solves for each target over the NEIGHBOURS items that are near
            it most, in memory that does not grow with n_items^2; "auto" the first up to AUTO_EXACT
            items.
        show_progress: a bar.

    Returns:
        ``scipy.sparse.csr_array``, (n_items, n_items) float32, sorted: what an item of the history
        says of the next.

    Raises:
        ConfigError: "exact" of more than MOST_EXACT items.
    """
    if solver == "exact" and n_items - 1 > MOST_EXACT:
        raise ConfigError(
            f"item_memory_solver: exact holds n_items^2 numbers, which is for {MOST_EXACT:,} items "
            f"at most, got {n_items - 1:,}; use auto or neighbours"
        )
    if solver == "auto":
        solver = "exact" if n_items - 1 <= AUTO_EXACT else "neighbours"
    gram, cross = moments(items, begins, n_items, decay, show_progress)
    solve = _exact_rows if solver == "exact" else _neighbour_rows
    return solve(gram, cross, ridge, entries, show_progress)


def moments(
    items: np.ndarray, begins: np.ndarray, n_items: int, decay: float, show_progress: bool = False
) -> tuple[csr_array, csr_array]:
    """X'X and X'Y over the rows of both kinds, (n_items, n_items) each; see :func:`fit_item_map`.

    Of more than MOST_POSITIONS positions, so many are drawn, and both are scaled up to all.
    """
    from scipy.sparse import csr_array

    furthest = min(FURTHEST, 1 + math.ceil(math.log(LEAST) / math.log(decay)))
    history = np.repeat(np.arange(len(begins) - 1), np.diff(begins))
    positions = np.arange(len(items))
    scale = 1.0
    if len(items) > MOST_POSITIONS:
        scale = len(items) / MOST_POSITIONS
        drawn = np.random.default_rng(0).choice(len(items), MOST_POSITIONS, replace=False)
        positions = np.sort(drawn)
    empty = csr_array((n_items, n_items), dtype=np.float64)
    gram, cross = empty, empty
    parts = range(0, len(positions), POSITIONS_AT_ONCE)
    for start in tqdm(parts, desc="item memory", disable=not show_progress, ncols=100):
        own = positions[start : start + POSITIONS_AT_ONCE]
        for both_sides in (False, True):
            X = _rows(items, history, own, n_items, decay, furthest, both_sides)
            ones = np.ones(len(own)), (np.arange(len(own)), items[own])
            Y = csr_array(ones, shape=X.shape)
            gram = gram + X.T @ X
            cross = cross + X.T @ Y
    return gram.tocsr() * scale, cross.tocsr() * scale


def _rows(
    items: np.ndarray,
    history: np.ndarray,
    positions: np.ndarray,
    n_items: int,
    decay: float,
    furthest: int,
    both_sides: bool,
) -> csr_array:
    """The rows x of some positions, (positions, n_items)."""
    from scipy.sparse import coo_array

    row, column, weight = [], [], []
    for step in range(1, furthest + 1):
        for other in (positions - step, positions + step) if both_sides else (positions - step,):
            inside = (other >= 0) & (other < len(items))
            inside[inside] = history[other[inside]] == history[positions[inside]]
            row.append(np.flatnonzero(inside))
            column.append(items[other[inside]])
            weight.append(np.full(len(row[-1]), decay ** (step - 1)))
    places = np.concatenate(row), np.concatenate(column)
    rows = coo_array((np.concatenate(weight), places), shape=(len(positions), n_items))
    return rows.tocsr()  # of an item that stands there twice, the sum


def _exact_rows(
    gram: csr_array, cross: csr_array, ridge: float, entries: int, show_progress: bool
) -> csr_array:
    """(gram + ridge)^-1 cross, some rows at a time, each cut to its largest entries."""
    from scipy.linalg import cho_factor, cho_solve

    n_items = gram.shape[0]
    dense = gram.toarray()
    dense[np.diag_indices(n_items)] += ridge
    factor = cho_factor(dense, lower=True, overwrite_a=True, check_finite=False)

    def blocks() -> Iterator[np.ndarray]:
        starts = range(0, n_items, ROWS_AT_ONCE)
        for start in tqdm(starts, desc="item memory", disable=not show_progress, ncols=100):
            chosen = np.arange(start, min(start + ROWS_AT_ONCE, n_items))
            unit = np.zeros((n_items, len(chosen)), order="F")
            unit[chosen, np.arange(len(chosen))] = 1.0
            inverse = cho_solve(factor, unit, overwrite_b=True, check_finite=False)  # symmetric
            yield (cross.T @ inverse).T

    return _stacked((_largest(block, entries) for block in blocks()), n_items)


def _largest(block: np.ndarray, entries: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Rows, columns and values of the largest entries of each row of a dense block."""
    kept = min(entries, block.shape[1])
    columns = np.argpartition(-np.abs(block), kept - 1, axis=1)[:, :kept]
    values = np.take_along_axis(block, columns, 1)
    rows = np.repeat(np.arange(len(block)), kept)
    there = values.ravel() != 0
    return rows[there], columns.ravel()[there], values.ravel()[there]


def _stacked(
    blocks: Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]], n_items: int
) -> csr_array:
    """Blocks of ROWS_AT_ONCE rows as one matrix."""
    from scipy.sparse import coo_array

    parts = [
        (row + i * ROWS_AT_ONCE, column, value) for i, (row, column, value) in enumerate(blocks)
    ]
    row, column, value = (np.concatenate(each) for each in zip(*parts, strict=True))
    shape = n_items, n_items
    found = coo_array((value.astype(np.float32), (row, column)), shape=shape).tocsr()
    found.sort_indices()
    return found


def _neighbour_rows(
    gram: csr_array, cross: csr_array, ridge: float, entries: int, show_progress: bool
) -> csr_array:
    """For each target the ridge regression on its NEIGHBOURS alone (as Ning and Karypis 2011 choose
    the features of SLIM), then each row cut to its largest entries."""
    from scipy.sparse import csr_array

    n_items = gram.shape[0]
    targets = cross.T.tocsr()
    place = np.full(n_items, -1)
    items, values = [], []
    columns = range(n_items)
    for target in tqdm(columns, desc="item memory", disable=not show_progress, ncols=100):
        own = slice(targets.indptr[target], targets.indptr[target + 1])
        near, right = targets.indices[own], targets.data[own]
        if len(near) > NEIGHBOURS:
            best = np.argpartition(-right, NEIGHBOURS)[:NEIGHBOURS]
            near, right = near[best], right[best]
        items.append(near)
        values.append(_solved(gram, ridge, near, right, place) if len(near) else right)
    counts = [len(near) for near in items]
    starts = np.r_[0, np.cumsum(counts)]
    parts = np.concatenate(values), np.concatenate(items), starts
    by_item = csr_array(parts, shape=(n_items, n_items)).T.tocsr()
    return _cut(by_item, entries)


def _solved(
    gram: csr_array, ridge: float, near: np.ndarray, right: np.ndarray, place: np.ndarray
) -> np.ndarray:
    """(gram + ridge)^-1 right among some items; ``place``, (n_items,), is -1 before and after."""
    from scipy.linalg import solve

    size = len(near)
    place[near] = np.arange(size)
    begin, end = gram.indptr[near], gram.indptr[near + 1]
    row = np.repeat(np.arange(size), end - begin)
    first = np.cumsum(end - begin) - (end - begin)
    source = np.arange(len(row)) + np.repeat(begin - first, end - begin)
    column = place[gram.indices[source]]
    inside = column >= 0
    dense = np.zeros((size, size))
    dense[row[inside], column[inside]] = gram.data[source[inside]]
    dense[np.diag_indices(size)] += ridge
    place[near] = -1
    return solve(dense, right, assume_a="pos", check_finite=False)


def _cut(matrix: csr_array, entries: int) -> csr_array:
    """A matrix with the largest entries of each row alone."""
    from scipy.sparse import csr_array

    row = np.repeat(np.arange(matrix.shape[0]), np.diff(matrix.indptr))
    order = np.lexsort((-np.abs(matrix.data), row))
    rank = np.arange(len(row)) - matrix.indptr[row]
    kept = np.sort(order[rank < entries])
    starts = np.r_[0, np.cumsum(np.bincount(row[kept], minlength=matrix.shape[0]))]
    parts = matrix.data[kept].astype(np.float32), matrix.indices[kept], starts
    found = csr_array(parts, shape=matrix.shape)
    found.sort_indices()
    return found
