"""Samples as bytes: the two encodings of the wire."""

from enum import Enum
from typing import Any, TypeAlias

import numpy as np
from chroma_mesh.types.v1 import types_pb2

Samples: TypeAlias = np.ndarray[Any, np.dtype[np.float32]]

USER_RATE_HZ = 16_000
"""What the user says is sent at this rate."""

VOICE_RATE_HZ = 24_000
"""Examples of voices are sent, and replies come, at this rate."""


class Encoding(Enum):
    """How samples are stored on the wire."""

    S16 = "s16"
    F32 = "f32"

    @property
    def wire(self) -> types_pb2.AudioEncoding:
        """The name the protos have for it."""
        return types_pb2.AUDIO_ENCODING_PCM_S16LE if self is Encoding.S16 else types_pb2.AUDIO_ENCODING_PCM_F32LE

    @property
    def sample_bytes(self) -> int:
        """Bytes of one sample."""
        return 2 if self is Encoding.S16 else 4

    def wire_format(self, sample_rate_hz: int) -> types_pb2.AudioFormat:
        """This encoding at a rate, as the protos say it."""
        return types_pb2.AudioFormat(encoding=self.wire, sample_rate_hz=sample_rate_hz)

    def audio(self, samples: Samples, sample_rate_hz: int) -> types_pb2.Audio:
        """A complete piece of sound, as the protos say it."""
        return types_pb2.Audio(format=self.wire_format(sample_rate_hz), data=self.encode(samples))

    def encode(self, samples: np.ndarray[Any, Any]) -> bytes:
        """Bytes of mono samples: float within -1 ..= 1 (clipped in 16 bits), or int16 as it is.

        16 bits divide by 32,768 where the mesh reads them, so what a 16-bit file holds is what the model hears.
        """
        if samples.ndim != 1:
            raise ValueError(f"samples must be mono, of shape [samples]; got shape {list(samples.shape)}")
        if samples.dtype == np.int16:
            if self is Encoding.S16:
                return samples.astype("<i2").tobytes()
            return (samples / np.float32(32768)).astype("<f4").tobytes()
        if samples.dtype not in (np.float32, np.float64):
            raise ValueError(f"samples must be float32, float64 or int16; got {samples.dtype}")
        if not np.isfinite(samples).all():
            raise ValueError("samples must be finite; got NaN or infinity")
        if self is Encoding.F32:
            return samples.astype("<f4").tobytes()
        return np.clip(np.round(samples * 32768), -32768, 32767).astype("<i2").tobytes()

    def decode(self, data: bytes) -> Samples:
        """float32 samples of bytes from the mesh, which writes 16 bits with a full scale of 32,767."""
        if self is Encoding.F32:
            return np.frombuffer(data, "<f4").astype(np.float32)
        return np.maximum(np.frombuffer(data, "<i2") / np.float32(32767), np.float32(-1)).astype(np.float32)
