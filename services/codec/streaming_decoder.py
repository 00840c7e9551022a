"""Mimi's decoder as a machine with a state: one frame in, its samples out.

Every layer of the decoder is causal, so a frame's samples follow from the frame and from what each layer remembers of
the frames before it (model.md B.7): convolutions their last inputs, attention the keys and values of its window.
Here the step is torch's operations, for a GPU; `compiled_layers`
has the same for a CPU.
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from services.codec.convolutions import Convolution, Edge, plain, transposed
from services.codec.mimi import (
    CausalConv,
    Mimi,
    ResidualBlock,
    ResidualQuantizer,
    TransformerLayer,
    TransposedConv,
)
from services.inference.kv_cache import CachedLayer, KvCache, allocate
from services.inference.rope import Rope, rotate


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
    length. edges [S, numbers]: what each convolution keeps, one after the other in the order in which the layers run.
    """

    positions: Tensor
    cache: KvCache
    edges: Tensor

    def reset(self, slots: Tensor) -> None:
        """Makes the slots where `slots` [S] bool is True as new; the others stay as they are."""
        self.positions.masked_fill_(slots, 0)
        self.cache.entries.masked_fill_(slots[:, None, None, None], 0.0)
        self.edges.masked_fill_(slots[:, None], 0.0)


@dataclass(frozen=True)
class Places:
    """Where the positions of a frame stand: made once for all layers.

    columns [S, 1, W, 1] int64: of the ring. cosines, sines [S, W, heads, head_dim]: rotations of queries, keys and
    values, the last by nothing. mask [S, 1, W, columns] bool: what a position sees.
    """

    columns: Tensor
    cosines: Tensor
    sines: Tensor
    mask: Tensor


class StreamingDecoder(nn.Module):
    """Decodes one frame of each slot a step, in float32, on the device of the modules it is made from."""

    def __init__(self, mimi: Mimi, codebook_count: int) -> None:
        """`codebook_count`: how many of the codebooks a frame has, semantic ones first."""
        super().__init__()
        config = mimi.config
        self.codebook_count = codebook_count
        self.codebook_size = config.codebook_size
        self.head_dim = config.head_dim
        self.heads = config.num_attention_heads
        self.kv_heads = config.num_key_value_heads
        self.window = config.sliding_window
        self.norm_epsilon = config.norm_eps
        self.upsample = transposed(mimi.upsample)
        self.transformer_layers = nn.ModuleList(
            TransformerStep(layer, self.heads, self.kv_heads)
            for layer in mimi.decoder_transformer.layers
            if isinstance(layer, TransformerLayer)
        )
        self.seanet_layers = nn.ModuleList(_step(layer) for layer in mimi.decoder.layers)
        self.positions_per_frame = config.positions_per_frame
        self.samples_per_frame = config.positions_per_frame * config.samples_per_position
        # The newest position of a frame is written before the oldest is read, hence the columns beyond the window; a
        # whole number of frames, so that a frame never wraps around.
        columns = self.window + self.positions_per_frame - 1
        self.ring_columns = math.ceil(columns / self.positions_per_frame) * self.positions_per_frame
        self.rope = Rope(config.rope)
        self.latents = nn.Buffer(_latent_table(mimi, codebook_count), persistent=False)
        self.first_rows = nn.Buffer(torch.arange(codebook_count) * self.codebook_size, persistent=False)
        self.offsets = nn.Buffer(torch.arange(self.positions_per_frame), persistent=False)
        self.columns = nn.Buffer(torch.arange(self.ring_columns), persistent=False)
        self.to(self.latents.device)

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
        edges = torch.zeros(slot_count, sum(self._edge_sizes()), device=device)
        return DecodeState(torch.zeros(slot_count, dtype=torch.int64, device=device), cache, edges)

    def decode_step(self, state: DecodeState, codes: Tensor, executed: Tensor) -> Tensor:
        """Decodes a frame of each slot and keeps what the next one needs.

        codes [S, codebook_count] int64, 0 ..< codebook_size; executed [S] bool. A slot where it is False keeps its
        state to the bit; its codes must be in range all the same, and its samples mean nothing.
        Returns samples [S, samples_per_frame] float32.
        """
        starting = (state.positions == 0)[:, None, None]
        kept, run = state.edges.split(self._edge_sizes(), dim=1), executed[:, None, None]
        edges = iter(
            [
                Edge(numbers.unflatten(1, layer.edge_shape), starting, run)
                for layer, numbers in zip(self.convolutions(), kept, strict=True)
            ]
        )
        latents = functional.embedding(codes + self.first_rows, self.latents).sum(dim=1, keepdim=True)
        x = self._step_transformer(self.upsample(latents, next(edges)), state, executed)
        for layer in self.seanet_layers:
            x = layer(x, edges) if isinstance(layer, LayerStep) else layer(x)
        state.positions.add_(executed * self.positions_per_frame)
        return x[:, :, 0]

    def convolutions(self) -> Iterator[Convolution]:
        """All that keep an edge, in the order of their edges."""
        for layer in (self.upsample, *self.seanet_layers):
            yield from (part for part in layer.modules() if isinstance(part, Convolution))

    def _edge_sizes(self) -> list[int]:
        return [math.prod(layer.edge_shape) for layer in self.convolutions()]

    def _step_transformer(self, x: Tensor, state: DecodeState, executed: Tensor) -> Tensor:
        """x [S, positions_per_frame, hidden] → the same shape."""
        slots, width, _ = x.shape
        positions = state.positions[:, None] + self.offsets
        columns = torch.where(executed[:, None], positions % self.ring_columns, state.cache.dump)
        cosines, sines = self.rope(positions)
        turned, kept = (slots, width, self.heads + self.kv_heads, self.head_dim), (0, 0, 0, self.kv_heads)
        places = Places(
            columns[:, None, :, None],
            functional.pad(cosines.expand(turned), kept, value=1.0),
            functional.pad(sines.expand(turned), kept),
            self._visible(positions),
        )
        for layer, cached in zip(self.transformer_layers, state.cache.layers(self.ring_columns), strict=True):
            x = layer(x, places, cached)
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


class TransformerStep(nn.Module):
    """One layer of Mimi's transformer over the new positions of each slot."""

    def __init__(self, layer: TransformerLayer, heads: int, kv_heads: int) -> None:
        super().__init__()
        attention = layer.self_attn
        self.heads, self.kv_heads = heads, kv_heads
        parts = (attention.q_proj, attention.k_proj, attention.v_proj)
        self.qkv = nn.Buffer(torch.cat([part.weight for part in parts]).detach(), persistent=False)
        biases = None if attention.q_proj.bias is None else torch.cat([part.bias for part in parts]).detach()
        self.qkv_bias = None if biases is None else nn.Buffer(biases, persistent=False)
        self.output: nn.Linear = attention.o_proj
        self.first, self.second = layer.mlp.fc1, layer.mlp.fc2
        self.attention_norm, self.attention_scale = layer.input_layernorm, layer.self_attn_layer_scale
        self.mlp_norm, self.mlp_scale = layer.post_attention_layernorm, layer.mlp_layer_scale

    def forward(self, x: Tensor, places: Places, cached: CachedLayer) -> Tensor:
        """x [S, W, hidden] → the same shape."""
        slots, width, _ = x.shape
        joined = functional.linear(self.attention_norm(x), self.qkv, self.qkv_bias)
        rotated = rotate(
            joined.view(slots, width, self.heads + 2 * self.kv_heads, -1), places.cosines, places.sines
        ).transpose(1, 2)
        cached.keep(rotated[:, self.heads :], places.columns)
        seen = functional.scaled_dot_product_attention(
            rotated[:, : self.heads],
            cached.keys,
            cached.values,
            attn_mask=places.mask,
            enable_gqa=self.heads != self.kv_heads,
        )
        seen = seen.transpose(1, 2).reshape(slots, width, -1)
        x = torch.addcmul(x, self.output(seen), self.attention_scale.scale)
        inner = functional.gelu(self.first(self.mlp_norm(x)))
        return torch.addcmul(x, self.second(inner), self.mlp_scale.scale)


class LayerStep(nn.Module):
    """A layer of the convolutional decoder that has a state: one convolution, or a residual block of several."""

    def __init__(self, parts: list[nn.Module], shortcut: nn.Module | None) -> None:
        super().__init__()
        self.parts = nn.ModuleList(parts)
        self.shortcut = shortcut
        self.stride = math.prod(part.stride for part in parts if isinstance(part, Convolution))

    def forward(self, x: Tensor, edges: Iterator[Edge]) -> Tensor:
        """x [S, W, channels] → [S, W', channels']; takes the edges of its convolutions."""
        inner = x
        for part in self.parts:
            inner = part(inner, next(edges)) if isinstance(part, Convolution) else part(inner)
        if self.shortcut is None:
            return inner
        return inner + (self.shortcut(x, next(edges)) if isinstance(self.shortcut, Convolution) else x)


def _latent_table(mimi: Mimi, codebook_count: int) -> Tensor:
    """What each code of each codebook adds to the latent: [codebook_count * codebook_size, hidden].

    The projection behind the sum of codebook vectors is linear, so it is done here, once for each vector.
    """
    return torch.cat([rows for part in mimi.quantizer.parts for rows in _projected(part)][:codebook_count])


def _projected(part: ResidualQuantizer) -> list[Tensor]:
    vectors = [codebook.vectors() for codebook in part.codebooks]
    if part.output_proj is None:
        return vectors
    weight = part.output_proj.weight[:, :, 0].detach()
    return [functional.linear(rows, weight) for rows in vectors]


def _step(layer: nn.Module) -> nn.Module:
    """A layer of Mimi's convolutional decoder as a step."""
    if isinstance(layer, CausalConv | TransposedConv):
        return LayerStep([_convolution(layer)], None)
    if isinstance(layer, ResidualBlock):
        shortcut = nn.Identity() if layer.shortcut is None else plain(layer.shortcut)
        return LayerStep([plain(part) if isinstance(part, CausalConv) else part for part in layer.block], shortcut)
    return layer


def _convolution(layer: CausalConv | TransposedConv) -> Convolution:
    return plain(layer) if isinstance(layer, CausalConv) else transposed(layer)
