"""Training time of an epoch on ml-100k beside other busy processes, before and now.

    python benchmarks/busy.py [--before=REVISION] [--rounds=3] [--most=8] [--minutes=15]
        [--beside=0,1,2] [--models=Hydra,Mamba4Rec,SASRec,GRU4Rec] [--spin=0,100]

"Now" is this checkout; "before" is ``--before``, a revision of its history; "now, spinning" is this
checkout with threads that wait as they do by default, which the environment says. ``--spin`` adds a
side for each of its values of GOMP_SPINCOUNT. Every model on every side is a process of its own,
with a thread per core, that waits until it is asked. In every round each trains an epoch with 0, 1
and 2 processes beside it that compute on one thread without end, the sides alternating; then two
processes of "now" train the same model side by side. An epoch is cut short after ``--most`` seconds
and scaled by the share of its batches that were done; no model begins a round when its share of
``--minutes`` is over. Time is that of the training loop.
"""

import argparse
import importlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
import types
from contextlib import contextmanager
from pathlib import Path

MODELS = "Hydra,Mamba4Rec,SASRec,GRU4Rec"

#: Batches before the first that counts: they compile the kernels and touch the memory.
WARM_UP = 3

#: GOMP_SPINCOUNT of GNU's OpenMP where nobody says anything.
SPINNING = "300000"

#: Computes on one thread, until the process that started it is gone.
BUSY = """
import os
parent = os.getppid()
while os.getppid() == parent:
    for _ in range(1_000_000):
        pass
"""

#: What a user may have said about threads, which neither side is to see.
THREADS = ("OMP_", "GOMP_", "KMP_", "NUMBA_NUM_THREADS", "MKL_NUM_THREADS")


class Until:
    """The batches of a loader up to a number of seconds, as a loader; counts them."""

    def __init__(self, loader, most):
        self.loader, self.most, self.done = loader, most, 0

    def __iter__(self):
        start = time.perf_counter()
        for batch in self.loader:
            if self.done and time.perf_counter() - start > self.most:
                return
            self.done += 1
            yield batch

    def __len__(self):
        return len(self.loader)


def work(model):
    """A process that trains ``model`` for as long as each line of its input says, and answers with
    the seconds of an epoch."""
    meet_older_package()
    from epoch import Firsts, prepare, seconds

    from recbole_hydra.machine import machine
    from recbole_hydra.training.window_loss import WindowLoss

    trainer, loader = prepare(model, "ml-100k", {"training_mode": "autoregressive"})
    loss = WindowLoss(trainer.model, False, trainer.config["later_targets"])
    seconds(trainer, Firsts(loader, WARM_UP), loss)
    print("ready", machine(), flush=True)
    for line in sys.stdin:
        batches = Until(loader, float(line))
        taken = seconds(trainer, batches, loss)
        print("epoch", taken * len(loader) / batches.done, flush=True)


def meet_older_package():
    """Let a revision from before modules moved have them where they are today."""
    import recbole_hydra

    if not (Path(recbole_hydra.__file__).parent / "training").is_dir():
        sys.modules["recbole_hydra.training"] = types.ModuleType("recbole_hydra.training")
        for name in ("trainer", "window_loss"):
            older = importlib.import_module(f"recbole_hydra.{name}")
            sys.modules[f"recbole_hydra.training.{name}"] = older


class Worker:
    """Such a process, of the package in ``source``, with ``variables`` in its environment."""

    def __init__(self, model, source, variables):
        environment = {k: v for k, v in os.environ.items() if not k.startswith(THREADS)}
        self.process = subprocess.Popen(
            [sys.executable, "-W", "ignore", __file__, f"--work={model}"],
            env={**environment, **variables, "PYTHONPATH": str(source)},
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        self.machine = self.answer("ready")

    def answer(self, word):
        """The rest of the next line that begins with ``word``."""
        for line in self.process.stdout:
            first, _, rest = line.strip().partition(" ")
            if first == word:
                return rest
        raise SystemExit("busy.py: a process that trains has ended; its error is above")

    def begin(self, most):
        self.process.stdin.write(f"{most}\n")
        self.process.stdin.flush()

    def epoch(self, most) -> float:
        """Seconds of an epoch."""
        self.begin(most)
        return float(self.answer("epoch"))


@contextmanager
def busy(number):
    """Processes that compute on one thread without end."""
    processes = [subprocess.Popen([sys.executable, "-c", BUSY]) for _ in range(number)]
    time.sleep(0.2)
    try:
        yield
    finally:
        for process in processes:
            process.kill()
            process.wait()


@contextmanager
def source_of(revision):
    """A folder with the package as it was in ``revision``."""
    root = Path(__file__).resolve().parents[1]
    with tempfile.TemporaryDirectory() as folder:
        archive = subprocess.run(
            ["git", "-C", root, "archive", revision, "recbole_hydra", "properties"],
            check=True, capture_output=True,
        )  # fmt: skip
        subprocess.run(["tar", "-x", "-C", folder], input=archive.stdout, check=True)
        yield folder


def measure(model, sides, rounds, most, beside, until):
    """{(side, processes beside it): [seconds of an epoch]}, and ("pair", 1) of two runs of now.

    Args:
        sides: {name: (source, variables)} of :class:`Worker`.
        until: the time of ``time.monotonic`` after which no round begins; one there is always.
    """
    workers, times = {}, {}
    try:
        for side, what in [*sides.items(), ("pair", sides["now"])]:
            workers[side] = Worker(model, *what)
        for round_ in range(rounds):
            if round_ and time.monotonic() > until:
                break
            for number in beside:
                for side in list(sides)[:: -1 if round_ % 2 else 1]:
                    with busy(number):
                        found = workers[side].epoch(most)
                    times.setdefault((side, number), []).append(found)
            # Each epoch counts only while the other one runs.
            for worker in (workers["now"], workers["pair"]):
                worker.begin(most)
            both = [float(workers[side].answer("epoch")) for side in ("now", "pair")]
            times.setdefault(("pair", 1), []).append(max(both))
        return times, workers["now"].machine
    finally:
        for worker in workers.values():
            worker.process.kill()


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--before", default="a706b35")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--most", type=float, default=8)
    parser.add_argument("--minutes", type=float, default=15)
    parser.add_argument("--spin", default="")
    parser.add_argument("--beside", default="0,1,2")
    parser.add_argument("--models", default=MODELS)
    parser.add_argument("--work", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.work:
        return work(arguments.work)
    import report

    beside = [int(number) for number in arguments.beside.split(",")]
    root, rows, found = Path(__file__).resolve().parents[1], [], {}
    begun, models = time.monotonic(), arguments.models.split(",")
    with source_of(arguments.before) as before:
        sides = {
            "before": (before, {}),
            "now, spinning": (root, {"GOMP_SPINCOUNT": SPINNING}),
            **{
                f"now, GOMP_SPINCOUNT={value}": (root, {"GOMP_SPINCOUNT": value})
                for value in filter(None, arguments.spin.split(","))
            },
            "now": (root, {}),
        }
        for done, model in enumerate(models, 1):
            until = begun + 60 * arguments.minutes * done / len(models)
            limits = arguments.rounds, arguments.most, beside, until
            times, machine = measure(model, sides, *limits)
            found[model] = {f"{side}, {number}": x for (side, number), x in times.items()}
            middle = {key: statistics.median(values) for key, values in times.items()}
            for side in sides:
                cells = [report.spread(times[side, number], 2) for number in beside]
                ratios = [f"{middle[side, n] / middle[side, beside[0]]:.2f}" for n in beside[1:]]
                quiet = f"{middle[side, beside[0]] / middle['before', beside[0]]:.2f}"
                pair = ["", ""]
                if side == "now":
                    pair = [report.spread(times["pair", 1], 2)]
                    pair.append(f"{middle['pair', 1] / middle['now', beside[0]]:.2f}")
                rows.append([model, side, *cells, *ratios, quiet, *pair])
                print(rows[-1], flush=True)
    words = [f"{number} beside, s" for number in beside]
    times = [f"{number} beside / quiet" for number in beside[1:]]
    keys = ("before", "rounds", "most", "minutes", "beside", "models", "spin")
    command = " ".join(f"--{key}={getattr(arguments, key)}" for key in keys)
    report.write(
        "busy",
        "An epoch on ml-100k beside other busy processes",
        f"Seconds of the training loop on every position, default settings, median [range] of "
        f"up to {arguments.rounds} rounds, the sides alternating; an epoch of more than "
        f"{arguments.most:.0f} s is cut short and scaled. Those who train: {machine}. Beside them "
        "run processes that compute on one thread without end. Before: revision "
        f"{arguments.before}; spinning: with GOMP_SPINCOUNT={SPINNING}. Pair: two "
        "runs of now, side by side, the slower one. "
        f"`python benchmarks/busy.py {command}`",
        report.table(
            ["model", "", *words, *times, "quiet / quiet before", "pair, s", "pair / quiet"], rows
        ),
    )
    (report.RESULTS / "busy.json").write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
