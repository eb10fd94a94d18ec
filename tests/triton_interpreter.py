"""Triton's kernels on the CPU, in Triton's interpreter, which the environment has to ask for before
they are imported; :mod:`conftest` imports this first.
"""

import os
from importlib.util import find_spec

import numpy as np
import pytest
import torch

ON_GPU = torch.cuda.is_available()
needs_triton = pytest.mark.skipif(find_spec("triton") is None, reason="triton is not installed")
TRITON = pytest.param("triton", marks=needs_triton)
DEVICE = torch.device("cuda" if ON_GPU else "cpu")

if not ON_GPU:
    os.environ["TRITON_INTERPRET"] = "1"


def _scan(self, tensors):
    """An associative scan in log2(n) steps on whole arrays: the interpreter's own calls the
    combining function once per number, which takes minutes for what this does in a second."""
    arrays = [tensor.handle.data for tensor in tensors]
    dtypes = [tensor.dtype for tensor in tensors]
    place = np.arange(arrays[0].shape[self.axis])
    place = np.expand_dims(place, [d for d in range(arrays[0].ndim) if d != self.axis])
    for step in (2**k for k in range(place.size.bit_length() - 1)):
        before = [np.roll(array, step, self.axis) for array in arrays]
        wrapped = [map(self.to_tensor, some, dtypes) for some in (before, arrays)]
        combined = self.combine_fn.fn(*wrapped[0], *wrapped[1])
        arrays = [
            np.where(place >= step, new.handle.data, old)
            for new, old in zip(combined, arrays, strict=True)
        ]
    return [self.to_tensor(*pair) for pair in zip(arrays, dtypes, strict=True)]


@pytest.fixture(autouse=True, scope="session")
def quick_interpreter():
    """Scan whole arrays in Triton's interpreter, where it is used."""
    with pytest.MonkeyPatch.context() as patch:
        if not ON_GPU and find_spec("triton") is not None:
            from triton.runtime import interpreter

            patch.setattr(interpreter.ScanOps, "generic_scan", _scan)
        yield
