"""A session whose call was lost goes on in another call, at another orchestrator, as if nothing had been."""

import asyncio
import sqlite3
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import pytest
from chroma_mesh.orchestrator.v1 import journal_pb2, orchestrator_pb2_grpc
from chroma_mesh.orchestrator.v1 import orchestrator_pb2 as pb
from chroma_mesh.types.v1 import types_pb2
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry

from services.orchestrator.call_ending import CallEnding
from services.orchestrator.journal import journal_key
from services.orchestrator.service import OrchestratorService
from services.orchestrator.turn_record import PART_BYTES
from services.runtime.errors import MeshError
from tests.contract.fake_mesh import (
    CANCELLED,
    FAILED,
    S16,
    Mesh,
    drain,
    sent_error,
    serving,
    tone,
)

MULAW = types_pb2.AUDIO_ENCODING_MULAW
FORMATS = [
    None,
    types_pb2.AudioFormat(encoding=MULAW, sample_rate_hz=8_000),
    types_pb2.AudioFormat(encoding=S16, sample_rate_hz=48_000),
]


@asynccontextmanager
async def two_fronts(journal: Path | str, **options: Any) -> AsyncIterator[tuple[Mesh, list[Any]]]:
    """A mesh with two orchestrators that share a journal, and a stub of each."""
    async with Mesh().running(journal=str(journal), **options) as mesh:
        other = OrchestratorService(mesh.settings, CollectorRegistry())
        try:
            await other.prepare()
            async with serving(other.add_to) as (address, _), grpc.aio.insecure_channel(address) as channel:
                yield mesh, [mesh.stub, orchestrator_pb2_grpc.OrchestratorServiceStub(channel)]
        finally:
            await other.close()


@dataclass
class Got:
    """What came of one reply."""

    text: str = ""
    audio: bytes = b""
    frame_count: int = 0
    text_count: int = 0
    ended: pb.ReplyEnded | None = None

    @property
    def facts(self) -> tuple[Any, ...]:
        ended = self.ended
        assert ended is not None
        return self.text, self.audio, self.frame_count, ended.reason, ended.text, ended.frame_count, ended.step_count


@dataclass
class Caller:
    """A client that says a script, and takes its session up again wherever its call is lost."""

    script: list[pb.ConverseRequest]
    sample_bytes: int = 2
    got: dict[int, Got] = field(default_factory=dict)
    token: str = ""
    call: Any = None
    joins_text: bool = False

    async def open(self, stub: Any, **opening: Any) -> None:
        self.joins_text |= opening.get("joins_text", False)
        self.call = stub.Converse()
        self.ending = CallEnding(self.call)
        await self.call.write(pb.ConverseRequest(open=pb.ConverseOpen(**opening)))
        response = await self.call.read()
        assert response.WhichOneof("payload") == "opened", response
        assert not self.token or self.token == response.opened.resume_token
        self.opened, self.token = response.opened, response.opened.resume_token
        self.audio_index = 0
        await self.send(self.script[self.opened.kept_message_count :])

    async def send(self, messages: list[pb.ConverseRequest]) -> None:
        for message in messages:
            if message.WhichOneof("payload") == "audio":
                audio = pb.UserAudio(index=self.audio_index, data=message.audio.data)
                await self.call.write(pb.ConverseRequest(audio=audio))
                self.audio_index += 1
            else:
                await self.call.write(message)

    def position(self) -> pb.ConverseResume:
        turn_index = sum(it.ended is not None for it in self.got.values())
        got = self.got.get(turn_index)
        return pb.ConverseResume(
            token=self.token,
            turn_index=turn_index,
            is_started=got is not None,
            text_count=got.text_count if got else 0,
            frame_count=got.frame_count if got else 0,
            sample_count=len(got.audio) // self.sample_bytes if got else 0,
        )

    async def resume(self, stub: Any) -> None:
        await self.open(stub, resume=self.position())

    async def read(self, count: int | None = None) -> bool:
        """Reads so many messages, or until the end; whether there is more."""
        while count is None or count > 0:
            message = await self.call.read()
            if message is grpc.aio.EOF:
                return False
            self.take(message)
            count = None if count is None else count - 1
        return True

    def take(self, message: pb.ConverseResponse) -> None:
        payload = getattr(message, message.WhichOneof("payload"))
        match message.WhichOneof("payload"):
            case "reply_started":
                assert payload.turn_index == len(self.got), "told twice"
                self.got[payload.turn_index] = Got()
            case "text":
                got = self.got[payload.turn_index]
                assert not payload.pieces or (self.joins_text and len(payload.pieces) > 1)
                assert "".join(piece.text for piece in payload.pieces) in ("", payload.text)
                got.text += payload.text
                got.text_count += max(1, len(payload.pieces))
            case "audio":
                got = self.got[payload.turn_index]
                assert payload.frame_index == got.frame_count
                assert payload.HasField("timings") == (not got.frame_count)
                got.frame_count += payload.frame_count
                got.audio += payload.data
            case "reply_ended":
                assert self.got[payload.turn_index].ended is None, "ended twice"
                self.got[payload.turn_index].ended = payload

    async def lose(self) -> None:
        self.call.cancel()

    async def refusal(self, stub: Any, **opening: Any) -> MeshError:
        self.call = stub.Converse()
        ending = CallEnding(self.call)
        await self.call.write(pb.ConverseRequest(open=pb.ConverseOpen(**opening)))
        with pytest.raises(grpc.aio.AioRpcError) as raised:
            await drain(self.call)
        return await sent_error(ending, raised.value)


def turn(*things: str | bytes, **reply: Any) -> list[pb.ConverseRequest]:
    said = [
        pb.ConverseRequest(text=pb.UserText(text=thing))
        if isinstance(thing, str)
        else pb.ConverseRequest(audio=pb.UserAudio(data=thing))
        for thing in things
    ]
    return [*said, pb.ConverseRequest(end_turn=pb.EndTurn(reply=pb.ReplySettings(**reply)))]


END = pb.ConverseRequest(end=pb.ConverseEnd())
UPDATE = pb.ConverseRequest(update=pb.SessionUpdate(reply=pb.ReplySettings(max_frame_count=5)))
SCRIPT = [
    *turn("one", tone(0.3), "two", "three"),
    *turn(tone(0.5, 1), sampling=types_pb2.Sampling(seed=7)),
    UPDATE,
    *turn("four", max_step_count=3),
    *turn(tone(0.1, 2)),
    END,
]


@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(st.tuples(st.integers(0, 12), st.integers(0, 1), st.integers(1, 7)), min_size=1, max_size=4),
    st.sampled_from(FORMATS),
    st.booleans(),
)
async def test_wherever_a_call_is_lost_the_session_goes_on_byte_for_byte(
    tmp_path: Path,
    cuts: list[tuple[int, int, int]],
    output_format: types_pb2.AudioFormat | None,
    joins_text: bool,
) -> None:
    """However many frames, and so pieces of text, came together before and after the loss."""
    sample_bytes = 1 if output_format is not None and output_format.encoding == MULAW else 2
    history = [types_pb2.Message(role=types_pb2.ROLE_USER, parts=[types_pb2.ContentPart(text="before")])]
    opening = {"output_format": output_format, "history": history, "sampling": types_pb2.Sampling(seed=3)}
    async with two_fronts(tmp_path / "journal") as (mesh, stubs):
        undisturbed = Caller(SCRIPT, sample_bytes)
        await undisturbed.open(stubs[0], **opening)
        await undisturbed.read()

        caller = Caller(SCRIPT, sample_bytes)
        await caller.open(stubs[0], joins_text=joins_text, **opening)
        for count, front, frames_per_message in cuts:
            if not await caller.read(count):
                break
            await caller.lose()
            mesh.speech.frames_per_message = frames_per_message
            await caller.resume(stubs[front])
        await caller.read()
        assert await caller.call.code() is grpc.StatusCode.OK

    assert len(undisturbed.got) == 4
    assert {index: got.facts for index, got in caller.got.items()} == {
        index: got.facts for index, got in undisturbed.got.items()
    }


async def test_a_long_turn_is_kept_while_it_is_said_and_taken_up_whole(tmp_path: Path) -> None:
    script = [*turn(*(tone(1.0, index) for index in range(7))), *turn("and on"), END]
    async with two_fronts(tmp_path / "journal") as (_, stubs):
        undisturbed = Caller(script)
        await undisturbed.open(stubs[0])
        await undisturbed.read()

        caller = Caller(script)
        await caller.open(stubs[0])
        await caller.read(3)
        await caller.lose()
        with closing(sqlite3.connect(tmp_path / "journal")) as journal:
            said = dict(journal.execute("SELECT name, data FROM field WHERE name GLOB 'turn/0/*'").fetchall())
        assert sorted(said) == [f"turn/0/{part}" for part in range(4)]
        await caller.resume(stubs[1])
        await caller.read()
    parts = journal_pb2.TurnRecord.FromString(b"".join(said[name] for name in sorted(said))).pieces
    assert b"".join(part.audio.data for part in parts) == b"".join(tone(1.0, index) for index in range(7))
    assert max(map(len, said.values())) < 1.2 * PART_BYTES
    assert [got.facts for got in caller.got.values()] == [got.facts for got in undisturbed.got.values()]


async def test_a_reply_that_was_stopped_stays_stopped_and_its_end_is_told(tmp_path: Path) -> None:
    async with two_fronts(tmp_path / "journal") as (mesh, stubs):
        gate = asyncio.Event()

        async def hook(index: int) -> None:
            if index == 3:
                await gate.wait()

        mesh.codec.hook = hook
        caller = Caller(turn("stop this"))
        await caller.open(stubs[0])
        await caller.read(4)
        await caller.call.write(pb.ConverseRequest(cancel_reply=pb.CancelReply()))
        while (await caller.call.read()).WhichOneof("payload") != "reply_ended":
            pass  # the client does not get it
        await caller.lose()
        gate.set()
        await caller.resume(stubs[1])
        caller.script = [*caller.script, *turn("and on"), END]
        for message in caller.script[caller.opened.kept_message_count :]:
            await caller.call.write(message)
        await caller.read()
        assert next(got.ended.reason for got in caller.got.values() if got.ended) == CANCELLED
        assert caller.got[1].facts[3] not in (CANCELLED, FAILED)


async def test_a_stop_while_a_reply_is_made_again_counts_what_was_heard(tmp_path: Path) -> None:
    async with two_fronts(tmp_path / "journal") as (mesh, stubs):
        caller = Caller([*turn("say much")])
        await caller.open(stubs[0])
        await caller.read(5)
        await caller.lose()
        await mesh.until_quiet()
        gate = asyncio.Event()

        async def hook(index: int) -> None:
            await gate.wait()

        mesh.codec.hook = hook
        had = caller.position()
        await caller.resume(stubs[1])
        await caller.call.write(pb.ConverseRequest(cancel_reply=pb.CancelReply()))
        await caller.call.write(END)
        await mesh.signal.until(lambda: mesh.codec.open_count == 1)
        gate.set()
        await caller.read()
        ended = caller.got[0].ended
        assert ended is not None
        assert ended.frame_count >= had.frame_count


async def test_the_newer_call_takes_the_session_from_the_older_one(tmp_path: Path) -> None:
    async with two_fronts(tmp_path / "journal") as (_, stubs):
        older = Caller(turn("first"))
        await older.open(stubs[0])
        await older.read(2)
        newer = Caller([*older.script, END], token=older.token)
        await newer.resume(stubs[0])
        with pytest.raises(grpc.aio.AioRpcError) as raised:
            await drain(older.call)
        error = await sent_error(older.ending, raised.value)
        assert (error.code, error.reason) == (grpc.StatusCode.ABORTED, "RESUMED_ELSEWHERE")
        await newer.read()
        assert newer.got[0].ended is not None


async def test_an_older_call_at_another_orchestrator_ends_at_its_next_write(tmp_path: Path) -> None:
    async with two_fronts(tmp_path / "journal") as (_, stubs):
        older = Caller(turn("first"))
        await older.open(stubs[0])
        while not (older.got and older.got[0].ended):
            await older.read(1)
        newer = Caller([], token=older.token)
        await newer.resume(stubs[1])
        for message in turn("second"):
            await older.call.write(message)
        with pytest.raises(grpc.aio.AioRpcError) as raised:
            await drain(older.call)
        assert (await sent_error(older.ending, raised.value)).reason == "RESUMED_ELSEWHERE"
        await newer.lose()


async def test_what_opens_nothing_is_answered_the_same_whatever_the_cause(tmp_path: Path) -> None:
    async with two_fronts(tmp_path / "journal") as (mesh, stubs):
        caller = Caller([])
        for token in ("", "x" * 43):
            error = await caller.refusal(stubs[0], resume=pb.ConverseResume(token=token))
            assert (error.code, error.reason) == (grpc.StatusCode.NOT_FOUND, "NO_SUCH_SESSION")
        assert mesh.count("resumes_total", outcome="refused") == 2


async def test_a_resume_says_nothing_else(tmp_path: Path) -> None:
    async with two_fronts(tmp_path / "journal") as (_, stubs):
        caller = Caller(turn("first"))
        await caller.open(stubs[0])
        resume = pb.ConverseResume(token=caller.token)
        error = await Caller([]).refusal(stubs[0], resume=resume, voice_name="ash")
        assert (error.code, error.reason) == (grpc.StatusCode.INVALID_ARGUMENT, "RESUME_IS_ALL")
        resume.turn_index = 9
        error = await Caller([]).refusal(stubs[0], resume=resume)
        assert (error.code, error.reason) == (grpc.StatusCode.INVALID_ARGUMENT, "OUT_OF_RANGE")


async def test_a_session_that_has_ended_is_soon_forgotten_and_one_that_was_lost_in_time(tmp_path: Path) -> None:
    async with two_fronts(tmp_path / "journal", journal_seconds=100) as (mesh, stubs):
        ended, lost = Caller([*turn("first"), END]), Caller(turn("second"))
        await ended.open(stubs[0])
        await ended.read()
        await lost.open(stubs[0])
        await lost.read(2)
        await lost.lose()
        await mesh.until_quiet()
        journal = mesh.service._journal
        for seconds, caller in ((11, ended), (101, lost)):
            journal._now = lambda seconds=seconds: time.time() + seconds
            error = await Caller([]).refusal(stubs[0], resume=pb.ConverseResume(token=caller.token))
            assert (error.code, error.reason) == (grpc.StatusCode.NOT_FOUND, "NO_SUCH_SESSION")
            if caller is ended:
                assert await journal.peek(journal_key(lost.token), "session") is not None


async def test_a_conversation_that_was_cut_goes_on_as_it_was_cut(tmp_path: Path) -> None:
    async def talk(cut: bool) -> list[tuple[Any, ...]]:
        async with two_fronts(tmp_path / f"journal {cut}", history_limit_bytes=20_000) as (_, stubs):
            script = [message for index in range(8) for message in turn(tone(0.15, index), f"turn {index}")]
            caller = Caller(script[:3])
            await caller.open(stubs[0])
            for index in range(8):
                if index:
                    caller.script = script[: 3 * index + 3]
                    await caller.send(script[3 * index : 3 * index + 3])
                while index not in caller.got or caller.got[index].ended is None:
                    await caller.read(1)
                    if cut and index in caller.got and caller.got[index].frame_count == 3:
                        await caller.lose()
                        await caller.resume(stubs[index % 2])
                        await caller.read(1)
            await caller.lose()
            return [got.facts for got in caller.got.values()]

    assert await talk(cut=True) == await talk(cut=False)
