"""From item ids to a user's vector, for Hydra and Mamba4Rec, as code that numba compiles.

Arrays are float32; weights lie as a step reads them, (in, out), so that a product adds up rows of a
matrix. Layers of one kind are stacked, and with ``user_model: per_domain`` so are the domains'. A
row, the next items of one user, is read item by item, weights and states in the CPU's caches; rows
are independent.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numba import njit, prange

from recbole_hydra.ops.numba_support import compiled, serially_compiled
from recbole_hydra.ops.simd import (
    LANES,
    exp2,
    fma,
    load,
    load_in_all,
    sigmoid,
    store,
    zero,
)

_ZERO, _ONE = np.float32(0.0), np.float32(1.0)
_SQRT_HALF = np.float32(math.sqrt(0.5))


class Mambas(NamedTuple):
    """The Mamba blocks of all layers, v heads each: (layers, ...) arrays.

    A Mamba block without heads is one head. d_c is the width of a head, e its inner channels; the
    channels of all heads lie side by side, C = v e of them. States are padded with zeros to N, a
    multiple of the vectors' sixteen lanes.
    """

    in_proj: np.ndarray  # (layers, v, d_c, 2 e)
    conv: np.ndarray  # (layers, width, C)
    conv_bias: np.ndarray  # (layers, C)
    x_proj: np.ndarray  # (layers, v, e, dt_rank + 2 N)
    bc_bias: np.ndarray  # (layers, v, 2 N)
    dt_proj: np.ndarray  # (layers, v, dt_rank, e)
    dt_bias: np.ndarray  # (layers, C)
    decay: np.ndarray  # (layers, C, N): A log2(e), so that exp(dt A) is 2^(dt decay)
    skip: np.ndarray  # (layers, C): D
    out_proj: np.ndarray  # (layers, v, e, d_c)


class HydraWeights(NamedTuple):
    """What a Hydra layer has around its Mambas, and the model around its layers."""

    item_norm: np.ndarray  # (d,)
    input_norm: np.ndarray  # (layers, d)
    w_x: np.ndarray  # (layers, d, v d_c)
    w_z: np.ndarray  # (layers, d, v d_c)
    frequency: np.ndarray  # (d_c / 2,), empty without rotary positions
    y_norm: np.ndarray  # (layers, v d_c) or (layers, d_c), (layers, 0) without
    w_o: np.ndarray  # (layers, v d_c, d)
    w_y: np.ndarray  # (layers, v d_c, d), (layers, 0, d) without
    ffn_norm: np.ndarray  # (layers, d)
    w_1: np.ndarray  # (layers, d, ffn)
    w_3: np.ndarray  # (layers, d, ffn), (layers, 0, 0) with GELU
    w_2: np.ndarray  # (layers, ffn, d)
    output_norm: np.ndarray  # (d,), empty without
    eps: np.ndarray  # (1,)


class Mamba4RecWeights(NamedTuple):
    """What a layer of Mamba4Rec has around its Mamba, and the model around its layers. Of each
    LayerNorm, weight and bias are rows."""

    item_norm: np.ndarray  # (2, d)
    norm: np.ndarray  # (layers, 2, d)
    w_1: np.ndarray  # (layers, d, 4 d)
    b_1: np.ndarray  # (layers, 4 d)
    w_2: np.ndarray  # (layers, 4 d, d)
    b_2: np.ndarray  # (layers, d)
    ffn_norm: np.ndarray  # (layers, 2, d)
    eps: np.ndarray  # (1,)
    residual: np.ndarray  # (1,) bool: around the Mamba


# -- arithmetic ------------------------------------------------------------------------------------


@njit
def _product(
    x: np.ndarray, first: int, weight: np.ndarray, column: int, width: int, y: np.ndarray, at: int
) -> None:
    """``y[at : at + width] = x[first:] @ weight[:, column : column + width]``.

    Sixteen columns at a time, four times sixteen where there are so many: the sums stay in
    registers.
    """
    rows, stride = weight.shape
    flat = weight.reshape(rows * stride)
    j = 0
    while j + 4 * LANES <= width:
        a, b, c, d = zero(), zero(), zero(), zero()
        o = column + j
        for i in range(first, first + rows):
            xi = load_in_all(x, i)
            a = fma(xi, load(flat, o), a)
            b = fma(xi, load(flat, o + LANES), b)
            c = fma(xi, load(flat, o + 2 * LANES), c)
            d = fma(xi, load(flat, o + 3 * LANES), d)
            o += stride
        store(y, at + j, a)
        store(y, at + j + LANES, b)
        store(y, at + j + 2 * LANES, c)
        store(y, at + j + 3 * LANES, d)
        j += 4 * LANES
    while j + LANES <= width:
        a = zero()
        o = column + j
        for i in range(first, first + rows):
            a = fma(load_in_all(x, i), load(flat, o), a)
            o += stride
        store(y, at + j, a)
        j += LANES
    for k in range(j, width):
        total = _ZERO
        for i in range(rows):
            total += x[first + i] * flat[i * stride + column + k]
        y[at + k] = total


@njit(inline="always")
def _silu(x: float) -> float:
    return x / (_ONE + np.float32(math.exp(-x)))


@njit
def _silu_all(x: np.ndarray, width: int) -> None:
    """SiLU of the first ``width`` of x, in place."""
    whole = width - width % LANES
    for i in range(0, whole, LANES):
        xi = load(x, i)
        store(x, i, xi * sigmoid(xi))
    for i in range(whole, width):
        x[i] = _silu(x[i])


@njit(inline="always")
def _gelu(x: float) -> float:
    return np.float32(0.5) * x * (_ONE + np.float32(math.erf(x * _SQRT_HALF)))


@njit(inline="always")
def _softplus(x: float) -> float:
    # torch's: linear above 20, where it is the same in float32.
    return x if x > np.float32(20.0) else np.float32(math.log1p(math.exp(x)))


@njit(inline="always")
def _rms_norm(
    x: np.ndarray, at: int, width: int, weight: np.ndarray, eps: float, y: np.ndarray
) -> None:
    total = _ZERO
    for i in range(width):
        total += x[at + i] * x[at + i]
    scale = _ONE / np.float32(math.sqrt(total / np.float32(width) + eps))
    for i in range(width):
        y[at + i] = x[at + i] * scale * weight[i]


@njit(inline="always")
def _layer_norm(x: np.ndarray, weight: np.ndarray, eps: float, y: np.ndarray) -> None:
    """LayerNorm of ``x``; ``weight`` is (2, width), the scales and the biases."""
    width = weight.shape[1]
    mean = _ZERO
    for i in range(width):
        mean += x[i]
    mean /= np.float32(width)
    variance = _ZERO
    for i in range(width):
        variance += (x[i] - mean) * (x[i] - mean)
    scale = _ONE / np.float32(math.sqrt(variance / np.float32(width) + eps))
    for i in range(width):
        y[i] = (x[i] - mean) * scale * weight[0, i] + weight[1, i]


@njit
def _mamba_step(
    m: Mambas, k: int, x: np.ndarray, state: np.ndarray, at: int, wanted: bool, y: np.ndarray,
    xs: np.ndarray, z: np.ndarray, bc: np.ndarray,
) -> None:  # fmt: skip
    """One item through the Mamba ``k``: read ``x`` and write ``y``, both (v d_c,).

    ``state[at:]`` is what was before, the last inputs of the convolution, (width - 1, C), then the
    scan's, (C, N), and becomes what is after. Without ``wanted`` nothing is written to ``y``.
    ``xs``, ``z`` and ``bc`` are room for C, C and dt_rank + 2 N numbers.
    """
    heads, d_c = m.in_proj.shape[1], m.in_proj.shape[2]
    width, channels = m.conv.shape[1], m.conv.shape[2]
    e, n = channels // heads, m.decay.shape[2]
    rank = m.dt_proj.shape[2]
    for h in range(heads):
        _product(x, h * d_c, m.in_proj[k, h], 0, e, xs, h * e)
        if wanted:
            _product(x, h * d_c, m.in_proj[k, h], e, e, z, h * e)
    # The convolution: row 0 of its state is the oldest input.
    for c in range(channels):
        new = xs[c]
        total = m.conv_bias[k, c] + m.conv[k, width - 1, c] * new
        for i in range(width - 1):
            total += m.conv[k, i, c] * state[at + i * channels + c]
        for i in range(width - 2):
            state[at + i * channels + c] = state[at + (i + 1) * channels + c]
        if width > 1:
            state[at + (width - 2) * channels + c] = new
        xs[c] = total
    _silu_all(xs, channels)
    if wanted:
        _silu_all(z, channels)
    scan = at + (width - 1) * channels
    decay, skip = m.decay[k], m.skip[k]
    flat = decay.reshape(channels * n)
    sums = np.empty(LANES, np.float32)
    for h in range(heads):
        _product(xs, h * e, m.x_proj[k, h], 0, rank + 2 * n, bc, 0)
        for i in range(2 * n):
            bc[rank + i] += m.bc_bias[k, h, i]
        for j in range(e):
            c = h * e + j
            dt = m.dt_bias[k, c]
            for i in range(rank):
                dt += bc[i] * m.dt_proj[k, h, i, j]
            dt = _softplus(dt)
            sums[0] = dt
            sums[1] = dt * xs[c]
            delta, step = load_in_all(sums, 0), load_in_all(sums, 1)
            first = scan + c * n
            store(state, first, fma(exp2(delta * load(flat, c * n)), load(state, first),
                                    step * load(bc, rank)))  # fmt: skip
            total = load(state, first) * load(bc, rank + n)
            for s in range(LANES, n, LANES):
                new_state = fma(exp2(delta * load(flat, c * n + s)), load(state, first + s),
                                step * load(bc, rank + s))  # fmt: skip
                store(state, first + s, new_state)
                total = fma(new_state, load(bc, rank + n + s), total)
            if wanted:
                store(sums, 0, total)
                out = skip[c] * xs[c]
                for s in range(LANES):
                    out += sums[s]
                z[c] *= out
    if wanted:
        for h in range(heads):
            _product(z, h * e, m.out_proj[k, h], 0, d_c, y, h * d_c)


@njit
def _hydra_row(
    items: np.ndarray, table: np.ndarray, w: HydraWeights, m: Mambas, first_layer: int,
    layers: int, position: int, state: np.ndarray, vector: np.ndarray,
) -> None:  # fmt: skip
    """The next ``items`` of one user through Hydra's layers, and the vector after the last."""
    d, width, heads = w.w_x.shape[1], w.w_x.shape[2], m.in_proj.shape[1]
    d_c, channels = m.in_proj.shape[2], m.conv.shape[2]
    ffn, half, normed = w.w_1.shape[2], m.in_proj.shape[2] // 2, w.y_norm.shape[1]
    of_layer = (m.conv.shape[1] - 1) * channels + channels * m.decay.shape[2]
    eps = w.eps[0]
    h, ht, out = np.empty(d, np.float32), np.empty(d, np.float32), np.empty(d, np.float32)
    x, y, z = np.empty(width, np.float32), np.empty(width, np.float32), np.empty(width, np.float32)
    inner, inner_3 = np.empty(ffn, np.float32), np.empty(ffn, np.float32)
    xs, gate = np.empty(channels, np.float32), np.empty(channels, np.float32)
    bc = np.empty(m.x_proj.shape[3], np.float32)
    for t in range(len(items)):
        _rms_norm(table[items[t]], 0, d, w.item_norm, eps, h)
        for layer in range(layers):
            k = first_layer + layer
            wanted = t == len(items) - 1 or layer < layers - 1
            _rms_norm(h, 0, d, w.input_norm[k], eps, ht)
            _product(ht, 0, w.w_x[k], 0, width, x, 0)
            _silu_all(x, width)
            _mamba_step(m, k, x, state, layer * of_layer, wanted, y, xs, gate, bc)
            if not wanted:
                continue
            if normed == width:
                _rms_norm(y, 0, width, w.y_norm[k], eps, y)
            elif normed:
                for i in range(heads):
                    _rms_norm(y, i * d_c, d_c, w.y_norm[k], eps, y)
            if w.w_y.shape[1]:
                _product(y, 0, w.w_y[k], 0, d, out, 0)
                for i in range(d):
                    h[i] += out[i]
            _product(ht, 0, w.w_z[k], 0, width, z, 0)
            _silu_all(z, width)
            for j in range(len(w.frequency)):
                angle = np.float32(position + t) * w.frequency[j]
                cos, sin = np.float32(math.cos(angle)), np.float32(math.sin(angle))
                for i in range(j, width, d_c):
                    a, b = z[i], z[i + half]
                    z[i], z[i + half] = a * cos - b * sin, b * cos + a * sin
            for i in range(width):
                z[i] *= y[i]
            _product(z, 0, w.w_o[k], 0, d, out, 0)
            for i in range(d):
                h[i] += out[i]
            _rms_norm(h, 0, d, w.ffn_norm[k], eps, ht)
            _product(ht, 0, w.w_1[k], 0, ffn, inner, 0)
            if w.w_3.shape[1]:
                _product(ht, 0, w.w_3[k], 0, ffn, inner_3, 0)
                _silu_all(inner, ffn)
                for i in range(ffn):
                    inner[i] *= inner_3[i]
            else:
                for i in range(ffn):
                    inner[i] = _gelu(inner[i])
            _product(inner, 0, w.w_2[k], 0, d, out, 0)
            for i in range(d):
                h[i] += out[i]
    if len(w.output_norm):
        _rms_norm(h, 0, d, w.output_norm, eps, vector)
    else:
        for i in range(d):
            vector[i] = h[i]


@njit
def _mamba4rec_row(
    items: np.ndarray, table: np.ndarray, w: Mamba4RecWeights, m: Mambas, first_layer: int,
    layers: int, position: int, state: np.ndarray, vector: np.ndarray,
) -> None:  # fmt: skip
    """The next ``items`` of one user through Mamba4Rec's layers, and the vector after the last."""
    d, ffn, channels = w.w_1.shape[1], w.w_1.shape[2], m.conv.shape[2]
    of_layer = (m.conv.shape[1] - 1) * channels + channels * m.decay.shape[2]
    eps = w.eps[0]
    h, out, inner = np.empty(d, np.float32), np.empty(d, np.float32), np.empty(ffn, np.float32)
    xs, gate = np.empty(channels, np.float32), np.empty(channels, np.float32)
    bc = np.empty(m.x_proj.shape[3], np.float32)
    for t in range(len(items)):
        _layer_norm(table[items[t]], w.item_norm, eps, h)
        for k in range(layers):
            wanted = t == len(items) - 1 or k < layers - 1
            _mamba_step(m, k, h, state, k * of_layer, wanted, out, xs, gate, bc)
            if not wanted:
                continue
            if w.residual[0]:
                for i in range(d):
                    out[i] += h[i]
            _layer_norm(out, w.norm[k], eps, h)
            _product(h, 0, w.w_1[k], 0, ffn, inner, 0)
            for i in range(ffn):
                inner[i] = _gelu(inner[i] + w.b_1[k, i])
            _product(inner, 0, w.w_2[k], 0, d, out, 0)
            for i in range(d):
                out[i] += w.b_2[k, i] + h[i]
            _layer_norm(out, w.ffn_norm[k], eps, h)
    for i in range(d):
        vector[i] = h[i]


def _hydra(
    items: np.ndarray, start: np.ndarray, table: np.ndarray, w: HydraWeights, m: Mambas,
    first_layers: np.ndarray, layers: int, positions: np.ndarray, states: np.ndarray,
    vectors: np.ndarray,
) -> None:  # fmt: skip
    for row in prange(len(start) - 1):
        _hydra_row(
            items[start[row] : start[row + 1]], table, w, m, first_layers[row], layers,
            positions[row], states[row], vectors[row],
        )  # fmt: skip


def _mamba4rec(
    items: np.ndarray, start: np.ndarray, table: np.ndarray, w: Mamba4RecWeights, m: Mambas,
    first_layers: np.ndarray, layers: int, positions: np.ndarray, states: np.ndarray,
    vectors: np.ndarray,
) -> None:  # fmt: skip
    for row in prange(len(start) - 1):
        _mamba4rec_row(
            items[start[row] : start[row + 1]], table, w, m, first_layers[row], layers,
            positions[row], states[row], vectors[row],
        )  # fmt: skip


#: By kind of weights: for one thread, and with rows shared out among threads.
ROWS = {
    HydraWeights: (serially_compiled(_hydra), compiled(_hydra)),
    Mamba4RecWeights: (serially_compiled(_mamba4rec), compiled(_mamba4rec)),
}
