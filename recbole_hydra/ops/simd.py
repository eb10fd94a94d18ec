"""Vectors of sixteen float32 numbers as values in numba code.

Left to itself, LLVM turns a loop into vector instructions only where it is long: before each loop
it checks whether the arrays overlap, and loops over eight channels, one small head of a multi-head
Mamba, stay scalar. With the vector as the value there is no such loop: ``load``, ``*``, ``fma``,
``exp2`` and ``store`` are one instruction each on AVX-512, two on AVX, four on NEON and SSE. Any
CPU that numba compiles for has them; LLVM splits sixteen lanes into what it has.

The lanes are eight channels times two states, lane 2 c + s: what depends on the channel only is
``load_each_twice``, what depends on the state only ``load_pair``.

Arrays are one-dimensional, contiguous float32; ``index`` is not checked.
"""

import math
import operator
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from llvmlite import ir
from llvmlite.ir import IRBuilder, Value
from numba import types
from numba.core import cgutils
from numba.core.base import BaseContext as Context
from numba.core.typing.context import BaseContext as TypingContext
from numba.core.typing.templates import Signature
from numba.extending import intrinsic as numba_intrinsic
from numba.extending import lower_builtin, models, register_model, type_callable

#: What compiled arguments are, and what an intrinsic returns for given types of its own: its
#: signature, and what generates its code.
Values = Sequence[Value]
Typed = tuple[Signature, Callable[[Context, IRBuilder, Signature, Values], Value]]

#: Its own type says that nothing calls what it makes, which compiled code does.
intrinsic: Callable[[Callable[..., Typed]], Callable[..., Any]] = numba_intrinsic

LANES = 16
CHANNELS = LANES // 2

_FLOAT, _INT = ir.FloatType(), ir.IntType(32)
_VECTOR, _INTEGERS = ir.VectorType(_FLOAT, LANES), ir.VectorType(_INT, LANES)

#: log2(e): exp(x) = exp2(x LOG2E).
LOG2E = np.float32(1.0 / math.log(2.0))


class Float32x16(types.Type):
    """The numba type of a vector."""

    def __init__(self) -> None:
        super().__init__(name="float32x16")


vector = Float32x16()


@register_model(Float32x16)
class _Float32x16Model(models.PrimitiveModel):
    def __init__(self, manager: Any, numba_type: types.Type) -> None:
        super().__init__(manager, numba_type, _VECTOR)


def _constant(value: float) -> Value:
    """``value``, a float or an int, in every lane."""
    if isinstance(value, int):
        return ir.Constant(_INTEGERS, [ir.Constant(_INT, value)] * LANES)
    return ir.Constant(_VECTOR, [ir.Constant(_FLOAT, value)] * LANES)


def _shuffle(builder: IRBuilder, x: Value, lanes: Sequence[int]) -> Value:
    """The lanes of ``x`` whose numbers are ``lanes``."""
    order = ir.Constant(ir.VectorType(_INT, len(lanes)), [ir.Constant(_INT, i) for i in lanes])
    return builder.shuffle_vector(x, ir.Constant(x.type, ir.Undefined), order)


def _address(
    context: Context, builder: IRBuilder, count: int, array_type: types.Type, array: Value,
    index: Value,
) -> Value:  # fmt: skip
    data = context.make_array(array_type)(context, builder, array).data
    kind = ir.VectorType(_FLOAT, count)
    return builder.bitcast(builder.gep(data, [index]), kind.as_pointer())


def _loading(count: int, lanes: Sequence[int] | None) -> Callable[..., Typed]:
    """The intrinsic that loads ``count`` numbers and puts them into ``lanes``."""

    def function(typingctx: TypingContext, array: types.Type, index: types.Type) -> Typed:
        def codegen(
            context: Context, builder: IRBuilder, signature: Signature, args: Values
        ) -> Value:
            pointer = _address(context, builder, count, signature.args[0], *args)
            x = builder.load(pointer, align=4)
            return x if lanes is None else _shuffle(builder, x, lanes)

        return vector(array, types.intp), codegen

    return function


@intrinsic
def load(typingctx: TypingContext, array: types.Type, index: types.Type) -> Typed:
    """Return ``array[index : index + 16]``."""
    return _loading(LANES, None)(typingctx, array, index)


@intrinsic
def load_each_twice(typingctx: TypingContext, array: types.Type, index: types.Type) -> Typed:
    """Return a, a, b, b, ... of the eight numbers ``array[index : index + 8]`` = a, b, ..."""
    lanes = [i // 2 for i in range(LANES)]
    return _loading(CHANNELS, lanes)(typingctx, array, index)


@intrinsic
def load_pair(typingctx: TypingContext, array: types.Type, index: types.Type) -> Typed:
    """Return a, b, a, b, ... of the two numbers ``array[index : index + 2]``."""
    return _loading(2, [i % 2 for i in range(LANES)])(typingctx, array, index)


@intrinsic
def load_in_all(typingctx: TypingContext, array: types.Type, index: types.Type) -> Typed:
    """Return the number ``array[index]`` in every lane."""
    return _loading(1, [0] * LANES)(typingctx, array, index)


@intrinsic
def store(typingctx: TypingContext, array: types.Type, index: types.Type, x: types.Type) -> Typed:
    """Write ``x`` to ``array[index : index + 16]``."""

    def codegen(context: Context, builder: IRBuilder, signature: Signature, args: Values) -> Value:
        pointer = _address(context, builder, LANES, signature.args[0], *args[:2])
        builder.store(args[2], pointer, align=4)
        return context.get_dummy_value()

    return types.void(array, types.intp, vector), codegen


@intrinsic
def store_pair_sums(
    typingctx: TypingContext, array: types.Type, index: types.Type, x: types.Type
) -> Typed:
    """Write the eight sums of neighbouring lanes, 2 c and 2 c + 1, to ``array[index:]``."""

    def codegen(context: Context, builder: IRBuilder, signature: Signature, args: Values) -> Value:
        pointer = _address(context, builder, CHANNELS, signature.args[0], *args[:2])
        even = _shuffle(builder, args[2], range(0, LANES, 2))
        odd = _shuffle(builder, args[2], range(1, LANES, 2))
        builder.store(builder.fadd(even, odd), pointer, align=4)
        return context.get_dummy_value()

    return types.void(array, types.intp, vector), codegen


@intrinsic
def store_channel_sums(
    typingctx: TypingContext, array: types.Type, index: types.Type, x: types.Type
) -> Typed:
    """Write the sum of the even lanes, then that of the odd ones, to ``array[index:]``."""

    def codegen(context: Context, builder: IRBuilder, signature: Signature, args: Values) -> Value:
        pointer = _address(context, builder, 2, signature.args[0], *args[:2])
        x, count = args[2], LANES
        while count > 2:  # the upper half onto the lower; even lanes stay even
            count //= 2
            upper = _shuffle(builder, x, range(count, 2 * count))
            x = builder.fadd(_shuffle(builder, x, range(count)), upper)
        builder.store(x, pointer, align=4)
        return context.get_dummy_value()

    return types.void(array, types.intp, vector), codegen


@intrinsic
def zero(typingctx: TypingContext) -> Typed:
    """Return zeros."""

    def codegen(context: Context, builder: IRBuilder, signature: Signature, args: Values) -> Value:
        return _constant(0.0)

    return vector(), codegen


@intrinsic
def even(typingctx: TypingContext, x: types.Type) -> Typed:
    """Return ``x`` with zeros in the odd lanes."""

    def codegen(context: Context, builder: IRBuilder, signature: Signature, args: Values) -> Value:
        numbers = [1.0 - i % 2 for i in range(LANES)]
        mask = ir.Constant(_VECTOR, [ir.Constant(_FLOAT, number) for number in numbers])
        return builder.fmul(args[0], mask)

    return vector(vector), codegen


def _fma(builder: IRBuilder, a: Value, b: Value, c: Value) -> Value:
    kind = ir.FunctionType(_VECTOR, [_VECTOR] * 3)
    function = cgutils.get_or_insert_function(builder.module, kind, f"llvm.fma.v{LANES}f32")
    return builder.call(function, [a, b, c])


@intrinsic
def fma(typingctx: TypingContext, a: types.Type, b: types.Type, c: types.Type) -> Typed:
    """Return a * b + c, rounded once."""

    def codegen(context: Context, builder: IRBuilder, signature: Signature, args: Values) -> Value:
        return _fma(builder, *args)

    return vector(vector, vector, vector), codegen


# 2^f on [-1/2, 1/2]: minimax polynomial of degree 6 with the value 1 at 0, relative error 2e-9, so
# that float32 rounding is what remains and a channel with delta A = 0 does not decay at all.
_POLYNOMIAL = (1.0, 6.9314720e-01, 2.4022648e-01, 5.5503325e-02, 9.6184374e-03, 1.3398874e-03,
               1.5353362e-04)  # fmt: skip
#: Adding this to x rounds it to an integer, which then stands in the lowest bits of the sum.
_ROUND = 1.5 * 2.0**23


def _exp2(builder: IRBuilder, x: Value) -> Value:
    low, high = _constant(-126.0), _constant(127.0)
    x = builder.select(builder.fcmp_ordered("<", x, low), low, x)  # false for NaN
    x = builder.select(builder.fcmp_ordered(">", x, high), high, x)
    # Without fast-math flags, since (x + _ROUND) - _ROUND must not be simplified to x.
    rounded = builder.fadd(x, _constant(_ROUND))
    f = builder.fsub(x, builder.fsub(rounded, _constant(_ROUND)))
    # Estrin's scheme: pairs of coefficients side by side, for a short chain of operations.
    c = [_constant(coefficient) for coefficient in _POLYNOMIAL]
    f2 = builder.fmul(f, f)
    p01, p23, p45 = (_fma(builder, c[i + 1], f, c[i]) for i in (0, 2, 4))
    p456 = _fma(builder, c[6], f2, p45)
    p = _fma(builder, _fma(builder, p456, f2, p23), f2, p01)
    whole = builder.shl(builder.bitcast(rounded, _INTEGERS), _constant(23))
    power = builder.add(whole, _constant(127 << 23))
    return builder.fmul(p, builder.bitcast(power, _VECTOR))


@intrinsic
def exp2(typingctx: TypingContext, x: types.Type) -> Typed:
    """Return 2^x lane by lane; x is clamped to [-126, 127], NaN stays NaN."""

    def codegen(context: Context, builder: IRBuilder, signature: Signature, args: Values) -> Value:
        return _exp2(builder, args[0])

    return vector(vector), codegen


@intrinsic
def sigmoid(typingctx: TypingContext, x: types.Type) -> Typed:
    """Return 1 / (1 + exp(-x)) lane by lane."""

    def codegen(context: Context, builder: IRBuilder, signature: Signature, args: Values) -> Value:
        e = _exp2(builder, builder.fmul(args[0], _constant(-float(LOG2E))))
        return builder.fdiv(_constant(1.0), builder.fadd(_constant(1.0), e))

    return vector(vector), codegen


def _binary(operation: Callable[[Any, Any], Any], instruction: str) -> None:
    @type_callable(operation)
    def type_of(context: TypingContext) -> Callable[..., Float32x16 | None]:
        def typer(a: types.Type, b: types.Type) -> Float32x16 | None:
            return vector if a == vector and b == vector else None

        return typer

    @lower_builtin(operation, vector, vector)
    def lower(context: Context, builder: IRBuilder, signature: Signature, args: Values) -> Value:
        return getattr(builder, instruction)(*args)


_binary(operator.mul, "fmul")
_binary(operator.add, "fadd")


@type_callable(operator.neg)
def _type_of_negative(context: TypingContext) -> Callable[..., Float32x16 | None]:
    def typer(x: types.Type) -> Float32x16 | None:
        return vector if x == vector else None

    return typer


@lower_builtin(operator.neg, vector)
def _lower_negative(
    context: Context, builder: IRBuilder, signature: Signature, args: Values
) -> Value:
    return builder.fneg(args[0])
