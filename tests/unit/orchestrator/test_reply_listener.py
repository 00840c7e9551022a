"""Of a reply that is made again the client gets what it does not have, and nothing twice."""

from collections.abc import Sequence

from hypothesis import given
from hypothesis import strategies as st

from services.orchestrator.heard import Had, Playback, TextPiece
from services.orchestrator.reply_listener import ReplyListener
from tests.unit.orchestrator.fake_clock import FakeClock

SAMPLES = 3


class Told:
    """An outbox that keeps what it is told."""

    def __init__(self, *, joins_text: bool) -> None:
        self.joins_text = joins_text
        self.started: list[int] = []
        self.texts: list[str] = []
        self.sound = b""
        self.next_frame: int | None = None

    async def reply_started(self, turn_index: int, kept_message_count: int) -> None:
        self.started.append(kept_message_count)

    async def text(self, turn_index: int, pieces: Sequence[TextPiece]) -> None:
        assert len(pieces) == 1 or (pieces and self.joins_text)
        self.texts += (piece.text for piece in pieces)

    async def audio(self, turn_index: int, frame_index: int, frame_count: int, data: bytes, timings: None) -> None:
        assert self.next_frame in (None, frame_index)
        self.next_frame = frame_index + frame_count
        self.sound += data


async def kept() -> int:
    return 7


@given(
    st.lists(st.integers(1, 4), min_size=1, max_size=10),
    st.lists(st.integers(1, 4), max_size=5),
    st.integers(0, 40),
    st.integers(0, 20),
    st.booleans(),
    st.booleans(),
)
async def test_what_the_client_has_and_what_it_is_told_make_up_the_whole(
    packets: list[int], messages: list[int], had_frames: int, had_texts: int, is_started: bool, joins_text: bool
) -> None:
    frame_count = sum(packets)
    had_frames = min(had_frames, frame_count)
    whole = bytes(index % 256 for index in range(2 * SAMPLES * frame_count))
    told = Told(joins_text=joins_text)
    listener = ReplyListener(
        told,  # type: ignore[arg-type]
        kept,
        sample_bytes=2,
        joins_text=joins_text,
        had=Had(is_started, had_texts, had_frames, had_frames * SAMPLES),
    )
    await listener.reply_started(0)
    texts = [str(index) for index in range(sum(messages))]
    waiting = [TextPiece(text, 0) for text in texts]
    for count in messages:
        await listener.text(0, waiting[:count])
        del waiting[:count]
    first = 0
    for count in packets:
        data = whole[2 * SAMPLES * first : 2 * SAMPLES * (first + count)]
        await listener.audio(0, first, count, data, None)
        first += count
    assert told.started == ([] if is_started else [7])
    assert told.texts == texts[had_texts:]
    assert whole[: 2 * SAMPLES * had_frames] + told.sound == whole
    assert told.next_frame == (None if had_frames == frame_count else frame_count)


def test_what_the_client_had_of_a_reply_counts_as_played() -> None:
    playback = Playback(FakeClock(), 100, had_sample_count=150)
    playback.send(100)
    assert (playback.is_behind, playback.ahead_seconds) == (True, 0)
    playback.send(100)
    assert (playback.is_behind, playback.ahead_seconds) == (False, 0.5)
