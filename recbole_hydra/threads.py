"""How threads wait for each other, and how many there are, on a machine that others use, too.

A step of training has hundreds of short parallel regions, at the end of each of which the threads
wait for the last one. By default they spin: a waiting thread keeps its core busy, and where
another process wants that core, the thread that is waited for gets none. Beside one busy process
on two cores a step then takes several times as long, not one and a half. Threads that sleep at once
would cost a quiet machine a third of its speed: waking one takes as long as a small operation.

So both: :func:`prepare` bounds the spinning, and :func:`watch` looks at how long this process's
threads wait for a core. Where they do, others want it, and waiting threads sleep at once until they
do no more (:class:`Throttle`). How threads wait changes no result, as their number would.

OpenMP reads the bound from the environment when it is loaded, so :func:`prepare` has to run before
torch is imported; importing recbole_hydra first does that. This module imports torch only in
functions that need it.
"""

import atexit
import math
import os
import sys
import threading
import time
from pathlib import Path
from types import ModuleType

#: What bounds the spinning: of GNU's OpenMP (torch's and numba's on Linux), in turns of its loop, a
#: millisecond or two, longer than what lies between two parallel regions of a step; of LLVM's and
#: Intel's, which nothing here watches, in milliseconds.
WAITING = {"GOMP_SPINCOUNT": "100000", "KMP_BLOCKTIME": "0"}
#: The same of GNU's where the system does not say how long threads wait for a core.
UNWATCHED = "1000"

#: With any of these in the environment, the user has said how threads wait.
USERS_WORD = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME")

#: With any of these, how many there are.
USERS_NUMBER = ("OMP_NUM_THREADS", "OMP_THREAD_LIMIT", "MKL_NUM_THREADS")


def prepare() -> None:
    """Set the environment of this process, and of those it starts, unless the user has.

    Waiting threads sleep soon, and there are no more of them than :func:`usable_cores`.
    """
    prepare.too_late = False  # type: ignore[attr-defined]
    # A process that one of ours started has our word, not the user's.
    prepare.ours = not any(os.environ.get(name, ours) != ours for name, ours in _words().items())  # type: ignore[attr-defined]
    if prepare.ours:  # type: ignore[attr-defined]
        prepare.too_late = _torch() is not None and "GOMP_SPINCOUNT" not in os.environ  # type: ignore[attr-defined]
        os.environ.update(WAITING)
        if cores_waited_for() is None:
            os.environ["GOMP_SPINCOUNT"] = UNWATCHED
    cores = usable_cores()
    if not any(name in os.environ for name in USERS_NUMBER) and cores < (os.cpu_count() or 1):
        os.environ["OMP_NUM_THREADS"] = str(cores)
        if torch := _torch():
            torch.set_num_threads(min(torch.get_num_threads(), cores))


#: Whether torch was there already, whose threads go on spinning; whether the user has said nothing.
prepare.too_late = prepare.ours = False  # type: ignore[attr-defined]


def _torch() -> ModuleType | None:
    """torch where something has imported it, else None."""
    return sys.modules.get("torch")


def _words() -> dict[str, str | None]:
    """What each of :data:`USERS_WORD` is where it is not the user's."""
    return {name: WAITING.get(name) for name in USERS_WORD}


def advice() -> str | None:
    """What the log of a run says where :func:`prepare` came too late; None where it did not."""
    if not prepare.too_late:  # type: ignore[attr-defined]
        return None
    setting = " ".join(f"{name}={value}" for name, value in WAITING.items() if name[0] == "G")
    return (
        "threads: torch was imported before recbole_hydra, so that its threads spin for "
        "milliseconds while they wait, which is slow on a machine that other processes use; import "
        f"recbole_hydra first, or start Python with {setting} in the environment"
    )


# -- while others want the cores ------------------------------------------------------------------

#: Seconds between two looks.
EVERY = 0.1
#: Seconds that threads wait for a core per second, all together, from which on others want it, and
#: down to which they no longer do. On a quiet machine it is about 0.01, beside one busy process 0.4
#: and more, throttled or not.
WANTED, LEFT = 0.15, 0.05
#: Looks in a row at which others want the cores before threads sleep at once: a quiet machine has
#: its moments, too. And at which nobody does before threads spin again.
BUSY_LOOKS, QUIET_LOOKS = 2, 5


def cores_waited_for(tasks: str | os.PathLike[str] = "/proc/self/task") -> float | None:
    """Seconds that the threads of this process were ready to run and had no core, since each of
    them began; None where the system does not say."""
    waited = 0
    try:
        for task in os.listdir(tasks):
            try:
                waited += int(Path(tasks, task, "schedstat").read_bytes().split()[1])
            except ProcessLookupError:
                continue  # over since it was listed
            except FileNotFoundError:
                if Path(tasks, task).exists():
                    return None
    except (OSError, IndexError, ValueError):
        return None
    return waited / 1e9


class Throttle:
    """Makes threads of GNU's OpenMP that wait sleep at once, as long as it is held.

    Where there are more threads than cores, it lets them spin for a hundred turns only, whatever
    ``GOMP_SPINCOUNT`` says (libgomp's ``gomp_throttled_spin_count_var``). To hold it is to keep so
    many threads, asleep: those of a thread of our own, who end with it.
    """

    def __init__(self) -> None:
        import torch  # here, not in a thread that nobody sees fail

        self._torch = torch
        self._leave: threading.Event | None = None
        self._thread: threading.Thread | None = None

    @property
    def held(self) -> bool:
        """Whether it is held."""
        return self._thread is not None

    def hold(self) -> None:
        """Return when threads sleep at once; no more than that if they do already."""
        if self.held:
            return
        self._leave, begun = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._keep, args=(self._leave, begun), daemon=True)
        self._thread.start()
        begun.wait()  # set whatever happens there

    def release(self) -> None:
        """Let threads spin again."""
        if self._thread is not None and self._leave is not None:
            self._leave.set()
            self._thread.join()
            self._thread = None

    def _keep(self, leave: threading.Event, begun: threading.Event) -> None:
        torch, number = self._torch, self._torch.get_num_threads()
        more = max(2, len(os.sched_getaffinity(0)) - number + 2)
        try:
            torch.set_num_threads(more)
            torch.zeros(more * 2**15).neg_()  # large enough to be shared out to all
        finally:
            torch.set_num_threads(number)  # new threads take the number that was set last
            begun.set()
        leave.wait()


class Watch:
    """Holds a :class:`Throttle` while others want the cores.

    Attributes:
        throttle: that one.
    """

    def __init__(self, throttle: Throttle) -> None:
        self.throttle = throttle
        self._busy = self._quiet = 0
        self._over = threading.Event()
        self._thread = threading.Thread(target=self.run, name="recbole_hydra.threads", daemon=True)

    def start(self) -> None:
        """Have a thread look, until the interpreter ends."""
        self._thread.start()
        atexit.register(self.stop)

    def stop(self) -> None:
        """Look no more, and hold nothing. A thread that the end of the interpreter finds inside of
        torch, on its way back from it, would abort the process."""
        self._over.set()
        if self._thread.is_alive():  # not in a process that was forked
            self._thread.join()

    def look(self, waited: float, elapsed: float) -> None:
        """Hold or release.

        Args:
            waited: seconds that threads waited for a core in the last ``elapsed`` seconds.
        """
        share = waited / elapsed
        self._quiet = self._quiet + 1 if share < LEFT else 0
        self._busy = self._busy + 1 if share > WANTED else 0
        if self._busy >= BUSY_LOOKS:
            self.throttle.hold()
        elif self._quiet >= QUIET_LOOKS:
            self.throttle.release()

    def run(self) -> None:
        """Look until :meth:`stop`."""
        then, before = time.monotonic(), cores_waited_for()
        try:
            while not self._over.wait(EVERY):
                now, waited = time.monotonic(), cores_waited_for()
                if waited is None:  # the system says it no more
                    continue
                assert before is not None  # watch() has looked before
                # Threads that have ended take what they waited with them.
                self.look(max(0.0, waited - before), now - then)
                then, before = now, waited
        finally:
            self.throttle.release()


def watch() -> None:
    """Have a thread look after how this process's threads wait, from now on.

    Nothing is done where it would change nothing: one thread, other systems than Linux, a user who
    has said how threads wait. A second call does nothing.
    """
    import torch

    if watch.process == os.getpid() or not prepare.ours or torch.get_num_threads() == 1:  # type: ignore[attr-defined]
        return
    if not sys.platform.startswith("linux") or cores_waited_for() is None:
        return
    # Threads do not go with a fork.
    watch.process = os.getpid()  # type: ignore[attr-defined]
    Watch(Throttle()).start()


#: The process that is watched.
watch.process = None  # type: ignore[attr-defined]


# -- how many -------------------------------------------------------------------------------------


def usable_cores(root: str | os.PathLike[str] = "/") -> int:
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


def cpu_quota(root: str | os.PathLike[str] = "/") -> float:
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


def _quota_v2(group: Path) -> float:
    """``cpu.max``: quota and period in microseconds, "max" for no quota."""
    for line in _lines(group / "cpu.max"):
        quota, _, period = line.partition(" ")
        return _cores(quota, period or "100000")
    return math.inf


def _quota_v1(group: Path) -> float:
    quota, period = (_lines(group / f"cpu.cfs_{name}_us") for name in ("quota", "period"))
    return _cores(quota[0], period[0]) if quota and period else math.inf


def _cores(quota: str, period: str) -> float:
    try:
        time_of_cores, time_of_one = int(quota), int(period)
    except ValueError:
        return math.inf
    if time_of_cores <= 0 or time_of_one <= 0:  # -1 is no quota
        return math.inf
    return time_of_cores / time_of_one


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="utf-8").splitlines()
    except OSError:
        return []
