"""Products of windows: right, dense, and each row's bits its own."""

from dataclasses import dataclass

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from services.inference.cpu.vectors import LANES
from services.inference.cpu.windows import (
    in_vectors,
    in_whole_vectors,
    laid_out_windows,
    multiply_rows,
    multiply_windows,
)


@dataclass(frozen=True)
class Windows:
    """A product of windows: `parts` of `rows`, of `taps` runs of `run` numbers, `tap_row` apart."""

    parts: int
    rows: int
    taps: int
    run: int
    x_row: int
    tap_row: int
    outputs: int
    y_row: int

    @property
    def x_part(self) -> int:
        """Numbers of a part's input."""
        return (self.rows - 1) * self.x_row + (self.taps - 1) * self.tap_row + self.run

    @property
    def y_part(self) -> int:
        """Numbers of a part's output, some behind it that are nobody's."""
        return self.rows * self.y_row + 3

    def random(self, seed: int) -> tuple[NDArray[np.float32], ...]:
        """Input, weight [outputs, numbers], bias, and what is there before."""
        numbers = np.random.default_rng(seed)
        shapes = ((self.parts, self.x_part), (self.outputs, self.taps * self.run), (self.outputs,))
        x, weight, bias = (numbers.standard_normal(shape, np.float32) for shape in shapes)
        return x, weight, bias, numbers.standard_normal(self.parts * self.y_part + LANES, np.float32)

    def multiply(
        self, x: NDArray[np.float32], weight: NDArray[np.float32], bias: NDArray[np.float32], y: NDArray[np.float32],
        *, adds: bool,
    ) -> NDArray[np.float32]:  # fmt: skip
        """What y becomes."""
        y = y.copy()
        multiply_windows(
            x.reshape(-1), 0, self.x_part, self.x_row, self.parts, self.rows, self.taps, self.tap_row, self.run,
            laid_out_windows(weight), 0, in_whole_vectors(bias), 0, self.outputs, y, 0, self.y_part, self.y_row, adds,
        )  # fmt: skip
        return y

    def window(self, part: NDArray[np.float32], row: int) -> NDArray[np.float32]:
        """What a row of a part sees."""
        begins = [row * self.x_row + tap * self.tap_row for tap in range(self.taps)]
        return np.concatenate([part[begin : begin + self.run] for begin in begins])


@st.composite
def windows(draw: st.DrawFn) -> Windows:
    """Of all sizes that differ in how they are computed."""
    outputs = draw(st.integers(1, 5 * LANES))
    return Windows(
        parts=draw(st.integers(1, 3)),
        rows=draw(st.integers(1, 19)),
        taps=draw(st.integers(1, 3)),
        run=draw(st.integers(1, 20)),
        x_row=draw(st.integers(0, 20)),
        tap_row=draw(st.integers(0, 20)),
        outputs=outputs,
        y_row=outputs + draw(st.integers(0, 2)),
    )


@given(windows(), st.booleans(), st.integers(0, 99))
def test_a_row_is_its_window_times_the_weight_and_nothing_else_is_written(
    shape: Windows, adds: bool, seed: int
) -> None:
    x, weight, bias, before = shape.random(seed)
    expected = before.astype(np.float64)
    for part in range(shape.parts):
        for row in range(shape.rows):
            begin = part * shape.y_part + row * shape.y_row
            product = weight.astype(np.float64) @ shape.window(x[part], row) + bias
            expected[begin : begin + shape.outputs] = product + adds * before[begin : begin + shape.outputs]
    given_ = shape.multiply(x, weight, bias, before, adds=adds)
    np.testing.assert_allclose(given_, expected, atol=2e-5, rtol=0)
    written = np.zeros(len(before), bool)
    for part in range(shape.parts):
        for row in range(shape.rows):
            begin = part * shape.y_part + row * shape.y_row
            written[begin : begin + shape.outputs] = True
    assert np.array_equal(given_[~written], before[~written])


@given(windows(), st.booleans(), st.integers(0, 99))
def test_a_row_has_the_same_bits_alone(shape: Windows, adds: bool, seed: int) -> None:
    x, weight, bias, before = shape.random(seed)
    together = shape.multiply(x, weight, bias, before, adds=adds)
    part, row = seed % shape.parts, seed % shape.rows
    begin = part * shape.y_part + row * shape.y_row
    single = Windows(1, 1, 1, shape.taps * shape.run, 0, 0, shape.outputs, shape.outputs)
    there = np.pad(before[begin : begin + shape.outputs], (0, LANES))
    alone = single.multiply(shape.window(x[part], row), weight, bias, there, adds=adds)
    assert np.array_equal(alone[: shape.outputs], together[begin : begin + shape.outputs])


@given(
    rows=st.integers(1, 19), inputs=st.integers(1, 20), outputs=st.integers(1, 5 * LANES), adds=st.booleans(),
    seed=st.integers(0, 99),
)  # fmt: skip
def test_a_weight_that_lies_in_rows_gives_the_bits_of_one_that_is_laid_out(
    rows: int, inputs: int, outputs: int, adds: bool, seed: int
) -> None:
    shape = Windows(1, rows, 1, inputs, inputs, 0, outputs, outputs)
    x, weight, bias, before = shape.random(seed)
    w_row = in_vectors(outputs) + 2
    lying = np.pad(weight.T, ((0, 0), (0, w_row - outputs))).reshape(-1)
    found = before.copy()
    multiply_rows(
        x.reshape(-1), 0, inputs, rows, inputs, lying, 0, w_row, in_whole_vectors(bias), 0, outputs,
        found, 0, outputs, adds,
    )  # fmt: skip
    assert np.array_equal(found, shape.multiply(x, weight, bias, before, adds=adds))
