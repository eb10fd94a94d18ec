"""Hydra and Mamba4Rec for live use: from item ids to a user's vector in one compiled call.

The modules of :mod:`recbole_hydra.layers` are made for batches of whole histories; one event is
some fifty small torch operations there, each slower than its arithmetic; as operators of ONNX
Runtime they take several times as long as the one call here (``benchmarks/onnx_step.py``). The
equations of :mod:`.kernels` are the modules', and so are the numbers, but for rounding: tests
compare both.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Sequence
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from recbole_hydra.layers import Mamba, MultiHeadMamba, RMSNorm
from recbole_hydra.layers.stack import StackPerDomain
from recbole_hydra.model.sequential_recommender.hydra import Hydra
from recbole_hydra.model.sequential_recommender.mamba4rec import Mamba4Rec, MambaLayer
from recbole_hydra.ops.numba_support import use_torch_threads
from recbole_hydra.ops.simd import LANES, LOG2E
from recbole_hydra.serving.kernels import ROWS, HydraWeights, Mamba4RecWeights, Mambas

#: Items that are read at once from which threads are worth waking.
PARALLEL_ITEMS = 64

#: numba has one pool of threads, and not every kind of pool takes two callers.
_POOL = threading.Lock()


def _array(x: Tensor) -> np.ndarray:
    return np.ascontiguousarray(x.detach().cpu().float().numpy())


def _stacked(parts: Iterable[Tensor]) -> np.ndarray:
    return np.stack([_array(part) for part in parts])


def _padded(x: np.ndarray, n: int) -> np.ndarray:
    """``x`` with zeros behind its last axis, up to ``n``."""
    return np.pad(x, [(0, 0)] * (x.ndim - 1) + [(0, n - x.shape[-1])])


def _mambas(blocks: Sequence[Mamba | MultiHeadMamba], lanes: int) -> Mambas:
    def heads_first(block: Mamba | MultiHeadMamba) -> dict[str, Any]:
        if isinstance(block, MultiHeadMamba):
            return {
                "in_proj": block.in_proj, "conv": block.conv_weight, "conv_bias": block.conv_bias,
                "x_proj": block.x_proj, "dt_proj": block.dt_proj, "dt_bias": block.dt_bias,
                "out_proj": block.out_proj,
            }  # fmt: skip
        return {
                "in_proj": block.in_proj.weight[None], "conv": block.conv1d.weight[:, 0],
                "conv_bias": cast(Tensor, block.conv1d.bias), "x_proj": block.x_proj.weight[None],
                "dt_proj": block.dt_proj.weight[None], "dt_bias": block.dt_proj.bias,
                "out_proj": block.out_proj.weight[None],
            }  # fmt: skip

    parts = [heads_first(block) for block in blocks]
    n = blocks[0].A_log.shape[1]
    wide = -(-n // lanes) * lanes
    heads = parts[0]["in_proj"].shape[0]
    rank = parts[0]["dt_proj"].shape[2]
    x_proj = np.stack([_array(part["x_proj"].mT) for part in parts])
    dt, B, C = x_proj[..., :rank], x_proj[..., rank : rank + n], x_proj[..., rank + n :]
    zeros = np.zeros((heads, 2 * n), np.float32)
    found = [getattr(block, "BC_bias", None) for block in blocks]
    biases = np.stack([zeros if bias is None else _array(bias) for bias in found])
    decay = np.stack([-np.exp(_array(block.A_log)) * LOG2E for block in blocks])
    return Mambas(
        in_proj=_stacked(part["in_proj"].mT for part in parts),
        conv=_stacked(part["conv"].mT for part in parts),
        conv_bias=_stacked(part["conv_bias"] for part in parts),
        x_proj=np.ascontiguousarray(
            np.concatenate([dt, _padded(B, wide), _padded(C, wide)], axis=-1)
        ),
        bc_bias=np.concatenate([_padded(b, wide) for b in np.split(biases, 2, axis=-1)], axis=-1),
        dt_proj=_stacked(part["dt_proj"].mT for part in parts),
        dt_bias=_stacked(part["dt_bias"] for part in parts),
        decay=_padded(decay, wide),
        skip=_stacked(block.D for block in blocks),
        out_proj=_stacked(part["out_proj"].mT for part in parts),
    )


def _hydra_weights(model: Hydra, lanes: int) -> tuple[HydraWeights, Mambas]:
    stacks = model.layers if isinstance(model.layers, StackPerDomain) else [model.layers]
    layers: list[Any] = [layer for stack in stacks for layer in cast(nn.ModuleList, stack)]
    first = layers[0]
    absent = np.zeros((len(layers), 0, 1), np.float32)
    y_norms = [m for layer in layers for m in layer.y_norm.modules() if isinstance(m, RMSNorm)]
    output_norm = model.output_norm
    weights = HydraWeights(
        item_norm=_array(model.item_norm.weight),
        input_norm=_stacked(layer.input_norm.weight for layer in layers),
        w_x=_stacked(layer.W_X.weight.T for layer in layers),
        w_z=_stacked(layer.W_Z.weight.T for layer in layers),
        frequency=_array(first.rope.frequency()) if first.rope else np.zeros(0, np.float32),
        y_norm=_stacked(norm.weight for norm in y_norms) if y_norms else absent[:, :, 0],
        w_o=_stacked(layer.W_O.weight.T for layer in layers),
        w_y=_stacked(layer.W_Y.weight.T for layer in layers) if first.W_Y else absent,
        ffn_norm=_stacked(layer.ffn_norm.weight for layer in layers),
        w_1=_stacked(layer.ffn.w_1.weight.T for layer in layers),
        w_3=_stacked(layer.ffn.w_3.weight.T for layer in layers) if first.ffn.w_3 else absent,
        w_2=_stacked(layer.ffn.w_2.weight.T for layer in layers),
        output_norm=(
            _array(output_norm.weight)
            if isinstance(output_norm, RMSNorm)
            else np.zeros(0, np.float32)
        ),
        eps=np.array([model.item_norm.eps], np.float32),
    )
    return weights, _mambas([layer.mamba for layer in layers], lanes)


def _mamba4rec_weights(model: Mamba4Rec, lanes: int) -> tuple[Mamba4RecWeights, Mambas]:
    layers = [cast(MambaLayer, layer) for layer in model.mamba_layers]

    def rows(norm: nn.LayerNorm) -> np.ndarray:
        return np.stack([_array(norm.weight), _array(norm.bias)])

    weights = Mamba4RecWeights(
        item_norm=rows(model.LayerNorm),
        norm=np.stack([rows(layer.LayerNorm) for layer in layers]),
        w_1=_stacked(layer.ffn.w_1.weight.T for layer in layers),
        b_1=_stacked(layer.ffn.w_1.bias for layer in layers),
        w_2=_stacked(layer.ffn.w_2.weight.T for layer in layers),
        b_2=_stacked(layer.ffn.w_2.bias for layer in layers),
        ffn_norm=np.stack([rows(layer.ffn.LayerNorm) for layer in layers]),
        eps=np.array([model.LayerNorm.eps], np.float32),
        residual=np.array([layers[0].residual]),
    )
    return weights, _mambas([layer.mamba for layer in layers], lanes)


def weights_of(
    model: Hydra | Mamba4Rec, lanes: int = LANES
) -> tuple[HydraWeights | Mamba4RecWeights, Mambas]:
    """Copies of a model's weights, as :mod:`.kernels` describes them; states are padded to a
    multiple of ``lanes``."""
    if isinstance(model, Hydra):
        return _hydra_weights(model, lanes)
    return _mamba4rec_weights(model, lanes)


def first_items_of(model: Hydra | Mamba4Rec) -> np.ndarray | None:
    """The first item id of each domain, rising, where each has its own layers; otherwise None."""
    if isinstance(model, Hydra) and isinstance(model.layers, StackPerDomain):
        return model.layers.start.cpu().numpy()
    return None


class CompiledEncoder:
    """A trained Hydra or Mamba4Rec, from item ids to the vector that is compared with the items.

    Args:
        model: on the CPU, in evaluation mode. Its weights are copied, but for the item vectors.

    Attributes:
        state_size: float32 numbers that a user's history leaves, whatever its length.
        width: of a vector.
    """

    def __init__(self, model: Hydra | Mamba4Rec) -> None:
        weights, mambas = weights_of(model)
        self._weights, self._mambas = weights, mambas
        self._serial, self._parallel = ROWS[type(weights)]
        self._table = read_vectors(model)
        self._start = first_items_of(model)
        layers = mambas.conv.shape[0] // (1 if self._start is None else len(self._start))
        self._layers = layers
        width, channels = mambas.conv.shape[1:]
        self.state_size = layers * channels * (width - 1 + mambas.decay.shape[2])
        self.width = self._table.shape[1]

    def stacks(self, first_items: np.ndarray) -> np.ndarray:
        """Which layers read the histories that begin with ``first_items``, (rows,): those of their
        domain, where each domain has its own, otherwise 0."""
        if self._start is None:
            return np.zeros(len(first_items), np.int64)
        return np.maximum(np.searchsorted(self._start, first_items, side="right") - 1, 0)

    def __call__(
        self,
        items: np.ndarray,
        start: np.ndarray,
        states: np.ndarray | None = None,
        positions: np.ndarray | None = None,
        stacks: np.ndarray | None = None,
    ) -> np.ndarray:
        """Read the next items of some users.

        Args:
            items: ids of all rows one after another, int64. start: row r is
                ``items[start[r]:start[r + 1]]``, (rows + 1,) int64, no row empty.
            states: what the items before have left, (rows, state_size) float32; they become what
                is left now. By default nothing was before.
            positions: how many items were before, (rows,) int64; needed with states.
            stacks: see :meth:`stacks`; by default of the rows' first items.

        Returns:
            The vectors after the last items, (rows, width).
        """
        rows = len(start) - 1
        if stacks is None:
            stacks = self.stacks(items[start[:-1]])
        if states is None:
            states = np.zeros((rows, self.state_size), np.float32)
            positions = np.zeros(rows, np.int64)
        vectors = np.empty((rows, self.width), np.float32)
        arguments = (
            items, start, self._table, self._weights, self._mambas, stacks * self._layers,
            self._layers, positions, states, vectors,
        )  # fmt: skip
        if rows > 1 and len(items) >= PARALLEL_ITEMS and use_torch_threads() > 1:
            with _POOL:
                self._parallel(*arguments)
        else:
            self._serial(*arguments)
        return vectors


@torch.no_grad()
def read_vectors(model: Hydra | Mamba4Rec) -> np.ndarray:
    """What the model reads of each item, (n_items, width); by id the model's own memory."""
    if model.items.text is None:
        return _array(cast(nn.Embedding, model.items.embedding).weight)
    return _array(model.items.table)
