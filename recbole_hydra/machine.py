"""What a figure is quoted with: the machine, the versions, and the memory of this process."""

import platform
import resource
import sys
from pathlib import Path

import torch


def machine() -> str:
    """The processor (and GPU), its threads in use, and the versions, in one line."""
    try:
        info = Path("/proc/cpuinfo").read_text(encoding="utf-8")
        names = [line for line in info.splitlines() if line.startswith("model name")]
        cpu = names[0].partition(":")[2].strip()
        wide = next((f", {x.upper()}" for x in ("avx512f", "avx2") if x in info), "")
    except (OSError, IndexError):
        cpu, wide = platform.processor() or platform.machine(), ""
    gpu = f", {torch.cuda.get_device_name()}" if torch.cuda.is_available() else ""
    return (
        f"{cpu}{wide}{gpu}, {torch.get_num_threads()} threads, torch {torch.__version__}, "
        f"Python {platform.python_version()}"
    )


def peak_memory() -> int:
    """Peak resident memory of this process in bytes."""
    try:
        # getrusage's figure includes that of the process that started this one.
        for line in Path("/proc/self/status").read_text(encoding="utf-8").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
