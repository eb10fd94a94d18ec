"""Triton's kernels on the CPU, in Triton's interpreter, which the environment has to ask for before
they are imported; :mod:`conftest` imports this first.
"""

import os
from importlib.util import find_spec

import pytest
import torch

ON_GPU = torch.cuda.is_available()
needs_triton = pytest.mark.skipif(find_spec("triton") is None, reason="triton is not installed")
TRITON = pytest.param("triton", marks=needs_triton)
DEVICE = torch.device("cuda" if ON_GPU else "cpu")

if not ON_GPU:
    os.environ["TRITON_INTERPRET"] = "1"
