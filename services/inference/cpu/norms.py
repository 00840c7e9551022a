"""Norms in compiled code: a row's bits follow from its own numbers alone, added in the order in which they lie."""

import math

import numpy as np

from services.inference.cpu.aligned import Floats
from services.inference.cpu.compilation import compiled
from services.inference.cpu.product import in_blocks
from services.inference.cpu.team import Team, parts
from services.inference.cpu.vectors import LANES, first_of, fma, load, splat, store, total


@compiled
def rms_norm(x: Floats, x0: int, width: int, weight: Floats, w0: int, epsilon: float, y: Floats) -> None:
    """The `width` numbers of x from x0 on over the root of the mean of their squares, times a weight, into y's x0."""
    squares = splat(np.float32(0))
    for k in range(0, width, LANES):
        part = load(x, x0 + k)
        squares = fma(part, part, squares)
    scale = splat(np.float32(1 / math.sqrt(total(squares) / width + epsilon)))
    for k in range(0, width, LANES):
        store(y, x0 + k, load(x, x0 + k) * scale * load(weight, w0 + k))


@compiled
def rms_norm_together(
    x: Floats, rows: int, width: int, weight: Floats, w0: int, epsilon: float, y: Floats, team: Team, phase: int
) -> None:
    """A phase of a team: `rms_norm` of rows in whole blocks, each into the same row of y."""
    for first, end in parts(team, phase, rows):
        for row in range(first, end):
            rms_norm(x, row * in_blocks(width), width, weight, w0, epsilon, y)


@compiled
def layer_norm(x: Floats, x0: int, width: int, weight: Floats, w0: int, b0: int, epsilon: float, y: Floats) -> None:
    """The `width` numbers of x from x0 on, behind which are zeros, less their mean over their deviation, into y's x0.

    w0, b0: where its weight and its bias begin, both in whole vectors.
    """
    sums = splat(np.float32(0))
    for k in range(0, width, LANES):
        sums = sums + load(x, x0 + k)
    mean = splat(np.float32(total(sums) / width))
    squares = splat(np.float32(0))
    for k in range(0, width, LANES):
        part = first_of(load(x, x0 + k) - mean, width - k)
        squares = fma(part, part, squares)
    scale = splat(np.float32(1 / math.sqrt(total(squares) / width + epsilon)))
    for k in range(0, width, LANES):
        store(y, x0 + k, fma((load(x, x0 + k) - mean) * scale, load(weight, w0 + k), load(weight, b0 + k)))


@compiled
def layer_norm_together(
    x: Floats,
    rows: int,
    width: int,
    weight: Floats,
    w0: int,
    b0: int,
    epsilon: float,
    y: Floats,
    team: Team,
    phase: int,
) -> None:
    """A phase of a team: `layer_norm` of rows in whole blocks, each into the same row of y."""
    for first, end in parts(team, phase, rows):
        for row in range(first, end):
            layer_norm(x, row * in_blocks(width), width, weight, w0, b0, epsilon, y)
