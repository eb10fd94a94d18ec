"""Five models after a cut in time, and left one out: is it the same order?

    python benchmarks/time_split.py --folder=FOLDER [--epochs=10] [--seeds=2020]

On ml-100k, which comes with RecBole and has real times, and on generated data whose items come into
fashion and go out of it again, written into ``--folder``. Hydra, SASRec and GRU4Rec train alike
(:data:`TRAINING`), for a few epochs, and are not tuned; Pop counts all of training, RecentPop the
last days before the cut. The comparisons stay in ``--folder``, where the same command continues
what a kill has left.
"""

import argparse
import random
from pathlib import Path

import report
import yaml

from recbole_hydra.compare import Comparison, compare
from recbole_hydra.compare.agreement import agreement_words
from recbole_hydra.compare.report import markdown_table, quality_table
from recbole_hydra.compare.time_report import group_table, words

DATASETS = ("ml-100k", "drift")
NEURAL = ("Hydra", "SASRec", "GRU4Rec")
#: How all three are trained; the numbers of epochs follow ``--epochs``.
TRAINING = {
    "item_initialization": "cooccurrence", "later_targets": [0.3], "learning_rate": 0.006,
}  # fmt: skip
NAME = "time_split"

#: The drift: days, days in which an item halves its draw, users, items, and how often a user takes
#: what follows the last item instead of what is in fashion.
DAYS, HALF_LIFE, USERS, ITEMS, FOLLOWS = 360, 15, 1000, 400, 0.5
START, DAY = 1_700_000_000, 86_400


def write_drift(folder, users=USERS, items=ITEMS, days=DAYS, seed=0) -> None:
    """Write a log whose items come into fashion one after the other: ``drift/drift.inter``.

    Item i comes out at a day that is drawn, and draws users by a weight that halves every
    HALF_LIFE days. A user comes at a random day and takes 5 to 30 items within two months: with
    chance FOLLOWS that which came out next after the last one, otherwise one by weight.
    """
    draw = random.Random(seed)
    released = sorted(draw.uniform(-30, days) for _ in range(items))
    lines = ["user_id:token\titem_id:token\ttimestamp:float"]
    for user in range(users):
        day, last = draw.uniform(0, days), None
        for _ in range(draw.randint(5, 30)):
            out = sum(release <= day for release in released)
            if last is not None and last + 1 < out and draw.random() < FOLLOWS:
                last += 1
            else:
                weights = [0.5 ** ((day - release) / HALF_LIFE) for release in released[:out]]
                last = draw.choices(range(out), weights)[0]
            lines.append(f"u{user}\ti{last}\t{START + int(day * DAY)}")
            day += draw.expovariate(1 / 3)
            if day > days:
                break
    path = Path(folder) / "drift" / "drift.inter"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def compare_both(options) -> tuple[Comparison, Comparison]:
    """The comparisons with leave-one-out and with a cut in time."""
    training = {**TRAINING, "epochs": options.epochs, "learning_rate_decay": options.epochs}
    file = options.folder / "training.yaml"
    file.write_text(yaml.safe_dump(training), encoding="utf-8")
    write_drift(options.folder)
    done = []
    for split, more in (("leave_one_out", {}), ("time", {"cut": options.cut})):
        folder = options.folder / split
        done.append(
            compare(
                NEURAL,
                DATASETS,
                options.seeds,
                folder,
                resume=folder.exists(),
                split=split,
                model_config=dict.fromkeys(NEURAL, file),
                config_dict={"data_path": str(options.folder)},
                agreement_with=options.folder / "leave_one_out" if more else None,
                **more,
            )  # fmt: skip
        )
    return done[0], done[1]


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--cut", type=float, default=0.9)
    parser.add_argument("--seeds", type=int, nargs="+", default=[2020])
    options = parser.parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)
    left_out, in_time = compare_both(options)
    parts = [
        f"`python benchmarks/time_split.py --folder=FOLDER --epochs={options.epochs} "
        f"--cut={options.cut}`, seeds {', '.join(map(str, options.seeds))}, beside other "
        f"processes. The neural models train alike ({report.settings(TRAINING)}, a rate that falls "
        "over the epochs) for so few epochs, and none is tuned: what is of interest is what the "
        "split changes. RecentPop counts the last days of validation, too, on which nothing is "
        "trained; on the data with drift an item halves its draw every "
        f"{HALF_LIFE} days, and training ends weeks before the test begins."
    ]
    for dataset in DATASETS:
        facts = in_time.finished(dataset)[0]["fingerprint"]
        settings = in_time.identity["settings"][dataset]
        agreed = "\n".join(f"- {line}" for line in agreement_words(in_time, left_out, dataset))
        parts += [
            f"## {dataset}",
            words(facts, settings).strip(),
            markdown_table(quality_table(in_time, dataset)),
            "By what training knows (numbers of events):",
            markdown_table(group_table(in_time, dataset)),
            "Left one out:",
            markdown_table(quality_table(left_out, dataset)),
            f"Do both put the models into the same order?\n\n{agreed}",
        ]
    report.write(NAME, "After a cut in time", *parts)


if __name__ == "__main__":
    main()
