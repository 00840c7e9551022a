"""Samples as bytes: the encodings of the wire."""

import io
from enum import Enum
from typing import Any, TypeAlias

import numpy as np
import soundfile
from chroma_mesh.types.v1 import types_pb2

Samples: TypeAlias = np.ndarray[Any, np.dtype[np.float32]]

USER_RATE_HZ = 16_000
"""What the user says is sent at this rate."""

VOICE_RATE_HZ = 24_000
"""Examples of voices are sent, and replies come, at this rate."""


TELEPHONE_RATE_HZ = 8_000
"""G.711 has this rate alone."""


class Encoding(Enum):
    """How samples are stored on the wire; µ-law and A-law are G.711, as telephones have it."""

    S16 = "s16"
    F32 = "f32"
    MULAW = "mulaw"
    ALAW = "alaw"

    @property
    def wire(self) -> types_pb2.AudioEncoding:
        """The name the protos have for it."""
        match self:
            case Encoding.S16:
                return types_pb2.AUDIO_ENCODING_PCM_S16LE
            case Encoding.F32:
                return types_pb2.AUDIO_ENCODING_PCM_F32LE
            case Encoding.MULAW:
                return types_pb2.AUDIO_ENCODING_MULAW
            case Encoding.ALAW:
                return types_pb2.AUDIO_ENCODING_ALAW

    @property
    def sample_bytes(self) -> int:
        """Bytes of one sample."""
        match self:
            case Encoding.S16:
                return 2
            case Encoding.F32:
                return 4
            case Encoding.MULAW | Encoding.ALAW:
                return 1

    @property
    def rates_hz(self) -> tuple[int, ...]:
        """The rates that a session takes it at."""
        return (TELEPHONE_RATE_HZ,) if self.sample_bytes == 1 else (8_000, 16_000, 24_000, 48_000)

    def wire_format(self, sample_rate_hz: int) -> types_pb2.AudioFormat:
        """This encoding at a rate, as the protos say it."""
        return types_pb2.AudioFormat(encoding=self.wire, sample_rate_hz=sample_rate_hz)

    def audio(self, samples: Samples, sample_rate_hz: int) -> types_pb2.Audio:
        """A complete piece of sound, as the protos say it."""
        return types_pb2.Audio(format=self.wire_format(sample_rate_hz), data=self.encode(samples))

    def encode(self, samples: np.ndarray[Any, Any]) -> bytes:
        """Bytes of mono samples: float within -1 ..= 1 (clipped but in 32 bits), or int16 as it is.

        16 bits divide by 32,768 where the mesh reads them, so what a 16-bit file holds is what the model hears.
        """
        if samples.ndim != 1:
            raise ValueError(f"samples must be mono, of shape [samples]; got shape {list(samples.shape)}")
        if samples.dtype not in (np.float32, np.float64, np.int16):
            raise ValueError(f"samples must be float32, float64 or int16; got {samples.dtype}")
        is_integer = samples.dtype == np.int16
        if not (is_integer or np.isfinite(samples).all()):
            raise ValueError("samples must be finite; got NaN or infinity")
        if self is Encoding.F32:
            return (samples / np.float32(32768) if is_integer else samples).astype("<f4").tobytes()
        integers = samples if is_integer else np.clip(np.round(samples * 32768), -32768, 32767).astype(np.int16)
        match self:
            case Encoding.S16:
                return integers.astype("<i2").tobytes()
            case Encoding.MULAW:
                return _write_g711(integers, "ULAW")
            case Encoding.ALAW:
                return _write_g711(integers, "ALAW")

    def decode(self, data: bytes) -> Samples:
        """float32 samples of bytes from the mesh, which writes 16 bits (G.711 from those) to a full scale of 32,767."""
        match self:
            case Encoding.F32:
                return np.frombuffer(data, "<f4").astype(np.float32)
            case Encoding.S16:
                integers = np.frombuffer(data, "<i2")
            case Encoding.MULAW:
                integers = _read_g711(data, "ULAW")
            case Encoding.ALAW:
                integers = _read_g711(data, "ALAW")
        return np.maximum(integers / np.float32(32767), np.float32(-1)).astype(np.float32)


def _write_g711(integers: np.ndarray[Any, np.dtype[np.int16]], law: str) -> bytes:
    written = io.BytesIO()
    soundfile.write(written, integers, TELEPHONE_RATE_HZ, format="RAW", subtype=law)
    return written.getvalue()


def _read_g711(data: bytes, law: str) -> np.ndarray[Any, np.dtype[np.int16]]:
    integers, _ = soundfile.read(
        io.BytesIO(data), format="RAW", subtype=law, samplerate=TELEPHONE_RATE_HZ, channels=1, dtype="int16"
    )
    return np.asarray(integers, np.int16)
