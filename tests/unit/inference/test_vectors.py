"""Vectors in compiled code: numpy's arithmetic, place by place."""

import numpy as np
import pytest
from numpy.typing import NDArray

from services.inference.cpu import vectors
from services.inference.cpu.compilation import compiled
from services.inference.cpu.vectors import LANES

Floats = NDArray[np.float32]


def numbers(seed: int, count: int = LANES) -> Floats:
    return np.random.default_rng(seed).normal(0, 3, count).astype(np.float32)


@compiled
def arithmetic(a: Floats, b: Floats, c: Floats, found: Floats) -> None:
    x, y, z = vectors.load(a, 0), vectors.load(b, 0), vectors.load(c, 0)
    vectors.store(found, 0 * LANES, x + y)
    vectors.store(found, 1 * LANES, x - y)
    vectors.store(found, 2 * LANES, x * y)
    vectors.store(found, 3 * LANES, x / y)
    vectors.store(found, 4 * LANES, vectors.fma(x, y, z))
    vectors.store(found, 5 * LANES, vectors.lesser(x, y))
    vectors.store(found, 6 * LANES, vectors.greater(x, y))
    vectors.store(found, 7 * LANES, vectors.splat(a[1]))


@compiled
def folded(a: Floats, b: Floats) -> tuple[float, float, int]:
    x, y = vectors.load(a, 0), vectors.load(b, 0)
    return vectors.total(x), vectors.largest(x), vectors.count_at_least(x, y)


@compiled
def exp(x: Floats, y: Floats) -> None:
    for index in range(0, len(x), LANES):
        vectors.store(y, index, vectors.exp(vectors.load(x, index)))


@compiled
def exp2(x: Floats, y: Floats) -> None:
    for index in range(0, len(x), LANES):
        vectors.store(y, index, vectors.exp2(vectors.load(x, index)))


@pytest.mark.parametrize("seed", range(5))
def test_arithmetic_is_numpys(seed: int) -> None:
    a, b, c = (numbers(3 * seed + index) for index in range(3))
    found = np.empty(8 * LANES, np.float32)
    arithmetic(a, b, c, found)
    once = (a.astype(np.float64) * b + c).astype(np.float32)
    expected = [a + b, a - b, a * b, a / b, once, np.minimum(a, b), np.maximum(a, b), np.full(LANES, a[1])]
    assert np.array_equal(found.reshape(8, LANES), np.array(expected, np.float32))


@pytest.mark.parametrize("seed", range(5))
def test_a_vector_folds_to_a_number(seed: int) -> None:
    a, b = numbers(seed), numbers(seed + 1)
    total, largest, count = folded(a, b)
    assert total == pytest.approx(float(a.astype(np.float64).sum()), rel=1e-5, abs=1e-5)
    assert (largest, count) == (a.max(), int((a >= b).sum()))


def test_numbers_are_read_and_written_at_any_place() -> None:
    @compiled
    def copy(source: Floats, first: int, target: Floats, begin: int) -> None:
        vectors.store(target, begin, vectors.load(source, first))

    source = numbers(0, 3 * LANES)
    for first, begin in ((0, 1), (3, 7), (LANES + 1, 0)):
        target = np.zeros(3 * LANES, np.float32)
        copy(source, first, target, begin)
        assert np.array_equal(target[begin : begin + LANES], source[first : first + LANES])
        assert not np.delete(target, np.arange(begin, begin + LANES)).any()


def test_exp_is_within_two_units_in_the_last_place() -> None:
    x = np.linspace(-87, 88, 100 * LANES).astype(np.float32)
    found = np.empty_like(x)
    exp(x, found)
    exact = np.exp(x.astype(np.float64))
    assert (np.abs(found - exact) <= 2 * np.spacing(exact.astype(np.float32))).all()


def test_exp_beyond_what_a_float_holds_is_that_of_the_end() -> None:
    x = np.resize(np.array([-np.inf, -1e30, -88, 89, 1e30, np.inf], np.float32), LANES)
    found = np.empty_like(x)
    exp(x, found)
    assert np.isfinite(found).all()
    assert (found[x < 0] < 2e-38).all()
    assert (found[x > 0] > 1e38).all()


def test_exp2_is_within_three_units_in_the_last_place() -> None:
    x = np.linspace(-126, 127, 100 * LANES).astype(np.float32)
    found = np.empty_like(x)
    exp2(x, found)
    exact = np.exp2(x.astype(np.float64))
    assert (np.abs(found - exact) <= 3 * np.spacing(exact.astype(np.float32))).all()


def test_exp2_of_whole_numbers_is_exact_and_below_the_least_that_of_the_least() -> None:
    x = np.resize(np.array([-np.inf, -1e30, -127, -126, -3, 0, 1, 100], np.float32), LANES)
    found = np.empty_like(x)
    exp2(x, found)
    assert np.array_equal(found, np.exp2(np.maximum(x, -126)))
