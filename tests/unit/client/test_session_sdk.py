"""The SDK against a real server with made-up replies."""

import asyncio
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from google.rpc import code_pb2

import client
from client.errors import MeshError
from client.events import Audio, FinishReason, ReplyEnded, ReplyStarted, Text
from client.pcm import Encoding, Samples


def noise(count: int, seed: int = 0) -> Samples:
    """Sound of so many samples."""
    return np.random.default_rng(seed).uniform(-1, 1, count).astype(np.float32)


@pytest.mark.parametrize("encoding", list(Encoding))
async def test_chunking_of_the_input_does_not_change_what_is_sent(orchestrator, encoding):
    samples = noise(7001)
    sent = []
    for piece_count in (1, 2, 7, 100):
        orchestrator.requests.clear()
        async with client.connect(orchestrator.address) as mesh, mesh.session(encoding=encoding) as session:
            for piece in np.array_split(samples, piece_count):
                await session.send_audio(piece)
            await session.end_turn()
            async for _ in session.reply():
                pass
        pieces = orchestrator.received("audio")
        assert [piece.index for piece in pieces] == list(range(5))
        assert {len(piece.data) for piece in pieces[:-1]} == {1600 * encoding.sample_bytes}
        sent.append(orchestrator.heard)
    assert set(sent) == {encoding.encode(samples)}


async def test_audio_that_waits_goes_before_text_and_the_end_of_the_turn(orchestrator):
    async with client.connect(orchestrator.address) as mesh, mesh.session() as session:
        await session.send_audio(noise(10))
        await session.send_text("one")
        await session.send_audio(noise(10).astype(np.float64))
        await session.send_audio(np.zeros(10, np.int16).tobytes())
        await session.end_turn()
    kinds = [request.WhichOneof("payload") for request in orchestrator.requests]
    assert kinds == ["open", "audio", "text", "audio", "end_turn", "end"]


async def test_a_reply_is_its_events_in_order(orchestrator):
    async with client.connect(orchestrator.address) as mesh, mesh.session(encoding=Encoding.F32) as session:
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
            encoding=Encoding.F32,
        ):
            pass
        async with mesh.session(voice="ash"):
            pass
        async with mesh.session():
            pass
    first, second, third = orchestrator.received("open")
    assert first.voice_example.audio.data == example.samples.tobytes()
    assert first.HasField("instructions")
    assert (first.sampling.temperature, first.sampling.top_k, first.sampling.seed) == (0, 0, 2**64 - 1)
    assert (first.max_frame_count, first.max_step_count) == (5, 6)
    assert first.history[0].parts[1].audio.data == history[0].parts[1].tobytes()
    assert second.voice_name == "ash"
    assert third.WhichOneof("voice") is None
    for absent in ("instructions", "max_frame_count", "max_step_count"):
        assert not third.HasField(absent)
    for absent in ("temperature", "top_k", "seed"):
        assert not third.sampling.HasField(absent)


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
