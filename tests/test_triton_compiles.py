"""Every Triton kernel compiles for NVIDIA GPUs, to machine code, on a machine without one.

The interpreter, in which the other tests run the kernels, takes what the compiler refuses: types
that do not agree, shapes that are no powers of two, tiles that do not fit into a program. So the
operations are called in a process of their own whose driver claims a GPU and runs nothing.
"""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from triton_interpreter import needs_triton

SCRIPT = Path(__file__).with_name("compile_triton.py")
KERNELS = {
    "causal_conv1d._backward", "causal_conv1d._convolve", "linear_cross_entropy._softmax",
    "selective_scan._backward", "selective_scan._ends", "selective_scan._forward",
    "selective_scan._pulls",
}  # fmt: skip
#: What a program may have of shared memory without asking for more, in bytes.
SHARED = 48 * 1024


@needs_triton
@pytest.mark.parametrize("compute_capability", [80, 90])
def test_every_kernel_compiles_without_a_gpu(compute_capability, monkeypatch, tmp_path):
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path / "cache"))  # compile, whoever did before
    command = [sys.executable, SCRIPT, str(compute_capability)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-4000:]
    compiled = [json.loads(line) for line in done.stdout.splitlines()]
    assert {kernel["name"] for kernel in compiled} == KERNELS
    for kernel in compiled:
        assert f".target sm_{compute_capability}" in kernel["target"]
        assert kernel["machine_code"] > 0
        assert kernel["shared"] <= SHARED
        assert kernel["keeps_nan"]  # in the interpreter every minimum does
