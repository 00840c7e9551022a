"""Vectors of float32 in compiled code: what a register holds, with arithmetic of one rounding for each operation.

Loops over these say themselves which numbers are added in which order. A compiler that made vectors of plain loops
would choose the order by the length of the loop, and a result's last bits would hang on what stands beside it.
"""

import operator
from collections.abc import Callable
from typing import Any

import numpy as np
from llvmlite import binding, ir
from numba import types
from numba.core import cgutils
from numba.core.datamodel import models
from numba.core.extending import intrinsic as _typed_intrinsic
from numba.core.extending import overload, register_model

from services.inference.cpu.compilation import inlined

intrinsic: Any = _typed_intrinsic

Vector = Any
"""LANES numbers of float32; in compiled code only."""


def _lanes() -> int:
    binding.initialize_native_target()
    return 16 if binding.get_host_cpu_features().get("avx512f") else 8


LANES = _lanes()
"""Numbers of a vector: as many as the widest register of this CPU holds, at least 8."""

AHEAD = 1024
"""Numbers between where memory is read and where it is asked for: farther than the processor looks by itself."""

REGISTER = ir.VectorType(ir.FloatType(), LANES)
"""A vector's type where compiled code is built instruction by instruction."""

_INTS = ir.VectorType(ir.IntType(32), LANES)
_LONGS = ir.VectorType(ir.IntType(64), LANES)


class _VectorType(types.Type):
    def __init__(self) -> None:
        super().__init__(f"float32x{LANES}")


_vector = _VectorType()


@register_model(_VectorType)
class _VectorModel(models.PrimitiveModel):
    def __init__(self, manager: Any, kind: _VectorType) -> None:
        super().__init__(manager, kind, REGISTER)


def _instruction(result: types.Type, *arguments: types.Type) -> Callable[[Callable[..., Any]], Any]:
    """A function of compiled code, defined by how it is built: function(builder, *values)."""

    def define(build: Callable[..., Any]) -> Any:
        def typed(*given: types.Type) -> Any:
            def generate(_context: Any, builder: Any, _signature: Any, values: Any) -> Any:
                return build(builder, *values)

            return (result(*arguments), generate) if given == arguments else None

        # numba asks for as many arguments by name.
        def of_one(_context: Any, a: Any) -> Any:
            return typed(a)

        def of_two(_context: Any, a: Any, b: Any) -> Any:
            return typed(a, b)

        def of_three(_context: Any, a: Any, b: Any, c: Any) -> Any:
            return typed(a, b, c)

        typing = (of_one, of_two, of_three)[len(arguments) - 1]
        typing.__name__, typing.__doc__ = build.__name__, build.__doc__
        return intrinsic(typing)

    return define


def _llvm(builder: Any, name: str, *values: Any) -> Any:
    kinds = [value.type for value in values]
    kind = ir.FunctionType(REGISTER, kinds)
    return builder.call(cgutils.get_or_insert_function(builder.module, kind, f"llvm.{name}.v{LANES}f32"), values)


def _address(context: Any, builder: Any, kind: types.Array, array: Any, index: Any) -> Any:
    """Of LANES numbers in an array of float32, which need not be aligned."""
    data = context.make_array(kind)(context, builder, array).data
    return builder.bitcast(builder.gep(data, [index]), REGISTER.as_pointer())


@intrinsic
def load(_context: Any, array: Any, _index: Any) -> Any:
    """LANES numbers of a flat array, from index on; nobody checks that they are there."""

    def generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        loaded = builder.load(_address(context, builder, signature.args[0], *values))
        loaded.align = 4
        return loaded

    return _vector(array, types.intp), generate


@intrinsic
def store(_context: Any, array: Any, _index: Any, _numbers: Any) -> Any:
    """Writes LANES numbers to a flat array, from index on; nobody checks that there is room."""

    def generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        stored = builder.store(values[2], _address(context, builder, signature.args[0], *values[:2]))
        stored.align = 4
        return context.get_dummy_value()

    return types.void(array, types.intp, _vector), generate


def register_splat(builder: Any, number: Any) -> Any:
    """Builds the same number in all places, where compiled code is written as such."""
    first = builder.insert_element(ir.Constant(REGISTER, ir.Undefined), number, ir.Constant(ir.IntType(32), 0))
    return builder.shuffle_vector(first, ir.Constant(REGISTER, ir.Undefined), ir.Constant(_INTS, [0] * LANES))


def register_fma(builder: Any, a: Any, b: Any, c: Any) -> Any:
    """Builds a * b + c, rounded once, where compiled code is written as such."""
    return _llvm(builder, "fma", a, b, c)


def register_prefetch(builder: Any, place: Any) -> None:
    """Builds the wish to have in the cache what lies at a pointer: nothing else happens, also where nothing lies."""
    byte, flag = ir.IntType(8).as_pointer(), ir.IntType(32)
    kind = ir.FunctionType(ir.VoidType(), [byte, flag, flag, flag])
    fetch = cgutils.get_or_insert_function(builder.module, kind, "llvm.prefetch.p0i8")
    # To be read, as near as it can be, by data.
    builder.call(fetch, [builder.bitcast(place, byte), flag(0), flag(3), flag(1)])


@_instruction(_vector, types.float32)
def splat(builder: Any, number: Any) -> Any:
    """The same number in all places."""
    return register_splat(builder, number)


@_instruction(_vector, _vector, _vector, _vector)
def fma(builder: Any, a: Any, b: Any, c: Any) -> Any:
    """a * b + c, rounded once."""
    return register_fma(builder, a, b, c)


@_instruction(_vector, _vector, _vector)
def lesser(builder: Any, a: Any, b: Any) -> Any:
    """The smaller of two in each place; where a is no number: b."""
    return builder.select(builder.fcmp_ordered("<", a, b), a, b)


@_instruction(_vector, _vector, _vector)
def greater(builder: Any, a: Any, b: Any) -> Any:
    """The larger of two in each place; where a is no number: b."""
    return builder.select(builder.fcmp_ordered(">", a, b), a, b)


@_instruction(_vector, _vector, _vector, _vector)
def where_above_zero(builder: Any, x: Any, a: Any, b: Any) -> Any:
    """a where x is above 0 or no number, b elsewhere."""
    return builder.select(builder.fcmp_unordered(">", x, ir.Constant(REGISTER, [0.0] * LANES)), a, b)


@_instruction(_vector, _vector, types.int64)
def first_of(builder: Any, a: Any, count: Any) -> Any:
    """The first `count` places of a, and zeros behind them."""
    counts = builder.insert_element(ir.Constant(_LONGS, ir.Undefined), count, ir.Constant(ir.IntType(32), 0))
    counts = builder.shuffle_vector(counts, counts, ir.Constant(_INTS, [0] * LANES))
    kept = builder.icmp_signed("<", ir.Constant(_LONGS, list(range(LANES))), counts)
    return builder.select(kept, a, ir.Constant(REGISTER, [0.0] * LANES))


@_instruction(_vector, _vector, _vector)
def _times_power_of_two(builder: Any, a: Any, shifted: Any) -> Any:
    """a times 2 to the whole numbers that `_SHIFT` was added to, -126 to 127: these go into its exponents."""
    bits = builder.shl(builder.bitcast(shifted, _INTS), ir.Constant(_INTS, [23] * LANES))
    return builder.bitcast(builder.add(builder.bitcast(a, _INTS), bits), REGISTER)


@_instruction(types.int64, _vector, _vector)
def count_at_least(builder: Any, a: Any, b: Any) -> Any:
    """In how many places a is at least b."""
    places = builder.bitcast(builder.fcmp_ordered(">=", a, b), ir.IntType(LANES))
    return builder.zext(builder.ctpop(places), ir.IntType(64))


def _fold(builder: Any, a: Any, combine: Callable[[Any, Any], Any]) -> Any:
    """Combines halves with halves, until one number is left."""
    width = LANES
    while width > 1:
        width //= 2
        upper = ir.Constant(_INTS, [width + place if place < width else 0 for place in range(LANES)])
        a = combine(a, builder.shuffle_vector(a, a, upper))
    return builder.extract_element(a, ir.Constant(ir.IntType(32), 0))


@_instruction(types.float32, _vector)
def total(builder: Any, a: Any) -> Any:
    """The sum of all places, halves onto halves."""
    return _fold(builder, a, builder.fadd)


def _by_fours(row: int) -> tuple[int, int]:
    return row % 4, row


def _lower_halves(width: int) -> list[int]:
    """Of the parts of 2 * width numbers that two vectors have: the first `width` of each, as places in both.

    Small parts stay within their fours of places, since it costs more to move a number to another four.
    """
    if width >= 4:
        return [place // width * 2 * width + place % width for place in range(LANES)]
    step = 2 if width == 1 else 1
    return [place % 4 // 2 * LANES + place // 4 * 4 + place % 2 * step for place in range(LANES)]


@intrinsic
def totals(_context: Any, array: Any, _index: Any) -> Any:
    """The `total` of each of the LANES vectors that lie one behind the other from index on, to the same bits."""

    def generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        first = _address(context, builder, signature.args[0], *values)
        # In the order in which they end up one behind the other.
        rows = [builder.load(builder.gep(first, [ir.IntType(64)(row)])) for row in sorted(range(LANES), key=_by_fours)]
        for row in rows:
            row.align = 4
        # Each round halves the numbers that are left of a row, and puts two rows into one vector.
        width = LANES
        while width > 1:
            width //= 2
            lower = _lower_halves(width)
            halves = [ir.Constant(_INTS, places) for places in (lower, [place + width for place in lower])]
            rows = [
                builder.fadd(*(builder.shuffle_vector(a, b, half) for half in halves))
                for a, b in zip(rows[::2], rows[1::2], strict=True)
            ]
        return rows[0]

    return _vector(array, types.intp), generate


@intrinsic
def transpose(_context: Any, array: Any, _index: Any, _row: Any, turned: Any, _place: Any, _turned_row: Any) -> Any:
    """Writes LANES rows of LANES numbers, which begin at index and are _row apart, as columns of rows.

    What is read next is asked for ahead.
    """

    def generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        def line(array: int, number: int) -> Any:
            kind, (data, index, step) = signature.args[array], values[array : array + 3]
            return _address(context, builder, kind, data, builder.add(index, builder.mul(step, step.type(number))))

        for number in range(LANES):
            register_prefetch(builder, builder.gep(line(0, number), [ir.IntType(64)(AHEAD // LANES)]))
        rows = [builder.load(line(0, number)) for number in range(LANES)]
        for row in rows:
            row.align = 4
        # Blocks of `width` rows and numbers change places across the diagonal, of each two that lie side by side.
        width = LANES
        while width > 1:
            width //= 2
            places = range(LANES)
            upper = ir.Constant(_INTS, [place if not place & width else LANES + place - width for place in places])
            lower = ir.Constant(_INTS, [place + width if not place & width else LANES + place for place in places])
            for number in range(LANES):
                if not number & width:
                    pair = rows[number], rows[number + width]
                    rows[number] = builder.shuffle_vector(*pair, upper)
                    rows[number + width] = builder.shuffle_vector(*pair, lower)
        for number, row in enumerate(rows):
            builder.store(row, line(3, number)).align = 4
        return context.get_dummy_value()

    return types.void(array, types.intp, types.intp, turned, types.intp, types.intp), generate


@_instruction(types.float32, _vector)
def largest(builder: Any, a: Any) -> Any:
    """The largest of all places."""
    return _fold(builder, a, lambda x, y: builder.select(builder.fcmp_ordered(">", x, y), x, y))


@_instruction(_vector, _vector, _vector)
def _add(builder: Any, a: Any, b: Any) -> Any:
    return builder.fadd(a, b)


@_instruction(_vector, _vector, _vector)
def _subtract(builder: Any, a: Any, b: Any) -> Any:
    return builder.fsub(a, b)


@_instruction(_vector, _vector, _vector)
def _multiply(builder: Any, a: Any, b: Any) -> Any:
    return builder.fmul(a, b)


@_instruction(_vector, _vector, _vector)
def _divide(builder: Any, a: Any, b: Any) -> Any:
    return builder.fdiv(a, b)


def _operator(function: Callable[..., Any], instruction: Any) -> None:
    @overload(function, strict=False)
    def chosen(a: Any, b: Any) -> Any:
        if a == _vector and b == _vector:
            return lambda a, b: instruction(a, b)  # noqa: PLW0108 - numba reads the names of its arguments
        return None


_operator(operator.add, _add)
_operator(operator.sub, _subtract)
_operator(operator.mul, _multiply)
_operator(operator.truediv, _divide)

LOG2_E = np.float32(1.44269504088896341)
# ln 2 in two parts, the first of few bits: a whole number times it is exact.
_LN2_HIGH, _LN2_LOW = np.float32(0.693359375), np.float32(-2.12194440054690583e-4)
_LEAST, _MOST = np.float32(-87.0), np.float32(88.0)
# So large that what is added to it is rounded to a whole number, which then are its last bits.
_SHIFT = np.float32(3 << 22)
# Of the series for |rest| up to ln 2 / 2, the highest power first: the least relative error, 4e-9, for so few terms.
_TERMS = tuple(map(np.float32, (0.0013814540, 0.0083687451, 0.0416683908, 0.1666652040, 0.4999999343, 1, 1)))


@inlined
def exp(x: Vector) -> Vector:
    """e to x, within 2 units in the last place; below -87: at -87, above 88: at 88."""
    x = lesser(greater(x, splat(_LEAST)), splat(_MOST))
    shifted = fma(x, splat(LOG2_E), splat(_SHIFT))
    whole = shifted - splat(_SHIFT)
    rest = fma(whole, splat(-_LN2_LOW), fma(whole, splat(-_LN2_HIGH), x))
    series = splat(_TERMS[0])
    for term in _TERMS[1:]:
        series = fma(series, rest, splat(term))
    return _times_power_of_two(series, shifted)


# Of the series for 2 to |rest| up to 1/2, exact at 0: the least relative error, 9e-8, for so few terms.
_TERMS_OF_2 = tuple(map(np.float32, (0.0013264727, 0.009671513, 0.055507337, 0.24022242, 0.69314698, 1)))


@inlined
def exp2(x: Vector) -> Vector:
    """2 to x, within 3 units in the last place, for x up to 127; below -126: at -126."""
    x = greater(x, splat(np.float32(-126)))
    shifted = x + splat(_SHIFT)
    rest = x - (shifted - splat(_SHIFT))
    series = splat(_TERMS_OF_2[0])
    for term in _TERMS_OF_2[1:]:
        series = fma(series, rest, splat(term))
    return _times_power_of_two(series, shifted)
