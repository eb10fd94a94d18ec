"""What the benchmark scripts share: medians, and writing a table."""

import statistics
from pathlib import Path

from recbole_hydra.machine import machine

RESULTS = Path(__file__).parent / "results"


def spread(values, digits=0) -> str:
    """Median and, in brackets, the range of some measurements."""
    middle = statistics.median(values)
    if len(values) == 1:
        return f"{middle:.{digits}f}"
    return f"{middle:.{digits}f} [{min(values):.{digits}f}-{max(values):.{digits}f}]"


def cell(values) -> str:
    """Mean ± standard deviation of a metric over seeds; a dash where there is none."""
    if len(values) == 0 or any(value != value for value in values):
        return "–"
    deviation = f" ± {statistics.stdev(values):.4f}" if len(values) > 1 else ""
    return f"{statistics.fmean(values):.4f}{deviation}"


def settings(values: dict) -> str:
    """Settings in words."""
    return ", ".join(f"{key} {value}" for key, value in values.items())


def table(headers, rows) -> str:
    """A markdown table."""
    lines = [headers, ["---"] * len(headers), *rows]
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines)


def write(name: str, title: str, *paragraphs: str) -> None:
    """Print a report and write it to ``results/<name>.md``."""
    text = "\n\n".join([f"# {title}", f"Machine: {machine()}.", *paragraphs]) + "\n"
    print(text)
    path = RESULTS / f"{name}.md"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
