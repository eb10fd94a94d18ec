"""Ten of a million items: indexes of faiss against looking at all.

    python benchmarks/index.py --data_path=FOLDER [--dataset=amazon-beauty] [--epochs=5]
        [--items=1000000] [--rounds=5] [--threads=1] [--name=index]

Trains Hydra, and makes the million items of its table: each lies between a trained item and one of
its ten nearest, at a random place, and is moved in a random direction by half of the distance
between them; so there are as many groups, lengths and distances as the table has. The queries are
the vectors of the trained users, one half to set how far an index looks, the other to measure it.
Beside it the worst case for any index: items and queries of independent normal numbers, which lie
in no groups. Both sides of a comparison take turns; medians and ranges over the rounds. Writes
``results/<name>.md``.
"""

import argparse
import statistics
import tempfile
import time
from functools import partial
from pathlib import Path

import faiss
import numpy as np
import report
import torch
from serving import seconds, trained

from recbole_hydra import Recommender
from recbole_hydra.serving.index import AIM, build, open_index, search
from recbole_hydra.serving.top_k import top_k

#: Queries that are timed in a round, one after another.
QUERIES = 50

#: Indexes by faiss's names for them, and whether items are made equally long by a further number,
#: so that the nearest are those of the greatest inner product.
OTHERS = {
    "IVF, cells by inner product": ("IVF4096,Flat", False),
    "IVF of 8-bit numbers": ("IVF4096,SQ8", False),
    "IVF-PQ (32 x 4 bits), 10 k ranked again": ("IVF4096,PQ32x4fs,RFlat", False),
    "HNSW, 32 links": ("HNSW32", False),
    "HNSW, 32 links, equal lengths": ("HNSW32", True),
}

#: How far the others look, at most.
FURTHEST = 512


def between(table, number, seed=0) -> np.ndarray:
    """Items between those of a trained table, (number, width)."""
    generator = np.random.default_rng(seed)
    unit = table / np.linalg.norm(table, axis=1, keepdims=True)
    near = np.empty((len(table), 10), np.int64)
    for i in range(0, len(table), 1024):
        cosines = unit[i : i + 1024] @ unit.T
        cosines[np.arange(len(cosines)), np.arange(i, i + len(cosines))] = -np.inf
        near[i : i + 1024] = np.argpartition(-cosines, 10, axis=1)[:, :10]
    one = generator.integers(0, len(table), number)
    other = near[one, generator.integers(0, 10, number)]
    place = generator.random((number, 1), dtype=np.float32)
    gap = np.linalg.norm(table[one] - table[other], axis=1, keepdims=True)
    moved = generator.normal(size=(number, table.shape[1])).astype(np.float32)
    moved *= gap / 2 / np.linalg.norm(moved, axis=1, keepdims=True)
    return (place * table[one] + (1 - place) * table[other] + moved).astype(np.float32)


def recall(found, truth, k) -> float:
    pairs = zip(found[:, :k], truth[:, :k], strict=True)
    return float(np.mean([np.isin(wanted, own).mean() for own, wanted in pairs]))


def measured(items, queries, arguments, others) -> list:
    """Rows: recall and milliseconds of one query, of everything that finds ten items."""
    rounds = arguments.rounds
    aimed, held = queries[::2].copy(), queries[1::2].copy()
    whole = (0, len(items))
    torch.set_num_threads(2)
    truth, _ = top_k(held, items, 100, whole)
    start = time.perf_counter()
    part = build("ivf", items, whole, aimed)
    took = time.perf_counter() - start
    torch.set_num_threads(arguments.threads)
    faiss.omp_set_num_threads(arguments.threads)
    tensor = torch.from_numpy(items)
    jobs = {
        "torch.topk(vector @ items.T)": lambda q: torch.topk(torch.from_numpy(q) @ tensor.T, 10),
        "exact, serving/top_k.py": lambda q: top_k(q, items, 10, whole),
        "index of this package": lambda q: search(part.index, q, 10, part.reach),
        "the same, 60 candidates": lambda q: search(part.index, q, 60, part.reach),
    }
    found = {name: [] for name in jobs}
    for round_ in range(rounds + 1):
        picked = [held[[i % len(held)]] for i in range(round_ * QUERIES, (round_ + 1) * QUERIES)]
        for name, job in jobs.items():
            times = [1e3 * seconds(partial(job, query)) for query in picked]
            if round_:  # the first warms up
                found[name].append(statistics.median(times))
    got = search(part.index, held, 100, part.reach)
    exact = statistics.median(found["exact, serving/top_k.py"])

    def row(name, times, recalls=("1", "1"), setting="", built=""):
        quotient = f"{exact / statistics.median(times):.1f}"
        return [name, setting, *recalls, report.spread(times, 2), quotient, built]

    recalls = [f"{recall(got, truth, k):.4f}" for k in (10, 100)]
    cells = f"{part.reach} of {part.index.nlist} cells"
    rows = [
        row(name, times, *((recalls, cells, f"{took:.0f}") if i > 1 else ()))
        for i, (name, times) in enumerate(found.items())
    ]
    for name in others:
        rows.append(other(name, items, aimed, held, truth, row, rounds))
        print(rows[-1], flush=True)
    return rows


def other(name, items, aimed, held, truth, row, rounds) -> list:
    """The row of another index: the least setting that finds 99% of the best ten of the users it is
    set on, or the furthest."""
    spec, lengthened = OTHERS[name]
    metric = faiss.METRIC_INNER_PRODUCT
    if lengthened:
        metric, square = faiss.METRIC_L2, (items**2).sum(1)
        more = np.sqrt(np.maximum(square.max() - square, 0))[:, None]
        given = np.hstack([items, more]).astype(np.float32)
        aimed, held = (np.hstack([q, np.zeros((len(q), 1), np.float32)]) for q in (aimed, held))
    else:
        given = items
    threads = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(2)
    start = time.perf_counter()
    index = faiss.index_factory(given.shape[1], spec, metric)
    index.train(given[:: max(1, len(given) // 200_000)])
    index.add(given)
    took = time.perf_counter() - start
    faiss.omp_set_num_threads(threads)
    setter = faiss.ParameterSpace()
    if "RFlat" in spec:
        setter.set_index_parameter(index, "k_factor_rf", 10)
    setting = "nprobe" if "IVF" in spec else "efSearch"
    best, _ = top_k(aimed[:, : items.shape[1]].copy(), items, 10, (0, len(items)))
    reach = 16
    while True:
        setter.set_index_parameter(index, setting, reach)
        if recall(index.search(aimed, 10)[1], best, 10) >= AIM or reach >= FURTHEST:
            break
        reach = min(FURTHEST, int(reach * 1.25))
    times = []
    for round_ in range(rounds):
        picked = [held[[i % len(held)]] for i in range(round_ * QUERIES, (round_ + 1) * QUERIES)]
        times.append(statistics.median(1e3 * seconds(partial(index.search, q, 10)) for q in picked))
    got = index.search(held, 100)[1]
    recalls = [f"{recall(got, truth, k):.4f}" for k in (10, 100)]
    return row(name, times, recalls, f"{setting} {reach}", f"{took:.0f}")


def stored(items, queries, folder) -> str:
    """A sentence on the file: its size, and how long it takes to read."""
    place = Path(folder) / "stored.pth"
    open_index("ivf", items, [(0, len(items))], place, lambda _: queries)
    took = seconds(lambda: open_index("ivf", items, [(0, len(items))], place, lambda _: queries))
    size = Path(f"{place}.ivf.faiss").stat().st_size
    return f"The file has {size / 1e6:.0f} MB and is checked and read in {took:.1f} s."


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data_path", default=None)
    parser.add_argument("--dataset", default="amazon-beauty")
    parser.add_argument("--checkpoint", default=None, help="instead of training one")
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--items", type=int, default=1_000_000)
    parser.add_argument("--name", default="index")
    arguments = parser.parse_args()
    headers = ["", "looks at", "recall@10", "recall@100", "ms", "times as fast", "built in s"]
    with tempfile.TemporaryDirectory() as folder:
        path = arguments.checkpoint or trained(
            folder, arguments.dataset, arguments.data_path, epochs=arguments.epochs
        )
        with Recommender(path) as service:
            queries, table = service.states.some_vectors(1000), service.ranking.table[1:]
        items = between(table, arguments.items)
        rows = measured(items, queries, arguments, OTHERS)
        title = f"Items between the {len(table):,} of {arguments.dataset}"
        file = stored(items, queries, folder)
        parts = [f"## {title}\n\n{report.table(headers, rows)}\n\n{file}"]
        print(parts[-1], flush=True)
    generator = np.random.default_rng(0)
    items = generator.normal(size=items.shape).astype(np.float32)
    queries = generator.normal(size=queries.shape).astype(np.float32)
    rows = measured(items, queries, arguments, [])
    parts.append(f"## Items in no groups\n\n{report.table(headers, rows)}")
    rounds = arguments.rounds
    command = f"python benchmarks/index.py --threads={arguments.threads} --rounds={rounds}"
    said = (
        f"`{command} --dataset={arguments.dataset} --data_path=FOLDER`: the best of "
        f"{arguments.items:,} items, width {items.shape[1]}, for one vector, medians [range] over "
        f"rounds of {QUERIES} users, {arguments.threads} thread(s); built with two. Recall is of "
        f"{len(queries) // 2} users other than those that say how far an index has to look. Hydra "
        f"trained {arguments.epochs} epochs; how items are made of its table is in the script. The "
        f"index of this package looks as far as {AIM} of the best 10 and of the best 100 need, the "
        f"others as far as {AIM} of the best 10 need, at most {FURTHEST}."
    )
    report.write(arguments.name, "An index of the items", said, *parts)


if __name__ == "__main__":
    main()
