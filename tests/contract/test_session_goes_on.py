"""The SDK's sessions go on by themselves when their connection is lost."""

import asyncio
import itertools
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest
import structlog
from chroma_mesh.orchestrator.v1 import orchestrator_pb2 as pb
from chroma_mesh.orchestrator.v1 import orchestrator_pb2_grpc
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry

import client
from client import channel as client_channel
from client import session as client_session
from client import silence as client_silence
from client.errors import MeshError
from client.events import Audio, Event, ReplyEnded, ReplyStarted, SpeechStarted, SpeechStopped, Text
from client.session import LOST_CODES, Session
from client.unkept import Unkept
from services.orchestrator import session as session_module
from services.orchestrator.journal import JournalError
from services.orchestrator.service import OrchestratorService
from tests.contract.fake_mesh import Mesh, serving, tone
from tests.contract.keyed_mesh import keyed_mesh
from tests.contract.test_live_session import LoudnessDetector, silence, speech
from tests.faults.tcp_proxy import TcpProxy

Reply = tuple[str, bytes, str, int]


@asynccontextmanager
async def proxied_fronts(journal: Path) -> AsyncIterator[tuple[Mesh, list[TcpProxy]]]:
    """Two orchestrators with one journal, each behind a proxy that cuts its connections."""
    async with Mesh().running(journal=str(journal)) as mesh:
        other = OrchestratorService(mesh.settings, CollectorRegistry())
        try:
            await other.prepare()
            async with serving(other.add_to) as (address, _), TcpProxy.open() as one, TcpProxy.open() as two:
                one.target, two.target = mesh.address, address
                yield mesh, [one, two]
        finally:
            await other.close()


async def events(session: Session) -> list[Event]:
    """All of the next reply."""
    return [event async for event in session.reply()]


def cut(_: Session, proxies: list[TcpProxy]) -> None:
    """Every connection is lost."""
    for proxy in proxies:
        proxy.cut()


def fall_silent(session: Session, proxies: list[TcpProxy]) -> None:
    """Nothing comes from the orchestrator that the session is at, and nothing gets there; the other one is back."""
    for proxy in proxies:
        if proxy.address == session.address:
            proxy.stall()
        else:
            proxy.resume()


Failure = Callable[[Session, list[TcpProxy]], None]


async def talk(session: Session, proxies: list[TcpProxy], cuts: set[int], fail: Failure = cut) -> list[Reply]:
    """Three turns; the connection fails after those events, counted over all replies, and before some turns."""
    replies, count = [], 0
    for index in range(3):
        await session.send_text(f"turn {index}")
        await session.send_audio(tone(0.35, index))
        if -index in cuts and index:
            fail(session, proxies)
        await session.end_turn()
        text, sound, ended_text, frame_count = "", b"", "", 0
        async for event in session.reply():
            count += 1
            match event:
                case Text():
                    text += event.text
                case Audio():
                    assert event.frame_index == frame_count
                    frame_count += event.frame_count
                    sound += event.data
                case ReplyEnded():
                    assert event.frame_count == frame_count
                    ended_text = event.text
            if count in cuts:
                fail(session, proxies)
        replies.append((text, sound, ended_text, frame_count))
    return replies


@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.sets(st.integers(-2, 20), max_size=4))
async def test_a_session_goes_on_without_a_gap_or_a_repeat(tmp_path: Path, cuts: set[int]) -> None:
    async with proxied_fronts(tmp_path / "journal") as (mesh, proxies):
        async with client.connect(mesh.address) as plain, plain.session(seed=5) as session:
            undisturbed = await talk(session, [], set())
        addresses = [proxy.address for proxy in proxies]
        async with client.connect(addresses) as replicated, replicated.session(seed=5) as session:
            assert await talk(session, proxies, cuts) == undisturbed


async def test_a_session_goes_on_however_often_its_connection_is_cut_before_anything_comes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client_session, "FIRST_RETRY_SECONDS", 0.001)
    answer, resumed = asyncio.Event(), Session._resumed
    lines: asyncio.Queue[Any] = asyncio.Queue()

    async def resume(session: Session) -> Any:
        line = await resumed(session)
        lines.put_nowait(line)
        return line

    async def wait(_: int) -> None:
        await answer.wait()

    monkeypatch.setattr(Session, "_resumed", resume)
    async with proxied_fronts(tmp_path / "journal") as (fakes, proxies):
        fakes.reasoner.hook = wait
        async with client.connect([proxy.address for proxy in proxies]) as mesh, mesh.session() as session:
            await session.send_text("hello")
            await session.end_turn()
            reading = asyncio.create_task(events(session))
            for _ in range(12):
                cut(session, proxies)
                await lines.get()
            answer.set()
            assert isinstance((await reading)[-1], ReplyEnded)


@pytest.fixture
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client_silence, "QUIET_SECONDS", 0.02)
    monkeypatch.setattr(client_session, "REPLY_ANSWER_SECONDS", 0.1)
    monkeypatch.setattr(client_session, "ANSWER_SECONDS", 0.1)


@pytest.mark.usefixtures("_impatient")
@settings(max_examples=6, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.sets(st.integers(-2, 20), max_size=3))
async def test_a_session_goes_on_where_its_orchestrator_falls_silent(tmp_path: Path, cuts: set[int]) -> None:
    async with proxied_fronts(tmp_path / "journal") as (mesh, proxies):
        async with client.connect(mesh.address) as plain, plain.session(seed=5) as session:
            undisturbed = await talk(session, [], set())
        addresses = [proxy.address for proxy in proxies]
        async with client.connect(addresses) as replicated, replicated.session(seed=5) as session:
            assert await talk(session, proxies, cuts, fall_silent) == undisturbed


@pytest.mark.usefixtures("_impatient")
async def test_an_orchestrator_that_is_slow_but_there_keeps_its_session(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked, ask = itertools.count(1), client_silence.Silence.ask
    answer = asyncio.Event()

    def count(silence: client_silence.Silence, answer_seconds: float) -> Any:
        if next(asked) == 4:
            answer.set()
        return ask(silence, 60)

    async def wait(index: int) -> None:
        if index == 2:
            await answer.wait()

    monkeypatch.setattr(client_silence.Silence, "ask", count)
    async with proxied_fronts(tmp_path / "journal") as (fakes, proxies):
        fakes.reasoner.hook = wait
        async with client.connect([proxy.address for proxy in proxies]) as mesh, mesh.session() as session:
            await session.send_text("hello")
            await session.end_turn()
            assert isinstance([event async for event in session.reply()][-1], ReplyEnded)
            assert session.address == proxies[0].address
        assert fakes.speech.open_count == 0


@pytest.mark.usefixtures("_impatient")
async def test_nobody_is_asked_while_nothing_is_owed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rounds, seconds = asyncio.Event(), Session._answer_seconds
    told: list[float | None] = []

    def keep(session: Session) -> float | None:
        told.append(seconds(session))
        if len(told) == 3:
            rounds.set()
        return told[-1]

    async with (
        proxied_fronts(tmp_path / "journal") as (_, proxies),
        client.connect(proxies[0].address) as mesh,
        mesh.session() as session,
    ):
        monkeypatch.setattr(Session, "_answer_seconds", keep)
        await session.reply_played(0, 0)
        reading = asyncio.create_task(session.next_event())
        await rounds.wait()
        assert told == [None] * 3
        await session.send_text("hello")
        await session.end_turn()
        assert isinstance(await reading, ReplyStarted)


@pytest.mark.usefixtures("_impatient")
async def test_a_session_that_goes_on_is_not_in_its_own_way(tmp_path: Path) -> None:
    async with keyed_mesh(tmp_path, key_session_limit=1) as mesh, TcpProxy.open() as one, TcpProxy.open() as two:
        one.target = two.target = mesh.address
        access = client.Access(api_key=mesh.keys.secrets["alice"])
        async with (
            client.connect([one.address, two.address], access) as connected,
            connected.session(resume_seconds=1) as session,
        ):
            await session.send_text("hello")
            one.stall()  # the orchestrator is not told that the call is given up
            await session.end_turn()
            assert isinstance([event async for event in session.reply()][-1], ReplyEnded)
            assert session.address == two.address
            with pytest.raises(MeshError, match="1 sessions at a time"):
                await connected.session().__aenter__()
            one.resume()


async def test_an_address_that_takes_no_connection_is_left_for_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client_channel, "CONNECT_SECONDS", 0.2)
    async with proxied_fronts(tmp_path / "journal") as (_, proxies):
        proxies[0].stall()
        async with client.connect([proxy.address for proxy in proxies]) as mesh, mesh.session() as session:
            assert session.address == proxies[1].address


async def test_a_mesh_far_away_is_reached(tmp_path: Path) -> None:
    async with proxied_fronts(tmp_path / "journal") as (_, proxies):
        proxies[0].delay_seconds = 0.2
        async with client.connect(proxies[0].address) as mesh:
            assert await mesh.voices()


async def test_a_session_that_is_not_to_go_on_ends_with_its_connection(tmp_path: Path) -> None:
    async with proxied_fronts(tmp_path / "journal") as (_, proxies):
        async with client.connect([proxy.address for proxy in proxies]) as mesh:
            session = await mesh.session(resume_seconds=0).__aenter__()
            cut(session, proxies)
            with pytest.raises(MeshError) as raised:
                await session.next_event()
        assert raised.value.code is grpc.StatusCode.UNAVAILABLE


async def test_where_nothing_answers_any_more_the_error_says_so(tmp_path: Path) -> None:
    async with proxied_fronts(tmp_path / "journal") as (_, proxies):
        async with client.connect(proxies[0].address) as mesh:
            session = await mesh.session(resume_seconds=0.3).__aenter__()
            proxies[0].target = "127.0.0.1:9"
            cut(session, proxies)
            with pytest.raises(MeshError) as raised:
                await session.next_event()
        assert raised.value.reason == "UNREACHABLE"


async def test_a_session_begins_at_the_first_address_that_answers(tmp_path: Path) -> None:
    async with (
        proxied_fronts(tmp_path / "journal") as (_, proxies),
        client.connect(["127.0.0.1:9", proxies[1].address]) as mesh,
        mesh.session() as session,
    ):
        await session.send_text("hello")
        await session.end_turn()
        assert [event async for event in session.reply()]


@pytest.mark.parametrize("code", LOST_CODES)
async def test_a_session_begins_at_the_next_address_where_the_first_is_shut_down(
    tmp_path: Path, code: grpc.StatusCode
) -> None:
    class Leaving(orchestrator_pb2_grpc.OrchestratorServiceServicer):
        async def Converse(self, requests: Any, context: Any) -> None:
            await context.abort(code)

    async with (
        proxied_fronts(tmp_path / "journal") as (_, proxies),
        serving(lambda server: orchestrator_pb2_grpc.add_OrchestratorServiceServicer_to_server(Leaving(), server)) as (
            leaving,
            _,
        ),
        client.connect([leaving, proxies[1].address]) as mesh,
        mesh.session() as session,
    ):
        assert session.address == proxies[1].address


async def test_another_keys_token_opens_nothing_and_does_not_disturb_the_session(tmp_path: Path) -> None:
    async with (
        keyed_mesh(tmp_path) as mesh,
        mesh.connect("alice") as alice,
        mesh.connect("bob") as bob,
        alice.session() as session,
    ):
        resume = pb.ConverseResume(token=session._unkept.token)
        call = bob._stub().Converse()
        await call.write(pb.ConverseRequest(open=pb.ConverseOpen(resume=resume)))
        with pytest.raises(grpc.aio.AioRpcError) as raised:
            await call.read()
        assert raised.value.code() is grpc.StatusCode.NOT_FOUND
        assert raised.value.details() == "there is no such session"
        await session.send_text("still here")
        await session.end_turn()
        assert isinstance([event async for event in session.reply()][-1], ReplyEnded)


async def test_turns_that_the_mesh_hears_are_each_told_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session_module, "ServerVadDetector", LoudnessDetector)
    heard = client.ServerVad(silence_duration_ms=200, prefix_padding_ms=100, barge_in=False)
    async with (
        proxied_fronts(tmp_path / "journal") as (_, proxies),
        client.connect([proxy.address for proxy in proxies]) as mesh,
        mesh.session(turn_detection=heard) as session,
    ):
        events = []
        await session.send_audio(silence(0.3) + speech(0.5) + silence(0.4))
        events += [event async for event in session.reply()]
        cut(session, proxies)
        await session.send_audio(silence(0.3) + speech(0.3, 1))
        while not isinstance(events[-1], SpeechStarted):
            events.append(await session.next_event())
        cut(session, proxies)
        await session.send_audio(speech(0.3, 2) + silence(0.4))
        events += [event async for event in session.reply()]
    told = [event for event in events if not isinstance(event, Audio | Text)]
    assert [(type(event), event.turn_index) for event in told] == [
        (kind, index) for index in range(2) for kind in (SpeechStarted, SpeechStopped, ReplyStarted, ReplyEnded)
    ]
    starts = [event.audio_sample for event in told if isinstance(event, SpeechStarted)]
    assert starts[1] == pytest.approx(1.4 * 16_000, abs=3_200)


async def test_a_journal_that_fails_fails_no_session(tmp_path: Path) -> None:
    async with proxied_fronts(tmp_path / "journal") as (mesh, _):
        async with client.connect(mesh.address) as plain, plain.session() as session:

            async def fail(*_: object, **__: object) -> None:
                raise JournalError("full")

            mesh.service._journal.write = fail
            await session.send_text("hello")
            await session.end_turn()
            assert isinstance([event async for event in session.reply()][-1], ReplyEnded)
        assert mesh.count("journal_failures_total") >= 2


async def test_neither_token_nor_words_are_in_the_log(tmp_path: Path) -> None:
    with structlog.testing.capture_logs() as lines:
        async with (
            proxied_fronts(tmp_path / "journal") as (_, proxies),
            client.connect(proxies[0].address) as mesh,
            mesh.session() as session,
        ):
            token = session._unkept.token
            await session.send_text("confidential")
            cut(session, proxies)
            await session.end_turn()
            assert [event async for event in session.reply()]
    assert any(line["event"] == "session resumed" for line in lines)
    assert not [line for line in lines if token in str(line) or "confidential" in str(line)]


def test_silence_is_kept_no_longer_than_a_turn_may_last() -> None:
    unkept = Unkept(2, heard_limit_bytes=1000)
    unkept.token = "token"
    for index in range(100):
        unkept.send(pb.ConverseRequest(audio=pb.UserAudio(data=bytes([index] * 100))))
    again = list(unkept.resend(pb.ConverseOpened()))
    assert [request.audio.data[0] for request in again] == list(range(90, 100))
    assert [request.audio.index for request in again] == list(range(10))


def test_a_stop_is_not_sent_again_once_its_reply_has_ended() -> None:
    unkept = Unkept(2, heard_limit_bytes=None)
    unkept.token = "token"
    unkept.receive(pb.ConverseResponse(reply_started=pb.ReplyStarted(turn_index=4, kept_message_count=0)))
    unkept.send(pb.ConverseRequest(cancel_reply=pb.CancelReply()))
    again = list(unkept.resend(pb.ConverseOpened()))
    assert [request.cancel_reply.turn_index for request in again] == [4]
    unkept.receive(pb.ConverseResponse(reply_ended=pb.ReplyEnded(turn_index=4)))
    assert not list(unkept.resend(pb.ConverseOpened()))
