"""What queries see: right, and the same bits whatever queries stand beside them, wherever in a ring it lies."""

from dataclasses import dataclass
from typing import Self

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from services.inference.cpu.attention import attend, attend_in_ring, attention_room, score_room
from services.inference.cpu.compilation import compiled
from services.inference.cpu.vectors import LANES, load, store, total, totals, transpose

Floats = NDArray[np.float32]

COLUMNS = 300
RING = 70


@dataclass(frozen=True)
class Head:
    """A head's columns, of which the first `known` are numbers, and queries [rows, group, head_dim] that see them."""

    queries: Floats
    keys: Floats
    values: Floats

    @classmethod
    def random(cls, rows: int, group: int, head_dim: int, known: int, seed: int) -> Self:
        """Keys that some queries see far more of than of others."""
        numbers = np.random.default_rng(seed)
        columns = np.full((2, COLUMNS, head_dim), np.nan, np.float32)
        columns[:, :known] = numbers.standard_normal((2, known, head_dim), np.float32)
        return cls(numbers.standard_normal((rows, group, head_dim), np.float32) * 3, *columns)

    def seen(self, first: int, rows: int, count: int, more: int = 1) -> Floats:
        """What `rows` from `first` on see, where the first sees `count` columns, each `more` than the one before.

        Nothing else is written.
        """
        _, group, head_dim = self.queries.shape
        # Queries lie apart, as beside the keys and values of their own positions.
        query = np.pad(self.queries.reshape(len(self.queries), -1), ((0, 0), (0, 5)), constant_values=np.nan)
        seen = np.zeros((rows, group * head_dim + 3), np.float32)
        room = np.full(attention_room(rows * group, count + (rows - 1) * more, head_dim), np.nan, np.float32)
        attend(
            query.reshape(-1), first * query.shape[1], query.shape[1], rows, group, head_dim,
            np.concatenate((self.keys, self.values)).reshape(-1), 0, self.keys.size, count, more,
            room, seen.reshape(-1), 0, seen.shape[1],
        )  # fmt: skip
        assert not seen[:, group * head_dim :].any()
        return seen[:, : group * head_dim].reshape(rows, group, head_dim)

    def expected(self, count: int, more: int = 1) -> NDArray[np.float64]:
        """What all of them see, in float64."""
        seen = np.empty(self.queries.shape)
        for row, queries in enumerate(self.queries.astype(np.float64)):
            columns = count + row * more
            scores = queries @ self.keys[:columns].T / np.sqrt(queries.shape[1])
            shares = np.exp(scores - scores.max(axis=1, keepdims=True))
            seen[row] = shares / shares.sum(axis=1, keepdims=True) @ self.values[:columns]
        return seen


HEAD_DIMS = [4, 6, LANES, LANES + 2, 2 * LANES, 5 * LANES]
GROUPS, ROWS = st.integers(1, 9), st.integers(1, 20)
COUNTS = st.one_of(st.integers(1, COLUMNS - 20), st.sampled_from([LANES, 4 * LANES - 1, 4 * LANES, 4 * LANES + 1]))


@pytest.mark.parametrize("head_dim", HEAD_DIMS)
@given(group=GROUPS, rows=ROWS, count=COUNTS, seed=st.integers(0, 9))
def test_queries_see_the_softmax_of_their_columns(head_dim: int, group: int, rows: int, count: int, seed: int) -> None:
    head = Head.random(rows, group, head_dim, count + rows - 1, seed)
    np.testing.assert_allclose(head.seen(0, rows, count), head.expected(count), atol=1e-5, rtol=0)


@pytest.mark.parametrize("head_dim", HEAD_DIMS)
@given(group=GROUPS, rows=ROWS, count=COUNTS, seed=st.integers(0, 9), at=st.data())
def test_a_row_sees_the_same_bits_whatever_rows_are_computed_with_it(
    head_dim: int, group: int, rows: int, count: int, seed: int, at: st.DataObject
) -> None:
    head = Head.random(rows, group, head_dim, count + rows - 1, seed)
    together = head.seen(0, rows, count)
    first = at.draw(st.integers(0, rows - 1))
    some = at.draw(st.integers(1, rows - first))
    assert np.array_equal(head.seen(first, some, count + first), together[first : first + some])


@pytest.mark.parametrize("head_dim", HEAD_DIMS)
@given(group=GROUPS, rows=ROWS, count=COUNTS, seed=st.integers(0, 9), at=st.data())
def test_rows_may_see_the_same_columns(
    head_dim: int, group: int, rows: int, count: int, seed: int, at: st.DataObject
) -> None:
    head = Head.random(rows, group, head_dim, count, seed)
    together = head.seen(0, rows, count, more=0)
    np.testing.assert_allclose(together, head.expected(count, more=0), atol=1e-5, rtol=0)
    row = at.draw(st.integers(0, rows - 1))
    assert np.array_equal(head.seen(row, 1, count), together[row : row + 1])


@given(group=GROUPS, count=COUNTS, seed=st.integers(0, 9))
def test_a_query_sees_the_same_bits_whatever_heads_share_its_columns(group: int, count: int, seed: int) -> None:
    head = Head.random(1, group, 2 * LANES, count, seed)
    alone = Head(head.queries[:, -1:], head.keys, head.values)
    assert np.array_equal(alone.seen(0, 1, count), head.seen(0, 1, count)[:, -1:])


def seen_of(query: Floats, keys: Floats, values: Floats, first: int, count: int) -> Floats:
    """keys, values [RING, head_dim]."""
    head_dim = len(query)
    seen, scores = np.zeros(head_dim, np.float32), np.full(score_room(count), np.nan, np.float32)
    entries = np.concatenate((keys.reshape(-1), values.reshape(-1), np.zeros(LANES, np.float32)))
    attend_in_ring(query, 0, head_dim, entries, 0, RING * head_dim, first, count, RING, scores, seen, 0)
    return seen


@pytest.mark.parametrize("head_dim", [4, 6, LANES, LANES + 2, 2 * LANES])
@given(first=st.integers(0, RING - 1), count=st.integers(1, RING), seed=st.integers(0, 9))
def test_a_query_sees_the_softmax_of_its_columns_of_a_ring(head_dim: int, first: int, count: int, seed: int) -> None:
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
def _sums(x: Floats, together: Floats, alone: Floats) -> None:
    store(together, 0, totals(x, 0))
    for row in range(LANES):
        alone[row] = total(load(x, row * LANES))


def test_totals_are_those_of_each_vector() -> None:
    x = np.random.default_rng(0).standard_normal((LANES, LANES)).astype(np.float32)
    together, alone = np.zeros(LANES, np.float32), np.zeros(LANES, np.float32)
    _sums(x.reshape(-1), together, alone)
    assert np.array_equal(together, alone)
    np.testing.assert_allclose(alone, x.sum(axis=1), atol=1e-5)


@compiled
def _turned(x: Floats, first: int, row: int, y: Floats, place: int, turned_row: int) -> None:
    transpose(x, first, row, y, place, turned_row)


@given(first=st.integers(0, 5), row=st.integers(LANES, 3 * LANES), turned_row=st.integers(LANES, 3 * LANES))
def test_a_square_is_turned_where_it_lies(first: int, row: int, turned_row: int) -> None:
    x = np.arange(first + LANES * row, dtype=np.float32)
    y = np.full((LANES, turned_row), -1, np.float32)
    _turned(x, first, row, y.reshape(-1), 0, turned_row)
    assert np.array_equal(y[:, :LANES], x[first:].reshape(LANES, row)[:, :LANES].T)
    assert (y[:, LANES:] == -1).all()
