"""Mimi's decoder as a machine with a state: one frame in, its samples out.

Every layer of the decoder is causal, so a frame's samples follow from the frame and from what each layer remembers of
the frames before it (model.md B.7): convolutions their last inputs, transposed convolutions the tail that reaches into
the next output, attention the keys and values of its window. Weights and sizes are those of transformers' modules.
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import MimiConfig, MimiModel
from transformers.models.mimi.modeling_mimi import (
    MimiConv1d,
    MimiConvTranspose1d,
    MimiResidualVectorQuantizer,
    MimiResnetBlock,
    MimiTransformerLayer,
)

from services.inference.kv_cache import CachedLayer, KvCache, allocate
from services.inference.rope import Rope, RopeSettings, rotate


@contextmanager
def exact_float32() -> Iterator[None]:
    """No gradients, and no TF32 in a convolution: a code's nearest neighbour hangs on the last bits (model.md B.8)."""
    with (
        torch.inference_mode(),
        torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True, allow_tf32=False),
    ):
        yield


@dataclass(frozen=True)
class DecodeState:
    """What the decoder remembers of each slot; written in place, so that its addresses never change.

    positions [S] int64: transformer positions decoded so far. cache: a ring, position p lies in column p mod its
    length. edges: for each convolution its last inputs, for each transposed convolution the tail of its last output,
    [S, channels, width], in the order in which the layers run.
    """

    positions: Tensor
    cache: KvCache
    edges: tuple[Tensor, ...]

    def reset(self, slots: Tensor) -> None:
        """Makes the slots where `slots` [S] bool is True as new; the others stay as they are."""
        self.positions.masked_fill_(slots, 0)
        self.cache.entries.masked_fill_(slots[:, None, None, None], 0.0)
        for edge in self.edges:
            edge.masked_fill_(slots[:, None, None], 0.0)


@dataclass(frozen=True)
class _Edge:
    """One layer's part of the state during one step; `starting` and `executed` are [S, 1, 1] bool."""

    kept: Tensor
    starting: Tensor
    executed: Tensor

    def keep(self, new: Tensor) -> None:
        self.kept.copy_(torch.where(self.executed, new, self.kept))


class StreamingDecoder(nn.Module):
    """Decodes one frame of each slot a step, in float32, on the device of the modules it is made from."""

    def __init__(self, mimi: MimiModel, codebook_count: int) -> None:
        """`codebook_count`: how many of the codebooks a frame has, semantic ones first."""
        super().__init__()
        config: Any = mimi.config
        decoder: Any = mimi.decoder
        check_streamable(config)
        self.codebook_count = codebook_count
        self.codebook_size: int = config.codebook_size
        self.head_dim: int = config.head_dim
        self.heads: int = config.num_attention_heads
        self.kv_heads: int = config.num_key_value_heads
        self.hidden_size: int = config.hidden_size
        self.window: int = config.sliding_window
        self.upsample = decoder.upsample
        self.transformer_layers = decoder.decoder_transformer.layers
        self.seanet_layers = decoder.decoder_seanet.layers
        self.positions_per_frame: int = self.upsample.conv.stride[0]
        self.samples_per_frame: int = self.positions_per_frame * math.prod(config.upsampling_ratios)
        # The newest position of a frame is written before the oldest is read, hence the columns beyond the window; a
        # whole number of frames, so that a frame never wraps around.
        columns = self.window + self.positions_per_frame - 1
        self.ring_columns = math.ceil(columns / self.positions_per_frame) * self.positions_per_frame
        self.rope = Rope(RopeSettings(self.head_dim, config.max_position_embeddings, dict(config.rope_parameters)))
        self.latents = nn.Buffer(_latent_table(mimi, codebook_count), persistent=False)
        self.first_rows = nn.Buffer(torch.arange(codebook_count) * self.codebook_size, persistent=False)
        self.offsets = nn.Buffer(torch.arange(self.positions_per_frame), persistent=False)
        self.columns = nn.Buffer(torch.arange(self.ring_columns), persistent=False)
        self.to(self.upsample.conv.weight.device)

    def new_state(self, slot_count: int) -> DecodeState:
        """The state of `slot_count` slots of which none has decoded anything."""
        device = self.latents.device
        cache = allocate(
            layers=len(self.transformer_layers),
            slots=slot_count,
            kv_heads=self.kv_heads,
            positions=self.ring_columns,
            head_dim=self.head_dim,
            device=device,
            dtype=torch.float32,
        )
        edges = tuple(torch.zeros(slot_count, *_edge_shape(layer), device=device) for layer in self._stateful_layers())
        return DecodeState(torch.zeros(slot_count, dtype=torch.int64, device=device), cache, edges)

    def decode_step(self, state: DecodeState, codes: Tensor, executed: Tensor) -> Tensor:
        """Decodes a frame of each slot and keeps what the next one needs.

        codes [S, codebook_count] int64, 0 ..< codebook_size; executed [S] bool. A slot where it is False keeps its
        state to the bit; its codes must be in range all the same, and its samples mean nothing.
        Returns samples [S, samples_per_frame] float32.
        """
        starting, run = (state.positions == 0)[:, None, None], executed[:, None, None]
        edges = iter([_Edge(kept, starting, run) for kept in state.edges])
        latents = functional.embedding(codes + self.first_rows, self.latents).sum(dim=1)
        x = _step_transposed(self.upsample, latents[:, :, None], next(edges))
        x = self._step_transformer(x.transpose(1, 2), state, executed).transpose(1, 2)
        for layer in self.seanet_layers:
            x = _step_layer(layer, x, edges)
        state.positions.add_(executed * self.positions_per_frame)
        return x[:, 0]

    def _stateful_layers(self) -> Iterator[nn.Module]:
        yield self.upsample
        for layer in self.seanet_layers:
            yield from (part for part in layer.modules() if isinstance(part, MimiConv1d | MimiConvTranspose1d))

    def _step_transformer(self, x: Tensor, state: DecodeState, executed: Tensor) -> Tensor:
        """x [S, positions_per_frame, hidden] → the same shape."""
        positions = state.positions[:, None] + self.offsets
        angles = self.rope(positions)
        columns = torch.where(executed[:, None], positions % self.ring_columns, state.cache.dump)
        columns, visible = columns[:, None, :, None], self._visible(positions)
        for layer, cached in zip(self.transformer_layers, state.cache.layers(self.ring_columns), strict=True):
            attended = self._attend(layer, layer.input_layernorm(x), angles, columns, visible, cached)
            x = x + layer.self_attn_layer_scale(attended)
            x = x + layer.mlp_layer_scale(layer.mlp(layer.post_attention_layernorm(x)))
        return x

    def _visible(self, positions: Tensor) -> Tensor:
        """Which columns each of these positions [S, W] sees: [S, 1, W, columns] bool.

        A position sees itself and the window - 1 positions before it, as transformers' sliding window does.
        """
        # The position whose key a column holds once those of this frame are written; below 0: none yet.
        newest = positions[:, -1:]
        held = (newest - (newest - self.columns) % self.ring_columns)[:, None, :]
        asking = positions[:, :, None]
        seen = (held >= 0) & (held <= asking) & (held > asking - self.window)
        return seen[:, None]

    def _attend(
        self,
        layer: MimiTransformerLayer,
        x: Tensor,
        angles: tuple[Tensor, Tensor],
        columns: Tensor,
        visible: Tensor,
        cached: CachedLayer,
    ) -> Tensor:
        attention = layer.self_attn
        slots, width, _ = x.shape
        queries = rotate(attention.q_proj(x).view(slots, width, self.heads, self.head_dim), *angles)
        keys = rotate(attention.k_proj(x).view(slots, width, self.kv_heads, self.head_dim), *angles)
        values = attention.v_proj(x).view(slots, width, self.kv_heads, self.head_dim)
        cached.keep(torch.cat((keys, values), dim=2).transpose(1, 2), columns)
        seen = functional.scaled_dot_product_attention(
            queries.transpose(1, 2),
            cached.keys,
            cached.values,
            attn_mask=visible,
            enable_gqa=self.heads != self.kv_heads,
        )
        return attention.o_proj(seen.transpose(1, 2).reshape(slots, width, -1))


def check_streamable(config: MimiConfig) -> None:
    """Raises ValueError, naming the setting, for a codec that a causal step of one frame can't decode."""
    if not config.use_causal_conv:
        raise ValueError("codec_config: use_causal_conv is False; only a causal codec can be streamed")
    if config.trim_right_ratio != 1.0:
        raise ValueError(f"codec_config: trim_right_ratio is {config.trim_right_ratio}; expected 1.0")
    if config.pad_mode not in {"constant", "replicate"}:
        raise ValueError(f"codec_config: pad_mode is {config.pad_mode!r}; expected 'constant' or 'replicate'")
    if config.audio_channels != 1:
        raise ValueError(f"codec_config: audio_channels is {config.audio_channels}; expected 1")
    if config.frame_rate == config.encodec_frame_rate:
        raise ValueError(f"codec_config: frames come at {config.frame_rate} Hz without upsampling, which isn't Mimi")
    if config.sliding_window < 1:
        raise ValueError(f"codec_config: sliding_window is {config.sliding_window}; expected 1 or more")


def _latent_table(mimi: MimiModel, codebook_count: int) -> Tensor:
    """What each code of each codebook adds to the latent: [codebook_count * codebook_size, hidden].

    The projection behind the sum of codebook vectors is linear, so it is done here, once for each vector.
    """
    quantizer: Any = mimi.quantizer
    parts = (quantizer.semantic_residual_vector_quantizer, quantizer.acoustic_residual_vector_quantizer)
    rows = [_projected(part, layer.codebook) for part in parts for layer in part.layers]
    return torch.cat(rows[:codebook_count])


def _projected(part: MimiResidualVectorQuantizer, codebook: Any) -> Tensor:
    vectors: Tensor = codebook.embed_sum / codebook.cluster_usage.clamp(min=codebook.epsilon)[:, None]
    if part.output_proj is None:
        return vectors.detach()
    return functional.linear(vectors, part.output_proj.weight[:, :, 0]).detach()


def _edge_shape(layer: nn.Module) -> tuple[int, int]:
    """Channels and width of what a layer keeps."""
    conv: Any = layer.conv
    if isinstance(layer, MimiConvTranspose1d):
        return conv.out_channels, conv.kernel_size[0] - conv.stride[0]
    assert conv.stride[0] == 1, "the decoder has no strided convolution"
    return conv.in_channels, (conv.kernel_size[0] - 1) * conv.dilation[0]


def _step_layer(layer: nn.Module, x: Tensor, edges: Iterator[_Edge]) -> Tensor:
    """x [S, channels, W] → [S, channels', W'] through one layer of the convolutional decoder."""
    if isinstance(layer, MimiConv1d):
        return _step_convolution(layer, x, next(edges))
    if isinstance(layer, MimiConvTranspose1d):
        return _step_transposed(layer, x, next(edges))
    if isinstance(layer, MimiResnetBlock):
        inner = x
        for part in layer.block:
            inner = _step_layer(part, inner, edges)
        return _step_layer(layer.shortcut, x, edges) + inner
    return layer(x)


def _step_convolution(layer: MimiConv1d, x: Tensor, edge: _Edge) -> Tensor:
    before = edge.kept
    if layer.pad_mode == "replicate":
        before = torch.where(edge.starting, x[:, :, :1], before)
    joined = torch.cat((before, x), dim=-1)
    edge.keep(joined[:, :, x.shape[-1] :])
    return layer.conv(joined)


def _step_transposed(layer: MimiConvTranspose1d, x: Tensor, edge: _Edge) -> Tensor:
    conv = layer.conv
    spread = functional.conv_transpose1d(x, conv.weight, stride=conv.stride, groups=conv.groups)
    emitted = x.shape[-1] * conv.stride[0]
    spread[:, :, : spread.shape[-1] - emitted] += edge.kept
    edge.keep(spread[:, :, emitted:])
    # Each output gets the bias once, also where two inputs overlap.
    return spread[:, :, :emitted] if conv.bias is None else spread[:, :, :emitted] + conv.bias[:, None]
