"""The audio encoder: mel features of one attention block → embeddings that stand in the prompt."""

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Self

import torch
from pydantic import AliasChoices, BaseModel, ConfigDict, Field, PositiveInt, model_validator
from torch import Tensor, nn
from torch.nn import functional

from services.inference.device import is_compiled_for

if TYPE_CHECKING:
    from services.reasoner.compiled_encoder import CompiledEncoder

NORM_EPSILON = 1e-5
KERNEL = 3
"""Positions that a window of either convolution has."""
LEAST_WIDTH = 4
"""Positions are told apart by waves of at least two lengths."""


class AudioEncoderConfig(BaseModel):
    """The encoder's numbers, from its section of a published config; those that it leaves out are transformers'.

    Where a config has both names of a number, the first counts, as it does there.
    """

    model_config = ConfigDict(frozen=True, extra="ignore")

    mel_bins: PositiveInt = Field(128, validation_alias="num_mel_bins")
    hidden_size: PositiveInt = Field(1280, validation_alias=AliasChoices("hidden_size", "d_model"))
    layers: PositiveInt = Field(32, validation_alias=AliasChoices("num_hidden_layers", "encoder_layers"))
    heads: PositiveInt = Field(20, validation_alias=AliasChoices("num_attention_heads", "encoder_attention_heads"))
    intermediate_size: PositiveInt = Field(5120, validation_alias=AliasChoices("intermediate_size", "encoder_ffn_dim"))
    output_size: PositiveInt = Field(validation_alias="output_dim")
    n_window: PositiveInt = 100
    activation_function: str = "gelu"

    @property
    def mel_block(self) -> int:
        """Mel frames of an attention block; blocks do not see each other."""
        return 2 * self.n_window

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if self.activation_function != "gelu":
            raise ValueError(
                f"the audio encoder's activation_function is {self.activation_function!r}; expected 'gelu'"
            )
        if self.hidden_size % self.heads or self.hidden_size % 2 or self.hidden_size < LEAST_WIDTH:
            raise ValueError(
                f"the audio encoder's d_model is {self.hidden_size}; "
                f"expected an even multiple of its {self.heads} heads, {LEAST_WIDTH} or more"
            )
        if self.n_window % 2:
            raise ValueError(
                f"the audio encoder's n_window is {self.n_window}; expected an even number: "
                "a pair of positions must not stand in two blocks"
            )
        return self


def audio_token_count(mel_frames: int) -> int:
    """Positions that a clip of so many mel frames takes in the prompt; model.md C.2."""
    return ((mel_frames - 1) // 2 + 1 - 2) // 2 + 1


class EncoderAttention(nn.Module):
    """The weights of attention in which every position of a block sees all of them."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.q_proj = nn.Linear(width, width)
        self.k_proj = nn.Linear(width, width, bias=False)
        self.v_proj = nn.Linear(width, width)
        self.out_proj = nn.Linear(width, width)


class EncoderLayer(nn.Module):
    """The weights of attention and feed-forward, each behind a norm and around a residual."""

    def __init__(self, config: AudioEncoderConfig) -> None:
        super().__init__()
        width = config.hidden_size
        self.self_attn = EncoderAttention(width)
        self.self_attn_layer_norm = nn.LayerNorm(width, eps=NORM_EPSILON)
        self.fc1 = nn.Linear(width, config.intermediate_size)
        self.fc2 = nn.Linear(config.intermediate_size, width)
        self.final_layer_norm = nn.LayerNorm(width, eps=NORM_EPSILON)


class AudioEncoder(nn.Module):
    """Two convolutions, the second of every other position, layers, and the mean of each two positions, projected.

    Parameter names are those of the published checkpoint, less the encoder's prefix. On a CPU in float32 it is compiled
    code that runs it, elsewhere torch.
    """

    def __init__(self, config: AudioEncoderConfig) -> None:
        super().__init__()
        self.config = config
        width = config.hidden_size
        self.conv1 = nn.Conv1d(config.mel_bins, width, KERNEL, padding=1)
        self.conv2 = nn.Conv1d(width, width, KERNEL, stride=2, padding=1)
        self.layers = nn.ModuleList(EncoderLayer(config) for _ in range(config.layers))
        self.ln_post = nn.LayerNorm(width, eps=NORM_EPSILON)
        self.proj = nn.Linear(width, config.output_size)
        # Published, and used by nobody: the prompt's own tokens stand before and behind a clip.
        self.audio_bos_eos_token = nn.Embedding(2, config.output_size)
        positions = _sinusoids(config.mel_block // 2, width).to(torch.get_default_device())
        self.positions = nn.Buffer(positions, persistent=False)
        self._compiled: CompiledEncoder | None = None
        self._compiled_version = 0
        self._weights = tuple(self.parameters())

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """What `to` and its kin go through."""
        super()._apply(fn, recurse)
        self._compiled = None
        self._weights = tuple(self.parameters())
        return self

    @property
    def compiled(self) -> "CompiledEncoder | None":
        """The encoder in compiled code, where that is what runs it; made anew when weights were filled meanwhile."""
        weight = self.proj.weight
        if not is_compiled_for(weight.device, weight.dtype):
            return None
        version = sum(0 if weight.is_inference() else weight._version for weight in self._weights)
        if self._compiled is None or version != self._compiled_version:
            from services.reasoner.compiled_encoder import CompiledEncoder  # a GPU's machine needs no compiler

            self._compiled = CompiledEncoder(self)
            self._compiled_version = version
        return self._compiled

    def forward(self, mel: Tensor) -> Tensor:
        """One attention block of a clip: mel [mel bins, n ≤ mel_block] float32 → embeddings [audio tokens, output].

        Blocks do not see each other and a full block has an even number of positions, so the blocks of a clip joined
        are the clip encoded at once; the last may be shorter.
        """
        count = audio_token_count(mel.shape[1])
        if count < 1:
            return self.proj.weight.new_empty((0, self.config.output_size))
        if self.compiled is not None:
            return self.compiled(mel)
        x = functional.gelu(self.conv1(mel[None].to(self.proj.weight)))
        x = functional.gelu(self.conv2(x))[0].T
        x = x + self.positions[: len(x)].to(x.dtype)
        for layer in self.layers:
            assert isinstance(layer, EncoderLayer)
            x = x + self._attend(layer.self_attn, layer.self_attn_layer_norm(x))
            x = x + layer.fc2(functional.gelu(layer.fc1(layer.final_layer_norm(x))))
        pairs = x[: 2 * count].unflatten(0, (count, 2))
        embeddings: Tensor = self.proj(self.ln_post((pairs[:, 0] + pairs[:, 1]) / 2))
        return embeddings

    def _attend(self, attention: EncoderAttention, x: Tensor) -> Tensor:
        """x [positions, hidden] → the same shape."""
        parts = (attention.q_proj, attention.k_proj, attention.v_proj)
        heads = [part(x).unflatten(1, (self.config.heads, -1)).transpose(0, 1)[None] for part in parts]
        seen: Tensor = attention.out_proj(functional.scaled_dot_product_attention(*heads)[0].transpose(0, 1).flatten(1))
        return seen


def _sinusoids(count: int, width: int) -> Tensor:
    """What is added to each position, [count, width] float32: sines, then cosines, of angles from 1 to 1e-4 a step."""
    # Computed on the CPU whatever the device, so that positions are the same everywhere.
    with torch.device("cpu"):
        steps = torch.arange(width // 2, dtype=torch.float32)
        angles = torch.arange(count)[:, None] * torch.exp(-math.log(1e4) / (width // 2 - 1) * steps)
        return torch.cat((angles.sin(), angles.cos()), dim=1)
