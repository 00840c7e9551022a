"""The audio encoder in compiled code: a block of mel features in, its embeddings out, in one call."""

from itertools import accumulate
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from services.inference.cpu.attention import attend, attention_room
from services.inference.cpu.compilation import compiled
from services.inference.cpu.gelu import gelu
from services.inference.cpu.norms import layer_norm
from services.inference.cpu.product import Floats, in_blocks, laid_out, multiply, padded
from services.inference.cpu.vectors import LANES, load, splat, store
from services.reasoner.audio_encoder import KERNEL, NORM_EPSILON, AudioEncoder, EncoderLayer, audio_token_count


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
        self._weights = np.concatenate(pieces)
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
        encode(rows.reshape(-1), frames, shape, self._weights, self._positions, embeddings.reshape(-1))
        return torch.from_numpy(embeddings)[:, : shape.output]


@compiled
def encode(
    mel: Floats, frames: int, shape: EncoderShape, weights: Floats, positions: Floats, embeddings: Floats
) -> None:
    """mel: rows of bins, of zeros before the first frame and after the last; embeddings: rows in whole blocks. Flat.

    positions: what is added to each, in whole blocks.
    """
    bins, width = shape.mel_bins, in_blocks(shape.hidden)
    rows, pairs = (frames - 1) // 2 + 1, len(embeddings) // in_blocks(shape.output)
    # Of both convolutions a position's window is rows that lie one behind the other.
    heard = np.zeros((frames + KERNEL - 1) * width, np.float32)
    multiply(
        mel, 0, bins, frames, KERNEL * bins, weights, shape.conv1, weights, shape.conv1_bias,
        width, heard, width, width, False,
    )  # fmt: skip
    gelu(heard)
    x = np.empty(rows * width, np.float32)
    multiply(
        heard, 0, 2 * width, rows, KERNEL * width, weights, shape.conv2, weights, shape.conv2_bias,
        width, x, 0, width, False,
    )  # fmt: skip
    gelu(x)
    for k in range(0, rows * width, LANES):
        store(x, k, load(x, k) + load(positions, k))
    _run_layers(x, rows, shape, weights)
    half = splat(np.float32(0.5))
    for row in range(pairs):
        for k in range(0, width, LANES):
            pair = 2 * row * width + k
            store(x, row * width + k, (load(x, pair) + load(x, pair + width)) * half)
        layer_norm(x, row * width, shape.hidden, weights, shape.norm, shape.norm_bias, NORM_EPSILON, x)
    output = in_blocks(shape.output)
    multiply(
        x, 0, width, pairs, shape.hidden, weights, shape.projection, weights, shape.projection_bias,
        output, embeddings, 0, output, False,
    )  # fmt: skip


@compiled
def _run_layers(x: Floats, rows: int, shape: EncoderShape, weights: Floats) -> None:
    """x: rows of `hidden`, in whole blocks."""
    hidden, heads, head_dim = shape.hidden, shape.heads, shape.hidden // shape.heads
    width, joined_width, inner = in_blocks(hidden), in_blocks(3 * hidden), in_blocks(shape.inner)
    normed, joined = np.empty(rows * width, np.float32), np.empty(rows * joined_width, np.float32)
    seen, inside = np.empty(rows * width, np.float32), np.empty(rows * inner, np.float32)
    # Of each head the keys, then of each the values; behind them room for whole vectors.
    entries = np.zeros(2 * rows * hidden + LANES * head_dim, np.float32)
    room = np.empty(attention_room(rows, rows, head_dim), np.float32)
    for index in range(shape.layers):
        base = shape.layers_begin + index * shape.layer
        norm, bias = base + shape.attention_norm, base + shape.attention_norm_bias
        for row in range(rows):
            layer_norm(x, row * width, hidden, weights, norm, bias, NORM_EPSILON, normed)
        multiply(
            normed, 0, width, rows, hidden, weights, base + shape.qkv, weights, base + shape.qkv_bias,
            joined_width, joined, 0, joined_width, False,
        )  # fmt: skip
        for row in range(rows):
            for head in range(2 * heads):
                source, target = row * joined_width + hidden + head * head_dim, (head * rows + row) * head_dim
                for k in range(head_dim):
                    entries[target + k] = joined[source + k]
        for head in range(heads):
            attend(
                joined, head * head_dim, joined_width, rows, 1, head_dim,
                entries, head * rows * head_dim, (heads + head) * rows * head_dim, rows, 0,
                room, seen, head * head_dim, width,
            )  # fmt: skip
        multiply(
            seen, 0, width, rows, hidden, weights, base + shape.seen, weights, base + shape.seen_bias,
            width, x, 0, width, True,
        )  # fmt: skip
        norm, bias = base + shape.mlp_norm, base + shape.mlp_norm_bias
        for row in range(rows):
            layer_norm(x, row * width, hidden, weights, norm, bias, NORM_EPSILON, normed)
        multiply(
            normed, 0, width, rows, hidden, weights, base + shape.first, weights, base + shape.first_bias,
            inner, inside, 0, inner, False,
        )  # fmt: skip
        gelu(inside)
        multiply(
            inside, 0, inner, rows, shape.inner, weights, base + shape.second, weights, base + shape.second_bias,
            width, x, 0, width, True,
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
