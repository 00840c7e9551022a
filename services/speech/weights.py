"""The speech stage's part of the checkpoint: where its numbers and tensors stand."""

from typing import Any, Literal

import torch
from torch import nn

from services.inference.checkpoint import Checkpoint, config_numbers, section
from services.inference.device import blank_modules
from services.speech.depth_decoder import DepthPositions
from services.speech.model import SpeechConfig, SpeechModel, speech_config

_OWN = ("backbone.", "decoder.")
_FOREIGN = ("thinker.", "codec_model.")
_PREFIXES = {
    "text_embedding.": "thinker.model.embed_tokens.",
    "code_embedding.": "decoder.audio_embedding.embed_audio_tokens.",
    "backbone.stack.": "backbone.model.",
    "backbone.codebook0_head.": "backbone.codebook0_head.",
    "depth_decoder.stack.": "decoder.model.",
    "depth_decoder.projection.": "decoder.projection.",
    "depth_decoder.codebook_head": "decoder.codebook_head.weight",
}
# The table is stored once, under the depth decoder; some checkpoints hold the backbone's copy as well.
_TIED = "backbone.audio_embedding.embed_audio_tokens.weight"


# What the first published code used and the weights were most likely trained with (model.md A.3).
_PUBLISHED_ROPE = {
    "backbone_config": {
        "rope_type": "llama3",
        "rope_theta": 500_000.0,
        "factor": 32.0,
        "low_freq_factor": 0.125,
        "high_freq_factor": 0.5,
        "original_max_position_embeddings": 1024,
    },
    "decoder_config": {
        "rope_type": "llama3",
        "rope_theta": 500_000.0,
        "factor": 32.0,
        "low_freq_factor": 0.001953125,
        "high_freq_factor": 0.0078125,
        "original_max_position_embeddings": 16,
    },
}

RopeScaling = Literal["config", "published"]
"""Where a stack's rope scaling comes from when config.json has none: nowhere, or the published values."""


def read_config(config: dict[str, Any], rope_scaling: RopeScaling = "config") -> SpeechConfig:
    """The speech stage's numbers from config.json; CheckpointError when one is missing."""
    with config_numbers("backbone_config and decoder_config"):
        return speech_config(
            backbone=_stack_section(config, "backbone_config", rope_scaling),
            depth_decoder=_stack_section(config, "decoder_config", rope_scaling),
            vocabulary_size=int(section(config, "thinker_config", "text_config", "vocab_size")),
            codebook_count=int(section(config, "audio_num_codebooks")),
            logit_count=int(section(config, "backbone_config", "vocab_size")),
            code_count=int(section(config, "codec_config", "codebook_size")),
            text_start_token_id=int(section(config, "text_start_token_id")),
            text_end_token_id=int(section(config, "text_end_token_id")),
        )


def load(
    checkpoint: Checkpoint,
    device: torch.device,
    dtype: torch.dtype,
    *,
    depth_positions: DepthPositions = "reference",
    rope_scaling: RopeScaling = "config",
) -> SpeechModel:
    """Backbone and depth decoder with their weights, in evaluation mode."""
    with blank_modules(device, dtype):
        model = SpeechModel(read_config(checkpoint.config, rope_scaling), depth_positions)
    names = {name: [published] for name, published in _published(model).items()}
    names["code_embedding.weight"].append(_TIED)
    checkpoint.fill(model, names, own=_OWN, foreign=_FOREIGN)
    return model.eval().requires_grad_(False)


def unscaled_stacks(config: dict[str, Any]) -> list[str]:
    """The config sections that have no rope scaling: worth a warning, the published weights are known to need one."""
    return [name for name in _PUBLISHED_ROPE if not _has_rope_scaling(section(config, name))]


def published_tensors(config: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the speech stage's own tensors in the published layout; the text table is the reasoner's."""
    with torch.device("meta"):
        model = SpeechModel(read_config(config), "reference")
    tensors = model.state_dict()
    return {
        published: tuple(tensors[name].shape)
        for name, published in _published(model).items()
        if published.startswith(_OWN)
    }


def _published(model: nn.Module) -> dict[str, str]:
    return {
        name: published + name.removeprefix(ours)
        for name in model.state_dict()
        for ours, published in _PREFIXES.items()
        if name.startswith(ours)
    }


def _stack_section(config: dict[str, Any], name: str, rope_scaling: RopeScaling) -> dict[str, Any]:
    stack: dict[str, Any] = section(config, name)
    if rope_scaling == "published" and not _has_rope_scaling(stack):
        stack = {**stack, "rope_scaling": None, "rope_parameters": _PUBLISHED_ROPE[name]}
    return stack


def _has_rope_scaling(stack: dict[str, Any]) -> bool:
    rope = {**(stack.get("rope_parameters") or {}), **(stack.get("rope_scaling") or {})}
    return rope.get("rope_type", rope.get("type", "default")) != "default"
