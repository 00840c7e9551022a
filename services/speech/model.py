"""The speech stage's networks: tensors in, tensors out."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from services.inference.kv_cache import KvCache
from services.inference.prefill import Chunk
from services.inference.sampling import Draw, GumbelNoise, draw
from services.inference.transformer import TransformerConfig, transformer_config
from services.speech.backbone import Backbone
from services.speech.depth_decoder import DepthCache, DepthDecoder, DepthDecoderConfig, DepthPositions

NO_CODE = -1


@dataclass(frozen=True)
class SpeechConfig:
    """The speech stage's numbers. code_count: codes of a codebook that have a sound; the heads have a few more."""

    backbone: TransformerConfig
    depth_decoder: TransformerConfig
    vocabulary_size: int
    codebook_count: int
    logit_count: int
    code_count: int
    text_start_token_id: int
    text_end_token_id: int


def speech_config(backbone: dict[str, Any], depth_decoder: dict[str, Any], **numbers: int) -> SpeechConfig:
    """Builds the numbers from the config sections of the two stacks and the rest by name."""
    config = SpeechConfig(
        backbone=transformer_config(backbone, qkv_bias=False, default_theta=5e5),
        depth_decoder=transformer_config(depth_decoder, qkv_bias=False, default_theta=5e5),
        **numbers,
    )
    width = int(depth_decoder.get("audio_embedding_dim") or config.backbone.hidden_size)
    if width != config.backbone.hidden_size:
        raise ValueError(
            f"audio_embedding_dim is {width}; expected the backbone's hidden_size, {config.backbone.hidden_size}"
        )
    return config


@dataclass(frozen=True)
class FrameInputs:
    """What one frame step of all slots needs; every tensor has a row a slot.

    previous [S, codebooks]: the frame spoken last. hidden [S, hidden], token [S]: the step that is fed, where
    `has_step` [S] bool. columns [S, 3] int64: the cache columns where three positions go, of which the last predicts:
    with a step the frame spoken last, the hidden state and the token, without one only the frame, as the last of the
    three. The dump column: not there. frame [S]: the index of the frame to come.
    """

    previous: Tensor
    hidden: Tensor
    token: Tensor
    has_step: Tensor
    columns: Tensor
    frame: Tensor
    how: Draw


class SpeechModel(nn.Module):
    """Backbone, depth decoder and the two embedding tables that they share."""

    def __init__(self, config: SpeechConfig, depth_positions: DepthPositions) -> None:
        super().__init__()
        self.config = config
        hidden = config.backbone.hidden_size
        self.text_embedding = nn.Embedding(config.vocabulary_size, hidden)
        self.code_embedding = nn.Embedding(config.codebook_count * config.logit_count, hidden)
        self.backbone = Backbone(config.backbone, config.logit_count)
        self.depth_decoder = DepthDecoder(
            DepthDecoderConfig(config.depth_decoder, hidden, config.codebook_count, config.logit_count),
            depth_positions,
        )
        self.noise = GumbelNoise(config.codebook_count, config.code_count)
        self.first_rows: Tensor
        self.register_buffer("first_rows", torch.arange(config.codebook_count) * config.logit_count, persistent=False)

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.code_embedding.weight.device

    @property
    def dtype(self) -> torch.dtype:
        """The weights' precision."""
        return self.code_embedding.weight.dtype

    def embed_frames(self, codes: Tensor) -> Tensor:
        """The sum of a frame's code embeddings: [..., codebooks] → [..., hidden]."""
        return self.code_embedding(codes + self.first_rows).sum(dim=-2)

    def embed_voice(self, transcript: Tensor, frames: Tensor) -> Tensor:
        """The voice prompt's positions: transcript [n], frames [m, codebooks] → [n + m + 3, hidden]; model.md B.1.

        The transcript between its marks, the frames, and a vector of zeros after which speech begins.
        """
        start = transcript.new_tensor([self.config.text_start_token_id])
        end = transcript.new_tensor([self.config.text_end_token_id])
        text = self.text_embedding(torch.cat((start, transcript, end)))
        spoken = self.embed_frames(frames)
        return torch.cat((text, spoken, torch.zeros_like(text[:1])))

    def prefill(self, chunk: Chunk, cache: KvCache) -> None:
        """Runs a chunk of a voice prompt in one slot's cache."""
        stack = self.backbone.stack
        stack(chunk.embeddings, stack.places(chunk.columns, chunk.reach), cache, wanted=chunk.last)

    def next_frames(self, inputs: FrameInputs, cache: KvCache, depth_cache: DepthCache, reach: int) -> Tensor:
        """One frame of every slot: the codes [S, codebooks] int64, NO_CODE where the backbone's state is not finite."""
        stack = self.backbone.stack
        spoken = self.embed_frames(inputs.previous)
        last = torch.where(inputs.has_step[:, None], self.text_embedding(inputs.token), spoken)
        x = torch.stack((spoken, inputs.hidden.to(self.dtype), last), dim=1)
        hidden = stack(x, stack.places(inputs.columns, reach), cache)[:, -1]
        logits = self.backbone.first_logits(hidden, self.config.code_count)
        noise: Tensor | None = self.noise(inputs.how, inputs.frame)
        first = draw(logits, inputs.how, None if noise is None else noise[:, 0])
        codes = self.depth_decoder.decode(
            hidden, first, self.code_embedding, self.config.code_count, inputs.how, noise, depth_cache
        )
        return torch.where(hidden.isfinite().all(dim=-1, keepdim=True), codes, NO_CODE)
