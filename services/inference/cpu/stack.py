"""A transformer stack in compiled code: any positions of any slots in one call.

A position's result is the same bits whatever runs beside it and however its prompt was cut: every number of it is
computed from its own row and its slot's cache alone, always in the same order.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from services.inference.cpu.attention import QUERIES, attend, attention_room
from services.inference.cpu.compilation import compiled
from services.inference.cpu.norms import rms_norm
from services.inference.cpu.product import Floats, in_blocks, laid_out, multiply, padded
from services.inference.cpu.vectors import LANES, exp, load, publish, published, splat, store

Ints = NDArray[np.int64]

ALONE, LEADS, FOLLOWS = 0, 1, 2
"""What a thread is to another one that runs rows of the same slots."""


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
    return np.concatenate([*pieces, padded(final_norm)]), places


@compiled
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
    run_beside(
        x, slots, columns, positions, wanted, entries, slot_count, column_count, shape, weights, turns,
        np.zeros(1, np.int64), ALONE,
    )  # fmt: skip


@compiled
def run_beside(
    x: Floats, slots: Ints, columns: Ints, positions: Ints, wanted: Ints,
    entries: Floats, slot_count: int, column_count: int,
    shape: StackShape, weights: Floats, turns: Floats, layers_kept: Ints, role: int,
) -> None:  # fmt: skip
    """`run`, of rows whose neighbours another thread runs at the same time.

    layers_kept [1]: one that LEADS tells there in how many layers its keys and values are kept; one that FOLLOWS sees
    columns of that one's rows, and waits in each layer until they are there.
    """
    rows, width = len(slots), in_blocks(shape.hidden)
    query_width, head_dim = shape.heads * shape.head_dim, shape.head_dim
    joined_width = in_blocks(query_width + 2 * shape.kv_heads * head_dim)
    seen_width, gated_width, inner_width = in_blocks(query_width), in_blocks(2 * shape.inner), in_blocks(shape.inner)
    normed, joined = np.empty(rows * width, np.float32), np.empty(rows * joined_width, np.float32)
    seen, gated = np.empty(rows * seen_width, np.float32), np.empty(rows * gated_width, np.float32)
    inner, group = np.empty(rows * inner_width, np.float32), shape.heads // shape.kv_heads
    most_rows = max(QUERIES // group, 1)
    room = np.empty(attention_room(min(rows, most_rows) * group, columns.max() + 1, head_dim), np.float32)
    head_stride = column_count * head_dim
    slot_stride = 2 * shape.kv_heads * head_stride
    for index in range(shape.layers):
        base = index * shape.layer
        for row in range(rows):
            rms_norm(x, row * width, shape.hidden, weights, base, shape.epsilon, normed)
        multiply(
            normed, 0, width, rows, shape.hidden, weights, base + shape.qkv, weights, base + shape.qkv_bias,
            joined_width, joined, 0, joined_width, False,
        )  # fmt: skip
        for row in range(rows):
            place = (index * slot_count + slots[row]) * slot_stride + columns[row] * head_dim
            turn_and_keep(joined, row * joined_width, shape, turns, positions[row], entries, place, head_stride)
        if role == LEADS:
            publish(layers_kept, index + 1)
        while role == FOLLOWS and published(layers_kept) <= index:
            pass
        if index == shape.layers - 1:
            for row in range(len(wanted)):
                _move(joined, joined_width, wanted[row], row)
                _move(x, width, wanted[row], row)
            slots, columns, rows = slots[wanted], columns[wanted], len(wanted)
        row = 0
        while row < rows:
            # Neighbours of a slot look at its columns together.
            end = row + 1
            while (
                end < min(rows, row + most_rows) and slots[end] == slots[row] and columns[end] == columns[end - 1] + 1
            ):
                end += 1
            place = (index * slot_count + slots[row]) * slot_stride
            for head in range(shape.kv_heads):
                keys, first = place + head * head_stride, head * group * head_dim
                attend(
                    joined, row * joined_width + first, joined_width, end - row, group, head_dim,
                    entries, keys, keys + shape.kv_heads * head_stride, columns[row] + 1, 1,
                    room, seen, row * seen_width + first, seen_width,
                )  # fmt: skip
            row = end
        multiply(
            seen, 0, seen_width, rows, query_width, weights, base + shape.output, weights, base + shape.output_bias,
            width, x, 0, width, True,
        )  # fmt: skip
        for row in range(rows):
            rms_norm(x, row * width, shape.hidden, weights, base + shape.mlp_norm, shape.epsilon, normed)
        multiply(
            normed, 0, width, rows, shape.hidden, weights, base + shape.gate_up, weights, base + shape.gate_up_bias,
            gated_width, gated, 0, gated_width, False,
        )  # fmt: skip
        for row in range(rows):
            _gate(gated, row * gated_width, shape.inner, inner, row * inner_width)
        multiply(
            inner, 0, inner_width, rows, shape.inner, weights, base + shape.down, weights, base + shape.down_bias,
            width, x, 0, width, True,
        )  # fmt: skip
    for row in range(rows):
        rms_norm(x, row * width, shape.hidden, weights, shape.layers * shape.layer, shape.epsilon, x)


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
    cosine, sine = position * head_dim, position * head_dim + half
    for head in range(shape.heads + shape.kv_heads):
        source = j0 + head * head_dim
        kept = head >= shape.heads
        target = place + (head - shape.heads) * stride
        for k in range(half):
            first, second = joined[source + k], joined[source + half + k]
            turned_first = first * turns[cosine + k] - second * turns[sine + k]
            turned_second = second * turns[cosine + k] + first * turns[sine + k]
            if kept:
                entries[target + k], entries[target + half + k] = turned_first, turned_second
            else:
                joined[source + k], joined[source + half + k] = turned_first, turned_second
    for head in range(shape.kv_heads):
        source = j0 + (shape.heads + shape.kv_heads + head) * head_dim
        target = place + (shape.kv_heads + head) * stride
        for k in range(head_dim):
            entries[target + k] = joined[source + k]


@compiled
def _gate(gated: Floats, g0: int, inner: int, y: Floats, y0: int) -> None:
    """silu(gate) * up, where gate and up lie one behind the other."""
    one, zero = splat(np.float32(1)), splat(np.float32(0))
    for k in range(0, inner, LANES):
        gate = load(gated, g0 + k)
        store(y, y0 + k, gate / (one + exp(zero - gate)) * load(gated, g0 + inner + k))
