"""On a GPU: the scan, the loss, and training and inference of four models; one command, minutes.

    python benchmarks/gpu.py [--parts=scan,loss,models] [--runs=10]

The sides of a table alternate in one process, timed by CUDA events after a warm-up. A column of a
package that is not installed says so. mamba-ssm's kernel is compiled at installation, where torch
and CUDA are; its main branch leaves the kernel out unless it is told not to:

    MAMBA_KEEP_CUDA_BUILD=TRUE pip install --no-build-isolation '.[cuda]'

``--device=cpu --small`` goes through everything in small sizes on a machine without a GPU.
"""

import argparse
import statistics
import time
from typing import NamedTuple

import numpy as np
import report
import torch
import torch.nn.functional as F
from loss import plain
from recbole.data.interaction import Interaction
from step import Items

from recbole_hydra import Config
from recbole_hydra.errors import BackendError
from recbole_hydra.ops import linear_cross_entropy, selective_scan
from recbole_hydra.training.window_loss import WindowLoss

WARM_UP = 3
D_STATE, WIDTH = 16, 64  # states of a channel; width of states and models
GROUPS = (1, 4, 16)
#: Beyond these lengths the naive scan takes minutes.
NAIVE = 200
MODELS = ("SASRec", "GRU4Rec", "Mamba4Rec", "Hydra")


class Sizes(NamedTuple):
    """What is measured; the models in the Mamba4Rec paper's setting on ml-1m (section 4.1)."""

    lengths: tuple = (50, 200, 1024, 4096, 16384, 65536)  # of the scan
    channels: int = 256
    steps: int = 64 * 4096  # of a scan's batch at most, which is 64 at most
    targets: int = 2048  # of the loss
    catalogues: tuple = (3_417, 50_000, 1_000_000)
    items: int = 3_417  # of the models
    length: int = 200
    batch: int = 2048


SMALL = Sizes((16, 32), 32, 128, 64, (300,), 300, 20, 32)


class Clock:
    """Times calls on a device."""

    def __init__(self, device, runs):
        self.device, self.runs, self.on_gpu = device, runs, device.type == "cuda"

    def milliseconds(self, call) -> float:
        if not self.on_gpu:
            start = time.perf_counter()
            call()
            return 1e3 * (time.perf_counter() - start)
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        call()
        end.record()
        torch.cuda.synchronize()
        return start.elapsed_time(end)

    def alternate(self, sides) -> dict:
        """{side: its times}; a side is left out that cannot run here, or not in this memory."""
        times = {}
        for name, call in sides.items():
            try:
                for _ in range(WARM_UP):
                    self.milliseconds(call)
                times[name] = []
            except (BackendError, AssertionError):  # cut-cross-entropy asserts what it takes
                pass
            except torch.OutOfMemoryError:
                torch.cuda.empty_cache()
        for _ in range(self.runs):
            for name in times:
                times[name].append(self.milliseconds(sides[name]))
        return times

    def peak(self, call) -> float:
        """MiB that a call allocates above what was allocated before it; NaN on a CPU."""
        if not self.on_gpu:
            return float("nan")
        torch.cuda.empty_cache()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        call()
        torch.cuda.synchronize()
        return (torch.cuda.max_memory_allocated() - before) / 2**20


def cell(times, name, digits=2) -> str:
    return report.spread(times[name], digits) if name in times else "–"


# -- the scan ------------------------------------------------------------------------------------


def scan_inputs(device, batch, length, channels, groups):
    generator = torch.Generator(device=device).manual_seed(0)

    def normal(*size):
        return torch.randn(*size, generator=generator, device=device)

    inputs = [
        normal(batch, length, channels),
        F.softplus(normal(batch, length, channels) - 3),
        -torch.arange(1.0, D_STATE + 1, device=device).repeat(channels, 1),
        normal(batch, length, groups, D_STATE),
        normal(batch, length, groups, D_STATE),
    ]
    return [x.requires_grad_() for x in inputs]


def scan_part(clock, sizes) -> str:
    rows = []
    for length in sizes.lengths:
        for groups in GROUPS:
            batch = max(1, min(64, sizes.steps // length))
            inputs = scan_inputs(clock.device, batch, length, sizes.channels, groups)
            grad = torch.ones_like(inputs[0])

            def side(backend, inputs=inputs, grad=grad):
                y = selective_scan(*inputs, backend=backend)
                torch.autograd.grad(y, inputs, grad)

            names = ["triton", "mamba_ssm", *(["naive"] if length <= NAIVE else [])]
            times = clock.alternate({name: lambda name=name: side(name) for name in names})
            rows.append(
                [f"{length:,}", batch, groups, *(cell(times, n) for n in ("triton", "mamba_ssm"))]
            )
            rows[-1].append(cell(times, "naive", 1))
            print(*rows[-1], flush=True)
    headers = ["length", "batch", "v", "triton, ms", "mamba-ssm, ms", "naive, ms"]
    return report.table(headers, rows)


# -- the loss ------------------------------------------------------------------------------------


def losses() -> dict:
    """The sides: F.cross_entropy, ours, and the packages that are installed."""
    sides = {"F.cross_entropy": plain, "ours": linear_cross_entropy}
    try:
        from cut_cross_entropy import linear_cross_entropy as cut

        sides["cut-cross-entropy"] = cut
    except ImportError:
        pass
    try:
        from liger_kernel.transformers.functional import liger_fused_linear_cross_entropy as liger

        sides["Liger"] = lambda hidden, weight, target: liger(hidden, weight, target)
    except ImportError:
        pass
    return sides


def loss_part(clock, sizes) -> str:
    rows, sides = [], losses()
    for n_items in sizes.catalogues:
        for dtype in (torch.float32, torch.bfloat16):
            generator = torch.Generator(device=clock.device).manual_seed(0)
            hidden, weight = (
                (scale * torch.randn(n, WIDTH, generator=generator, device=clock.device))
                .to(dtype)
                .requires_grad_()
                for n, scale in ((sizes.targets, 1.0), (n_items, 0.1))
            )
            target = torch.randint(1, n_items, (sizes.targets,), device=clock.device)

            def run(loss, hidden=hidden, weight=weight, target=target):
                torch.autograd.grad(loss(hidden, weight, target), (hidden, weight))

            calls = {name: lambda loss=loss: run(loss) for name, loss in sides.items()}
            times = clock.alternate(calls)
            for name in sides:
                memory = clock.peak(calls[name]) if name in times else float("nan")
                kind = str(dtype).removeprefix("torch.")
                rows.append([f"{n_items:,}", kind, name, cell(times, name), f"{memory:,.0f}"])
                print(*rows[-1], flush=True)
    return report.table(["items", "dtype", "loss", "ms", "peak memory, MiB"], rows)


# -- the models ----------------------------------------------------------------------------------


def history_lengths(rows, rng):
    """Lengths of histories as on ml-1m: about log-normal, 20 at least, 165 on average."""
    return np.maximum(20, rng.lognormal(4.57, 0.94, rows)).astype(int)


def as_batch(device, items, length, targets):
    batch = {"item_id_list": items, "item_length": length, "item_id": targets}
    return Interaction({key: torch.as_tensor(value) for key, value in batch.items()}).to(device)


def prefix_batch(device, sizes):
    """A batch of RecBole's augmentation: prefixes of histories, cut and padded."""
    rng = np.random.default_rng(0)
    full = history_lengths(4 * sizes.batch, rng)
    # A history has as many prefixes as items.
    full = rng.choice(full, sizes.batch, p=full / full.sum())
    length = np.minimum(rng.integers(1, full + 1), sizes.length)
    items = rng.integers(1, sizes.items, (sizes.batch, sizes.length))
    items[np.arange(sizes.length) >= length[:, None]] = 0
    return as_batch(device, items, length, rng.integers(1, sizes.items, sizes.batch))


def window_batch(device, sizes):
    """A batch of windows with about as many targets, one at every position."""
    rng = np.random.default_rng(0)
    rows = max(1, sizes.batch // sizes.length)
    length = np.minimum(history_lengths(rows, rng), sizes.length)
    items, targets = rng.integers(1, sizes.items, (2, rows, sizes.length))
    for ids in (items, targets):
        ids[np.arange(sizes.length) >= length[:, None]] = 0
    return as_batch(device, items, length, targets)


class Model:
    """A model with its optimizer and a batch of each kind."""

    def __init__(self, name, device, sizes, batches):
        config = Config(
            name,
            "tiny",
            config_dict={
                "MAX_ITEM_LIST_LENGTH": sizes.length,
                "hidden_size": WIDTH,
                "use_gpu": device.type == "cuda",
            },
        )
        torch.manual_seed(0)
        self.model = config.model_class(config, Items(sizes.items)).to(device).train()
        self.optimizer = torch.optim.Adam(self.model.parameters(), lr=1e-3, fused=True)
        windows, self.prefixes = batches
        window_loss = WindowLoss(self.model)
        self.losses = {
            "augmentation": lambda: self.model.calculate_loss(self.prefixes),
            "every position": lambda: window_loss(windows),
        }

    def step(self, mode):
        self.model.train()
        self.optimizer.zero_grad()
        self.losses[mode]().backward()
        self.optimizer.step()

    @torch.no_grad()
    def infer(self):
        self.model.eval()
        self.model.full_sort_predict(self.prefixes)


def models_part(clock, sizes) -> str:
    rows, device = [], clock.device
    batches = window_batch(device, sizes), prefix_batch(device, sizes)
    models = {name: Model(name, device, sizes, batches) for name in MODELS}
    kinds = {mode: lambda m, mode=mode: m.step(mode) for mode in next(iter(models.values())).losses}
    for kind, call in {**kinds, "inference": Model.infer}.items():
        calls = {name: lambda m=model, call=call: call(m) for name, model in models.items()}
        times = clock.alternate(calls)
        first = statistics.median(times[MODELS[0]]) if MODELS[0] in times else float("nan")
        for name in MODELS:
            ratio = first / statistics.median(times[name]) if name in times else float("nan")
            memory = clock.peak(calls[name]) if name in times else float("nan")
            rows.append([kind, name, cell(times, name), f"{ratio:.1f}", f"{memory:,.0f}"])
            print(*rows[-1], flush=True)
    headers = ["", "model", "ms per batch", f"times as fast as {MODELS[0]}", "peak memory, MiB"]
    return report.table(headers, rows)


PARTS = {"scan": scan_part, "loss": loss_part, "models": models_part}
WORDS = {
    "scan": "The selective scan, forward and backward, float32; v groups (heads).",
    "loss": "Cross-entropy over the catalogue, forward and backward.",
    "models": "A training step in both modes, and scoring all items for a batch.",
}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--parts", default=",".join(PARTS))
    parser.add_argument("--runs", type=int, default=10)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--small", action="store_true", help="small sizes, nothing is written")
    options = parser.parse_args()
    sizes = SMALL if options.small else Sizes()
    device = torch.device(options.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        parser.error("there is no GPU here; --device=cpu --small goes through everything without")
    clock = Clock(device, options.runs)
    blocks = []
    for part in options.parts.split(","):
        start = time.perf_counter()
        blocks += [f"## {part}", WORDS[part], PARTS[part](clock, sizes)]
        blocks.append(f"{time.perf_counter() - start:.0f} s.")
    if options.small:
        return
    said = (
        f"Scan: {sizes.channels} channels, d_state {D_STATE}. Loss: {sizes.targets:,} targets, "
        f"width {WIDTH}. Models: ml-1m's shapes, {sizes.items:,} items, length {sizes.length}, "
        f"hidden size {WIDTH}, batches of {sizes.batch:,} prefixes or about as many targets."
    )
    how = f"Median [range] of {options.runs} runs after {WARM_UP}, the sides alternating."
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"
    report.write("gpu", f"On one {name}", "`python benchmarks/gpu.py`. " + how, said, *blocks)


if __name__ == "__main__":
    main()
