"""The softmax over a catalogue and its two products on the CPU, compiled by numba.

A sweep takes as many rows as have 4 MB of scores and goes through them in two parallel loops, so
that threads wait for each other a few times per call and not for every block of rows. In the first
each thread has rows: scores, exponentials and p W in chunks that stay in the first-level cache. In
the second, when the rows' sums are known, it has items: p^T h. So nothing is summed over threads,
and the results do not depend on their number. Where 4 MB are too few rows for the threads, as with
a large catalogue, they share out the items in the first loop, too.

All three products are one tile, six rows by sixteen columns, held in registers.
"""

from collections.abc import Sequence

import numpy as np
import torch
from numba import njit, prange
from torch import Tensor

from recbole_hydra.ops.item_lists import ItemLists
from recbole_hydra.ops.linear_cross_entropy import blocked
from recbole_hydra.ops.numba_support import compiled, use_torch_threads
from recbole_hydra.ops.simd import LANES, LOG2E, exp2, fma, load, load_in_all, store

#: Rows of a block, whose exponentials are a matrix items x rows; a multiple of LANES.
ROWS = 96
#: Scores of a sweep, 4 MB: they stay in the cache until the second loop reads them ...
SCORES = 2**20
#: ... or those of one block of rows, of fewer where the catalogue is very large.
FEW_ROWS, VERY_LARGE = 48, 2**19
#: Items of a chunk: their vectors and the exponentials of a block are 30 KB at width 64.
CHUNK = 48
#: Exponents of e in an exponential. From a row whose bound is larger, the excess is taken off:
#: sums over 10^6 items stay below 10^33, inside float32's range.
LARGEST = 60.0
#: The smallest sum that 10^6 exponentials, each cut off at 2^-126, cannot have falsified.
SMALLEST_SUM = 1e-25

_NO_LISTS = (torch.empty(0, dtype=torch.int64),) * 3


@njit(inline="always")
def _add_product(
    A: np.ndarray, a: int, a_row: int, a_column: int, B: np.ndarray, b: int, b_row: int,
    inner: int, out: np.ndarray, o: int, o_row: int, rows: int, columns: int,
) -> None:  # fmt: skip
    """out[m, l] += sum_k A[m, k] B[k, l] on flat arrays, l in steps of sixteen.

    ``a``, ``b`` and ``o`` are where the matrices begin, ``*_row`` and ``a_column`` their strides.
    """
    last = rows - 1
    for m in range(0, rows, 6):
        # Rows past the last are the last one again: all six are loaded before one is stored.
        m1, m2, m3 = min(m + 1, last), min(m + 2, last), min(m + 3, last)
        m4, m5 = min(m + 4, last), min(m + 5, last)
        a0, a1, a2 = a + m * a_row, a + m1 * a_row, a + m2 * a_row
        a3, a4, a5 = a + m3 * a_row, a + m4 * a_row, a + m5 * a_row
        for l in range(0, columns, LANES):  # noqa: E741
            o0, o1, o2 = o + m * o_row + l, o + m1 * o_row + l, o + m2 * o_row + l
            o3, o4, o5 = o + m3 * o_row + l, o + m4 * o_row + l, o + m5 * o_row + l
            s0, s1, s2 = load(out, o0), load(out, o1), load(out, o2)
            s3, s4, s5 = load(out, o3), load(out, o4), load(out, o5)
            for k in range(inner):
                x = load(B, b + k * b_row + l)
                s0 = fma(load_in_all(A, a0 + k * a_column), x, s0)
                s1 = fma(load_in_all(A, a1 + k * a_column), x, s1)
                s2 = fma(load_in_all(A, a2 + k * a_column), x, s2)
                s3 = fma(load_in_all(A, a3 + k * a_column), x, s3)
                s4 = fma(load_in_all(A, a4 + k * a_column), x, s4)
                s5 = fma(load_in_all(A, a5 + k * a_column), x, s5)
            store(out, o0, s0)
            store(out, o1, s1)
            store(out, o2, s2)
            store(out, o3, s3)
            store(out, o4, s4)
            store(out, o5, s5)


@njit(inline="always")
def _exponentials(
    e: np.ndarray, start: int, shift: np.ndarray, sums: np.ndarray, items: int, rows: int
) -> None:
    """e[j, i] = 2^(e[j, i] - shift[i]), and sums[i] += their sum over the items j."""
    for i in range(0, rows, LANES):
        minus, total = -load(shift, i), load(sums, i)
        for at in range(start + i, start + i + items * rows, rows):
            x = exp2(load(e, at) + minus)
            store(e, at, x)
            total = total + x
        store(sums, i, total)


@njit(inline="always")
def _ends_run(i: int, last: int, begin: np.ndarray, count: np.ndarray) -> bool:
    """Whether row i is the last of a run of rows whose lists begin together and do not shrink."""
    return i == last or begin[i + 1] != begin[i] or count[i + 1] < count[i]


@njit
def _runs_by_item(
    start: int, stop: int, items: np.ndarray, begin: np.ndarray, count: np.ndarray, first: int,
    last: int, place: np.ndarray, first_row: np.ndarray, last_row: np.ndarray,
) -> None:  # fmt: skip
    """Where the lists of rows ``start`` to ``stop`` have the items ``first`` to ``last``, sorted by
    item by counting.

    An element of a list is in the lists of the rows after it, too, to the end of the run: those of
    item j are rows ``first_row[k]`` to ``last_row[k]``, k from ``place[j - first]`` to before
    ``place[j - first + 1]``. ``place`` is zeros.
    """
    for i in range(start, stop):  # counts stand two places on, which the sums and filling make good
        if _ends_run(i, stop - 1, begin, count):
            for at in range(begin[i], begin[i] + count[i]):
                if first <= items[at] < last:
                    place[items[at] - first + 2] += 1
    for j in range(2, len(place)):
        place[j] += place[j - 1]
    run = start  # the first row of the run
    for i in range(start, stop):
        if _ends_run(i, stop - 1, begin, count):
            row = run
            for at in range(begin[i], begin[i] + count[i]):
                while begin[row] + count[row] <= at:
                    row += 1
                if first <= items[at] < last:
                    k = place[items[at] - first + 1]
                    first_row[k], last_row[k] = row, i
                    place[items[at] - first + 1] += 1
            run = i + 1


@njit
def _elements(start: int, stop: int, begin: np.ndarray, count: np.ndarray) -> int:
    """Elements of the lists of some rows, once for each run."""
    elements = 0
    for i in range(start, stop):
        if _ends_run(i, stop - 1, begin, count):
            elements += count[i]
    return elements


@njit
def _block(
    start: int, stop: int, rows: int, first: int, last: int, h: np.ndarray, W: np.ndarray,
    shift: np.ndarray, items: np.ndarray, begin: np.ndarray, count: np.ndarray, less: np.ndarray,
    sums: np.ndarray, products: np.ndarray, e: np.ndarray, origin: int,
) -> None:  # fmt: skip
    """Sums and p W, both not yet divided by the sums, of rows ``start`` to ``stop`` over the items
    ``first`` to ``last``.

    ``rows`` is the number of rows with those that fill the last vector, whose scores are zero; the
    exponentials of item j are left in ``e[origin + j * rows:]``. ``sums`` is (rows,), ``products``
    (width, rows).
    """
    width, has_lists = h.shape[1], len(less) > 0
    columns = np.zeros(width * rows, np.float32)  # h^T in powers of 2
    block_shift = np.zeros(rows, np.float32)
    for i in range(stop - start):
        block_shift[i] = shift[start + i]
        for k in range(width):
            columns[k * rows + i] = h[start + i, k] * LOG2E
    elements = _elements(start, stop, begin, count) if has_lists else 0
    place = np.zeros(last - first + 2 if has_lists else 0, np.int64)
    first_row, last_row = np.empty(elements, np.int64), np.empty(elements, np.int64)
    if has_lists:
        _runs_by_item(start, stop, items, begin, count, first, last, place, first_row, last_row)
    sums[:rows] = 0
    products[: width * rows] = 0
    for j in range(first, last, CHUNK):
        some, at = min(CHUNK, last - j), origin + j * rows
        e[at : at + some * rows] = 0
        _add_product(W, j * width, width, 1, columns, 0, rows, width,
                     e, at, rows, some, rows)  # fmt: skip
        if has_lists:
            for item in range(j, j + some):
                for k in range(place[item - first], place[item - first + 1]):
                    for row in range(first_row[k], last_row[k] + 1):
                        e[origin + item * rows + row - start] -= less[row]
        _exponentials(e, at, block_shift, sums, some, rows)
        _add_product(W, j * width, 1, width, e, at, rows, some,
                     products, 0, rows, width, rows)  # fmt: skip


@njit
def _finish(
    start: int, stop: int, rows: int, h: np.ndarray, block_sums: np.ndarray, products: np.ndarray,
    sums: np.ndarray, p_W: np.ndarray, scaled: np.ndarray, at: int,
) -> None:  # fmt: skip
    """Divide what :func:`_block` left by the sums; ``scaled[at:]`` becomes h over the sums, with
    zeros in the rows that fill the last vector."""
    width = h.shape[1]
    for i in range(stop - start):
        sums[start + i] = block_sums[i]
        for k in range(width):
            scaled[at + i * width + k] = h[start + i, k] / block_sums[i]
            p_W[start + i, k] = products[k * rows + i] / block_sums[i]
    scaled[at + (stop - start) * width : at + rows * width] = 0


@compiled
def _sweep(
    h: np.ndarray, W: np.ndarray, shift: np.ndarray, items: np.ndarray, begin: np.ndarray,
    count: np.ndarray, less: np.ndarray, most: int, owners: int, threads: int, sums: np.ndarray,
    p_W: np.ndarray, p_h: np.ndarray, e: np.ndarray,
) -> None:  # fmt: skip
    """Sweeps of ``most`` rows; ``shift`` and ``less`` in powers of 2.

    ``owners`` is the number of tasks that the first loop shares the rows out to: ``threads``, or 1,
    and then it shares out the items. ``e`` is room for (n_items, most).
    """
    n, width = h.shape
    n_items, parts = len(p_h) // width, threads // owners
    task_sums = np.empty((threads, ROWS), np.float32)
    task_products = np.empty((threads, width * ROWS), np.float32)
    scaled = np.empty(most * width, np.float32)
    for start in range(0, n, most):
        stop = min(start + most, n)
        vectors = (stop - start + LANES - 1) // LANES
        each = (vectors * LANES + owners * ROWS - 1) // (owners * ROWS)  # blocks of an owner
        blocks = owners * each  # block k is the vectors vectors * k // blocks to the next one's
        for task in prange(owners * parts):
            part = task % parts
            first, last = n_items * part // parts, n_items * (part + 1) // parts
            for k in range(task // parts * each, (task // parts + 1) * each):
                at, end = vectors * k // blocks * LANES, vectors * (k + 1) // blocks * LANES
                begins, ends, rows = start + at, min(start + end, stop), end - at
                if rows == 0:
                    continue
                _block(begins, ends, rows, first, last, h, W, shift, items, begin, count, less,
                       task_sums[task], task_products[task], e, at * n_items)  # fmt: skip
                if parts == 1:
                    _finish(begins, ends, rows, h, task_sums[task], task_products[task],
                            sums, p_W, scaled, at * width)  # fmt: skip
        if parts > 1:  # one block
            for task in range(1, parts):
                task_sums[0] += task_sums[task]
                task_products[0] += task_products[task]
            _finish(start, stop, vectors * LANES, h, task_sums[0], task_products[0],
                    sums, p_W, scaled, 0)  # fmt: skip
        for task in prange(threads):
            first, last = n_items * task // threads, n_items * (task + 1) // threads
            for k in range(blocks):
                at, end = vectors * k // blocks * LANES, vectors * (k + 1) // blocks * LANES
                rows = end - at
                _add_product(e, at * n_items + first * rows, rows, 1, scaled, at * width, width,
                             rows, p_h, first * width, width, last - first, width)  # fmt: skip


def _rows_of_sweep(n: int, n_items: int, threads: int) -> tuple[int, int]:
    """Rows of a sweep, a multiple of LANES, and how many tasks share them out."""
    smallest = LANES * threads
    if (most := SCORES // n_items // smallest * smallest) > 0:
        sweeps = -(-n // most)
        return -(-n // (sweeps * smallest)) * smallest, threads  # sweeps of one size
    blocks = -(-n // (ROWS if n_items <= VERY_LARGE else FEW_ROWS))
    return -(-n // (blocks * LANES)) * LANES, 1


def softmax_products(
    h: Tensor, W: Tensor, wants_grad: bool = True, as_one: ItemLists | None = None
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """What :func:`.blocked.softmax_products` returns, for float32 and widths of a multiple of 16.

    That one is called where a row's scores lie so far below their bound |h| max |W| (by some 120)
    that their exponentials vanish, or where they are not finite.
    """
    (n, width), n_items = h.shape, len(W)
    threads = use_torch_threads()
    most, owners = _rows_of_sweep(n, n_items, threads)
    bound = h.norm(dim=1) * W.norm(dim=1).max()  # of |h W^T|, by Cauchy and Schwarz
    shift = (bound - LARGEST).clamp_(min=0)
    sums, p_W, p_h = h.new_empty(n), h.new_empty(n, width), W.new_zeros(n_items, width)
    e = h.new_empty(n_items * most)
    inputs = h.contiguous(), W.contiguous().view(-1), shift * float(LOG2E)
    lists: Sequence[Tensor]
    lists, less = _NO_LISTS, h.new_empty(0)
    if as_one is not None:
        lists, less = [part.contiguous() for part in as_one], as_one.less * float(LOG2E)
    outputs = sums, p_W, p_h.view(-1), e
    _sweep(
        *(x.numpy() for x in (*inputs, *lists, less)), most, owners, threads,
        *(x.numpy() for x in outputs),
    )  # fmt: skip
    if not bool(((sums >= SMALLEST_SUM) & sums.isfinite()).all()):
        return blocked.softmax_products(h, W, wants_grad, as_one)
    return sums.log_().add_(shift), p_W, p_h


def linear_cross_entropy_numba(
    hidden: Tensor, weight: Tensor, target: Tensor, as_one: ItemLists | None = None
) -> tuple[Tensor, Tensor]:
    """What :func:`.naive.linear_cross_entropy_naive` returns, for float32 on the CPU."""
    wants_grad = blocked.gradients_wanted(hidden, weight)
    return blocked.LinearCrossEntropy.apply(
        hidden, weight, target, as_one, torch.float32, softmax_products, wants_grad
    )
