"""Time the selective scan on this machine's CPU against mambapy's pscan and the naive loop.

    python -m recbole_hydra.ops.selective_scan.bench [--repeats=3] [--markdown=FILE]

All sides run in one process on the same inputs, alternating; a cell is the median and, in brackets,
the range of forward + backward in milliseconds. mambapy comes with ``pip install
'recbole-hydra[test]'``; without it its column says so.
"""

import argparse
import platform
import statistics
import time
from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor

from recbole_hydra.ops.selective_scan import selective_scan

#: (batch, length, channels, d_state, groups)
SHAPES = [
    (64, 200, 128, 16, 1),
    (64, 200, 128, 32, 1),
    (64, 200, 128, 16, 4),
    (64, 200, 128, 16, 16),
]


def make_inputs(
    batch: int, length: int, channels: int, d_state: int, groups: int, seed: int = 0
) -> list[Tensor]:
    """Random inputs of the sizes a trained Mamba has: u, delta, A, B, C, D."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    u = normal(batch, length, channels)
    delta = torch.nn.functional.softplus(normal(batch, length, channels) - 3)
    A = -torch.arange(1.0, d_state + 1).repeat(channels, 1)
    B = normal(batch, length, groups, d_state)
    C = normal(batch, length, groups, d_state)
    return [x.requires_grad_() for x in (u, delta, A, B, C, normal(channels))]


def pscan_with_our_signature() -> Callable[..., Tensor] | None:
    """mambapy's parallel scan with our signature, one group; None where it is not installed."""
    try:
        from mambapy.pscan import pscan
    except ImportError:
        return None

    def scan(u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor) -> Tensor:
        decay = torch.exp(delta[..., None] * A)  # (batch, length, channels, d_state)
        h = pscan(decay, (delta * u)[..., None] * B)  # B broadcasts over channels
        return (h @ C.squeeze(2)[..., None]).squeeze(-1) + D * u

    return scan


def _milliseconds(scan: Callable[..., Tensor], inputs: Sequence[Tensor], grad: Tensor) -> float:
    for x in inputs:
        x.grad = None
    start = time.perf_counter()
    scan(*inputs).backward(grad)
    return 1e3 * (time.perf_counter() - start)


def measure(shape: tuple[int, int, int, int, int], repeats: int) -> dict[str, list[float]]:
    """Return ``{side: [milliseconds]}`` of ``repeats`` alternating forward + backward passes."""
    inputs = make_inputs(*shape)
    grad = torch.ones_like(inputs[0])
    sides: dict[str, Callable[..., Tensor]] = {
        "numba": partial(selective_scan, backend="numba"),
        "naive": partial(selective_scan, backend="naive"),
    }
    if shape[-1] == 1 and (pscan := pscan_with_our_signature()) is not None:
        sides["pscan"] = pscan
    _milliseconds(sides["numba"], inputs, grad)  # compiles
    times: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(repeats):
        for name, scan in sides.items():
            times[name].append(_milliseconds(scan, inputs, grad))
    return times


def table(repeats: int) -> str:
    """Measure every shape and return the table as markdown text."""
    lines = [
        f"Forward + backward, ms, median of {repeats} [min-max]; {platform.processor() or 'CPU'} "
        f"{platform.machine()}, {torch.get_num_threads()} threads, torch {torch.__version__}, "
        f"python {platform.python_version()}",
        "",
        "| batch, length, channels | d_state | groups | numba | naive | mambapy pscan |",
        "|---|---|---|---|---|---|",
    ]
    for shape in SHAPES:
        times = measure(shape, repeats)
        cells = []
        for side in ("numba", "naive", "pscan"):
            ms = times.get(side)
            if ms:
                cells.append(f"{statistics.median(ms):.0f} [{min(ms):.0f}-{max(ms):.0f}]")
            elif side == "pscan" and shape[-1] > 1:
                cells.append("no groups")
            else:
                cells.append("not installed")
        batch, length, channels, d_state, groups = shape
        lines.append(
            f"| {batch}, {length}, {channels} | {d_state} | {groups} | {' | '.join(cells)} |"
        )
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m recbole_hydra.ops.selective_scan.bench", description=__doc__.split("\n")[0]
    )
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--markdown", metavar="FILE", help="also write the table to FILE")
    args = parser.parse_args(argv)
    text = table(args.repeats)
    print(text)
    if args.markdown:
        with open(args.markdown, "w", encoding="utf-8") as file:
            file.write(text + "\n")


if __name__ == "__main__":
    main()
