"""One item LLM for several domains against one per domain, and adapting to a domain left out.

    pip install '.[llm,demo,test]'
    python benchmarks/domains.py --data_path=FOLDER [--seeds=2020] [--folder=domains]

The domains: amazon-office, amazon-industrial, and "movies": of ml-1m-prefix the last 32
interactions of every tenth user, about as many as the other two have. A model is trained in two
stages: on the frozen LLM until it stops early, then an epoch with LoRA. Each run's figures go into
``results/domains/runs.json``: what is there is not repeated (remove it to measure anew), unless
another run starts from a checkpoint that ``--folder`` lacks.
"""

import argparse
import itertools
import os
import time
from pathlib import Path

import numpy as np
import report

os.environ["HF_HUB_OFFLINE"] = "1"

import item_text
from item_text import minilm
from report import cell

from recbole_hydra.output_folder import read_json, write_json
from recbole_hydra.training.run import read_test_set, train

NAME = "domains"
RUNS = report.RESULTS / NAME / "runs.json"
DOMAINS = ("amazon-office", "amazon-industrial", "movies")
SETS = (DOMAINS[:2], DOMAINS)

#: The second stage, from the frozen run.
LORA = {**item_text.LORA, "epochs": 1}

#: The same for all runs: nothing here is tuned.
COMMON = {
    **item_text.HYDRA, "epochs": 100, "item_encoder": "text", "item_text_length": 40,
    "show_progress": False, "state": "WARNING",
    "load_col": {"inter": ["user_id", "item_id", "timestamp"]},
}  # fmt: skip
FIELDS = {name: ["title", "brand"] for name in DOMAINS[:2]} | {"movies": ["title", "genre"]}
#: What is trained on the domain left out, from the LoRA model of the others.
ADAPTATIONS = (["hydra"], ["projection", "hydra"], ["lora"])


def prepare(data_path: Path, folder: Path) -> Path:
    """Put the three domains into one folder; returns it."""
    data = folder / "data"
    for name in DOMAINS:
        source = "ml-1m-prefix" if name == "movies" else name
        (data / name).mkdir(parents=True, exist_ok=True)
        for kind in ("inter", "item"):
            path = data / name / f"{name}.{kind}"
            if path.exists():
                continue
            lines = (data_path / source / f"{source}.{kind}").read_text("utf-8").splitlines(True)
            if name == "movies" and kind == "inter":
                lines = [lines[0], *last_of_tenth(lines[1:])]
            path.write_text("".join(lines), encoding="utf-8")
    return data


def last_of_tenth(lines, number=32) -> list[str]:
    """The last interactions of every tenth user; the file is in the order of users and time."""
    of_user = itertools.groupby(lines, key=lambda line: line.partition("\t")[0])
    tenth = (list(own) for user, own in of_user if user.endswith("0"))
    return [line for own in tenth for line in own[-number:]]


class Bench:
    """Runs of one seed, each once."""

    def __init__(self, folder, data, seed):
        self.folder, self.data, self.seed = folder, data, seed
        self.asked = {}  # label -> (domains, settings)

    def checkpoint(self, label) -> str:
        """The best checkpoint of a run that was asked for, which is trained if need be."""
        own = self.folder / "runs" / label / str(self.seed)
        if not (own / "result.json").is_file():
            self._train(own, *self.asked[label])
        return str(next((own / "checkpoints").glob("*.best.pth")))

    def fit(self, label, domains, **settings) -> dict:
        """The figures of a run on one domain or several, which is trained if they are not known."""
        self.asked[label] = (domains, settings)
        runs = read_json(RUNS) or {}
        key = f"{label} {self.seed}"
        if key not in runs:
            best = Path(self.checkpoint(label))
            runs[key] = read_json(best.parent.parent / "result.json")
            RUNS.parent.mkdir(parents=True, exist_ok=True)
            write_json(RUNS, runs)
            wall = f"{runs[key]['wall_seconds']:.0f} s"
            print(key, dict(runs[key]["test"]), wall, flush=True)
        return runs[key]

    def _train(self, own, domains, settings) -> None:
        for path in own.glob("checkpoints/*"):
            path.unlink()  # of a run that was killed
        settings = dict(settings)
        if "origin" in settings:
            settings["adapt_from"] = self.checkpoint(settings.pop("origin"))
        given = {
            **COMMON, "data_path": str(self.data), "seed": self.seed, "item_llm": minilm(),
            "checkpoint_dir": str(own / "checkpoints"), **settings,
        }  # fmt: skip
        if len(domains) > 1:
            given["domains"] = list(domains)
            own_fields = {name: {"item_text_fields": FIELDS[name]} for name in domains}
            given["domain_settings"] = own_fields
        else:
            given["item_text_fields"] = FIELDS[domains[0]]
        start, cpu = time.perf_counter(), time.process_time()
        run = train("Hydra", None if len(domains) > 1 else domains[0], config_dict=given)
        read_test_set(run)
        history = run.result["history"]
        result = {
            "parameters": run.result["parameters"]["total"],
            "test": run.result["test_result"],
            "valid": run.result["best_valid_result"],
            "zero_shot": run.result.get("zero_shot"),
            "valid_scores": [e["valid_score"] for e in history],
            "seconds": [e["train_seconds"] + e["valid_seconds"] for e in history],
            "wall_seconds": time.perf_counter() - start,
            "cpu_seconds": time.process_time() - cpu,
        }
        write_json(own / "result.json", result)

    def two_stages(self, label, domains, **settings) -> tuple[dict, dict]:
        """The frozen model, and the one that goes on from it with LoRA."""
        frozen = self.fit(f"{label}-frozen", domains, **settings)
        lora = self.fit(f"{label}-lora", domains, **{**settings, **LORA}, origin=f"{label}-frozen")
        return frozen, lora


def label_of(domains) -> str:
    return "+".join(name.removeprefix("amazon-") for name in domains)


def one_against_many(bench) -> dict:
    """``{(set of domains, side, stage): {...}}`` of one seed."""
    found = {}
    for domains in SETS:
        alone = {name: bench.two_stages(label_of([name]), [name]) for name in domains}
        for stage, title in enumerate(("frozen", "LoRA")):
            stages = [alone[name][: stage + 1] for name in domains]
            found[domains, "one per domain", title] = {
                "test": {
                    f"{metric} {name}": alone[name][stage]["test"][metric]
                    for name in domains
                    for metric in ("ndcg@10", "hit@10")
                },
                "parameters": sum(alone[name][stage]["parameters"] for name in domains),
                "wall": sum(r["wall_seconds"] for both in stages for r in both),
                "cpu": sum(r["cpu_seconds"] for both in stages for r in both),
            }
        for user_model in ("shared", "per_domain"):
            both = bench.two_stages(
                f"{label_of(domains)}-{user_model}", domains, user_model=user_model
            )
            for stage, title in enumerate(("frozen", "LoRA")):
                found[domains, f"one for all, layers {user_model}", title] = {
                    "test": both[stage]["test"],
                    "parameters": both[stage]["parameters"],
                    "wall": sum(r["wall_seconds"] for r in both[: stage + 1]),
                    "cpu": sum(r["cpu_seconds"] for r in both[: stage + 1]),
                }
    return found


def leave_out(bench, name) -> dict:
    """``{(domain, what was trained): {...}}`` of one seed and the domain left out."""
    found = {}
    others = [other for other in DOMAINS if other != name]
    bench.two_stages(f"{label_of(others)}-shared", others, user_model="shared")
    origin = f"{label_of(others)}-shared-lora"
    alone = bench.two_stages(label_of([name]), [name])
    found[name, "from scratch"] = {
        "parameters": alone[1]["parameters"],
        "seconds": sum(alone[0]["seconds"] + alone[1]["seconds"]),
        "full": alone[1]["test"],
    }
    budget = found[name, "from scratch"]["seconds"] / 10
    for parts in ADAPTATIONS:
        label = f"{label_of([name])}-adapt-{'+'.join(parts)}"
        settings = {"origin": origin, "adapt": parts}
        if "lora" in parts:
            settings = {**LORA, **settings}
        full = bench.fit(label, [name], **settings)
        epochs = int((np.cumsum(full["seconds"]) <= budget).sum())
        tenth = None
        if epochs:
            tenth = bench.fit(f"{label}-tenth", [name], **{**settings, "epochs": epochs})
        found[name, " + ".join(parts)] = {
            "parameters": full["parameters"],
            "seconds": sum(full["seconds"]),
            "zero": full["zero_shot"]["test"],
            "tenth": tenth and tenth["test"],
            "epochs": epochs,
            "full": full["test"],
        }
    return found


def first_table(results, domains) -> str:
    rows = []
    for (which, side, stage), _ in results[0].items():
        if which != domains:
            continue
        runs = [result[which, side, stage] for result in results]
        scores = [[r["test"][f"ndcg@10 {name}"] for r in runs] for name in domains]
        rows.append(
            [
                side, stage, *(cell(values) for values in scores),
                cell(np.mean(scores, axis=0)),
                cell([np.mean([r["test"][f"hit@10 {name}"] for name in domains]) for r in runs]),
                f"{runs[0]['parameters']:,}", report.spread([r["wall"] for r in runs]),
                report.spread([r["cpu"] for r in runs]),
            ]
        )  # fmt: skip
    headers = ["item LLM", "trained", *(f"NDCG@10 {name}" for name in domains), "mean NDCG@10",
               "mean HR@10", "trainable parameters", "wall s", "CPU s"]  # fmt: skip
    return report.table(headers, rows)


def second_table(results, domain) -> str:
    rows = []
    for (name, trained), _ in results[0].items():
        if name != domain:
            continue
        runs = [result[name, trained] for result in results]
        whole = [result[name, "from scratch"]["full"]["ndcg@10"] for result in results]
        row = [trained, f"{runs[0]['parameters']:,}", report.spread([r["seconds"] for r in runs])]
        for key in ("zero", "tenth", "full"):
            if any(r.get(key) is None for r in runs):
                row.append("–")
                continue
            scores = [r[key]["ndcg@10"] for r in runs]
            share = np.mean(np.array(scores) / whole)
            hits = cell([r[key]["hit@10"] for r in runs])
            row.append(f"{cell(scores)} ({share:.0%}), {hits}")
        rows.append(row)
    headers = ["trained", "trainable parameters", "s", "before any training",
               "in a tenth of the time", "in the end"]  # fmt: skip
    return report.table(headers, rows)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data_path", type=Path, required=True)
    parser.add_argument("--seeds", default="2020")
    parser.add_argument("--folder", type=Path, default=Path("domains"))
    options = parser.parse_args()
    folder = options.folder.absolute()
    data = prepare(options.data_path, folder)
    benches = [Bench(folder, data, int(seed)) for seed in options.seeds.split(",")]
    first = [one_against_many(bench) for bench in benches]
    second = [
        {key: value for name in DOMAINS for key, value in leave_out(bench, name).items()}
        for bench in benches
    ]

    lora = ", ".join(f"{key} {value}" for key, value in LORA.items())
    parts = [
        "`python benchmarks/domains.py --data_path=FOLDER`: all-MiniLM-L6-v2; title and brand, of "
        f"movies title and genre, at most {COMMON['item_text_length']} tokens. Hydra with its "
        "defaults, nothing tuned; a model is trained on the frozen LLM until early stopping, then "
        f"with LoRA ({lora}). Every target is ranked among all items of its domain. Movies are the "
        "last 32 interactions of every tenth user of ml-1m-prefix. Seeds "
        f"{options.seeds}; seconds are of both stages, reading and encoding included. Other runs "
        "were beside these, so that CPU seconds compare better than wall seconds.",
        "## One LLM for all domains against one per domain",
    ]
    for domains in SETS:
        parts.append(first_table(first, domains))
    parts += [
        "## Adapting to a domain left out",
        "From the LoRA model of the other two (layers shared). NDCG@10, in brackets its share of "
        "that of the model trained from scratch, and HR@10, all on the test set. A tenth of the "
        "time: of the seconds of training and validation from scratch, both stages.",
    ]
    for name in DOMAINS:
        parts += [f"### {name}", second_table(second, name)]
    report.write(f"{NAME}/report", "Several domains by one item LLM", *parts)


if __name__ == "__main__":
    main()
