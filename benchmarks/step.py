"""Time and memory of a training step by length of the history, for the four causal models.

    python benchmarks/step.py [--lengths=64,128,200,256,...,16384] [--rounds=5] [--tokens=16384]

A step is forward, loss on every position, backward and Adam; a batch holds about ``--tokens`` items
in sequences of one length (one sequence at least), of a catalogue of 3,417 items. The models
alternate in one process per length; memory is the peak of a process of its own per cell, above that
before its model was made. A cell that does not fit in the machine's memory is written OOM.
"""

import argparse
import json
import statistics
import subprocess
import sys
import time

import report
import torch
from recbole.data.interaction import Interaction

from recbole_hydra import Config
from recbole_hydra.machine import peak_memory
from recbole_hydra.training.window_loss import WindowLoss

MODELS = ["SASRec", "GRU4Rec", "Mamba4Rec", "Hydra"]
LENGTHS = [64, 128, 200, 256, 512, 1024, 2048, 4096, 8192, 16384]
N_ITEMS = 3417
#: Seconds after which a cell begins no further round; its second warm-up is left out after a third.
SLOW = 30.0


class Items:
    """A dataset, as far as a model asks."""

    def __init__(self, n_items=N_ITEMS):
        self.n_items = n_items

    def num(self, field):
        return self.n_items


class Step:
    """One model, its optimizer and one batch; calling it trains for a step."""

    def __init__(self, name, length, tokens, n_items=N_ITEMS, **settings):
        settings = {"MAX_ITEM_LIST_LENGTH": length, "use_gpu": False, **settings}
        config = Config(name, "tiny", config_dict=settings)
        torch.manual_seed(0)
        self.model = config.model_class(config, Items(n_items)).train()
        self.loss = WindowLoss(self.model)
        self.optimizer = torch.optim.Adam(self.model.parameters(), lr=1e-3, fused=True)
        rows = max(1, tokens // length)
        items = torch.randint(1, n_items, (rows, length + 1))
        lengths = torch.full((rows,), length)
        self.tokens = rows * length
        self.batch = Interaction(
            {"item_id_list": items[:, :-1], "item_length": lengths, "item_id": items[:, 1:]}
        )

    def __call__(self):
        start = time.perf_counter()
        self.optimizer.zero_grad()
        self.loss(self.batch).backward()
        self.optimizer.step()
        return time.perf_counter() - start


def limit_memory():
    """Let an allocation beyond the free memory fail, instead of the machine."""
    import resource

    import psutil

    limit = int(0.9 * psutil.virtual_memory().available)
    resource.setrlimit(resource.RLIMIT_AS, (limit + _address_space(), -1))


def _address_space():
    import psutil

    return psutil.Process().memory_info().vms


def is_out_of_memory(error):
    return isinstance(error, MemoryError) or "memory" in str(error).lower()


def child(kind, models, length, rounds, tokens):
    """Print the measurements of one process as json: seconds per step, or peak bytes."""
    steps, found = {}, {}
    if kind == "memory":
        small = Step(models[0], 64, 64)
        small()  # loads the libraries and compiles
    limit_memory()
    before = peak_memory()
    for name in models:
        try:
            step = Step(name, length, tokens)
            if step() < SLOW / 3:
                step()
            steps[name], found[name] = step, []
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            found[name] = None
    if kind == "memory":
        peak = peak_memory() - before
        print(json.dumps({name: value if value is None else peak for name, value in found.items()}))
        return
    for _ in range(rounds):
        for name, step in steps.items():
            if sum(found[name]) * step.tokens < SLOW:
                found[name].append(step() / step.tokens)
    print(json.dumps(found))


def run_child(*arguments):
    command = [sys.executable, __file__, "--child", json.dumps(arguments)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode in (-9, 137):
        return {name: None for name in arguments[1]}
    if done.returncode:
        raise RuntimeError(done.stderr)
    return json.loads(done.stdout.splitlines()[-1])


def plot(lengths, seconds, memory):
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, 2, figsize=(11, 4), layout="constrained")
    sides = ((axes[0], seconds, 1e6, "µs per token"), (axes[1], memory, 2**-10, "KB per token"))
    for axis, values, scale, label in sides:
        for name in MODELS:
            points = [(n, values[n][name]) for n in lengths if values[n].get(name) is not None]
            axis.plot(*zip(*[(n, scale * v) for n, v in points], strict=True), "o-", label=name)
        axis.set(xscale="log", yscale="log", xlabel="length of the history", ylabel=label)
        axis.set_xticks(lengths, [f"{n:,}" for n in lengths], rotation=45)
        axis.grid(alpha=0.3)
    axes[0].set_title("training step, time")
    axes[1].set_title("training step, peak memory")
    axes[0].legend()
    figure.savefig(report.RESULTS / "step.png", dpi=120)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--lengths", default=",".join(map(str, LENGTHS)))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--tokens", type=int, default=16384)
    parser.add_argument("--child", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        return child(*json.loads(arguments.child))
    lengths = [int(n) for n in arguments.lengths.split(",")]
    seconds, memory, rows = {}, {}, []
    for length in lengths:
        tokens = max(length, arguments.tokens // length * length)
        times = run_child("time", MODELS, length, arguments.rounds, tokens)
        seconds[length] = {k: v and statistics.median(v) for k, v in times.items()}
        memory[length] = {}
        for name in MODELS:
            (peak,) = run_child("memory", [name], length, 0, tokens).values()
            memory[length][name] = peak and peak / tokens
            if times[name] is None or peak is None:
                rows.append([name, f"{length:,}", "OOM", "OOM", "OOM", "OOM"])
            else:
                per_token = [1e6 * x for x in times[name]]
                rows.append(
                    [
                        name,
                        f"{length:,}",
                        f"{1e3 * tokens * seconds[length][name]:.0f}",
                        report.spread(per_token, 1),
                        f"{1 / seconds[length][name]:,.0f}",
                        f"{peak / tokens / 1024:.1f}",
                    ]
                )
            print(rows[-1], flush=True)
    plot(lengths, seconds, memory)
    headers = ["model", "length", "step, ms", "µs per token", "tokens/s", "peak KB per token"]
    rows.sort(key=lambda row: MODELS.index(row[0]))
    command = f"--lengths={arguments.lengths} --rounds={arguments.rounds} "
    report.write(
        "step",
        "A training step by length of the history",
        f"About {arguments.tokens:,} tokens per step, median [range] of {arguments.rounds} rounds "
        f"(fewer once they took {SLOW:.0f} s), the models alternating. "
        f"`python benchmarks/step.py {command}--tokens={arguments.tokens}`",
        report.table(headers, rows),
        "![time and memory per token](step.png)",
    )


if __name__ == "__main__":
    main()
