"""The SDK against a real server with made-up replies."""

import asyncio
import math
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from chroma_mesh.orchestrator.v1 import orchestrator_pb2
from google.rpc import code_pb2
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import client
from client.errors import MeshError
from client.events import Audio, FinishReason, ReplyEnded, ReplyStarted, Text, read_events
from client.pcm import VOICE_RATE_HZ, Encoding, Samples

F32 = client.SoundFormat(Encoding.F32, VOICE_RATE_HZ)


def noise(count: int, seed: int = 0) -> Samples:
    """Sound of so many samples."""
    return np.random.default_rng(seed).uniform(-1, 1, count).astype(np.float32)


@pytest.mark.parametrize(
    ("encoding", "rate"), [(encoding, rate) for encoding in Encoding for rate in encoding.rates_hz]
)
async def test_chunking_of_the_input_does_not_change_what_is_heard(orchestrator, encoding, rate):
    samples = noise(7001)
    input_format = client.SoundFormat(encoding, rate)
    for piece_count in (1, 2, 7, 100):
        orchestrator.requests.clear()
        async with client.connect(orchestrator.address) as mesh, mesh.session(input_format=input_format) as session:
            for piece in np.array_split(samples, piece_count):
                await session.send_audio(piece)
            await session.end_turn()
            async for _ in session.reply():
                pass
        pieces = orchestrator.received("audio")
        assert [piece.index for piece in pieces] == list(range(len(pieces)))
        assert max(len(piece.data) for piece in pieces) <= rate // 10 * encoding.sample_bytes
        assert orchestrator.heard == encoding.encode(samples)


@given(lengths=st.lists(st.integers(0, 1600), max_size=8))
@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
async def test_a_packet_is_a_message_at_once(orchestrator, lengths):
    orchestrator.requests.clear()
    async with client.connect(orchestrator.address) as mesh, mesh.session() as session:
        for length in lengths:
            await session.send_audio(noise(length))
    assert [len(piece.data) // 2 for piece in orchestrator.received("audio")] == [size for size in lengths if size]


async def test_what_is_said_typed_and_ended_keeps_its_order(orchestrator):
    async with client.connect(orchestrator.address) as mesh, mesh.session() as session:
        await session.send_audio(noise(10))
        await session.send_text("one")
        await session.send_audio(noise(10).astype(np.float64))
        await session.send_audio(np.zeros(10, np.int16).tobytes())
        await session.end_turn()
    kinds = [request.WhichOneof("payload") for request in orchestrator.requests]
    assert kinds == ["open", "audio", "text", "audio", "audio", "end_turn", "end"]


async def test_a_reply_is_its_events_in_order(orchestrator):
    async with client.connect(orchestrator.address) as mesh, mesh.session(output_format=F32) as session:
        for turn_index in range(2):
            await session.send_text("hello")
            await session.end_turn()
            events = [event async for event in session.reply()]
            assert [type(event) for event in events] == [ReplyStarted, Text, Text, Audio, Audio, ReplyEnded]
            assert {event.turn_index for event in events} == {turn_index}
            audio = [event for event in events if isinstance(event, Audio)]
            assert [(piece.frame_index, piece.frame_count) for piece in audio] == [(0, 1), (1, 2)]
            samples = np.concatenate([piece.samples for piece in audio])
            assert samples.dtype == np.float32
            assert np.array_equal(samples, np.repeat(np.float32([0.01, 0.02, 0.03]), 1920))
            ended = events[-1]
            assert isinstance(ended, ReplyEnded)
            assert (ended.reason, ended.text, ended.frame_count) == (FinishReason.STOP, "Hello.", 3)
            assert ended.timings.first_audio_seconds == 0.02
        assert session.id == "s-1"
        assert session.samples_per_frame == 1920


async def test_sound_that_is_no_frame_of_its_own_is_the_replys_last(orchestrator):
    orchestrator.tail = np.full(7, 0.04, np.float32)
    async with client.connect(orchestrator.address) as mesh, mesh.session(output_format=F32) as session:
        await session.send_text("hello")
        await session.end_turn()
        audio = [event async for event in session.reply() if isinstance(event, Audio)]
    assert [(piece.frame_index, piece.frame_count, len(piece.samples)) for piece in audio[1:]] == [
        (1, 2, 3840),
        (3, 0, 7),
    ]
    assert np.array_equal(audio[-1].samples, orchestrator.tail)


async def test_a_reply_that_was_read_in_part_goes_on_where_it_was_left(orchestrator):
    async with client.connect(orchestrator.address) as mesh, mesh.session() as session:
        await session.send_text("hello")
        await session.end_turn()
        first = await anext(session.reply())
        rest = [event async for event in session.reply()]
    assert isinstance(first, ReplyStarted)
    assert [type(event) for event in rest] == [Text, Text, Audio, Audio, ReplyEnded]


async def test_settings_reach_the_mesh(orchestrator):
    example = client.VoiceExample("I am me.", noise(2400))
    history = [client.Message(client.Role.USER, ["hi", noise(320)]), client.Message(client.Role.ASSISTANT, ["hello"])]
    async with client.connect(orchestrator.address) as mesh:
        async with mesh.session(
            voice=example,
            instructions="",
            history=history,
            temperature=0,
            top_k=0,
            seed=2**64 - 1,
            max_frame_count=5,
            max_step_count=6,
            input_format=client.SoundFormat(Encoding.F32, 8000),
            output_format=F32,
            turn_detection=client.ServerVad(threshold=0, prefix_padding_ms=0, silence_duration_ms=100, barge_in=False),
            ahead_seconds=math.inf,
        ):
            pass
        async with mesh.session(voice="ash", turn_detection=client.ServerVad()):
            pass
        async with mesh.session():
            pass
    first, second, third = orchestrator.received("open")
    assert first.voice_example.audio.data == example.samples.tobytes()
    assert first.HasField("instructions")
    assert (first.sampling.temperature, first.sampling.top_k, first.sampling.seed) == (0, 0, 2**64 - 1)
    assert (first.max_frame_count, first.max_step_count) == (5, 6)
    assert first.history[0].parts[1].audio.data == history[0].parts[1].tobytes()
    assert (first.input_format.encoding, first.input_format.sample_rate_hz) == (Encoding.F32.wire, 8000)
    assert (first.output_format.encoding, first.output_format.sample_rate_hz) == (Encoding.F32.wire, 24000)
    vad = first.turn_detection.server_vad
    assert (vad.threshold, vad.prefix_padding_ms, vad.silence_duration_ms, vad.barge_in) == (0, 0, 100, False)
    for name in ("threshold", "prefix_padding_ms", "silence_duration_ms", "barge_in"):
        assert vad.HasField(name)
        assert not second.turn_detection.server_vad.HasField(name)
    assert first.ahead_seconds == math.inf
    assert second.voice_name == "ash"
    assert second.turn_detection.WhichOneof("kind") == "server_vad"
    assert (third.input_format.encoding, third.input_format.sample_rate_hz) == (Encoding.S16.wire, 16000)
    assert (third.output_format.encoding, third.output_format.sample_rate_hz) == (Encoding.S16.wire, 24000)
    assert third.WhichOneof("voice") is None
    for absent in ("instructions", "max_frame_count", "max_step_count", "sampling", "turn_detection", "ahead_seconds"):
        assert not third.HasField(absent)


async def test_what_can_be_said_during_a_session(orchestrator):
    whole = client.ReplySettings(
        voice="ash", instructions="", temperature=0, top_k=3, seed=5, max_frame_count=5, max_step_count=6
    )
    voice = client.VoiceExample("I am me.", noise(2400))
    async with client.connect(orchestrator.address) as mesh, mesh.session() as session:
        await session.update(client.ReplySettings())
        await session.update(client.ReplySettings(voice=voice, seed=7))
        await session.send_text("hello")
        await session.end_turn(whole)
        await session.reply_played(0, 2**40)
        await session.cancel_reply()
        await session.cancel_reply(0)
    nothing, other = (update.reply for update in orchestrator.received("update"))
    assert not nothing.ListFields()
    assert other.voice_example.audio.data == voice.samples.tobytes()
    assert [field.name for field, _ in other.sampling.ListFields()] == ["seed"]
    (ended,) = orchestrator.received("end_turn")
    assert (ended.reply.voice_name, ended.reply.max_frame_count, ended.reply.max_step_count) == ("ash", 5, 6)
    assert (ended.reply.sampling.temperature, ended.reply.sampling.top_k, ended.reply.sampling.seed) == (0, 3, 5)
    assert ended.reply.HasField("instructions")
    (played,) = orchestrator.received("reply_played")
    assert (played.turn_index, played.sample_count) == (0, 2**40)
    any_reply, this_reply = orchestrator.received("cancel_reply")
    assert not any_reply.HasField("turn_index")
    assert this_reply.HasField("turn_index")


@pytest.mark.parametrize("joins_texts", [False, True])
async def test_events_end_when_the_session_has_ended(orchestrator, joins_texts: bool):
    orchestrator.joins_texts = joins_texts
    async with client.connect(orchestrator.address) as mesh, mesh.session() as session:
        await session.send_text("hello")
        await session.end_turn()
        await session.end()
        await session.end()
        events = [event async for event in session.events()]
    assert [type(event) for event in events] == [ReplyStarted, Text, Text, Audio, Audio, ReplyEnded]
    assert len(orchestrator.received("end")) == 1


async def test_speech_and_where_text_is_spoken_are_events():
    response, text = orchestrator_pb2.ConverseResponse, orchestrator_pb2.ReplyText
    pieces = [orchestrator_pb2.ReplyTextPiece(text="Hi", audio_sample=2), orchestrator_pb2.ReplyTextPiece(text=" all")]
    for message, expected in (
        (
            response(speech_started=orchestrator_pb2.SpeechStarted(turn_index=1, audio_sample=2)),
            (client.SpeechStarted(1, 2),),
        ),
        (
            response(speech_stopped=orchestrator_pb2.SpeechStopped(turn_index=1, audio_sample=2)),
            (client.SpeechStopped(1, 2),),
        ),
        (response(text=text(turn_index=1, text="Hi", audio_sample=2)), (Text(1, "Hi", 2),)),
        (
            response(text=text(turn_index=1, text="Hi all", audio_sample=2, pieces=pieces)),
            (Text(1, "Hi", 2), Text(1, " all", 0)),
        ),
        (response(), ()),
    ):
        assert tuple(read_events(message, Encoding.S16, 24_000)) == expected


async def test_the_first_sound_says_where_the_time_went():
    timings = orchestrator_pb2.ReplyTimings(
        first_audio_seconds=3, parts=[orchestrator_pb2.TurnPart(name="prefill", seconds=2)]
    )
    for told, expected in ((timings, client.Timings(0, 0, 0, 0, 3, 0, (client.TurnPart("prefill", 2),))), (None, None)):
        message = orchestrator_pb2.ConverseResponse(audio=orchestrator_pb2.ReplyAudio(timings=told))
        (event,) = read_events(message, Encoding.S16, 24_000)
        assert isinstance(event, Audio)
        assert event.timings == expected


async def test_leaving_says_end_and_waits_for_the_reply(orchestrator):
    async with client.connect(orchestrator.address) as mesh, mesh.session() as session:
        await session.send_text("hello")
        await session.end_turn()
    assert orchestrator.half_closed.is_set()
    assert len(orchestrator.received("end")) == 1
    assert not orchestrator.cancelled.is_set()


async def leave_by_an_exception(mesh: client.Mesh) -> None:
    """A session that is left in the middle of a reply."""
    async with mesh.session() as session:
        await session.send_text("hello")
        await session.end_turn()
        raise ZeroDivisionError


async def test_an_exception_cancels_the_session(orchestrator):
    orchestrator.hold = True
    async with client.connect(orchestrator.address) as mesh:
        with pytest.raises(ZeroDivisionError):
            await leave_by_an_exception(mesh)
        await orchestrator.cancelled.wait()
    assert not orchestrator.received("end")


async def test_a_cancelled_reply_still_ends(orchestrator):
    orchestrator.hold = True
    async with client.connect(orchestrator.address) as mesh, mesh.session() as session:
        await session.send_text("hello")
        await session.end_turn()
        events = []
        async for event in session.reply():
            events.append(event)
            if isinstance(event, Audio):
                await session.cancel_reply()
    assert isinstance(events[-1], ReplyEnded)
    assert events[-1].reason is FinishReason.CANCELLED


async def test_one_task_may_send_while_another_reads(orchestrator):
    async def speak(session: client.Session) -> None:
        for _ in range(3):
            await session.send_audio(noise(5000))
            await session.end_turn()

    async def listen(session: client.Session) -> list[int]:
        return [event.turn_index for _ in range(3) async for event in session.reply() if isinstance(event, ReplyEnded)]

    async with client.connect(orchestrator.address) as mesh, mesh.session() as session:
        _, turns = await asyncio.gather(speak(session), listen(session))
    assert turns == [0, 1, 2]


async def take_a_turn(address: str) -> None:
    """A whole session of one turn."""
    async with client.connect(address) as mesh, mesh.session() as session:
        await session.send_text("hello")
        await session.end_turn()
        async for _ in session.reply():
            pass


@pytest.mark.parametrize("kind", ["open", "text", "end_turn", "end"])
async def test_a_refusal_is_a_mesh_error_wherever_it_comes(orchestrator, refusal, kind):
    orchestrator.refuse[kind] = refusal(code_pb2.INVALID_ARGUMENT, "WRONG", "this is wrong", "open.history[0]")
    with pytest.raises(MeshError) as caught:
        await take_a_turn(orchestrator.address)
    error = caught.value
    assert error.code is grpc.StatusCode.INVALID_ARGUMENT
    assert (error.reason, error.message, error.field) == ("WRONG", "this is wrong", "open.history[0]")


async def send_for_ever(address: str) -> None:
    """A session that only sends."""
    async with client.connect(address) as mesh, mesh.session() as session:
        await session.send_text("hello")
        while True:
            await session.send_audio(noise(1600))


async def test_sending_into_a_session_that_the_mesh_ended_says_why(orchestrator, refusal):
    orchestrator.refuse["text"] = refusal(code_pb2.RESOURCE_EXHAUSTED, "TURN_QUEUE_FULL", "too many turns")
    with pytest.raises(MeshError, match="too many turns") as caught:
        await send_for_ever(orchestrator.address)
    assert caught.value.reason == "TURN_QUEUE_FULL"


async def test_bad_input_is_refused_before_it_is_sent(orchestrator):
    async with client.connect(orchestrator.address) as mesh, mesh.session() as session:
        for audio, said in (
            (b"\0\0\0", "whole samples"),
            (np.zeros((2, 2), np.float32), "mono"),
            (np.zeros(2, np.int32), "int32"),
            (np.float32([np.nan]), "finite"),
        ):
            with pytest.raises(ValueError, match=said):
                await session.send_audio(audio)
    assert not orchestrator.received("audio")


async def test_nothing_at_the_address_is_said_plainly(free_address):
    async with client.connect(free_address) as mesh:
        for call in (mesh.voices, mesh.is_ready, mesh.session().__aenter__):
            with pytest.raises(MeshError, match="nothing answers at") as caught:
                await call()
            assert caught.value.reason == "UNREACHABLE"


async def test_a_mesh_that_goes_away_is_said(orchestrator):
    async with client.connect(orchestrator.address) as mesh:
        session = await mesh.session().__aenter__()
        await orchestrator.stop()
        with pytest.raises(MeshError, match=r"the connection to .* was lost") as caught:
            await anext(session.reply())
        assert caught.value.reason == "UNREACHABLE"
        with pytest.raises(MeshError, match="was lost"):
            await session.__aexit__(None, None, None)


async def test_voices_are_listed_added_and_removed(orchestrator):
    example = client.VoiceExample("I am new.", noise(2400))
    async with client.connect(orchestrator.address) as mesh:
        assert await mesh.is_ready()
        assert (await mesh.add_voice("new", example)).name == "new"
        assert [(voice.name, voice.is_builtin) for voice in await mesh.voices()] == [("ash", True), ("new", False)]
        with pytest.raises(MeshError) as caught:
            await mesh.add_voice("new", example)
        assert (caught.value.reason, caught.value.field) == ("VOICE_EXISTS", "name")
        await mesh.remove_voice("new")
        with pytest.raises(MeshError, match="there is no voice new"):
            await mesh.remove_voice("new")


async def test_nothing_is_left_behind(orchestrator):
    before = asyncio.all_tasks()
    async with client.connect(orchestrator.address) as mesh:
        async with mesh.session() as session:
            await session.send_text("hello")
            await session.end_turn()
        with pytest.raises(ZeroDivisionError):
            await leave_by_an_exception(mesh)
    await orchestrator.cancelled.wait()
    left = [task for task in asyncio.all_tasks() - before if is_of_a_client(task)]
    await asyncio.gather(*left, return_exceptions=True)  # those that end by themselves, a turn of the loop later


def is_of_a_client(task: asyncio.Task[Any]) -> bool:
    """Whether a task belongs to our client or to grpc's."""
    coroutine: Any = task.get_coro()
    file = coroutine.cr_code.co_filename if hasattr(coroutine, "cr_code") else ""
    return file.startswith(str(Path(client.__file__).parent)) or file.endswith("aio/_call.py")
