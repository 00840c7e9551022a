"""What a reply tells the client: nothing before the turn is kept, and only what the client does not have."""

from collections.abc import Awaitable, Callable, Sequence

from chroma_mesh.orchestrator.v1 import orchestrator_pb2

from services.orchestrator.heard import NOTHING, Had, TextPiece
from services.orchestrator.outbox import Outbox
from services.orchestrator.reply_ending import Timings


class ReplyListener:
    """The listener of one reply, which may be one that is made again: what of it the client has is left out."""

    def __init__(
        self,
        outbox: Outbox,
        keep: Callable[[], Awaitable[int]],
        *,
        sample_bytes: int,
        joins_text: bool,
        had: Had = NOTHING,
    ) -> None:
        """`keep` sees that the turn outlives the call and returns how many client messages need not be sent again;
        `joins_text`: pieces of text may go in one message."""
        self._outbox = outbox
        self._keep = keep
        self._had = had
        self._sample_bytes = sample_bytes
        self._joins_text = joins_text
        self._text_count = 0
        self._sample_count = 0

    async def reply_started(self, turn_index: int) -> None:
        """As in Listener."""
        kept_message_count = await self._keep()
        if not self._had.is_started:
            await self._outbox.reply_started(turn_index, kept_message_count)

    async def text(self, turn_index: int, pieces: Sequence[TextPiece]) -> None:
        """As in Listener."""
        had_pieces = max(0, self._had.text_count - self._text_count)
        self._text_count += len(pieces)
        rest = pieces[had_pieces:]
        for message in [rest] if self._joins_text and rest else [[piece] for piece in rest]:
            await self._outbox.text(turn_index, message)

    async def audio(
        self, turn_index: int, frame_index: int, frame_count: int, data: bytes, timings: Timings | None
    ) -> None:
        """As in Listener."""
        # How much of the sound comes with which frame may differ at other rates, but not the sound.
        had_samples = max(0, self._had.sample_count - self._sample_count)
        had_frames = min(frame_count, max(0, self._had.frame_count - frame_index))
        self._sample_count += len(data) // self._sample_bytes
        rest = data[had_samples * self._sample_bytes :]
        if rest or frame_count > had_frames:
            await self._outbox.audio(turn_index, frame_index + had_frames, frame_count - had_frames, rest, timings)

    def drop_reply(self, turn_index: int) -> list[orchestrator_pb2.ReplyAudio]:
        """As in Listener."""
        return self._outbox.drop_reply(turn_index)
