"""What the user says does not depend on how it was cut into messages."""

from itertools import groupby, pairwise

import numpy as np
import pytest
from chroma_mesh.types.v1 import types_pb2
from hypothesis import given
from hypothesis import strategies as st

from services.orchestrator.user_turn import MAXIMUM_SECONDS, SAMPLE_RATE_HZ, UserTurn
from services.runtime.errors import InvalidArgument

S16 = types_pb2.AudioFormat(encoding=types_pb2.AUDIO_ENCODING_PCM_S16LE, sample_rate_hz=SAMPLE_RATE_HZ)
F32 = types_pb2.AudioFormat(encoding=types_pb2.AUDIO_ENCODING_PCM_F32LE, sample_rate_hz=SAMPLE_RATE_HZ)
CLIP = np.arange(2 * SAMPLE_RATE_HZ, dtype="<i2").tobytes()

part = st.one_of(st.text(min_size=1, max_size=5), st.integers(320, 40_000).map(lambda count: CLIP[: 2 * count]))


def cut(thing: str | bytes, at: list[int]) -> list[str | bytes]:
    edges = sorted({0, len(thing), *(edge // 2 * 2 for edge in at if edge < len(thing))})
    return [thing[start:end] for start, end in pairwise(edges)]


def add(turn: UserTurn, thing: str | bytes) -> None:
    if isinstance(thing, str):
        turn.add_text(thing)
    else:
        turn.add_audio(thing)


@given(parts=st.lists(part, min_size=1, max_size=6), at=st.lists(st.integers(0, 80_000), max_size=6))
def test_only_the_sequence_counts(parts: list[str | bytes], at: list[int]) -> None:
    whole, pieces = UserTurn(S16), UserTurn(S16)
    for thing in parts:
        add(whole, thing)
        for piece in cut(thing, at):
            add(pieces, piece)
    for turn in (whole, pieces):
        turn.complete()
    assert whole.message() == pieces.message()
    assert list(whole.pieces()) == list(pieces.pieces())
    joined = [group for _, group in groupby(whole.pieces(), type)]
    assert [kind for kind, _ in groupby(parts, type)] == [
        {"text": str, "audio": bytes}[content.WhichOneof("content")] for content in whole.message().parts
    ]
    assert len(joined) == len(whole.message().parts)
    assert b"".join(piece for piece in whole.pieces() if isinstance(piece, bytes)) == b"".join(
        thing for thing in parts if isinstance(thing, bytes)
    )


def test_the_longest_turn_is_refused_as_soon_as_it_is_too_long() -> None:
    turn = UserTurn(F32)
    second = bytes(4 * SAMPLE_RATE_HZ)
    for _ in range(int(MAXIMUM_SECONDS)):
        turn.add_audio(second)
    turn.add_text("text does not count")
    with pytest.raises(InvalidArgument, match=r"at most 300 s of audio, got 300\.0001 s") as raised:
        turn.add_audio(bytes(4))
    assert raised.value.reason == "AUDIO_TOO_LONG"


def test_what_is_no_audio_is_refused() -> None:
    for audio_format, data, reason in (
        (S16, b"a", "PARTIAL_SAMPLE"),
        (F32, bytes(6), "PARTIAL_SAMPLE"),
        (F32, np.array([np.inf], "<f4").tobytes(), "NON_FINITE"),
    ):
        with pytest.raises(InvalidArgument) as raised:
            UserTurn(audio_format).add_audio(data)
        assert raised.value.reason == reason


def test_a_turn_needs_something_to_hear_or_read() -> None:
    for audio, reason in ((b"", "EMPTY_TURN"), (CLIP[:638], "AUDIO_TOO_SHORT")):
        turn = UserTurn(S16)
        turn.add_audio(audio)
        with pytest.raises(InvalidArgument) as raised:
            turn.complete()
        assert raised.value.reason == reason
    turn = UserTurn(S16)
    turn.add_audio(CLIP[:640])
    turn.complete()
    assert list(turn.pieces()) == [CLIP[:640]]
