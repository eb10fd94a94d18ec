"""A sweep of Hydra on ml-100k with ASHA, and the same trials without it.

    python benchmarks/sweep.py [--num_samples=20] [--epochs=50] [--folder=sweeps]

Random configurations of ``properties/tune/Hydra.yaml``, the same in both sweeps, two at a time. The
sweeps go into ``--folder`` (a second call continues them); the report takes their tables and the
picture of the first. Wall time is that of all calls: starting Ray, the trials, the test.
"""

import argparse
import shutil
import threading
import time
from pathlib import Path

import report

from recbole_hydra.output_folder import read_json, write_json
from recbole_hydra.tune import Sweep, tune

NAME = "sweep-ml-100k"


def sweep(folder: Path, scheduler: str, num_samples: int, epochs: int) -> tuple[Sweep, float]:
    """Run a sweep, or what is left of it; returns it with the seconds of all calls."""
    clock = folder.with_suffix(".json")
    before, start, over = read_json(clock) or 0.0, time.perf_counter(), threading.Event()

    def tick():  # a call that is killed counts, too
        while not over.wait(5):
            write_json(clock, before + time.perf_counter() - start)

    threading.Thread(target=tick, daemon=True).start()
    try:
        done = tune(
            "Hydra", "ml-100k", output_dir=folder, num_samples=num_samples, scheduler=scheduler,
            max_concurrent=2, resume=folder.exists(), config_dict={"epochs": epochs},
        )  # fmt: skip
    finally:
        over.set()
    seconds = before + time.perf_counter() - start
    write_json(clock, seconds)
    return done, seconds


def row(name, done: Sweep, seconds: float) -> list:
    states = [trial["status"] for trial in done.trials]
    epochs = sum(trial["history"][-1]["epoch"] for trial in done.trials if trial["history"])
    best, test = done.best, done.test_result
    return [
        name, len(states), states.count("stopped"), epochs, f"{seconds:.0f}", best["number"],
        best["best_epoch"], f"{best['valid_result']['ndcg@10']:.4f}",
        *(f"{test[metric]:.4f}" for metric in ("ndcg@10", "hit@10", "mrr@10")),
    ]  # fmt: skip


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--num_samples", type=int, default=20)
    parser.add_argument("--epochs", type=int, default=50)
    parser.add_argument("--folder", type=Path, default=Path("sweeps"))
    options = parser.parse_args()
    options.folder.mkdir(exist_ok=True)
    limits = options.num_samples, options.epochs
    with_asha, seconds = sweep(options.folder / "asha", "asha", *limits)
    without, longer = sweep(options.folder / "none", "none", *limits)

    folder = report.RESULTS / NAME
    folder.mkdir(parents=True, exist_ok=True)
    for file in ("best.yaml", "trials.csv", "sweep.png"):
        shutil.copy(with_asha.folder / file, folder / file)
    shutil.copy(without.folder / "trials.csv", folder / "trials-without-asha.csv")
    headers = [
        "scheduler", "trials", "stopped early", "epochs trained", "wall time, s", "best trial",
        "its best epoch", "valid NDCG@10", "test NDCG@10", "test Hit@10", "test MRR@10",
    ]  # fmt: skip
    rows = [row("ASHA", with_asha, seconds), row("none", without, longer)]
    settings = with_asha.identity["scheduler"]
    chosen = "\n".join(f"- {name}: {value}" for name, value in with_asha.best["params"].items())
    report.write(
        f"{NAME}/report",
        "A sweep of Hydra on ml-100k",
        f"`python benchmarks/sweep.py --num_samples={limits[0]} --epochs={limits[1]}`: random "
        "search in `properties/tune/Hydra.yaml`, the same configurations and seed in both rows, "
        "every-position training, two trials at a time, early stopping after ten epochs without "
        f"improvement. ASHA: {settings}. One run each; the test set was read once per row, for the "
        "configuration chosen on validation.",
        report.table(headers, rows),
        f"ASHA took {seconds / longer:.0%} of the time and {rows[0][3] / rows[1][3]:.0%} of the "
        "epochs.",
        f"The configuration that the sweep with ASHA chose ([best.yaml](best.yaml)):\n\n{chosen}",
        "![the sweep with ASHA](sweep.png)",
        "All trials: [trials.csv](trials.csv), and [without ASHA](trials-without-asha.csv).",
    )


if __name__ == "__main__":
    main()
