"""The codec's part of the checkpoint: where its numbers and tensors stand."""

from collections.abc import Iterable
from typing import Any

import torch

from services.codec.config import CodecConfig, mimi_config
from services.codec.mimi import build_mimi
from services.codec.model import Codec
from services.inference.checkpoint import Checkpoint, config_numbers, section

PREFIX = "codec_model."
_FOREIGN = ("thinker.", "backbone.", "decoder.")
# Published names (model.md A.6) → those that transformers gives since 5.23.
_NEWER = {
    "encoder.": "encoder.encoder_seanet.",
    "encoder_transformer.": "encoder.encoder_transformer.",
    "downsample.": "encoder.downsample.",
    "upsample.": "decoder.upsample.",
    "decoder_transformer.": "decoder.decoder_transformer.",
    "decoder.": "decoder.decoder_seanet.",
}


def read_config(config: dict[str, Any]) -> CodecConfig:
    """The codec's numbers from config.json; CheckpointError for a codec that can't be streamed."""
    with config_numbers("codec_config"):
        return CodecConfig(mimi_config(section(config, "codec_config")), int(section(config, "audio_num_codebooks")))


def load(checkpoint: Checkpoint, device: torch.device) -> Codec:
    """The codec with its weights; raises CheckpointError with all that doesn't fit."""
    config = read_config(checkpoint.config)
    mimi = build_mimi(config.mimi, device)
    checkpoint.fill(mimi, stored_names(mimi.state_dict()), own=(PREFIX,), foreign=_FOREIGN)
    return Codec(mimi, config.codebook_count)


def stored_names(names: Iterable[str]) -> dict[str, tuple[str, ...]]:
    """The names that each tensor of Mimi may be stored under, the published one first."""
    return {name: tuple(dict.fromkeys((PREFIX + name, PREFIX + newer_name(name)))) for name in names}


def published_tensors(config: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the codec's tensors in the published layout."""
    mimi = build_mimi(read_config(config).mimi, torch.device("meta"))
    return {PREFIX + name: tuple(tensor.shape) for name, tensor in mimi.state_dict().items()}


def newer_name(name: str) -> str:
    """What transformers calls a tensor that we call by its published name."""
    for published, newer in _NEWER.items():
        if name.startswith(published):
            return newer + name.removeprefix(published)
    return name
