"""Two commits on the benchmarks: an epoch of ml-100k, the evaluation, and what a user waits for.

    python benchmarks/compare_commits.py BEFORE [AFTER] [--rounds=7] [--most=2]
        [--models=Hydra,Mamba4Rec,SASRec,GRU4Rec] [--start_up=True]

``BEFORE`` and ``AFTER`` are revisions; without ``AFTER`` it is this checkout as it is. Each model
on each side is a process of its own, with a thread per core, that waits until it is asked; in every
round each trains for ``--most`` seconds on every position, the sides alternating, and the seconds
are scaled to an epoch. Start-up is the CPU time of ``--help``, of a mistyped option, and of
importing the package. Medians and ranges; the table is printed, nothing is written.
"""

import argparse
import os
import resource
import statistics
import subprocess
import sys
from contextlib import ExitStack
from functools import partial
from pathlib import Path

import report
from busy import MODELS, THREADS, Worker, source_of

ROOT = Path(__file__).resolve().parents[1]

#: What is started, by name: code, and its arguments.
STARTS = {
    "--help": ("import sys; from recbole_hydra.cli import main; main(sys.argv[1:])", ["--help"]),
    "a mistyped option": (
        "import sys; from recbole_hydra.cli import main; main(sys.argv[1:])",
        ["--model=Hydra", "--dataset=ml-100k", "--hiden_size=3"],
    ),
    "import recbole_hydra": ("import recbole_hydra", []),
}


def cpu_seconds(source, code, arguments) -> float:
    """CPU time of a process that runs ``code`` with the package in ``source``."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith(THREADS)}
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code, *arguments],
        env={**environment, "PYTHONPATH": str(source)}, capture_output=True, check=False,
        cwd=source,  # where code given by -c looks first
    )  # fmt: skip
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def alternating(sides, rounds) -> dict:
    """{side: [what its function returns]}, the sides in turn, each round the other way."""
    found = {side: [] for side in sides}
    for round_ in range(rounds):
        for side in list(sides)[:: -1 if round_ % 2 else 1]:
            found[side].append(sides[side]())
    return found


def row(name, found, digits) -> list:
    before, after = (found[side] for side in ("before", "after"))
    ratio = statistics.median(after) / statistics.median(before)
    return [name, report.spread(before, digits), report.spread(after, digits), f"{ratio:.2f}"]


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("before")
    parser.add_argument("after", nargs="?")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--most", type=float, default=2)
    parser.add_argument("--models", default=MODELS)
    parser.add_argument("--start_up", default="True")
    arguments = parser.parse_args()
    rows = []
    with ExitStack() as stack:
        sources = {
            "before": stack.enter_context(source_of(arguments.before)),
            "after": stack.enter_context(source_of(arguments.after)) if arguments.after else ROOT,
        }
        for model in filter(None, arguments.models.split(",")):
            workers = {side: Worker(model, source, {}) for side, source in sources.items()}
            try:
                epochs = {side: partial(w.epoch, arguments.most) for side, w in workers.items()}
                found = alternating(epochs, arguments.rounds)
            finally:
                for worker in workers.values():
                    worker.process.kill()
            rows.append(row(f"{model}, an epoch, s", found, 2))
            print(rows[-1], flush=True)
        for name, what in STARTS.items() if arguments.start_up == "True" else ():
            starts = {side: partial(cpu_seconds, path, *what) for side, path in sources.items()}
            found = alternating(starts, arguments.rounds)
            rows.append(row(f"{name}, CPU s", found, 2))
    print(report.table(["", "before", "after", "after / before"], rows))


if __name__ == "__main__":
    main()
