"""What the user says does not depend on how it was cut into messages."""

import asyncio
from itertools import groupby, pairwise

import numpy as np
import pytest
from chroma_mesh.types.v1 import types_pb2
from hypothesis import given
from hypothesis import strategies as st

from services.orchestrator.sound_formats import HeardSound
from services.orchestrator.user_turn import MAXIMUM_SECONDS, PIECE_SECONDS, UserTurn, relayed_format
from services.runtime.errors import InvalidArgument
from tests.unit.orchestrator.fake_clock import FakeClock

RATE_HZ = 16_000
S16, F32, ULAW = (
    types_pb2.AUDIO_ENCODING_PCM_S16LE,
    types_pb2.AUDIO_ENCODING_PCM_F32LE,
    types_pb2.AUDIO_ENCODING_MULAW,
)
CLIP = np.random.default_rng(0).integers(-32768, 32767, 2 * RATE_HZ, dtype="<i2", endpoint=True).tobytes()

part = st.one_of(st.text(min_size=1, max_size=5), st.integers(1, 40_000).map(lambda count: CLIP[: 2 * count]))


def new_turn(encoding: types_pb2.AudioEncoding = S16) -> UserTurn:
    return UserTurn(types_pb2.AudioFormat(encoding=encoding, sample_rate_hz=RATE_HZ), FakeClock())


def samples(data: bytes) -> np.ndarray:
    return HeardSound(types_pb2.AudioFormat(encoding=S16, sample_rate_hz=RATE_HZ)).hear(data)


def cut(thing: str | bytes, at: list[int]) -> list[str | bytes]:
    edges = sorted({0, len(thing), *(edge // 2 * 2 for edge in at if edge < len(thing))})
    return [thing[start:end] for start, end in pairwise(edges)]


def add(turn: UserTurn, thing: str | bytes) -> None:
    if isinstance(thing, str):
        turn.add_text(thing)
    else:
        turn.add_audio(samples(thing))


def joined(things: list[str | bytes]) -> list[str | bytes]:
    """Neighbours of a kind as one; what is too short to be heard is left out."""
    whole = [type(group[0])().join(group) for group in (list(group) for _, group in groupby(things, type))]
    kept = [thing for thing in whole if isinstance(thing, str) or len(thing) >= 640]
    return kept if len(kept) == len(whole) else joined(kept)


@given(parts=st.lists(part, min_size=1, max_size=6), at=st.lists(st.integers(0, 80_000), max_size=6))
def test_only_the_sequence_counts(parts: list[str | bytes], at: list[int]) -> None:
    expected = joined(parts)
    for turn, edges in ((new_turn(), []), (new_turn(), at)):
        for thing in parts:
            for piece in cut(thing, edges):
                add(turn, piece)
        if not expected:
            with pytest.raises(InvalidArgument):
                turn.complete()
            continue
        turn.complete()
        assert joined(turn.pieces.items) == expected
        message = turn.message()
        assert [part.text or part.audio.data for part in message.parts] == expected
        assert turn.size_bytes == sum(len(it.encode() if isinstance(it, str) else it) for it in expected)
        # Short enough to be worked on while the user speaks, long enough to be few.
        pieces = [piece for piece in turn.pieces.items if isinstance(piece, bytes)]
        assert all(len(piece) <= 2 * PIECE_SECONDS * RATE_HZ for piece in pieces)
        assert len(pieces) <= turn.seconds / PIECE_SECONDS + len(expected)


@given(at=st.lists(st.integers(0, 2 * RATE_HZ), max_size=10).map(sorted))
def test_the_pieces_themselves_do_not_depend_on_the_packets(at: list[int]) -> None:
    whole, packets = new_turn(), new_turn()
    whole.add_audio(samples(CLIP))
    for start, end in pairwise([0, *at, 2 * RATE_HZ]):
        packets.add_audio(samples(CLIP)[start:end])
    for turn in (whole, packets):
        turn.complete()
    assert whole.pieces.items == packets.pieces.items


async def test_pieces_are_there_before_the_end() -> None:
    turn = new_turn()
    seen: list[str | bytes] = []

    async def read() -> None:
        async for pieces in turn.pieces.read():
            seen.extend(pieces)

    reading = asyncio.create_task(read())
    turn.add_audio(samples(CLIP[:12_802]))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert seen == [CLIP[:6400], CLIP[6400:12_800]]
    turn.complete()
    await reading
    assert seen[2:] == [CLIP[12_800:12_802]]
    assert turn.is_ended
    await turn.ended()


def test_integers_are_kept_as_integers_and_floats_as_floats() -> None:
    for encoding, rate_hz, kept in ((S16, 8_000, S16), (ULAW, 8_000, S16), (F32, 48_000, F32)):
        form = relayed_format(types_pb2.AudioFormat(encoding=encoding, sample_rate_hz=rate_hz))
        assert (form.encoding, form.sample_rate_hz) == (kept, RATE_HZ)
    turn = new_turn(F32)
    turn.add_audio(samples(CLIP))
    turn.complete()
    assert turn.message().parts[0].audio.data == samples(CLIP).tobytes()


def test_the_longest_turn_is_refused_as_soon_as_it_is_too_long() -> None:
    turn = new_turn(F32)
    for _ in range(int(MAXIMUM_SECONDS)):
        turn.add_audio(np.zeros(RATE_HZ, np.float32))
    turn.add_text("text does not count")
    with pytest.raises(InvalidArgument, match=r"at most 300 s of audio, got 300\.0001 s") as raised:
        turn.add_audio(np.zeros(1, np.float32))
    assert raised.value.reason == "AUDIO_TOO_LONG"


def test_a_turn_needs_something_to_hear_or_read() -> None:
    for audio, reason in ((b"", "EMPTY_TURN"), (CLIP[:638], "AUDIO_TOO_SHORT")):
        turn = new_turn()
        turn.add_audio(samples(audio))
        with pytest.raises(InvalidArgument) as raised:
            turn.complete()
        assert raised.value.reason == reason
    turn = new_turn()
    turn.add_audio(samples(CLIP[:640]))
    turn.complete()
    assert turn.pieces.items == [CLIP[:640]]


def test_a_turn_that_is_given_up_is_not_complete() -> None:
    turn = new_turn()
    turn.add_text("hel")
    turn.abandon()
    assert (turn.is_ended, turn.is_complete) == (True, False)
