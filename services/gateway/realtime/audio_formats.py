"""The formats of sound that the protocol has."""

from dataclasses import dataclass

from client.pcm import TELEPHONE_RATE_HZ, VOICE_RATE_HZ, Encoding
from client.session_settings import SoundFormat


@dataclass(frozen=True)
class AudioFormat:
    """A format by its name in the protocol; sound is mono."""

    name: str
    encoding: Encoding
    rate_hz: int

    @property
    def sample_bytes(self) -> int:
        """Bytes of one sample."""
        return self.encoding.sample_bytes

    @property
    def sound_format(self) -> SoundFormat:
        """The format as the mesh's client has it."""
        return SoundFormat(self.encoding, self.rate_hz)

    def sample_count(self, milliseconds: int) -> int:
        """Whole samples in so much time."""
        return milliseconds * self.rate_hz // 1000

    def milliseconds(self, sample_count: int) -> int:
        """Whole milliseconds in so many samples."""
        return sample_count * 1000 // self.rate_hz

    def body(self) -> dict[str, str | int]:
        """The format as the protocol says it."""
        return {"type": self.name, "rate": self.rate_hz} if self is PCM else {"type": self.name}


PCM = AudioFormat("audio/pcm", Encoding.S16, VOICE_RATE_HZ)
PCMU = AudioFormat("audio/pcmu", Encoding.MULAW, TELEPHONE_RATE_HZ)
PCMA = AudioFormat("audio/pcma", Encoding.ALAW, TELEPHONE_RATE_HZ)
FORMATS = {audio_format.name: audio_format for audio_format in (PCM, PCMU, PCMA)}
