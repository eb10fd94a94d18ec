"""Requests per second of ``recbole-hydra serve``, and of an endpoint that calls ``recommend``.

    python benchmarks/server.py --data_path=FOLDER [--dataset=amazon-beauty] [--seconds=8]
        [--rounds=3] [--connections=32]

Trains Hydra for an epoch; the weights do not matter for the times. Half of the requests are events,
half ask for ten items for a user, of users and items drawn at random. Both servers and the client,
which has a process of its own, share the cores of this machine, the servers one after the other,
in turns. First as many requests as are answered with every connection waiting for its answer; then
half of that, at random moments, where times count from the moment that a request was due. Writes
``results/server.md``.
"""

import argparse
import asyncio
import json
import random
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path

import report

#: What a user of RecBole and FastAPI writes first.
ENDPOINT = """
import sys
import fastapi, uvicorn
from recbole_hydra import load_model, recommend
model, app, events = load_model(sys.argv[1]), fastapi.FastAPI(), {}

@app.post("/events")
def observe(event: dict):
    events.setdefault(event["user"], []).append(event["item"])
    return {"stored": 1}

@app.get("/recommendations/{user}")
def best(user: str, k: int = 10):
    return {"items": [{"item": i, "score": s} for i, s in recommend(model, user, k=k)]}

uvicorn.run(app, port=int(sys.argv[2]), log_level="warning")
"""
PORT = 8765


# -- the client, in a process of its own ---------------------------------------------------------


def request(users, items, rng) -> bytes:
    user = rng.choice(users)
    if rng.random() < 0.5:
        return f"GET /recommendations/{user}?k=10 HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n".encode()
    body = json.dumps({"user": user, "item": rng.choice(items)})
    head = "POST /events HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
    return f"{head}Content-Length: {len(body)}\r\n\r\n{body}".encode()


async def answered(reader, writer, message) -> bool:
    """Send a request and read the answer; whether it is one of success."""
    writer.write(message)
    head = await reader.readuntil(b"\r\n\r\n")
    length = int(head.lower().split(b"content-length: ")[1].split(b"\r\n")[0])
    await reader.readexactly(length)
    return head.startswith(b"HTTP/1.1 200")


async def load(port, users, items, seconds, connections, rate) -> dict:
    """Milliseconds of the requests of some seconds; ``rate`` a second, or as many as there are."""
    times, failed, rng = [], 0, random.Random(0)
    begin = time.perf_counter()
    due = asyncio.Queue()

    async def connection():
        nonlocal failed
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        while time.perf_counter() < begin + seconds:
            start = await due.get() if rate else time.perf_counter()
            if start is None:
                break
            if not await answered(reader, writer, request(users, items, rng)):
                failed += 1
            times.append(1e3 * (time.perf_counter() - start))
        writer.close()

    async def clock():
        at = begin
        while at < begin + seconds:
            at += rng.expovariate(rate)
            await asyncio.sleep(max(0.0, at - time.perf_counter()))
            due.put_nowait(at)
        for _ in range(connections):
            due.put_nowait(None)

    jobs = [connection() for _ in range(connections)] + ([clock()] if rate else [])
    await asyncio.gather(*jobs)
    quantiles = statistics.quantiles(times, n=100)
    return {
        "per_second": len(times) / (time.perf_counter() - begin), "failed": failed,
        "p50": quantiles[49], "p90": quantiles[89], "p99": quantiles[98],
    }  # fmt: skip


def client(port, folder, seconds, connections, rate=0.0) -> dict:
    command = [sys.executable, __file__, "--client", str(folder / "ids.json")]
    command += [f"--port={port}", f"--seconds={seconds}", f"--connections={connections}"]
    done = subprocess.run([*command, f"--rate={rate}"], capture_output=True, text=True, check=True)
    return json.loads(done.stdout)


# -- the servers ---------------------------------------------------------------------------------


class Served:
    """A server, while it is used."""

    def __init__(self, command, port):
        self.process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        for _ in range(600):
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/recommendations/nobody?k=1")
            except urllib.error.HTTPError:
                break
            except OSError:
                time.sleep(0.1)
            else:
                break

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self.process.terminate()
        self.process.wait()


def trained(folder, options) -> tuple[str, list, list]:
    """A checkpoint, its users and items."""
    from recbole_hydra import load_model, run_recbole_hydra

    given = {"epochs": 1, "show_progress": False, "checkpoint_dir": str(folder)}
    if options.data_path:
        given["data_path"] = options.data_path
    path = run_recbole_hydra("Hydra", options.dataset, config_dict=given)["best_checkpoint"]
    vocabulary = load_model(path).checkpoint["vocabulary"]
    fields = vocabulary.uid_field, vocabulary.iid_field
    return path, *([str(x) for x in vocabulary.field2id_token[field][1:]] for field in fields)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data_path")
    parser.add_argument("--dataset", default="amazon-beauty")
    parser.add_argument("--seconds", type=float, default=8)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--connections", type=int, default=32)
    parser.add_argument("--client", help=argparse.SUPPRESS)
    parser.add_argument("--port", type=int, default=PORT, help=argparse.SUPPRESS)
    parser.add_argument("--rate", type=float, default=0.0, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.client:
        users, items = json.loads(Path(options.client).read_text())
        how = options.seconds, options.connections, options.rate
        print(json.dumps(asyncio.run(load(options.port, users, items, *how))))
        return
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        path, users, items = trained(folder, options)
        (folder / "ids.json").write_text(json.dumps([users[:20_000], items]))
        (folder / "endpoint.py").write_text(ENDPOINT)
        serve = [sys.executable, "-m", "recbole_hydra.cli", "serve", f"--checkpoint={path}"]
        serve.append(f"--port={options.port}")
        commands = {
            "recommend(model, user) in an endpoint": [
                sys.executable, str(folder / "endpoint.py"), path, str(options.port)
            ],
            "recbole-hydra serve, in memory": serve,
            "recbole-hydra serve, LMDB": [*serve, f"--store={folder / 'states'}"],
        }  # fmt: skip
        most, calm = {name: [] for name in commands}, {name: [] for name in commands}
        for _ in range(options.rounds):
            for name, command in commands.items():
                how = options.port, folder, options.seconds, options.connections
                with Served(command, options.port):
                    client(options.port, folder, 2, options.connections)
                    most[name].append(client(*how))
                    half = most[name][-1]["per_second"] / 2
                    calm[name].append(client(*how, rate=half))
                print(name, most[name][-1], calm[name][-1], flush=True)
    first = statistics.median(found["per_second"] for found in next(iter(most.values())))
    rows = [
        [
            name,
            report.spread([x["per_second"] for x in found]),
            f"{statistics.median(x['per_second'] for x in found) / first:.1f}",
            *(report.spread([x[p] for x in calm[name]], 1) for p in ("p50", "p90", "p99")),
            sum(x["failed"] for x in found + calm[name]),
        ]
        for name, found in most.items()
    ]
    headers = ["", "requests/s", "times as many", "p50 at half, ms", "p90", "p99", "failed"]
    said = (
        f"{len(items):,} items, {min(len(users), 20_000):,} users, {options.connections} "
        "connections, one process each for server and client, on the same cores."
    )
    report.write(
        "server",
        "A server under load",
        f"`python benchmarks/server.py --dataset={options.dataset}`: medians [range] of "
        f"{options.rounds} rounds of {options.seconds:g} s. {said}",
        report.table(headers, rows),
    )


if __name__ == "__main__":
    main()
