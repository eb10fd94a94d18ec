"""Hydra and Mamba4Rec as ONNX graphs: one step, and a whole history.

The graphs are put together from the weights of :mod:`.compiled`, with plain operators of one opset.
torch's exporters would trace the models' modules: their scans are operations of ours or of numba,
which it does not know, a loop over time is what its exporters differ in from release to release,
and neither's graph has a state that a step can be given. Here a layer is written once, for a step
and for a history; both differ in the convolution and in the recurrence, which over a history is
ONNX's Scan with the step's recurrence as its body.

Tensors are (batch, channels) in a step and (time, batch, channels) in a history. The heads'
matrices lie on the diagonal of one, as a graph's time at batch 1 is its number of operators.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from recbole_hydra.ops.simd import LOG2E
from recbole_hydra.serving.kernels import HydraWeights, Mamba4RecWeights, Mambas

#: Of the operators, and of the file: ONNX Runtime has known both since 1.12.
OPSET, IR_VERSION = 17, 8

#: To the end, as Slice has it.
END = np.iinfo(np.int64).max


class Table(NamedTuple):
    """The item vectors as a graph names them: a part of a file beside it.

    Attributes:
        file: its name. offset: bytes before the numbers, float32. shape: (n_items, width).
    """

    file: str
    offset: int
    shape: tuple[int, int]


class Encoder(NamedTuple):
    """What the graphs of one stack of layers are made of; ``layers`` are those of the weights'
    that belong to it, and states are padded to nothing."""

    weights: HydraWeights | Mamba4RecWeights
    mambas: Mambas
    layers: range
    table: Table

    @property
    def parts(self) -> list[int]:
        """Numbers of each part of a state: the position, where it is read, then of each layer the
        last inputs of its convolution, where it is wider than 1, and the scan's state."""
        width, channels = self.mambas.conv.shape[1:]
        scan = channels * self.mambas.decay.shape[2]
        each = [scan] if width == 1 else [(width - 1) * channels, scan]
        return ([1] if self.has_positions else []) + each * len(self.layers)

    @property
    def has_positions(self) -> bool:
        """Whether the layers read how many items were before."""
        return isinstance(self.weights, HydraWeights) and len(self.weights.frequency) > 0


class Graph:
    """Operators in their order, and the weights that they read, which a graph inside of another
    shares with it."""

    def __init__(self, outer: Graph | None = None) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.initializers: list[TensorProto] = outer.initializers if outer else []
        self._names: list[int] = outer._names if outer else [0]

    def name(self) -> str:
        """One that is not taken."""
        self._names[0] += 1
        return f"t{self._names[0]}"

    def __call__(self, kind: str, *inputs: str | np.ndarray, **attributes: Any) -> str:
        """Add an operator with one output; returns its name. Arrays become weights."""
        return self.several(kind, 1, *inputs, **attributes)[0]

    def several(
        self, kind: str, outputs: int, *inputs: str | np.ndarray, **attributes: Any
    ) -> list[str]:
        """:meth:`__call__`, with some outputs."""
        names = [x if isinstance(x, str) else self.weight(x) for x in inputs]
        found = [self.name() for _ in range(outputs)]
        self.nodes.append(helper.make_node(kind, names, found, **attributes))
        return found

    def weight(self, array: np.ndarray) -> str:
        """Keep an array; returns its name."""
        name = self.name()
        self.initializers.append(numpy_helper.from_array(np.ascontiguousarray(array), name))
        return name

    def rename(self, tensor: str, name: str) -> None:
        """Give a result the name of an output."""
        self.nodes.append(helper.make_node("Identity", [tensor], [name]))

    # -- what layers are made of -------------------------------------------------------------

    def split(self, x: str, sizes: Sequence[int]) -> list[str]:
        """Parts of the last axis."""
        if len(sizes) == 1:
            return [x]
        return self.several("Split", len(sizes), x, np.array(sizes, np.int64), axis=-1)

    def silu(self, x: str) -> str:
        return self("Mul", x, self("Sigmoid", x))

    def gelu(self, x: str) -> str:
        erf = self("Erf", self("Div", x, np.float32(np.sqrt(2))))
        return self("Mul", self("Mul", x, self("Add", erf, np.float32(1))), np.float32(0.5))

    def rms_norm(self, x: str, weight: np.ndarray, eps: np.ndarray) -> str:
        mean = self("ReduceMean", self("Pow", x, np.float32(2)), axes=[-1], keepdims=1)
        root = self("Sqrt", self("Add", mean, eps))
        return self("Mul", self("Div", x, root), weight)

    def layer_norm(self, x: str, weight: np.ndarray, eps: np.ndarray) -> str:
        """``weight`` is (2, width), the scales and the biases."""
        return self("LayerNormalization", x, *weight, axis=-1, epsilon=float(eps[0]))


class Step:
    """What a layer does with time where there is one item: it goes on from a state."""

    def __init__(self, g: Graph, encoder: Encoder, state: str) -> None:
        self._g, parts = g, encoder.parts
        self._before = iter(g.split(state, parts))
        self.after: list[str] = []  # parts of the new state
        self.position = ""
        if encoder.has_positions:
            self.position = next(self._before)  # (batch, 1)
            self.after.append(g("Add", self.position, np.float32(1)))

    def convolved(self, x: str, weight: np.ndarray, bias: np.ndarray) -> str:
        """(batch, channels) to the same; ``weight`` is (width, channels), oldest input first."""
        g, (width, channels) = self._g, weight.shape
        if width == 1:
            return g("Add", g("Mul", x, weight[0]), bias)
        inputs = g("Concat", next(self._before), x, axis=-1)
        start, end, axis = (np.array([n], np.int64) for n in (channels, END, 1))
        self.after.append(g("Slice", inputs, start, end, axis))
        products = g("Mul", inputs, weight.reshape(-1))
        by_time = g("Reshape", products, np.array([0, width, channels], np.int64))
        return g("Add", g("ReduceSum", by_time, np.array([1], np.int64), keepdims=0), bias)

    def scanned(self, decay: np.ndarray, *inputs: str) -> str:
        """See :func:`_recurrence`; ``decay`` is (heads, channels, states)."""
        g, (heads, e, n) = self._g, decay.shape
        before = g("Reshape", next(self._before), np.array([0, heads, e, n], np.int64))
        state, y = _recurrence(g, decay, before, *inputs)
        self.after.append(g("Reshape", state, np.array([0, heads * e * n], np.int64)))
        return y


class History:
    """What a layer does with time over a history: nothing was before."""

    def __init__(self, g: Graph, encoder: Encoder, batch: str, length: str) -> None:
        self._g, self._batch, self.position = g, batch, ""
        if encoder.has_positions:
            zero, one = np.array(0, np.int64), np.array(1, np.int64)
            steps = g("Cast", g("Range", zero, length, one), to=TensorProto.FLOAT)
            self.position = g("Unsqueeze", steps, np.array([1, 2], np.int64))  # (time, 1, 1)

    def convolved(self, x: str, weight: np.ndarray, bias: np.ndarray) -> str:
        """(time, batch, channels) to the same; see :meth:`Step.convolved`."""
        g, width = self._g, len(weight)
        padded = g("Pad", x, np.array([width - 1, 0, 0, 0, 0, 0], np.int64))
        total = ""
        for i in range(width):  # input i of each window: all positions at once
            end = END if i == width - 1 else i - (width - 1)
            start, stop, axis = (np.array([n], np.int64) for n in (i, end, 0))
            part = g("Mul", g("Slice", padded, start, stop, axis), weight[i])
            total = g("Add", total, part) if total else part
        return g("Add", total, bias)

    def scanned(self, decay: np.ndarray, *inputs: str) -> str:
        """:meth:`Step.scanned`, time by time, from zeros."""
        g, (heads, e, n) = self._g, decay.shape
        body = Graph(g)
        names = [body.name() for _ in range(1 + len(inputs))]
        state, y = _recurrence(body, decay, *names)
        sizes = [heads * e, heads * e, heads * n, heads * n]
        shapes = [["batch", heads, e, n], *(["batch", size] for size in sizes)]
        given = [_float(name, shape) for name, shape in zip(names, shapes, strict=True)]
        results = [_float(state, shapes[0]), _float(y, ["batch", heads * e])]
        inner = helper.make_graph(body.nodes, "step", given, results)
        shape = g("Concat", self._batch, np.array([heads, e, n], np.int64), axis=0)
        zero = numpy_helper.from_array(np.zeros(1, np.float32))
        zeros = g("ConstantOfShape", shape, value=zero)
        return g.several("Scan", 2, zeros, *inputs, body=inner, num_scan_inputs=4)[1]


def _recurrence(
    g: Graph, decay: np.ndarray, state: str, dt: str, dtx: str, B: str, C: str
) -> tuple[str, str]:
    """``state = exp(dt A) state + dt x B``; ``y = state C``.

    Args:
        decay: A, (heads, channels, states). state: (batch, heads, channels, states).
        dt, dtx: (batch, all channels). B, C: (batch, heads x states).

    Returns:
        The state, and y, (batch, all channels).
    """
    heads, e, n = decay.shape

    def shaped(x: str, *shape: int) -> str:
        return g("Reshape", x, np.array([0, *shape], np.int64))

    kept = g("Exp", g("Mul", shaped(dt, heads, e, 1), decay))
    new = g("Mul", shaped(dtx, heads, e, 1), shaped(B, heads, 1, n))
    state = g("Add", g("Mul", kept, state), new)
    return state, shaped(g("MatMul", state, shaped(C, heads, n, 1)), heads * e)


def _diagonal(blocks: np.ndarray) -> np.ndarray:
    """(heads, in, out) as one matrix, (heads in, heads out)."""
    heads, rows, columns = blocks.shape
    whole = np.zeros((heads, rows, heads, columns), np.float32)
    whole[np.arange(heads), :, np.arange(heads)] = blocks
    return whole.reshape(heads * rows, heads * columns)


def _mamba(g: Graph, time: Step | History, m: Mambas, k: int, x: str) -> str:
    """The Mambas of layer ``k``, all heads side by side."""
    heads, channels, n = m.in_proj.shape[1], m.conv.shape[2], m.decay.shape[2]
    e, rank = channels // heads, m.dt_proj.shape[2]

    def product(x: str, *blocks: np.ndarray) -> str:
        return g("MatMul", x, np.concatenate([_diagonal(block) for block in blocks], axis=1))

    to_x, to_z = np.split(m.in_proj[k], 2, axis=-1)
    xs, z = g.split(product(x, to_x, to_z), [channels, channels])
    xs = g.silu(time.convolved(xs, m.conv[k], m.conv_bias[k]))
    low, B, C = np.split(m.x_proj[k], [rank, rank + n], axis=-1)
    low_dt, b, c = g.split(product(xs, low, B, C), [heads * rank, heads * n, heads * n])
    if m.bc_bias.any():
        b_bias, c_bias = np.split(m.bc_bias[k], 2, axis=-1)
        b, c = g("Add", b, b_bias.reshape(-1)), g("Add", c, c_bias.reshape(-1))
    dt = g("Softplus", g("Add", product(low_dt, m.dt_proj[k]), m.dt_bias[k]))
    decay = (m.decay[k] / LOG2E).astype(np.float32).reshape(heads, e, n)
    y = time.scanned(decay, dt, g("Mul", dt, xs), b, c)
    y = g("Add", y, g("Mul", xs, m.skip[k]))
    return product(g("Mul", y, g.silu(z)), m.out_proj[k])


def _hydra(
    g: Graph, time: Step | History, w: HydraWeights, m: Mambas, layers: range, h: str
) -> str:
    """Item vectors to states, before the norm on them; see the equations of Hydra's module."""
    width, d_c, normed = w.w_x.shape[2], m.in_proj.shape[2], w.y_norm.shape[1]
    cos = sin = ""
    half = len(w.frequency)
    if half:
        # Feature i is turned with its partner, i +- half: a negative angle turns the sine's sign.
        angles = np.tile(np.concatenate([-w.frequency, w.frequency]), width // d_c)
        angle = g("Mul", time.position, angles)
        cos, sin = g("Cos", angle), g("Sin", angle)
        partner = np.roll(np.arange(width).reshape(-1, d_c), half, axis=1).reshape(-1)
    h = g.rms_norm(h, w.item_norm, w.eps)
    for k in layers:
        ht = g.rms_norm(h, w.input_norm[k], w.eps)
        both = g.silu(g("MatMul", ht, np.concatenate([w.w_x[k], w.w_z[k]], axis=1)))
        x, z = g.split(both, [width, width])
        if half:
            turned = g("Mul", g("Gather", z, partner, axis=-1), sin)
            z = g("Add", g("Mul", z, cos), turned)
        y = _mamba(g, time, m, k, x)
        if normed == width:
            y = g.rms_norm(y, w.y_norm[k], w.eps)
        elif normed:
            leading = [0] if isinstance(time, Step) else [0, 0]
            y = g("Reshape", y, np.array([*leading, width // d_c, d_c], np.int64))
            y = g.rms_norm(y, w.y_norm[k], w.eps)
            y = g("Reshape", y, np.array([*leading, width], np.int64))
        out = g("MatMul", g("Mul", y, z), w.w_o[k])
        if w.w_y.shape[1]:
            out = g("Add", out, g("MatMul", y, w.w_y[k]))
        h = g("Add", h, out)
        ht = g.rms_norm(h, w.ffn_norm[k], w.eps)
        inner = g("MatMul", ht, w.w_1[k])
        if w.w_3.shape[1]:
            inner = g("Mul", g.silu(inner), g("MatMul", ht, w.w_3[k]))
        else:
            inner = g.gelu(inner)
        h = g("Add", h, g("MatMul", inner, w.w_2[k]))
    return h


def _mamba4rec(
    g: Graph, time: Step | History, w: Mamba4RecWeights, m: Mambas, layers: range, h: str
) -> str:
    """Item vectors to states."""
    h = g.layer_norm(h, w.item_norm, w.eps)
    for k in layers:
        out = _mamba(g, time, m, k, h)
        h = g.layer_norm(g("Add", out, h) if w.residual[0] else out, w.norm[k], w.eps)
        inner = g.gelu(g("Add", g("MatMul", h, w.w_1[k]), w.b_1[k]))
        out = g("Add", g("MatMul", inner, w.w_2[k]), w.b_2[k])
        h = g.layer_norm(g("Add", out, h), w.ffn_norm[k], w.eps)
    return h


def _states(g: Graph, time: Step | History, encoder: Encoder, ids: str) -> str:
    """Item ids to states, before the norm on them."""
    vectors = g("Gather", "item_vectors", ids, axis=0)
    if isinstance(encoder.weights, HydraWeights):
        return _hydra(g, time, encoder.weights, encoder.mambas, encoder.layers, vectors)
    return _mamba4rec(g, time, encoder.weights, encoder.mambas, encoder.layers, vectors)


def _output(g: Graph, encoder: Encoder, h: str) -> None:
    """What is compared with the items, as the output ``vector``."""
    w = encoder.weights
    if isinstance(w, HydraWeights) and len(w.output_norm):
        h = g.rms_norm(h, w.output_norm, w.eps)
    g.rename(h, "vector")


def step_model(encoder: Encoder) -> onnx.ModelProto:
    """The graph of one step: ``item`` (batch,) int64 and ``state`` (batch, size) float32, zeros
    before the first, to ``vector`` (batch, width) and ``next_state``."""
    g, size = Graph(), sum(encoder.parts)
    time = Step(g, encoder, "state")
    _output(g, encoder, _states(g, time, encoder, "item"))
    g.rename(g("Concat", *time.after, axis=1), "next_state")
    inputs = [_ids("item", ["batch"]), _float("state", ["batch", size])]
    vector = _float("vector", ["batch", encoder.table.shape[1]])
    return _model(g, encoder, "step", inputs, [vector, _float("next_state", ["batch", size])])


def history_model(encoder: Encoder) -> onnx.ModelProto:
    """The graph of whole histories: ``items`` (batch, time) int64, padded with zeros at the end,
    and their numbers ``lengths`` (batch,) int64, to the ``vector`` (batch, width) after the last
    item of each."""
    g = Graph()
    ids = g("Transpose", "items", perm=[1, 0])
    length, batch = g.several("Split", 2, g("Shape", ids), np.array([1, 1], np.int64), axis=0)
    zero = np.array([0], np.int64)
    time = History(g, encoder, batch, g("Squeeze", length, zero))
    states = g("Transpose", _states(g, time, encoder, ids), perm=[1, 0, 2])
    last = g("Unsqueeze", g("Sub", "lengths", np.array(1, np.int64)), np.array([1], np.int64))
    _output(g, encoder, g("GatherND", states, last, batch_dims=1))
    inputs = [_ids("items", ["batch", "time"]), _ids("lengths", ["batch"])]
    vector = _float("vector", ["batch", encoder.table.shape[1]])
    return _model(g, encoder, "history", inputs, [vector])


def _float(name: str, shape: Sequence[int | str]) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)


def _ids(name: str, shape: Sequence[int | str]) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, TensorProto.INT64, shape)


def _model(
    g: Graph, encoder: Encoder, name: str, inputs: list[onnx.ValueInfoProto],
    outputs: list[onnx.ValueInfoProto],
) -> onnx.ModelProto:  # fmt: skip
    # The table lies beside the graphs, once for all of them, where numpy reads it, too; a file of
    # ONNX itself may not be larger than 2 GB.
    table = TensorProto(
        name="item_vectors", data_type=TensorProto.FLOAT, dims=encoder.table.shape,
        data_location=TensorProto.EXTERNAL,
    )  # fmt: skip
    length = 4 * encoder.table.shape[0] * encoder.table.shape[1]
    for key, value in (
        ("location", encoder.table.file), ("offset", encoder.table.offset), ("length", length)
    ):  # fmt: skip
        table.external_data.add(key=key, value=str(value))
    graph = helper.make_graph(g.nodes, name, inputs, outputs, [table, *g.initializers])
    opset = helper.make_opsetid("", OPSET)
    return helper.make_model(
        graph, opset_imports=[opset], ir_version=IR_VERSION, producer_name="recbole_hydra"
    )
