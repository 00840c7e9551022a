"""The codec: sound to frames in one call, frames to sound one step at a time. Always float32."""

from torch import Tensor

from services.codec.mimi import Mimi
from services.codec.slot_decoder import SlotDecoder, slot_decoder
from services.codec.streaming_decoder import StreamingDecoder, exact_float32


class Codec:
    """Mimi with weights, on one device; to be called from one thread."""

    def __init__(self, mimi: Mimi, codebook_count: int) -> None:
        self.sample_rate_hz = mimi.config.sampling_rate
        self.codebook_count = codebook_count
        self.codebook_size = mimi.config.codebook_size
        self.device = mimi.device
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
            return self.mimi.encode(samples.to(self.device), self.codebook_count).cpu()

    def slot_decoder(self, slot_count: int) -> SlotDecoder:
        """A streaming decoder of `slot_count` slots, all new."""
        return slot_decoder(self._decoder, slot_count)
