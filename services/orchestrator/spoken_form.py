"""How the listener's sound is made of the codec's."""

from dataclasses import dataclass

import numpy as np
from chroma_mesh.types.v1 import types_pb2

from services.orchestrator.pacing import Encode
from services.orchestrator.sound_formats import SpokenSound
from services.orchestrator.stages import CodecFacts
from services.orchestrator.user_turn import F32, S16, SAMPLE_BYTES


@dataclass(frozen=True)
class SpokenForm:
    """What a session's listener is sent: its format, and how a frame of it measures."""

    audio_format: types_pb2.AudioFormat
    codec_format: types_pb2.AudioFormat
    samples_per_frame: int
    frame_seconds: float

    @classmethod
    def of(cls, audio_format: types_pb2.AudioFormat, facts: CodecFacts) -> "SpokenForm":
        """The form of a session's sound: the codec's own where it can make it, else converted from its floats."""
        is_codecs = audio_format.sample_rate_hz == facts.sample_rate_hz and audio_format.encoding in (S16, F32)
        floats = types_pb2.AudioFormat(encoding=F32, sample_rate_hz=facts.sample_rate_hz)
        return cls(
            audio_format=audio_format,
            codec_format=audio_format if is_codecs else floats,
            samples_per_frame=facts.samples_per_frame * audio_format.sample_rate_hz // facts.sample_rate_hz,
            frame_seconds=facts.samples_per_frame / facts.sample_rate_hz,
        )

    @property
    def sample_bytes(self) -> int:
        """Bytes of a sample that the listener is sent; G.711 has one."""
        return SAMPLE_BYTES.get(self.audio_format.encoding, 1)

    def encode(self) -> Encode:
        """Makes what the listener is sent of the codec's sound."""
        return _AsItIs() if self.codec_format == self.audio_format else _Converted(self.audio_format)


class _AsItIs:
    """The codec's sound in the listener's own format."""

    def speak(self, data: bytes) -> bytes:
        return data

    def end(self) -> bytes:
        return b""


class _Converted:
    """The codec's floats in the listener's format."""

    def __init__(self, audio_format: types_pb2.AudioFormat) -> None:
        self._sound = SpokenSound(audio_format)

    def speak(self, data: bytes) -> bytes:
        return self._sound.speak(np.frombuffer(data, "<f4"))

    def end(self) -> bytes:
        return self._sound.end()
