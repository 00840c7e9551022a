"""What the user says in one turn."""

from collections.abc import Iterator

from chroma_mesh.types.v1 import types_pb2

from services.runtime.audio import decode_pcm
from services.runtime.errors import InvalidArgument

SAMPLE_RATE_HZ = 16_000
MINIMUM_SECONDS = 0.02
MAXIMUM_SECONDS = 300.0
# Far more than any context holds; a bound on what one session can make the orchestrator keep.
MAXIMUM_TEXT_BYTES = 1024 * 1024
# The client's packets are joined before they are relayed, for every message costs.
PIECE_SECONDS = 1

SAMPLE_BYTES = {types_pb2.AUDIO_ENCODING_PCM_S16LE: 2, types_pb2.AUDIO_ENCODING_PCM_F32LE: 4}


class UserTurn:
    """The parts of one turn in order: consecutive audio is one clip, consecutive texts are one text.

    Bad input is refused as it comes, with InvalidArgument.
    """

    def __init__(self, audio_format: types_pb2.AudioFormat) -> None:
        self._format = audio_format
        self._sample_bytes = SAMPLE_BYTES[audio_format.encoding]
        self._parts: list[bytearray | str] = []
        self._text_bytes = 0
        self._sample_count = 0

    @property
    def size_bytes(self) -> int:
        """Bytes that the turn takes."""
        return self._text_bytes + self._sample_count * self._sample_bytes

    @property
    def _seconds(self) -> float:
        return self._sample_count / SAMPLE_RATE_HZ

    def add_audio(self, data: bytes) -> None:
        """Takes PCM in the turn's format; refuses parts of samples, floats that are not finite, and too much in all."""
        self._sample_count += len(decode_pcm(data, self._format.encoding, field="audio.data"))
        if self._sample_count > MAXIMUM_SECONDS * SAMPLE_RATE_HZ:
            raise InvalidArgument(
                f"a turn may have at most {MAXIMUM_SECONDS:g} s of audio, got {self._seconds:.4f} s",
                reason="AUDIO_TOO_LONG",
                field="audio.data",
            )
        if not data:
            return
        last = self._parts[-1] if self._parts else None
        if isinstance(last, bytearray):
            last += data
        else:
            self._parts.append(bytearray(data))

    def add_text(self, text: str) -> None:
        """Takes something typed; refuses nothing, and too much in all."""
        if not text:
            raise InvalidArgument("text.text must not be empty", reason="EMPTY_TEXT", field="text.text")
        self._text_bytes += len(text.encode())
        if self._text_bytes > MAXIMUM_TEXT_BYTES:
            raise InvalidArgument(
                f"a turn may have at most {MAXIMUM_TEXT_BYTES} bytes of text, got {self._text_bytes}",
                reason="TEXT_TOO_LONG",
                field="text.text",
            )
        if self._parts and isinstance(self._parts[-1], str):
            self._parts[-1] += text
        else:
            self._parts.append(text)

    def complete(self) -> None:
        """Refuses a turn without anything, or with nothing but a clip that is too short.

        Such a clip beside text is left out: it is the rest of a packet, and the model has nothing to hear in it.
        """
        if not self._parts:
            raise InvalidArgument("a turn must have audio or text, got neither", reason="EMPTY_TURN", field="end_turn")
        shortest = MINIMUM_SECONDS * SAMPLE_RATE_HZ * self._sample_bytes
        kept = [part for part in self._parts if isinstance(part, str) or len(part) >= shortest]
        if not kept:
            raise InvalidArgument(
                f"a turn must have at least {MINIMUM_SECONDS:g} s of audio, got {self._seconds:g} s",
                reason="AUDIO_TOO_SHORT",
                field="audio.data",
            )
        self._parts = kept

    def pieces(self) -> Iterator[bytes | str]:
        """The turn for the reasoner: clips in pieces of a second, texts whole."""
        size = PIECE_SECONDS * SAMPLE_RATE_HZ * self._sample_bytes
        for part in self._parts:
            if isinstance(part, str):
                yield part
            else:
                for start in range(0, len(part), size):
                    yield bytes(part[start : start + size])

    def message(self) -> types_pb2.Message:
        """The turn as a message of the conversation, its sound as it was sent."""
        return types_pb2.Message(
            role=types_pb2.ROLE_USER,
            parts=[
                types_pb2.ContentPart(text=part)
                if isinstance(part, str)
                else types_pb2.ContentPart(audio=types_pb2.Audio(format=self._format, data=bytes(part)))
                for part in self._parts
            ],
        )
