"""The softmax over a catalogue and its two products on the CPU, compiled by numba.

The threads share out the items, and for some blocks of rows each goes through its own twice:
scores, exponentials and p W in chunks that stay in the first-level cache; then, when the rows' sums
are known, p^T h. All three products are one tile, six rows by sixteen columns, held in registers.
"""

import numpy as np
import torch
from numba import njit, prange

from recbole_hydra.ops.linear_cross_entropy import blocked
from recbole_hydra.ops.numba_support import compiled, use_torch_threads
from recbole_hydra.ops.simd import LANES, LOG2E, exp2, fma, load, load_in_all, store

#: Rows of a block, and of a very large catalogue's.
ROWS, FEW_ROWS = 96, 48
VERY_LARGE = 2**19
#: Exponentials that are kept between the two sweeps of the threads, 4 MB, or those of one block.
KEPT = 2**20
#: Items of a chunk: their vectors and the exponentials of a block are 30 KB at width 64.
CHUNK = 48
#: Exponents of e in an exponential. From a row whose bound is larger, the excess is taken off:
#: sums over 10^6 items stay below 10^33, inside float32's range.
LARGEST = 60.0
#: The smallest sum that 10^6 exponentials, each cut off at 2^-126, cannot have falsified.
SMALLEST_SUM = 1e-25

_NO_LISTS = (torch.empty(0, dtype=torch.int64),) * 3


@njit(inline="always")
def _add_product(A, a, a_row, a_column, B, b, b_row, inner, out, o, o_row, rows, columns):
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
def _exponentials(e, start, shift, sums, items, rows):
    """e[j, i] = 2^(e[j, i] - shift[i]), and sums[i] += their sum over the items j."""
    for i in range(0, rows, LANES):
        minus, total = -load(shift, i), load(sums, i)
        for at in range(start + i, start + i + items * rows, rows):
            x = exp2(load(e, at) + minus)
            store(e, at, x)
            total = total + x
        store(sums, i, total)


@njit(inline="always")
def _ends_run(i, last, begin, count):
    """Whether row i is the last of a run of rows whose lists begin together and do not shrink."""
    return i == last or begin[i + 1] != begin[i] or count[i + 1] < count[i]


@njit(inline="always")
def _runs_by_item(start, stop, items, begin, count, place, first, last):
    """Where the lists of rows ``start`` to ``stop`` have an item, sorted by item by counting.

    An element of a list is in the lists of the rows after it, too, to the end of the run: those of
    item j are rows ``first[k]`` to ``last[k]``, k from ``place[j]`` to before ``place[j + 1]``.
    """
    place[:] = 0  # counts stand two places on, which the sums and the filling make good
    for i in range(start, stop):
        if _ends_run(i, stop - 1, begin, count):
            for at in range(begin[i], begin[i] + count[i]):
                place[items[at] + 2] += 1
    for j in range(2, len(place)):
        place[j] += place[j - 1]
    first_row = start  # of the run
    for i in range(start, stop):
        if _ends_run(i, stop - 1, begin, count):
            row = first_row
            for at in range(begin[i], begin[i] + count[i]):
                while begin[row] + count[row] <= at:
                    row += 1
                k = place[items[at] + 1]
                first[k], last[k] = row, i
                place[items[at] + 1] += 1
            first_row = i + 1


def _sweep(h, W, shift, items, begin, count, less, rows, blocks, tasks, sums, p_W, p_h, e):
    """Groups of ``blocks`` blocks of ``rows`` rows; ``shift`` and ``less`` in powers of 2; ``e`` is
    room for (blocks, n_items, rows).

    Threads meet twice a group, however many blocks it has: where other processes are busy, each
    meeting waits for a thread that is not running.
    """
    n, width = h.shape
    n_items, has_lists = len(p_h) // width, len(less) > 0
    places = n_items + 2 if has_lists else 0
    place = np.empty((blocks, places), np.int64)
    most = 0  # elements of a block's lists, once for each run
    for start in range(0, n if has_lists else 0, rows):
        here, elements = min(rows, n - start), 0
        for i in range(start, start + here):
            if _ends_run(i, start + here - 1, begin, count):
                elements += count[i]
        most = max(most, elements)
    first_row, last_row = np.empty((blocks, most), np.int64), np.empty((blocks, most), np.int64)
    columns = np.zeros((blocks, width * rows), np.float32)  # h^T in powers of 2
    block_shift = np.zeros((blocks, rows), np.float32)
    scaled = np.empty((blocks, rows * width), np.float32)  # h over the sums; rows past the last: 0
    task_sums = np.empty((tasks, blocks, rows), np.float32)
    task_products = np.empty((tasks, blocks, width * rows), np.float32)
    for group in range(0, n, blocks * rows):
        number = min(blocks, (n - group + rows - 1) // rows)
        for block in range(number):
            start = group + block * rows
            here = min(rows, n - start)
            for i in range(rows):
                block_shift[block, i] = shift[start + i] if i < here else np.float32(0.0)
                for k in range(width):
                    value = h[start + i, k] * LOG2E if i < here else np.float32(0.0)
                    columns[block, k * rows + i] = value
            if has_lists:
                _runs_by_item(start, start + here, items, begin, count,
                              place[block], first_row[block], last_row[block])  # fmt: skip
        for task in prange(tasks):
            first, last = n_items * task // tasks, n_items * (task + 1) // tasks
            for block in range(number):
                start, at = group + block * rows, block * n_items * rows
                part_sums, products = task_sums[task, block], task_products[task, block]
                part_sums[:] = 0
                products[:] = 0
                for j in range(first, last, CHUNK):
                    some = min(CHUNK, last - j)
                    e[at + j * rows : at + (j + some) * rows] = 0
                    _add_product(W, j * width, width, 1, columns[block], 0, rows, width,
                                 e, at + j * rows, rows, some, rows)  # fmt: skip
                    if has_lists:
                        for item in range(j, j + some):
                            for k in range(place[block, item], place[block, item + 1]):
                                for row in range(first_row[block, k], last_row[block, k] + 1):
                                    e[at + item * rows + row - start] -= less[row]
                    _exponentials(e, at + j * rows, block_shift[block], part_sums, some, rows)
                    _add_product(W, j * width, 1, width, e, at + j * rows, rows, some,
                                 products, 0, rows, width, rows)  # fmt: skip
        for block in range(number):
            start = group + block * rows
            here = min(rows, n - start)
            block_sums, products = task_sums[0, block], task_products[0, block]
            for task in range(1, tasks):
                for i in range(rows):
                    block_sums[i] += task_sums[task, block, i]
                for i in range(width * rows):
                    products[i] += task_products[task, block, i]
            for i in range(here):
                sums[start + i] = block_sums[i]
                for k in range(width):
                    scaled[block, i * width + k] = h[start + i, k] / block_sums[i]
                    p_W[start + i, k] = products[k * rows + i] / block_sums[i]
            scaled[block, here * width :] = 0
        for task in prange(tasks):
            first, last = n_items * task // tasks, n_items * (task + 1) // tasks
            for block in range(number):
                _add_product(e, (block * n_items + first) * rows, rows, 1, scaled[block], 0, width,
                             rows, p_h, first * width, width, last - first, width)  # fmt: skip


_sweep = compiled(_sweep)


def softmax_products(h, W, wants_grad=True, as_one=None):
    """What :func:`.blocked.softmax_products` returns, for float32 and widths of a multiple of 16.

    That one is called where a row's scores lie so far below their bound |h| max |W| (by some 120)
    that their exponentials vanish, or where they are not finite.
    """
    (n, width), n_items = h.shape, len(W)
    blocks = -(-n // (ROWS if n_items <= VERY_LARGE else FEW_ROWS))
    rows = -(-n // (blocks * LANES)) * LANES
    blocks = max(1, min(-(-n // rows), KEPT // (n_items * rows)))  # of a group
    bound = h.norm(dim=1) * W.norm(dim=1).max()  # of |h W^T|, by Cauchy and Schwarz
    shift = (bound - LARGEST).clamp_(min=0)
    sums, p_W, p_h = h.new_empty(n), h.new_empty(n, width), W.new_zeros(n_items, width)
    e = h.new_empty(blocks * n_items * rows)
    inputs = h.contiguous(), W.contiguous().view(-1), shift * float(LOG2E)
    lists, less = _NO_LISTS, h.new_empty(0)
    if as_one is not None:
        lists, less = [part.contiguous() for part in as_one], as_one.less * float(LOG2E)
    outputs = sums, p_W, p_h.view(-1), e
    threads = use_torch_threads()
    _sweep(
        *(x.numpy() for x in (*inputs, *lists, less)), rows, blocks, threads,
        *(x.numpy() for x in outputs),
    )  # fmt: skip
    if not bool(((sums >= SMALLEST_SUM) & sums.isfinite()).all()):
        return blocked.softmax_products(h, W, wants_grad, as_one)
    return sums.log_().add_(shift), p_W, p_h


def linear_cross_entropy_numba(hidden, weight, target, as_one=None):
    """What :func:`.naive.linear_cross_entropy_naive` returns, for float32 on the CPU."""
    wants_grad = blocked.gradients_wanted(hidden, weight)
    return blocked.LinearCrossEntropy.apply(
        hidden, weight, target, as_one, torch.float32, softmax_products, wants_grad
    )
