"""Cross-entropy over a catalogue: blocked against F.cross_entropy, and the sampled losses.

    python benchmarks/loss.py [--repeats=15]

First table: forward + backward of ``linear_cross_entropy`` and of
``F.cross_entropy(hidden @ weight.T, target)``, 2,048 states of width 64, alternating in one
process; peak memory from a process of its own per cell. Then the sampled losses by size of the
catalogue, up to 1,000,000 items: the losses alone, and whole training steps of Hydra.
"""

import argparse
import statistics
import subprocess
import sys
import time

import report
import torch
import torch.nn.functional as F

from recbole_hydra.machine import peak_memory
from recbole_hydra.model.losses import NegativeSampler, gbce, sampled_cross_entropy
from recbole_hydra.ops import linear_cross_entropy

TARGETS, WIDTH = 2048, 64
CATALOGUES = [1_683, 3_417, 12_101, 50_000]
SAMPLED = [10_000, 100_000, 1_000_000]
NEGATIVES = 256


def inputs(n_items):
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(TARGETS, WIDTH, generator=generator).requires_grad_()
    weight = (0.1 * torch.randn(n_items, WIDTH, generator=generator)).requires_grad_()
    return hidden, weight, torch.randint(1, n_items, (TARGETS,), generator=generator)


def plain(hidden, weight, target):
    return F.cross_entropy(hidden @ weight.T, target)


SIDES = {"F.cross_entropy": plain, "linear_cross_entropy": linear_cross_entropy}


def milliseconds(loss, hidden, weight, target):
    hidden.grad = weight.grad = None
    start = time.perf_counter()
    loss(hidden, weight, target).backward()
    return 1e3 * (time.perf_counter() - start)


def peak_megabytes(side, n_items):
    """Peak memory of one forward + backward above that of the inputs, in a process of its own."""
    command = [sys.executable, __file__, "--child", side, str(n_items)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return float(done.stdout.split()[-1])


def child(side, n_items):
    milliseconds(SIDES[side], *inputs(1000))  # loads the libraries
    arguments = inputs(n_items)
    before = peak_memory()
    milliseconds(SIDES[side], *arguments)
    print((peak_memory() - before) / 2**20)


def full_softmax(repeats):
    rows = []
    for n_items in CATALOGUES:
        arguments = inputs(n_items)
        times = {side: [] for side in SIDES}
        for loss in SIDES.values():
            milliseconds(loss, *arguments)
        for _ in range(repeats):
            for side, loss in SIDES.items():
                times[side].append(milliseconds(loss, *arguments))
        naive, blocked = times.values()
        ratio = statistics.median(naive) / statistics.median(blocked)
        memory = [peak_megabytes(side, n_items) for side in SIDES]
        rows.append(
            [f"{n_items:,}", report.spread(naive), report.spread(blocked), f"{ratio:.2f}"]
            + [f"{x:.0f}" for x in memory]
            + [f"{TARGETS * n_items * 4 / 2**20:.0f}"]
        )
    headers = ["items", "F.cross_entropy, ms", "linear_cross_entropy, ms", "ratio"]
    headers += ["peak MB, F.cross_entropy", "peak MB, linear_cross_entropy", "MB of all scores"]
    return report.table(headers, rows)


def sampled(repeats):
    """The losses alone, on the rows of the item table that they use."""
    rows = []
    for n_items in SAMPLED:
        hidden, weight, target = inputs(n_items)
        sampler = NegativeSampler(n_items, NEGATIVES, "popularity", torch.arange(n_items))
        times = {"SampledCE": [], "gBCE": []}
        for _ in range(repeats + 1):
            for name in times:
                start = time.perf_counter()
                items, log_expected = sampler.draw(hidden.device)
                part = weight.detach()[torch.cat([target, items])].requires_grad_()
                local = torch.arange(len(part)).split([len(target), len(items)])
                if name == "SampledCE":
                    loss = sampled_cross_entropy(hidden, part, *local, log_expected)
                else:
                    loss = gbce(hidden, part, *local, 0.75, n_items - 1)
                loss.backward()
                times[name].append(1e3 * (time.perf_counter() - start))
                hidden.grad = None
        rows.append([f"{n_items:,}", *(report.spread(x[1:], 1) for x in times.values())])
    return report.table(["items", "SampledCE, ms", "gBCE, ms"], rows)


def training(repeats):
    """Training steps of Hydra, a process per size of the catalogue."""
    rows = []
    for n_items in SAMPLED:
        command = [sys.executable, __file__, "--train", str(n_items), str(repeats)]
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        *milliseconds, peak = map(float, done.stdout.splitlines()[-1].split())
        rows.append([f"{n_items:,}", report.spread(milliseconds), f"{peak:.2f}"])
    return report.table(["items", "training step, ms", "peak memory of the process, GB"], rows)


def train(n_items, repeats):
    from step import Step

    step = Step("Hydra", 50, TARGETS, n_items, loss_type="SampledCE", num_negatives=NEGATIVES)
    step()
    times = [1e3 * step() for _ in range(repeats)]
    print(*times, peak_memory() / 2**30)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--child", nargs=2, help=argparse.SUPPRESS)
    parser.add_argument("--train", nargs=2, type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.train:
        return train(*arguments.train)
    if arguments.child:
        return child(arguments.child[0], int(arguments.child[1]))
    repeats = arguments.repeats
    report.write(
        "loss",
        "Losses over a catalogue",
        f"Forward + backward, median [range] of {repeats}, the sides alternating in one process; "
        f"{TARGETS:,} states of width {WIDTH}. `python benchmarks/loss.py --repeats={repeats}`",
        full_softmax(repeats),
        f"Sampled losses with {NEGATIVES} negatives of the batch, drawn by popularity: the draw, "
        "the loss, and the gradients of the states and of the rows used.",
        sampled(repeats),
        f"Training Hydra with SampledCE on batches of {TARGETS:,} items in sequences of 50. What "
        "grows with the catalogue is torch's dense gradient of the item table and Adam's update of "
        "it.",
        training(repeats),
    )


if __name__ == "__main__":
    main()
