import importlib
import os
import subprocess
import sys
import threading
from types import SimpleNamespace

import pytest
import torch

from recbole_hydra import ops, threads

OURS = threads.WAITING


@pytest.fixture
def environment(monkeypatch):
    """The environment of a process in which the user has said nothing."""
    for name in (*threads.USERS_WORD, *threads.USERS_NUMBER):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(threads.prepare, "too_late", False)
    monkeypatch.setattr(threads, "_torch", lambda: None)  # out of sys.modules others miss it, too
    return monkeypatch


def said(names):
    return {name: os.environ[name] for name in names if name in os.environ}


@pytest.mark.parametrize(
    "users",
    [
        {},
        {"GOMP_SPINCOUNT": "7"},
        {"OMP_WAIT_POLICY": "ACTIVE"},
        {"OMP_WAIT_POLICY": "passive"},
        {"KMP_BLOCKTIME": "5"},
    ],
    ids=str,
)
@pytest.mark.parametrize("torch_came_first", [False, True])
def test_waiting_is_the_user_s_or_ours(environment, users, torch_came_first):
    for name, value in users.items():
        environment.setenv(name, value)
    if torch_came_first:
        environment.setattr(threads, "_torch", lambda: torch)
    threads.prepare()
    assert said(threads.USERS_WORD) == (users or OURS)  # for the processes that it starts, too
    line = threads.advice()
    if users or not torch_came_first:
        assert line is None
    else:
        assert f"GOMP_SPINCOUNT={OURS['GOMP_SPINCOUNT']}" in line
        assert "import recbole_hydra first" in line


def python(code):
    """What ``code`` prints in a process of its own, in an environment that says nothing."""
    names = {*threads.USERS_WORD, *threads.USERS_NUMBER, "NUMBA_NUM_THREADS"}
    environment = {name: value for name, value in os.environ.items() if name not in names}
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code],
        env=environment, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


#: A process that may use one core of many, whatever the machine is.
ONE_CORE = "import os; os.cpu_count = lambda: 64; os.sched_getaffinity = lambda _: {0}; "


@pytest.mark.parametrize("first", ["recbole_hydra", "torch, recbole_hydra"])
def test_importing_the_package_is_enough(first):
    """Before torch is there, whose threads are as many as numba's."""
    code = f"{ONE_CORE}import {first}, torch; from recbole_hydra import ops, threads; "
    code += "from recbole_hydra.ops.numba_support import use_torch_threads as use; "
    code += "print(os.environ['GOMP_SPINCOUNT'], torch.get_num_threads(), use(), "
    code += "threads.prepare.too_late)"
    late = first != "recbole_hydra"
    assert python(code) == f"{OURS['GOMP_SPINCOUNT']} 1 1 {late}"


def test_a_process_that_ours_starts_has_our_word_too(environment):
    environment.delenv("OMP_WAIT_POLICY", raising=False)
    threads.prepare()
    threads.prepare()
    assert threads.prepare.ours and said(threads.USERS_WORD) == OURS
    environment.setenv("OMP_WAIT_POLICY", "active")
    threads.prepare()
    assert not threads.prepare.ours
    for name in threads.USERS_WORD:
        environment.delenv(name)


def test_where_nobody_can_watch_threads_sleep_soon(environment):
    environment.setattr(threads, "cores_waited_for", lambda: None)
    threads.prepare()
    assert said(threads.USERS_WORD) == {**OURS, "GOMP_SPINCOUNT": threads.UNWATCHED}
    for name in OURS:
        environment.delenv(name)


def test_a_run_logs_the_advice_once(run_small, monkeypatch, caplog):
    monkeypatch.setattr(threads.prepare, "too_late", True)
    caplog.set_level("INFO")
    run_small("Hydra", epochs=1)
    lines = [r.getMessage() for r in caplog.records if "threads: torch was" in r.getMessage()]
    assert len(lines) == 1


# -- while others want the cores ------------------------------------------------------------------


@pytest.mark.parametrize(
    "contents, seconds",
    [
        ({}, 0.0),
        ({"1/schedstat": "5 2000000000 7\n", "2/schedstat": "5 500000000 7\n"}, 2.5),
        ({"1/schedstat": "5 2000000000 7\n", "2/comm": "python\n"}, None),
        ({"1/schedstat": "\n"}, None),
        ({"1/schedstat": "nonsense here it is\n"}, None),
    ],
)
def test_time_that_threads_waited_for_a_core(tmp_path, contents, seconds):
    assert threads.cores_waited_for(files(tmp_path, contents)) == seconds
    assert threads.cores_waited_for(tmp_path / "none") is None


class Held:
    """A throttle that only remembers."""

    def __init__(self):
        self.held = False

    def hold(self):
        self.held = True

    def release(self):
        self.held = False


def test_when_to_hold_and_when_to_release():
    watch = threads.Watch(Held())

    def looks(*shares):
        for share in shares:
            watch.look(share * 0.1, 0.1)
        return watch.throttle.held

    quiet, between, busy = 0.01, 0.1, 0.4
    assert not looks(quiet, between, between)
    assert not looks(*[busy] * (threads.BUSY_LOOKS - 1))
    assert not looks(between, *[busy] * (threads.BUSY_LOOKS - 1))  # from the start again
    assert looks(busy)
    assert looks(*[quiet] * (threads.QUIET_LOOKS - 1))
    assert looks(between, *[quiet] * (threads.QUIET_LOOKS - 1))  # from the start again
    assert not looks(quiet)
    assert not looks(quiet, between)
    assert looks(*[busy] * threads.BUSY_LOOKS)


LINUX = pytest.mark.skipif(
    not sys.platform.startswith("linux") or threads.cores_waited_for() is None,
    reason="the system does not say how long threads wait for a core",
)


@LINUX
def test_a_throttle_keeps_more_threads_than_cores_and_lets_them_go():
    code = """
import os, time, recbole_hydra, torch
from recbole_hydra import threads
torch.set_num_threads(2)
torch.zeros(200_000).neg_()
def number(): return len(os.listdir("/proc/self/task"))
def settles(wanted):
    end = time.monotonic() + 10
    while number() != wanted and time.monotonic() < end: time.sleep(0.01)
    return number()
before, throttle = number(), threads.Throttle()
for _ in range(2):
    throttle.hold(); throttle.hold()
    more = number() - before
    print(throttle.held, before - 1 + more > 1, more >= len(os.sched_getaffinity(0)) - 2 + 2)
    throttle.release(); throttle.release()
    print(throttle.held, settles(before) == before, torch.get_num_threads())
"""
    held, left = "True True True", "False True 2"
    assert python(code).splitlines() == [held, left] * 2


@LINUX
def test_threads_sleep_at_once_while_others_want_the_cores():
    code = """
import os, subprocess, sys, time, recbole_hydra, torch
from recbole_hydra import threads
throttle = threads.Throttle()
threads.Throttle = lambda: throttle
torch.set_num_threads(2)
threads.watch(); threads.watch()
x = torch.zeros(200_000)
def wait(held):
    end = time.monotonic() + 60
    while throttle.held != held and time.monotonic() < end: x.add_(1)
    return throttle.held
parent = "import os; parent = os.getppid()" + chr(10) + "while os.getppid() == parent: pass"
cores = 2 * len(os.sched_getaffinity(0))
others = [subprocess.Popen([sys.executable, "-c", parent]) for _ in range(cores)]
try: print(wait(True))
finally:
    for other in others: other.kill(); other.wait()
import threading
print(sum(t.name == "recbole_hydra.threads" for t in threading.enumerate()))
"""
    assert python(code) == "True\n1"


@LINUX
def test_a_watch_that_fails_holds_nothing_and_blocks_nothing(monkeypatch):
    def fails(*_):
        raise MemoryError

    # Threads that cannot be made: whoever holds goes on, as a throttle that does nothing.
    throttle = threads.Throttle()
    throttle._torch = SimpleNamespace(
        get_num_threads=lambda: 2, set_num_threads=lambda _: None, zeros=fails
    )
    monkeypatch.setattr(threading, "excepthook", lambda _: None)
    throttle.hold()
    throttle.release()
    assert not throttle.held

    monkeypatch.setattr(threads, "EVERY", 0.001)
    watch = threads.Watch(Held())
    watch.throttle.hold()
    watch.look = fails
    watch._thread.start()
    watch._thread.join(60)
    watch.stop()
    assert not watch.throttle.held


@LINUX
@pytest.mark.parametrize("when", ["held", "in between"])
def test_a_process_ends_as_it_would_without(when):
    code = f"""
import recbole_hydra, torch
from recbole_hydra import threads
threads.EVERY = 0.0001
looks = iter(range(10**9))
threads.WANTED, threads.LEFT = (-1, -2) if {when!r} == "held" else (0.5, 0.6)
threads.BUSY_LOOKS = threads.QUIET_LOOKS = 1
if {when!r} == "in between":
    threads.cores_waited_for = lambda: next(looks) % 2  # at every look the other way
torch.set_num_threads(2)
threads.watch()
torch.zeros(200_000).neg_()
print("over")
"""
    for _ in range(3):
        assert python(code) == "over"


@pytest.mark.parametrize("why", ["one thread", "the user's word", "nothing to look at"])
def test_nothing_is_watched_where_it_changes_nothing(monkeypatch, why):
    monkeypatch.setattr(threads.watch, "process", None)
    monkeypatch.setattr(threads.prepare, "ours", why != "the user's word")
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1 if why == "one thread" else 2)
    if why == "nothing to look at":
        monkeypatch.setattr(threads, "cores_waited_for", lambda: None)
    threads.watch()
    assert threads.watch.process is None


# -- how many ------------------------------------------------------------------------------------


def files(root, contents):
    for name, text in contents.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


V2 = {"proc/self/cgroup": "0::/user/job\n"}
V1 = {"proc/self/cgroup": "5:memory:/job\n4:cpu,cpuacct:/docker/abc\n1:name=systemd:/\n"}
CPU = "sys/fs/cgroup/cpu,cpuacct"


@pytest.mark.parametrize(
    "contents, quota",
    [
        ({}, float("inf")),
        (V2, float("inf")),
        ({**V2, "sys/fs/cgroup/user/job/cpu.max": "max 100000\n"}, float("inf")),
        ({**V2, "sys/fs/cgroup/user/job/cpu.max": "150000 100000\n"}, 1.5),
        ({**V2, "sys/fs/cgroup/user/cpu.max": "50000 100000\n"}, 0.5),
        ({**V2, "sys/fs/cgroup/cpu.max": "300000 100000\n"}, 3.0),  # as a container sees its own
        (
            {
                **V2,
                "sys/fs/cgroup/user/cpu.max": "50000 25000\n",
                "sys/fs/cgroup/user/job/cpu.max": "400000 100000\n",
            },
            2.0,
        ),
        ({**V2, "sys/fs/cgroup/user/job/cpu.max": "nonsense\n"}, float("inf")),
        ({**V2, "sys/fs/cgroup/user/job/cpu.max": ""}, float("inf")),
        (
            {
                **V1,
                f"{CPU}/docker/abc/cpu.cfs_quota_us": "200000\n",
                f"{CPU}/docker/abc/cpu.cfs_period_us": "100000\n",
            },
            2.0,
        ),
        (
            {
                **V1,
                f"{CPU}/cpu.cfs_quota_us": "25000\n",
                f"{CPU}/cpu.cfs_period_us": "100000\n",
            },
            0.25,
        ),
        (
            {
                **V1,
                f"{CPU}/docker/abc/cpu.cfs_quota_us": "-1\n",
                f"{CPU}/docker/abc/cpu.cfs_period_us": "100000\n",
            },
            float("inf"),
        ),
        (
            {
                **V1,
                "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "100000\n",
                "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000\n",
            },
            1.0,
        ),
    ],
)
def test_quotas_of_control_groups(tmp_path, contents, quota):
    assert threads.cpu_quota(files(tmp_path, contents)) == quota


@pytest.mark.parametrize("quota, cores", [("10000", 1), ("100000", 1), ("150000", 2)])
def test_cores_are_those_that_may_be_used(tmp_path, monkeypatch, quota, cores):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)), raising=False)
    root = files(tmp_path, {**V2, "sys/fs/cgroup/user/job/cpu.max": f"{quota} 100000\n"})
    assert threads.usable_cores(root) == cores
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {3}, raising=False)
    assert threads.usable_cores(root) == 1


@pytest.mark.parametrize("name", threads.USERS_NUMBER)
def test_a_number_of_the_user_s_stands(environment, name):
    environment.setattr(os, "cpu_count", lambda: 64)
    environment.setattr(os, "sched_getaffinity", lambda _: {0}, raising=False)
    environment.setenv(name, "3")
    threads.prepare()
    assert said(threads.USERS_NUMBER) == {name: "3"}
    environment.delenv(name)
    threads.prepare()
    assert said(threads.USERS_NUMBER) == {"OMP_NUM_THREADS": "1"}
    environment.delenv("OMP_NUM_THREADS")


# -- kernels -------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [1, 2, 3, 64])  # more than rows, too
@pytest.mark.parametrize("batch", [1, 5])
def test_kernels_share_out_to_any_number_of_threads(monkeypatch, batch, number):
    scan = importlib.import_module("recbole_hydra.ops.selective_scan.numba_cpu")
    convolution = importlib.import_module("recbole_hydra.ops.causal_conv1d.numba_cpu")
    for kernel in (scan, convolution):
        monkeypatch.setattr(kernel, "use_torch_threads", lambda: number)
    torch.manual_seed(0)
    u, delta = torch.randn(batch, 37, 48), torch.rand(batch, 37, 48)
    A, B, C = -torch.rand(48, 4), torch.randn(batch, 37, 2, 4), torch.randn(batch, 37, 2, 4)
    weight = torch.randn(48, 3)
    for operation, inputs in (
        (ops.selective_scan, (u, delta, A, B, C)),
        (ops.causal_conv1d, (u, weight)),
    ):
        inputs = [x.requires_grad_() for x in inputs]
        outputs = [operation(*inputs, backend=backend) for backend in ("numba", "naive")]
        torch.testing.assert_close(*outputs, rtol=1e-4, atol=1e-4)
        got, want = (torch.autograd.grad(y.square().sum(), inputs) for y in outputs)
        for x, y in zip(got, want, strict=True):
            torch.testing.assert_close(x, y, rtol=1e-4, atol=1e-4 * float(y.abs().max()))
