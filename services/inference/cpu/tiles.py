"""Tiles of a product in compiled code: some rows times some vectors of outputs, each tile a loop over registers."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils

from services.inference.cpu.vectors import (
    AHEAD,
    LANES,
    REGISTER,
    intrinsic,
    register_fma,
    register_prefetch,
    register_splat,
)

_INT = ir.IntType(64)


def product_block(vectors: int, row_counts: Sequence[int]) -> Any:
    """The function of compiled code that computes all rows of one block of so many vectors of outputs.

    row_counts: rows of a tile, and those of the last tiles where fewer are left. The weight is asked for ahead of where
    it is read, so that memory is waited for while the rows before are computed.

    It is called with x, x0, weight, w0, bias, b0, y, y0, numbers: arrays flat, each with where it begins. Numbers are
    x_row, rows, taps, tap_row, run, w_row, y_row, count, adds. Rows of x and y are x_row and y_row apart; a row times
    the weight are `taps` runs of `run` numbers of x, tap_row apart, times as many rows of the weight, which are w_row
    apart. Of a row of y `count` numbers are written, or added to where `adds` is not 0.
    """

    @intrinsic
    def compute(
        _context: Any, x: Any, _x0: Any, weight: Any, _w0: Any, bias: Any, _b0: Any, y: Any, _y0: Any, numbers: Any
    ) -> Any:
        return types.void(x, types.intp, weight, types.intp, bias, types.intp, y, types.intp, numbers), generate

    def generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        begins = [
            builder.gep(context.make_array(kind)(context, builder, array).data, [begin])
            for kind, array, begin in zip(signature.args[:8:2], values[:8:2], values[1:8:2], strict=True)
        ]
        numbers = [builder.extract_value(values[8], place) for place in range(9)]
        _Block(builder, vectors, row_counts, *begins, *numbers).build()
        return context.get_dummy_value()

    return compute


@dataclass(frozen=True)
class _Block:
    """Builds the loops over rows: past the end the last row is computed again, to the same bits."""

    builder: Any
    vectors: int
    row_counts: Sequence[int]
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
        builder, done, sizes = self.builder, _INT(0), self.row_counts
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
                for vector in vectors:
                    register_prefetch(builder, self._place(builder.gep(at, [_INT(AHEAD)]), vector))
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
