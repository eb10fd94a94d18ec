"""What the operations compiled by numba share: exp2, compiling, and torch's number of threads."""

import math

import numba
import numpy as np
import torch
from numba import njit

# Everything but "nnan" and "ninf": a NaN or an infinity must come out as one, not be optimised
# away, since the trainer stops on it.
FASTMATH = {"reassoc", "contract", "arcp", "nsz", "afn"}

LOG2E = np.float32(1.0 / math.log(2.0))
# 2^f on [-1/2, 1/2]: minimax polynomial of degree 6 with the value 1 at 0, relative error 2e-9, so
# that float32 rounding is what remains and a channel with delta A = 0 does not decay at all.
_P1 = np.float32(6.9314720e-01)
_P2 = np.float32(2.4022648e-01)
_P3 = np.float32(5.5503325e-02)
_P4 = np.float32(9.6184374e-03)
_P5 = np.float32(1.3398874e-03)
_P6 = np.float32(1.5353362e-04)
_ONE = np.float32(1.0)
_HALF = np.float32(0.5)
_LOW = np.float32(-126.0)
_HIGH = np.float32(127.0)


@njit(inline="always", fastmath=FASTMATH)
def exp2(x):
    """2^x, written out because numba calls a scalar function for ``math.exp`` inside loops."""
    x = min(max(x, _LOW), _HIGH)
    whole = np.floor(x + _HALF)
    f = x - whole
    p = _ONE + f * (_P1 + f * (_P2 + f * (_P3 + f * (_P4 + f * (_P5 + f * _P6)))))
    return p * np.int32((np.int32(whole) + 127) << 23).view(np.float32)


def compiled(function):
    """Compile on first use, and keep the result on disk where a folder for it can be written."""
    options = {"parallel": True, "fastmath": FASTMATH, "nogil": True}
    try:
        return njit(cache=True, **options)(function)
    except RuntimeError:  # no such folder: every process compiles for itself
        return njit(**options)(function)


def use_torch_threads() -> int:
    """Let numba use as many threads as torch does; returns that number."""
    threads = min(torch.get_num_threads(), numba.config.NUMBA_NUM_THREADS)
    numba.set_num_threads(threads)
    return threads
