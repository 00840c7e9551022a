"""The reasoner: audio encoder and language model. Tensors in, tensors out."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from services.inference.kv_cache import KvCache
from services.inference.prefill import Chunk
from services.inference.product import Linear
from services.inference.transformer import Transformer, TransformerConfig, transformer_config
from services.reasoner.audio_encoder import AudioEncoder, AudioEncoderConfig


@dataclass(frozen=True)
class ReasonerConfig:
    """The reasoner's numbers."""

    stack: TransformerConfig
    audio: AudioEncoderConfig
    vocabulary_size: int
    audio_token_id: int
    end_token_id: int


def reasoner_config(
    text: dict[str, Any], audio: dict[str, Any], *, audio_token_id: int, end_token_id: int
) -> ReasonerConfig:
    """Builds the numbers from the language model's and the audio encoder's config sections."""
    stack = transformer_config(text, qkv_bias=True, default_theta=1e6)
    audio_config = AudioEncoderConfig(**audio)
    if audio_config.output_size != stack.hidden_size:
        raise ValueError(
            f"the audio encoder's output_dim is {audio_config.output_size}; "
            f"expected the language model's hidden_size, {stack.hidden_size}"
        )
    return ReasonerConfig(stack, audio_config, int(text["vocab_size"]), audio_token_id, end_token_id)


class ReasonerModel(nn.Module):
    """The reasoner's weights and its three steps: encode a block of audio, prefill a chunk, decode a token."""

    def __init__(self, config: ReasonerConfig) -> None:
        super().__init__()
        self.config = config
        self.embed_tokens = nn.Embedding(config.vocabulary_size, config.stack.hidden_size)
        self.stack = Transformer(config.stack)
        self.lm_head = Linear(config.stack.hidden_size, config.vocabulary_size)
        self.audio_encoder = AudioEncoder(config.audio)

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.embed_tokens.weight.device

    def encode_block(self, mel: Tensor) -> Tensor:
        """One attention block of a clip: mel [mel bins, n ≤ mel_block] → embeddings [audio tokens, hidden]."""
        encoded: Tensor = self.audio_encoder(mel)
        return encoded

    def prefill(self, chunk: Chunk, cache: KvCache) -> Tensor:
        """Runs a chunk of a prompt in one slot's cache → the state at its last position, [1, hidden]."""
        hidden: Tensor = self.stack(
            chunk.embeddings, self.stack.places(chunk.columns, chunk.reach), cache, wanted=chunk.last
        )
        return hidden[:, 0]

    def next_token(self, hidden: Tensor) -> Tensor:
        """The most likely token after each state: hidden [B, hidden] → [B] int64."""
        return self.lm_head(hidden).argmax(dim=-1)

    def decode(self, tokens: Tensor, columns: Tensor, cache: KvCache, reach: int) -> tuple[Tensor, Tensor]:
        """One step of all slots: tokens, columns [S] → states after the final norm [S, hidden], next tokens [S].

        A slot that sits out has the dump column.
        """
        places = self.stack.places(columns[:, None], reach)
        hidden = self.stack(self.embed_tokens(tokens)[:, None], places, cache)[:, 0]
        return hidden, self.next_token(hidden)
