"""Runs the tasks of a plan one after another, each in a process of its own."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import recbole_hydra
from recbole_hydra.compare.plan import Plan, Task, task_as_json
from recbole_hydra.compare.worker import LOG, RESULT
from recbole_hydra.output_folder import read_json, write_json

#: Seconds a run is given to end after it was told to.
PATIENCE = 10


def run_tasks(plan: Plan, show_progress: bool = True) -> None:
    """Run what is not finished; a failed run is written down, and the next one begins.

    A run that was killed, or failed, goes on at the epoch it had reached.
    """
    from tqdm import tqdm

    results = [read_json(Path(task.folder) / RESULT) or {} for task in plan.tasks]
    open_tasks = [
        task
        for task, result in zip(plan.tasks, results, strict=True)
        if result.get("status") != "ok"
    ]
    with tqdm(
        total=len(plan.tasks),
        initial=len(plan.tasks) - len(open_tasks),
        unit="run",
        disable=not show_progress,
        dynamic_ncols=True,
    ) as bar:
        for task in open_tasks:
            name = f"{task.model} on {task.dataset}, seed {task.seed}"
            bar.set_description(name)

            def on_event(event: dict[str, Any], name: str = name) -> None:
                epoch, best = event["epoch"], event["best"]
                bar.set_description(f"{name}: epoch {epoch}, best {best:.4f}")

            result = run_task(task, on_event)
            if result["status"] != "ok" and show_progress:
                bar.write(f"{name}: failed: {result['error']}", file=sys.stderr)
            bar.update()


def run_task(task: Task, on_event: Callable[[dict[str, Any]], None]) -> dict[str, Any]:
    """Run one task to its end and return its result.

    Raises:
        KeyboardInterrupt: after the run has been ended.
    """
    folder = Path(task.folder)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / RESULT).unlink(missing_ok=True)
    # Where the package is not installed, as in a checkout, the process finds it all the same.
    root = str(Path(recbole_hydra.__file__).parents[1])
    paths = [root, *filter(None, [os.environ.get("PYTHONPATH")])]
    with open(folder / LOG, "a", encoding="utf-8") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "recbole_hydra.compare.worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            encoding="utf-8",
            env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
            start_new_session=True,  # Ctrl-C is ours to handle
        )
        assert process.stdin is not None and process.stdout is not None
        try:
            process.stdin.write(task_as_json(task))
            process.stdin.flush()
            for line in process.stdout:
                on_event(json.loads(line))
            process.wait()
        except BrokenPipeError:
            process.wait()
        except BaseException:
            _end(process)
            raise
        finally:
            process.stdout.close()
            try:
                process.stdin.close()
            except BrokenPipeError:
                pass
    result = read_json(folder / RESULT)
    if result is None:
        result = {
            "dataset": task.dataset,
            "model": task.model,
            "seed": task.seed,
            "status": "failed",
            "error": _how_it_ended(process.returncode, folder),
        }
        write_json(folder / RESULT, result)
    return result


def _end(process: subprocess.Popen[str]) -> None:
    process.terminate()
    try:
        process.wait(PATIENCE)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _how_it_ended(status: int, folder: Path) -> str:
    if status == -signal.SIGKILL:
        return "killed, probably by the system, for lack of memory"
    if status < 0:
        return f"ended by signal {-status}; see {folder / LOG}"
    return f"ended with status {status}; see {folder / LOG}"
