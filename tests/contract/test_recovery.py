"""Replies whose stages fail: what can go on does, sample for sample; what cannot ends alone."""

import asyncio
import itertools
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import grpc
import pytest
from chroma_mesh.speech.v1 import speech_pb2, speech_pb2_grpc
from chroma_mesh.types.v1 import types_pb2
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from services.orchestrator.recovery import LOOKS, Recovery, Watched
from services.orchestrator.session_journal import SessionJournal
from services.orchestrator.turn import Reply
from services.runtime.errors import Unavailable, from_rpc_error
from tests.contract.fake_mesh import (
    CANCELLED,
    CODEBOOK_COUNT,
    FAILED,
    LENGTH,
    STOP,
    Answer,
    Conversation,
    Mesh,
    drain,
    fake_capacity,
    no_hook,
    serving,
    tone,
)

STAGES = ("reasoner", "speech", "codec")
Hook = Callable[[int], Awaitable[None]]


@pytest.fixture
async def mesh() -> AsyncIterator[Mesh]:
    async with Mesh().running(recovery_limit=2) as mesh:
        yield mesh


def losing(*indexes: int) -> Hook:
    """A replica that goes before these outputs, each time once."""
    left = list(indexes)

    async def lose(index: int) -> None:
        if index in left:
            left.remove(index)
            raise Unavailable("this replica goes", reason="DRAINING")

    return lose


async def lost(_index: int) -> None:
    raise Unavailable("this replica goes", reason="DRAINING")


async def ask(mesh: Mesh, session: Conversation) -> Answer:
    answer = await session.ask("hello", tone(0.5), "and?")
    await mesh.until_quiet()
    return answer


def same(answer: Answer, other: Answer) -> bool:
    counts = [(each.ended.frame_count, each.ended.step_count, each.ended.reason) for each in (answer, other)]
    return (answer.audio, answer.text, counts[0]) == (other.audio, other.text, counts[1])


# --- what goes on ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("index", [0, 1, 5, 9])
@pytest.mark.parametrize("stage", STAGES)
async def test_a_reply_goes_on_where_a_stage_was_lost(mesh: Mesh, stage: str, index: int) -> None:
    mesh.reasoner.step_count = 12
    async with mesh.converse() as session:
        whole = await ask(mesh, session)
    getattr(mesh, stage).hook = losing(index)
    async with mesh.converse() as session:
        assert same(await ask(mesh, session), whole)
        assert same(await ask(mesh, session), await undisturbed(mesh))
    assert mesh.count("recoveries_total", stage=stage, outcome="recovered") == 1
    assert mesh.count("recovery_seconds_count", stage=stage, outcome="recovered") == 1
    assert mesh.count("replies_total", reason="stop") == mesh.count("reply_seconds_count")


async def undisturbed(mesh: Mesh) -> Answer:
    """The second reply of such a conversation."""
    async with mesh.converse() as session:
        await ask(mesh, session)
        return await ask(mesh, session)


@given(losses=st.lists(st.tuples(st.sampled_from(STAGES), st.integers(0, 25)), min_size=1, max_size=4))
@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_whatever_is_lost_nothing_is_heard_of_it(losses: list[tuple[str, int]]) -> None:
    async def scenario() -> None:
        async with Mesh().running(recovery_limit=len(losses)) as mesh:
            mesh.reasoner.step_count = 12
            async with mesh.converse() as session:
                whole = await ask(mesh, session)
            for stage in STAGES:
                getattr(mesh, stage).hook = losing(*(index for lost_stage, index in losses if lost_stage == stage))
            async with mesh.converse() as session:
                assert same(await ask(mesh, session), whole)

    asyncio.run(scenario())


async def test_a_stage_lost_while_the_user_speaks_is_told_all_again(mesh: Mesh) -> None:
    async with mesh.converse() as session:
        whole = await ask(mesh, session)
    mesh.reasoner.heard.clear()
    mesh.reasoner.input_hook = losing(0, 1)
    async with mesh.converse() as session:
        await session.say("hello", tone(0.5))
        await mesh.signal.until(lambda: len(mesh.reasoner.heard) == 3)
        await session.say("and?")
        await session.end_turn()
        assert same(await session.answer(), whole)


@pytest.mark.parametrize("stage", STAGES)
async def test_a_stage_that_falls_silent_counts_as_lost(stage: str) -> None:
    async with Mesh().running(stall_seconds=0.1, first_stall_seconds=0.2) as mesh:
        async with mesh.converse() as session:
            whole = await ask(mesh, session)
        for index in (0, 3):
            waits = itertools.chain([asyncio.Event().wait], itertools.repeat(None))

            async def stall(at: int, index: int = index, waits: Any = waits) -> None:
                if at == index and (wait := next(waits)) is not None:
                    await wait()

            getattr(mesh, stage).hook = stall
            async with mesh.converse() as session:
                assert same(await ask(mesh, session), whole)
        assert mesh.count("recoveries_total", stage=stage, outcome="recovered") == 2


async def test_a_stage_that_owes_nothing_may_be_silent(monkeypatch: pytest.MonkeyPatch) -> None:
    """The user takes time to speak, and a paced reply its time to be heard."""
    looks, look = itertools.count(), Recovery._look
    async with Mesh().running(stall_seconds=0.5, first_stall_seconds=0.5) as mesh:

        def counted(recovery: Recovery, watched: Watched) -> None:
            next(looks)
            look(recovery, watched)
            mesh.signal.touch()

        monkeypatch.setattr(Recovery, "_look", counted)
        mesh.reasoner.step_count = 8
        async with mesh.converse(ahead_seconds=0.1) as session:
            await session.say("hello", tone(0.5))
            await mesh.signal.until(lambda: next(looks) > 3 * LOOKS)
            await session.say("and?")
            await session.end_turn()
            assert (await session.answer()).ended.reason == STOP
        for stage, outcome in itertools.product(STAGES, ("recovered", "gave_up")):
            assert mesh.count("recoveries_total", stage=stage, outcome=outcome) == 0


# --- what does not ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stage", STAGES)
async def test_a_reply_without_a_stage_ends_and_the_session_goes_on(mesh: Mesh, stage: str) -> None:
    async with mesh.converse() as session:
        getattr(mesh, stage).hook = lost
        ended = (await session.ask("hello")).ended
        assert (ended.reason, ended.failure.reason, ended.failure.stage) == (FAILED, "DRAINING", stage)
        assert stage in ended.failure.message
        assert ended.failure.may_retry
        await mesh.until_quiet()
        assert mesh.count("replies_total", reason="unavailable") == 1
        assert mesh.count("recoveries_total", stage=stage, outcome="gave_up") == 1
        getattr(mesh, stage).hook = no_hook
        assert (await session.ask("hello")).ended.reason == STOP


@pytest.mark.parametrize("stage", STAGES)
async def test_what_was_heard_before_a_stage_was_lost_is_remembered(mesh: Mesh, stage: str) -> None:
    async def fail(index: int) -> None:
        if index >= 3:
            await lost(index)

    async with mesh.converse() as session:
        getattr(mesh, stage).hook = fail
        answer = await session.ask("hello")
        assert answer.ended.reason == FAILED
        getattr(mesh, stage).hook = no_hook
        await session.ask("and?")
        said = [part.text for message in mesh.reasoner.heard[-1].messages for part in message.parts]
        assert said[1:] == ["hello", *([answer.ended.text] if answer.ended.text else [])]


@pytest.mark.parametrize("stage", STAGES)
async def test_a_reply_whose_stage_is_away_fails_within_the_limit(mesh: Mesh, stage: str) -> None:
    await mesh.servers[stage].stop(None)
    async with mesh.converse() as session:
        ended = (await session.ask("hello")).ended
        assert (ended.reason, ended.failure.stage, ended.failure.may_retry) == (FAILED, stage, True)
        assert (await session.ask("hello again")).ended.reason == FAILED
    await mesh.until_quiet()


@pytest.mark.parametrize("stage", STAGES)
async def test_a_stage_that_stays_silent_fails_the_reply_and_not_the_session(stage: str) -> None:
    async with Mesh().running(stall_seconds=0.05, first_stall_seconds=0.1, recovery_limit=1) as mesh:
        never = asyncio.Event()
        getattr(mesh, stage).hook = lambda _index: never.wait()
        async with mesh.converse() as session:
            ended = (await session.ask("hello")).ended
            assert (ended.reason, ended.failure.reason, ended.failure.stage) == (FAILED, "STALLED", stage)
            getattr(mesh, stage).hook = no_hook
            assert (await session.ask("hello")).ended.reason == STOP
        await mesh.until_quiet()


@pytest.mark.parametrize("stage", STAGES)
async def test_a_stage_whose_server_dies_fails_the_reply(mesh: Mesh, stage: str) -> None:
    never = asyncio.Event()
    getattr(mesh, stage).hook = lambda _index: never.wait()
    async with mesh.converse() as session:
        await session.say("hello")
        await session.end_turn()
        await mesh.signal.until(lambda: bool(getattr(mesh, stage).heard))
        await mesh.servers[stage].stop(None)
        ended = (await session.answer()).ended
        assert (ended.reason, ended.failure.stage) == (FAILED, stage)
    await mesh.until_quiet()


@pytest.mark.parametrize("stage", STAGES)
async def test_a_stage_that_ends_without_finished_did_not_finish(mesh: Mesh, stage: str) -> None:
    getattr(mesh, stage).sends_finished = False
    async with mesh.converse() as session:
        ended = (await session.ask("hello")).ended
        assert (ended.reason, ended.failure.reason, ended.failure.stage) == (FAILED, "UNFINISHED", stage)
        await mesh.until_quiet()


async def test_a_reply_may_be_cancelled_while_it_is_taken_up_again() -> None:
    async with Mesh().running(recovery_limit=50) as mesh:
        mesh.speech.hook = lost
        async with mesh.converse() as session:
            await session.say("hello")
            await session.end_turn()
            await mesh.signal.until(lambda: len(mesh.speech.heard) > 2)
            await session.cancel_reply()
            assert (await session.answer()).ended.reason == CANCELLED
            await mesh.until_quiet()
            mesh.speech.hook = no_hook
            assert (await session.ask("hello")).ended.reason == STOP


async def test_a_stage_that_fails_while_the_turn_is_being_kept_fails_the_reply_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    saving, failed = asyncio.Event(), asyncio.Event()
    relay_once, save = Reply._relay_once, SessionJournal.save

    async def relay(reply: Reply) -> None:
        try:
            await relay_once(reply)
        finally:
            failed.set()

    async def save_late(journal: SessionJournal, *arguments: Any, **facts: Any) -> None:
        if not saving.is_set():
            saving.set()
            await failed.wait()
            await asyncio.sleep(0)
        await save(journal, *arguments, **facts)

    async def abort(_requests: Any, context: Any) -> None:
        await saving.wait()
        await context.abort(grpc.StatusCode.DEADLINE_EXCEEDED, "no")

    mesh = Mesh()
    async with (
        serving_with_speech(abort) as address,
        mesh.running(speech_address=address),
        mesh.converse() as session,
    ):
        monkeypatch.setattr(Reply, "_relay_once", relay)
        monkeypatch.setattr(SessionJournal, "save", save_late)
        assert (await session.ask("hello")).ended.failure.reason == "REPLY_DEADLINE"
        await session.end()


@pytest.mark.parametrize(
    ("code", "reason", "may_retry", "label"),
    [
        (grpc.StatusCode.CANCELLED, None, True, "unavailable"),
        (grpc.StatusCode.UNKNOWN, "STAGE_UNKNOWN", True, "unavailable"),
        (grpc.StatusCode.DEADLINE_EXCEEDED, "REPLY_DEADLINE", False, "late"),
        (grpc.StatusCode.INTERNAL, "INTERNAL", False, "failed"),
        (grpc.StatusCode.UNAUTHENTICATED, "STAGE_FAILED", False, "failed"),
    ],
)
async def test_what_a_reply_is_told_of_a_stages_code(
    code: grpc.StatusCode, reason: str | None, may_retry: bool, label: str
) -> None:
    async def abort(_requests: Any, context: Any) -> None:
        await context.abort(code, "no")

    mesh = Mesh()
    async with serving_with_speech(abort) as address, mesh.running(speech_address=address, recovery_limit=1):
        async with mesh.converse() as session:
            failure = (await session.ask("hello")).ended.failure
        assert (failure.stage, failure.may_retry) == ("speech", may_retry)
        assert reason is None or failure.reason == reason
        await mesh.until_quiet()
        assert mesh.count("replies_total", reason=label) == 1


async def test_what_the_client_sent_wrong_ends_the_session() -> None:
    async def abort(_requests: Any, context: Any) -> None:
        await context.abort(grpc.StatusCode.INVALID_ARGUMENT, "no")

    async with serving_with_speech(abort) as address, Mesh().running(speech_address=address) as other:
        async with other.converse() as session:
            await session.say("hello")
            await session.end_turn()
            with pytest.raises(grpc.aio.AioRpcError) as raised:
                await drain(session.call)
        error = from_rpc_error(raised.value)
        assert (error.code, error.metadata["stage"]) == (grpc.StatusCode.INVALID_ARGUMENT, "speech")
        assert other.count("replies_total", reason="invalid") == 1


async def test_a_stage_that_breaks_the_contract_is_our_bug() -> None:
    async def skip(_requests: Any, context: Any) -> None:
        opened = speech_pb2.GenerateFramesOpened(codebook_count=CODEBOOK_COUNT)
        await context.write(speech_pb2.GenerateFramesResponse(opened=opened))
        frame = types_pb2.Frame(codes=[0] * CODEBOOK_COUNT)
        for index in (0, 2):
            spoken = speech_pb2.SpokenFrames(index=index, frames=[frame], step_counts=[0])
            await context.write(speech_pb2.GenerateFramesResponse(frames=spoken))

    async with serving_with_speech(skip) as address, Mesh().running(speech_address=address) as other:
        async with other.converse() as session:
            failure = (await session.ask("hello")).ended.failure
        assert (failure.reason, failure.may_retry) == ("STAGE_BROKE_CONTRACT", False)
        assert "sent frame 2, expected was 1" in failure.message


async def test_a_reply_has_a_deadline() -> None:
    never = asyncio.Event()
    async with Mesh().running(reply_deadline_seconds=0.3) as mesh:
        mesh.speech.hook = lambda _index: never.wait()
        async with mesh.converse() as session:
            failure = (await session.ask("hello")).ended.failure
            assert (failure.reason, failure.may_retry) == ("REPLY_DEADLINE", False)
        await mesh.until_quiet()


async def test_a_limit_of_frames_holds_over_a_loss(mesh: Mesh) -> None:
    mesh.reasoner.step_count = 12
    mesh.speech.hook = losing(4)
    async with mesh.converse(max_frame_count=7) as session:
        ended = (await ask(mesh, session)).ended
        assert (ended.reason, ended.frame_count) == (LENGTH, 7)


@asynccontextmanager
async def serving_with_speech(behavior: Any) -> AsyncIterator[str]:
    class Speech(speech_pb2_grpc.SpeechServiceServicer):
        GenerateFrames = staticmethod(behavior)

    async with serving(
        lambda server: speech_pb2_grpc.add_SpeechServiceServicer_to_server(Speech(), server),
        fake_capacity().add_to,
        service="chroma_mesh.speech.v1.SpeechService",
    ) as (address, _):
        yield address
