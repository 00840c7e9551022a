"""GELU in compiled code."""

import math

import numpy as np

from services.inference.cpu.aligned import Floats
from services.inference.cpu.compilation import compiled, inlined
from services.inference.cpu.vectors import LANES, Vector, exp, fma, load, splat, store, where_above_zero


@compiled
def gelu(x: Floats, x0: int, count: int) -> None:
    """Numbers times the share of a normal distribution below them, in place: `count` from x0 on, in whole vectors."""
    for k in range(x0, x0 + count, LANES):
        part = load(x, k)
        store(x, k, part * _share_below(part))


# Abramowitz and Stegun, Handbook of Mathematical Functions, 7.1.26: 1 - erf(z) = t (a1 + a2 t + …) e^(-z²) with
# t = 1 / (1 + p z), for z from 0 on, within 1.5e-7.
_P = np.float32(0.3275911)
_A = tuple(map(np.float32, (1.061405429, -1.453152027, 1.421413741, -0.284496736, 0.254829592)))
_ROOT_HALF = np.float32(math.sqrt(0.5))


@inlined
def _share_below(x: Vector) -> Vector:
    """The share of a normal distribution below x, (1 + erf(x / √2)) / 2, within 2e-7."""
    zero, one = splat(np.float32(0)), splat(np.float32(1))
    z = where_above_zero(x, x, zero - x) * splat(_ROOT_HALF)
    t = one / fma(splat(_P), z, one)
    series = splat(_A[0])
    for term in _A[1:]:
        series = fma(series, t, splat(term))
    beyond = splat(np.float32(0.5)) * (series * t * exp(zero - z * z))
    return where_above_zero(x, one - beyond, beyond)
