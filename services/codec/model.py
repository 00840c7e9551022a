"""The codec: sound to frames in one call, frames to sound one step at a time. Always float32."""

from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import MimiConfig, MimiModel

from services.codec.mimi import StreamingDecoder, check_streamable, exact_float32
from services.codec.slot_decoder import SlotDecoder, slot_decoder
from services.inference.device import blank_modules


@dataclass(frozen=True)
class CodecConfig:
    """The codec's numbers. codebook_count: codes of a frame; Mimi may have more codebooks than the model speaks."""

    mimi: MimiConfig
    codebook_count: int

    def __post_init__(self) -> None:
        check_streamable(self.mimi)
        least, most = self.mimi.num_semantic_quantizers, self.mimi.num_quantizers
        if not least <= self.codebook_count <= most:
            raise ValueError(
                f"audio_num_codebooks is {self.codebook_count}; expected {least} ..= {most}, which codec_config has"
            )


def build_mimi(config: MimiConfig, device: torch.device) -> MimiModel:
    """Mimi's modules without weights: uninitialised, but for the buffers that no checkpoint holds."""
    with blank_modules(device, torch.float32):
        mimi: MimiModel = MimiModel(config)
    return mimi.eval().requires_grad_(False)


class Codec:
    """Mimi with weights, on one device; to be called from one thread."""

    def __init__(self, mimi: MimiModel, codebook_count: int) -> None:
        self.sample_rate_hz: int = mimi.config.sampling_rate
        self.codebook_count = codebook_count
        self.codebook_size: int = mimi.config.codebook_size
        self.device: torch.device = mimi.device
        self.mimi = mimi
        with exact_float32():
            self._decoder = StreamingDecoder(mimi, codebook_count)

    @property
    def samples_per_frame(self) -> int:
        """Samples that a frame becomes."""
        return self._decoder.samples_per_frame

    def encode(self, samples: Tensor) -> Tensor:
        """Encodes sound [samples] float32 into frames [ceil(samples / samples_per_frame), codebook_count] int64."""
        with exact_float32():
            encoded = self.mimi.encode(samples.to(self.device)[None, None], num_quantizers=self.codebook_count)
        codes: Tensor = encoded.audio_codes[0]
        return codes.transpose(0, 1).cpu()

    def slot_decoder(self, slot_count: int) -> SlotDecoder:
        """A streaming decoder of `slot_count` slots, all new."""
        return slot_decoder(self._decoder, slot_count)
