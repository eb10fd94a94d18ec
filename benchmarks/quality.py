"""Five models on four sets, each with the best settings that one budget of search finds.

    python benchmarks/quality.py search --data_path=FOLDER --dataset=amazon-beauty [--models=Hydra]
    python benchmarks/quality.py carry_over --data_path=FOLDER --dataset=ml-1m-prefix
    python benchmarks/quality.py compare --data_path=FOLDER --dataset=amazon-beauty
    python benchmarks/quality.py table

``search`` sweeps each model with ``recbole-hydra tune`` in its ``properties/tune`` space;
``carry_over`` tries what the searched sets chose, and the best of their sweeps, where a sweep would
take days. Every model trains as Hydra does by default (item embeddings from co-occurrence, later
targets, a learning rate that falls), and both stages also try each model as it comes: Hydra with
that training, the others as RecBole trains them (on the small sets every model both ways, and with
a constant learning rate, too); what is best on validation is chosen. ``compare`` trains every model
with what was chosen, and three seeds. Each stage continues what a kill left in ``--folder``. Chosen
settings go to ``results/quality/<dataset>/<model>.yaml``, with the trials beside them, and the
comparison's report into the same folder. ``table`` puts what is there into one report.
"""

import argparse
import shutil
import statistics
from itertools import accumulate
from pathlib import Path

import pandas as pd
import report
import yaml

from recbole_hydra.compare import compare
from recbole_hydra.compare.ranks import display
from recbole_hydra.compare.statistics import paired_p, per_user
from recbole_hydra.output_folder import read_json, write_json
from recbole_hydra.training.run import train_or_continue
from recbole_hydra.tune import tune

MODELS = ("Hydra", "Mamba4Rec", "SASRec", "GRU4Rec")
SEEDS = (2020, 2021, 2022)
#: What all models of a set have in common.
COMMON = {"stopping_step": 10, "topk": [10, 20]}
#: How all are trained, and how RecBole trains.
TRAINING = {
    "item_initialization": "cooccurrence", "later_targets": [0.3], "learning_rate_decay": 30,
    "epochs": 30,
}  # fmt: skip
CONSTANT = {**TRAINING, "learning_rate_decay": None, "epochs": 100}
PLAIN = {**CONSTANT, "item_initialization": "normal", "later_targets": []}
#: Of Mamba4Rec, for Amazon's data (arXiv 2403.03900, section 4.1), beside its defaults.
PUBLISHED = {"dropout_prob": 0.4}
SETTINGS = {"ml-1m-prefix": {"MAX_ITEM_LIST_LENGTH": 200}}
#: Tried with every model where histories are long and items have many users, for which the other
#: sets' settings are none: two layers, and the dropout that SASRec and Mamba4Rec publish for it.
LARGER = {
    **dict.fromkeys(MODELS, {"num_layers": 2, "dropout_prob": 0.2, "learning_rate": 0.005}),
    "SASRec": {
        "n_layers": 2, "hidden_dropout_prob": 0.2, "attn_dropout_prob": 0.2,
        "learning_rate": 0.005,
    },
}  # fmt: skip
#: The budget of a sweep: random configurations, and when ASHA may stop one. The small sets, on
#: which a model may take twenty epochs before it learns at all, go without it.
BUDGETS = {
    "amazon-beauty": {"num_samples": 6, "scheduler": "asha", "grace_period": 9},
    "amazon-office": {"num_samples": 16, "scheduler": "none"},
    "amazon-industrial": {"num_samples": 16, "scheduler": "none"},
}
#: Where a run takes half a minute, but a few thousand users decide: all seeds choose between what a
#: sweep found and three ways to train the defaults. Elsewhere the first does, and one way is tried.
SMALL = ("amazon-office", "amazon-industrial")
DATASETS = (*BUDGETS, "ml-1m-prefix")
#: Where no sweep is made, as its epochs take a minute: those of a run, and of a try, and how many
#: configurations of each sweep are tried.
MOST_EPOCHS, TRY_EPOCHS, CARRIED = 20, 6, 2
#: Whose best validation NDCG@10 is the mark that the others' seconds are counted to.
MARK = "SASRec"
NAME, CHOICE, TRIALS = "quality", "choice.json", "trials.csv"
GAINS, PARTS, MARKS = "gain.json", "difference.json", "seconds-to-mark.json"
#: Items of a history that is called short.
SHORT = 6
#: What the table says of a model's quality.
QUALITY = ("hit@10", "hit@20", "ndcg@10", "ndcg@20", "mrr@10", "mrr@20", "ndcg@10, masked")


def defaults(model, dataset) -> dict:
    """``{words: settings}``: the ways of training that are tried with a model's defaults."""
    plain = {"defaults, plain training": PLAIN}
    if dataset in SMALL:
        return {"defaults": TRAINING, "defaults, constant rate": CONSTANT, **plain}
    if model == "Hydra":
        return {"defaults": TRAINING}
    return {**plain, "as published": {**PLAIN, **PUBLISHED}} if model == "Mamba4Rec" else plain


def settings_of(options) -> dict:
    """The settings of all runs on a dataset."""
    own = SETTINGS.get(options.dataset, {})
    return {**COMMON, **own, "data_path": str(options.data_path.absolute())}


def chosen(dataset, model) -> Path:
    """The file of the settings chosen for a model on a dataset."""
    return report.RESULTS / NAME / dataset / f"{model}.yaml"


def beside_chosen(dataset, model, what) -> Path:
    """Another file of a model on a dataset."""
    return chosen(dataset, model).with_name(f"{model}-{what}")


def chosen_before(dataset, model) -> Path:
    """:func:`chosen`, by a stage that has to have run."""
    path = chosen(dataset, model)
    if not path.is_file():
        raise SystemExit(f"{path} is missing: choose settings of {model} on {dataset} first")
    return path


def search(options, models) -> None:
    """Sweep the models, all with the same budget."""
    if options.dataset not in BUDGETS:
        raise SystemExit(f"{options.dataset}: there is no budget for a sweep; use carry_over")
    for model in models:
        folder = options.folder / options.dataset / f"search-{model}"
        sweep = tune(
            model, options.dataset, output_dir=folder, resume=folder.exists(),
            max_concurrent=options.trials, cpus_per_trial=1,
            config_dict={**settings_of(options), **TRAINING}, **BUDGETS[options.dataset],
        )  # fmt: skip
        found = {**TRAINING, **sweep.best["params"]}
        known = {"search": [sweep.best["best_score"]]}
        choose(options, model, {**defaults(model, options.dataset), "search": found}, known)
        trials = beside_chosen(options.dataset, model, TRIALS)
        pd.read_csv(sweep.folder / "trials.csv").drop(columns="node").to_csv(trials, index=False)


def carry_over(options, models) -> None:
    """Try what the searched sets chose and found, for a few epochs with one seed."""
    for model in models:
        given = defaults(model, options.dataset)
        given["two layers, dropout 0.2"] = {**TRAINING, **LARGER[model]}
        for origin, settings in carried(model):
            if settings not in given.values():
                given[origin] = settings
        scores = {}
        for origin, settings in given.items():
            short = shortened(settings, TRY_EPOCHS)
            scores[origin] = [valid_score(options, model, origin, short, SEEDS[0])]
        runs = {origin: shortened(settings, MOST_EPOCHS) for origin, settings in given.items()}
        write_choice(options, model, runs, scores)


def carried(model):
    """(where from, settings): what the searched sets chose, and the best of their sweeps."""
    for dataset in BUDGETS:
        text = chosen_before(dataset, model).read_text(encoding="utf-8")
        yield dataset, yaml.safe_load(text)
    for dataset in BUDGETS:
        trials = pd.read_csv(beside_chosen(dataset, model, TRIALS)).dropna(axis=1, how="all")
        params = trials.columns[trials.columns.get_loc("status") + 1 :]
        params = params[: params.get_loc("best_epoch")]
        best = trials.nlargest(CARRIED, "valid ndcg@10")
        for trial, found in zip(best["trial"], best[params].to_dict("records"), strict=True):
            yield f"{dataset}, trial {trial}", {**TRAINING, **found}


def shortened(settings, epochs) -> dict:
    """Settings for so many epochs; a learning rate that falls does so within them."""
    falls = settings["learning_rate_decay"] is not None
    return {**settings, "epochs": epochs, "learning_rate_decay": epochs if falls else None}


def valid_score(options, model, name, settings, seed) -> float:
    """The best validation score of a model with some settings."""
    own = options.folder / options.dataset / f"tried-{model}" / name.replace(" ", "-") / str(seed)
    own.mkdir(parents=True, exist_ok=True)
    score = read_json(own / "score.json")
    if score is None:
        given = {**settings_of(options), **settings, "seed": seed, "checkpoint_dir": str(own)}
        given |= {"show_progress": False, "state": "WARNING"}
        run = train_or_continue(own, model, options.dataset, config_dict=given)
        score = run.result["best_valid_score"]
        write_json(own / "score.json", score)
    print(options.dataset, model, name, seed, score, flush=True)
    return score


def choose(options, model, given, known) -> None:
    """Try {where settings are from: settings}, and choose.

    ``known``: scores with the first seed, which need no further run where it alone decides.
    """
    seeds = SEEDS if options.dataset in SMALL else SEEDS[:1]
    scores = dict(known) if len(seeds) == 1 else {}
    for origin, settings in given.items():
        if origin not in scores:
            scores[origin] = [valid_score(options, model, origin, settings, s) for s in seeds]
    write_choice(options, model, given, scores)


def write_choice(options, model, given, scores) -> None:
    """Write down the settings with the best mean score."""
    best = max(scores, key=lambda origin: statistics.fmean(scores[origin]))
    path = chosen(options.dataset, model)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_yaml(path, given[best])
    write_json(
        beside_chosen(options.dataset, model, CHOICE), {"chosen": best, "valid_score": scores}
    )


def write_yaml(path, settings) -> None:
    path.write_text(yaml.safe_dump(settings, sort_keys=True), encoding="utf-8")


def compare_chosen(options, models) -> None:
    """Compare the models, each with the settings chosen for it."""
    folder = options.folder / options.dataset / "comparison"
    files = {model: str(chosen_before(options.dataset, model)) for model in models}
    comparison = compare(
        list(models), [options.dataset], seeds=SEEDS, output_dir=folder, model_config=files,
        config_dict=settings_of(options), resume=folder.exists(),
    )  # fmt: skip
    for run in comparison.runs:
        if run["status"] != "ok":
            why = run.get("error", run["status"])
            raise SystemExit(f"{run['model']}, seed {run['seed']}: {why}; compare again")
    target = report.RESULTS / NAME / options.dataset
    for path in comparison.folder.iterdir():
        if path.is_file() and path.suffix != ".html":  # which has the plots again
            shutil.copy(path, target / path.name)
    write_json(target / GAINS, gains(comparison, options.dataset))
    write_json(target / PARTS, parts(comparison, options.dataset))
    write_json(target / MARKS, seconds_to_mark(comparison, options.dataset))


def gains(comparison, dataset) -> dict:
    """Hydra's NDCG@10 against the best of the other models: ``{targets: figures}``.

    With history masked, a target that the history holds is ranked against new items alone, so that
    a model which always puts the history first gets it right: the last row is without those.
    """
    runs, ranks = comparison.finished(dataset), comparison.ranks(dataset)
    new = {run: table[~table["repeat"]] for run, table in ranks.items()}
    asked = {
        "all items": (ranks, "rank"),
        "history masked": (ranks, "rank_masked"),
        "history masked, new targets": (new, "rank_masked"),
    }
    found = {}
    for words, (tables, ranking) in asked.items():
        users = per_user(runs, tables, ["ndcg@10"])
        own = {model: values for (model, r, _), values in users.items() if r == ranking}
        hydra = own.pop(MODELS[0])
        best = max(own, key=lambda model: own[model].mean())
        figures = {"ndcg@10": float(hydra.mean()), "best other": float(own[best].mean())}
        gain = figures["ndcg@10"] / figures["best other"] - 1
        found[words] = {"over": best, **figures, "gain": gain, "p": paired_p(hydra, own[best])}
    return found


def parts(comparison, dataset) -> dict:
    """Which users make the difference of masked NDCG@10 between Hydra and the best other model:
    ``{who: {"users": their number, "adds": their part of it}}``."""
    runs, ranks = comparison.finished(dataset), comparison.ranks(dataset)
    over = gains(comparison, dataset)["history masked"]["over"]
    users = per_user(runs, ranks, ["ndcg@10"])
    hydra, other = (users[model, "rank_masked", "ndcg@10"] for model in (MODELS[0], over))
    table = next(iter(ranks.values())).set_index("user").loc[hydra.index]
    again, short = table["repeat"], table["history_length"] <= SHORT
    who = {
        "whose target the history holds": again,
        f"with at most {SHORT} items and a new target": ~again & short,
        "with more and a new target": ~again & ~short,
    }
    difference = (hydra - other) / len(hydra)
    return {
        words: {"users": int(some.sum()), "adds": float(difference[some].sum())}
        for words, some in who.items()
    }


def seconds_to_mark(comparison, dataset) -> dict:
    """``{model: seconds of training and validation, a run each}`` to the best validation NDCG@10
    that each of SASRec's runs reaches; None for a run that never does."""
    runs = comparison.finished(dataset)
    mark = min(run["valid_result"]["ndcg@10"] for run in runs if run["model"] == MARK)
    found = {}
    for run in runs:
        spent = accumulate(e["train_seconds"] + e["valid_seconds"] for e in run["history"])
        reached = (
            seconds
            for seconds, entry in zip(spent, run["history"], strict=True)
            if entry["valid_score"] >= mark
        )
        found.setdefault(run["model"], []).append(next(reached, None))
    return found


def write_table(options, models) -> None:
    """One report of all comparisons that are there."""
    blocks = []
    for dataset in DATASETS:
        folder = report.RESULTS / NAME / dataset
        if (folder / GAINS).is_file():
            blocks += [f"## {dataset}", *dataset_tables(folder)]
    budgets = "; ".join(f"{name}: {report.settings(b)}" for name, b in BUDGETS.items())
    report.write(
        f"{NAME}/report",
        "Five models on four sets",
        f"Every model was swept with the same budget ({budgets}; {report.settings(COMMON)}; the "
        "spaces are those of `properties/tune`). Tried beside: on the two small sets a model's "
        "defaults, trained in three ways, with three seeds, and what was found as well; on "
        "amazon-beauty the defaults of Hydra, and the others as RecBole trains them (Mamba4Rec as "
        "published, too). What was best on validation is compared. On ml-1m-prefix no sweep: the "
        "defaults, two layers with dropout 0.2 and a learning rate of 0.005, what the other sets "
        f"chose, and the {CARRIED} best configurations of each of their sweeps, were tried for "
        f"{TRY_EPOCHS} epochs, and no run is longer than "
        f"{MOST_EPOCHS}. All train alike: "
        "item embeddings from co-occurrence, later targets and a learning rate that falls to a "
        "fiftieth over 30 epochs; where a model's defaults did better with a constant rate, or "
        "with RecBole's plain training, so, for up to 100 epochs.",
        "Test metrics, mean ± standard deviation over three seeds, all items ranked as RecBole "
        "ranks them; masked: the history is not. Seconds per epoch are training alone, seconds to "
        "the best epoch include validation; with one thread, one or two other runs were beside it. "
        f"Seconds to {MARK}'s best: until validation NDCG@10 is what {MARK} reaches with every "
        "seed; – where not every run gets there. "
        "Gains are Hydra's over the best other model, p from a paired t-test over users.",
        *blocks,
    )


def dataset_tables(folder) -> list[str]:
    """Quality, gains and cost of a comparison, in markdown."""
    table = pd.read_csv(folder / "results.csv")
    runs = table.groupby("model", sort=False)
    quality = [
        [model, *(report.cell(list(rows[metric])) for metric in QUALITY)] for model, rows in runs
    ]
    cost, marks = [], read_json(folder / MARKS)
    for model, rows in runs:
        choice = read_json(folder / f"{model}-{CHOICE}") or {"chosen": "nothing to choose"}
        cost.append(
            [
                model, choice["chosen"], f"{rows['other_parameters'].iloc[0]:,}",
                report.spread(rows["seconds_per_epoch"], 2),
                report.spread(rows["best_epoch"] + 1), report.spread(rows["seconds_to_best"], 1),
                "–" if None in marks[model] else report.spread(marks[model], 1),
                report.spread(rows["peak_memory"] / 2**20),
            ]
        )  # fmt: skip
    words = [
        f"{targets}: {found['ndcg@10']:.4f}, {found['gain']:+.1%} over {found['over']} "
        f"(p = {found['p']:.2g})"
        for targets, found in read_json(folder / GAINS).items()
    ]
    who = [
        f"{part['adds']:+.4f} from the {part['users']:,} users {words}"
        for words, part in read_json(folder / PARTS).items()
    ]
    return [
        report.table(["model", *map(display, QUALITY)], quality),
        f"Hydra's NDCG@10: {'; '.join(words)}.",
        f"The difference with the history masked is {', '.join(who)}.",
        f"Seconds on {' and '.join(sorted(table['machine'].unique()))}.",
        report.table(
            ["model", "settings from", "parameters beside the items", "s per epoch", "best epoch",
             "s to the best epoch", f"s to {MARK}'s best", "peak memory, MiB"],
            cost,
        ),
    ]  # fmt: skip


def main():
    stages = {
        "search": search, "carry_over": carry_over, "compare": compare_chosen, "table": write_table,
    }  # fmt: skip
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("stage", choices=stages)
    parser.add_argument("--data_path", type=Path)
    parser.add_argument("--dataset", choices=DATASETS)
    parser.add_argument("--models", default=",".join(MODELS))
    parser.add_argument("--folder", type=Path, default=Path(NAME))
    parser.add_argument("--trials", type=int, default=2, help="of a sweep at a time, a core each")
    options = parser.parse_args()
    if options.stage != "table" and None in (options.data_path, options.dataset):
        parser.error(f"{options.stage} needs --data_path and --dataset")
    options.folder = options.folder.absolute()
    stages[options.stage](options, options.models.split(","))


if __name__ == "__main__":
    main()
