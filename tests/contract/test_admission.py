"""More sessions than the stages carry: who is in notices nothing, who is not is told at once, and nothing is left."""

import asyncio
import gc
import os
from collections import Counter
from collections.abc import AsyncIterator
from typing import Any

import grpc
import pytest
from chroma_mesh.orchestrator.v1 import orchestrator_pb2 as pb
from chroma_mesh.orchestrator.v1 import orchestrator_pb2_grpc
from chroma_mesh.speech.v1 import speech_pb2_grpc
from chroma_mesh.types.v1 import types_pb2

import client.session
from client import MeshError, connect
from client.connection import Mesh as ClientMesh
from client.events import FinishReason, ReplyEnded
from services.orchestrator.capacity import EMPTY_WAIT_SECONDS
from services.orchestrator.idle_limit import IdleLimit
from services.orchestrator.outbox import Outbox
from services.orchestrator.session import Session
from services.orchestrator.stages import StageCall
from services.runtime.channel import open_channel
from tests.contract.fake_mesh import Conversation, Mesh, serving, tone
from tests.contract.still_clock import StillClock
from tests.faults.tcp_proxy import TcpProxy

RESOURCE_EXHAUSTED = grpc.StatusCode.RESOURCE_EXHAUSTED
SPEECH = "chroma_mesh.speech.v1.SpeechService"
SLOTS = 3
NOBODY = "127.0.0.1:9"  # nothing listens there
# CHROMA_TEST_CONNECTS=1000 for the long run.
CONNECT_COUNT = int(os.environ.get("CHROMA_TEST_CONNECTS", "60"))


@pytest.fixture
async def mesh() -> AsyncIterator[Mesh]:
    mesh = Mesh()
    mesh.speech.capacity.slot_count = SLOTS
    async with mesh.running():
        yield mesh


async def reply(mesh: Mesh, seed: int) -> tuple[str, bytes]:
    async with mesh.converse(sampling=types_pb2.Sampling(seed=seed)) as session:
        answer = await session.ask(tone(0.1, seed), "and?")
        await session.end()
    return answer.text, answer.audio


async def refusal(mesh: Mesh) -> MeshError:
    """What a client is told that is not admitted."""
    async with connect(mesh.address) as connection:
        with pytest.raises(MeshError) as raised:
            async with connection.session():
                pytest.fail("it was admitted")
    return raised.value


async def test_at_three_times_the_capacity_who_is_in_gets_what_it_gets_alone(mesh: Mesh) -> None:
    alone = {seed: await reply(mesh, seed) for seed in range(3 * SLOTS)}
    gate = asyncio.Event()

    async def hold(_index: int) -> None:
        await gate.wait()

    mesh.codec.hook = hold
    refused: list[tuple[grpc.StatusCode, str | None]] = []

    async def talk(seed: int) -> tuple[str, bytes] | None:
        try:
            return await reply(mesh, seed)
        except grpc.aio.AioRpcError as error:
            refused.append((error.code(), error.details()))
            return None

    async with asyncio.TaskGroup() as tasks:
        talking = [tasks.create_task(talk(seed)) for seed in range(3 * SLOTS)]
        # While the admitted are in the middle of their replies, and before any of them has ended.
        while len(refused) < 2 * SLOTS:
            await asyncio.wait({task for task in talking if not task.done()}, return_when=asyncio.FIRST_COMPLETED)
        assert mesh.count("sessions_in_use") == SLOTS
        gate.set()
    answers = {seed: task.result() for seed, task in enumerate(talking)}
    assert Counter(answer is None for answer in answers.values()) == {True: 2 * SLOTS, False: SLOTS}
    assert all(answer is None or answer == alone[seed] for seed, answer in answers.items())
    assert set(refused) == {(RESOURCE_EXHAUSTED, f"the {SLOTS} sessions that the speech stage carries are there")}
    assert mesh.count("sessions_refused_total", reason="NO_CAPACITY") == 2 * SLOTS
    await mesh.until_quiet()
    assert mesh.count("sessions_in_use") == 0
    assert await reply(mesh, 0) == alone[0]


async def test_the_sdk_says_why_and_when_to_try_again(mesh: Mesh) -> None:
    sessions = [mesh.converse() for _ in range(SLOTS)]
    for session in sessions:
        await session.__aenter__()
    error = await refusal(mesh)
    assert (error.code, error.reason) == (RESOURCE_EXHAUSTED, "NO_CAPACITY")
    assert error.retry_seconds
    await sessions[0].end()
    async with mesh.converse() as admitted:
        await admitted.ask("hello")
    for session in sessions[1:]:
        await session.end()


async def test_a_session_that_was_admitted_goes_on_though_others_have_taken_its_place(mesh: Mesh) -> None:
    sessions = [mesh.converse() for _ in range(2 * SLOTS - 1)]
    for lost in sessions[: SLOTS - 1]:
        await lost.__aenter__()
        lost.call.cancel()
    await until_left(mesh)
    for admitted in sessions[SLOTS - 1 :]:
        await admitted.__aenter__()
    for lost in sessions[: SLOTS - 1]:
        async with mesh.converse(resume=pb.ConverseResume(token=lost.opened.resume_token)) as resumed:
            assert resumed.opened.resume_token == lost.opened.resume_token
            assert (await refusal(mesh)).reason == "NO_CAPACITY"
            await resumed.ask("hello")
    for admitted in sessions[SLOTS - 1 :]:
        await admitted.end()


async def test_a_session_that_opens_while_a_stage_starts_again_waits_for_it() -> None:
    clock = StillClock()
    async with Mesh().running(clock=clock) as mesh:
        alone = await reply(mesh, 0)
        await lose_speech(mesh)
        opening = asyncio.create_task(reply(mesh, 0))
        await until_in_use(mesh)
        async with serving(*stage_adders(mesh.speech), service=SPEECH, address=mesh.settings.speech_address):
            assert await opening == alone
        assert mesh.count("sessions_refused_total", reason="NO_CAPACITY") == 0


async def test_a_session_is_refused_when_a_stage_does_not_come_back() -> None:
    clock = StillClock()
    async with Mesh().running(clock=clock) as mesh:
        await lose_speech(mesh)
        opening = asyncio.create_task(refusal(mesh))
        await until_in_use(mesh)
        while not opening.done():
            clock.move(EMPTY_WAIT_SECONDS)
            await asyncio.sleep(0)
        error = await opening
        assert (error.code, error.reason) == (RESOURCE_EXHAUSTED, "NO_CAPACITY")
        assert "no replica of the speech stage answers" in str(error)
        assert error.retry_seconds


async def until_in_use(mesh: Mesh) -> None:
    """Returns when a session is open, or waits for being admitted."""
    while not mesh.count("sessions_in_use"):
        await mesh.stub.ListVoices(pb.ListVoicesRequest())


async def lose_speech(mesh: Mesh) -> None:
    """Ends the speech stage's server; returns when the orchestrator counts it no more."""
    await mesh.servers["speech"].stop(None)
    await until_capacity(mesh, 0)


async def test_the_orchestrators_limit_is_a_limit_too() -> None:
    async with Mesh().running(session_limit=1) as mesh, mesh.converse():
        assert (await refusal(mesh)).reason == "SESSIONS_IN_USE"


async def test_several_orchestrators_share_the_stages() -> None:
    mesh = Mesh()
    mesh.reasoner.capacity.slot_count = 2 * SLOTS
    async with mesh.running(orchestrator_count=2):
        assert mesh.count("capacity_sessions", stage="reasoner") == 2 * SLOTS
        sessions = [mesh.converse() for _ in range(SLOTS)]
        for session in sessions:
            await session.__aenter__()
        assert (await refusal(mesh)).reason == "NO_CAPACITY"
        for session in sessions:
            await session.end()


async def test_the_replicas_of_a_stage_carry_sessions_together() -> None:
    mesh, other = Mesh(), Mesh()
    mesh.speech.capacity.slot_count, other.speech.capacity.slot_count = 1, 1
    other.speech.capacity.replica = "another"
    async with (
        serving(*stage_adders(mesh.speech), service=SPEECH) as (first, _),
        serving(*stage_adders(other.speech), service=SPEECH) as (second, _),
        mesh.running(speech_address=f"{first},{second}"),
    ):
        await until_capacity(mesh, 2)
        async with mesh.converse(), mesh.converse():
            assert (await refusal(mesh)).reason == "NO_CAPACITY"


def stage_adders(speech: Any) -> list[Any]:
    return [lambda server: speech_pb2_grpc.add_SpeechServiceServicer_to_server(speech, server), speech.capacity.add_to]


async def until_capacity(mesh: Mesh, count: int) -> None:
    while mesh.count("capacity_sessions", stage="speech") != count:
        await mesh.service.capacity.learn()


# --- connects and disconnects ----------------------------------------------------------------------------------------


async def leave_before_a_word(stub: Any) -> None:
    call = stub.Converse()
    await call.wait_for_connection()
    call.cancel()


async def leave_after_opening(stub: Any) -> None:
    async with Conversation(stub):
        pass


async def leave_in_a_turn(stub: Any) -> None:
    async with Conversation(stub) as session:
        await session.say(tone(0.3), "and")


async def leave_in_a_reply(stub: Any) -> None:
    async with Conversation(stub) as session:
        await session.say("hello")
        await session.end_turn()
        await session.call.read()


async def leave_without_an_end(stub: Any) -> None:
    async with Conversation(stub) as session:
        await session.call.done_writing()


async def leave_well(stub: Any) -> None:
    async with Conversation(stub) as session:
        await session.ask("hello")
        await session.end()


LEAVING = (
    leave_before_a_word, leave_after_opening, leave_in_a_turn, leave_in_a_reply, leave_without_an_end, leave_well,
)  # fmt: skip
SETTLING_TURNS, UNTIL_A_LEAK = 5, 100
KEPT = (Session, Outbox, IdleLimit, StageCall, pb.ConverseResponse)


async def test_connects_and_disconnects_in_a_row_leave_nothing_behind() -> None:
    """Each over a connection of its own, left in each way that there is, refused ones among them."""
    mesh = Mesh()
    async with mesh.running(session_limit=2):

        async def come_and_go(count: int) -> None:
            for index in range(count):
                alone = [("grpc.use_local_subchannel_pool", 1)]
                async with grpc.aio.insecure_channel(mesh.address, options=alone) as channel:
                    await LEAVING[index % len(LEAVING)](orchestrator_pb2_grpc.OrchestratorServiceStub(channel))
                if index % 10 == 0:
                    async with mesh.converse(), mesh.converse():
                        assert (await refusal(mesh)).reason == "SESSIONS_IN_USE"
                await until_left(mesh)

        await come_and_go(len(LEAVING))
        before = await left_behind(mesh)
        await come_and_go(CONNECT_COUNT)
        for _ in range(UNTIL_A_LEAK):  # what ends is given its time; a task of the beginning may have ended since
            if not (more := await left_behind(mesh) - before):
                break
        assert more == Counter()
        assert mesh.count("sessions_refused_total", reason="SESSIONS_IN_USE") > 0


async def until_left(mesh: Mesh) -> None:
    """Returns when the mesh has noticed that everybody is gone."""
    await mesh.until_quiet()
    while mesh.count("sessions_in_use"):
        await mesh.stub.ListVoices(pb.ListVoicesRequest())


async def left_behind(mesh: Mesh) -> Counter[str]:
    """Objects of sessions, and tasks of the mesh, that are there."""
    for _ in range(SETTLING_TURNS):
        gc.collect()  # generators that it finds end themselves in a later turn of the loop
        await mesh.stub.ListVoices(pb.ListVoicesRequest())
    kept = Counter(type(thing).__name__ for thing in gc.get_objects() if type(thing) in KEPT)
    # gRPC's own tasks come and go as it likes; those of its calls end when ours do.
    ours = [task for task in asyncio.all_tasks() if "/services/" in repr(task)]
    return kept + Counter(f"task {getattr(task.get_coro(), '__qualname__', task)}" for task in ours)


async def test_the_sdk_goes_to_the_next_orchestrator_when_one_is_full() -> None:
    async with Mesh().running(session_limit=1) as full, Mesh().running() as free:
        async with full.converse() as session:
            async with connect((full.address, free.address)) as mesh, mesh.session() as other:
                await other.send_text("hello")
                await other.end_turn()
                endings = [event async for event in other.reply() if isinstance(event, ReplyEnded)]
            await session.end()
        assert [ending.reason for ending in endings] == [FinishReason.STOP]
        assert free.count("replies_total", reason="stop") == 1
        assert full.count("sessions_refused_total", reason="SESSIONS_IN_USE") == 1


async def test_the_sdk_tries_again_while_one_orchestrator_is_full_and_another_lost() -> None:
    async with Mesh().running(session_limit=1) as full, TcpProxy.open() as lost:
        lost.target = NOBODY
        async with connect((full.address, lost.address)) as mesh:
            async with full.converse() as session:
                opening = asyncio.create_task(mesh.session().__aenter__())
                while not full.count("sessions_refused_total", reason="SESSIONS_IN_USE"):
                    await full.stub.ListVoices(pb.ListVoicesRequest())
                await session.end()
            other = await opening
            assert other.address == full.address
            await other.__aexit__(None, None, None)


async def test_an_orchestrator_that_has_no_room_says_more_than_one_that_is_lost(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(client.session, "OPEN_SECONDS", 0.0)
    async with Mesh().running(session_limit=1) as full, full.converse(), TcpProxy.open() as lost:
        lost.target = NOBODY
        for addresses in ((full.address, lost.address), (lost.address, full.address)):
            async with connect(addresses) as mesh:
                with pytest.raises(MeshError) as raised:
                    await mesh.session().__aenter__()
            assert (raised.value.code, raised.value.reason) == (RESOURCE_EXHAUSTED, "SESSIONS_IN_USE")


async def test_behind_one_channel_a_session_finds_the_orchestrator_that_has_room() -> None:
    async with (
        Mesh().running(session_limit=1) as full,
        Mesh().running() as free,
        full.converse(),
        open_channel(f"{full.address},{free.address}") as channel,
    ):
        stub = orchestrator_pb2_grpc.OrchestratorServiceStub(channel)
        refused, opened = 0, 0
        while not (refused and opened):  # until the channel leads to both
            try:
                async with Conversation(stub) as session:
                    await session.end()
                opened += 1
            except grpc.aio.AioRpcError:
                refused += 1
        for _ in range(4):
            async with ClientMesh.over(channel, full.address).session() as session:
                assert session.id
        assert full.count("sessions_refused_total", reason="SESSIONS_IN_USE") > refused
