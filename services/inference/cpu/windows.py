"""Products of windows in compiled code: the rows overlap where they lie, as those of a convolution do.

As in `product`, each output is one chain, ((start + x0*w0) + x1*w1) + …, rounded once a step. Here outputs lie densely,
however few of them a row has, and the tiles fit their number.
"""

from typing import Any

import numpy as np

from services.inference.cpu.aligned import Floats
from services.inference.cpu.compilation import compiled, inlined
from services.inference.cpu.tiles import product_block
from services.inference.cpu.vectors import LANES

WIDEST = 4
"""Vectors of outputs that are computed together."""

# Rows of a tile for 1, 2, 3 and 4 vectors, and those of the last tile where few are left: chains enough to wait for no
# addition, and no more than there are registers for.
_ROWS = ((8, 4, 2), (8, 4, 2), (4, 2), (6, 4, 2)) if LANES == 16 else ((8, 4, 2), (4, 2), (3,), (2,))


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
    """One block of outputs; numbers: those of `product_block`."""
    vectors = in_vectors(numbers[7]) // LANES
    if vectors == 4:
        _four(x, x0, weight, w0, bias, b0, y, y0, numbers)
    elif vectors == 3:
        _three(x, x0, weight, w0, bias, b0, y, y0, numbers)
    elif vectors == 2:
        _two(x, x0, weight, w0, bias, b0, y, y0, numbers)
    else:
        _one(x, x0, weight, w0, bias, b0, y, y0, numbers)


_one, _two, _three, _four = (product_block(count, rows) for count, rows in enumerate(_ROWS, start=1))
