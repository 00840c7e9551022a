"""Replicas behind names that a DNS server answers for: they come, leave and are lost while replies go on."""

import asyncio
from functools import partial
from pathlib import Path

import pytest

from client.mesh_settings import STAGES
from tests.faults.conversations import Conversations
from tests.faults.named_mesh import SLOTS, WORK, Member, NamedMesh, named_mesh
from tests.name_server import needs_name_server


# Half of it is nine starts of a stage, of 4 s of a core each: most of that is the import of torch and transformers.
@pytest.mark.timeout(480)
@needs_name_server
async def test_replicas_come_and_leave_and_are_lost_and_no_reply_breaks(tmp_path: Path) -> None:
    async with named_mesh(tmp_path, replica_count=2) as (mesh, spare):
        async with Conversations.open(mesh.address) as talk:
            await until_all_work(mesh, talk)

            await asyncio.gather(*(mesh.add(member) for member in spare))
            await until_all_work(mesh, talk)
            await talk.until(partial(counts, mesh, 3))
            assert all(member.is_running for member in mesh.members)

            leaving = []
            for stage in STAGES:
                leaving.append(await talk.until(partial(busy, mesh, stage)))
                await mesh.remove(leaving[-1])
            assert [await member.child.process.wait() for member in leaving] == [0] * len(STAGES)

            for stage in STAGES:
                mesh.kill(await talk.until(partial(busy, mesh, stage)))
            await until_all_work(mesh, talk)
        assert mesh.front.is_running
        lost = await mesh.lost_calls()
    print(f"\n{talk.reply_count} replies, the calls that were lost: {lost}")  # noqa: T201 - for docs/recovery.md
    assert sum(lost.values()), "the replicas that were killed had nothing to do"


async def busy(mesh: NamedMesh, stage: str) -> Member | None:
    """A replica of the stage that is part of a reply now."""
    for member in mesh.replicas(stage):
        if (await member.metrics())[f"chroma_{stage}_slots_in_use"]:
            return member
    return None


async def counts(mesh: NamedMesh, replica_count: int) -> bool:
    """Whether the orchestrator counts so many replicas of each stage, and their slots."""
    told = await mesh.front.metrics()
    expected = (replica_count, replica_count * SLOTS)
    return all(
        (told[f"chroma_orchestrator_replicas/{stage}"], told[f"chroma_orchestrator_capacity_sessions/{stage}"])
        == expected
        for stage in STAGES
    )


async def until_all_work(mesh: NamedMesh, talk: Conversations) -> None:
    """Returns when every replica of every stage has been part of a reply since this was called."""
    idle = {member.name: (member, await work(member)) for stage in STAGES for member in mesh.replicas(stage)}

    async def all_work() -> bool:
        for name, (member, before) in list(idle.items()):
            if await work(member) > before:
                del idle[name]
        return not idle

    await talk.until(all_work)


async def work(member: Member) -> float:
    """Steps or frames that a replica has given."""
    return (await member.metrics())[WORK[member.stage]]
