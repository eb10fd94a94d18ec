"""Mamba4Rec as published on amazon-beauty, trained on every position and by RecBole's augmentation.

    python benchmarks/mamba4rec.py --data_path=FOLDER [--variants="1 layer, augmentation"]
        [--seeds=2020,2021] [--folder=mamba4rec]

Several of these may run at once in one ``--folder``.
"""

import argparse
from pathlib import Path

import report
import runs

NAME, DATASET = "mamba4rec", "amazon-beauty"
#: The paper's settings, and RecBole's early stopping.
PAPER = {
    "hidden_size": 64, "d_state": 32, "d_conv": 4, "expand": 2, "dropout_prob": 0.4,
    "MAX_ITEM_LIST_LENGTH": 50, "train_batch_size": 2048, "learning_rate": 0.001, "epochs": 100,
    "stopping_step": 10,
}  # fmt: skip
MODES = {"every position": "autoregressive", "augmentation": "augmentation"}
#: A user's rerun of the authors' code, one layer: hit, ndcg, mrr @10.
RERUN = {"valid": (0.094, 0.057, 0.046), "test": (0.073, 0.043, 0.034)}


def variants() -> dict:
    found = {}
    for layers in (1, 2):
        for words, mode in MODES.items():
            name = f"{layers} layer{'s' if layers > 1 else ''}, {words}"
            own = {"num_layers": layers, "training_mode": mode}
            found[name] = "Mamba4Rec", DATASET, {**PAPER, **own}
    return found


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data_path", type=Path, required=True)
    parser.add_argument("--variants", help="names, separated by semicolons; all if not given")
    parser.add_argument("--seeds", default="2020,2021")
    parser.add_argument("--folder", type=Path, default=Path(NAME))
    parser.add_argument("--resume", action="store_true", help="go on with runs that were killed")
    options = parser.parse_args()
    all_variants = variants()
    wanted = options.variants.split(";") if options.variants else list(all_variants)
    seeds = [int(seed) for seed in options.seeds.split(",")]
    mine = {name: all_variants[name] for name in wanted}
    where = options.data_path.absolute(), options.folder.absolute()
    runs.run_all(NAME, mine, seeds, *where, options.resume)

    found = runs.read_runs(NAME, all_variants)
    metrics = ("hit@10", "ndcg@10", "mrr@10")
    rows = [
        ["a user's rerun of the authors' code, 1 layer", "", *RERUN["valid"], *RERUN["test"]],
        *(
            [
                name, len(some),
                *(report.cell([r[f"{part}_result"][m] for r in some])
                  for part in ("valid", "test") for m in metrics),
                report.cell([r["test_result"]["ndcg@10, masked"] for r in some]),
                report.spread([1 + r["best_epoch"] for r in some]),
                report.spread([r["seconds_per_epoch"] for r in some], 1),
            ]
            for name, some in found.items()
        ),
    ]  # fmt: skip
    rows[0] += ["", "", ""]
    report.write(
        f"{NAME}/report",
        "Mamba4Rec as published, on amazon-beauty",
        f"`python benchmarks/mamba4rec.py --data_path=FOLDER`: {report.settings(PAPER)}; mean ± "
        "standard deviation over seeds, RecBole's ranking; masked: the history is not ranked. Two "
        "layers have a residual around the Mamba block, as published, one has none: through it the "
        "last item reaches the state that is compared with all items, and ranks high itself, which "
        "costs NDCG and MRR what Hit does not show. One layer on every position with three seeds, "
        "which say by how much seeds differ, is in [the comparison](../quality/report.md).",
        f"Seconds, with other runs beside them, on {runs.machines(found)}.",
        report.table(
            ["", "seeds", *(f"{part} {m}" for part in ("valid", "test")
                            for m in ("Hit@10", "NDCG@10", "MRR@10")),
             "test NDCG@10, masked", "best epoch", "s per epoch"],
            rows,
        ),
    )  # fmt: skip


if __name__ == "__main__":
    main()
