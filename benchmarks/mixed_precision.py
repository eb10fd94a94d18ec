"""Training in float32 against autocast's bfloat16 and, on a GPU, float16: the same metrics?

    python benchmarks/mixed_precision.py --data_path=FOLDER [--seeds=2020,2021,2022]
        [--folder=mixed-precision]

Several of these may run at once in one ``--folder``.
"""

import argparse
from pathlib import Path

import report
import runs
import torch

NAME, DATASET = "mixed-precision", "amazon-office"
MODELS = ("Hydra", "Mamba4Rec")
#: All the same but for the precision; Mamba4Rec's own learning rate takes a hundred epochs here.
COMMON = {
    "item_initialization": "cooccurrence", "learning_rate": 0.006, "learning_rate_decay": 30,
    "epochs": 30,
}  # fmt: skip
PRECISIONS = {
    "float32": {},
    "bf16": {"enable_amp": True, "amp_dtype": "bf16"},
    "fp16": {"enable_amp": True, "amp_dtype": "fp16"},
}


def variants() -> dict:
    return {
        f"{model}, {precision}": (model, DATASET, {**COMMON, **settings})
        for model in MODELS
        for precision, settings in PRECISIONS.items()
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data_path", type=Path, required=True)
    parser.add_argument("--seeds", default="2020,2021,2022")
    parser.add_argument("--folder", type=Path, default=Path(NAME))
    parser.add_argument("--resume", action="store_true", help="go on with runs that were killed")
    options = parser.parse_args()
    mine = variants()
    if not torch.cuda.is_available():  # float16 needs its gradients scaled, which a GPU does
        mine = {name: variant for name, variant in mine.items() if "fp16" not in name}
    where = options.data_path.absolute(), options.folder.absolute()
    runs.run_all(NAME, mine, map(int, options.seeds.split(",")), *where, options.resume)

    found = runs.read_runs(NAME, variants())
    rows = [
        [
            name, len(some), report.cell([r["valid_result"]["ndcg@10"] for r in some]),
            *(report.cell([r["test_result"][m] for r in some]) for m in ("ndcg@10", "hit@10")),
            report.spread([1 + r["best_epoch"] for r in some]),
            report.spread([r["seconds_per_epoch"] for r in some], 2),
        ]
        for name, some in found.items()
    ]  # fmt: skip
    report.write(
        f"{NAME}/report",
        f"Mixed precision on {DATASET}",
        f"`python benchmarks/mixed_precision.py --data_path=FOLDER`: {report.settings(COMMON)}; "
        "mean ± standard deviation over seeds. fp16 needs a GPU.",
        f"Seconds, with other runs beside them, on {runs.machines(found)}.",
        report.table(
            ["", "seeds", "valid NDCG@10", "test NDCG@10", "test Hit@10", "best epoch",
             "s per epoch"],
            rows,
        ),
    )  # fmt: skip


if __name__ == "__main__":
    main()
