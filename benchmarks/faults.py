"""What a server loses when it is killed, its disk is full, or its Redis is gone.

    python benchmarks/faults.py [--kills=50] [--users=200] [--seed=0]

Trains Hydra with carried state on the tiny dataset for an epoch. For LMDB and for Redis, a server
is under load of events by four connections and killed (SIGKILL) after a random time, again and
again on the same store; after each time the store is opened, and compared with what was
acknowledged, and every user's recommendations with those of the whole history read anew. Then the
disk of an LMDB store is filled (a tmpfs, which needs root) and freed, and Redis is killed and
started again, under a server that runs on. Writes ``results/faults.md``; needs redis-server.
"""

import argparse
import json
import random
import shutil
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.request
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import report

from recbole_hydra import Recommender, run_recbole_hydra

DATA = str(Path(__file__).parents[1] / "dataset")


def call(url, body=None):
    """The status and the answer of a request."""
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url, data, {"content-type": "application/json"})
    try:
        with urllib.request.urlopen(request, timeout=30) as response:
            return response.status, json.load(response)
    except urllib.error.HTTPError as error:
        return error.code, json.load(error)


@contextmanager
def serving(path, store):
    command = [sys.executable, "-m", "recbole_hydra.cli", "serve", "--port=0"]
    command += [f"--checkpoint={path}", f"--store={store}"]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    try:
        address = process.stdout.readline().split(": ")[0]
        while call(f"{address}/ready")[0] != 200:
            time.sleep(0.05)
        yield process, address
    finally:
        process.kill()
        process.wait()


@contextmanager
def redis_server(folder):
    """A Redis that keeps what it acknowledges, and how to kill it and start it again."""
    socket = folder / "redis.sock"
    command = ["redis-server", "--port", "0", "--unixsocket", str(socket), "--dir", str(folder)]
    command += ["--appendonly", "yes", "--appendfsync", "always", "--save", ""]
    running = []

    def start():
        running.append(subprocess.Popen(command, stdout=subprocess.DEVNULL))
        while not socket.exists():
            time.sleep(0.05)

    def kill():
        running[-1].kill()
        running[-1].wait()
        socket.unlink(missing_ok=True)

    start()
    yield f"unix://{socket}?db=0", start, kill
    kill()


def load(address, names, acknowledged, items, seed):
    """Send events until no answer comes."""
    rng = random.Random(seed)
    try:
        while True:
            user, item = rng.choice(names), rng.choice(items)
            if call(f"{address}/events", {"user": user, "item": item})[0] == 200:
                acknowledged[user].append(item)
    except OSError:
        pass


def is_in(part, whole) -> bool:
    """Whether ``whole`` has all of ``part``, in its order."""
    rest = iter(whole)
    return all(item in rest for item in part)


def kills(path, store, options, rng) -> dict:
    """What a store has after each kill."""
    connections, found = 4, {"lost": 0, "acknowledged": 0, "not opened": 0, "difference": 0.0}
    # Every connection has users of its own, whose events are in the order of their answers.
    names = [[f"{c} {i}" for i in range(options.users // connections)] for c in range(connections)]
    acknowledged = {user: [] for part in names for user in part}
    with Recommender(path) as service:
        items = [str(token) for token in service.ranking.tokens[1:]]
    for number in range(options.kills):
        with serving(path, store) as (process, address):
            threads = [
                threading.Thread(
                    target=load, args=(address, part, acknowledged, items, rng.random())
                )
                for part in names
            ]
            for thread in threads:
                thread.start()
            time.sleep(rng.uniform(0.05, 1.5))
            process.kill()
            process.wait()
            for thread in threads:
                thread.join()
        try:
            service = Recommender(path, store)
        except Exception as error:
            print(error)
            found["not opened"] += 1
            continue
        with service:
            for user, had in acknowledged.items():
                there = service.history(user)
                found["lost"] += not is_in(had, there)
                # Those that were stored, but whose answer was lost.
                acknowledged[user] = there
                if there:
                    streamed = dict(service.recommend(user, k=len(items)))
                    anew = dict(service.recommend_to_history(there, k=len(items)))
                    far = max(abs(streamed[item] - anew[item]) for item in anew)
                    found["difference"] = max(found["difference"], far)
        print(number, found, sum(map(len, acknowledged.values())), flush=True)
    found["acknowledged"] = sum(map(len, acknowledged.values()))
    return found


def interrupted(path, store, stop, go_on) -> list:
    """Answers to an event before, while and after a store cannot be written; seconds to recover."""
    event = {"user": "u", "item": "i5"}
    with serving(path, store) as (_, address):
        before = call(f"{address}/events", event)[0]
        stop()
        while_away = call(f"{address}/events", event)
        go_on()
        start, after = time.perf_counter(), 0
        while after != 200:
            after = call(f"{address}/events", event)[0]
        took = time.perf_counter() - start
        number = call(f"{address}/users/u/history")[1]["number"]
    return [before, while_away[0], while_away[1].get("error", ""), after, f"{took:.2f}", number]


def full_disk(path, folder) -> list:
    """The answers around a full disk; none where this user may not mount one."""
    disk = folder / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(disk)]
    if subprocess.run(mount, capture_output=True).returncode:
        return ["–"] * 6
    filler = disk / "filler"

    def fill():
        with open(filler, "wb", buffering=0) as file:
            try:
                while True:
                    file.write(np.zeros(4096, np.uint8).data)
            except OSError:
                pass

    try:
        return interrupted(path, disk / "states", fill, filler.unlink)
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--users", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    if shutil.which("redis-server") is None:
        parser.error("needs redis-server (Debian: apt-get install redis-server)")
    rng = random.Random(options.seed)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        given = {
            "epochs": 1, "carry_state": True, "data_path": DATA, "show_progress": False,
            "checkpoint_dir": str(folder),
        }  # fmt: skip
        path = run_recbole_hydra("Hydra", "tiny", config_dict=given)["best_checkpoint"]
        away = {"the disk full": full_disk(path, folder)}
        killed = {"LMDB": kills(path, folder / "states", options, rng)}
        with redis_server(folder) as (url, start, kill):
            killed["Redis"] = kills(path, url, options, rng)
            away["Redis killed"] = interrupted(path, url, kill, start)
    rows = [
        [
            name, options.kills, f"{found['acknowledged']:,}", found["lost"], found["not opened"],
            f"{found['difference']:.1e}",
        ]
        for name, found in killed.items()
    ]  # fmt: skip
    headers = ["", "kills", "events", "users who lost one", "not opened", "scores, at most"]
    around = ["", "before", "while", "which says", "after", "seconds to it", "events stored"]
    report.write(
        "faults",
        "Faults",
        f"`python benchmarks/faults.py --kills={options.kills} --users={options.users}`: "
        f"{options.users} users, four connections; a SIGKILL after 0.05 to 1.5 s. The last column "
        "is the largest difference between streamed scores and those of the history read anew.",
        report.table(headers, rows),
        "Statuses of an event, by a server that runs on.",
        report.table(around, [[name, *row] for name, row in away.items()]).replace(
            str(folder), "FOLDER"
        ),
    )


if __name__ == "__main__":
    main()
