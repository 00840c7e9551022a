"""The orchestrator behind a real server, with three stages that are real servers of made-up, deterministic models."""

import asyncio
import itertools
import math
import os
from collections.abc import AsyncIterator, Awaitable
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from chroma_mesh.codec.v1 import codec_pb2
from chroma_mesh.orchestrator.v1 import orchestrator_pb2 as pb
from chroma_mesh.orchestrator.v1 import orchestrator_pb2_grpc
from chroma_mesh.types.v1 import types_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc
from prometheus_client import CollectorRegistry

from services.orchestrator.call_ending import CallEnding
from services.orchestrator.opening import MAXIMUM_REPLY_SECONDS
from services.orchestrator.service import SERVICE, OrchestratorService
from services.orchestrator.settings import DEFAULT_INSTRUCTIONS
from services.orchestrator.stage_requests import FRAMES_AHEAD, STEPS_AHEAD
from services.orchestrator.track import Track
from services.runtime.errors import MeshError, Unavailable, from_rpc_error
from services.runtime.server import running
from tests.conftest import BUILTIN_VOICES
from tests.contract.fake_mesh import (
    ASSISTANT,
    CANCELLED,
    CODEBOOK_SIZE,
    F32,
    INPUT_16,
    INPUT_32,
    LENGTH,
    S16,
    SAMPLES_PER_FRAME,
    STOP,
    SYSTEM,
    USER,
    Conversation,
    FakeCodec,
    Mesh,
    Signal,
    drain,
    no_hook,
    sent_error,
    sound,
    tone,
)

# Frames of the longest reply that may be asked for.
LONGEST = round(MAXIMUM_REPLY_SECONDS * 24_000 / SAMPLES_PER_FRAME)


@pytest.fixture
async def mesh() -> AsyncIterator[Mesh]:
    async with Mesh().running() as mesh:
        yield mesh


def texts(message: types_pb2.Message) -> list[str]:
    return [part.text for part in message.parts]


# --- replies ---------------------------------------------------------------------------------------------------------


async def test_a_turn_is_answered_with_text_and_sound(mesh: Mesh) -> None:
    async with mesh.converse() as session:
        assert (session.opened.input_format, session.opened.samples_per_frame) == (INPUT_16, SAMPLES_PER_FRAME)
        answer = await session.ask(tone(0.5))
        await session.end()
    spoken = mesh.codec.heard[0].items
    assert answer.audio == b"".join(sound(frame, S16) for frame in spoken)
    assert (answer.ended.reason, answer.ended.frame_count, answer.ended.step_count) == (STOP, 10, 5)
    assert answer.text == "".join(step.text for step in mesh.speech.heard[0].items)
    await mesh.until_quiet()


async def test_timings_add_up_and_are_measured(mesh: Mesh) -> None:
    async with mesh.converse() as session:
        timings = (await session.ask("hello")).ended.timings
    parts = timings.first_step_seconds + timings.first_frame_seconds + timings.first_codec_audio_seconds
    assert timings.queue_seconds == 0.5
    assert parts == pytest.approx(timings.first_audio_seconds)
    assert 0 < timings.first_step_seconds < timings.first_audio_seconds < timings.total_seconds
    assert mesh.count("first_audio_seconds_count") == mesh.count("reply_seconds_count") == 1
    assert mesh.count("frame_interval_seconds_count") == 9
    assert mesh.count("replies_total", reason="stop") == 1


async def test_the_stages_learn_ids_deadline_and_settings(mesh: Mesh) -> None:
    sampling = types_pb2.Sampling(temperature=0, top_k=CODEBOOK_SIZE, seed=7)
    output = types_pb2.AudioFormat(encoding=F32, sample_rate_hz=24_000)
    async with mesh.converse(sampling=sampling, output_format=output, max_step_count=9) as session:
        await session.ask("one")
        answer = await session.ask("two")
        assert len(answer.audio) == answer.ended.frame_count * SAMPLES_PER_FRAME * 4
        initial = dict(await session.call.initial_metadata())
    assert initial["x-session-id"] == session.opened.session_id
    for stage in (mesh.reasoner, mesh.speech, mesh.codec):
        assert [heard.metadata["x-turn-index"] for heard in stage.heard] == ["0", "1"]
        assert {heard.metadata["x-session-id"] for heard in stage.heard} == {session.opened.session_id}
        assert all(heard.has_deadline for heard in stage.heard)
    speech = mesh.speech.heard[0].open
    assert (speech.sampling, speech.max_frame_count) == (sampling, 1000)
    assert (mesh.reasoner.heard[0].open.max_step_count, mesh.codec.heard[0].open.audio_format) == (9, output)


async def test_a_session_keeps_the_id_that_it_came_with(mesh: Mesh) -> None:
    call = mesh.stub.Converse(metadata=(("x-session-id", "given"),))
    await call.write(pb.ConverseRequest(open=pb.ConverseOpen()))
    assert (await call.read()).opened.session_id == "given"
    call.cancel()


async def test_every_turn_is_told_what_was_said_before(mesh: Mesh) -> None:
    earlier = [
        types_pb2.Message(role=USER, parts=[types_pb2.ContentPart(text="earlier")]),
        types_pb2.Message(role=ASSISTANT, parts=[types_pb2.ContentPart(text="indeed")]),
    ]
    first, second = tone(0.3, 1), tone(0.2, 2)
    async with mesh.converse(history=earlier, instructions="be kind") as session:
        answers = [await session.ask(*things) for things in ((first,), ("and", second), ("third",))]
        await session.end()
    for index, heard in enumerate(mesh.reasoner.heard):
        roles = [message.role for message in heard.messages]
        assert roles == [SYSTEM, USER, ASSISTANT] + [USER, ASSISTANT] * index
    told = mesh.reasoner.heard[2].messages
    assert texts(told[0]) == ["be kind"]
    assert list(told[1:3]) == earlier
    assert (told[3].parts[0].audio.format, told[3].parts[0].audio.data) == (INPUT_16, first)
    assert [part.WhichOneof("content") for part in told[5].parts] == ["text", "audio"]
    assert told[5].parts[1].audio.data == second
    assert [texts(told[4]), texts(told[6])] == [[answers[0].text], [answers[1].text]]


@pytest.mark.parametrize(
    ("opening", "system"),
    [({}, [DEFAULT_INSTRUCTIONS]), ({"instructions": ""}, []), ({"instructions": "be brief"}, ["be brief"])],
)
async def test_instructions_are_the_system_message(mesh: Mesh, opening: dict[str, str], system: list[str]) -> None:
    async with mesh.converse(**opening) as session:
        await session.ask("hello")
    assert [part.text for message in mesh.reasoner.heard[0].messages for part in message.parts] == system


async def test_parts_keep_their_order_however_they_were_cut(mesh: Mesh) -> None:
    before, after = tone(2.5, 1), tone(0.2, 2)
    packets = [before[start : start + 640] for start in range(0, len(before), 640)]
    async with mesh.converse() as session:
        await session.ask(*packets, "look", " here", after)
    parts = mesh.reasoner.heard[0].parts
    assert [part.index for part in parts] == list(range(len(parts)))
    kinds = [kind for kind, _ in itertools.groupby(part.WhichOneof("content") for part in parts)]
    assert kinds == ["audio", "text", "audio"]
    clips = [
        b"".join(part.audio for part in group)
        for kind, group in itertools.groupby(parts, key=lambda part: part.WhichOneof("content"))
        if kind == "audio"
    ]
    assert clips == [before, after]
    assert "".join(part.text for part in parts) == "look here"
    assert len(parts) < 20, "the client's packets are joined"


async def test_the_answer_does_not_depend_on_how_the_audio_was_cut(mesh: Mesh) -> None:
    audio = tone(1.3)
    answers = []
    for size in (len(audio), 640, 2):
        packets = [audio[start : start + size] for start in range(0, min(len(audio), 400 * size), size)]
        packets.append(audio[400 * size :])
        async with mesh.converse() as session:
            answers.append(await session.ask(*packets))
    assert len({(answer.text, answer.audio) for answer in answers}) == 1


async def test_sessions_side_by_side_get_what_each_gets_alone(mesh: Mesh) -> None:
    async def talk(seed: int) -> list[tuple[str, bytes]]:
        async with mesh.converse(sampling=types_pb2.Sampling(seed=seed)) as session:
            answers = [await session.ask(tone(0.1, seed)), await session.ask(f"and {seed}")]
            await session.end()
        return [(answer.text, answer.audio) for answer in answers]

    alone = [await talk(seed) for seed in range(8)]
    together = await asyncio.gather(*(talk(seed) for seed in range(8)))
    assert together == alone
    assert len({str(answer) for answer in alone}) == 8
    await mesh.until_quiet()


async def test_all_stages_are_open_before_the_reasoner_has_written_anything(mesh: Mesh) -> None:
    gate = asyncio.Event()
    mesh.reasoner.hook = lambda _index: gate.wait()
    async with mesh.converse() as session:
        await session.say("hello")
        await session.end_turn()
        await mesh.signal.until(lambda: bool(mesh.speech.heard and mesh.speech.heard[0].open and mesh.codec.heard))
        assert mesh.speech.heard[0].open.voice_prompt.frames
        assert not mesh.speech.heard[0].items
        gate.set()
        assert (await session.answer()).ended.reason == STOP


async def test_sound_is_on_its_way_while_the_reasoner_still_writes(mesh: Mesh) -> None:
    gate = asyncio.Event()

    async def hold(index: int) -> None:
        if index == 2:
            await gate.wait()

    mesh.reasoner.hook = hold
    async with mesh.converse() as session:
        await session.say("hello")
        await session.end_turn()
        kinds = [(await session.call.read()).WhichOneof("payload") for _ in range(1 + 2 + 4)]
        assert (kinds.count("text"), kinds.count("audio")) == (2, 4)
        gate.set()


async def test_turns_are_answered_in_order_and_end_waits_for_them(mesh: Mesh) -> None:
    async with mesh.converse() as session:
        for word in ("one", "two", "three"):
            await session.say(word)
            await session.end_turn()
        await session.call.write(pb.ConverseRequest(end=pb.ConverseEnd()))
        await session.call.done_writing()
        assert [(await session.answer()).ended.turn_index for _ in range(3)] == [0, 1, 2]
        assert await session.call.read() is grpc.aio.EOF
        assert await session.call.code() is grpc.StatusCode.OK
    assert texts(mesh.reasoner.heard[2].messages[3]) == ["two"]


async def test_audio_during_a_reply_belongs_to_the_next_turn(mesh: Mesh) -> None:
    gate = asyncio.Event()
    mesh.codec.hook = lambda _index: gate.wait()
    async with mesh.converse() as session:
        await session.say("hello")
        await session.end_turn()
        await session.say(tone(0.1, 1), tone(0.1, 2))
        gate.set()
        await session.answer()
        await session.end_turn()
        await session.answer()
    assert b"".join(part.audio for part in mesh.reasoner.heard[1].parts) == tone(0.1, 1) + tone(0.1, 2)


async def test_speech_at_its_limit_ends_the_reply_and_the_reasoner(mesh: Mesh) -> None:
    mesh.reasoner.step_count = 10**6
    async with mesh.converse(max_frame_count=3) as session:
        answer = await session.ask("hello")
        assert (answer.ended.reason, answer.ended.frame_count) == (LENGTH, 3)
        # However far ahead the reasoner was: the text of the steps that were spoken, and no more.
        spoken = mesh.speech.heard[0].items[:2]
        assert answer.text == answer.ended.text == "".join(step.text for step in spoken)
        assert answer.ended.step_count == 2
        await mesh.until_quiet()
        mesh.reasoner.step_count = 1
        assert (await session.ask("again")).ended.frame_count == 3
    assert texts(mesh.reasoner.heard[1].messages[2]) == [answer.text]


async def test_a_reasoner_at_its_limit_makes_the_reason_length(mesh: Mesh) -> None:
    mesh.reasoner.reason = LENGTH
    async with mesh.converse() as session:
        assert (await session.ask("hello")).ended.reason == LENGTH
    assert mesh.count("replies_total", reason="length") == 1


async def test_a_reply_may_be_silent_and_without_text(mesh: Mesh) -> None:
    mesh.speech.is_silent, mesh.reasoner.step_count = True, 0
    async with mesh.converse() as session:
        first = await session.ask("hello")
        assert (first.ended.reason, first.ended.frame_count, first.ended.step_count, first.text) == (STOP, 0, 1, "")
        assert first.ended.timings.first_audio_seconds == 0
        await session.ask("are you there?")
        await session.end()
    # An assistant message without text is none; the turn stays.
    assert [message.role for message in mesh.reasoner.heard[1].messages] == [SYSTEM, USER]


# --- cancelling ------------------------------------------------------------------------------------------------------


async def test_a_cancelled_reply_ends_at_once_and_the_next_turn_works(mesh: Mesh) -> None:
    never = asyncio.Event()

    async def hold(index: int) -> None:
        if index == 3:
            await never.wait()

    mesh.speech.hook = hold
    async with mesh.converse() as session:
        await session.say("hello")
        await session.end_turn()
        await mesh.signal.until(lambda: bool(mesh.codec.heard) and len(mesh.codec.heard[0].items) == 3)
        await session.cancel_reply()
        cut = await session.answer()
        assert (cut.ended.reason, cut.ended.turn_index) == (CANCELLED, 0)
        assert cut.ended.frame_count <= 3
        await mesh.until_quiet()
        mesh.speech.hook = no_hook
        whole = await session.ask("again")
        assert (whole.ended.reason, whole.ended.turn_index) == (STOP, 1)
        await session.end()
    told = mesh.reasoner.heard[1].messages
    assert [texts(message) for message in told[1:]] == [["hello"], *([[cut.ended.text]] if cut.ended.text else [])]
    assert mesh.count("replies_total", reason="cancelled") == 1
    assert mesh.count("reply_stops_total", cause="cancel_reply") == mesh.count("reply_stop_seconds_count") == 1


async def test_a_reply_may_be_cancelled_at_any_moment(mesh: Mesh) -> None:
    async with mesh.converse() as session:
        whole = await session.ask("hello")
        message_count = 2 + 4 + whole.ended.frame_count
    for read_count in range(message_count):
        async with mesh.converse() as session:
            await session.say("hello")
            await session.end_turn()
            cut = await session.answer(cancel_after=read_count)
            assert cut.ended.reason in (CANCELLED, STOP)
            assert whole.text.startswith(cut.text)
            assert whole.audio.startswith(cut.audio)
            assert (await session.ask("again")).ended.reason == STOP
            messages = [texts(message) for message in mesh.reasoner.heard[-1].messages]
            heard = cut.ended.text
            assert messages == [[DEFAULT_INSTRUCTIONS], ["hello"], *([[heard]] if heard else [])]
            await session.end()
    await mesh.until_quiet()


async def test_a_reply_can_be_cancelled_before_it_has_begun(mesh: Mesh) -> None:
    never = asyncio.Event()
    mesh.reasoner.hook = lambda _index: never.wait()
    async with mesh.converse() as session:
        await session.say("hello")
        await session.end_turn()
        await session.cancel_reply()
        answer = await session.answer()
        assert (answer.ended.reason, answer.ended.frame_count, answer.text) == (CANCELLED, 0, "")
        await mesh.until_quiet()


async def test_cancelling_stops_one_reply_only(mesh: Mesh) -> None:
    never = asyncio.Event()
    mesh.reasoner.hook = lambda _index: never.wait()
    async with mesh.converse() as session:
        for word in ("one", "two"):
            await session.say(word)
            await session.end_turn()
        await mesh.signal.until(lambda: bool(mesh.reasoner.heard) and mesh.reasoner.heard[0].is_ended)
        mesh.reasoner.hook = no_hook
        await session.cancel_reply()
        assert [(await session.answer()).ended.reason for _ in range(2)] == [CANCELLED, STOP]


async def test_cancelling_nothing_does_nothing(mesh: Mesh) -> None:
    async with mesh.converse() as session:
        await session.cancel_reply()
        assert (await session.ask("hello")).ended.reason == STOP
        await session.cancel_reply()
        assert (await session.ask("again")).ended.reason == STOP
        await session.end()


async def test_a_client_that_vanishes_leaves_nothing_behind(mesh: Mesh) -> None:
    never = asyncio.Event()
    mesh.codec.hook = lambda _index: never.wait()
    async with mesh.converse() as session:
        await session.say("hello")
        await session.end_turn()
        await mesh.signal.until(lambda: bool(mesh.reasoner.heard) and mesh.reasoner.heard[0].is_ended)
    await mesh.until_quiet()
    mesh.codec.hook = no_hook
    async with mesh.converse() as session:
        assert (await session.ask("hello")).ended.reason == STOP
        await session.end()
    assert mesh.count("replies_total", reason="abandoned") == 1
    assert mesh.count("replies_total", reason="stop") == 1


async def test_a_lost_connection_leaves_nothing_behind(mesh: Mesh) -> None:
    never = asyncio.Event()
    mesh.speech.hook = lambda _index: never.wait()
    async with grpc.aio.insecure_channel(mesh.address, options=[("grpc.use_local_subchannel_pool", 1)]) as channel:
        session = Conversation(orchestrator_pb2_grpc.OrchestratorServiceStub(channel))
        await session.__aenter__()
        await session.say("hello")
        await session.end_turn()
        await mesh.signal.until(lambda: bool(mesh.speech.heard) and bool(mesh.speech.heard[0].items))
    await mesh.until_quiet()


async def test_input_that_stops_without_end_is_abandoned(mesh: Mesh) -> None:
    never = asyncio.Event()
    mesh.speech.hook = lambda _index: never.wait()
    async with mesh.converse() as session:
        await session.say("hello")
        await session.end_turn()
        await mesh.signal.until(lambda: bool(mesh.speech.heard) and bool(mesh.speech.heard[0].items))
        await session.call.done_writing()
        error = await session.failure()
    assert (error.code, error.reason) == (grpc.StatusCode.CANCELLED, "ABANDONED")
    await mesh.until_quiet()


async def test_a_client_that_does_not_read_stops_the_stages(mesh: Mesh, monkeypatch: pytest.MonkeyPatch) -> None:
    """What waits never exceeds its bound, the reply can be cancelled meanwhile, and all that was sent arrives."""
    unused: dict[type, list[int]] = {types_pb2.Step: [0], types_pb2.Frame: [0]}
    keep = Track.keep

    def watched(track: Track[Any], item: Any) -> None:
        unused.setdefault(type(item), []).append(track.unused_count + 1)
        mesh.signal.touch()
        keep(track, item)

    monkeypatch.setattr(Track, "keep", watched)
    mesh.reasoner.step_count = 10**6
    mesh.reasoner.is_wordless = True  # or it would stop at the client, before speech does
    output = types_pb2.AudioFormat(encoding=F32, sample_rate_hz=24_000)
    async with mesh.converse(max_frame_count=LONGEST, output_format=output, ahead_seconds=math.inf) as session:
        await session.say("hello")
        await session.end_turn()
        await mesh.signal.until(
            lambda: unused[types_pb2.Frame][-1] == FRAMES_AHEAD and unused[types_pb2.Step][-1] == STEPS_AHEAD
        )
        await session.cancel_reply()
        answer = await session.answer()
        assert answer.ended.reason == CANCELLED
        await mesh.until_quiet()
    assert max(unused[types_pb2.Frame]) == FRAMES_AHEAD
    assert max(unused[types_pb2.Step]) == STEPS_AHEAD
    assert len(answer.audio) == answer.ended.frame_count * SAMPLES_PER_FRAME * 4


async def test_a_client_that_does_not_read_is_told_why_its_session_ended(mesh: Mesh) -> None:
    mesh.reasoner.step_count = 10**6
    async with mesh.converse(max_frame_count=LONGEST, ahead_seconds=math.inf) as session:
        await session.say("hello")
        await session.end_turn()
        await mesh.signal.until(lambda: bool(mesh.codec.heard) and len(mesh.codec.heard[0].items) > 1000)
        await session.end_turn()
        error = await session.failure()
        assert (error.code, error.reason) == (INVALID, "EMPTY_TURN")
        await mesh.until_quiet()


# --- what is refused -------------------------------------------------------------------------------------------------


def opening(**fields: Any) -> pb.ConverseRequest:
    return pb.ConverseRequest(open=pb.ConverseOpen(**fields))


def said(data: bytes, index: int = 0) -> pb.ConverseRequest:
    return pb.ConverseRequest(audio=pb.UserAudio(index=index, data=data))


def typed(text: str) -> pb.ConverseRequest:
    return pb.ConverseRequest(text=pb.UserText(text=text))


def example(transcript: str = "hello", seconds: float = 1.0, rate: int = 24_000) -> pb.VoiceExample:
    audio_format = types_pb2.AudioFormat(encoding=S16, sample_rate_hz=rate)
    return pb.VoiceExample(
        transcript=transcript, audio=types_pb2.Audio(format=audio_format, data=bytes(2 * round(seconds * rate)))
    )


def message(role: types_pb2.Role, *parts: types_pb2.ContentPart) -> types_pb2.Message:
    return types_pb2.Message(role=role, parts=parts)


def spoken_part(data: bytes, rate: int = 16_000, encoding: types_pb2.AudioEncoding = S16) -> types_pb2.ContentPart:
    audio_format = types_pb2.AudioFormat(encoding=encoding, sample_rate_hz=rate)
    return types_pb2.ContentPart(audio=types_pb2.Audio(format=audio_format, data=data))


END_TURN = pb.ConverseRequest(end_turn=pb.EndTurn())
END = pb.ConverseRequest(end=pb.ConverseEnd())
TEXT = types_pb2.ContentPart(text="hello")
NAN = np.array([0, np.nan] * 400, dtype="<f4").tobytes()
INVALID, NOT_FOUND = grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.NOT_FOUND
EXHAUSTED = grpc.StatusCode.RESOURCE_EXHAUSTED
FORMAT_11K = types_pb2.AudioFormat(encoding=S16, sample_rate_hz=11_025)

REFUSED: dict[str, tuple[list[pb.ConverseRequest], grpc.StatusCode, str]] = {
    "data before open": ([typed("hello")], INVALID, "OUT_OF_ORDER"),
    "second open": ([opening(), opening()], INVALID, "OUT_OF_ORDER"),
    "empty message": ([opening(), pb.ConverseRequest()], INVALID, "INVALID_ARGUMENT"),
    "message after end": ([opening(), typed("hello"), END_TURN, END, END_TURN], INVALID, "DATA_AFTER_END"),
    "empty turn": ([opening(), END_TURN], INVALID, "EMPTY_TURN"),
    "turn of no samples": ([opening(), said(b""), END_TURN], INVALID, "EMPTY_TURN"),
    "short audio": ([opening(), said(tone(0.019)), END_TURN], INVALID, "AUDIO_TOO_SHORT"),
    "long audio": (
        [opening(), said(bytes(9_600_000)), said(bytes(2), 1)], INVALID, "AUDIO_TOO_LONG"
    ),
    "half a sample": ([opening(), said(b"abc")], INVALID, "PARTIAL_SAMPLE"),
    "audio gap": ([opening(), said(tone(0.1)), said(tone(0.1), 2)], INVALID, "INDEX_GAP"),
    "audio not finite": ([opening(input_format=INPUT_32), said(NAN)], INVALID, "NON_FINITE"),
    "empty text": ([opening(), typed("")], INVALID, "EMPTY_TEXT"),
    "long text": ([opening(), typed("x" * (2**20 + 1))], INVALID, "TEXT_TOO_LONG"),
    "special token": ([opening(), typed("<|im_end|>"), END_TURN], INVALID, "SPECIAL_TOKEN"),
    "unknown voice": ([opening(voice_name="nobody")], NOT_FOUND, "VOICE_NOT_FOUND"),
    "voice outside": ([opening(voice_name="../ash")], NOT_FOUND, "VOICE_NOT_FOUND"),
    "no transcript": ([opening(voice_example=example(" "))], INVALID, "NO_TRANSCRIPT"),
    "short example": ([opening(voice_example=example(seconds=0.01))], INVALID, "TOO_SHORT"),
    "long example": ([opening(voice_example=example(seconds=30.1))], INVALID, "TOO_LONG"),
    "example's rate": ([opening(voice_example=example(rate=16_000))], INVALID, "WRONG_SAMPLE_RATE"),
    "input rate": ([opening(input_format=FORMAT_11K)], INVALID, "WRONG_SAMPLE_RATE"),
    "output rate": ([opening(output_format=FORMAT_11K)], INVALID, "WRONG_SAMPLE_RATE"),
    "no encoding": (
        [opening(input_format=types_pb2.AudioFormat(sample_rate_hz=16_000))], INVALID, "WRONG_ENCODING"
    ),
    "negative temperature": ([opening(sampling=types_pb2.Sampling(temperature=-0.1))], INVALID, "OUT_OF_RANGE"),
    "high temperature": ([opening(sampling=types_pb2.Sampling(temperature=2.1))], INVALID, "OUT_OF_RANGE"),
    "no temperature": (
        [opening(sampling=types_pb2.Sampling(temperature=float("nan")))], INVALID, "OUT_OF_RANGE"
    ),
    "high top_k": ([opening(sampling=types_pb2.Sampling(top_k=CODEBOOK_SIZE + 1))], INVALID, "OUT_OF_RANGE"),
    "no frames": ([opening(max_frame_count=0)], INVALID, "OUT_OF_RANGE"),
    "more than five minutes": ([opening(max_frame_count=LONGEST + 1)], INVALID, "OUT_OF_RANGE"),
    "no steps": ([opening(max_step_count=0)], INVALID, "OUT_OF_RANGE"),
    "system history": ([opening(history=[message(SYSTEM, TEXT)])], INVALID, "BAD_ROLE"),
    "empty history": ([opening(history=[message(USER)])], INVALID, "EMPTY_MESSAGE"),
    "empty part": ([opening(history=[message(USER, types_pb2.ContentPart(text=""))])], INVALID, "BAD_PART"),
    "spoken assistant": ([opening(history=[message(ASSISTANT, spoken_part(tone(1)))])], INVALID, "BAD_PART"),
    "history's rate": ([opening(history=[message(USER, spoken_part(tone(1), 8_000))])], INVALID, "WRONG_SAMPLE_RATE"),
    "short history": ([opening(history=[message(USER, spoken_part(tone(0.01)))])], INVALID, "TOO_SHORT"),
    "history not finite": (
        [opening(history=[message(USER, spoken_part(NAN, encoding=F32))])], INVALID, "NON_FINITE"
    ),
    "too many turns": ([opening(), *[typed("hello"), END_TURN] * 6], EXHAUSTED, "TURN_QUEUE_FULL"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
async def test_bad_input_is_refused_and_the_service_goes_on(mesh: Mesh, name: str) -> None:
    requests, code, reason = REFUSED[name]
    never = asyncio.Event()
    mesh.speech.hook = lambda _index: never.wait()  # a reply that has begun does not end before the bad input comes

    async def send() -> AsyncIterator[pb.ConverseRequest]:
        for request in requests:
            yield request
        await never.wait()  # the stream stays open

    call = mesh.stub.Converse(send())
    ending = CallEnding(call)
    with pytest.raises(grpc.aio.AioRpcError) as raised:
        await drain(call)
    error = await sent_error(ending, raised.value)
    assert (error.code, error.reason) == (code, reason)
    assert error.message
    await mesh.until_quiet()
    mesh.speech.hook = no_hook
    async with mesh.converse() as session:
        assert (await session.ask(tone(0.1))).ended.reason == STOP
        await session.end()
    await mesh.until_quiet()


async def test_the_limits_themselves_are_allowed(mesh: Mesh) -> None:
    async with mesh.converse(
        voice_example=example(seconds=30), sampling=types_pb2.Sampling(temperature=2, top_k=0), max_frame_count=1
    ) as session:
        assert (await session.ask(tone(0.02))).ended.reason == LENGTH
        assert (await session.ask(bytes(9_600_000))).ended.reason == LENGTH
        await session.end()


async def test_a_rest_of_a_packet_beside_text_is_left_out(mesh: Mesh) -> None:
    async with mesh.converse() as session:
        await session.ask("hello", tone(0.01))
        await session.ask("again")
    assert [part.WhichOneof("content") for part in mesh.reasoner.heard[0].parts] == ["text"]
    assert texts(mesh.reasoner.heard[1].messages[1]) == ["hello"]


async def test_floats_that_fill_a_message_stay_in_the_history_as_integers(mesh: Mesh) -> None:
    samples = np.linspace(-0.5, 0.5, 300 * 16_000, dtype="<f4")
    data = samples.tobytes()
    async with mesh.converse(input_format=INPUT_32) as session:
        await session.ask(data[: 2**23], data[2**23 :])
        await session.ask("and?")
        await session.end()
    kept = mesh.reasoner.heard[1].messages[1].parts[0].audio
    assert kept.format == INPUT_16
    back = np.frombuffer(kept.data, dtype="<i2") / 32767
    np.testing.assert_allclose(back, samples, atol=1 / 32767)


async def test_a_conversation_that_grows_beyond_its_size_forgets_what_is_oldest() -> None:
    async with Mesh().running(history_limit_bytes=40_000) as mesh, mesh.converse(instructions="be kind") as session:
        for seed in range(4):
            await session.ask(tone(0.5, seed))
        heard = [len(heard.messages) for heard in mesh.reasoner.heard]
        assert heard == [1, 3, 1, 3], "the system message and, at most, one exchange"
        assert all(texts(heard.messages[0]) == ["be kind"] for heard in mesh.reasoner.heard)
        assert mesh.count("history_cuts_total") == 1
        await session.say(tone(1.3))
        await session.end_turn()
        error = await session.failure()
        assert (error.code, error.reason) == (INVALID, "HISTORY_TOO_LONG")


# --- sessions --------------------------------------------------------------------------------------------------------


async def test_an_idle_session_ends() -> None:
    async with Mesh().running(idle_seconds=0.05) as mesh:
        async with mesh.converse() as session:
            error = await session.failure()
        assert (error.code, error.reason) == (grpc.StatusCode.DEADLINE_EXCEEDED, "IDLE")
        call = mesh.stub.Converse()  # nor may one be opened and left without a word
        with pytest.raises(grpc.aio.AioRpcError) as raised:
            await call.read()
        assert from_rpc_error(raised.value).reason == "IDLE"
        assert mesh.count("sessions_in_use") == 0


async def test_sessions_are_limited() -> None:
    async with Mesh().running(session_limit=1) as mesh:
        async with mesh.converse() as session:
            assert (mesh.count("sessions_in_use"), mesh.count("sessions")) == (1, 1)
            refused = Conversation(mesh.stub)
            with pytest.raises(grpc.aio.AioRpcError) as raised:
                await refused.__aenter__()
            error = from_rpc_error(raised.value)
            assert (error.code, error.reason) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "SESSIONS_IN_USE")
            assert error.retry_seconds
            assert mesh.count("sessions_refused_total", reason="SESSIONS_IN_USE") == 1
            await session.end()
        async with mesh.converse() as session:
            await session.end()


# --- voices ----------------------------------------------------------------------------------------------------------


async def create(mesh: Mesh, name: str, given: pb.VoiceExample | None = None) -> pb.Voice:
    request = pb.CreateVoiceRequest(name=name, example=given or example())
    return (await mesh.stub.CreateVoice(request)).voice


async def names(mesh: Mesh) -> list[str]:
    return [voice.name for voice in (await mesh.stub.ListVoices(pb.ListVoicesRequest())).voices]


async def refusal(call: Awaitable[Any]) -> MeshError:
    with pytest.raises(grpc.aio.AioRpcError) as raised:
        await call
    return from_rpc_error(raised.value)


async def test_voices_ship_with_the_mesh(mesh: Mesh) -> None:
    voices = (await mesh.stub.ListVoices(pb.ListVoicesRequest())).voices
    assert [(voice.name, voice.is_default, voice.is_builtin) for voice in voices] == [
        (name, name == "ash", True) for name in BUILTIN_VOICES
    ]
    assert all(1 <= voice.example_seconds <= 30 and voice.transcript for voice in voices)
    error = await refusal(mesh.stub.DeleteVoice(pb.DeleteVoiceRequest(name="ash")))
    assert error.code is grpc.StatusCode.FAILED_PRECONDITION


async def test_the_voice_is_what_the_speech_stage_is_given(mesh: Mesh) -> None:
    own = example("my own voice", seconds=0.5)
    for choice in ({}, {"voice_name": "birch"}, {"voice_example": own}):
        async with mesh.converse(**choice) as session:
            await session.ask("hello")
    prompts = [heard.open.voice_prompt for heard in mesh.speech.heard]
    voices = (await mesh.stub.ListVoices(pb.ListVoicesRequest())).voices
    assert [prompt.transcript for prompt in prompts] == [*(voice.transcript for voice in voices[:2]), "my own voice"]
    expected = await FakeCodec(Signal()).Encode(codec_pb2.EncodeRequest(audio=own.audio), None)
    assert prompts[2].frames == expected.frames


async def test_an_example_is_encoded_once_whoever_asks(mesh: Mesh) -> None:
    before = len(mesh.codec.encoded)

    async def open_one() -> None:
        async with mesh.converse(voice_name="birch") as session:
            await session.end()

    await asyncio.gather(*(open_one() for _ in range(6)))
    assert len(mesh.codec.encoded) == before + 1


async def test_a_voice_that_the_speech_stage_refuses_is_not_created(mesh: Mesh) -> None:
    error = await refusal(create(mesh, "mine", example("hello <|text_end|>")))
    assert (error.code, error.reason, error.field) == (grpc.StatusCode.INVALID_ARGUMENT, "REFUSED", "example")
    assert "the speech stage: transcript must not have special tokens" in error.message
    assert await names(mesh) == [*BUILTIN_VOICES]
    await create(mesh, "mine", example("hello"))
    await mesh.signal.until(lambda: mesh.speech.open_count == 0)


@pytest.mark.parametrize("is_kept", [True, False])
async def test_voices_are_created_listed_used_and_deleted(tmp_path: Path, is_kept: bool) -> None:
    async with Mesh().running(voices=tmp_path / "voices" if is_kept else None) as mesh:
        voice = await create(mesh, "mine", example("it is me", seconds=2))
        assert (voice.name, voice.transcript, voice.example_seconds) == ("mine", "it is me", 2)
        assert (voice.is_default, voice.is_builtin) == (False, False)
        assert await names(mesh) == sorted([*BUILTIN_VOICES, "mine"])
        async with mesh.converse(voice_name="mine") as session:
            await mesh.stub.DeleteVoice(pb.DeleteVoiceRequest(name="mine"))
            await session.ask("hello")  # a voice in use stays
            await session.end()
        assert mesh.speech.heard[-1].open.voice_prompt.transcript == "it is me"
        assert await names(mesh) == [*BUILTIN_VOICES]
        error = await refusal(mesh.stub.DeleteVoice(pb.DeleteVoiceRequest(name="mine")))
        assert (error.code, error.reason) == (NOT_FOUND, "VOICE_NOT_FOUND")
        await create(mesh, "mine", example("another one"))
        async with mesh.converse(voice_name="mine") as session:
            await session.ask("hello")
        assert mesh.speech.heard[-1].open.voice_prompt.transcript == "another one"


async def test_created_voices_outlive_the_process(tmp_path: Path) -> None:
    prompts = []
    async with Mesh().running(voices=tmp_path) as mesh:
        await create(mesh, "mine", example("it is me"))
        async with mesh.converse(voice_name="mine") as session:
            await session.ask("hello")
        prompts.append(mesh.speech.heard[0].open.voice_prompt)
    async with Mesh().running(voices=tmp_path, default_voice="mine") as mesh:
        voices = (await mesh.stub.ListVoices(pb.ListVoicesRequest())).voices
        assert [voice.name for voice in voices if voice.is_default] == ["mine"]
        async with mesh.converse() as session:
            await session.ask("hello")
        prompts.append(mesh.speech.heard[0].open.voice_prompt)
        error = await refusal(mesh.stub.DeleteVoice(pb.DeleteVoiceRequest(name="mine")))
        assert (error.code, error.reason) == (grpc.StatusCode.FAILED_PRECONDITION, "VOICE_IS_DEFAULT")
    assert prompts[0] == prompts[1]


@pytest.mark.parametrize("name", ["", "../x", "a/b", "Ash", "a b", "ä", "x" * 65, ".", "..", "a.wav", "ash\n"])
async def test_names_are_checked(tmp_path: Path, name: str) -> None:
    folder = tmp_path / "voices"
    folder.mkdir()
    (tmp_path / "x.json").write_text('{"transcript": "outside"}')
    async with Mesh().running(voices=folder) as mesh:
        error = await refusal(create(mesh, name))
        assert (error.code, error.reason) == (INVALID, "BAD_NAME")
        error = await refusal(mesh.stub.DeleteVoice(pb.DeleteVoiceRequest(name=name)))
        assert error.code is NOT_FOUND
    assert set(os.listdir(tmp_path)) == {"x.json", "voices"}
    assert not os.listdir(folder)


async def test_bad_voices_are_refused(tmp_path: Path) -> None:
    async with Mesh().running(voices=tmp_path, voice_limit=1) as mesh:
        for given, reason in (
            (example(""), "NO_TRANSCRIPT"),
            (example("x" * 2001), "TRANSCRIPT_TOO_LONG"),
            (example(seconds=31), "TOO_LONG"),
            (example(seconds=0), "TOO_SHORT"),
            (example(rate=48_000), "WRONG_SAMPLE_RATE"),
        ):
            error = await refusal(create(mesh, "mine", given))
            assert (error.code, error.reason) == (INVALID, reason)
        assert not os.listdir(tmp_path)
        await create(mesh, "mine")
        for taken in ("mine", "ash"):
            error = await refusal(create(mesh, taken))
            assert error.code is grpc.StatusCode.ALREADY_EXISTS
        error = await refusal(create(mesh, "yours"))
        assert (error.code, error.reason) == (EXHAUSTED, "VOICE_LIMIT")
        assert await names(mesh) == sorted([*BUILTIN_VOICES, "mine"])


# --- start-up --------------------------------------------------------------------------------------------------------


async def test_it_is_ready_when_the_stages_are(mesh: Mesh) -> None:
    settings = mesh.settings.model_copy(update={"grace_seconds": 0})
    service = OrchestratorService(settings, registry := CollectorRegistry())
    async with (
        running(
            stage="orchestrator",
            settings=settings,
            add=service.add_to,
            services=[SERVICE],
            prepare=service.prepare,
            close=service.close,
            registry=registry,
        ) as server,
        grpc.aio.insecure_channel(server.address) as channel,
    ):
        check = health_pb2.HealthCheckRequest(service=SERVICE)
        status = (await health_pb2_grpc.HealthStub(channel).Check(check)).status
        assert status == health_pb2.HealthCheckResponse.SERVING
        async with Conversation(orchestrator_pb2_grpc.OrchestratorServiceStub(channel)) as session:
            assert (await session.ask("hello")).ended.reason == STOP
            await session.end()


async def test_it_says_which_stages_are_missing(mesh: Mesh) -> None:
    for stage in ("speech", "codec"):
        await mesh.servers[stage].stop(None)
    service = OrchestratorService(mesh.settings.model_copy(update={"start_deadline_seconds": 0.2}), CollectorRegistry())
    try:
        with pytest.raises(Unavailable, match=r"speech stage at .* codec stage at ") as raised:
            await service.prepare()
        assert "reasoner" not in raised.value.message
    finally:
        await service.close()
