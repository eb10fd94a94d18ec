"""Who ranks new items best: every model with and without what it can take, and strong baselines.

    python benchmarks/new_items.py run --data_path=FOLDER --dataset=amazon-office
    python benchmarks/new_items.py run --data_path=FOLDER --dataset=amazon-office --group=memory
    python benchmarks/new_items.py table

A group is a comparison of its own (``recbole-hydra compare``), which continues what a kill left in
``--folder``:

- ``plain``: the causal models with their scores as they are;
- ``bias``: with a repeat bias per item, which Hydra has by default, given to all;
- ``memory``: with that and the linear memory; LinearMap, the memory alone, beside them;
- ``fitted``: what trains nothing: a table of transitions, EASE, ItemKNN;
- ``augmented``: what trains by RecBole's prefixes alone, with one seed and at most EPOCHS epochs:
  slow, so the table states how far each came.

All causal models train as Hydra does (item embeddings from co-occurrence, later targets, a learning
rate that falls over 30 epochs). Settings that ``results/quality`` chose for a set are used where it
did. Figures of each group go to ``results/new-items/<dataset>/<group>.json``; ``table`` joins them.
"""

import argparse
from pathlib import Path

import pandas as pd
import report
import yaml

from recbole_hydra.compare import compare
from recbole_hydra.compare.statistics import paired_p, per_user
from recbole_hydra.output_folder import read_json, write_json

BASELINES = Path(__file__).parent / "baselines"
DATASETS = ("amazon-beauty", "amazon-office", "amazon-industrial", "ml-1m-prefix", "tafeng")
SEEDS = (2020, 2021, 2022)
EPOCHS = 30
#: How all causal models are trained; Hydra's are its defaults.
TRAINING = {
    "item_initialization": "cooccurrence", "later_targets": [0.3], "learning_rate_decay": 30,
    "epochs": 40,
}  # fmt: skip
COMMON = {"stopping_step": 10, "topk": [10, 20], "show_progress": False}
OF_SETS = {"ml-1m-prefix": {"MAX_ITEM_LIST_LENGTH": 200}}
CAUSAL = ("Hydra", "Mamba4Rec", "SASRec", "GRU4Rec")
#: ``{group: (models, settings, seeds)}``.
GROUPS = {
    "plain": (CAUSAL, {"repeat_bias": "none"}, SEEDS),
    "bias": (CAUSAL, {"repeat_bias": "item"}, SEEDS),
    "memory": (
        (*CAUSAL, "LinearMap"), {"repeat_bias": "item", "item_memory": "linear"}, SEEDS
    ),
    "fitted": (
        (str(BASELINES / "first_order.py:FirstOrder"), "EASE", "ItemKNN"), {"epochs": 1}, SEEDS[:1]
    ),
    "augmented": (
        ("LightSANs", "FEARec", "BERT4Rec", "CORE", "RepeatNet", "HGN",
         str(BASELINES / "bsarec.py:BSARec")),
        {"training_mode": "augmentation", "epochs": EPOCHS}, SEEDS[:1],
    ),
}  # fmt: skip
METRICS = ("ndcg@10", "hit@10")


def run(options) -> None:
    """Train a group on a dataset, and write down its figures."""
    for name in options.group.split(",") if options.group else GROUPS:
        models, own, seeds = GROUPS[name]
        if options.models:
            models = options.models.split(",")
        folder = options.folder / options.dataset / name
        settings = {**COMMON, **OF_SETS.get(options.dataset, {}), **own}
        settings["data_path"] = str(options.data_path.absolute())
        files = {} if name in ("fitted", "augmented") else chosen(folder, models, options.dataset)
        comparison = compare(
            list(models), [options.dataset], seeds=seeds[: options.seeds], output_dir=folder,
            model_config=files, config_dict=settings, popularity=False, resume=folder.exists(),
        )  # fmt: skip
        target = report.RESULTS / "new-items" / options.dataset
        target.mkdir(parents=True, exist_ok=True)
        write_json(target / f"{name}.json", figures(comparison, options.dataset))


def chosen(folder, models, dataset) -> dict:
    """The settings file of each causal model: how all are trained, and what was found before."""
    files = {}
    for model in models:
        if model == "LinearMap":
            continue
        found = report.RESULTS / "quality" / dataset / f"{model}.yaml"
        known = yaml.safe_load(found.read_text("utf-8")) if found.is_file() else {}
        path = folder.with_name(f"{folder.name}-{model}.yaml")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(yaml.safe_dump({**TRAINING, **known}), encoding="utf-8")
        files[model] = str(path)
    return files


def figures(comparison, dataset) -> dict:
    """``{model: figures}``: both rankings and those of new targets, a number per seed; costs; and
    each user's mean NDCG@10, for paired tests."""
    runs, ranks = comparison.finished(dataset), comparison.ranks(dataset)
    new = {key: table[~table["repeat"]] for key, table in ranks.items()}
    tables = {"all": (ranks, "rank"), "masked": (ranks, "rank_masked"), "new": (new, "rank_masked")}
    found = {}
    for words, (each, ranking) in tables.items():
        for seed in sorted({r["seed"] for r in runs}):
            of_seed = [r for r in runs if r["seed"] == seed]
            users = per_user(of_seed, {k: t for k, t in each.items() if k[1] == seed}, METRICS)
            for (model, r, metric), values in users.items():
                if r == ranking:
                    own = found.setdefault(model, {"settings from": {}})
                    own.setdefault(f"{metric}, {words}", []).append(float(values.mean()))
    frame = comparison.to_pandas()
    costs = (
        "other_parameters", "item_memory_entries", "item_memory_seconds", "seconds_per_epoch",
        "best_epoch", "epochs", "seconds_to_best",
    )  # fmt: skip
    for model, rows in frame[frame["status"] == "ok"].groupby("model"):
        own = found[model]
        del own["settings from"]
        for cost in costs:
            values = [None if pd.isna(value) else float(value) for value in rows[cost]]
            own[cost] = values
    for ranking in ("rank", "rank_masked"):
        users = per_user(runs, ranks, ["ndcg@10"])
        means = {model: values for (model, r, _), values in users.items() if r == ranking}
        if "Hydra" in means:
            for model, values in means.items():
                if model != "Hydra":
                    found[model][f"p against Hydra, {ranking}"] = paired_p(means["Hydra"], values)
    return found


def write_table(options) -> None:
    """One report of all figures that are there."""
    blocks = []
    for dataset in DATASETS:
        folder = report.RESULTS / "new-items" / dataset
        rows = []
        for group in GROUPS:
            for model, own in (read_json(folder / f"{group}.json") or {}).items():
                entries = own["item_memory_entries"][0]
                rows.append(
                    [
                        model, group,
                        *(report.cell(own[f"ndcg@10, {words}"])
                          for words in ("masked", "new", "all")),
                        report.cell(own["hit@10, masked"]),
                        f"{own['other_parameters'][0]:,.0f}",
                        "–" if entries is None else f"{entries:,.0f}",
                        "–" if entries is None else report.spread(own["item_memory_seconds"], 1),
                        report.spread(own["seconds_per_epoch"], 2),
                        f"{report.spread([e + 1 for e in own['best_epoch']])} of "
                        f"{report.spread(own['epochs'])}",
                    ]
                )  # fmt: skip
        if rows:
            rows.sort(key=lambda row: row[2], reverse=True)
            heads = (
                "model", "with", "NDCG@10, masked", "NDCG@10, new", "NDCG@10, all",
                "Hit@10, masked", "parameters", "memory's numbers", "s to fit it", "s per epoch",
                "best epoch",
            )  # fmt: skip
            blocks += [f"## {dataset}", report.table(list(heads), rows)]
    report.write(
        "new-items/report",
        "Who ranks new items best",
        "Test metrics, mean ± standard deviation over seeds; with one seed no deviation is shown. "
        "masked: the history is left out of the ranking, apart from the target; new: the same, of "
        "targets that the history does not hold; all: as RecBole ranks. Parameters are those but "
        "the items'; the memory's numbers are apart. The groups and settings are those of "
        "`benchmarks/new_items.py`; times are of one thread, other runs beside it.",
        *blocks,
    )


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("stage", choices=("run", "table"))
    parser.add_argument("--data_path", type=Path)
    parser.add_argument("--dataset", choices=DATASETS)
    parser.add_argument("--group", help=f"some of {', '.join(GROUPS)}; all by default")
    parser.add_argument("--models", help="of the group; all by default")
    parser.add_argument("--seeds", type=int, default=len(SEEDS), help="how many")
    parser.add_argument("--folder", type=Path, default=Path("new-items"))
    options = parser.parse_args()
    if options.stage == "run" and None in (options.data_path, options.dataset):
        parser.error("run needs --data_path and --dataset")
    options.folder = options.folder.absolute()
    {"run": run, "table": write_table}[options.stage](options)


if __name__ == "__main__":
    main()
