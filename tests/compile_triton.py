"""Compile every Triton kernel for a GPU that is not there, and print a line of JSON for each.

    python compile_triton.py 90

The number is the compute capability, times ten.
"""

import json
import sys


def compile_only(compute_capability):
    """Let a launch end where the kernel is compiled; print a line for each."""
    from triton.backends.compiler import GPUTarget
    from triton.runtime.driver import driver
    from triton.runtime.jit import JITFunction

    class NoGPU:
        def get_current_target(self):
            return GPUTarget("cuda", compute_capability, 32)

        def get_current_device(self):
            return 0

        def get_current_stream(self, device):
            return 0

    def launcher(kernel, grid):
        def launch(*args, **options):
            compiled = kernel.run(*args, grid=grid, warmup=True, **options)
            package = kernel.fn.__module__.split(".")[-2]
            ptx = compiled.asm["ptx"].splitlines()
            line = {
                "name": f"{package}.{kernel.fn.__name__}",
                "target": next(line for line in ptx if line.startswith(".target")),
                "machine_code": len(compiled.asm["cubin"]),
                "shared": compiled.metadata.shared,
                "keeps_nan": not options.get("SOFTPLUS") or any("min.NaN" in line for line in ptx),
            }
            print(json.dumps(line))

        return launch

    driver.set_active(NoGPU())
    JITFunction.__getitem__ = launcher


def call_every_operation():
    """All optional inputs, and none; every dtype; the sizes of Hydra's heads and of Mamba4Rec."""
    import torch

    from recbole_hydra.ops.causal_conv1d import triton_gpu as convolution
    from recbole_hydra.ops.linear_cross_entropy import triton_gpu as loss
    from recbole_hydra.ops.selective_scan import triton_gpu as scan

    def scan_both_ways(channels, groups, d_state, dtype, everything):
        u = torch.zeros(2, 200, channels, dtype=dtype)
        A, B = torch.zeros(channels, d_state), torch.zeros(2, 200, groups, d_state, dtype=dtype)
        D, z, initial = torch.zeros(channels), u, torch.zeros(2, channels, d_state)
        if not everything:
            D = z = initial = None
        for keep in (False, True):
            args = (u, u, A, B, B, D, D, z, initial, everything, keep)
            y, final, states, steps = scan._scan(*args)
        steps = steps if everything else u
        scan._scan_backward(y, final, u, steps, A, B, B, D, D, z, states, everything)

    def convolve_both_ways(dtype, everything):
        x, weight = torch.zeros(2, 40, 64, dtype=dtype), torch.zeros(64, 4)
        bias, initial = torch.zeros(64), torch.zeros(2, 64, 3)
        if not everything:
            bias = initial = None
        y = convolution._conv(x, weight, bias, initial, everything)
        convolution._conv_backward(y, x, weight, bias, initial, everything)

    warps, scan.WARPS = scan.WARPS, 1000  # cuts time
    scan_both_ways(64, 4, 16, torch.float32, everything=True)
    scan.WARPS = warps
    scan_both_ways(64, 4, 16, torch.float32, everything=False)
    scan_both_ways(128, 1, 32, torch.float32, everything=True)
    convolve_both_ways(torch.float32, everything=False)
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        scan_both_ways(64, 4, 16, dtype, everything=True)
        convolve_both_ways(dtype, everything=True)
        loss.softmax_products(torch.zeros(8, 64, dtype=dtype), torch.zeros(3000, 64, dtype=dtype))


if __name__ == "__main__":
    compile_only(int(sys.argv[1]))
    call_every_operation()
