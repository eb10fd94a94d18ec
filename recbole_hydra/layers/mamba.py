"""The Mamba block, and v small Mamba blocks side by side without a loop over them."""

import math
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from recbole_hydra.checks import one_of, positive_int
from recbole_hydra.ops import causal_conv1d, selective_scan
from recbole_hydra.ops.selective_scan import BACKENDS


def _initial_A_log(channels: int, d_state: int) -> Tensor:
    """log of A = -(1 .. d_state) in every channel (S4D-real, arXiv 2206.11893)."""
    return torch.arange(1, d_state + 1, dtype=torch.float32).log().repeat(channels, 1)


def _initial_dt_bias(
    channels: int, dt_min: float = 1e-3, dt_max: float = 0.1, floor: float = 1e-4
) -> Tensor:
    """Biases whose softplus, the step sizes, are log-uniform in [dt_min, dt_max]."""
    dt = torch.exp(
        torch.rand(channels) * (math.log(dt_max) - math.log(dt_min)) + math.log(dt_min)
    ).clamp(min=floor)
    return dt + torch.log(-torch.expm1(-dt))  # inverse of softplus


def kept(x: Tensor, keep: Tensor | None = None) -> Tensor:
    """The positions ``keep`` of x, (batch, length, ...), as (positions, ...); all of x if None.

    What follows the scan of a model's last layer acts on each position by itself: where only some
    states are wanted, the counted targets' or the last items', the others need not be computed.

    Args:
        keep: b * length + t of every position wanted, (positions,) int64.
    """
    return x if keep is None else x.flatten(0, 1).index_select(0, keep)


class Mamba(nn.Module):
    """The Mamba block (Gu and Dao 2023, arXiv 2312.00752, figure 3).

    ::

        x, z = split(W_in h);   x = SiLU(conv(x));   dt, B, C = split(W_x x)
        y = scan(x, softplus(W_dt dt + b_dt), -exp(A_log), B, C, D) * SiLU(z);   out = W_out y

    Parameters carry the names and shapes of mamba-ssm's ``Mamba``, so state_dicts are exchanged.

    Args:
        d_model: width of input and output.
        d_state: states per channel.
        d_conv: width of the convolution.
        expand: inner channels per ``d_model``.
        scan_backend: see :func:`recbole_hydra.ops.selective_scan`.

    Raises:
        ConfigError: a size that is not a positive integer, or an unknown backend.
    """

    def __init__(
        self,
        d_model: int,
        d_state: int = 16,
        d_conv: int = 4,
        expand: int = 2,
        scan_backend: str = "auto",
    ) -> None:
        super().__init__()
        positive_int("d_model", d_model)
        positive_int("d_state", d_state)
        positive_int("d_conv", d_conv)
        d_inner = positive_int("expand", expand) * d_model
        dt_rank = math.ceil(d_model / 16)
        self.sizes = [dt_rank, d_state, d_state]  # of what x_proj computes: dt, B, C
        self.scan_backend = one_of("scan_backend", scan_backend, ("auto", *BACKENDS))

        self.in_proj = nn.Linear(d_model, 2 * d_inner, bias=False)
        # An nn.Conv1d only to hold its parameters under mamba-ssm's names, with their
        # initialisation; the op computes.
        self.conv1d = nn.Conv1d(d_inner, d_inner, d_conv, groups=d_inner)
        self.x_proj = nn.Linear(d_inner, sum(self.sizes), bias=False)
        self.dt_proj = nn.Linear(dt_rank, d_inner)
        self.A_log = nn.Parameter(_initial_A_log(d_inner, d_state))
        self.D = nn.Parameter(torch.ones(d_inner))
        self.out_proj = nn.Linear(d_inner, d_model, bias=False)

        nn.init.uniform_(self.dt_proj.weight, -(dt_rank**-0.5), dt_rank**-0.5)
        with torch.no_grad():
            self.dt_proj.bias.copy_(_initial_dt_bias(d_inner))

    def initial_state(self, batch: int) -> tuple[Tensor, Tensor]:
        """The state before the first position: zeros; see :meth:`forward`."""
        return _zero_state(batch, self.conv1d.weight[:, 0], self.A_log)

    def forward(
        self,
        hidden: Tensor,
        state: tuple[Tensor, Tensor] | None = None,
        keep: Tensor | None = None,
    ) -> Tensor | tuple[Tensor, tuple[Tensor, Tensor]]:
        """Map (batch, length, d_model) to (batch, length, d_model); position t sees up to t.

        Args:
            state: what the positions before ``hidden`` left: the last inputs of the convolution,
                (batch, d_inner, d_conv - 1), and the scan's state, (batch, d_inner, d_state).
            keep: positions whose output is wanted; see :func:`kept`.

        Returns:
            The output; with ``state`` the pair (output, state after the last position).
        """
        conv_state, scan_state = state or (None, None)
        to_x, to_z = self.in_proj.weight.chunk(2)
        x = F.linear(hidden, to_x)  # (batch, length, d_inner)
        z = F.linear(kept(hidden, keep), to_z)
        x, conv_state = _convolve(x, self.conv1d.weight[:, 0], self.conv1d.bias, conv_state)
        dt, B, C = self.x_proj(x).split(self.sizes, dim=-1)
        y, scan_state = _gated_scan(
            x,
            self.dt_proj(dt),
            -torch.exp(self.A_log),
            B.unsqueeze(2),  # one group: (batch, length, 1, d_state)
            C.unsqueeze(2),
            self.D,
            scan_state,
            z,
            keep,
            self.scan_backend,
        )
        out = self.out_proj(y)
        if state is None:
            return out
        return out, cast("tuple[Tensor, Tensor]", (conv_state, scan_state))


#: What a head of :class:`MultiHeadMamba` does before it is trained.
STARTS = ("memory", "mamba")


class MultiHeadMamba(nn.Module):
    """One small Mamba per head, all heads at once (multi-head latent Mamba, arXiv 2504.07398).

    Head i is a :class:`Mamba` of width ``head_dim`` with parameters of its own. The heads'
    projections are batched matrix products; their channels lie side by side and go through one
    convolution and one scan, in which they are the groups.

    Args:
        num_heads: v, the number of heads.
        head_dim: width of one head.
        d_state, d_conv, expand, scan_backend: as in :class:`Mamba`, per head.
        start: "mamba", as Mamba starts: D = 1, step sizes in [0.001, 0.1], and B and C near zero,
            so that next to nothing but the last input comes out. "memory": B and C have learned
            biases, ones at first (Mamba-3, Lahoti et al. 2026, arXiv 2603.15569), D = 0, and step
            sizes are in [0.01, 1], so that decaying sums of the inputs come out.

    Raises:
        ConfigError: a size that is not a positive integer, or an unknown backend.
    """

    def __init__(
        self,
        num_heads: int,
        head_dim: int,
        d_state: int = 16,
        d_conv: int = 4,
        expand: int = 1,
        scan_backend: str = "auto",
        start: str = "mamba",
    ) -> None:
        super().__init__()
        memory = one_of("mamba_start", start, STARTS) == "memory"
        v = positive_int("num_heads", num_heads)
        positive_int("head_dim", head_dim)
        positive_int("d_state", d_state)
        positive_int("d_conv", d_conv)
        d_inner = positive_int("expand", expand) * head_dim  # of one head
        dt_rank = math.ceil(head_dim / 16)
        self.sizes = [dt_rank, 2 * d_state]  # of what x_proj computes per head: dt, B and C
        self.scan_backend = one_of("scan_backend", scan_backend, ("auto", *BACKENDS))

        def uniform(*shape: int, fan_in: int) -> nn.Parameter:
            # nn.Linear's and nn.Conv1d's initialisation
            return nn.Parameter(torch.empty(shape).uniform_(-(fan_in**-0.5), fan_in**-0.5))

        # Weights of all heads, one matrix (out, in) per head.
        self.in_proj = uniform(v, 2 * d_inner, head_dim, fan_in=head_dim)
        self.conv_weight = uniform(v * d_inner, d_conv, fan_in=d_conv)
        self.conv_bias = uniform(v * d_inner, fan_in=d_conv)
        self.x_proj = uniform(v, sum(self.sizes), d_inner, fan_in=d_inner)
        self.dt_proj = uniform(v, d_inner, dt_rank, fan_in=dt_rank)
        self.dt_bias = nn.Parameter(
            _initial_dt_bias(v * d_inner, 0.01, 1.0) if memory else _initial_dt_bias(v * d_inner)
        )
        self.BC_bias = nn.Parameter(torch.ones(v, 2 * d_state)) if memory else None
        self.A_log = nn.Parameter(_initial_A_log(v * d_inner, d_state))
        self.D = nn.Parameter(torch.full((v * d_inner,), 0.0 if memory else 1.0))
        self.out_proj = uniform(v, head_dim, d_inner, fan_in=d_inner)

    def initial_state(self, batch: int) -> tuple[Tensor, Tensor]:
        """The state before the first position: zeros; see :meth:`Mamba.forward`, with the channels
        of all heads side by side."""
        return _zero_state(batch, self.conv_weight, self.A_log)

    def forward(
        self,
        X: Tensor,
        state: tuple[Tensor, Tensor] | None = None,
        keep: Tensor | None = None,
    ) -> Tensor | tuple[Tensor, tuple[Tensor, Tensor]]:
        """Map X, (batch, length, heads, head_dim), head by head, to the same shape.

        With ``state``, returns the pair (output, state after the last position); ``keep``, see
        :func:`kept`, restricts the output.
        """
        conv_state, scan_state = state or (None, None)
        to_x, to_z = self.in_proj.chunk(2, dim=1)
        x, z = _per_head(X, to_x), _per_head(kept(X, keep), to_z)  # (..., heads, d_inner)
        x, conv_state = _convolve(x.flatten(2), self.conv_weight, self.conv_bias, conv_state)
        heads = z.shape[-2:]
        dt, BC = _per_head(x.unflatten(2, heads), self.x_proj).split(self.sizes, dim=-1)
        B, C = (BC if self.BC_bias is None else BC + self.BC_bias).chunk(2, dim=-1)
        y, scan_state = _gated_scan(
            x,
            _per_head(dt, self.dt_proj).flatten(2),
            -torch.exp(self.A_log),
            B,
            C,
            self.D,
            scan_state,
            z.flatten(-2),
            keep,
            self.scan_backend,
            self.dt_bias,
        )
        out = _per_head(y.unflatten(-1, heads), self.out_proj)
        if state is None:
            return out
        return out, cast("tuple[Tensor, Tensor]", (conv_state, scan_state))


def _zero_state(batch: int, conv_weight: Tensor, A_log: Tensor) -> tuple[Tensor, Tensor]:
    channels, width = conv_weight.shape
    return (
        conv_weight.new_zeros(batch, channels, width - 1),
        A_log.new_zeros(batch, channels, A_log.shape[1]),
    )


# Both ask for a final state only when they were given one: not every backend has states.


def _convolve(
    x: Tensor, weight: Tensor, bias: Tensor | None, state: Tensor | None
) -> tuple[Tensor, Tensor | None]:
    if state is None:
        return causal_conv1d(x, weight, bias, activation="silu"), None
    return causal_conv1d(x, weight, bias, state, return_final_state=True, activation="silu")


def _gated_scan(
    x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, state: Tensor | None,
    z: Tensor, keep: Tensor | None, backend: str, dt_bias: Tensor | None = None,
) -> tuple[Tensor, Tensor | None]:  # fmt: skip
    """Scan with step sizes softplus(dt + dt_bias), and gate by SiLU(z); (y at ``keep``, state)."""
    # The scan computes a gate at every position; where few are wanted, it comes after them.
    y = selective_scan(
        x, dt, A, B, C, D, state, return_final_state=state is not None, backend=backend,
        z=z if keep is None else None, delta_bias=dt_bias, delta_softplus=True,
    )  # fmt: skip
    if state is not None:
        y, state = y
    return (y if keep is None else kept(y, keep) * F.silu(z)), state


def _per_head(x: Tensor, weight: Tensor) -> Tensor:
    """Multiply head i of x, (..., heads, in), by weight[i], (heads, out, in)."""
    if x.is_cuda and torch.is_grad_enabled() and weight.requires_grad:
        return _PerHead.apply(x, weight)
    return torch.einsum("...vi,voi->...vo", x, weight)


#: Positions at which a GPU sums up a part of a weight's gradient.
PART = 1024


class _PerHead(torch.autograd.Function):
    """:func:`_per_head`, with a gradient of the weight that keeps a GPU busy.

    That is a product of small matrices, (out, positions) and (positions, in), whose sums over
    hundreds of thousands of positions batched matrix products do one after the other: 60% of a
    training step of RecBole's prefixes (``benchmarks/gpu.py``). Here parts of the positions are
    summed beside each other.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight)
        return torch.einsum("...vi,voi->...vo", x, weight)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor]:
        x, weight = ctx.saved_tensors
        gx = torch.einsum("...vo,voi->...vi", grad, weight.to(grad.dtype))
        return gx.to(x.dtype), _weight_gradient(x, grad).to(weight.dtype)


def _weight_gradient(x: Tensor, grad: Tensor) -> Tensor:
    """The sum over positions of grad[..., v, o] x[..., v, i], (heads, out, in)."""
    x, grad = x.flatten(0, -3).to(grad.dtype), grad.flatten(0, -3)
    whole = len(x) // PART * PART
    rest = torch.einsum("pvo,pvi->voi", grad[whole:], x[whole:])
    if not whole:
        return rest
    parts = (y[:whole].unflatten(0, (-1, PART)) for y in (grad, x))
    return rest + torch.einsum("spvo,spvi->svoi", *parts).sum(0)
