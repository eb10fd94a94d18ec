"""Processor time and memory of ``item_initialization: cooccurrence``, on one thread.

    python benchmarks/cooccurrence.py [--data_path=FOLDER --datasets=ml-100k,amazon-beauty]
        [--items=174765,1000000] [--interactions=1000000] [--rounds=3]

What is timed is ``initialize_items``: reading the pairs, their mutual information and its
decomposition, 64 wide. Beside the datasets come catalogues without any structure, items drawn at
random, one after the other: nothing is harder to decompose.
"""

import argparse
import resource
import time

import numpy as np
import report
import torch
from recbole.data.interaction import Interaction

from recbole_hydra import Config
from recbole_hydra.data import prepare_data
from recbole_hydra.data.targets import POSITION, TargetDataset
from recbole_hydra.settings.options.item_initialization import initialize_items


class RandomTargets(TargetDataset):
    """A train split of users with ten interactions each, all items equally likely."""

    iid_field = "item_id"
    whole_histories = True

    def __init__(self, items, interactions):  # RecBole's reads files
        self.items = items
        drawn = torch.from_numpy(np.random.default_rng(0).integers(1, items + 1, interactions))
        position = np.arange(interactions)
        self.timeline = Interaction({self.iid_field: drawn})
        self.history_start = position - position % 10
        target = torch.from_numpy(position[position % 10 > 0])
        self.inter_feat = Interaction({POSITION: target, self.iid_field: drawn[target]})

    @property
    def item_num(self):
        return self.items + 1


def measure(split, rounds):
    """The seconds of every round: of the processor, which a busy machine changes little."""
    seconds = []
    for _ in range(rounds):
        torch.manual_seed(0)
        embedding = torch.nn.Embedding(split.item_num, 64)
        start = time.process_time()
        initialize_items(embedding, split)
        seconds.append(time.process_time() - start)
    return seconds


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data_path", default="dataset")
    parser.add_argument("--datasets", default="ml-100k")
    parser.add_argument("--items", default="174765,1000000")
    parser.add_argument("--interactions", type=int, default=1_000_000)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()

    torch.set_num_threads(1)
    splits = []
    for name in filter(None, options.datasets.split(",")):
        settings = {"data_path": options.data_path, "show_progress": False}
        splits.append((name, prepare_data(Config("Hydra", name, config_dict=settings)).splits[0]))
    for items in filter(None, options.items.split(",")):
        splits.append((f"random, {options.interactions:,} interactions", int(items)))
    rows = []
    for name, split in splits:
        if isinstance(split, int):
            split = RandomTargets(split, options.interactions)
        seconds = measure(split, options.rounds)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
        numbers = f"{split.item_num - 1:,}", f"{len(split.inter_feat):,}"
        rows.append([name, *numbers, report.spread(seconds, 1), f"{peak:,}"])
    report.write(
        "cooccurrence",
        "Item embeddings from co-occurrence",
        f"Processor time of `initialize_items`, 64 wide, median [range] of {options.rounds} rounds "
        "in one process, one thread (OMP_NUM_THREADS=1); peak memory is that of the process so "
        "far, with the libraries. `python benchmarks/cooccurrence.py --data_path=FOLDER "
        f"--datasets={options.datasets} --items={options.items} "
        f"--interactions={options.interactions} --rounds={options.rounds}`",
        report.table(["data", "items", "training targets", "seconds", "peak memory, MB"], rows),
    )


if __name__ == "__main__":
    main()
