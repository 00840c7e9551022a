"""The matrix product in compiled code.

Each output is one chain, ((start + x0*w0) + x1*w1) + …, rounded once a step: its bits follow from its own row alone,
whatever rows are computed beside it. Weights are read in the order in which they lie, once for as many rows as there
are registers for.
"""

import numpy as np

from services.inference.cpu.aligned import Floats, aligned
from services.inference.cpu.compilation import compiled
from services.inference.cpu.team import Team, parts
from services.inference.cpu.tiles import product_block
from services.inference.cpu.vectors import LANES

_VECTORS = 2
BLOCK = _VECTORS * LANES
"""Outputs that are computed together: rows of numbers are stored in whole blocks, with zeros at their ends."""

# Few vectors and many rows: a number of the weight, which comes from afar, goes into as many sums as there are rows.
_multiply_block = product_block(_VECTORS, (12, 8, 4, 2) if LANES == 16 else (4, 2))


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
    return aligned([blocks.transpose(0, 2, 1).reshape(-1)])


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
    numbers = (x_row, rows, 1, 0, inputs, BLOCK, y_row, BLOCK, int(adds))
    for first in range(0, outputs, BLOCK):
        _multiply_block(x, x0, weight, w0 + first * inputs, bias, b0 + first, y, y0 + first, numbers)


@compiled
def multiply_together(
    x: Floats, x_row: int, rows: int, inputs: int, weight: Floats, w0: int, b0: int,
    y: Floats, y_row: int, adds: bool, team: Team, phase: int,
) -> None:  # fmt: skip
    """A phase of a team: `multiply` of rows that fill x and y, by all outputs of a row of y; the bias lies at b0."""
    for first, end in parts(team, phase, y_row // BLOCK):
        output = first * BLOCK
        multiply(
            x, 0, x_row, rows, inputs, weight, w0 + output * inputs, weight, b0 + output,
            (end - first) * BLOCK, y, output, y_row, adds,
        )  # fmt: skip
