"""The voices a mesh speaks with."""

from dataclasses import dataclass

from chroma_mesh.orchestrator.v1 import orchestrator_pb2

from client.pcm import VOICE_RATE_HZ, Encoding, Samples


@dataclass(frozen=True)
class Voice:
    """A named voice of the mesh: `transcript` is what its example says; `is_private`: others don't see it."""

    name: str
    transcript: str
    example_seconds: float
    is_default: bool
    is_builtin: bool
    is_private: bool


@dataclass(frozen=True, eq=False)
class VoiceExample:
    """An example of a voice: what is said, and 0.02 s ..= 30 s of mono sound at 24,000 Hz."""

    transcript: str
    samples: Samples

    def message(self) -> orchestrator_pb2.VoiceExample:
        """The example as the protos say it; always float32, since it decides how every reply sounds."""
        audio = Encoding.F32.audio(self.samples, VOICE_RATE_HZ)
        return orchestrator_pb2.VoiceExample(transcript=self.transcript, audio=audio)


def read_voice(voice: orchestrator_pb2.Voice) -> Voice:
    """The voice of a message."""
    return Voice(
        name=voice.name,
        transcript=voice.transcript,
        example_seconds=voice.example_seconds,
        is_default=voice.is_default,
        is_builtin=voice.is_builtin,
        is_private=voice.is_private,
    )
