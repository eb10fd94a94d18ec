"""Training time of one epoch on ml-100k, in RecBole's augmentation mode and on every position.

    python benchmarks/epoch.py [--lengths=50,200] [--models=SASRec,GRU4Rec,Mamba4Rec,Hydra]
        [--rounds=5] [--batches=2]

Both modes train on the same targets, ``train_batch_size`` of them per step, with the default
settings. The modes alternate: in every round one whole epoch on every position, then ``--batches``
steps of augmentation. A batch of augmentation is targets x MAX_ITEM_LIST_LENGTH items, padded, of
which Hydra and Mamba4Rec leave out most of the padding; its rows are drawn at random, so that an
epoch is the time of a step times the number of steps; ``--batches=0`` runs all of them, once a
round. Time is that of the training loop, RecBole's ``Trainer._train_epoch``; evaluation is not in
it.

RecBole itself trains with torch's anomaly detection on, because importing its model SINE switches
it on; importing recbole_hydra undoes that. Augmentation is measured both ways: "as RecBole runs
it", and without, which is the stricter comparison.
"""

import argparse
import itertools
import math
import statistics
import time

import report
import torch
from recbole.utils import init_seed

from recbole_hydra import Config
from recbole_hydra.data import create_dataset, split_dataset
from recbole_hydra.training.trainer import get_trainer
from recbole_hydra.training.window_loss import WindowLoss


class Firsts:
    """The first batches of a loader, as a loader."""

    def __init__(self, loader, number):
        self.loader, self.number = loader, number

    def __iter__(self):
        return itertools.islice(iter(self.loader), self.number)

    def __len__(self):
        return self.number


def prepare(model, dataset, settings):
    """Return a trainer and its train loader."""
    quiet = {"show_progress": False, "state": "WARNING"}
    config = Config(model, dataset, config_dict={**settings, **quiet})
    init_seed(config["seed"], config["reproducibility"])
    train_data, *_ = split_dataset(config, create_dataset(config))
    recommender = config.model_class(config, train_data._dataset).to(config["device"])
    return get_trainer(config)(config, recommender), train_data


def seconds(trainer, batches, loss=None):
    start = time.perf_counter()
    trainer._train_epoch(batches, 0, loss)
    return time.perf_counter() - start


def measure(model, length, rounds, batches):
    """Return the seconds of every epoch measured, by mode, and what an epoch consists of."""
    size = {"MAX_ITEM_LIST_LENGTH": length}
    (window_trainer, windows), (prefix_trainer, prefixes) = (
        prepare(model, "ml-100k", {**size, "training_mode": mode})
        for mode in ("autoregressive", "augmentation")
    )
    steps = math.ceil(prefixes.sample_size / prefixes.step)
    # All batches but the last are full: an epoch is the rows' share of full steps.
    full_steps = prefixes.sample_size / prefixes.step
    some = Firsts(prefixes, min(batches, steps - 1)) if batches else prefixes
    scale = full_steps / len(some) if batches else 1.0
    loss = WindowLoss(window_trainer.model)
    seconds(window_trainer, Firsts(windows, 2), loss)  # compiles, and touches the memory
    seconds(prefix_trainer, Firsts(prefixes, 1))
    times = {"autoregressive": [], "augmentation": [], "as RecBole runs it": []}
    for _ in range(rounds):
        times["autoregressive"].append(seconds(window_trainer, windows, loss))
        times["augmentation"].append(scale * seconds(prefix_trainer, some))
        with torch.autograd.set_detect_anomaly(True):
            times["as RecBole runs it"].append(scale * seconds(prefix_trainer, some))
    inputs = int(windows.windows.length.sum())
    return times, {"targets": prefixes.sample_size, "inputs": inputs, "steps": steps}


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--lengths", default="50,200")
    parser.add_argument("--models", default="SASRec,GRU4Rec,Mamba4Rec,Hydra")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--batches", type=int, default=2)
    arguments = parser.parse_args()
    rows = []
    for length in map(int, arguments.lengths.split(",")):
        for model in arguments.models.split(","):
            times, counts = measure(model, length, arguments.rounds, arguments.batches)
            fast, slow, plain = times.values()
            ratios = [statistics.median(x) / statistics.median(fast) for x in (slow, plain)]
            rows.append(
                [
                    model,
                    length,
                    f"{counts['targets'] * length:,}",
                    f"{counts['inputs']:,}",
                    report.spread(fast, 2),
                    report.spread(slow, 1),
                    f"{ratios[0]:.1f}",
                    report.spread(plain, 1),
                    f"{ratios[1]:.1f}",
                ]
            )
            print(rows[-1], flush=True)
    steps = "whole epochs" if not arguments.batches else f"{arguments.batches} steps"
    report.write(
        "epoch",
        "One training epoch on ml-100k",
        f"Seconds of the training loop, median [range] of {arguments.rounds} rounds, the modes "
        f"alternating in one process; augmentation from {steps} per round, scaled to the epoch. "
        "Positions are input items, padding included for augmentation. As RecBole runs it: with "
        "torch's anomaly detection, which RecBole 1.2.1 switches on. "
        f"`python benchmarks/epoch.py --rounds={arguments.rounds} --batches={arguments.batches} "
        f"--lengths={arguments.lengths} --models={arguments.models}`",
        report.table(
            [
                "model",
                "MAX_ITEM_LIST_LENGTH",
                "positions, augmentation",
                "positions, autoregressive",
                "autoregressive, s",
                "augmentation, s",
                "ratio",
                "augmentation as RecBole runs it, s",
                "ratio",
            ],
            rows,
        ),
    )


if __name__ == "__main__":
    main()
