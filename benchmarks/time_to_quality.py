"""Time to reach the quality of RecBole's own SASRec: validation NDCG@10 on ml-100k.

    python benchmarks/time_to_quality.py [--epochs=10] [--most=60]

The mark is the best validation NDCG@10 of SASRec trained as RecBole does (augmentation) for
``--epochs`` epochs. Then every causal model trains on every position, default settings, until it
reaches the mark, or for ``--most`` epochs. Time is the sum of training and evaluation up to that
epoch; loading the data is left out on both sides, compiling is not.
"""

import argparse
import json

import report

from recbole_hydra import run_recbole_hydra

MODELS = ["SASRec", "GRU4Rec", "Mamba4Rec", "Hydra"]


class MarkReached(Exception):  # noqa: N818 (it is no error)
    """Ends a run at the mark."""


def curve(model, mode, epochs, mark=None):
    """Train, and return [(seconds since the start, validation NDCG@10)] per epoch."""
    points = []

    def watch(entry):
        before = points[-1][0] if points else 0.0
        points.append(
            (before + entry["train_seconds"] + entry["valid_seconds"], entry["valid_score"])
        )
        print(model, mode, f"{points[-1][0]:.1f} s", entry["valid_score"], flush=True)
        if mark is not None and entry["valid_score"] >= mark:
            raise MarkReached

    settings = {
        "training_mode": mode,
        "epochs": epochs,
        "stopping_step": epochs,
        "show_progress": False,
        "state": "WARNING",
    }
    try:
        run_recbole_hydra(model, "ml-100k", config_dict=settings, saved=False, on_epoch=watch)
    except MarkReached:
        pass
    return points


def plot(curves, mark):
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axis = pyplot.subplots(figsize=(7, 4), layout="constrained")
    for name, points in curves.items():
        axis.plot(*zip(*points, strict=True), "o-", markersize=3, label=name)
    axis.axhline(mark, color="grey", linestyle=":")
    axis.set(xscale="log", xlabel="seconds of training and evaluation", ylabel="valid NDCG@10")
    axis.grid(alpha=0.3)
    axis.legend(loc="lower right")
    figure.savefig(report.RESULTS / "time_to_quality.png", dpi=120)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--most", type=int, default=60)
    arguments = parser.parse_args()
    reference = curve("SASRec", "augmentation", arguments.epochs)
    seconds, mark = max(reference, key=lambda point: point[1])
    curves = {"SASRec, augmentation": reference}
    rows = [["SASRec", "augmentation", len(reference), f"{mark:.4f}", f"{seconds:.0f}", "1"]]
    for model in MODELS:
        points = curve(model, "autoregressive", arguments.most, mark)
        curves[f"{model}, every position"] = points
        reached = points[-1][1] >= mark
        ratio = f"{seconds / points[-1][0]:.1f}" if reached else "not reached"
        best = max(score for _, score in points)
        row = [model, "autoregressive", len(points), f"{best:.4f}", f"{points[-1][0]:.0f}", ratio]
        rows.append(row)
    plot(curves, mark)
    (report.RESULTS / "time_to_quality.json").write_text(json.dumps(curves, indent=1))
    report.write(
        "time_to_quality",
        "Time to the validation NDCG@10 of RecBole's SASRec on ml-100k",
        f"The mark, {mark:.4f}, is the best of {arguments.epochs} epochs of SASRec in RecBole's "
        "augmentation mode; its time is that of the epoch that set it. One run each (seed 2020), "
        "default settings, MAX_ITEM_LIST_LENGTH 50. "
        f"`python benchmarks/time_to_quality.py --epochs={arguments.epochs} "
        f"--most={arguments.most}`; the curves are in time_to_quality.json.",
        report.table(["model", "training_mode", "epochs", "best", "seconds", "times sooner"], rows),
        "![validation NDCG@10 against time](time_to_quality.png)",
    )


if __name__ == "__main__":
    main()
