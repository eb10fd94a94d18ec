"""What the benchmark scripts share: the machine's description, medians, and writing a table."""

import platform
import statistics
from pathlib import Path

import torch

RESULTS = Path(__file__).parent / "results"


def machine() -> str:
    """The processor, its threads in use, and the versions, in one line."""
    try:
        info = Path("/proc/cpuinfo").read_text(encoding="utf-8")
        names = [line for line in info.splitlines() if line.startswith("model name")]
        cpu = names[0].partition(":")[2].strip()
        wide = next((f", {x.upper()}" for x in ("avx512f", "avx2") if x in info), "")
    except (OSError, IndexError):
        cpu, wide = platform.processor() or platform.machine(), ""
    return (
        f"{cpu}{wide}, {torch.get_num_threads()} threads, torch {torch.__version__}, "
        f"Python {platform.python_version()}"
    )


def peak_memory() -> int:
    """Peak resident memory of this process in bytes; getrusage's would include its parent's."""
    for line in Path("/proc/self/status").read_text(encoding="utf-8").splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError("no VmHWM in /proc/self/status: peak memory is read on Linux only")


def spread(values, digits=0) -> str:
    """Median and, in brackets, the range of some measurements."""
    middle = statistics.median(values)
    if len(values) == 1:
        return f"{middle:.{digits}f}"
    return f"{middle:.{digits}f} [{min(values):.{digits}f}-{max(values):.{digits}f}]"


def table(headers, rows) -> str:
    """A markdown table."""
    lines = [headers, ["---"] * len(headers), *rows]
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines)


def write(name: str, title: str, *paragraphs: str) -> None:
    """Print a report and write it to ``results/<name>.md``."""
    text = "\n\n".join([f"# {title}", f"Machine: {machine()}.", *paragraphs]) + "\n"
    print(text)
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"{name}.md").write_text(text, encoding="utf-8")
