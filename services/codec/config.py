"""The codec's numbers, from its section of a published config."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Self

from pydantic import (
    AliasChoices,
    BaseModel,
    ConfigDict,
    Field,
    PositiveFloat,
    PositiveInt,
    model_validator,
)

from services.inference.rope import RopeSettings, rope_settings

ROPE_THETA = 10_000.0


class MimiConfig(BaseModel):
    """Mimi's numbers, named as they are published; those that a config leaves out are transformers'."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    sampling_rate: PositiveInt = 24_000
    audio_channels: int = 1
    hidden_size: PositiveInt = 512
    num_filters: PositiveInt = 64
    num_residual_layers: int = Field(1, ge=0)
    upsampling_ratios: Annotated[tuple[PositiveInt, ...], Field(min_length=1)] = (8, 6, 5, 4)
    kernel_size: PositiveInt = 7
    last_kernel_size: PositiveInt = 3
    residual_kernel_size: PositiveInt = 3
    dilation_growth_rate: PositiveInt = 2
    use_causal_conv: bool = True
    pad_mode: str = "constant"
    compress: PositiveInt = 2
    trim_right_ratio: float = 1.0
    use_conv_shortcut: bool = False
    codebook_size: PositiveInt = 2048
    codebook_dim: PositiveInt = 256
    vector_quantization_hidden_dimension: PositiveInt = 256
    num_quantizers: PositiveInt = 32
    num_semantic_quantizers: PositiveInt = 1
    upsample_groups: PositiveInt = 512
    num_hidden_layers: PositiveInt = 8
    intermediate_size: PositiveInt = 2048
    num_attention_heads: PositiveInt = 8
    num_key_value_heads: PositiveInt = 8
    head_dim: PositiveInt = Field(default_factory=lambda given: given["hidden_size"] // given["num_attention_heads"])
    hidden_act: str = "gelu"
    attention_bias: bool = False
    norm_eps: PositiveFloat = 1e-5
    sliding_window: PositiveInt = 250
    max_position_embeddings: PositiveInt = 8000
    rope_parameters: dict[str, Any] = {}
    rope_scaling: dict[str, Any] = {}
    rope_theta: PositiveFloat = ROPE_THETA
    frame_rate: PositiveFloat = Field(
        default_factory=lambda given: given["sampling_rate"] / math.prod(given["upsampling_ratios"]) / 2,
        validation_alias=AliasChoices("frame_rate", "_frame_rate"),
    )

    @property
    def samples_per_position(self) -> int:
        """Of the transformers' positions, which are more than frames."""
        return math.prod(self.upsampling_ratios)

    @property
    def positions_per_frame(self) -> int:
        """Positions of the transformers that become one frame."""
        return int(math.ceil(self.sampling_rate / self.samples_per_position) / self.frame_rate)

    @property
    def rope(self) -> RopeSettings:
        """How the transformers' positions become angles."""
        return rope_settings(self.model_dump(), head_dim=self.head_dim, default_theta=ROPE_THETA)

    @model_validator(mode="after")
    def _can_be_streamed(self) -> Self:
        """Raises ValueError, naming the setting, for a codec that a causal step of one frame can't decode."""
        if not self.use_causal_conv:
            raise ValueError("use_causal_conv is False; only a causal codec can be streamed")
        if self.trim_right_ratio != 1.0:
            raise ValueError(f"trim_right_ratio is {self.trim_right_ratio}; expected 1.0")
        if self.pad_mode not in {"constant", "replicate"}:
            raise ValueError(f"pad_mode is {self.pad_mode!r}; expected 'constant' or 'replicate'")
        if self.audio_channels != 1:
            raise ValueError(f"audio_channels is {self.audio_channels}; expected 1")
        if self.positions_per_frame < 2:
            raise ValueError(f"frames come at {self.frame_rate} Hz without upsampling, which isn't Mimi")
        if self.hidden_act != "gelu":
            raise ValueError(f"hidden_act is {self.hidden_act!r}; expected 'gelu'")
        return self

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if self.num_semantic_quantizers >= self.num_quantizers:
            raise ValueError(
                f"num_semantic_quantizers is {self.num_semantic_quantizers}; "
                f"expected fewer than num_quantizers, {self.num_quantizers}"
            )
        if self.codebook_dim != self.vector_quantization_hidden_dimension:
            raise ValueError(
                f"codebook_dim is {self.codebook_dim}; "
                f"expected vector_quantization_hidden_dimension, {self.vector_quantization_hidden_dimension}"
            )
        if self.num_filters < self.compress:
            raise ValueError(f"compress is {self.compress}; expected at most num_filters, {self.num_filters}")
        if self.hidden_size % self.upsample_groups:
            raise ValueError(
                f"upsample_groups is {self.upsample_groups}; expected a divisor of hidden_size, {self.hidden_size}"
            )
        if self.num_attention_heads % self.num_key_value_heads:
            raise ValueError(
                f"num_key_value_heads is {self.num_key_value_heads}; "
                f"expected a divisor of num_attention_heads, {self.num_attention_heads}"
            )
        if self.head_dim % 2:
            raise ValueError(f"head_dim is {self.head_dim}; expected an even number")
        _ = self.rope  # which must be of a kind that there is
        return self


@dataclass(frozen=True)
class CodecConfig:
    """The codec's numbers. codebook_count: codes of a frame; Mimi may have more codebooks than the model speaks."""

    mimi: MimiConfig
    codebook_count: int

    def __post_init__(self) -> None:
        least, most = self.mimi.num_semantic_quantizers, self.mimi.num_quantizers
        if not least <= self.codebook_count <= most:
            raise ValueError(
                f"audio_num_codebooks is {self.codebook_count}; expected {least} ..= {most}, which codec_config has"
            )


def mimi_config(section: Mapping[str, Any]) -> MimiConfig:
    """Reads a config's section, in which null stands for what is left out; ValidationError for what can't be.

    Without a window, which is what null means there, attention reaches as far back as the config has positions.
    """
    numbers = {name: value for name, value in section.items() if value is not None}
    if section.get("sliding_window", 0) is None:
        field = "max_position_embeddings"
        numbers["sliding_window"] = numbers.get(field, MimiConfig.model_fields[field].default)
    return MimiConfig(**numbers)
