"""The matrix product in compiled code.

Each output is one chain, ((start + x0*w0) + x1*w1) + …, rounded once a step: its bits follow from its own row alone,
whatever rows are computed beside it. Weights are read in the order in which they lie, once for four rows.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from services.inference.cpu.compilation import compiled, inlined
from services.inference.cpu.vectors import LANES, fma, load, splat, store

Floats = NDArray[np.float32]
Outputs = tuple[Any, Any, Any, Any]

BLOCK = 4 * LANES
"""Outputs that are computed together: rows of numbers are stored in whole blocks, with zeros at their ends."""


@compiled
def in_blocks(count: int) -> int:
    """Numbers that a row of `count` takes."""
    return -(-count // BLOCK) * BLOCK


def padded(vector: Floats) -> Floats:
    """A vector, stored in whole blocks."""
    return np.pad(vector, (0, in_blocks(len(vector)) - len(vector)))


def laid_out(weight: Floats) -> Floats:
    """weight [outputs, inputs] as `multiply` reads it: [blocks of outputs, inputs, BLOCK], flat."""
    outputs, inputs = weight.shape
    blocks = np.pad(weight, ((0, in_blocks(outputs) - outputs), (0, 0))).reshape(-1, BLOCK, inputs)
    return np.ascontiguousarray(blocks.transpose(0, 2, 1)).reshape(-1)


@compiled
def multiply(
    x: Floats, x0: int, x_row: int, rows: int, inputs: int,
    weight: Floats, w0: int, bias: Floats, b0: int, outputs: int,
    y: Floats, y0: int, y_row: int, adds: bool,
) -> None:  # fmt: skip
    """y = x @ weight + bias, or what is added to y: all arrays flat, each with where it begins.

    x has rows of `inputs`, x_row apart; y of whole blocks of `outputs`, y_row apart; `weight` is `laid_out`, `bias`
    `padded`.
    """
    last = rows - 1
    for block in range((outputs + BLOCK - 1) // BLOCK):
        w, b, out = w0 + block * inputs * BLOCK, b0 + block * BLOCK, y0 + block * BLOCK
        for row in range(0, rows, 4):
            if row == last:
                _one(x, x0 + row * x_row, inputs, weight, w, bias, b, y, out + row * y_row, adds)
            else:
                # Past the end the last row is computed again, to the same bits.
                second, third, fourth = row + 1, min(row + 2, last), min(row + 3, last)
                _four(
                    x, x0 + row * x_row, x0 + second * x_row, x0 + third * x_row, x0 + fourth * x_row, inputs,
                    weight, w, bias, b,
                    y, out + row * y_row, out + second * y_row, out + third * y_row, out + fourth * y_row, adds,
                )  # fmt: skip


@inlined
def _one(
    x: Floats, x0: int, inputs: int, weight: Floats, w0: int, bias: Floats, b0: int, y: Floats, y0: int, adds: bool
) -> None:
    total = _start(bias, b0, y, y0, adds)
    for k in range(inputs):
        total = _step(total, x[x0 + k], weight, w0 + k * BLOCK)
    _finish(total, y, y0)


@inlined
def _four(
    x: Floats, x0: int, x1: int, x2: int, x3: int, inputs: int,
    weight: Floats, w0: int, bias: Floats, b0: int,
    y: Floats, y0: int, y1: int, y2: int, y3: int, adds: bool,
) -> None:  # fmt: skip
    first, second = _start(bias, b0, y, y0, adds), _start(bias, b0, y, y1, adds)
    third, fourth = _start(bias, b0, y, y2, adds), _start(bias, b0, y, y3, adds)
    for k in range(inputs):
        w = w0 + k * BLOCK
        first = _step(first, x[x0 + k], weight, w)
        second = _step(second, x[x1 + k], weight, w)
        third = _step(third, x[x2 + k], weight, w)
        fourth = _step(fourth, x[x3 + k], weight, w)
    _finish(first, y, y0)
    _finish(second, y, y1)
    _finish(third, y, y2)
    _finish(fourth, y, y3)


@inlined
def _start(bias: Floats, b0: int, y: Floats, y0: int, adds: bool) -> Outputs:
    a, b, c, d = load(bias, b0), load(bias, b0 + LANES), load(bias, b0 + 2 * LANES), load(bias, b0 + 3 * LANES)
    if adds:
        a, b = a + load(y, y0), b + load(y, y0 + LANES)
        c, d = c + load(y, y0 + 2 * LANES), d + load(y, y0 + 3 * LANES)
    return a, b, c, d


@inlined
def _step(total: Outputs, value: Any, weight: Floats, w: int) -> Outputs:
    values = splat(value)
    return (
        fma(values, load(weight, w), total[0]),
        fma(values, load(weight, w + LANES), total[1]),
        fma(values, load(weight, w + 2 * LANES), total[2]),
        fma(values, load(weight, w + 3 * LANES), total[3]),
    )


@inlined
def _finish(total: Outputs, y: Floats, y0: int) -> None:
    store(y, y0, total[0])
    store(y, y0 + LANES, total[1])
    store(y, y0 + 2 * LANES, total[2])
    store(y, y0 + 3 * LANES, total[3])
