"""Hydra's open choices, one factor at a time around a good configuration, on validation.

    python benchmarks/ablation.py --data_path=FOLDER [--dataset=amazon-beauty] [--seeds=2020,2021]
        [--variants="expand: 2;d_state: 32"] [--folder=ablation]

Several of these may run at once in one ``--folder``, which keeps a file per run: what another has
begun is left to it, what is there is not repeated. The figures of all go into
``results/ablation/<dataset>.json``, and the report is of what is there.
"""

import argparse
import statistics
from pathlib import Path

import numpy as np
import report
import torch
import yaml
from runs import begun_by_another

from recbole_hydra.compare.ranks import metric
from recbole_hydra.machine import machine
from recbole_hydra.output_folder import read_json, write_json
from recbole_hydra.settings.config import PROPERTIES
from recbole_hydra.training.run import train_or_continue

#: The settings around which one is changed; the rest is ``properties/model/Hydra.yaml``. Where an
#: epoch takes a minute, there are half as many.
BASES = {
    "ml-1m-prefix": {
        "MAX_ITEM_LIST_LENGTH": 200, "num_layers": 2, "dropout_prob": 0.2, "learning_rate": 0.01,
        "epochs": 6, "learning_rate_decay": 6,
    },
}  # fmt: skip
NAME, BASE = "ablation", "unchanged"
METRICS = ("ndcg@10", "hit@10", "mrr@10")
COLUMNS = ("ndcg@10", "ndcg@10, masked", "best_epoch", "seconds_per_epoch")
#: What is not a setting of the model or its training.
UNSAID = ("show_progress", "state")
#: A shorter fall of the learning rate than the defaults' 30 epochs, so that all fits into hours.
COMMON = {
    "epochs": 12, "learning_rate_decay": 12, "stopping_step": 10, "show_progress": False,
    "state": "WARNING",
}  # fmt: skip

#: {factor: {what is changed: settings}}; what a base has already is left out.
FACTORS = {
    "repeat_bias": {
        "none": {"repeat_bias": "none"},
        "one for all": {"repeat_bias": "shared"},
        "one per distance": {"repeat_bias": "distance"},
    },
    "history_as_one": {"each item": {"history_as_one": False}},
    "y_norm": {"each head": {"y_norm": "head_rms"}, "none": {"y_norm": "none"}},
    "history_path": {"none, as published": {"history_path": False}},
    "mamba_start": {"as Mamba": {"mamba_start": "mamba"}},
    "output_norm": {"none": {"output_norm": False}},
    "ffn": {
        "swiglu, as many parameters": {"ffn_type": "swiglu", "ffn_size": 84},
        "gelu, half as wide": {"ffn_size": 64},
        "gelu, twice as wide": {"ffn_size": 256},
    },
    "expand": {"2": {"expand": 2}},
    "heads": {
        "1 of 64": {"num_heads": 1, "head_dim": 64},
        "2 of 32": {"num_heads": 2, "head_dim": 32},
        "8 of 8": {"num_heads": 8, "head_dim": 8},
    },
    "d_state": {"8": {"d_state": 8}, "32": {"d_state": 32}},
    "rope_base": {"off": {"rope_base": None}, "100": {"rope_base": 100.0}},
    "tie_embeddings": {"untied": {"tie_embeddings": False}},
    "num_layers": {
        "1": {"num_layers": 1},
        "2": {"num_layers": 2},
        "2, as many parameters": {"num_layers": 2, "head_dim": 8, "ffn_size": 64},
    },
    "dropout_places": {
        "item": {"dropout_places": ["item"]},
        "item, mamba, ffn, output": {"dropout_places": ["item", "mamba", "ffn", "output"]},
        "mamba, ffn": {"dropout_places": ["mamba", "ffn"]},
    },
    "dropout_prob": {
        "0.1": {"dropout_prob": 0.1},
        "0.2": {"dropout_prob": 0.2},
        "0.3": {"dropout_prob": 0.3},
        "0.4": {"dropout_prob": 0.4},
        "0.5": {"dropout_prob": 0.5},
    },
    "item_initialization": {
        "normal": {"item_initialization": "normal"},
        "std 0.02": {"cooccurrence_std": 0.02},
        "std 0.05": {"cooccurrence_std": 0.05},
    },
    "later_targets": {
        "none": {"later_targets": []},
        "0.5": {"later_targets": [0.5]},
        "0.5, 0.3": {"later_targets": [0.5, 0.3]},
    },
    "initializer_range": {
        "linear 0.02": {"linear_initializer_range": 0.02},
        "linear 0.2": {"linear_initializer_range": 0.2},
    },
    "weight_decay": {"1e-6": {"weight_decay": 1e-6}, "1e-5": {"weight_decay": 1e-5}},
    "learning_rate": {"0.003": {"learning_rate": 3e-3}, "0.01": {"learning_rate": 1e-2}},
    "learning_rate_decay": {
        "30 of 30 epochs": {"learning_rate_decay": 30, "epochs": 30},
        "none, from 0.003, 100 epochs": {
            "learning_rate": 3e-3,
            "learning_rate_decay": None,
            "epochs": 100,
        },
    },
}


def base_of(dataset) -> dict:
    """What stands beside ``properties/model/Hydra.yaml`` in every run on a dataset."""
    return {**COMMON, **BASES.get(dataset, {})}


def variants_of(dataset) -> dict:
    """``{name: what it changes of the base}``."""
    defaults = yaml.safe_load((PROPERTIES / "model" / "Hydra.yaml").read_text(encoding="utf-8"))
    base = {**defaults, **base_of(dataset)}
    variants = {BASE: {}}
    for factor, changes in FACTORS.items():
        for name, settings in changes.items():
            if any(base.get(key) != value for key, value in settings.items()):
                variants[f"{factor}: {name}"] = settings
    return variants


@torch.no_grad()
def validation_ranks(run) -> tuple:
    """Ranks of the validation targets: among all items, and among those that the model did not
    read, the last MAX_ITEM_LIST_LENGTH of the history."""
    model, found = run.trainer.model.eval(), ([], [])
    for batch in run.loaders[1]:
        rows, scores, row_of_target, target = run.trainer._full_sort_batch_eval(batch)
        own = scores.gather(1, target[:, None])
        for ranks, masked in zip(found, (False, True), strict=True):
            if masked:
                scores.scatter_(1, rows[model.ITEM_SEQ], float("-inf"))
                scores.scatter_(1, target[:, None], own)
            ranks.append(1 + (scores[row_of_target] > own).sum(1))
    return tuple(np.concatenate(ranks) for ranks in found)


def measure(dataset, data_path, settings, seed, own) -> dict:
    """Train once, in the folder ``own``; a run that was killed is continued."""
    given = {
        **base_of(dataset), "data_path": str(data_path), "seed": seed,
        "checkpoint_dir": str(own), **settings,
    }  # fmt: skip
    run = train_or_continue(own, "Hydra", dataset, config_dict=given)
    run.trainer.evaluate(run.loaders[1], load_best_model=True)
    plain, masked = validation_ranks(run)
    history = [epoch for epoch in run.result["history"] if "valid_score" in epoch]
    result = {
        **{name: float(metric(name, plain).mean()) for name in METRICS},
        **{f"{name}, masked": float(metric(name, masked).mean()) for name in METRICS},
        "parameters": run.result["parameters"]["other"],
        "best_epoch": 1 + max(history, key=lambda epoch: epoch["valid_score"])["epoch"],
        "seconds_per_epoch": statistics.median(e["train_seconds"] for e in history),
        "machine": machine(),
    }
    for path in own.glob("*.pth"):
        path.unlink()
    return result


def measure_all(options, folder) -> None:
    """Measure what nobody has begun."""
    variants = variants_of(options.dataset)
    if options.variants:
        wanted = (BASE, *options.variants.split(";"))
        variants = {name: variants[name] for name in wanted}
    for seed in map(int, options.seeds.split(",")):
        for name, settings in variants.items():
            own = folder / options.dataset / name.replace(" ", "-") / str(seed)
            if (own / "result.json").exists() or begun_by_another(own, options.resume):
                continue
            result = measure(options.dataset, options.data_path, settings, seed, own)
            write_json(own / "result.json", {"name": name, "seed": seed, **result})
            print(name, seed, {k: round(result[k], 4) for k in COLUMNS}, flush=True)


def known(options, folder) -> dict:
    """``{name of a variant: {seed: figures}}``, of the folder and those committed before."""
    path = report.RESULTS / NAME / f"{options.dataset}.json"
    runs = read_json(path) or {}
    for file in (folder / options.dataset).glob("*/*/result.json"):
        result = read_json(file)
        runs.setdefault(result.pop("name"), {})[str(result.pop("seed"))] = result
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, runs)
    return runs


def row(name, seeds, base) -> list[str]:
    """A line of the table; the difference is over the seeds that both have."""
    both = [seed for seed in seeds if seed in base]
    gain = [seeds[seed]["ndcg@10"] / base[seed]["ndcg@10"] - 1 for seed in both]
    figures = list(seeds.values())
    return [
        name, len(seeds), report.cell([f["ndcg@10"] for f in figures]),
        f"{np.mean(gain):+.1%}" if gain and name != BASE else "",
        *(report.cell([f[k] for f in figures]) for k in ("ndcg@10, masked", "hit@10", "mrr@10")),
        f"{figures[0]['parameters']:,}",
        f"{np.mean([f['best_epoch'] for f in figures]):.0f}",
        report.spread([f["seconds_per_epoch"] for f in figures], 1),
    ]  # fmt: skip


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data_path", type=Path, required=True)
    parser.add_argument("--dataset", default="amazon-beauty")
    parser.add_argument("--seeds", default="2020,2021")
    parser.add_argument("--variants", help="names, separated by semicolons; all if not given")
    parser.add_argument("--folder", type=Path, default=Path(NAME))
    parser.add_argument("--resume", action="store_true", help="go on with runs that were killed")
    options = parser.parse_args()
    folder = options.folder.absolute()
    measure_all(options, folder)
    runs = known(options, folder)
    if BASE not in runs:
        raise SystemExit("the run that changes nothing is still going on: no report yet")
    runs = {BASE: runs.pop(BASE), **dict(sorted(runs.items()))}
    machines = sorted({figures["machine"] for seeds in runs.values() for figures in seeds.values()})
    base = base_of(options.dataset).items()
    said = report.settings({key: value for key, value in base if key not in UNSAID})
    report.write(
        f"{NAME}/{options.dataset}",
        f"Hydra's open choices on {options.dataset}",
        f"`python benchmarks/ablation.py --data_path=FOLDER --dataset={options.dataset}`: the "
        f"defaults of Hydra.yaml and {said}; training on every position; one factor changed at a "
        "time. Validation metrics of the best epoch, mean ± standard deviation over seeds; masked: "
        "the items that the model read are not ranked. The gain is of NDCG@10, over the same "
        "seeds.",
        f"Seconds, with other runs beside them, on {' and '.join(machines)}.",
        report.table(
            ["change", "seeds", "NDCG@10", "gain", "NDCG@10, masked", "Hit@10", "MRR@10",
             "parameters beside the items", "best epoch", "s per epoch"],
            [row(name, seeds, runs[BASE]) for name, seeds in runs.items()],
        ),
    )  # fmt: skip


if __name__ == "__main__":
    main()
