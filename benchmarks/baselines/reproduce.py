"""Baselines with their published settings, against their published figures.

    python benchmarks/baselines/reproduce.py eSASRec --data_path=FOLDER [--dataset=amazon-beauty]
        [--seed=2020] [--change="{hidden_size: 256}"] [--folder=baselines]
    python benchmarks/baselines/reproduce.py table

A run has the settings of the model's yaml, and ends and chooses its epoch as its authors do: by a
metric of validation without the items of the history. Its figures go to
``results/baselines/<model>.json``; one that was killed is continued by the same command, and one
that is not over is tested as it is with ``--so_far`` added. ``table`` writes
``results/baselines.md``.
"""

import argparse
import json
import os
import shutil
import statistics
import sys
from pathlib import Path

import yaml

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))

import report  # noqa: E402

NAME = "baselines"
#: In a run's folder: its checkpoints, and a copy to test while it goes on.
CHECKPOINTS, COPY = "checkpoints", "so-far"
#: The file of each class, and the metric of validation that its authors stop by (eSASRec: ours).
MODELS = {
    "BSARec": ("bsarec.py", "NDCG@20"),
    "eSASRec": ("esasrec.py", "NDCG@10"),
    "LRURec": ("lrurec.py", "Recall@10"),
}
METRICS = ("hit@10", "ndcg@10", "hit@20", "ndcg@20", "mrr@10")
#: Published Hit@10 and NDCG@10, history masked, and where they are from.
PUBLISHED = {
    ("BSARec", "amazon-beauty"): (0.1008, 0.0611, "its authors' log of one run"),
    ("eSASRec", "amazon-beauty"): (0.0928, 0.0523, "its paper's repository"),
}
#: What the authors' settings are on another set than the yaml's.
OTHER = {
    ("eSASRec", "ml-1m-prefix"): {
        "n_layers": 2, "dropout_prob": 0.1, "MAX_ITEM_LIST_LENGTH": 200,
    },
    ("LRURec", "ml-1m-prefix"): {
        "dropout_prob": 0.2, "lru_dropout_prob": 0.2, "MAX_ITEM_LIST_LENGTH": 200,
    },
}  # fmt: skip


def without_history(model_class):
    """A class whose validation leaves the items of the history out, as the authors' does; once it
    is trained, set ``hides_history`` to False for the scores as they are."""
    import torch

    class Chosen(model_class):
        hides_history = False  # until training begins: before it, scores are checked

        def train(self, mode=True):
            self.hides_history = self.hides_history or mode
            return super().train(mode)

        def full_sort_predict(self, interaction):
            scores = super().full_sort_predict(interaction)
            if not self.hides_history:
                return scores
            return scores.scatter(1, interaction[self.ITEM_SEQ], -torch.inf)

    Chosen.__name__ = Chosen.__qualname__ = model_class.__name__
    return Chosen


def reproduce(options) -> None:
    """Train and test one model, and keep its figures."""
    name = "-".join([options.dataset, f"seed-{options.seed}", *changed(options.change)])
    folder = options.folder.absolute() / options.model / name
    folder.mkdir(parents=True, exist_ok=True)
    options.data_path = options.data_path.absolute()
    os.chdir(folder)  # RecBole's logs land there
    done = so_far(options) if options.so_far else trained(options)
    path = results(options.model)
    path.parent.mkdir(parents=True, exist_ok=True)
    run = figures(done, options)
    runs = {**read(options.model), name: run}
    path.write_text(json.dumps(runs, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    print(json.dumps(run["test"], indent=1))


def class_of(model):
    """The class that is trained."""
    from recbole_hydra.model.from_file import class_in_file

    return without_history(class_in_file(f"{HERE / MODELS[model][0]}:{model}"))


def trained(options):
    """The run, trained in the current folder, or continued there."""
    from recbole_hydra.training.run import train_or_continue

    def say(entry) -> None:
        print(
            f"epoch {entry['epoch']}: loss {entry['train_loss']:.4f}, valid "
            f"{ {k: round(v, 4) for k, v in entry['valid_result'].items()} }, "
            f"{entry['train_seconds']:.1f} + {entry['valid_seconds']:.1f} s",
            flush=True,
        )

    settings = {
        "data_path": str(options.data_path), "seed": options.seed, "topk": [10, 20],
        "valid_metric": MODELS[options.model][1], "metrics": ["Recall", "NDCG", "Hit", "MRR"],
        "checkpoint_dir": CHECKPOINTS, "show_progress": False,
        **OTHER.get((options.model, options.dataset), {}), **options.change,
    }  # fmt: skip
    return train_or_continue(
        CHECKPOINTS, class_of(options.model), options.dataset, on_epoch=say,
        config_file_list=[str(HERE / f"{options.model}.yaml")], config_dict=settings,
    )  # fmt: skip


def so_far(options):
    """The run in the current folder as it is, while another process may go on with it."""
    from recbole_hydra.training.run import train

    shutil.rmtree(COPY, ignore_errors=True)
    if not list(Path(CHECKPOINTS).glob("*.best.pth")):
        raise SystemExit(f"{Path(CHECKPOINTS).absolute()} has no epoch yet")
    shutil.copytree(CHECKPOINTS, COPY)
    (last,) = Path(COPY).glob("*.last.pth")
    # With all of its epochs behind it, nothing is trained.
    return train(class_of(options.model), resume=last, config_dict={"epochs": 1})


def figures(done, options) -> dict:
    """What is kept of a run: its best epoch, tested in both rankings, and what it took."""
    from recbole_hydra.compare.ranks import RANKINGS, left_out_targets, mean_metric, rank_targets
    from recbole_hydra.machine import machine, peak_memory
    from recbole_hydra.training.run import read_test_set

    done.trainer.model.hides_history = False
    read_test_set(done)
    targets = left_out_targets(done.data.histories, done.data.dataset.item_num)
    ranks = rank_targets(done, targets)
    history = done.result["history"]
    evaluated = [entry for entry in history if "valid_score" in entry]
    best = max(evaluated, key=lambda entry: (entry["valid_score"], entry["epoch"]))
    return {
        "dataset": options.dataset, "seed": options.seed, "change": options.change,
        "command": command(options), "over": not options.so_far,
        "test": {
            f"{m}{words}": round(mean_metric(m, ranks, ranking), 6)
            for ranking, words in RANKINGS.items() for m in METRICS
        },
        "valid, masked": {k: round(v, 6) for k, v in best["valid_result"].items()},
        "epochs": len(history), "best_epoch": best["epoch"] + 1,
        "seconds_per_epoch": round(statistics.median(e["train_seconds"] for e in history), 2),
        "seconds_to_best": round(best["seconds"], 1), "seconds": round(evaluated[-1]["seconds"], 1),
        "parameters": done.result["parameters"], "peak_memory": peak_memory(),
        "machine": machine(),
    }  # fmt: skip


def changed(change) -> list:
    """Changes to the yaml's settings, as parts of a name."""
    return [f"{key}-{value}" for key, value in sorted(change.items())]


def command(options) -> str:
    """The command of a run, without folders of this machine."""
    own = [f"--dataset={options.dataset}", f"--seed={options.seed}"]
    if options.change:
        own.append(f"--change='{json.dumps(options.change)}'")
    return f"python benchmarks/baselines/reproduce.py {options.model} --data_path=FOLDER " + (
        " ".join(own)
    )


def results(model) -> Path:
    """The file of a model's figures."""
    return report.RESULTS / NAME / f"{model}.json"


def read(model) -> dict:
    """The runs of a model that are over, by name."""
    path = results(model)
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}


def write_table() -> None:
    """Put what is there beside what is published."""
    rows = []
    for model in MODELS:
        for run in read(model).values():
            hit, ndcg, source = PUBLISHED.get(
                (model, run["dataset"]), (None, None, "none is known")
            )
            test = run["test"]
            reached = test["ndcg@10, masked"]
            rows.append([
                model, run["dataset"], run["seed"], report.settings(run["change"]) or "–",
                f"{test['hit@10, masked']:.4f}", f"{reached:.4f}",
                "–" if hit is None else f"{hit:.4f}", "–" if ndcg is None else f"{ndcg:.4f}",
                "–" if ndcg is None else f"{100 * (reached / ndcg - 1):+.1f}%", source,
                f"{test['hit@10']:.4f}", f"{test['ndcg@10']:.4f}",
                run["best_epoch"], f"{run['epochs']}{'' if run['over'] else ', not over'}",
                f"{run['seconds_per_epoch']:.1f}", f"{run['seconds_to_best']:.0f}",
            ])  # fmt: skip
    report.write(
        NAME,
        "Baselines against their published figures",
        "`python benchmarks/baselines/reproduce.py MODEL --data_path=FOLDER`: the settings of "
        "`benchmarks/baselines/MODEL.yaml`, with the changes named; test figures of the epoch that "
        "is best on validation. Masked: the history is not ranked, as in all that is published.",
        report.table(
            ["model", "dataset", "seed", "changed", "Hit@10, masked", "NDCG@10, masked",
             "published Hit@10", "published NDCG@10", "difference", "published in",
             "Hit@10, all items", "NDCG@10, all items", "best epoch", "epochs", "s per epoch",
             "s to the best epoch"],
            rows,
        ),
    )  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", choices=[*MODELS, "table"])
    parser.add_argument("--data_path", type=Path)
    parser.add_argument("--dataset", default="amazon-beauty")
    parser.add_argument("--seed", type=int, default=2020)
    parser.add_argument("--change", type=yaml.safe_load, default={}, help="settings, as yaml")
    parser.add_argument("--folder", type=Path, default=Path(NAME))
    parser.add_argument(
        "--so_far", action="store_true", help="test the best epoch so far of a run that goes on"
    )
    options = parser.parse_args()
    if options.model == "table":
        return write_table()
    if options.data_path is None:
        parser.error("--data_path: the folder of the datasets is needed")
    return reproduce(options)


if __name__ == "__main__":
    main()
