"""One event at batch 1: ONNX Runtime with the exported graph, and the kernel that numba compiles.

    python benchmarks/onnx_step.py [--rounds=21] [--events=1000] [--items=12000]

Hydra and Mamba4Rec with their defaults and random weights, which do not matter for the times. Both
sides go on from a state in the same process, taking turns; medians and ranges over the rounds of
the median of a round's events. Also a window of 50 items read at once. Writes
``results/onnx_step.md``.
"""

import argparse
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
import onnxruntime
import report
import torch

from recbole_hydra import Config, Hydra, Mamba4Rec
from recbole_hydra.serving.compiled import CompiledEncoder, read_vectors, weights_of
from recbole_hydra.serving.onnx_graph import Encoder, Table, history_model, step_model

WINDOW = 50


class Catalogue:
    """What a model asks its dataset for."""

    is_from_checkpoint = True

    def __init__(self, items):
        self.items = items

    def num(self, field):
        return self.items


def sessions(model, folder):
    """The graphs of a step and of a history, one thread each."""
    weights, mambas = weights_of(model, lanes=1)
    table = read_vectors(model)
    file = Path(folder) / "items.npy"
    np.save(file, table)
    place = Table(file.name, file.stat().st_size - table.nbytes, table.shape)
    encoder = Encoder(weights, mambas, range(mambas.conv.shape[0]), place)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    for made in (step_model(encoder), history_model(encoder)):
        path = Path(folder) / "graph.onnx"
        path.write_bytes(made.SerializeToString())
        yield onnxruntime.InferenceSession(path, options), len(made.graph.node)
    yield sum(encoder.parts)


def medians(jobs, rounds, times) -> dict:
    """{name: [median microseconds of a call, per round]} of jobs that take turns."""
    found = {name: [] for name in jobs}
    for round_ in range(rounds + 1):
        for name in list(jobs)[:: -1 if round_ % 2 else 1]:
            taken = []
            for i in range(times):
                start = time.perf_counter_ns()
                jobs[name](i)
                taken.append(time.perf_counter_ns() - start)
            found[name].append(statistics.median(taken) / 1e3)
    return {name: values[1:] for name, values in found.items()}  # the first warms up


def measured(name, n_items, rounds, events) -> tuple[list, list]:
    """Rows of one event, and of a window at once."""
    torch.manual_seed(0)
    model = {"Hydra": Hydra, "Mamba4Rec": Mamba4Rec}[name](
        Config(name, "ml-100k"), Catalogue(n_items)
    ).eval()
    items = np.random.default_rng(0).integers(1, n_items, 4096)
    encoder = CompiledEncoder(model)
    with tempfile.TemporaryDirectory() as folder:
        (step, nodes), (history, _), size = sessions(model, folder)
    states = np.zeros((1, encoder.state_size), np.float32)
    start, position, stack = np.array([0, 1]), np.zeros(1, np.int64), np.zeros(1, np.int64)
    state = np.zeros((1, size), np.float32)

    def by_numba(i):
        position[0] = i
        return encoder(items[i % 4096, None], start, states, position, stack)

    def by_onnx(i):
        nonlocal state
        vector, state = step.run(None, {"item": items[i % 4096, None], "state": state})
        return vector

    for i in range(100):
        np.testing.assert_allclose(by_onnx(i), by_numba(i), rtol=0, atol=1e-5)
    ends, lengths = np.array([0, WINDOW]), np.array([WINDOW])
    windows = items[: 64 * WINDOW].reshape(64, WINDOW)
    jobs = {
        "numba": lambda i: encoder(windows[i % 64], ends),
        "ONNX Runtime": lambda i: history.run(
            None, {"items": windows[i % 64, None], "lengths": lengths}
        ),
    }
    np.testing.assert_allclose(jobs["numba"](0), jobs["ONNX Runtime"](0)[0], rtol=0, atol=1e-5)
    rows = []
    for found in (
        medians({"numba": by_numba, "ONNX Runtime": by_onnx}, rounds, events),
        medians(jobs, rounds, max(events // 10, 1)),
    ):
        numba, onnx = found["numba"], found["ONNX Runtime"]
        ratio = statistics.median(onnx) / statistics.median(numba)
        rows.append([name, report.spread(numba, 1), report.spread(onnx, 1), f"{ratio:.1f}"])
    rows[0].insert(1, nodes)
    return rows[0], rows[1]


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=21)
    parser.add_argument("--events", type=int, default=1000)
    parser.add_argument("--items", type=int, default=12_000)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    given = arguments.items, arguments.rounds, arguments.events
    one, window = zip(*(measured(name, *given) for name in ("Hydra", "Mamba4Rec")), strict=True)
    said = (
        f"`python benchmarks/onnx_step.py --rounds={given[1]} --events={given[2]}`: "
        f"defaults, {arguments.items:,} items, batch 1, one thread, onnxruntime "
        f"{onnxruntime.__version__}. Microseconds of a call from Python, medians [range] over "
        "rounds that alternate; other processes ran beside it."
    )
    sides = ["numba kernel", "ONNX Runtime", "ONNX Runtime / numba"]
    report.write(
        "onnx_step",
        "One event: ONNX Runtime and numba",
        said,
        f"## One event, from a state\n\n{report.table(['', 'operators in the file', *sides], one)}",
        f"## {WINDOW} items at once\n\n{report.table(['', *sides], window)}",
    )


if __name__ == "__main__":
    main()
