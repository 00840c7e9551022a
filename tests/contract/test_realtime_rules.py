"""Rules that the gateway shares with the mesh, and the documentation with the protocol."""

from pathlib import Path
from typing import Any, get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st
from openai.types.realtime import RealtimeClientEvent, RealtimeServerEvent

from client.message import Role
from services.gateway.errors import Refusal
from services.gateway.realtime.audio_formats import PCM, PCMU
from services.gateway.realtime.client_events import CLIENT_EVENTS
from services.gateway.realtime.conversation import KEPT_SOUND_BYTES, TOLD_BYTES, Conversation
from services.gateway.realtime.input_buffer import InputBuffer
from services.gateway.realtime.items import Item, Said, Spoken, Typed
from services.orchestrator.heard import Playback, SpokenReply
from tests.contract.test_live_session import StillClock

DOCS = Path(__file__).parents[2] / "docs" / "realtime.md"
FRAME = 480


@given(
    steps=st.lists(st.integers(0, 2), max_size=12),
    sent_frames=st.integers(0, 24),
    rest=st.integers(0, FRAME - 1),
    played=st.integers(0, 30 * FRAME),
    is_whole=st.booleans(),
)
def test_the_gateway_hears_what_the_mesh_remembers(
    steps: list[int], sent_frames: int, rest: int, played: int, is_whole: bool
) -> None:
    """`steps` says how many pieces of text begin with each pair of frames."""
    playback = Playback(StillClock(), 24_000)
    reply = SpokenReply(0, playback, samples_per_frame=FRAME)
    spoken = Spoken(PCM, FRAME)
    frame_count = 2 * len(steps)
    for index, count in enumerate(steps):
        for number in range(count):
            reply.speak_step(f"{index}.{number} ")
            spoken.pieces.append((f"{index}.{number} ", 2 * index * FRAME))
        reply.speak_frame()
        reply.speak_frame()
    sent = frame_count * FRAME if is_whole else min(sent_frames, frame_count) * FRAME + (rest if sent_frames else 0)
    sent = min(sent, frame_count * FRAME)
    playback.send(sent)
    playback.report(played)
    reply.is_complete = spoken.is_whole = is_whole
    spoken.sample_count, spoken.played_sample_count = sent, played
    assert spoken.heard() == reply.heard().text


@given(st.lists(st.integers(0, 5000), max_size=10), st.lists(st.integers(0, 12_000), max_size=5))
def test_the_buffer_gives_each_sample_once(written: list[int], taken: list[int]) -> None:
    buffer, all_of_it, got = InputBuffer(PCM), b"", b""
    for index, count in enumerate(written):
        data = bytes([index % 256, 0]) * count
        buffer.write(data)
        all_of_it += data
    for sample in sorted(taken):
        got += buffer.take_until(sample)
    assert got + buffer.data == all_of_it
    assert buffer.end == sum(written)
    assert buffer.in_format(PCMU).milliseconds(0) == buffer.milliseconds(buffer.end)


def test_a_conversation_is_bounded() -> None:
    conversation = Conversation()
    size = KEPT_SOUND_BYTES // 4
    for index in range(6):
        conversation.add(Item(f"u{index}", Role.USER, [Said(bytes(size), PCM), Typed("x")]))
        conversation.add(Item(f"a{index}", Role.ASSISTANT, [Typed("y")]))
    kept = [item.sound_bytes for item in conversation if item.role is Role.USER]
    assert kept == [0, 0, size, size, size, size]
    told = conversation.history([])
    sound = sum(2 * len(part) for message in told for part in message.parts if not isinstance(part, str))
    assert sound <= TOLD_BYTES
    assert told[-1].parts == ["y"]
    with pytest.raises(Refusal):
        conversation.add(Item("u0", Role.USER, [Typed("x")]))


def names(union: Any) -> set[str]:
    members = get_args(get_args(union)[0])
    return {get_args(member.model_fields["type"].annotation)[0] for member in members}


def test_every_event_of_the_protocol_is_documented() -> None:
    documented = DOCS.read_text()
    missing = [
        name for name in names(RealtimeClientEvent) | names(RealtimeServerEvent) if f"`{name}`" not in documented
    ]
    assert not missing


def test_every_client_event_is_read() -> None:
    assert names(RealtimeClientEvent) == set(CLIENT_EVENTS)
