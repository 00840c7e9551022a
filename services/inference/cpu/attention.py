"""Attention in compiled code.

A query's result is the same bits whatever queries stand beside it: its product with a key is one chain over the head's
numbers, what it sees one chain over its columns, and the softmax between them goes by its columns alone.
"""

import math
from typing import Any

import numpy as np

from services.inference.cpu.aligned import Floats
from services.inference.cpu.compilation import compiled, inlined
from services.inference.cpu.vectors import (
    LANES,
    LOG2_E,
    exp2,
    fma,
    greater,
    largest,
    load,
    splat,
    store,
    total,
    totals,
    transpose,
)  # fmt: skip
from services.inference.cpu.windows import WIDEST, in_vectors, multiply_rows

QUERIES = 64
"""More queries should not be given at once: their scores would no longer lie where they are read fast."""

_TILE = WIDEST * LANES
"""Columns whose keys are laid out at once."""


@compiled
def attention_room(queries: int, columns: int, head_dim: int) -> int:
    """Numbers that `attend` needs for so many queries that see up to so many columns."""
    width = in_vectors(head_dim)
    rows = in_vectors(queries * head_dim) + in_vectors(queries) + queries * (width + in_vectors(columns) + LANES)
    return rows + 2 * width * _TILE + max(width, _TILE)


@compiled
def attend(
    query: Floats, q0: int, q_row: int, rows: int, group: int, head_dim: int,
    entries: Floats, keys: int, values: int, count: int, more: int, room: Floats, seen: Floats, s0: int, s_row: int,
) -> None:  # fmt: skip
    """What queries see in the columns of a head: the softmax of their products with the keys, times the values.

    There are `rows`, q_row apart, of `group` queries each. keys, values: where the columns begin in `entries`. The
    first row sees `count` columns, each row `more` than the row before: 1, or 0 where all see the same. room: of
    `attention_room`. What a row sees goes into a row of `seen`; these are s_row apart.
    """
    queries, most, width = rows * group, count + (rows - 1) * more, in_vectors(head_dim)
    stride = in_vectors(most) + LANES
    sums = in_vectors(queries * head_dim)
    shares = sums + queries * width
    scores = shares + in_vectors(queries)
    copied = scores + queries * stride
    turned = copied + width * _TILE
    zeros = turned + width * _TILE
    for k in range(0, max(width, _TILE), LANES):
        store(room, zeros + k, splat(np.float32(0)))
    for row in range(rows):
        _copy(query, q0 + row * q_row, group * head_dim, room, row * group * head_dim)
    for begin in range(0, most, _TILE):
        columns = min(most - begin, _TILE)
        place, lanes = keys + begin * head_dim, in_vectors(columns)
        if _can_be_read(entries, place, columns, head_dim):
            _turn(entries, place, width, lanes, room, turned)
        else:
            _copy_columns(entries, place, columns, head_dim, room, copied)
            _turn(room, copied, width, lanes, room, turned)
        multiply_rows(
            room, 0, head_dim, queries, head_dim, room, turned, lanes, room, zeros, lanes,
            room, scores + begin, stride, False,
        )  # fmt: skip
    for index in range(queries):
        room[shares + index] = _weigh(room, scores + index * stride, count + index // group * more, head_dim)
    for begin in range(0, most, _TILE):
        columns, place = min(most - begin, _TILE), values + begin * head_dim
        if _can_be_read(entries, place, columns, head_dim):
            _add(room, scores, stride, group, rows, begin, count, columns, entries, place, zeros, sums, width)
        else:
            _copy_columns(entries, place, columns, head_dim, room, copied)
            _add(room, scores, stride, group, rows, begin, count, columns, room, copied, zeros, sums, width)
    whole = head_dim - head_dim % LANES
    for index in range(queries):
        source, target = sums + index * width, s0 + index // group * s_row + index % group * head_dim
        for k in range(0, whole, LANES):
            store(seen, target + k, load(room, source + k) * splat(room[shares + index]))
        for k in range(whole, head_dim):
            seen[target + k] = room[source + k] * room[shares + index]


@inlined
def _can_be_read(entries: Floats, place: int, columns: int, head_dim: int) -> bool:
    """Whether whole vectors of columns, each of whole vectors, can be read where they lie."""
    return head_dim % LANES == 0 and place + in_vectors(columns) * head_dim <= len(entries)


@compiled
def _copy_columns(entries: Floats, place: int, columns: int, head_dim: int, room: Floats, copied: int) -> None:
    """Copies columns, each into whole vectors."""
    for column in range(columns):
        _copy(entries, place + column * head_dim, head_dim, room, copied + column * in_vectors(head_dim))


@inlined
def _copy(x: Floats, x0: int, count: int, y: Floats, y0: int) -> None:
    whole = count - count % LANES
    for k in range(0, whole, LANES):
        store(y, y0 + k, load(x, x0 + k))
    for k in range(whole, count):
        y[y0 + k] = x[x0 + k]


@inlined
def _turn(source: Floats, place: int, width: int, lanes: int, room: Floats, turned: int) -> None:
    """Lays keys out by numbers: rows of as many as there are columns."""
    for column in range(0, lanes, LANES):
        for k in range(0, width, LANES):
            transpose(source, place + column * width + k, width, room, turned + k * lanes + column, lanes)


@inlined
def _add(
    room: Floats, scores: int, stride: int, group: int, rows: int, begin: int, count: int, columns: int,
    source: Floats, place: int, zeros: int, sums: int, width: int,
) -> None:  # fmt: skip
    """Adds a tile of values to what the queries see: of each row those that it sees."""
    if begin + columns <= count:
        multiply_rows(
            room, scores + begin, stride, rows * group, columns, source, place, width, room, zeros, width,
            room, sums, width, begin > 0,
        )  # fmt: skip
    else:
        for row in range(max(begin + 1 - count, 0), rows):
            at = row * group
            multiply_rows(
                room, scores + at * stride + begin, stride, group, min(count + row - begin, columns),
                source, place, width, room, zeros, width, room, sums + at * width, width, begin > 0,
            )  # fmt: skip


@compiled
def attend_in_ring(
    query: Floats, q0: int, head_dim: int, entries: Floats, keys: int, values: int, first: int, count: int, ring: int,
    scores: Floats, seen: Floats, s0: int,
) -> None:  # fmt: skip
    """What one query sees in `count` columns of a ring: a query that shares its columns with none is quicker alone.

    keys, values: where the columns begin in `entries`, `ring` of them: behind the last, column 0 follows. The query
    sees those from `first` on, always in this order. scores: `score_room` for `count`.
    """
    whole = head_dim - head_dim % LANES
    last, products, begin = (ring - 1) * head_dim, count + LANES, first * head_dim
    for index in range(0, count, LANES):
        column = begin
        for k in range(0, whole, LANES):
            part, column = load(query, q0 + k), begin
            for place in range(products, products + min(LANES, count - index) * LANES, LANES):
                key = load(entries, keys + column + k)
                store(scores, place, part * key if k == 0 else fma(part, key, load(scores, place)))
                column = column + head_dim if column < last else 0
        begin = column
        store(scores, index, totals(scores, products))
    for k in range(whole, head_dim):
        column = first * head_dim
        for index in range(count):
            before = np.float32(0) if k == 0 else scores[index]
            scores[index] = before + query[q0 + k] * entries[keys + column + k]
            column = column + head_dim if column < last else 0
    share = _weigh(scores, 0, count, head_dim)
    for k in range(0, whole, LANES):
        column, zero = first * head_dim, splat(np.float32(0))
        one, two, three, four = zero, zero, zero, zero
        for index in range(0, count - count % 4, 4):
            one = fma(splat(scores[index]), load(entries, values + column + k), one)
            column = column + head_dim if column < last else 0
            two = fma(splat(scores[index + 1]), load(entries, values + column + k), two)
            column = column + head_dim if column < last else 0
            three = fma(splat(scores[index + 2]), load(entries, values + column + k), three)
            column = column + head_dim if column < last else 0
            four = fma(splat(scores[index + 3]), load(entries, values + column + k), four)
            column = column + head_dim if column < last else 0
        for index in range(count - count % 4, count):
            one = fma(splat(scores[index]), load(entries, values + column + k), one)
            column = column + head_dim if column < last else 0
        store(seen, s0 + k, ((one + two) + (three + four)) * splat(share))
    for k in range(whole, head_dim):
        column, sum_ = first * head_dim, np.float32(0)
        for index in range(count):
            sum_ += scores[index] * entries[values + column + k]
            column = column + head_dim if column < last else 0
        seen[s0 + k] = sum_ * share


@compiled
def score_room(count: int) -> int:
    """Numbers that `attend_in_ring` needs for so many columns: scores, a vector behind these, a vector's products."""
    return count + LANES + LANES * LANES


@inlined
def _weigh(scores: Floats, s0: int, count: int, head_dim: int) -> Any:
    """Makes weights of `count` scores, behind which there is room for a vector → what makes their sum 1."""
    scale = splat(np.float32(LOG2_E / math.sqrt(head_dim)))
    store(scores, s0 + count, splat(np.float32(-np.inf)))
    # Chains side by side, so that none waits for the one before it.
    first = load(scores, s0)
    second, third, fourth = first, first, first
    whole = count - count % (4 * LANES)
    for index in range(0, whole, 4 * LANES):
        first = greater(first, load(scores, s0 + index))
        second = greater(second, load(scores, s0 + index + LANES))
        third = greater(third, load(scores, s0 + index + 2 * LANES))
        fourth = greater(fourth, load(scores, s0 + index + 3 * LANES))
    for index in range(whole, count, LANES):
        first = greater(first, load(scores, s0 + index))
    highest = splat(largest(greater(greater(first, second), greater(third, fourth))))
    # Behind the last column is nearly nothing, 1e-38, of which the sum, at least 1, keeps no bit.
    weights = splat(np.float32(0))
    for index in range(0, count, LANES):
        part = exp2((load(scores, s0 + index) - highest) * scale)
        store(scores, s0 + index, part)
        weights = weights + part
    return np.float32(1) / total(weights)
