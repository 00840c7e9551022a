"""Rotary position embedding: a rotation of each query and key by its position."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers.configuration_utils import PreTrainedConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

_KINDS = ("default", *ROPE_INIT_FUNCTIONS)


@dataclass(frozen=True)
class RopeSettings:
    """How positions become angles: the `rope_parameters` of a published config.

    `head_dim` is the width of a head; `parameters` are transformers' (`rope_type`, `rope_theta`, and what the type
    needs: model.md A.3).
    """

    head_dim: int
    max_positions: int
    parameters: dict[str, Any]


def rope_settings(section: dict[str, Any], *, head_dim: int, default_theta: float) -> RopeSettings:
    """Reads the rope settings of a config section in either spelling.

    New: `rope_parameters` {rope_type, rope_theta, …}. Old: `rope_theta` beside `rope_scaling` {rope_type or type, …}.
    Multi-axis rope equals one axis for text and audio (model.md B.9), so its sections are left out.
    """
    parameters = dict(section.get("rope_parameters") or {})
    parameters.update(section.get("rope_scaling") or {})
    kind = parameters.pop("type", None)
    parameters.setdefault("rope_type", kind or "default")
    if parameters["rope_type"] == "mrope":
        parameters["rope_type"] = "default"
    parameters.pop("mrope_section", None)
    parameters.setdefault("rope_theta", section.get("rope_theta", default_theta))
    if parameters["rope_type"] not in _KINDS:
        raise ValueError(f"rope_type is {parameters['rope_type']!r}; expected one of {', '.join(_KINDS)}")
    return RopeSettings(head_dim, int(section["max_position_embeddings"]), parameters)


class Rope(nn.Module):
    """Turns positions into cosines and sines. float32 whatever the model's dtype: angles of late positions need it."""

    inverse_frequencies: Tensor

    def __init__(self, settings: RopeSettings) -> None:
        super().__init__()
        # Computed on the CPU whatever the device, so that all devices rotate by the same angles.
        with torch.device("cpu"):
            frequencies, self.scale = _inverse_frequencies(settings)
        self.register_buffer("inverse_frequencies", frequencies.to(torch.get_default_device()), persistent=False)

    def forward(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        """positions [B, W] int64 → cosines and signed sines for `rotate`, [B, W, 1, head_dim] float32."""
        angles = positions[:, :, None, None].float() * self.inverse_frequencies
        cosines, sines = angles.cos() * self.scale, angles.sin() * self.scale
        return torch.cat((cosines, cosines), dim=-1), torch.cat((-sines, sines), dim=-1)


def rotate(x: Tensor, cosines: Tensor, sines: Tensor) -> Tensor:
    """Rotates x [B, W, heads, head_dim]; the halves of a head are the two coordinates."""
    first, second = x.chunk(2, dim=-1)
    return (x * cosines).addcmul_(torch.cat((second, first), dim=-1), sines).to(x.dtype)


def _inverse_frequencies(settings: RopeSettings) -> tuple[Tensor, float]:
    parameters = settings.parameters
    if parameters["rope_type"] == "default":
        exponents = torch.arange(0, settings.head_dim, 2, dtype=torch.int64).float() / settings.head_dim
        return 1.0 / (parameters["rope_theta"] ** exponents), 1.0
    # The base of all configs: a model's own class brings its whole family's code with it.
    numbers: dict[str, Any] = {
        "head_dim": settings.head_dim,
        "hidden_size": settings.head_dim,
        "num_attention_heads": 1,
        "max_position_embeddings": settings.max_positions,
        "rope_parameters": parameters,
    }
    config = PreTrainedConfig(**numbers)
    frequencies, scale = ROPE_INIT_FUNCTIONS[parameters["rope_type"]](config, torch.device("cpu"))
    return frequencies, float(scale)
