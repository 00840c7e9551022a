"""Turns that silence does not end: the mesh hears when the user speaks, and the client says when it is answered."""

import asyncio

import pytest
from chroma_mesh.orchestrator.v1 import orchestrator_pb2 as pb

from client.connection import connect
from client.events import ReplyEnded, SpeechStarted, SpeechStopped
from client.session_settings import ServerVad
from client.unkept import SpeechCount
from tests.contract.fake_mesh import CANCELLED, STOP, USER, Mesh, no_hook
from tests.contract.test_live_session import packets, read, read_until, silence, speech, vad


async def test_what_is_said_until_end_turn_is_one_turn(mesh: Mesh) -> None:
    async with mesh.converse(turn_detection=vad(ends_turns=False)) as session:
        for turn_index in range(2):
            for _ in range(2):
                await session.say(*packets(speech(0.5) + silence(0.5)))
                started, stopped = await read(session, "speech_started", "speech_stopped")
                assert started.turn_index == stopped.turn_index == turn_index
            await session.say("and this")
            await session.end_turn()
            answer = await session.answer()
            assert answer.ended.turn_index == turn_index
            assert answer.ended.reason == STOP
        await session.end()
    heard = mesh.reasoner.heard[-1]
    assert sum(len(part.audio) for part in heard.parts) > 2 * 0.7 * 32_000
    assert heard.parts[-1].text == "and this"
    # What was said in the turn before is remembered, all of it.
    (before,) = (message for message in heard.messages if message.role == USER)
    remembered = sum(len(part.audio.data) for part in before.parts)
    assert remembered > 2 * 0.7 * 32_000


async def test_speech_is_a_barge_in_and_ends_with_end_turn(mesh: Mesh) -> None:
    async with mesh.converse(turn_detection=vad(ends_turns=False)) as session:
        await session.say(*packets(speech(0.5) + silence(0.5)))
        await read(session, "speech_started", "speech_stopped")
        mesh.codec.hook = stand_still
        await session.end_turn()
        await read_until(session, "reply_started")
        await session.say(*packets(speech(0.5)))
        ended = (await read_until(session, "reply_ended"))[-1].reply_ended
        assert (ended.turn_index, ended.reason) == (0, CANCELLED)
        mesh.codec.hook = no_hook
        await session.end_turn()
        (stopped,) = await read(session, "speech_stopped")
        assert stopped.turn_index == 1
        assert (await session.answer()).ended.turn_index == 1
        await session.end_turn()  # nobody speaks: nothing happens
        await session.end()


async def test_a_turn_without_room_hears_nothing_more(mesh: Mesh) -> None:
    async with mesh.converse(turn_detection=vad(ends_turns=False)) as session:
        for _ in range(3):
            await session.say(speech(119) + silence(0.5))
        for _ in range(3):
            await read(session, "speech_started", "speech_stopped")
        await session.say(speech(1) + silence(0.5))
        await session.end_turn()
        # A turn may take 300 s; the third utterance was cut there.
        assert (await session.answer()).ended.reason == STOP
        assert sum(len(part.audio) for part in mesh.reasoner.heard[-1].parts) == pytest.approx(300 * 32_000, rel=0.01)
        await session.end()


async def test_speech_is_told_once_when_the_call_is_lost(mesh: Mesh) -> None:
    detection = ServerVad(silence_duration_ms=200, prefix_padding_ms=100, ends_turns=False)
    async with connect(mesh.address) as client, client.session(turn_detection=detection) as session:
        for _ in range(2):
            await session.send_audio(speech(0.5) + silence(0.5))
            assert isinstance(await session.next_event(), SpeechStarted)
            assert isinstance(await session.next_event(), SpeechStopped)
        session._open_line().call.cancel()
        await session.send_audio(speech(0.5) + silence(0.5))
        kinds = [type(await session.next_event()) for _ in range(2)]
        assert kinds == [SpeechStarted, SpeechStopped]
        await session.end_turn()
        events = [event async for event in session.reply()]
        assert isinstance(events[-1], ReplyEnded)
        assert not any(isinstance(event, SpeechStarted | SpeechStopped) for event in events)


def test_what_is_said_again_is_not_new() -> None:
    count = SpeechCount()
    assert [count.is_new(index) for index in (0, 0, 1)] == [True, True, True]
    assert count.is_new(1)
    count.begin_again()
    assert [count.is_new(index) for index in (0, 1, 1, 1, 2)] == [False, False, False, True, True]


def test_absent_means_that_silence_ends_turns() -> None:
    assert not pb.ServerVad().HasField("ends_turns")
    assert ServerVad().wire().server_vad == pb.ServerVad()


async def stand_still(index: int) -> None:
    if index >= 2:
        await asyncio.Event().wait()
