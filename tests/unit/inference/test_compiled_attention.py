"""What a query sees of a ring: right, and the same bits wherever in the ring it lies."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from services.inference.cpu.compilation import compiled
from services.inference.cpu.stack import attend, score_room
from services.inference.cpu.vectors import LANES, load, store, total, totals

RING = 70


def seen_of(
    query: NDArray[np.float32], keys: NDArray[np.float32], values: NDArray[np.float32], first: int, count: int
) -> NDArray[np.float32]:
    """keys, values [RING, head_dim]."""
    head_dim = len(query)
    seen, scores = np.zeros(head_dim, np.float32), np.full(score_room(count), np.nan, np.float32)
    entries = np.concatenate((keys.reshape(-1), values.reshape(-1), np.zeros(LANES, np.float32)))
    attend(query, 0, head_dim, entries, 0, RING * head_dim, first, count, RING, scores, seen, 0)
    return seen


@pytest.mark.parametrize("head_dim", [4, 6, LANES, LANES + 2, 2 * LANES])
@given(first=st.integers(0, RING - 1), count=st.integers(1, RING), seed=st.integers(0, 9))
def test_a_query_sees_the_softmax_of_its_columns(head_dim: int, first: int, count: int, seed: int) -> None:
    numbers = np.random.default_rng(seed)
    query = numbers.standard_normal(head_dim, np.float32) * 3
    keys, values = numbers.standard_normal((2, count, head_dim), np.float32)
    rings = np.full((2, RING, head_dim), np.nan, np.float32)
    places = (first + np.arange(count)) % RING
    rings[0, places], rings[1, places] = keys, values
    seen = seen_of(query, *rings, first, count)
    scores = keys.astype(np.float64) @ query / np.sqrt(head_dim)
    shares = np.exp(scores - scores.max())
    np.testing.assert_allclose(seen, shares / shares.sum() @ values, atol=1e-5, rtol=0)
    rings[0, :count], rings[1, :count] = keys, values
    assert np.array_equal(seen, seen_of(query, *rings, 0, count))


@compiled
def _sums(x: NDArray[np.float32], together: NDArray[np.float32], alone: NDArray[np.float32]) -> None:
    store(together, 0, totals(x, 0))
    for row in range(LANES):
        alone[row] = total(load(x, row * LANES))


def test_totals_are_those_of_each_vector() -> None:
    x = np.random.default_rng(0).standard_normal((LANES, LANES)).astype(np.float32)
    together, alone = np.zeros(LANES, np.float32), np.zeros(LANES, np.float32)
    _sums(x.reshape(-1), together, alone)
    assert np.array_equal(together, alone)
    np.testing.assert_allclose(alone, x.sum(axis=1), atol=1e-5)
