"""What the user says in one turn."""

import asyncio
from collections.abc import Callable, Iterable
from itertools import groupby

import numpy as np
from chroma_mesh.types.v1 import types_pb2
from numpy.typing import NDArray

from services.orchestrator.clock import Clock
from services.orchestrator.sound_formats import HEARD_RATE_HZ
from services.orchestrator.track import Track
from services.runtime.audio import encode_pcm
from services.runtime.errors import InvalidArgument

MINIMUM_SECONDS = 0.02
MAXIMUM_SECONDS = 300.0
# Far more than any context holds; a bound on what one session can make the orchestrator keep.
MAXIMUM_TEXT_BYTES = 1024 * 1024
# The client's packets are joined before they are relayed, for every message costs. Short enough that a reasoner that
# prefills meanwhile is never far behind.
PIECE_SECONDS = 0.2

S16, F32 = types_pb2.AUDIO_ENCODING_PCM_S16LE, types_pb2.AUDIO_ENCODING_PCM_F32LE
SAMPLE_BYTES = {S16: 2, F32: 4}


def relayed_format(input_format: types_pb2.AudioFormat) -> types_pb2.AudioFormat:
    """The form in which a session's sound is relayed and kept: at 16,000 Hz, floats as floats, all else as integers.

    The same bytes go to the reasoner while the user speaks and, as history, in every later turn: what it heard once it
    finds again in its cache. 16-bit sound at 16,000 Hz is kept bit for bit. What is resampled from 16 or 8 bits is
    rounded to 16 again, before anybody hears it: half the bytes of floats, and the noise of that is the input's own.
    """
    return types_pb2.AudioFormat(encoding=F32 if input_format.encoding == F32 else S16, sample_rate_hz=HEARD_RATE_HZ)


class UserTurn:
    """The parts of one turn in order: consecutive audio is one clip, consecutive texts are one text.

    `pieces` grows while the user speaks, until `complete` or `abandon`: clips in pieces of PIECE_SECONDS, each clip's
    last one shorter; texts as they came. Bad input is refused as it comes, with InvalidArgument.
    """

    def __init__(
        self,
        audio_format: types_pb2.AudioFormat,
        clock: Clock,
        record: Callable[[types_pb2.ContentPart], None] | None = None,
    ) -> None:
        """`audio_format` is a `relayed_format`; `record` is given each piece as it comes."""
        self.pieces: Track[bytes | str] = Track()
        self.ended_at = 0.0
        self.is_complete = False
        self.text_bytes = 0
        self.sample_count = 0
        self.clip_count = 0
        self._clock = clock
        self._record = record
        self.audio_format = audio_format
        self._sample_bytes = SAMPLE_BYTES[audio_format.encoding]
        self._piece_bytes = round(PIECE_SECONDS * HEARD_RATE_HZ) * self._sample_bytes
        # Sound of the clip that is being said, and how much of it waits to become a piece.
        self._clip_sample_count = 0
        self._waiting = bytearray()
        self._ended = asyncio.Event()

    @property
    def is_ended(self) -> bool:
        """Whether nothing follows: it is complete, or given up."""
        return self._ended.is_set()

    @property
    def is_empty(self) -> bool:
        """Whether nothing was said, typed or left over so far."""
        return not self.pieces.items and not self._waiting

    @property
    def size_bytes(self) -> int:
        """Bytes that the turn takes."""
        return self.text_bytes + self.sample_count * self._sample_bytes

    @property
    def seconds(self) -> float:
        """Sound in the turn, in seconds."""
        return self.sample_count / HEARD_RATE_HZ

    @classmethod
    def restored(
        cls, parts: Iterable[types_pb2.ContentPart], audio_format: types_pb2.AudioFormat, clock: Clock
    ) -> "UserTurn":
        """The complete turn of these `parts`."""
        turn = cls(audio_format, clock)
        for is_text, group in groupby(parts, lambda part: part.WhichOneof("content") == "text"):
            for part in group:
                turn._keep(part.text if is_text else part.audio.data)
                turn.text_bytes += len(part.text.encode())
                turn.sample_count += len(part.audio.data) // turn._sample_bytes
            turn.clip_count += not is_text
        turn.is_complete = True
        turn._end()
        return turn

    def add_audio(self, samples: NDArray[np.float32]) -> None:
        """Takes samples [count] at 16,000 Hz, full scale 1; refuses too much in all."""
        self.sample_count += len(samples)
        self._clip_sample_count += len(samples)
        if self.sample_count > MAXIMUM_SECONDS * HEARD_RATE_HZ:
            raise InvalidArgument(
                f"a turn may have at most {MAXIMUM_SECONDS:g} s of audio, got {self.seconds:.4f} s",
                reason="AUDIO_TOO_LONG",
                field="audio.data",
            )
        self._waiting += _encode(samples, self.audio_format.encoding)
        while len(self._waiting) >= self._piece_bytes:
            self._keep(bytes(self._waiting[: self._piece_bytes]))
            del self._waiting[: self._piece_bytes]

    def add_text(self, text: str) -> None:
        """Takes something typed; refuses nothing, and too much in all."""
        if not text:
            raise InvalidArgument("text.text must not be empty", reason="EMPTY_TEXT", field="text.text")
        self.text_bytes += len(text.encode())
        if self.text_bytes > MAXIMUM_TEXT_BYTES:
            raise InvalidArgument(
                f"a turn may have at most {MAXIMUM_TEXT_BYTES} bytes of text, got {self.text_bytes}",
                reason="TEXT_TOO_LONG",
                field="text.text",
            )
        self._end_clip()
        self._keep(text)

    def complete(self) -> None:
        """Ends the turn; refuses one without anything, or with nothing but a clip that is too short.

        Such a clip beside text is left out: it is the rest of a packet, and the model has nothing to hear in it.
        """
        if self.is_empty:
            raise InvalidArgument("a turn must have audio or text, got neither", reason="EMPTY_TURN", field="end_turn")
        seconds = self.seconds
        self._end_clip()
        if not self.pieces.items:
            raise InvalidArgument(
                f"a turn must have at least {MINIMUM_SECONDS:g} s of audio, got {seconds:g} s",
                reason="AUDIO_TOO_SHORT",
                field="audio.data",
            )
        self.is_complete = True
        self._end()

    def abandon(self) -> None:
        """Gives the turn up: it is not answered."""
        self._end()

    async def ended(self) -> None:
        """Returns when nothing follows: the turn is complete, or given up."""
        await self._ended.wait()

    def message(self) -> types_pb2.Message:
        """The turn as a message of the conversation, its sound as it was relayed."""
        parts = []
        for kind, group in groupby(self.pieces.items, type):
            pieces = list(group)
            if kind is str:
                parts.append(types_pb2.ContentPart(text="".join(piece for piece in pieces if isinstance(piece, str))))
            else:
                data = b"".join(piece for piece in pieces if isinstance(piece, bytes))
                parts.append(types_pb2.ContentPart(audio=types_pb2.Audio(format=self.audio_format, data=data)))
        return types_pb2.Message(role=types_pb2.ROLE_USER, parts=parts)

    def _end(self) -> None:
        self.ended_at = self._clock.now()
        self.pieces.end()
        self._ended.set()

    def _end_clip(self) -> None:
        # Nothing of a clip that is too short was relayed yet: a piece is longer than that.
        if self._clip_sample_count < MINIMUM_SECONDS * HEARD_RATE_HZ:
            self.sample_count -= self._clip_sample_count
        else:
            self.clip_count += 1
            if self._waiting:
                self._keep(bytes(self._waiting))
        self._clip_sample_count = 0
        self._waiting.clear()

    def _keep(self, piece: str | bytes) -> None:
        self.pieces.keep(piece)
        if self._record is None:
            return
        part = (
            types_pb2.ContentPart(text=piece)
            if isinstance(piece, str)
            else types_pb2.ContentPart(audio=types_pb2.Audio(format=self.audio_format, data=piece))
        )
        self._record(part)


def _encode(samples: NDArray[np.float32], encoding: types_pb2.AudioEncoding) -> bytes:
    if encoding == F32:
        return encode_pcm(samples, F32)
    # The inverse of how integers are read (full scale 32768, not 32767): what was heard is what was sent, bit for bit.
    return np.clip(np.rint(samples * np.float32(32768)), -32768, 32767).astype("<i2").tobytes()
