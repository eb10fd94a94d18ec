"""The selective scan on the CPU: against mambapy's pscan, torch.exp, more groups, longer sequences.

    python benchmarks/scan.py [--repeats=9]

Every table alternates its sides in one process. mambapy comes with ``pip install '.[test]'``.
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time

import report
import torch

from recbole_hydra.ops import selective_scan
from recbole_hydra.ops.selective_scan.bench import make_inputs, pscan_with_our_signature

SHAPE = (64, 200, 128)  # batch, length, channels
LENGTHS = [64, 256, 1024, 4096, 16_384, 65_536]

COLD = """
import time
from recbole_hydra.ops import selective_scan
from recbole_hydra.ops.selective_scan import numba_cpu
from recbole_hydra.ops.selective_scan.bench import make_inputs
inputs = make_inputs(2, 20, 16, 4, 1)
start = time.perf_counter()
selective_scan(*inputs, backend="numba").sum().backward()
print(time.perf_counter() - start)
"""


def forward_backward(scan, inputs):
    """Milliseconds of the forward and of the backward pass."""
    for x in inputs:
        x.grad = None
    start = time.perf_counter()
    y = scan(*inputs)
    middle = time.perf_counter()
    y.backward(torch.ones_like(y))
    return 1e3 * (middle - start), 1e3 * (time.perf_counter() - middle)


def numba(*inputs):
    return selective_scan(*inputs, backend="numba")


def measure(sides, repeats):
    """Alternate ``{name: (scan, inputs)}``; return ``{name: [(forward, backward)]}``."""
    for scan, inputs in sides.values():
        forward_backward(scan, inputs)
    times = {name: [] for name in sides}
    for _ in range(repeats):
        for name, (scan, inputs) in sides.items():
            times[name].append(forward_backward(scan, inputs))
    return times


def columns(times):
    """Forward, backward and their sum as text, and the median of the sum."""
    both = [f + b for f, b in times]
    cells = [report.spread([f for f, _ in times], 1), report.spread([b for _, b in times], 1)]
    return [*cells, report.spread(both, 1)], statistics.median(both)


def against_pscan(repeats):
    pscan = pscan_with_our_signature()
    if pscan is None:
        return "mambapy is not installed."
    rows = []
    for d_state in (16, 32):
        inputs = make_inputs(*SHAPE, d_state, 1)
        times = measure({"numba": (numba, inputs), "pscan": (pscan, inputs)}, repeats)
        ours, ours_median = columns(times["numba"])
        theirs, theirs_median = columns(times["pscan"])
        rows.append([d_state, *ours, theirs[-1], f"{theirs_median / ours_median:.1f}"])
    return report.table(
        ["d_state", "forward", "backward", "both", "mambapy pscan, both", "ratio"], rows
    )


def against_exp(repeats):
    """The forward pass beside torch.exp of as many values as it takes exponentials of."""
    block = torch.randn(2**15)  # 128 KB: stays in the second-level cache
    out = torch.empty_like(block)
    rows = []
    for d_state in (16, 32):
        inputs = make_inputs(*SHAPE, d_state, 1)
        blocks = SHAPE[0] * SHAPE[1] * SHAPE[2] * d_state // len(block)
        scan, exp = [], []
        with torch.no_grad():
            numba(*inputs)
            for _ in range(repeats):
                start = time.perf_counter()
                numba(*inputs)
                scan.append(1e3 * (time.perf_counter() - start))
                start = time.perf_counter()
                for _ in range(blocks):
                    torch.exp(block, out=out)
                exp.append(1e3 * (time.perf_counter() - start))
        ratio = statistics.median(scan) / statistics.median(exp)
        rows.append([d_state, report.spread(scan, 1), report.spread(exp, 1), f"{ratio:.2f}"])
    return report.table(["d_state", "forward, without gradients", "torch.exp alone", "ratio"], rows)


def groups(repeats):
    rows = []
    for d_state in (16, 32):
        sides = {v: (numba, make_inputs(*SHAPE, d_state, v)) for v in (1, 4, 16)}
        times = measure(sides, repeats)
        one = columns(times[1])[1]
        for v in sides:
            cells, both = columns(times[v])
            rows.append([d_state, v, SHAPE[2] // v, *cells, f"{both / one:.2f}"])
    headers = ["d_state", "groups", "channels each", "forward", "backward", "both", "against one"]
    return report.table(headers, rows)


def lengths(repeats):
    """Nanoseconds per token of one sequence, and of sixteen."""
    rows = []
    for batch in (1, 16):
        found = {}
        for length in LENGTHS:
            if batch * length > 16 * 16_384:
                continue
            times = measure({0: (numba, make_inputs(batch, length, 128, 16, 1))}, repeats)[0]
            found[length] = [1e6 * (f + b) / batch / length for f, b in times]
        for length, values in found.items():
            rows.append([batch, f"{length:,}", report.spread(values)])
    return report.table(["batch", "length", "ns per token, forward + backward"], rows)


def cold_compile():
    """Seconds of the first call where no compiled code is cached."""
    with tempfile.TemporaryDirectory() as folder:
        environment = {**os.environ, "NUMBA_CACHE_DIR": folder}
        seconds = []
        for _ in range(2):
            done = subprocess.run(
                [sys.executable, "-c", COLD],
                env=environment,
                check=True,
                capture_output=True,
                text=True,
            )
            seconds.append(float(done.stdout.split()[-1]))
    return f"First call, forward + backward: {seconds[0]:.1f} s cold, {seconds[1]:.1f} s cached."


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--repeats", type=int, default=9)
    repeats = parser.parse_args().repeats
    batch, length, channels = SHAPE
    report.write(
        "scan",
        "Selective scan on the CPU",
        f"Milliseconds, median [range] of {repeats}; batch {batch}, length {length}, {channels} "
        f"channels unless said. `python benchmarks/scan.py --repeats={repeats}`",
        "## Against mambapy's pscan",
        against_pscan(repeats),
        "## Against the exponentials alone",
        "torch.exp in blocks of 32,768 values, as many as the scan takes exponentials of.",
        against_exp(repeats),
        "## More groups (heads) of the same channels",
        groups(repeats),
        "## Length",
        lengths(repeats),
        "## Compiling",
        cold_compile(),
    )


if __name__ == "__main__":
    main()
