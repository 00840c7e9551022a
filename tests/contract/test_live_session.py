"""Conversations as voice apps have them: sound both ways at once, turns that are heard, replies that are cut."""

import asyncio
import itertools
import math
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from typing import Any

import grpc
import numpy as np
import pytest
from chroma_mesh.orchestrator.v1 import orchestrator_pb2 as pb
from chroma_mesh.types.v1 import types_pb2

from services.orchestrator import session as session_module
from services.orchestrator.turn_detection import CHUNK_SAMPLES, SpeechBegan, SpeechEnded, TurnEdges, VadSettings
from services.runtime.errors import MeshError, from_rpc_error
from tests.contract.fake_mesh import (
    ASSISTANT,
    CANCELLED,
    F32,
    INPUT_16,
    S16,
    SAMPLES_PER_FRAME,
    STOP,
    SYSTEM,
    USER,
    Conversation,
    Mesh,
    no_hook,
    tone,
)
from tests.contract.still_clock import StillClock

INVALID = grpc.StatusCode.INVALID_ARGUMENT
RATE_HZ = 16_000
FRAME_SECONDS = SAMPLES_PER_FRAME / 24_000
MANUAL = pb.TurnDetection(manual=pb.ManualTurns())


class LoudnessDetector:
    """Takes what is loud for speech."""

    def __init__(self, settings: VadSettings) -> None:
        self._settings = settings
        self.reset()

    def hear(self, samples: np.ndarray) -> list[SpeechBegan | SpeechEnded]:
        self._rest = np.concatenate((self._rest, samples))
        events = []
        while len(self._rest) >= CHUNK_SAMPLES:
            chunk, self._rest = self._rest[:CHUNK_SAMPLES], self._rest[CHUNK_SAMPLES:]
            events.append(self._edges.judge(float(np.abs(chunk).mean() > 0.1)))
        return [event for event in events if event is not None]

    def reset(self) -> None:
        self._edges, self._rest = TurnEdges(self._settings), np.empty(0, np.float32)


@pytest.fixture
def clock() -> StillClock:
    return StillClock()


@pytest.fixture
async def still_mesh(monkeypatch: pytest.MonkeyPatch, clock: StillClock) -> AsyncIterator[Mesh]:
    monkeypatch.setattr(session_module, "ServerVadDetector", LoudnessDetector)
    async with Mesh().running(clock=clock) as mesh:
        yield mesh


def vad(**settings: Any) -> pb.TurnDetection:
    given = {"silence_duration_ms": 200, "prefix_padding_ms": 100, **settings}
    return pb.TurnDetection(server_vad=pb.ServerVad(**given))


def speech(seconds: float, seed: int = 0) -> bytes:
    """Loud sound."""
    signs = np.random.default_rng(seed).integers(0, 2, round(seconds * RATE_HZ)) * 2 - 1
    return (signs * 12_000).astype("<i2").tobytes()


def silence(seconds: float) -> bytes:
    return bytes(2 * round(seconds * RATE_HZ))


def packets(sound: bytes, milliseconds: float = 20) -> list[bytes]:
    size = 2 * round(RATE_HZ * milliseconds / 1000)
    return [sound[start : start + size] for start in range(0, len(sound), size)]


async def read(session: Conversation, *kinds: str) -> list[Any]:
    """The next messages, which must be of these kinds."""
    payloads = []
    for expected in kinds:
        message = await session.call.read()
        assert message.WhichOneof("payload") == expected
        payloads.append(getattr(message, expected))
    return payloads


async def read_until(session: Conversation, kind: str) -> list[pb.ConverseResponse]:
    messages = []
    while not messages or messages[-1].WhichOneof("payload") != kind:
        messages.append(await session.call.read())
    return messages


async def ended(session: Conversation) -> list[pb.ConverseResponse]:
    """Says that nothing follows; what comes until the session has ended well."""
    await send(session, end=pb.ConverseEnd())
    messages = []
    while (message := await session.call.read()) is not grpc.aio.EOF:
        messages.append(message)
    assert await session.call.code() is grpc.StatusCode.OK
    return messages


def heard_turns(messages: list[pb.ConverseResponse]) -> tuple[list[int], list[pb.ReplyEnded]]:
    """Where turns ended, and how their replies did."""
    stops = [m.speech_stopped.audio_sample for m in messages if m.WhichOneof("payload") == "speech_stopped"]
    return stops, [m.reply_ended for m in messages if m.WhichOneof("payload") == "reply_ended"]


async def send(session: Conversation, **payload: Any) -> None:
    await session.call.write(pb.ConverseRequest(**payload))


async def refused_opening(mesh: Mesh, **opening: Any) -> MeshError:
    with pytest.raises(grpc.aio.AioRpcError) as raised:
        await mesh.converse(**opening).__aenter__()
    return from_rpc_error(raised.value)


def heard_sound(mesh: Mesh, stream: int) -> bytes:
    return b"".join(part.audio for part in mesh.reasoner.heard[stream].parts)


def told(mesh: Mesh, stream: int) -> list[tuple[types_pb2.Role, str]]:
    """Role and text of the messages that the reasoner was told."""
    return [
        (message.role, "".join(part.text for part in message.parts)) for message in mesh.reasoner.heard[stream].messages
    ]


def never() -> Callable[[int], Any]:
    event = asyncio.Event()
    return lambda _index: event.wait()


# --- while the user speaks -------------------------------------------------------------------------------------------


async def test_reasoner_and_speech_are_open_and_told_while_the_user_speaks(mesh: Mesh) -> None:
    said = tone(1.0)
    async with mesh.converse(instructions="be kind") as session:
        for packet in packets(said)[:25]:
            await session.say(packet)
        await mesh.signal.until(lambda: bool(mesh.reasoner.heard) and len(mesh.reasoner.heard[0].parts) == 2)
        await mesh.signal.until(lambda: bool(mesh.speech.heard) and bool(mesh.speech.heard[0].open))
        assert told(mesh, 0) == [(SYSTEM, "be kind")]
        assert mesh.speech.heard[0].open.voice_prompt.frames
        assert heard_sound(mesh, 0) == said[: 2 * 6400]
        assert not mesh.codec.heard, "there is nothing to prefill in the codec"
        for packet in packets(said)[25:]:
            await session.say(packet)
        await session.end_turn()
        answer = await session.answer()
        await session.end()
    assert len(mesh.reasoner.heard) == len(mesh.speech.heard) == 1
    assert heard_sound(mesh, 0) == said
    async with mesh.converse(instructions="be kind") as session:
        at_once = await session.ask(said)
    assert (answer.text, answer.audio) == (at_once.text, at_once.audio)
    await mesh.until_quiet()


@pytest.mark.parametrize("milliseconds", [1, 7, 20, 100, 1000, 60_000])
async def test_the_reply_is_that_to_the_whole_turn_for_any_packets(mesh: Mesh, milliseconds: float) -> None:
    said = tone(0.9)
    async with mesh.converse() as session:
        at_once = await session.ask(said)
    async with mesh.converse() as session:
        live = await session.ask(*packets(said, milliseconds))
    assert (live.text, live.audio) == (at_once.text, at_once.audio)
    assert [part.audio for part in mesh.reasoner.heard[0].parts] == [
        part.audio for part in mesh.reasoner.heard[1].parts
    ]


async def test_during_a_reply_the_next_turns_streams_stay_closed_and_nothing_is_lost(mesh: Mesh) -> None:
    gate = asyncio.Event()
    mesh.codec.hook = lambda _index: gate.wait()
    async with mesh.converse() as session:
        await session.say("hello")
        await session.end_turn()
        await mesh.signal.until(lambda: bool(mesh.codec.heard))
        await session.say(tone(0.5, 1))
        await send(session, cancel_reply=pb.CancelReply(turn_index=7))  # it is read, so the sound was heard
        gate.set()
        first = await session.answer()
        await mesh.signal.until(lambda: len(mesh.reasoner.heard) == 2 and len(mesh.reasoner.heard[1].parts) == 2)
        assert told(mesh, 1)[1:] == [(USER, "hello"), (ASSISTANT, first.text)]
        await session.say(tone(0.3, 2))
        await session.end_turn()
        await session.answer()
    assert heard_sound(mesh, 1) == tone(0.5, 1) + tone(0.3, 2)


async def test_a_turn_that_is_not_ended_is_given_up_with_the_session(mesh: Mesh) -> None:
    async with mesh.converse() as session:
        await session.say(tone(0.5))
        await mesh.signal.until(lambda: bool(mesh.reasoner.heard) and bool(mesh.speech.heard))
        await session.end()
    await mesh.until_quiet()
    async with mesh.converse() as session:
        await session.say(tone(0.5))
        await mesh.signal.until(lambda: len(mesh.reasoner.heard) == len(mesh.speech.heard) == 2)
    await mesh.until_quiet()
    assert mesh.count("reply_seconds_count") == 0


async def test_what_was_heard_is_told_again_in_the_same_bytes(mesh: Mesh) -> None:
    telephone = types_pb2.AudioFormat(encoding=types_pb2.AUDIO_ENCODING_MULAW, sample_rate_hz=8_000)
    data = np.random.default_rng(0).integers(0, 256, 4000, dtype=np.uint8).tobytes()
    async with mesh.converse(input_format=telephone) as session:
        await session.ask(*(data[start : start + 160] for start in range(0, 4000, 160)))
        await session.ask("and?")
    heard = heard_sound(mesh, 0)
    assert len(heard) == 2 * 8000
    assert mesh.reasoner.heard[0].open.audio_format == INPUT_16
    kept = mesh.reasoner.heard[1].messages[1].parts[0].audio
    assert (kept.format, kept.data) == (INPUT_16, heard)


# --- turns that the mesh hears ---------------------------------------------------------------------------------------


async def test_turns_are_heard_and_answered(mesh: Mesh) -> None:
    said = silence(0.5) + speech(0.6, 1) + silence(0.5) + speech(0.4, 2) + silence(0.5)
    async with mesh.converse(turn_detection=vad(barge_in=False)) as session:
        assert not mesh.reasoner.heard
        for packet in packets(said):
            await session.say(packet)
        messages = []
        for _ in range(2):
            messages += await read_until(session, "reply_ended")
        await session.end()
    starts = [m.speech_started for m in messages if m.WhichOneof("payload") == "speech_started"]
    stops = [m.speech_stopped for m in messages if m.WhichOneof("payload") == "speech_stopped"]
    assert [start.turn_index for start in starts] == [stop.turn_index for stop in stops] == [0, 1]
    for index, (start, stop) in enumerate(zip(starts, stops, strict=True)):
        assert heard_sound(mesh, index) == said[2 * start.audio_sample : 2 * stop.audio_sample]
    assert 0.35 <= starts[0].audio_sample / RATE_HZ <= 0.4
    assert 1.3 <= stops[0].audio_sample / RATE_HZ <= 1.37
    assert [m.reply_ended.reason for m in messages if m.WhichOneof("payload") == "reply_ended"] == [STOP, STOP]


async def test_the_reply_to_a_heard_turn_is_the_same_for_any_packets(mesh: Mesh) -> None:
    said = silence(0.4) + speech(0.6) + silence(0.4)
    replies = set()
    for milliseconds in (3, 20, 500, 60_000):
        async with mesh.converse(turn_detection=vad()) as session:
            for packet in packets(said, milliseconds):
                await session.say(packet)
            messages = await read_until(session, "reply_ended")
            await session.end()
        replies.add((messages[0].speech_started.audio_sample, messages[-1].reply_ended.text))
    assert len(replies) == 1


async def test_end_turn_ends_a_heard_turn_at_once_and_is_nothing_without_one(mesh: Mesh) -> None:
    async with mesh.converse(turn_detection=vad()) as session:
        await session.end_turn()
        await session.say(silence(0.3))
        await session.end_turn()
        await session.say(speech(0.4))
        await session.end_turn()
        await session.end_turn()
        started, stopped = await read(session, "speech_started", "speech_stopped")
        assert stopped.audio_sample == round(0.7 * RATE_HZ)
        assert (await session.answer()).ended.turn_index == 0
        await session.end()
    assert len(heard_sound(mesh, 0)) == 2 * (stopped.audio_sample - started.audio_sample)


async def test_a_typed_turn_among_heard_ones_needs_its_end(still_mesh: Mesh, clock: StillClock) -> None:
    mesh = still_mesh
    async with mesh.converse(turn_detection=vad()) as session:
        await session.say(silence(0.2), "hello", silence(0.5))
        await session.end_turn()
        typed = await session.answer()
        clock.move(10)  # it is heard
        await session.say("look", speech(0.4), silence(0.4))
        await read(session, "speech_started", "speech_stopped")
        await session.answer()
        await session.end()
    assert [part.text for part in mesh.reasoner.heard[0].parts] == ["hello"]
    assert told(mesh, 1)[1:] == [(USER, "hello"), (ASSISTANT, typed.text)]
    assert mesh.reasoner.heard[1].parts[0].text == "look"


async def test_speech_that_does_not_end_is_cut_into_turns(mesh: Mesh, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session_module, "MAXIMUM_SECONDS", 2.0)
    async with mesh.converse(turn_detection=vad(barge_in=False)) as session:
        await session.say(speech(5.0), silence(0.5))
        for _ in range(3):
            await read_until(session, "reply_ended")
        await session.end()
    assert [len(heard_sound(mesh, index)) / 2 / RATE_HZ <= 2 for index in range(3)] == [True] * 3
    assert len(mesh.reasoner.heard) == 3


async def test_a_heard_turn_is_cut_where_the_reasoner_could_hold_no_more(mesh: Mesh) -> None:
    mesh.reasoner.context_length = 400
    async with mesh.converse(instructions="be kind", turn_detection=vad(barge_in=False)) as session:
        await session.ask("hello")  # from now on the mesh knows how much it holds
        await session.say(speech(30.0), silence(0.5))
        stops, replies = heard_turns(await ended(session))
    spoken = [heard for heard in mesh.reasoner.heard if any(part.audio for part in heard.parts)]
    assert len(spoken) == len(stops) == len(replies) == 3
    assert all(mesh.reasoner.positions(heard) < 400 for heard in spoken)
    assert {reply.reason for reply in replies} == {STOP}


async def test_ten_minutes_of_speech_are_turns_of_300_s_where_the_mesh_listens(mesh: Mesh) -> None:
    minute = speech(60.0)
    async with mesh.converse(turn_detection=vad(barge_in=False)) as session:
        for _ in range(10):
            await session.say(minute)
        stops, replies = heard_turns(await ended(session))
    assert stops == [300 * RATE_HZ, 600 * RATE_HZ]
    assert [reply.reason for reply in replies] == [STOP, STOP]
    await mesh.until_quiet()


async def test_ten_minutes_of_silence_are_no_turn_where_the_mesh_listens(mesh: Mesh) -> None:
    async with mesh.converse(turn_detection=vad()) as session:
        for _ in range(10):
            await session.say(silence(60))
        await session.say(speech(0.4))
        (started,) = await read(session, "speech_started")
        assert not heard_turns(await ended(session))[0]
    assert started.audio_sample == pytest.approx(600 * RATE_HZ, abs=0.2 * RATE_HZ)


async def test_ten_minutes_without_an_end_are_refused_at_300_s_where_the_client_ends_the_turns(mesh: Mesh) -> None:
    async with mesh.converse() as session:
        with suppress(grpc.aio.AioRpcError, asyncio.InvalidStateError):  # it ends before all was sent
            for _ in range(600):
                await session.say(tone(1.0))
        error = await session.failure()
    assert (error.code, error.reason) == (INVALID, "AUDIO_TOO_LONG")
    await mesh.until_quiet()


# --- barge-in --------------------------------------------------------------------------------------------------------


async def test_speech_stops_the_reply_and_nothing_of_it_follows(mesh: Mesh) -> None:
    async def hold(index: int) -> None:
        if index == 5:
            await asyncio.Event().wait()

    mesh.speech.hook = hold
    async with mesh.converse(turn_detection=vad()) as session:
        await session.say(speech(0.4, 1), silence(0.4))
        await read(session, "speech_started", "speech_stopped", "reply_started")
        await mesh.signal.until(lambda: bool(mesh.codec.heard) and len(mesh.codec.heard[0].items) == 5)
        mesh.speech.hook = no_hook
        await session.say(speech(0.4, 2))
        messages = await read_until(session, "reply_ended")
        kinds = [message.WhichOneof("payload") for message in messages]
        assert kinds.count("speech_started") == 1
        assert messages[-1].reply_ended.reason == CANCELLED
        frames = [m.audio.frame_count for m in messages if m.WhichOneof("payload") == "audio"]
        assert sum(frames) == messages[-1].reply_ended.frame_count
        await session.say(silence(0.4))
        after = await read_until(session, "reply_ended")
        assert after[0].WhichOneof("payload") == "speech_stopped"
        assert {m.audio.turn_index for m in after if m.WhichOneof("payload") == "audio"} == {1}
        await session.end()
    assert mesh.count("reply_stops_total", cause="barge_in") == mesh.count("reply_stop_seconds_count") == 1
    assert mesh.count("replies_total", reason="cancelled") == 1
    await mesh.until_quiet()


async def test_without_barge_in_speech_is_answered_after_the_reply(mesh: Mesh) -> None:
    gate = asyncio.Event()
    mesh.codec.hook = lambda _index: gate.wait()
    async with mesh.converse(turn_detection=vad(barge_in=False)) as session:
        await session.say(speech(0.4, 1), silence(0.4), speech(0.4, 2), silence(0.4))
        messages = await read_until(session, "reply_started")
        if not [m for m in messages if m.WhichOneof("payload") == "speech_stopped" and m.speech_stopped.turn_index]:
            await read_until(session, "speech_stopped")
        gate.set()
        assert (await read_until(session, "reply_ended"))[-1].reply_ended.reason == STOP
        assert (await read_until(session, "reply_ended"))[-1].reply_ended.reason == STOP
        await session.end()


async def test_the_conversation_remembers_what_was_heard_by_the_clock(still_mesh: Mesh, clock: StillClock) -> None:
    """The reply ended before its listener had heard it, who then spoke."""
    mesh = still_mesh
    async with mesh.converse(turn_detection=vad()) as session:
        await session.say(speech(0.4, 1), silence(0.4))
        whole = (await read_until(session, "reply_ended"))[-1].reply_ended
        assert (whole.reason, whole.frame_count) == (STOP, 10)
        clock.move(5 * FRAME_SECONDS + 0.001)  # frames 0 to 4: steps 0, 1 and 2
        await session.say(speech(0.4, 2), silence(0.4))
        kinds = [message.WhichOneof("payload") for message in await read_until(session, "reply_started")]
        assert kinds == ["speech_started", "speech_stopped", "reply_started"]
        await read_until(session, "reply_ended")
        await session.end()
    heard = "".join(whole.text.split(" ")[index] + " " for index in range(3))
    assert told(mesh, 1)[-1] == (ASSISTANT, heard)
    assert mesh.count("reply_stops_total", cause="barge_in") == 1


async def test_what_the_client_says_that_it_played_counts_for_more(still_mesh: Mesh) -> None:
    mesh = still_mesh
    async with mesh.converse() as session:
        whole = await session.ask("hello")
        words = whole.text.split(" ")
        await session.say(tone(0.5))  # streams open with all of it
        await mesh.signal.until(lambda: len(mesh.reasoner.heard) == 2 and len(mesh.reasoner.heard[1].parts) == 2)
        assert told(mesh, 1)[-1] == (ASSISTANT, whole.text)
        await send(session, reply_played=pb.ReplyPlayed(turn_index=0, sample_count=4 * SAMPLES_PER_FRAME + 7))
        await mesh.signal.until(lambda: len(mesh.reasoner.heard) == 3 and len(mesh.reasoner.heard[2].parts) == 2)
        assert told(mesh, 2)[-1] == (ASSISTANT, f"{words[0]} {words[1]} ")
        await send(session, reply_played=pb.ReplyPlayed(turn_index=5, sample_count=0))  # there is no such reply
        await send(session, reply_played=pb.ReplyPlayed(turn_index=0, sample_count=10**12))
        await mesh.signal.until(lambda: len(mesh.reasoner.heard) == 4 and len(mesh.reasoner.heard[3].parts) == 2)
        assert told(mesh, 3)[-1] == (ASSISTANT, whole.text)
        await session.end_turn()
        await session.answer()
        await session.end()
    assert len(mesh.reasoner.heard) == 4
    assert len(mesh.speech.heard) == 2, "the voice stays prefilled"
    assert heard_sound(mesh, 3) == tone(0.5)


async def test_a_cancelled_reply_is_cut_to_what_the_client_played(still_mesh: Mesh) -> None:
    mesh = still_mesh

    async def hold(index: int) -> None:
        if index == 8:
            await asyncio.Event().wait()

    mesh.speech.hook = hold
    async with mesh.converse() as session:
        await session.say("hello")
        await session.end_turn()
        await mesh.signal.until(lambda: bool(mesh.codec.heard) and len(mesh.codec.heard[0].items) == 8)
        mesh.speech.hook = no_hook
        for _ in range(1 + 4 + 8):
            await session.call.read()
        await send(session, reply_played=pb.ReplyPlayed(turn_index=0, sample_count=3 * SAMPLES_PER_FRAME))
        await send(session, cancel_reply=pb.CancelReply(turn_index=0))
        (ended,) = await read(session, "reply_ended")
        assert (ended.reason, ended.frame_count, ended.step_count) == (CANCELLED, 8, 2)
        assert len(ended.text.split()) == 2
        await session.ask("again")
        await session.end()
    assert told(mesh, 1)[1:] == [(USER, "hello"), (ASSISTANT, ended.text)]


async def test_a_cancel_that_comes_too_late_does_not_meet_the_next_reply(mesh: Mesh) -> None:
    async with mesh.converse() as session:
        await session.ask("one")
        await session.say("two")
        await session.end_turn()
        await send(session, cancel_reply=pb.CancelReply(turn_index=0))
        assert (await session.answer()).ended.reason == STOP
        await session.end()
    assert mesh.count("reply_stops_total", cause="cancel_reply") == 0


# --- settings --------------------------------------------------------------------------------------------------------


async def test_settings_change_for_one_turn_and_for_all_that_follow(mesh: Mesh) -> None:
    sampling = types_pb2.Sampling(temperature=0, seed=5)
    once = pb.ReplySettings(voice_name="birch", instructions="be brief", sampling=sampling, max_frame_count=3)
    async with mesh.converse(instructions="be kind", max_step_count=9) as session:
        await session.ask("one")
        await session.say("two")
        await send(session, end_turn=pb.EndTurn(reply=once))
        assert (await session.answer()).ended.frame_count == 3
        await session.ask("three")
        await send(session, update=pb.SessionUpdate(reply=pb.ReplySettings(instructions="", max_step_count=7)))
        await session.ask("four")
        await session.end()
    answered = [heard for heard in mesh.speech.heard if heard.items]
    first, second, third, fourth = (heard.open for heard in answered)
    assert first == third == fourth
    assert (second.sampling, second.max_frame_count) == (sampling, 3)
    assert second.voice_prompt != first.voice_prompt
    ended = [heard for heard in mesh.reasoner.heard if heard.is_ended]
    systems = [[part.text for part in heard.messages[0].parts] for heard in ended]
    assert systems == [["be kind"], ["be brief"], ["be kind"], ["one"]]
    assert [heard.open.max_step_count for heard in ended] == [9, 9, 9, 7]
    await mesh.until_quiet()


async def test_only_what_changed_is_opened_anew(mesh: Mesh) -> None:
    def reply(**fields: Any) -> dict[str, Any]:
        return {"update": pb.SessionUpdate(reply=pb.ReplySettings(**fields))}

    async with mesh.converse() as session:
        await session.say(tone(0.5))
        await mesh.signal.until(lambda: bool(mesh.reasoner.heard) and len(mesh.reasoner.heard[0].parts) == 2)
        await send(session, **reply(sampling=types_pb2.Sampling(seed=3)))
        await mesh.signal.until(lambda: len(mesh.speech.heard) == 2 and bool(mesh.speech.heard[1].open))
        assert len(mesh.reasoner.heard) == 1
        await send(session, **reply(instructions="be brief"))
        await mesh.signal.until(lambda: len(mesh.reasoner.heard) == 2 and len(mesh.reasoner.heard[1].parts) == 2)
        await send(session, **reply(sampling=types_pb2.Sampling(seed=3)))  # as it is
        await session.end_turn()
        await session.answer()
        await session.end()
    assert (len(mesh.reasoner.heard), len(mesh.speech.heard)) == (2, 2)
    ids = {heard.metadata["x-turn-index"] for stage in (mesh.reasoner, mesh.speech) for heard in stage.heard}
    assert ids == {"0"}


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"max_frame_count": 0}, "max_frame_count"),
        ({"sampling": types_pb2.Sampling(temperature=3)}, "sampling.temperature"),
        ({"voice_name": "nobody"}, "voice_name"),
    ],
)
async def test_settings_that_are_no_good_are_refused(mesh: Mesh, fields: dict[str, Any], field: str) -> None:
    settings = pb.ReplySettings(**fields)
    for payload, place in (
        ({"update": pb.SessionUpdate(reply=settings)}, "update.reply"),
        ({"end_turn": pb.EndTurn(reply=settings)}, "end_turn.reply"),
    ):
        async with mesh.converse() as session:
            await session.say("hello")
            await send(session, **payload)
            error = await session.failure()
        assert error.code in (INVALID, grpc.StatusCode.NOT_FOUND)
        assert error.field == f"{place}.{field}"
    await mesh.until_quiet()


# --- long conversations ----------------------------------------------------------------------------------------------


async def test_a_conversation_of_many_turns_forgets_what_is_oldest_and_never_fails(mesh: Mesh) -> None:
    mesh.reasoner.context_length = 400
    async with mesh.converse(instructions="be kind", max_frame_count=40) as session:
        for index in range(60):
            await session.ask(f"turn {index} ", tone(0.4 + index % 5))
        await session.end()
    answered = [heard for heard in mesh.reasoner.heard if heard.is_ended]
    shortenings = 0
    for before, after in itertools.pairwise(answered):
        assert after.messages[0].parts[0].text == "be kind"
        kept = after.messages[1:]
        assert [message.role for message in kept] == [USER, ASSISTANT] * (len(kept) // 2)
        shortenings += len(after.messages) <= len(before.messages)
        assert mesh.reasoner.positions(after) < 400
    assert 3 <= shortenings <= 20, "it is cut to half, so not at every turn"
    last = answered[-1].messages[-2]
    assert last.parts[0].text == "turn 58 "


async def test_a_history_that_the_reasoner_cannot_hold_is_shortened_until_it_can(mesh: Mesh) -> None:
    mesh.reasoner.context_length = 300
    history = [
        types_pb2.Message(role=role, parts=[types_pb2.ContentPart(text=f"{index} " + "x" * 50)])
        for index in range(20)
        for role in (USER, ASSISTANT)
    ]
    async with mesh.converse(history=history, instructions="") as session:
        assert (await session.ask("hello")).ended.reason == STOP
        await session.end()
    kept = mesh.reasoner.heard[-1].messages
    assert list(kept) == history[len(history) - len(kept) :]
    assert 0 < len(kept) <= 10
    assert mesh.count("history_cuts_total") >= 1


async def test_a_turn_that_is_too_long_by_itself_is_refused(mesh: Mesh) -> None:
    mesh.reasoner.context_length = 100
    async with mesh.converse(instructions="") as session:
        await session.ask("hello")
        await session.say("x" * 200)
        await session.end_turn()
        error = await session.failure()
    assert (error.code, error.reason) == (INVALID, "TOO_LONG")


# --- pacing and text in time -----------------------------------------------------------------------------------------


async def test_a_reply_is_made_no_further_ahead_than_it_may_be(still_mesh: Mesh, clock: StillClock) -> None:
    mesh, ahead = still_mesh, 0.5
    mesh.reasoner.step_count, most_ahead = 100, []

    async def watch(index: int) -> None:
        most_ahead.append((index + 1) * FRAME_SECONDS - (clock.time - 1000.0))

    mesh.codec.hook = watch
    async with mesh.converse(ahead_seconds=ahead) as session:
        await session.say("hello")
        await session.end_turn()
        count = 0
        while True:
            message = await session.call.read()
            if message.WhichOneof("payload") == "reply_ended":
                break
            if message.WhichOneof("payload") == "audio":
                count += message.audio.frame_count
                if count * FRAME_SECONDS - (clock.time - 1000.0) > ahead - 2 * FRAME_SECONDS:
                    clock.move(FRAME_SECONDS)
        await session.end()
    assert count == message.reply_ended.frame_count == 202
    assert max(most_ahead) <= ahead + 0.002
    steps_ahead = len(mesh.speech.heard[0].items)
    assert steps_ahead == 101


async def test_a_stage_that_has_spoken_is_told_the_end_and_not_held_for_steps_that_nobody_speaks(
    still_mesh: Mesh, clock: StillClock
) -> None:
    mesh = still_mesh
    mesh.reasoner.step_count, mesh.speech.waits_for_end = 60, True
    async with mesh.converse(ahead_seconds=0.5, max_frame_count=10) as session:
        await session.say("hello")
        await session.end_turn()
        while (await session.call.read()).audio.frame_index < 9:
            pass
        clock.move(0.1)  # in which no more than a few steps are due
        assert (await read_until(session, "reply_ended"))[-1].reply_ended.frame_count == 10
        await session.end()
    assert len(mesh.speech.heard[0].items) < 30


async def test_infinitely_far_ahead_is_as_fast_as_can_be(still_mesh: Mesh) -> None:
    still_mesh.reasoner.step_count = 300
    async with still_mesh.converse(ahead_seconds=math.inf) as session:
        answer = await session.ask("hello")
        await session.end()
    assert answer.ended.frame_count == 602


@pytest.mark.parametrize("seconds", [0.0, 0.05, 3601.0, math.nan, -math.inf])
async def test_how_far_ahead_is_checked(mesh: Mesh, seconds: float) -> None:
    error = await refused_opening(mesh, ahead_seconds=seconds)
    assert (error.code, error.reason, error.field) == (INVALID, "OUT_OF_RANGE", "open.ahead_seconds")


async def test_the_least_ahead_is_allowed(mesh: Mesh) -> None:
    async with mesh.converse(ahead_seconds=0.1) as session:
        await session.end()


@pytest.mark.parametrize(
    ("joins_text", "frames_per_message", "message_count"), [(True, 1, 4), (True, 3, 3), (True, 100, 1), (False, 100, 4)]
)
@pytest.mark.parametrize(("rate", "encoding"), [(24_000, S16), (8_000, S16), (48_000, F32)])
async def test_each_piece_of_text_tells_where_it_begins_to_be_spoken(
    mesh: Mesh, rate: int, encoding: Any, joins_text: bool, frames_per_message: int, message_count: int
) -> None:
    mesh.speech.frames_per_message = frames_per_message
    output = types_pb2.AudioFormat(encoding=encoding, sample_rate_hz=rate)
    async with mesh.converse(output_format=output, joins_text=joins_text) as session:
        frame = session.opened.samples_per_frame
        assert frame == SAMPLES_PER_FRAME * rate // 24_000
        await session.say("hello")
        await session.end_turn()
        messages = await read_until(session, "reply_ended")
        await session.end()
    texts = [m.text for m in messages if m.WhichOneof("payload") == "text"]
    pieces = [piece for text in texts for piece in text.pieces or [text]]
    assert [piece.audio_sample for piece in pieces] == [2 * step * frame for step in range(4)]
    assert "".join(piece.text for piece in pieces) == messages[-1].reply_ended.text
    for text in texts:
        assert text.text == "".join(it.text for it in text.pieces or [text])
        assert text.audio_sample == pieces[0].audio_sample
        del pieces[: max(1, len(text.pieces))]
    assert len(texts) == message_count
    sent = b"".join(m.audio.data for m in messages if m.WhichOneof("payload") == "audio")
    assert len(sent) == messages[-1].reply_ended.frame_count * frame * (2 if encoding == S16 else 4)


@pytest.mark.parametrize("encoding", [types_pb2.AUDIO_ENCODING_MULAW, types_pb2.AUDIO_ENCODING_ALAW])
async def test_a_telephone_hears_the_reply(mesh: Mesh, encoding: Any) -> None:
    telephone = types_pb2.AudioFormat(encoding=encoding, sample_rate_hz=8_000)
    async with mesh.converse(input_format=telephone, output_format=telephone) as session:
        assert session.opened.samples_per_frame == 160
        answer = await session.ask(bytes(range(256)) * 10)
        await session.end()
    assert len(answer.audio) == 10 * 160
    assert mesh.codec.heard[0].open.audio_format == types_pb2.AudioFormat(encoding=F32, sample_rate_hz=24_000)


# --- what else may come ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("field", ["threshold", "prefix_padding_ms", "silence_duration_ms"])
async def test_turn_detection_is_checked(mesh: Mesh, field: str) -> None:
    error = await refused_opening(mesh, turn_detection=vad(**{field: 20_000}))
    assert (error.code, error.field) == (INVALID, f"open.turn_detection.server_vad.{field}")


async def test_sound_far_faster_than_it_is_spoken_is_taken(mesh: Mesh) -> None:
    said = b"".join(speech(0.5, seed) + silence(0.5) for seed in range(20))
    async with mesh.converse(turn_detection=vad()) as session:
        await session.say(said)
        endings = [(await read_until(session, "reply_ended"))[-1].reply_ended for _ in range(20)]
        assert [ending.turn_index for ending in endings] == list(range(20))
        await session.end()
    await mesh.until_quiet()


async def test_half_a_sample_in_the_middle_of_a_turn_is_refused(mesh: Mesh) -> None:
    for turn_detection in (MANUAL, vad()):
        async with mesh.converse(turn_detection=turn_detection) as session:
            await session.say(speech(0.3), b"abc")
            error = await session.failure()
        assert (error.code, error.reason) == (INVALID, "PARTIAL_SAMPLE")
    await mesh.until_quiet()


async def test_another_rate_in_the_middle_of_a_session_is_refused(mesh: Mesh) -> None:
    async with mesh.converse() as session:
        await session.say(tone(0.3))
        other = types_pb2.AudioFormat(encoding=S16, sample_rate_hz=8_000)
        await send(session, open=pb.ConverseOpen(input_format=other))
        error = await session.failure()
    assert (error.code, error.reason) == (INVALID, "OUT_OF_ORDER")
    await mesh.until_quiet()


async def test_two_ends_of_a_turn_are_one_too_many_for_a_client_that_counts(mesh: Mesh) -> None:
    mesh.speech.hook = never()
    async with mesh.converse() as session:
        await session.say(tone(0.3))
        await session.end_turn()
        await session.end_turn()
        error = await session.failure()
    assert (error.code, error.reason) == (INVALID, "EMPTY_TURN")
    await mesh.until_quiet()
