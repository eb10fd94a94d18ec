"""Quality and cost by the length of the history that a model may read, on ml-1m-prefix.

    python benchmarks/long_histories.py --data_path=FOLDER [--models=Hydra] [--lengths=50,200]
        [--folder=long-histories]
    python benchmarks/long_histories.py --data_path=FOLDER --clock=3

``whole`` is whole histories: windows of 200 that hand their state on (``carry_state``), which the
recurrent models can. Settings are those that ``benchmarks/quality.py`` chose for the dataset.
Several of these may run at once in one ``--folder``. ``--clock`` measures the seconds of an epoch,
in so many rounds: parts of an epoch of all, one after the other, in one process with nothing beside
it.
"""

import argparse
import statistics
from pathlib import Path

import report
import runs
import yaml
from epoch import Firsts, prepare, seconds
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from quality import COMMON, chosen_before

from recbole_hydra.machine import machine
from recbole_hydra.output_folder import read_json, write_json
from recbole_hydra.training.window_loss import WindowLoss

NAME, DATASET, SEED = "long-histories", "ml-1m-prefix", 2020
MODELS = ("SASRec", "Mamba4Rec", "Hydra")
LENGTHS = ("50", "200", "1000", "whole")
WINDOW = 200  # of whole histories
CLOCK = "seconds-alone.json"


def settings(model, length) -> dict:
    own = yaml.safe_load(chosen_before(DATASET, model).read_text(encoding="utf-8"))
    size = {"MAX_ITEM_LIST_LENGTH": WINDOW, "carry_state": True}
    if length != "whole":
        size = {"MAX_ITEM_LIST_LENGTH": int(length)}
    return {**COMMON, **own, **size}


def variants(models, lengths) -> dict:
    """``{name: (model, length)}``; SASRec has no state to carry over a whole history."""
    return {
        f"{model}, {length}": (model, length)
        for length in lengths
        for model in models
        if not (model == "SASRec" and length == "whole")
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data_path", type=Path, required=True)
    parser.add_argument("--models", default=",".join(MODELS))
    parser.add_argument("--lengths", default=",".join(LENGTHS))
    parser.add_argument("--folder", type=Path, default=Path(NAME))
    parser.add_argument("--clock", type=int, help="measure seconds, in so many rounds")
    parser.add_argument("--batches", type=int, default=60, help="of an epoch, that --clock takes")
    parser.add_argument("--resume", action="store_true", help="go on with runs that were killed")
    options = parser.parse_args()
    wanted = variants(options.models.split(","), options.lengths.split(",")).items()
    mine = {name: (model, DATASET, settings(model, length)) for name, (model, length) in wanted}
    where = options.data_path.absolute(), options.folder.absolute()
    if options.clock:
        clock(mine, where[0], options.clock, options.batches)
    else:
        runs.run_all(NAME, mine, [SEED], *where, options.resume)

    found = runs.read_runs(NAME, variants(MODELS, LENGTHS))
    clocked = read_json(report.RESULTS / NAME / CLOCK) or {"seconds": {}}
    for name, some in found.items():
        some[0]["seconds_alone"] = clocked["seconds"].get(name)
    plot({name: some[0] for name, some in found.items()})
    report.write(
        f"{NAME}/report",
        "The length of the history, on ml-1m-prefix",
        "`python benchmarks/long_histories.py --data_path=FOLDER`: every model with the settings "
        f"that `benchmarks/quality.py` chose for it, {report.settings(COMMON)}, seed {SEED}. Whole "
        f"histories: windows of {WINDOW} that hand their state on, in validation and test too.",
        f"Seconds to the best epoch, on {runs.machines(found)}, are with one to three other "
        "processes beside each run, and say little of the cost; those of an epoch are of training "
        "alone, with nothing beside it, scaled from parts of epochs that alternate between the "
        f"rows: median [range] (`--clock`, {clocked.get('machine', 'not measured yet')}).",
        report.table(
            ["model, items read", "valid NDCG@10", "test NDCG@10", "NDCG@10, masked", "Hit@10",
             "best epoch", "s per epoch, alone", "s to the best epoch", "peak memory, MiB"],
            [row(name, some[0]) for name, some in found.items()],
        ),
        "![quality and cost by the length of the history](lengths.png)",
    )  # fmt: skip


def clock(mine, data_path, rounds, batches):
    """Measure the seconds of an epoch of training, and write them down."""
    sides = {
        name: prepare(model, dataset, {**settings, "data_path": str(data_path), "seed": SEED})
        for name, (model, dataset, settings) in mine.items()
    }
    spent = {name: [] for name in sides}
    for number in range(1 + rounds):
        for name, (trainer, train_data) in sides.items():
            carries, later = (trainer.config[key] for key in ("carry_state", "later_targets"))
            loss = WindowLoss(trainer.model, carries, later)
            part = seconds(trainer, Firsts(train_data, batches), loss)
            print(number, name, f"{part:.1f} s", flush=True)
            if number:  # the first compiles, and touches the memory
                spent[name].append(part * len(train_data) / batches)
    path = report.RESULTS / NAME / CLOCK
    before = (read_json(path) or {"seconds": {}})["seconds"]
    write_json(path, {"seconds": {**before, **spent}, "machine": machine()})


def plot(found):
    """Quality and cost by length; a model per line."""
    panels = {
        "test NDCG@10": lambda run: run["test_result"]["ndcg@10"],
        "test NDCG@10, masked": lambda run: run["test_result"]["ndcg@10, masked"],
        "seconds per epoch, alone": lambda run: statistics.median(run["seconds_alone"]),
        "peak memory, MiB": lambda run: run["peak_memory"] / 2**20,
    }
    figure = Figure(figsize=(12, 3.2), layout="constrained")
    FigureCanvasAgg(figure)
    if any(run["seconds_alone"] is None for run in found.values()):
        del panels["seconds per epoch, alone"]
    for axis, (label, value) in zip(figure.subplots(1, len(panels)), panels.items(), strict=True):
        for model in MODELS:
            there = [(x, found.get(f"{model}, {length}")) for x, length in enumerate(LENGTHS)]
            points = [(x, value(run)) for x, run in there if run is not None]
            if points:
                axis.plot(*zip(*points, strict=True), "o-", label=model)
        axis.set_xticks(range(len(LENGTHS)), LENGTHS)
        axis.set(xlabel="items of a history", ylabel=label)
        axis.grid(alpha=0.3)
        if label.startswith(("seconds", "peak")):
            axis.set_ylim(bottom=0)
    figure.legend(*axis.get_legend_handles_labels(), loc="outside upper center", ncols=len(MODELS))
    figure.savefig(report.RESULTS / NAME / "lengths.png", dpi=120)


def row(name, run) -> list[str]:
    test = run["test_result"]
    return [
        name, f"{run['valid_result']['ndcg@10']:.4f}",
        *(f"{test[m]:.4f}" for m in ("ndcg@10", "ndcg@10, masked", "hit@10")),
        1 + run["best_epoch"],
        report.spread(run["seconds_alone"], 1) if run["seconds_alone"] else "",
        f"{run['seconds_to_best']:.0f}",
        f"{run['peak_memory'] / 2**20:.0f}",
    ]  # fmt: skip


if __name__ == "__main__":
    main()
