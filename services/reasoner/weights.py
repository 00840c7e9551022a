"""The reasoner's part of the checkpoint: where its numbers and tensors stand."""

from typing import Any

import torch
from torch import nn

from services.inference.checkpoint import Checkpoint, config_numbers, section
from services.inference.device import blank_modules
from services.reasoner.model import ReasonerConfig, ReasonerModel, reasoner_config

_OWN = ("thinker.",)
_FOREIGN = ("backbone.", "decoder.", "codec_model.")
_UNUSED = ("thinker.visual.",)
_PREFIXES = {
    "embed_tokens.": "thinker.model.embed_tokens.",
    "stack.": "thinker.model.",
    "lm_head.": "thinker.lm_head.",
    "audio_encoder.": "thinker.audio_tower.",
}


def read_config(config: dict[str, Any]) -> ReasonerConfig:
    """The reasoner's numbers from config.json; CheckpointError when one is missing."""
    with config_numbers("thinker_config"):
        return reasoner_config(
            text=section(config, "thinker_config", "text_config"),
            audio=section(config, "thinker_config", "audio_config"),
            audio_token_id=_audio_token_id(config),
            end_token_id=int(section(config, "im_end_token_id")),
        )


def load(checkpoint: Checkpoint, device: torch.device, dtype: torch.dtype) -> ReasonerModel:
    """The reasoner with its weights, in evaluation mode."""
    with blank_modules(device, dtype):
        model = ReasonerModel(read_config(checkpoint.config))
    names = {name: [published] for name, published in _published(model).items()}
    thinker = section(checkpoint.config, "thinker_config")
    if thinker.get("tie_word_embeddings") or thinker["text_config"].get("tie_word_embeddings"):
        names["lm_head.weight"].append(names["embed_tokens.weight"][0])
    checkpoint.fill(model, names, own=_OWN, foreign=_FOREIGN, unused=_UNUSED)
    return model.eval().requires_grad_(False)


def published_tensors(config: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the reasoner's tensors in the published layout."""
    with torch.device("meta"):
        model = ReasonerModel(read_config(config))
    tensors = model.state_dict()
    return {published: tuple(tensors[name].shape) for name, published in _published(model).items()}


def _published(model: nn.Module) -> dict[str, str]:
    return {
        name: published + name.removeprefix(ours)
        for name in model.state_dict()
        for ours, published in _PREFIXES.items()
        if name.startswith(ours)
    }


def _audio_token_id(config: dict[str, Any]) -> int:
    # transformers 5 writes the newer spelling.
    newer = "audio_token_id" in section(config, "thinker_config")
    return int(section(config, "thinker_config", "audio_token_id" if newer else "audio_token_index"))
