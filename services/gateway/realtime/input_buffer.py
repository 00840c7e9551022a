"""What the user says, until it is an item."""

from services.gateway.realtime.audio_formats import AudioFormat


class InputBuffer:
    """Sound as it came, by its place in all that was written to the socket.

    `begin` and `end` are samples since the format was set; `milliseconds` counts from the socket's start.
    """

    def __init__(self, audio_format: AudioFormat, *, began_ms: int = 0) -> None:
        self.audio_format = audio_format
        self.begin = 0
        self._began_ms = began_ms
        self._data = bytearray()

    @property
    def end(self) -> int:
        """The sample after the last one."""
        return self.begin + self.sample_count

    @property
    def sample_count(self) -> int:
        """Samples that are here."""
        return len(self._data) // self.audio_format.sample_bytes

    @property
    def seconds(self) -> float:
        """How long it is."""
        return self.sample_count / self.audio_format.rate_hz

    @property
    def data(self) -> bytes:
        """All that is here."""
        return bytes(self._data)

    def milliseconds(self, sample: int) -> int:
        """When a sample was said."""
        return self._began_ms + self.audio_format.milliseconds(sample)

    def in_format(self, audio_format: AudioFormat) -> "InputBuffer":
        """The buffer for what comes in another format; what is here is forgotten."""
        return InputBuffer(audio_format, began_ms=self.milliseconds(self.end))

    def write(self, data: bytes) -> None:
        """Something is said."""
        self._data += data

    def drop_until(self, sample: int) -> None:
        """Forgets what was said before a sample."""
        count = min(max(0, sample - self.begin), self.sample_count)
        del self._data[: count * self.audio_format.sample_bytes]
        self.begin += count

    def take_until(self, sample: int) -> bytes:
        """What was said before a sample; it is here no more."""
        count = min(max(0, sample - self.begin), self.sample_count)
        taken = bytes(self._data[: count * self.audio_format.sample_bytes])
        self.drop_until(sample)
        return taken
