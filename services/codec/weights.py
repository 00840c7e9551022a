"""The codec's part of the checkpoint: where its numbers and tensors stand."""

from collections.abc import Iterable
from typing import Any

import torch
from transformers import MimiConfig

from services.codec.model import Codec, CodecConfig, build_mimi
from services.inference.checkpoint import Checkpoint, config_numbers, section

_OWN = "codec_model."
_FOREIGN = ("thinker.", "backbone.", "decoder.")
_NOT_ARCHITECTURE = ("model_type", "dtype", "torch_dtype")
# Modules of transformers since 5.23 → their names before, which the published checkpoint has (model.md A.6).
_PUBLISHED = {
    "encoder.encoder_seanet.": "encoder.",
    "encoder.encoder_transformer.": "encoder_transformer.",
    "encoder.downsample.": "downsample.",
    "decoder.upsample.": "upsample.",
    "decoder.decoder_transformer.": "decoder_transformer.",
    "decoder.decoder_seanet.": "decoder.",
}


def read_config(config: dict[str, Any]) -> CodecConfig:
    """The codec's numbers from config.json; CheckpointError for a codec that can't be streamed."""
    # The precision that it was stored in is not the one that it runs in.
    mimi = {key: value for key, value in section(config, "codec_config").items() if key not in _NOT_ARCHITECTURE}
    if "sliding_window" in mimi and mimi["sliding_window"] is None:
        # Without a window, attention reaches as far back as the config has positions.
        mimi["sliding_window"] = mimi.get("max_position_embeddings", MimiConfig.max_position_embeddings)
    with config_numbers("codec_config"):
        return CodecConfig(MimiConfig(**mimi), int(section(config, "audio_num_codebooks")))


def load(checkpoint: Checkpoint, device: torch.device) -> Codec:
    """The codec with its weights; raises CheckpointError with all that doesn't fit."""
    config = read_config(checkpoint.config)
    mimi = build_mimi(config.mimi, device)
    checkpoint.fill(mimi, stored_names(mimi.state_dict()), own=(_OWN,), foreign=_FOREIGN)
    return Codec(mimi, config.codebook_count)


def stored_names(module_names: Iterable[str]) -> dict[str, tuple[str, ...]]:
    """The names that each tensor of the module may be stored under, the published one first."""
    return {name: tuple(dict.fromkeys((_published(name), _OWN + name))) for name in module_names}


def published_tensors(config: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the codec's tensors in the published layout."""
    mimi = build_mimi(read_config(config).mimi, torch.device("meta"))
    return {_published(name): tuple(tensor.shape) for name, tensor in mimi.state_dict().items()}


def _published(name: str) -> str:
    for module, published in _PUBLISHED.items():
        if name.startswith(module):
            return _OWN + published + name.removeprefix(module)
    return _OWN + name
