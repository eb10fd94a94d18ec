"""Serving a trained model: events, recommendations, all users at once.

    python benchmarks/serving.py [--data_path=FOLDER] [--bulk_dataset=amazon-beauty] [--threads=1]
        [--rounds=5] [--items=1000000] [--name=serving]

Trains Hydra for an epoch on ml-100k, in both readings, and on the dataset of the bulk output; the
weights do not matter for the times. Both sides of a comparison take turns in this process; medians
and ranges over the rounds. Writes ``results/<name>.md``.
"""

import argparse
import statistics
import tempfile
import time
from functools import partial
from pathlib import Path

import numpy as np
import report
import torch

from recbole_hydra import (
    Recommender,
    load_data_and_model,
    load_model,
    recommend,
    run_recbole_hydra,
)
from recbole_hydra.serving.bulk import recommend_all
from recbole_hydra.serving.eight_bit import EightBitTable
from recbole_hydra.serving.top_k import top_k

EVENTS = 2000


def seconds(job) -> float:
    start = time.perf_counter()
    job()
    return time.perf_counter() - start


def alternating(jobs, rounds) -> dict:
    """{name: [seconds]} of jobs that take turns, each warmed up once."""
    for job in jobs.values():
        job()
    found = {name: [] for name in jobs}
    for round_ in range(rounds):
        for name in list(jobs)[:: -1 if round_ % 2 else 1]:
            found[name].append(seconds(jobs[name]))
    return found


def trained(folder, dataset, data_path, **changes) -> str:
    """The checkpoint of a run of one epoch."""
    given = {"epochs": 1, "show_progress": False, "checkpoint_dir": folder, **changes}
    if data_path:
        given["data_path"] = data_path
    return run_recbole_hydra("Hydra", dataset, config_dict=given)["best_checkpoint"]


def items_of(service):
    return [str(token) for token in service.ranking.tokens[1:]]


def observing(path, folder, rounds) -> list:
    """Microseconds of one event, by the length of the history and the store."""
    rows = []
    for store in ("memory", "LMDB"):
        with Recommender(path, None if store == "memory" else Path(folder) / "states") as service:
            items, users = items_of(service), {}
            for length in (10, 1_000, 100_000):
                users[length] = f"user of {length}"
                picked = np.random.default_rng(0).integers(0, len(items), length)
                service.observe_many([(users[length], items[i]) for i in picked])
            found = {length: [] for length in users}
            for _ in range(rounds):
                for length, user in users.items():
                    times = [
                        seconds(partial(service.observe, user, items[i % 500]))
                        for i in range(EVENTS // (1 if store == "memory" else 20))
                    ]
                    found[length].append(1e6 * statistics.median(times))
            rows += [
                [f"{store}, after {length:,} events", report.spread(times, 1)]
                for length, times in found.items()
            ]
    return rows


def encoding(path, rounds) -> list:
    """Microseconds to encode the last 50 items, and to recommend after them."""
    model = load_model(path)
    service = Recommender(model, reading="window")
    items = np.random.default_rng(1).integers(1, model.n_items, 50)
    tensor, start = torch.from_numpy(items)[None], np.array([0, 50])
    tokens = [str(service.ranking.tokens[item]) for item in items]
    service.observe_many([("u", token) for token in tokens])
    keep = torch.tensor([49])

    def by_modules():
        with torch.no_grad():
            model.encode(tensor, keep=keep)

    jobs = {
        "encode 50 items, the model's modules": by_modules,
        "encode 50 items, compiled": lambda: service.states.encoder(items, start),
        "recommend(model, 50 items)": lambda: recommend(model, tokens),
        "Recommender.recommend(user)": lambda: service.recommend("u"),
    }
    repeated = {name: (lambda job=job: [job() for _ in range(50)]) for name, job in jobs.items()}
    found = alternating(repeated, rounds)
    return [[name, report.spread([1e6 * t / 50 for t in times])] for name, times in found.items()]


def batches(path, rounds) -> list:
    """Events a second, one at a time and for 256 users together."""
    service = Recommender(path)
    items, users = items_of(service), [f"u{i}" for i in range(256)]
    events = [(user, items[i]) for i, user in enumerate(users)]
    found = alternating(
        {
            "one at a time": lambda: [service.observe(*event) for event in events],
            "256 users together": lambda: service.observe_many(events),
        },
        4 * rounds,
    )
    rates = {name: [256 / t for t in times] for name, times in found.items()}
    one, many = (statistics.median(x) for x in rates.values())
    rows = [[name, report.spread(rate)] for name, rate in rates.items()]
    return [*rows, ["ratio", f"{many / one:.1f}"]]


def exact(n_items, rounds) -> list:
    """Milliseconds of the best ten of many items, width 64, for one vector."""
    generator = np.random.default_rng(0)
    table = generator.normal(size=(n_items, 64)).astype(np.float32)
    vector = generator.normal(size=(1, 64)).astype(np.float32)
    all_items, query = torch.from_numpy(table), torch.from_numpy(vector)
    copy, nothing = EightBitTable(table), (np.empty(0, np.int64), np.empty(0, np.float32))
    found = alternating(
        {
            "torch.topk(vector @ items.T)": lambda: torch.topk(query @ all_items.T, 10),
            "blocks, with a running top k": lambda: top_k(vector, table, 10, (0, n_items)),
            "by the copy of 8 bits": lambda: copy.top_k(vector[0], 10, (0, n_items), nothing),
        },
        4 * rounds,
    )
    plain, *ours = (statistics.median(times) for times in found.values())
    rows = [[name, report.spread([1e3 * t for t in ts], 1)] for name, ts in found.items()]
    return [*rows, ["times as fast as torch.topk", ", ".join(f"{plain / t:.2f}" for t in ours)]]


def bulk(path, folder, rounds) -> list:
    """Users a second of the best 100 of all items."""
    from recbole.utils.case_study import full_sort_topk

    _, model, dataset, _, _, test = load_data_and_model(path)
    users = np.arange(1, dataset.user_num)
    service = Recommender(path)
    written = Path(folder) / "recs.parquet"

    def by_recbole():
        for i in range(0, len(users), 1024):
            full_sort_topk(users[i : i + 1024], model, test, k=100)

    def ours():
        recommend_all(service, written, k=100, show_progress=False)
        written.unlink()

    found = alternating({"RecBole's full_sort_topk": by_recbole, "recommend_all": ours}, rounds)
    rates = {name: [len(users) / t for t in times] for name, times in found.items()}
    theirs, mine = (statistics.median(x) for x in rates.values())
    rows = [[name, report.spread(rate)] for name, rate in rates.items()]
    return [*rows, ["ratio", f"{mine / theirs:.1f}"]]


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data_path", default=None)
    parser.add_argument("--bulk_dataset", default="amazon-beauty")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--items", type=int, default=1_000_000)
    parser.add_argument("--name", default="serving")
    arguments = parser.parse_args()
    rounds = arguments.rounds
    with tempfile.TemporaryDirectory() as folder:
        carried = trained(folder, "ml-100k", None, carry_state=True)
        windowed = trained(folder, "ml-100k", None)
        parts = []
        beauty = trained(folder, arguments.bulk_dataset, arguments.data_path)
        torch.set_num_threads(arguments.threads)
        for title, headers, rows in (
            ("observe, carried state", ["", "µs"], lambda: observing(carried, folder, rounds)),
            ("Reading a window", ["", "µs"], lambda: encoding(windowed, rounds)),
            ("Batches, carried state", ["", "events/s"], lambda: batches(carried, rounds)),
            (
                f"Ten of {arguments.items:,} items", ["", "ms"],
                lambda: exact(arguments.items, rounds),
            ),
            (
                f"All users of {arguments.bulk_dataset}, k = 100", ["", "users/s"],
                lambda: bulk(beauty, folder, max(2, rounds // 2)),
            ),
        ):  # fmt: skip
            parts.append(f"## {title}\n\n{report.table(headers, rows())}")
            print(parts[-1], flush=True)
    command = f"python benchmarks/serving.py --threads={arguments.threads} --rounds={rounds}"
    said = (
        f"`{command}`: Hydra's defaults, medians [range] over rounds that alternate, "
        f"{arguments.threads} thread(s)."
    )
    report.write(arguments.name, "Serving", said, *parts)


if __name__ == "__main__":
    main()
