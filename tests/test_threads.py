import os
import subprocess
import sys

import pytest

from recbole_hydra import threads

SHOW = "; import os; print([os.environ.get(n) for n in ('GOMP_SPINCOUNT', 'OMP_WAIT_POLICY')])"
OURS = str([threads.WAITING["GOMP_SPINCOUNT"], None])


def python(code, **environment):
    """What ``code`` prints in a process of its own."""
    names = {*threads.USERS_WORD, *threads.USERS_NUMBER, "NUMBA_NUM_THREADS"}
    inherited = {name: value for name, value in os.environ.items() if name not in names}
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code],
        env={**inherited, **environment}, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.mark.parametrize(
    "code, environment, expected",
    [
        ("import recbole_hydra", {}, OURS),
        ("import recbole_hydra.cli", {}, OURS),
        ("import torch, recbole_hydra", {}, OURS),  # for the processes that it starts
        ("import recbole_hydra", {"GOMP_SPINCOUNT": "7"}, "['7', None]"),
        ("import recbole_hydra", {"OMP_WAIT_POLICY": "ACTIVE"}, "[None, 'ACTIVE']"),
        ("import recbole_hydra", {"KMP_BLOCKTIME": "5"}, "[None, None]"),
    ],
)
def test_waiting_is_the_user_s_or_ours(code, environment, expected):
    assert python(code + SHOW, **environment) == expected


@pytest.mark.parametrize(
    "first, environment, said",
    [
        ("recbole_hydra", {}, False),
        ("torch", {}, True),
        ("torch", {"GOMP_SPINCOUNT": "1000"}, False),
        ("torch", {"OMP_WAIT_POLICY": "active"}, False),
        ("numpy", {}, False),
    ],
)
def test_the_log_says_what_to_set_where_torch_came_first(first, environment, said):
    code = f"import {first}, recbole_hydra; print(recbole_hydra.threads.advice())"
    line = python(code, **environment)
    assert ("GOMP_SPINCOUNT=" in line and "import recbole_hydra first" in line) == said
    assert said or line == "None"


def test_a_run_logs_the_advice_once(run_small, monkeypatch, caplog):
    monkeypatch.setattr(threads.prepare, "too_late", True)
    caplog.set_level("INFO")
    run_small("Hydra", epochs=1)
    lines = [r.getMessage() for r in caplog.records if "threads: torch was" in r.getMessage()]
    assert len(lines) == 1


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


#: A process that may use one core of many, whatever the machine is.
ONE_CORE = "import os; os.cpu_count = lambda: 64; os.sched_getaffinity = lambda _: {0}; "


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="the system has no affinity")
@pytest.mark.parametrize("first", ["recbole_hydra", "torch, recbole_hydra"])
def test_torch_and_numba_use_no_more(first):
    code = ONE_CORE + f"import {first}; import torch; print(torch.get_num_threads(), end=' '); "
    code += "from recbole_hydra.ops.numba_support import use_torch_threads as use; print(use())"
    assert python(code) == "1 1"


@pytest.mark.parametrize("name", ["OMP_NUM_THREADS", "MKL_NUM_THREADS"])
def test_a_number_of_the_user_s_stands(name):
    code = ONE_CORE + "import recbole_hydra; print(os.environ.get('OMP_NUM_THREADS'), "
    code += f"os.environ['{name}'])"
    expected = "3 3" if name == "OMP_NUM_THREADS" else "None 3"
    assert python(code, **{name: "3"}) == expected


def test_runs_of_a_comparison_inherit_it(monkeypatch):
    """They are processes of their own, with this one's environment."""
    code = "import recbole_hydra, subprocess, sys; print(subprocess.run([sys.executable, '-c', "
    code += "\"import os; print(os.environ['GOMP_SPINCOUNT'])\"], text=True, capture_output=True)"
    assert python(code + ".stdout)") == threads.WAITING["GOMP_SPINCOUNT"]
