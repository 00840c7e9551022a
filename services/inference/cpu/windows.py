"""Products of windows in compiled code: the rows overlap where they lie, as those of a convolution do.

As in `product`, each output is one chain, ((start + x0*w0) + x1*w1) + …, rounded once a step. Here outputs lie densely,
however few of them a row has, and what is computed at once fits their number: tiles of rows times vectors, each tile a
loop over registers.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils

from services.inference.cpu.compilation import compiled, inlined
from services.inference.cpu.product import Floats
from services.inference.cpu.vectors import LANES, REGISTER, intrinsic, register_fma, register_splat

WIDEST = 4
"""Vectors of outputs that are computed together."""

# Rows of a tile for 1, 2, 3 and 4 vectors, and those of the last tile where few are left: chains enough to wait for no
# addition, and no more than there are registers for.
_ROWS = ((8, 4, 2), (8, 4, 2), (4, 2), (4, 2)) if LANES == 16 else ((8, 4, 2), (4, 2), (3,), (2,))

_INT = ir.IntType(64)


@compiled
def in_vectors(count: int) -> int:
    """Numbers of the vectors that a row of `count` takes."""
    return -(-count // LANES) * LANES


def in_whole_vectors(vector: Floats) -> Floats:
    """A vector with zeros behind it."""
    return np.pad(vector, (0, in_vectors(len(vector)) - len(vector)))


def laid_out_windows(weight: Floats) -> Floats:
    """weight [outputs, numbers of a window] as `multiply_windows` reads it: blocks of up to WIDEST vectors, flat."""
    blocks = []
    for first in range(0, len(weight), WIDEST * LANES):
        block = weight[first : first + WIDEST * LANES]
        blocks.append(np.pad(block, ((0, -len(block) % LANES), (0, 0))).T.reshape(-1))
    return np.concatenate(blocks)


@compiled
def multiply_windows(
    x: Floats, x0: int, x_part: int, x_row: int, parts: int, rows: int,
    taps: int, tap_row: int, run: int,
    weight: Floats, w0: int, bias: Floats, b0: int, outputs: int,
    y: Floats, y0: int, y_part: int, y_row: int, adds: bool,
) -> None:  # fmt: skip
    """y = windows @ weight + bias, or what is added to y: all arrays flat, each with where it begins.

    There are `parts` of `rows`; x_part and y_part, x_row and y_row are how far apart these begin. A window is `taps`
    runs of `run` numbers of x, tap_row apart. `weight` is `laid_out_windows`, `bias` `in_whole_vectors`. Only the
    `outputs` of a row are written, but up to a vector more is read of y where it is added to.
    """
    for first in range(0, outputs, WIDEST * LANES):
        count = min(outputs - first, WIDEST * LANES)
        w_row = in_vectors(count)
        numbers = (x_row, rows, taps, tap_row, run, w_row, y_row, count, int(adds))
        for part in range(parts):
            source, target = x0 + part * x_part, y0 + part * y_part + first
            _multiply_block(x, source, weight, w0, bias, b0 + first, y, target, numbers)
        w0 += taps * run * w_row


@compiled
def multiply_rows(
    x: Floats, x0: int, x_row: int, rows: int, inputs: int,
    weight: Floats, w0: int, w_row: int, bias: Floats, b0: int, outputs: int,
    y: Floats, y0: int, y_row: int, adds: bool,
) -> None:  # fmt: skip
    """y = x @ weight + bias, or what is added to y, for a weight that lies as [inputs, outputs], in rows w_row apart.

    The rest is as in `multiply_windows`; of the weight's rows, too, up to a vector more is read.
    """
    for first in range(0, outputs, WIDEST * LANES):
        count = min(outputs - first, WIDEST * LANES)
        numbers = (x_row, rows, 1, 0, inputs, w_row, y_row, count, int(adds))
        _multiply_block(x, x0, weight, w0 + first, bias, b0 + first, y, y0 + first, numbers)


@inlined
def _multiply_block(
    x: Floats, x0: int, weight: Floats, w0: int, bias: Floats, b0: int, y: Floats, y0: int, numbers: Any
) -> None:
    """One block of outputs; numbers: those of `_Block`."""
    vectors = in_vectors(numbers[7]) // LANES
    if vectors == 4:
        _four(x, x0, weight, w0, bias, b0, y, y0, numbers)
    elif vectors == 3:
        _three(x, x0, weight, w0, bias, b0, y, y0, numbers)
    elif vectors == 2:
        _two(x, x0, weight, w0, bias, b0, y, y0, numbers)
    else:
        _one(x, x0, weight, w0, bias, b0, y, y0, numbers)


def _block(vectors: int) -> Any:
    """The function of compiled code that computes all rows of one block of so many vectors."""

    @intrinsic
    def block(
        _context: Any, x: Any, _x0: Any, weight: Any, _w0: Any, bias: Any, _b0: Any, y: Any, _y0: Any, numbers: Any
    ) -> Any:
        return types.void(x, types.intp, weight, types.intp, bias, types.intp, y, types.intp, numbers), generate

    def generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        begins = [
            builder.gep(context.make_array(kind)(context, builder, array).data, [begin])
            for kind, array, begin in zip(signature.args[:8:2], values[:8:2], values[1:8:2], strict=True)
        ]
        numbers = [builder.extract_value(values[8], place) for place in range(9)]
        _Block(builder, vectors, *begins, *numbers).build()
        return context.get_dummy_value()

    return block


@dataclass(frozen=True)
class _Block:
    """Builds the loops over rows: past the end the last row is computed again, to the same bits."""

    builder: Any
    vectors: int
    x: Any
    weight: Any
    bias: Any
    y: Any
    x_row: Any
    rows: Any
    taps: Any
    tap_row: Any
    run: Any
    w_row: Any
    y_row: Any
    count: Any
    adds: Any

    def build(self) -> None:
        builder, done, sizes = self.builder, _INT(0), _ROWS[self.vectors - 1]
        for size, smaller in zip(sizes, (*sizes[1:], 0), strict=True):
            # As many as leave no more than a smaller one takes.
            missing = builder.add(builder.sub(self.rows, done), _INT(size - 1 - smaller))
            tiles = builder.sdiv(missing, _INT(size))
            with cgutils.for_range(builder, tiles) as loop:
                self._tile(size, builder.add(done, builder.mul(loop.index, _INT(size))))
            done = builder.add(done, builder.mul(tiles, _INT(size)))

    def _tile(self, size: int, first: Any) -> None:
        """Computes `size` rows from `first` on."""
        builder, vectors = self.builder, range(self.vectors)
        last = builder.sub(self.rows, _INT(1))
        rows = [self._lesser(builder.add(first, _INT(row)), last) for row in range(size)]
        sources = [builder.gep(self.x, [builder.mul(row, self.x_row)]) for row in rows]
        targets = [builder.gep(self.y, [builder.mul(row, self.y_row)]) for row in rows]
        places = [[cgutils.alloca_once(builder, REGISTER) for _ in vectors] for _ in rows]
        for vector in vectors:
            start = self._load(self.bias, vector)
            for row in places:
                builder.store(start, row[vector])
        with builder.if_then(builder.icmp_signed("!=", self.adds, _INT(0))):
            for row, target in zip(places, targets, strict=True):
                for vector in vectors:
                    builder.store(builder.fadd(builder.load(row[vector]), self._load(target, vector)), row[vector])
        with cgutils.for_range(builder, self.taps) as tap:
            offset = builder.mul(tap.index, self.tap_row)
            weights = builder.gep(self.weight, [builder.mul(tap.index, self._numbers(self.run))])
            runs = [builder.gep(source, [offset]) for source in sources]
            with cgutils.for_range(builder, self.run) as step:
                at = builder.gep(weights, [self._numbers(step.index)])
                factors = [self._load(at, vector) for vector in vectors]
                for row, run in zip(places, runs, strict=True):
                    number = register_splat(builder, builder.load(builder.gep(run, [step.index])))
                    for vector in vectors:
                        total = register_fma(builder, number, factors[vector], builder.load(row[vector]))
                        builder.store(total, row[vector])
        for row, target in zip(places, targets, strict=True):
            self._keep([builder.load(place) for place in row], target)

    def _numbers(self, inputs: Any) -> Any:
        """Numbers of the weight up to the row of an input."""
        return self.builder.mul(inputs, self.w_row)

    def _keep(self, totals: list[Any], target: Any) -> None:
        """Writes the outputs of a row."""
        builder, last = self.builder, len(totals) - 1
        rest = builder.sub(self.count, _INT(last * LANES))
        for vector, total in enumerate(totals[:-1]):
            self._store(total, target, vector)
        with builder.if_else(builder.icmp_signed(">=", rest, _INT(LANES))) as (whole, partly):
            with whole:
                self._store(totals[last], target, last)
            with partly:
                place = cgutils.alloca_once(builder, REGISTER)
                builder.store(totals[last], place)
                numbers = builder.bitcast(place, ir.FloatType().as_pointer())
                with cgutils.for_range(builder, rest) as lane:
                    end = builder.gep(target, [builder.add(lane.index, _INT(last * LANES))])
                    builder.store(builder.load(builder.gep(numbers, [lane.index])), end)

    def _lesser(self, a: Any, b: Any) -> Any:
        return self.builder.select(self.builder.icmp_signed("<", a, b), a, b)

    def _place(self, pointer: Any, vector: int) -> Any:
        return self.builder.bitcast(self.builder.gep(pointer, [_INT(vector * LANES)]), REGISTER.as_pointer())

    def _load(self, pointer: Any, vector: int) -> Any:
        loaded = self.builder.load(self._place(pointer, vector))
        loaded.align = 4
        return loaded

    def _store(self, total: Any, pointer: Any, vector: int) -> None:
        self.builder.store(total, self._place(pointer, vector)).align = 4


_one, _two, _three, _four = map(_block, (1, 2, 3, 4))
