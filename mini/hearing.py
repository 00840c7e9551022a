"""What the reasoner hears: log-mel features and the audio encoder, for many clips at once."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np
import soxr
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils.rnn import pad_sequence
from transformers import Qwen2_5OmniAudioEncoderConfig, WhisperFeatureExtractor
from transformers.models.qwen2_5_omni.modeling_qwen2_5_omni import Qwen2_5OmniAudioEncoder

from mini.espeak import Samples
from mini.recordings import USER_RATE_HZ
from mini.sizes import AUDIO_ENCODER

HOP_SAMPLES = 160
_TRANSFORM = 400
_MELS = 128
_PADDED_TOGETHER = 16


@dataclass(frozen=True)
class Heard:
    """Clips as embeddings, one after the other [positions, hidden], and how many positions each has."""

    embeddings: Tensor
    counts: list[int]


def disturbed(samples: Samples, chance: np.random.Generator) -> Samples:
    """A clip as another speaker's microphone may give it: faster and higher or slower and lower, so that formants move
    as well, louder or softer, with silence around it and noise over all of it."""
    before, after = chance.uniform(0, 0.5), chance.uniform(0, 0.7)
    return surrounded(
        _turned(samples, np.exp(chance.uniform(-0.14, 0.14))) * 10 ** chance.uniform(-0.7, 0.15),
        before_seconds=before,
        after_seconds=after,
        noise=10 ** chance.uniform(-5, -2.3),
        chance=chance,
    )


def _turned(samples: Samples, speed: float) -> Samples:
    """A clip as a record gives it that turns at this speed."""
    turned: Samples = soxr.resample(samples, USER_RATE_HZ * speed, USER_RATE_HZ)
    return turned


def surrounded(
    samples: Samples, *, before_seconds: float, after_seconds: float, noise: float, chance: np.random.Generator
) -> Samples:
    """A clip with silence around it and white noise of this size over all of it."""
    edges = round(before_seconds * USER_RATE_HZ), round(after_seconds * USER_RATE_HZ)
    whole = np.pad(samples, edges).astype(np.float32)
    return whole + chance.standard_normal(len(whole), np.float32) * np.float32(noise)


def alike_in_length(lengths: Sequence[int], together: int) -> list[list[int]]:
    """Places in `lengths`, the shortest first, in batches of `together` at most: each is padded to its own longest."""
    order = np.argsort(lengths, kind="stable")
    return [part.tolist() for part in np.array_split(order, -(-len(order) // together))]


class Hearing(nn.Module):
    """The audio encoder under its published names; blocks of 2 s are a batch of their own."""

    def __init__(self) -> None:
        super().__init__()
        config = Qwen2_5OmniAudioEncoderConfig(**AUDIO_ENCODER)
        self.encoder: Any = Qwen2_5OmniAudioEncoder(config)
        self.block = 2 * int(config.n_window)
        self.heads = int(config.encoder_attention_heads)
        filters = torch.from_numpy(WhisperFeatureExtractor(feature_size=_MELS).mel_filters).float().T
        self.register_buffer("filters", filters, persistent=False)
        self.register_buffer("window", torch.hann_window(_TRANSFORM), persistent=False)
        self.filters: Tensor
        self.window: Tensor

    def features(self, clips: list[Samples]) -> list[Tensor]:
        """Log-mel features of each clip, [mels, frames], as the published extractor has them."""
        lengths = [len(clip) for clip in clips]
        longest = max(lengths) + _TRANSFORM
        sounds = pad_sequence([torch.from_numpy(clip) for clip in clips], batch_first=True)
        sounds = functional.pad(sounds, (0, longest - sounds.shape[1])).to(self.window.device)
        spectrum = torch.stft(sounds, _TRANSFORM, HOP_SAMPLES, window=self.window, return_complex=True)
        powers = (self.filters @ spectrum.abs().square()).clamp(min=1e-10).log10()
        powers = torch.maximum(powers, powers.amax(dim=(1, 2), keepdim=True) - 8)
        mels = (powers + 4) / 4
        return [mel[:, : -(-length // HOP_SAMPLES)] for mel, length in zip(mels, lengths, strict=True)]

    def forward(self, features: list[Tensor]) -> Heard:
        """Features of each clip, [mels, frames] → what stands for them in the prompt."""
        blocks = [block for mel in features for block in mel.split(self.block, dim=1)]
        encoded: dict[int, Tensor] = {}
        for alike in alike_in_length([block.shape[1] for block in blocks], _PADDED_TOGETHER):
            encoded |= zip(alike, self._encode([blocks[index] for index in alike]), strict=True)
        in_order = [encoded[index] for index in range(len(blocks))]
        sizes = map(len, in_order)
        counts = [sum(islice(sizes, -(-mel.shape[1] // self.block))) for mel in features]
        return Heard(torch.cat(in_order), counts)

    def _encode(self, blocks: list[Tensor]) -> Sequence[Tensor]:
        """Blocks [mels, frames] → embeddings [positions, hidden] of each."""
        device = self.window.device
        lengths = torch.tensor([block.shape[1] for block in blocks], device=device)
        padded = pad_sequence([block.T for block in blocks], batch_first=True).transpose(1, 2)
        encoder = self.encoder
        known = torch.arange(padded.shape[2], device=device) < lengths[:, None]
        x = functional.gelu(encoder.conv1(padded)) * known[:, None]
        x = functional.gelu(encoder.conv2(x)).transpose(1, 2)
        x = x + encoder.positional_embedding.positional_embedding[: x.shape[1]]
        counts = (lengths - 1) // 2 + 1
        seen = (torch.arange(x.shape[1], device=device) < counts[:, None])[:, None, None]
        for layer in encoder.layers:
            x = x + self._attend(layer.self_attn, layer.self_attn_layer_norm(x), seen)
            x = x + layer.fc2(functional.gelu(layer.fc1(layer.final_layer_norm(x))))
        # Pairs never reach over a block's end: a full block has an even number of positions.
        halves = (counts - 2) // 2 + 1
        paired = x[:, : 2 * int(halves.max())].unflatten(1, (-1, 2)).mean(dim=2)
        kept = torch.arange(paired.shape[1], device=device) < halves[:, None]
        embeddings: Tensor = encoder.proj(encoder.ln_post(paired[kept]))
        return embeddings.split(halves.tolist())

    def _attend(self, attention: Any, x: Tensor, seen: Tensor) -> Tensor:
        parts = (attention.q_proj, attention.k_proj, attention.v_proj)
        q, k, v = (part(x).unflatten(2, (self.heads, -1)).transpose(1, 2) for part in parts)
        joined = functional.scaled_dot_product_attention(q, k, v, attn_mask=seen)
        attended: Tensor = attention.out_proj(joined.transpose(1, 2).flatten(2))
        return attended
