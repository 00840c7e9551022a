"""The audio encoder in compiled code: a block of mel features in, its embeddings out, in one call."""

from itertools import accumulate
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from services.inference.cpu.aligned import Floats, aligned, aligned_empty, aligned_zeros
from services.inference.cpu.attention import QUERIES, attend, attention_room
from services.inference.cpu.compilation import compiled
from services.inference.cpu.gelu import gelu
from services.inference.cpu.norms import layer_norm, layer_norm_together
from services.inference.cpu.product import in_blocks, laid_out, multiply_together, padded
from services.inference.cpu.second_thread import work_together
from services.inference.cpu.team import Team, alone, parts
from services.inference.cpu.vectors import LANES, load, splat, store
from services.reasoner.audio_encoder import KERNEL, NORM_EPSILON, AudioEncoder, EncoderLayer, audio_token_count

SHARED_FRAMES = 48
"""With fewer frames it takes longer to wake another thread than it helps."""


class EncoderShape(NamedTuple):
    """The encoder's numbers, and where its parts lie in its flat array of weights.

    Those of a layer are counted from where it begins: layer 0 at `layers_begin`, the next ones `layer` apart.
    """

    mel_bins: int
    hidden: int
    layers: int
    heads: int
    inner: int
    output: int
    conv1: int
    conv1_bias: int
    conv2: int
    conv2_bias: int
    norm: int
    norm_bias: int
    projection: int
    projection_bias: int
    layers_begin: int
    attention_norm: int
    attention_norm_bias: int
    qkv: int
    qkv_bias: int
    seen: int
    seen_bias: int
    mlp_norm: int
    mlp_norm_bias: int
    first: int
    first_bias: int
    second: int
    second_bias: int
    layer: int


class CompiledEncoder:
    """The encoder on a CPU in float32. It has a copy of the weights, laid out for reading."""

    def __init__(self, encoder: AudioEncoder) -> None:
        config = encoder.config
        ends, layers = _ends(encoder), [_layer(layer) for layer in encoder.layers]
        pieces = [*ends.values(), *(piece for layer in layers for piece in layer.values())]
        self._weights = aligned(pieces)
        self._positions = _in_rows(encoder.positions.numpy())
        self._shape = EncoderShape(
            mel_bins=config.mel_bins,
            hidden=config.hidden_size,
            layers=config.layers,
            heads=config.heads,
            inner=config.intermediate_size,
            output=config.output_size,
            **_places(ends, "layers_begin"),
            **_places(layers[0], "layer"),
        )

    @property
    def number_count(self) -> int:
        """Numbers of the copy."""
        return self._weights.size + self._positions.size

    def __call__(self, mel: Tensor) -> Tensor:
        """mel [mel bins, n] → embeddings [audio tokens, output], of at least one audio token."""
        shape, frames = self._shape, mel.shape[1]
        rows = np.zeros((frames + KERNEL - 1, shape.mel_bins), np.float32)
        rows[1:-1] = mel.numpy().T
        embeddings = np.empty((audio_token_count(frames), in_blocks(shape.output)), np.float32)
        block = rows.reshape(-1), frames, shape, self._weights, self._positions, embeddings.reshape(-1)
        room = signals(frames, shape)
        if frames < SHARED_FRAMES:
            encode(*block, room, alone(phases(shape)))
        else:
            work_together(phases(shape), lambda team: encode(*block, room, team))
        return torch.from_numpy(embeddings)[:, : shape.output]


class Signals(NamedTuple):
    """What a block is on its way through the encoder: rows in whole blocks, flat.

    heard: of mel frames, behind a row of zeros and before another; all else of positions. entries: the keys of each
    head, then the values of each, and room for whole vectors.
    """

    heard: Floats
    x: Floats
    normed: Floats
    joined: Floats
    entries: Floats
    seen: Floats
    inner: Floats


PHASES_BEFORE, PHASES_OF_LAYER, PHASES_BEHIND = 4, 9, 2


@compiled
def phases(shape: EncoderShape) -> int:
    """Phases of a team's work."""
    return PHASES_BEFORE + shape.layers * PHASES_OF_LAYER + PHASES_BEHIND


@compiled
def signals(frames: int, shape: EncoderShape) -> Signals:
    """Room for a block of so many mel frames."""
    rows, width = (frames - 1) // 2 + 1, in_blocks(shape.hidden)
    return Signals(
        aligned_zeros((frames + KERNEL - 1) * width),
        aligned_empty(rows * width),
        aligned_empty(rows * width),
        aligned_empty(rows * in_blocks(3 * shape.hidden)),
        aligned_zeros(2 * rows * shape.hidden + LANES * shape.hidden // shape.heads),
        aligned_empty(rows * width),
        aligned_empty(rows * in_blocks(shape.inner)),
    )


@compiled
def encode(
    mel: Floats, frames: int, shape: EncoderShape, weights: Floats, positions: Floats, embeddings: Floats,
    signals: Signals, team: Team,
) -> None:  # fmt: skip
    """Encodes a block, in each thread of a team.

    mel: rows of bins, of zeros before the first frame and after the last; positions: what is added to each;
    embeddings: a row of each audio token. The last two in whole blocks, all flat.
    """
    width, output = in_blocks(shape.hidden), in_blocks(shape.output)
    rows, pairs = (frames - 1) // 2 + 1, len(embeddings) // output
    heard, x, behind = signals.heard, signals.x, PHASES_BEFORE + shape.layers * PHASES_OF_LAYER
    room = aligned_empty(attention_room(QUERIES, rows, shape.hidden // shape.heads))
    # Of both convolutions a position's window is rows that lie one behind the other.
    multiply_together(
        mel, shape.mel_bins, frames, KERNEL * shape.mel_bins, weights, shape.conv1, shape.conv1_bias,
        heard[width:], width, False, team, 0,
    )  # fmt: skip
    for first, end in parts(team, 1, frames):
        gelu(heard, (first + 1) * width, (end - first) * width)
    multiply_together(
        heard, 2 * width, rows, KERNEL * width, weights, shape.conv2, shape.conv2_bias, x, width, False, team, 2,
    )  # fmt: skip
    for first, end in parts(team, 3, rows):
        gelu(x, first * width, (end - first) * width)
        for k in range(first * width, end * width, LANES):
            store(x, k, load(x, k) + load(positions, k))
    for index in range(shape.layers):
        _run_layer(index, rows, shape, weights, signals, room, team)
    half, normed = splat(np.float32(0.5)), signals.normed
    for first, end in parts(team, behind, pairs):
        for row in range(first, end):
            for k in range(0, width, LANES):
                pair = 2 * row * width + k
                store(normed, row * width + k, (load(x, pair) + load(x, pair + width)) * half)
            layer_norm(
                normed, row * width, shape.hidden, weights, shape.norm, shape.norm_bias, NORM_EPSILON, normed
            )  # fmt: skip
    multiply_together(
        normed, width, pairs, shape.hidden, weights, shape.projection, shape.projection_bias,
        embeddings, output, False, team, behind + 1,
    )  # fmt: skip


@compiled
def _run_layer(
    index: int, rows: int, shape: EncoderShape, weights: Floats, signals: Signals, room: Floats, team: Team
) -> None:
    hidden, heads, head_dim = shape.hidden, shape.heads, shape.hidden // shape.heads
    width, joined_width, inner_width = in_blocks(hidden), in_blocks(3 * hidden), in_blocks(shape.inner)
    _, x, normed, joined, entries, seen, inner = signals
    base, phase = shape.layers_begin + index * shape.layer, PHASES_BEFORE + index * PHASES_OF_LAYER
    norm, bias = base + shape.attention_norm, base + shape.attention_norm_bias
    layer_norm_together(x, rows, hidden, weights, norm, bias, NORM_EPSILON, normed, team, phase)
    multiply_together(
        normed, width, rows, hidden, weights, base + shape.qkv, base + shape.qkv_bias,
        joined, joined_width, False, team, phase + 1,
    )  # fmt: skip
    for first, end in parts(team, phase + 2, rows):
        for row in range(first, end):
            for head in range(2 * heads):
                source, target = row * joined_width + hidden + head * head_dim, (head * rows + row) * head_dim
                for k in range(head_dim):
                    entries[target + k] = joined[source + k]
    groups = -(-rows // QUERIES)
    for first, end in parts(team, phase + 3, heads * groups):
        for unit in range(first, end):
            head, row = unit // groups, unit % groups * QUERIES
            attend(
                joined, row * joined_width + head * head_dim, joined_width, min(QUERIES, rows - row), 1, head_dim,
                entries, head * rows * head_dim, (heads + head) * rows * head_dim, rows, 0,
                room, seen, row * width + head * head_dim, width,
            )  # fmt: skip
    multiply_together(
        seen, width, rows, hidden, weights, base + shape.seen, base + shape.seen_bias,
        x, width, True, team, phase + 4,
    )  # fmt: skip
    norm, bias = base + shape.mlp_norm, base + shape.mlp_norm_bias
    layer_norm_together(x, rows, hidden, weights, norm, bias, NORM_EPSILON, normed, team, phase + 5)
    multiply_together(
        normed, width, rows, hidden, weights, base + shape.first, base + shape.first_bias,
        inner, inner_width, False, team, phase + 6,
    )  # fmt: skip
    for first, end in parts(team, phase + 7, rows):
        gelu(inner, first * inner_width, (end - first) * inner_width)
    multiply_together(
        inner, inner_width, rows, shape.inner, weights, base + shape.second, base + shape.second_bias,
        x, width, True, team, phase + 8,
    )  # fmt: skip


def _ends(encoder: AudioEncoder) -> dict[str, Floats]:
    """What stands before and behind the layers, named as in `EncoderShape`."""
    width = encoder.config.hidden_size
    beside = in_blocks(width) - width  # zeros that stand beside each position between the convolutions
    second = nn.functional.pad(encoder.conv2.weight.transpose(1, 2), (0, beside))
    return {
        "conv1": _matrix(encoder.conv1.weight.transpose(1, 2).flatten(1)),
        "conv1_bias": _vector(encoder.conv1.bias),
        "conv2": _matrix(second.flatten(1)),
        "conv2_bias": _vector(encoder.conv2.bias),
        "norm": _vector(encoder.ln_post.weight),
        "norm_bias": _vector(encoder.ln_post.bias),
        "projection": _matrix(encoder.proj.weight),
        "projection_bias": _vector(encoder.proj.bias),
    }


def _layer(layer: nn.Module) -> dict[str, Floats]:
    """A layer's weights, named as in `EncoderShape`."""
    assert isinstance(layer, EncoderLayer)
    attention = layer.self_attn
    parts = (attention.q_proj, attention.k_proj, attention.v_proj)
    keys_bias = torch.zeros_like(attention.q_proj.bias)
    return {
        "attention_norm": _vector(layer.self_attn_layer_norm.weight),
        "attention_norm_bias": _vector(layer.self_attn_layer_norm.bias),
        "qkv": _matrix(torch.cat([part.weight for part in parts])),
        "qkv_bias": _vector(torch.cat((attention.q_proj.bias, keys_bias, attention.v_proj.bias))),
        "seen": _matrix(attention.out_proj.weight),
        "seen_bias": _vector(attention.out_proj.bias),
        "mlp_norm": _vector(layer.final_layer_norm.weight),
        "mlp_norm_bias": _vector(layer.final_layer_norm.bias),
        "first": _matrix(layer.fc1.weight),
        "first_bias": _vector(layer.fc1.bias),
        "second": _matrix(layer.fc2.weight),
        "second_bias": _vector(layer.fc2.bias),
    }


def _places(pieces: dict[str, Floats], end: str) -> dict[str, int]:
    """Where each piece begins, and under the name `end` where all of them end."""
    return dict(zip([*pieces, end], accumulate(map(len, pieces.values()), initial=0), strict=True))


def _matrix(weight: Tensor) -> Floats:
    return laid_out(weight.detach().numpy())


def _vector(vector: Tensor | None) -> Floats:
    assert vector is not None
    return padded(vector.detach().numpy())


def _in_rows(table: Floats) -> Floats:
    """Rows in whole blocks, flat."""
    width = table.shape[1]
    return np.pad(table, ((0, 0), (0, in_blocks(width) - width))).reshape(-1)
