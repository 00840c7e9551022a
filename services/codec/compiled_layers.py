"""Mimi's decoder in compiled code: frames of any slots in one call.

Every number of a slot's is computed from its own frames alone, always in the same order: its sound is the same bits
whoever else is decoded, and however many of its frames are.
"""

import math
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from services.inference.cpu.aligned import Floats, aligned_empty, aligned_zeros
from services.inference.cpu.attention import attend_in_ring, score_room
from services.inference.cpu.compilation import compiled
from services.inference.cpu.gelu import gelu
from services.inference.cpu.norms import layer_norm
from services.inference.cpu.stack import turn_and_keep
from services.inference.cpu.team import Ints
from services.inference.cpu.vectors import LANES, exp, load, splat, store, where_above_zero
from services.inference.cpu.windows import in_vectors, multiply_windows

CONVOLUTION = np.dtype(
    [
        (name, np.int64)
        for name in (
            # The input: positions of a frame and their channels, of the signal or of the inside of a residual block;
            # whether ELU comes first; the edge, where it lies among a slot's and whether a first frame repeats its
            # first position there.
            "positions", "channels", "reads_inside", "activates", "edge", "edge_size", "repeats_edge",
            # The product: windows, of which each gives the outputs of `group` positions, or `_spread`.
            "group", "taps", "tap_row", "run", "outputs", "weight", "bias", "is_depthwise",
            # The output: to the signal or the inside; whether it is added there.
            "writes_inside", "adds",
        )
    ]
)  # fmt: skip
"""A convolution as `decode` runs it; `weight` and `bias` are where these begin in the flat array of weights."""

Convolutions = NDArray[Any]


class TransformerShape(NamedTuple):
    """The transformer's numbers, and where its parts lie in its flat weights: those of layer 0, then of layer 1, …."""

    layers: int
    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    inner: int
    window: int
    ring: int
    positions: int
    epsilon: float
    rotation_scale: float
    attention_norm_bias: int
    qkv: int
    qkv_bias: int
    output: int
    output_bias: int
    mlp_norm: int
    mlp_norm_bias: int
    first: int
    first_bias: int
    second: int
    second_bias: int
    layer: int


class Weights(NamedTuple):
    """What a frame is multiplied with.

    latents [codebook_count * codebook_size, hidden]; the layer scales are in the products before them.
    convolutions: the upsampling first; of the others the first `together` run for all frames side by side, since their
    weights are large and their signals small, then the rest for one frame after the other.
    """

    codebook_size: int
    latents: NDArray[np.float32]
    shape: TransformerShape
    transformer: Floats
    frequencies: Floats
    convolutions: Convolutions
    together: int
    kernels: Floats


class State(NamedTuple):
    """What the slots remember: the arrays of a `DecodeState`, entries flat."""

    positions: Ints
    entries: Floats
    edges: NDArray[np.float32]


class Signals(NamedTuple):
    """Room for the frames of a step, a row each: the signal, the inside of a residual block, a convolution's input."""

    signal: NDArray[np.float32]
    inside: NDArray[np.float32]
    windows: NDArray[np.float32]


@compiled
def decode(slots: Ints, codes: NDArray[np.int64], weights: Weights, state: State, signals: Signals) -> None:
    """Decodes frames of these slots; the samples lie in front in the rows of `signals.signal`.

    codes [frames, codebook_count], 0 ..< codebook_size: nobody checks. A slot that stands there several times has as
    many frames, in that order.
    """
    convolutions, together, count = weights.convolutions, weights.together, len(slots)
    positions = np.empty(count, np.int64)
    for index in range(count):
        positions[index] = state.positions[slots[index]]
        state.positions[slots[index]] += weights.shape.positions
        for k in range(weights.shape.hidden):
            signals.signal[index, k] = 0
        for codebook in range(codes.shape[1]):
            row = codebook * weights.codebook_size + codes[index, codebook]
            for k in range(weights.shape.hidden):
                signals.signal[index, k] += weights.latents[row, k]
    _convolve(convolutions, 0, 1, weights.kernels, slots, positions, 0, count, state, signals)
    _transform(slots, positions, weights, state, signals.signal)
    _convolve(convolutions, 1, together, weights.kernels, slots, positions, 0, count, state, signals)
    for index in range(count):
        _convolve(
            convolutions, together, len(convolutions), weights.kernels, slots, positions, index, index + 1,
            state, signals,
        )  # fmt: skip


@compiled
def _convolve(
    convolutions: Convolutions, first_layer: int, last_layer: int, kernels: Floats,
    slots: Ints, positions: Ints, begin: int, end: int, state: State, signals: Signals,
) -> None:  # fmt: skip
    """Runs convolutions for the frames from `begin` to `end`, on their rows of the signal."""
    signal, inside, windows = signals.signal.reshape(-1), signals.inside.reshape(-1), signals.windows.reshape(-1)
    edges, edge_row = state.edges.reshape(-1), state.edges.shape[1]
    signal_row, inside_row, window_row = signals.signal.shape[1], signals.inside.shape[1], signals.windows.shape[1]
    for number in range(first_layer, last_layer):
        layer = convolutions[number]
        size = layer.positions * layer.channels
        for index in range(begin, end):
            slot = slots[index]
            source, s0 = signal, index * signal_row
            if layer.reads_inside:
                source, s0 = inside, (index - begin) * inside_row
            first = (index - begin) * window_row
            there = first + layer.edge_size
            if layer.activates:
                _elu(source, s0, size, windows, there)
            else:
                _copy(source, s0, size, windows, there)
            if layer.repeats_edge and positions[index] == 0:
                for k in range(layer.edge_size):
                    windows[first + k] = windows[there + k % layer.channels]
            else:
                _copy(edges, slot * edge_row + layer.edge, layer.edge_size, windows, first)
            # What the slot's next frame, perhaps the next row, finds there.
            _copy(windows, first + size, layer.edge_size, edges, slot * edge_row + layer.edge)
        target, t0, row = signal, begin * signal_row, signal_row
        if layer.writes_inside:
            target, t0, row = inside, 0, inside_row
        if layer.is_depthwise:
            for index in range(end - begin):
                _spread(windows, index * window_row, kernels, layer, target, t0 + index * row)
        else:
            multiply_windows(
                windows, 0, window_row, layer.group * layer.channels, end - begin, layer.positions // layer.group,
                layer.taps, layer.tap_row, layer.run, kernels, layer.weight, kernels, layer.bias, layer.outputs,
                target, t0, row, layer.outputs, layer.adds != 0,
            )  # fmt: skip


@compiled
def _spread(x: Floats, x0: int, kernels: Floats, layer: Any, y: Floats, y0: int) -> None:
    """A depthwise convolution: weight [outputs of a channel, taps, channels], bias [outputs of a channel, channels]."""
    channels = layer.channels
    for position in range(layer.positions):
        for output in range(layer.outputs):
            target = y0 + (position * layer.outputs + output) * channels
            for k in range(channels):
                y[target + k] = kernels[layer.bias + output * channels + k]
            for tap in range(layer.taps):
                source = x0 + (position + tap) * channels
                weight = layer.weight + (output * layer.taps + tap) * channels
                for k in range(channels):
                    y[target + k] += x[source + k] * kernels[weight + k]


@compiled
def _copy(x: Floats, x0: int, count: int, y: Floats, y0: int) -> None:
    for k in range(count):
        y[y0 + k] = x[x0 + k]


@compiled
def _elu(x: Floats, x0: int, count: int, y: Floats, y0: int) -> None:
    """x where it is above 0, e^x - 1 elsewhere; up to a vector more is read and written."""
    one = splat(np.float32(1))
    for k in range(0, count, LANES):
        part = load(x, x0 + k)
        store(y, y0 + k, where_above_zero(part, part, exp(part) - one))


@compiled
def _transform(slots: Ints, begins: Ints, weights: Weights, state: State, signal: NDArray[np.float32]) -> None:
    """Runs the transformer over the new positions of the frames, which lie one behind the other in their signals.

    begins: the first position of each frame.
    """
    shape, flat, entries = weights.shape, weights.transformer, state.entries
    run, hidden, head_dim, flat_signal = shape.positions, shape.hidden, shape.head_dim, signal.reshape(-1)
    rows, query_width = run * len(slots), shape.heads * shape.head_dim
    width, seen_width, inner_width = in_vectors(hidden), in_vectors(query_width), in_vectors(shape.inner)
    joined_numbers = query_width + 2 * shape.kv_heads * head_dim
    joined_width = in_vectors(joined_numbers)
    x, normed = aligned_zeros(rows * width), aligned_empty(rows * width)
    joined, seen = aligned_empty(rows * joined_width), aligned_empty(rows * seen_width)
    inner, scores = aligned_zeros(rows * inner_width), aligned_empty(score_room(shape.window))
    turns = aligned_empty(rows * head_dim)
    head_stride = (shape.ring + 1) * head_dim
    slot_stride = 2 * shape.kv_heads * head_stride
    for row in range(rows):
        _copy(flat_signal, row // run * signal.shape[1] + row % run * hidden, hidden, x, row * width)
        _turns(turns, row * head_dim, begins[row // run] + row % run, weights.frequencies, shape)
    for index in range(shape.layers):
        base = index * shape.layer
        for row in range(rows):
            layer_norm(x, row * width, hidden, flat, base, base + shape.attention_norm_bias, shape.epsilon, normed)
        multiply_windows(
            normed, 0, 0, width, 1, rows, 1, 0, hidden,
            flat, base + shape.qkv, flat, base + shape.qkv_bias, joined_numbers, joined, 0, 0, joined_width, False,
        )  # fmt: skip
        # One row after the other: the ring has no room for what a slot's later frames keep beside what this one sees.
        for row in range(rows):
            position = begins[row // run] + row % run
            count = min(position + 1, shape.window)
            place = (index * len(state.positions) + slots[row // run]) * slot_stride
            kept = place + position % shape.ring * head_dim
            turn_and_keep(joined, row * joined_width, shape, turns, row, entries, kept, head_stride)
            for head in range(shape.heads):
                keys = place + head * shape.kv_heads // shape.heads * head_stride
                attend_in_ring(
                    joined, row * joined_width + head * head_dim, head_dim, entries, keys,
                    keys + shape.kv_heads * head_stride, (position + 1 - count) % shape.ring, count, shape.ring,
                    scores, seen, row * seen_width + head * head_dim,
                )  # fmt: skip
        multiply_windows(
            seen, 0, 0, seen_width, 1, rows, 1, 0, query_width,
            flat, base + shape.output, flat, base + shape.output_bias, hidden, x, 0, 0, width, True,
        )  # fmt: skip
        for row in range(rows):
            norm, bias = base + shape.mlp_norm, base + shape.mlp_norm_bias
            layer_norm(x, row * width, hidden, flat, norm, bias, shape.epsilon, normed)
        multiply_windows(
            normed, 0, 0, width, 1, rows, 1, 0, hidden,
            flat, base + shape.first, flat, base + shape.first_bias, shape.inner, inner, 0, 0, inner_width, False,
        )  # fmt: skip
        gelu(inner, 0, len(inner))
        multiply_windows(
            inner, 0, 0, inner_width, 1, rows, 1, 0, shape.inner,
            flat, base + shape.second, flat, base + shape.second_bias, hidden, x, 0, 0, width, True,
        )  # fmt: skip
    for row in range(rows):
        _copy(x, row * width, hidden, flat_signal, row // run * signal.shape[1] + row % run * hidden)


@compiled
def _turns(turns: Floats, t0: int, position: int, frequencies: Floats, shape: TransformerShape) -> None:
    """Cosines, then sines, of a position's angles."""
    half = shape.head_dim // 2
    for k in range(half):
        angle = np.float32(position) * frequencies[k]
        turns[t0 + k] = np.float32(math.cos(angle)) * shape.rotation_scale
        turns[t0 + half + k] = np.float32(math.sin(angle)) * shape.rotation_scale
