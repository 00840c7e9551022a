"""A transformer stack in compiled code: any positions of any slots in one call.

A position's result is the same bits whatever runs beside it and however its prompt was cut: every number of it is
computed from its own row and its slot's cache alone, always in the same order.
"""

from typing import NamedTuple

import numpy as np

from services.inference.cpu.aligned import Floats, aligned, aligned_empty
from services.inference.cpu.attention import QUERIES, attend, attention_room
from services.inference.cpu.compilation import compiled, inlined
from services.inference.cpu.norms import rms_norm_together
from services.inference.cpu.product import in_blocks, laid_out, multiply_together, padded
from services.inference.cpu.team import Ints, Team, alone, parts
from services.inference.cpu.vectors import LANES, exp, load, splat, store


class StackShape(NamedTuple):
    """A stack's numbers, and where its parts lie in its flat array of weights: those of layer 0, then of layer 1, ….

    The final norm lies behind the last layer.
    """

    layers: int
    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    inner: int
    epsilon: float
    qkv: int
    qkv_bias: int
    output: int
    output_bias: int
    mlp_norm: int
    gate_up: int
    gate_up_bias: int
    down: int
    down_bias: int
    layer: int


class StackCache(NamedTuple):
    """A stack and its cache, as steps in compiled code are given them; `entries` and `turns` flat."""

    shape: StackShape
    weights: Floats
    turns: Floats
    entries: Floats
    slots: int
    columns: int


class LayerWeights(NamedTuple):
    """What a layer multiplies with; the products [outputs, inputs], a bias of zeros where there is none."""

    attention_norm: Floats
    qkv: Floats
    qkv_bias: Floats
    output: Floats
    output_bias: Floats
    mlp_norm: Floats
    gate_up: Floats
    gate_up_bias: Floats
    down: Floats
    down_bias: Floats


def flat_weights(layers: list[LayerWeights], final_norm: Floats) -> tuple[Floats, dict[str, int]]:
    """The weights as `run` reads them, and where the parts of layer 0 begin."""
    pieces: list[Floats] = []
    places: dict[str, int] = {}
    for weights in layers:
        begin = 0
        for name, tensor in weights._asdict().items():
            piece = laid_out(tensor) if tensor.ndim == 2 else padded(tensor)
            pieces.append(piece)
            places[name] = begin
            begin += len(piece)
        places["layer"] = begin
    del places["attention_norm"]
    return aligned([*pieces, padded(final_norm)]), places


class Signals(NamedTuple):
    """What rows are on their way through a layer: rows in whole blocks, flat."""

    normed: Floats
    joined: Floats
    seen: Floats
    gated: Floats
    inner: Floats


PHASES_OF_LAYER = 10


@compiled
def phases(shape: StackShape) -> int:
    """Phases of a team's work: those of the layers, and the final norm."""
    return shape.layers * PHASES_OF_LAYER + 1


@compiled
def signals(rows: int, shape: StackShape) -> Signals:
    """Room for so many rows."""
    query_width = shape.heads * shape.head_dim
    return Signals(
        aligned_empty(rows * in_blocks(shape.hidden)),
        aligned_empty(rows * in_blocks(query_width + 2 * shape.kv_heads * shape.head_dim)),
        aligned_empty(rows * in_blocks(query_width)),
        aligned_empty(rows * in_blocks(2 * shape.inner)),
        aligned_empty(rows * in_blocks(shape.inner)),
    )


@inlined
def run(
    x: Floats, slots: Ints, columns: Ints, positions: Ints, wanted: Ints,
    entries: Floats, slot_count: int, column_count: int,
    shape: StackShape, weights: Floats, turns: Floats,
) -> None:  # fmt: skip
    """Runs positions through all layers and keeps their keys and values; x begins with the states that are wanted.

    x: rows of `hidden`, in whole blocks, flat. slots, columns, positions [rows]: where each row's keys and values go,
    and what it is rotated by; it sees its slot's columns up to its own. wanted: the rows, in ascending order, whose
    states after the final norm are; of others the last layer gives nothing but keys and values. entries:
    `KvCache.entries`, flat. turns: `turn_table`, flat.
    """
    run_together(
        x, slots, columns, positions, wanted, entries, slot_count, column_count, shape, weights, turns,
        signals(len(slots), shape), alone(phases(shape)),
    )  # fmt: skip


@compiled
def run_together(
    x: Floats, slots: Ints, columns: Ints, positions: Ints, wanted: Ints,
    entries: Floats, slot_count: int, column_count: int,
    shape: StackShape, weights: Floats, turns: Floats, signals: Signals, team: Team,
) -> None:  # fmt: skip
    """`run` in each thread of a team, all with the same signals; no thread takes a part before it has all it needs."""
    rows, width, head_dim = len(slots), in_blocks(shape.hidden), shape.head_dim
    query_width = shape.heads * head_dim
    joined_width = in_blocks(query_width + 2 * shape.kv_heads * head_dim)
    seen_width, gated_width, inner_width = in_blocks(query_width), in_blocks(2 * shape.inner), in_blocks(shape.inner)
    normed, joined, seen, gated, inner = signals
    group = shape.heads // shape.kv_heads
    most_rows = max(QUERIES // group, 1)
    seen_columns = 0
    for row in range(rows):
        seen_columns = max(seen_columns, columns[row] + 1)
    room = aligned_empty(attention_room(min(rows, most_rows) * group, seen_columns, head_dim))
    begins = np.empty(rows + 1, np.int64)
    head_stride = column_count * head_dim
    slot_stride = 2 * shape.kv_heads * head_stride
    for index in range(shape.layers):
        base, phase = index * shape.layer, index * PHASES_OF_LAYER
        rms_norm_together(x, rows, shape.hidden, weights, base, shape.epsilon, normed, team, phase)
        multiply_together(
            normed, width, rows, shape.hidden, weights, base + shape.qkv, base + shape.qkv_bias,
            joined, joined_width, False, team, phase + 1,
        )  # fmt: skip
        for first, end in parts(team, phase + 2, rows):
            for row in range(first, end):
                place = (index * slot_count + slots[row]) * slot_stride + columns[row] * head_dim
                turn_and_keep(joined, row * joined_width, shape, turns, positions[row], entries, place, head_stride)
        if index == shape.layers - 1:
            for first, end in parts(team, phase + 3, 1):
                for row in range(first, end * len(wanted)):
                    _move(joined, joined_width, wanted[row], row)
                    _move(x, width, wanted[row], row)
            rows = len(wanted)
            slots, columns = _of(slots, wanted), _of(columns, wanted)
        groups = _neighbours(slots, columns, most_rows, begins)
        for first, end in parts(team, phase + 4, groups * shape.kv_heads):
            for unit in range(first, end):
                # Head by head: what the groups see one after the other is then still in the core's cache.
                head, number = unit // groups, unit % groups
                row, end_row = begins[number], begins[number + 1]
                keys = (index * slot_count + slots[row]) * slot_stride + head * head_stride
                query = head * group * head_dim
                attend(
                    joined, row * joined_width + query, joined_width, end_row - row, group,
                    head_dim, entries, keys, keys + shape.kv_heads * head_stride, columns[row] + 1, 1,
                    room, seen, row * seen_width + query, seen_width,
                )  # fmt: skip
        multiply_together(
            seen, seen_width, rows, query_width, weights, base + shape.output, base + shape.output_bias,
            x, width, True, team, phase + 5,
        )  # fmt: skip
        rms_norm_together(
            x, rows, shape.hidden, weights, base + shape.mlp_norm, shape.epsilon, normed, team, phase + 6
        )  # fmt: skip
        multiply_together(
            normed, width, rows, shape.hidden, weights, base + shape.gate_up, base + shape.gate_up_bias,
            gated, gated_width, False, team, phase + 7,
        )  # fmt: skip
        for first, end in parts(team, phase + 8, rows):
            for row in range(first, end):
                _gate(gated, row * gated_width, shape.inner, inner, row * inner_width)
        multiply_together(
            inner, inner_width, rows, shape.inner, weights, base + shape.down, base + shape.down_bias,
            x, width, True, team, phase + 9,
        )  # fmt: skip
    norm, last = shape.layers * shape.layer, shape.layers * PHASES_OF_LAYER
    rms_norm_together(x, rows, shape.hidden, weights, norm, shape.epsilon, x, team, last)


@compiled
def _neighbours(slots: Ints, columns: Ints, most: int, begins: Ints) -> int:
    """Rows of a slot that stand side by side look at its columns together, up to so many → how many such groups.

    begins: is filled with where each group begins, and where the last ends.
    """
    groups = 0
    for row in range(len(slots)):
        if (
            row == 0
            or row == begins[groups - 1] + most
            or slots[row] != slots[row - 1]
            or columns[row] != columns[row - 1] + 1
        ):
            begins[groups] = row
            groups += 1
    begins[groups] = len(slots)
    return groups


@compiled
def _of(numbers: Ints, places: Ints) -> Ints:
    """The numbers at those places; numpy's own way of it takes long to compile."""
    chosen = np.empty(len(places), np.int64)
    for index in range(len(places)):
        chosen[index] = numbers[places[index]]
    return chosen


@compiled
def _move(x: Floats, width: int, source: int, target: int) -> None:
    """Copies a row."""
    for k in range(0, width, LANES):
        store(x, target * width + k, load(x, source * width + k))


@compiled
def turn_and_keep(
    joined: Floats, j0: int, shape: StackShape, turns: Floats, position: int, entries: Floats, place: int, stride: int
) -> None:
    """Rotates a row's queries where they lie, and its keys into the cache, where its values go as they are."""
    head_dim, half = shape.head_dim, shape.head_dim // 2
    angles, keys = position * head_dim, j0 + shape.heads * head_dim
    for head in range(shape.heads):
        source = j0 + head * head_dim
        _turn(joined, source, turns, angles, half, joined, source)
    for head in range(shape.kv_heads):
        _turn(joined, keys + head * head_dim, turns, angles, half, entries, place + head * stride)
        value, target = keys + (shape.kv_heads + head) * head_dim, place + (shape.kv_heads + head) * stride
        for k in range(0, head_dim - head_dim % LANES, LANES):
            store(entries, target + k, load(joined, value + k))
        for k in range(head_dim - head_dim % LANES, head_dim):
            entries[target + k] = joined[value + k]


@inlined
def _turn(x: Floats, x0: int, turns: Floats, angles: int, half: int, y: Floats, y0: int) -> None:
    """Rotates a head's numbers, of which the halves are the two coordinates."""
    whole = half - half % LANES
    for k in range(0, whole, LANES):
        first, second = load(x, x0 + k), load(x, x0 + half + k)
        cosine, sine = load(turns, angles + k), load(turns, angles + half + k)
        store(y, y0 + k, first * cosine - second * sine)
        store(y, y0 + half + k, second * cosine + first * sine)
    for k in range(whole, half):
        first, second = x[x0 + k], x[x0 + half + k]
        cosine, sine = turns[angles + k], turns[angles + half + k]
        y[y0 + k] = first * cosine - second * sine
        y[y0 + half + k] = second * cosine + first * sine


@compiled
def _gate(gated: Floats, g0: int, inner: int, y: Floats, y0: int) -> None:
    """silu(gate) * up, where gate and up lie one behind the other."""
    one, zero = splat(np.float32(1)), splat(np.float32(0))
    for k in range(0, inner, LANES):
        gate = load(gated, g0 + k)
        store(y, y0 + k, gate / (one + exp(zero - gate)) * load(gated, g0 + inner + k))
