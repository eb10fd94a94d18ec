"""How threads wait for each other, and how many there are, on a machine that others use, too.

A step of training has hundreds of short parallel regions, at the end of each of which the threads
wait for the last one. By default they spin: a waiting thread keeps its core busy, and where
another process wants that core, the thread that is waited for gets none. Beside one busy process
on two cores a step then takes thirty times as long, not one and a half.

OpenMP reads how to wait from the environment when it is loaded, so :func:`prepare` has to run
before torch is imported; importing recbole_hydra first does that. It imports nothing itself.
"""

import math
import os
import sys
from pathlib import Path

#: What makes waiting threads sleep soon: GNU's OpenMP (torch's and numba's on Linux), in turns of
#: its loop, some microseconds; LLVM's and Intel's, in milliseconds.
WAITING = {"GOMP_SPINCOUNT": "3000", "KMP_BLOCKTIME": "0"}

#: With any of these in the environment, the user has said how threads wait.
USERS_WORD = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME")

#: With any of these, how many there are.
USERS_NUMBER = ("OMP_NUM_THREADS", "OMP_THREAD_LIMIT", "MKL_NUM_THREADS")


def prepare() -> None:
    """Set the environment of this process, and of those it starts, unless the user has.

    Waiting threads sleep soon, and there are no more of them than :func:`usable_cores`.
    """
    prepare.too_late = False
    if not any(name in os.environ for name in USERS_WORD):
        prepare.too_late = "torch" in sys.modules
        os.environ.update(WAITING)
    cores = usable_cores()
    if not any(name in os.environ for name in USERS_NUMBER) and cores < (os.cpu_count() or 1):
        os.environ["OMP_NUM_THREADS"] = str(cores)
        if "torch" in sys.modules:
            torch = sys.modules["torch"]
            torch.set_num_threads(min(torch.get_num_threads(), cores))


#: Whether torch was there already, whose threads go on spinning.
prepare.too_late = False


def advice() -> str | None:
    """What the log of a run says where :func:`prepare` came too late; None where it did not."""
    if not prepare.too_late:
        return None
    setting = " ".join(f"{name}={value}" for name, value in WAITING.items() if name[0] == "G")
    return (
        "threads: torch was imported before recbole_hydra, so that its threads spin while they "
        "wait, which is slow on a machine that other processes use; import recbole_hydra first, or "
        f"start Python with {setting} in the environment"
    )


def usable_cores(root="/") -> int:
    """Cores that this process may use: its affinity, and the CPU quota of its control groups, which
    containers are given and torch does not know; at least 1.

    Args:
        root: the folder that ``proc`` and ``sys`` are in.
    """
    try:
        cores = len(os.sched_getaffinity(0))
    except AttributeError:  # not on macOS and Windows
        cores = os.cpu_count() or 1
    return max(1, math.ceil(min(cores, cpu_quota(root))))


def cpu_quota(root="/") -> float:
    """The least CPU quota, in cores, of the control groups (v1 and v2) that this process is in and
    of those above them; infinity where there is none."""
    root = Path(root)
    quotas = [math.inf]
    for line in _lines(root / "proc/self/cgroup"):
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            folder, read = root / "sys/fs/cgroup", _quota_v2
        elif "cpu" in controllers.split(","):
            folder, read = root / "sys/fs/cgroup" / controllers, _quota_v1
            if not folder.is_dir():
                folder = root / "sys/fs/cgroup/cpu"
        else:
            continue
        # In a container the path may be the host's, while the mount begins at its own group.
        own = folder / path.lstrip("/")
        groups = [own, *own.parents]
        quotas += [read(group) for group in groups if group == folder or folder in group.parents]
    return min(quotas)


def _quota_v2(group) -> float:
    """``cpu.max``: quota and period in microseconds, "max" for no quota."""
    for line in _lines(group / "cpu.max"):
        quota, _, period = line.partition(" ")
        return _cores(quota, period or "100000")
    return math.inf


def _quota_v1(group) -> float:
    quota, period = (_lines(group / f"cpu.cfs_{name}_us") for name in ("quota", "period"))
    return _cores(quota[0], period[0]) if quota and period else math.inf


def _cores(quota: str, period: str) -> float:
    try:
        quota, period = int(quota), int(period)
    except ValueError:
        return math.inf
    return quota / period if quota > 0 and period > 0 else math.inf  # -1 is no quota


def _lines(path) -> list[str]:
    try:
        return path.read_text(encoding="utf-8").splitlines()
    except OSError:
        return []
