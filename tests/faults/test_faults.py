"""Replies while replicas fail: every one is heard to its end, with the very bytes of an undisturbed run.

FAULT_COUNT failures, a few in the ordinary tests; `make faults` asks for hundreds.
"""

import asyncio
import os
import signal
from collections.abc import AsyncIterator
from pathlib import Path

import grpc
import pytest
import pytest_asyncio

import client
from client import mesh_settings, supervisor
from client.events import FinishReason, ReplyEnded, ReplyStarted
from client.mesh_settings import SERVICES
from tests.faults.campaign import SCRIPTS, SESSIONS, Campaign
from tests.faults.fault import Kind
from tests.faults.faulty_mesh import FaultyMesh, faulty_mesh
from tests.faults.script import AHEAD_SECONDS, FRAME_COUNT, HeardReply, Nobody, hold

FAULT_COUNT = int(os.environ.get("FAULT_COUNT", "6"))
SEED = int(os.environ.get("FAULT_SEED", "0"))
# A failure takes the time of a start, some seconds, and four services fail side by side.
PATIENCE_SECONDS = 240 + 10 * FAULT_COUNT

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.timeout(PATIENCE_SECONDS)]


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def mesh(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[FaultyMesh]:
    """Two replicas of each service; what they write is in the test's folder."""
    folder: Path = tmp_path_factory.mktemp("faults")
    with pytest.MonkeyPatch.context() as patch:
        # Less than a reply: of those that a draining replica has, some end in time and some are handed over.
        patch.setattr(mesh_settings, "GRACE_SECONDS", 1)
        patch.setattr(supervisor, "FIRST_PAUSE_SECONDS", 0.1)
        patch.setattr(supervisor, "LONGEST_PAUSE_SECONDS", 0.1)
        async with faulty_mesh(folder) as mesh:
            yield mesh


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def undisturbed(mesh: FaultyMesh) -> list[bytes]:
    """The sound of the first script's replies."""
    return sounds(await hold(mesh.addresses, SCRIPTS[0]))


def sounds(replies: list[HeardReply]) -> list[bytes]:
    """What was heard, of replies that ended as they should."""
    assert [reply.error for reply in replies] == [""] * len(replies)
    assert all(reply.sound for reply in replies)
    return [reply.sound for reply in replies]


async def test_the_same_script_is_heard_as_the_same_bytes_whoever_answers(
    mesh: FaultyMesh, undisturbed: list[bytes]
) -> None:
    heard = await asyncio.gather(*(hold(mesh.addresses, SCRIPTS[0]) for _ in range(4)))
    assert [sounds(replies) for replies in heard] == [undisturbed] * 4


async def test_a_lost_replica_is_left_out_and_takes_part_again(mesh: FaultyMesh, undisturbed: list[bytes]) -> None:
    name = mesh.replicas("speech")[0]
    pid = mesh.pid(name)
    mesh.signal(name, signal.SIGKILL)
    assert sounds(await hold(mesh.addresses, SCRIPTS[0])) == undisturbed
    await mesh.until_replaced(name, pid)
    assert sounds(await hold(mesh.addresses, SCRIPTS[0])) == undisturbed


async def test_draining_breaks_no_reply(mesh: FaultyMesh, undisturbed: list[bytes]) -> None:
    name = mesh.replicas("reasoner")[0]
    pid = mesh.pid(name)
    middle_count = 0

    class Drain(Nobody):
        """Lets the replica leave once every session is in the middle of a reply."""

        def heard(self, reply: HeardReply) -> None:
            nonlocal middle_count
            if len(reply.packets) == 2:
                middle_count += 1
                if middle_count == SESSIONS:
                    mesh.signal(name, signal.SIGTERM)

    heard = await asyncio.gather(*(hold(mesh.addresses, SCRIPTS[0], lambda _: Drain()) for _ in range(SESSIONS)))
    assert [sounds(replies) for replies in heard] == [undisturbed] * SESSIONS
    assert middle_count >= SESSIONS
    await mesh.until_replaced(name, pid)


async def test_without_a_stage_the_reply_fails_and_the_session_goes_on(mesh: FaultyMesh) -> None:
    names = mesh.replicas("speech")
    pids = {name: mesh.pid(name) for name in names}
    async with (
        client.connect(mesh.addresses) as front,
        front.session(seed=1, max_frame_count=FRAME_COUNT, ahead_seconds=AHEAD_SECONDS) as session,
    ):
        endings = []
        for turn in range(2):
            await session.send_text("Are you there?")
            await session.end_turn()
            async for event in session.reply():
                if isinstance(event, ReplyStarted) and turn == 0:
                    for name in names:
                        mesh.signal(name, signal.SIGKILL)
                if isinstance(event, ReplyEnded):
                    endings.append(event)
            for name in names:
                await mesh.until_replaced(name, pids[name])
    failed, answered = endings
    assert failed.reason is FinishReason.FAILED
    assert failed.failure is not None
    assert failed.failure.code is grpc.StatusCode.UNAVAILABLE
    assert "speech" in failed.failure.message
    assert (answered.reason, answered.frame_count) == (FinishReason.LENGTH, FRAME_COUNT)


async def test_no_reply_is_lost(mesh: FaultyMesh) -> None:
    report = await Campaign(mesh, SERVICES, list(Kind), seed=SEED).run(FAULT_COUNT)
    print(f"\n{report}")  # noqa: T201 - what the suite is run for
    assert not report.failed, str(report)
    assert not report.unequal, str(report)
