"""Mimi: its weights under their published names, and its encoder, sound to frames in one call.

The decoder's modules only hold weights: `streaming_decoder` runs them.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional

from services.codec.config import MimiConfig
from services.inference.device import blank_modules
from services.inference.rope import Rope, rotate

_LEAST_USAGE = 1e-5
"""What a codeword's usage counts as where it is less, as in transformers."""


class CausalConv(nn.Module):
    """A convolution that sees nothing later than its stride's last position; pad_mode: what lies beyond the ends."""

    def __init__(
        self,
        inputs: int,
        outputs: int,
        kernel: int,
        *,
        stride: int = 1,
        dilation: int = 1,
        bias: bool = True,
        pad_mode: str,
    ) -> None:
        super().__init__()
        self.conv = nn.Conv1d(inputs, outputs, kernel, stride, dilation=dilation, bias=bias)
        self.pad_mode = pad_mode

    def forward(self, x: Tensor) -> Tensor:
        """x [1, inputs, positions] → [1, outputs, ceil(positions / stride)]."""
        stride = self.conv.stride[0]
        before = (self.conv.kernel_size[0] - 1) * self.conv.dilation[0] + 1 - stride
        convolved: Tensor = self.conv(functional.pad(x, (before, -x.shape[2] % stride), self.pad_mode))
        return convolved


class TransposedConv(nn.Module):
    """The weights of a convolution by which each position becomes as many as the stride."""

    def __init__(
        self, inputs: int, outputs: int, kernel: int, *, stride: int, groups: int = 1, bias: bool = True
    ) -> None:
        super().__init__()
        self.conv = nn.ConvTranspose1d(inputs, outputs, kernel, stride, groups=groups, bias=bias)


class ResidualBlock(nn.Module):
    """Two convolutions, each behind an ELU, around which the input goes, as it is or through another convolution."""

    def __init__(self, config: MimiConfig, channels: int, dilation: int) -> None:
        super().__init__()
        inner, mode = channels // config.compress, config.pad_mode
        first = CausalConv(channels, inner, config.residual_kernel_size, dilation=dilation, pad_mode=mode)
        self.block = nn.ModuleList([nn.ELU(), first, nn.ELU(), CausalConv(inner, channels, 1, pad_mode=mode)])
        self.shortcut = CausalConv(channels, channels, 1, pad_mode=mode) if config.use_conv_shortcut else None

    def forward(self, x: Tensor) -> Tensor:
        """x [1, channels, positions] → the same shape."""
        inner = x
        for layer in self.block:
            inner = layer(inner)
        return inner + (x if self.shortcut is None else self.shortcut(x))


class Convolutions(nn.Module):
    """The convolutional half of the encoder or of the decoder."""

    def __init__(self, layers: list[nn.Module]) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)

    def forward(self, x: Tensor) -> Tensor:
        """The encoder's: x [1, 1, samples] → [1, hidden, positions]."""
        for layer in self.layers:
            x = layer(x)
        return x


class Attention(nn.Module):
    """Attention over a window of positions, rotated by their places."""

    def __init__(self, config: MimiConfig) -> None:
        super().__init__()
        width, bias = config.hidden_size, config.attention_bias
        heads, kv_heads = (
            count * config.head_dim for count in (config.num_attention_heads, config.num_key_value_heads)
        )
        self.head_dim = config.head_dim
        self.q_proj = nn.Linear(width, heads, bias=bias)
        self.k_proj = nn.Linear(width, kv_heads, bias=bias)
        self.v_proj = nn.Linear(width, kv_heads, bias=bias)
        self.o_proj = nn.Linear(heads, width, bias=bias)

    def forward(self, x: Tensor, cosines: Tensor, sines: Tensor, mask: Tensor) -> Tensor:
        """x [1, positions, hidden] → the same shape; mask [positions, positions] bool: what each sees."""
        queries, keys, values = (
            part(x).unflatten(2, (-1, self.head_dim)) for part in (self.q_proj, self.k_proj, self.v_proj)
        )
        seen = functional.scaled_dot_product_attention(
            rotate(queries, cosines, sines).transpose(1, 2),
            rotate(keys, cosines, sines).transpose(1, 2),
            values.transpose(1, 2),
            attn_mask=mask,
            enable_gqa=keys.shape != queries.shape,
        )
        projected: Tensor = self.o_proj(seen.transpose(1, 2).flatten(2))
        return projected


class FeedForward(nn.Module):
    """Two products around a GELU."""

    def __init__(self, config: MimiConfig) -> None:
        super().__init__()
        self.fc1 = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.fc2 = nn.Linear(config.intermediate_size, config.hidden_size, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """x [1, positions, hidden] → the same shape."""
        projected: Tensor = self.fc2(functional.gelu(self.fc1(x)))
        return projected


class LayerScale(nn.Module):
    """A weight of each channel of what is added to the residual."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.empty(width))

    def forward(self, x: Tensor) -> Tensor:
        """x [..., width] → the same shape."""
        return self.scale * x


class TransformerLayer(nn.Module):
    """Attention and feed-forward, each behind a norm, scaled, and around a residual."""

    def __init__(self, config: MimiConfig) -> None:
        super().__init__()
        width, epsilon = config.hidden_size, config.norm_eps
        self.self_attn = Attention(config)
        self.mlp = FeedForward(config)
        self.input_layernorm = nn.LayerNorm(width, eps=epsilon)
        self.post_attention_layernorm = nn.LayerNorm(width, eps=epsilon)
        self.self_attn_layer_scale = LayerScale(width)
        self.mlp_layer_scale = LayerScale(width)

    def forward(self, x: Tensor, cosines: Tensor, sines: Tensor, mask: Tensor) -> Tensor:
        """x [1, positions, hidden] → the same shape."""
        x = x + self.self_attn_layer_scale(self.self_attn(self.input_layernorm(x), cosines, sines, mask))
        scaled: Tensor = self.mlp_layer_scale(self.mlp(self.post_attention_layernorm(x)))
        return x + scaled


class Transformer(nn.Module):
    """The layers between the convolutions and the codebooks, on either side."""

    def __init__(self, config: MimiConfig) -> None:
        super().__init__()
        self.window = config.sliding_window
        self.layers = nn.ModuleList(TransformerLayer(config) for _ in range(config.num_hidden_layers))

    def forward(self, x: Tensor, rope: Rope) -> Tensor:
        """x [1, positions, hidden] → the same shape."""
        places = torch.arange(x.shape[1], device=x.device)
        cosines, sines = rope(places[None])
        back = places[:, None] - places
        mask = (back >= 0) & (back < self.window)
        for layer in self.layers:
            x = layer(x, cosines, sines, mask)
        return x


class Codebook(nn.Module):
    """Codewords as training left them: how often each was used, and the sum of what it was used for."""

    def __init__(self, config: MimiConfig) -> None:
        super().__init__()
        self.initialized = nn.Buffer(torch.empty(1))
        self.cluster_usage = nn.Buffer(torch.empty(config.codebook_size))
        self.embed_sum = nn.Buffer(torch.empty(config.codebook_size, config.codebook_dim))

    def vectors(self) -> Tensor:
        """The codewords [codebook_size, codebook_dim]."""
        return self.embed_sum / self.cluster_usage.clamp(min=_LEAST_USAGE)[:, None]


class CodebookLayer(nn.Module):
    """A codebook where the published names have it."""

    def __init__(self, config: MimiConfig) -> None:
        super().__init__()
        self.codebook = Codebook(config)


class ResidualQuantizer(nn.Module):
    """Codebooks of which each says what the ones before it have left."""

    def __init__(self, config: MimiConfig, codebooks: int) -> None:
        super().__init__()
        outer, inner = config.hidden_size, config.vector_quantization_hidden_dimension
        self.input_proj = nn.Conv1d(outer, inner, 1, bias=False) if inner != outer else None
        self.output_proj = nn.Conv1d(inner, outer, 1, bias=False) if inner != outer else None
        self.layers = nn.ModuleList(CodebookLayer(config) for _ in range(codebooks))

    @property
    def codebooks(self) -> list[Codebook]:
        """In their order."""
        return [layer.codebook for layer in self.layers if isinstance(layer, CodebookLayer)]

    def forward(self, latents: Tensor, codebook_count: int) -> Tensor:
        """latents [1, hidden, frames] → the nearest codewords of the first codebooks, [frames, count] int64."""
        projected = latents if self.input_proj is None else self.input_proj(latents)
        rest, codes = projected[0].T, []
        for codebook in self.codebooks[:codebook_count]:
            vectors = codebook.vectors()
            codes.append(torch.cdist(rest, vectors).argmin(dim=1))
            rest = rest - vectors[codes[-1]]
        return torch.stack(codes, dim=1) if codes else torch.empty(len(rest), 0, dtype=torch.int64, device=rest.device)


class Quantizer(nn.Module):
    """Two quantizers that do not see each other's choice: what is said, and how it sounds."""

    def __init__(self, config: MimiConfig) -> None:
        super().__init__()
        semantic = config.num_semantic_quantizers
        self.semantic_residual_vector_quantizer = ResidualQuantizer(config, semantic)
        self.acoustic_residual_vector_quantizer = ResidualQuantizer(config, config.num_quantizers - semantic)

    @property
    def parts(self) -> tuple[ResidualQuantizer, ResidualQuantizer]:
        """In the order of a frame's codes."""
        return self.semantic_residual_vector_quantizer, self.acoustic_residual_vector_quantizer

    def forward(self, latents: Tensor, codebook_count: int) -> Tensor:
        """latents [1, hidden, frames] → codes [frames, codebook_count] int64."""
        semantic, acoustic = self.parts
        first = semantic(latents, codebook_count)
        return torch.cat((first, acoustic(latents, codebook_count - first.shape[1])), dim=1)


class Mimi(nn.Module):
    """The codec's modules; parameter names are those of the published checkpoint, less the codec's prefix."""

    def __init__(self, config: MimiConfig) -> None:
        super().__init__()
        self.config = config
        width, stride = config.hidden_size, config.positions_per_frame
        self.encoder = Convolutions(_encoder_layers(config))
        self.encoder_transformer = Transformer(config)
        self.downsample = CausalConv(width, width, 2 * stride, stride=stride, bias=False, pad_mode="replicate")
        self.quantizer = Quantizer(config)
        self.upsample = TransposedConv(
            width, width, 2 * stride, stride=stride, groups=config.upsample_groups, bias=False
        )
        self.decoder_transformer = Transformer(config)
        self.decoder = Convolutions(_decoder_layers(config))
        self.rope = Rope(config.rope)

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.downsample.conv.weight.device

    def encode(self, samples: Tensor, codebook_count: int) -> Tensor:
        """Sound [samples] float32 → frames [ceil(samples / samples of a frame), codebook_count] int64."""
        x = self.encoder(samples[None, None])
        x = self.encoder_transformer(x.transpose(1, 2), self.rope).transpose(1, 2)
        codes: Tensor = self.quantizer(self.downsample(x), codebook_count)
        return codes


def build_mimi(config: MimiConfig, device: torch.device) -> Mimi:
    """Mimi's modules without weights: uninitialised, but for the buffers that no checkpoint holds."""
    with blank_modules(device, torch.float32):
        return Mimi(config).eval().requires_grad_(False)


def _encoder_layers(config: MimiConfig) -> list[nn.Module]:
    channels, mode = config.num_filters, config.pad_mode
    layers: list[nn.Module] = [CausalConv(1, channels, config.kernel_size, pad_mode=mode)]
    for ratio in reversed(config.upsampling_ratios):
        layers += [*_residual_blocks(config, channels), nn.ELU()]
        layers.append(CausalConv(channels, 2 * channels, 2 * ratio, stride=ratio, pad_mode=mode))
        channels *= 2
    return [*layers, nn.ELU(), CausalConv(channels, config.hidden_size, config.last_kernel_size, pad_mode=mode)]


def _decoder_layers(config: MimiConfig) -> list[nn.Module]:
    channels, mode = config.num_filters << len(config.upsampling_ratios), config.pad_mode
    layers: list[nn.Module] = [CausalConv(config.hidden_size, channels, config.kernel_size, pad_mode=mode)]
    for ratio in config.upsampling_ratios:
        layers += [nn.ELU(), TransposedConv(channels, channels // 2, 2 * ratio, stride=ratio)]
        channels //= 2
        layers += _residual_blocks(config, channels)
    return [*layers, nn.ELU(), CausalConv(channels, 1, config.last_kernel_size, pad_mode=mode)]


def _residual_blocks(config: MimiConfig, channels: int) -> list[ResidualBlock]:
    growth = config.dilation_growth_rate
    return [ResidualBlock(config, channels, growth**index) for index in range(config.num_residual_layers)]
