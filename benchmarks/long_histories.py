"""Quality and cost by the length of the history that a model may read, on ml-1m-prefix.

    python benchmarks/long_histories.py --data_path=FOLDER [--models=Hydra] [--lengths=50,200]
        [--folder=long-histories]

``whole`` is whole histories: windows of 200 that hand their state on (``carry_state``), which the
recurrent models can. Settings are those that ``benchmarks/quality.py`` chose for the dataset.
Several of these may run at once in one ``--folder``.
"""

import argparse
from pathlib import Path

import report
import runs
import yaml
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from quality import COMMON, chosen_before

NAME, DATASET, SEED = "long-histories", "ml-1m-prefix", 2020
MODELS = ("SASRec", "Mamba4Rec", "Hydra")
LENGTHS = ("50", "200", "1000", "whole")
WINDOW = 200  # of whole histories


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
    parser.add_argument("--resume", action="store_true", help="go on with runs that were killed")
    options = parser.parse_args()
    wanted = variants(options.models.split(","), options.lengths.split(",")).items()
    mine = {name: (model, DATASET, settings(model, length)) for name, (model, length) in wanted}
    where = options.data_path.absolute(), options.folder.absolute()
    runs.run_all(NAME, mine, [SEED], *where, options.resume)

    found = runs.read_runs(NAME, variants(MODELS, LENGTHS))
    plot({name: some[0] for name, some in found.items()})
    report.write(
        f"{NAME}/report",
        "The length of the history, on ml-1m-prefix",
        "`python benchmarks/long_histories.py --data_path=FOLDER`: every model with the settings "
        f"that `benchmarks/quality.py` chose for it, {report.settings(COMMON)}, seed {SEED}. Whole "
        f"histories: windows of {WINDOW} that hand their state on, in validation and test too.",
        f"Seconds on {runs.machines(found)}, with one to three other processes beside each run: "
        "what they say of the cost is rough; [a step alone](../step.md) says it better.",
        report.table(
            ["model, items read", "valid NDCG@10", "test NDCG@10", "NDCG@10, masked", "Hit@10",
             "best epoch", "s per epoch", "s to the best epoch", "peak memory, MiB"],
            [row(name, some[0]) for name, some in found.items()],
        ),
        "![quality and memory by the length of the history](lengths.png)",
    )  # fmt: skip


def plot(found):
    """Quality and memory by length; a model per line."""
    panels = {
        "test NDCG@10": lambda run: run["test_result"]["ndcg@10"],
        "test NDCG@10, masked": lambda run: run["test_result"]["ndcg@10, masked"],
        "peak memory, MiB": lambda run: run["peak_memory"] / 2**20,
    }
    figure = Figure(figsize=(10, 3.2), layout="constrained")
    FigureCanvasAgg(figure)
    for axis, (label, value) in zip(figure.subplots(1, len(panels)), panels.items(), strict=True):
        for model in MODELS:
            there = [(x, found.get(f"{model}, {length}")) for x, length in enumerate(LENGTHS)]
            points = [(x, value(run)) for x, run in there if run is not None]
            if points:
                axis.plot(*zip(*points, strict=True), "o-", label=model)
        axis.set_xticks(range(len(LENGTHS)), LENGTHS)
        axis.set(xlabel="items of a history", ylabel=label)
        axis.grid(alpha=0.3)
        if label.startswith("peak"):
            axis.set_ylim(bottom=0)
    figure.legend(*axis.get_legend_handles_labels(), loc="outside upper center", ncols=len(MODELS))
    figure.savefig(report.RESULTS / NAME / "lengths.png", dpi=120)


def row(name, run) -> list[str]:
    test = run["test_result"]
    return [
        name, f"{run['valid_result']['ndcg@10']:.4f}",
        *(f"{test[m]:.4f}" for m in ("ndcg@10", "ndcg@10, masked", "hit@10")),
        1 + run["best_epoch"], f"{run['seconds_per_epoch']:.1f}", f"{run['seconds_to_best']:.0f}",
        f"{run['peak_memory'] / 2**20:.0f}",
    ]  # fmt: skip


if __name__ == "__main__":
    main()
