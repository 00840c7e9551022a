"""The parts of a turn as clients and Prometheus are told: their sum is the time to the first sound."""

import asyncio
import math
from collections.abc import AsyncIterator

import pytest
from chroma_mesh.codec.v1 import codec_pb2
from chroma_mesh.orchestrator.v1 import orchestrator_pb2 as pb
from chroma_mesh.reasoner.v1 import reasoner_pb2
from chroma_mesh.speech.v1 import speech_pb2

from services.orchestrator.turn_parts import PART_NAMES
from services.runtime.errors import Unavailable
from tests.contract.fake_mesh import CANCELLED, STOP, Mesh, tone
from tests.contract.test_live_session import read_until


@pytest.fixture
async def mesh() -> AsyncIterator[Mesh]:
    async with Mesh().running(recovery_limit=2) as mesh:
        yield mesh


def counted(mesh: Mesh) -> tuple[float, float, set[float]]:
    """Sums of the time to the first sound and of its parts, and the different counts of both."""
    counts = {mesh.count("turn_part_seconds_count", part=name) for name in PART_NAMES}
    whole = mesh.count("first_audio_seconds_sum")
    parts = math.fsum(mesh.count("turn_part_seconds_sum", part=name) for name in PART_NAMES)
    return whole, parts, counts | {mesh.count("first_audio_seconds_count")}


def parts_of(timings: pb.ReplyTimings) -> dict[str, float]:
    assert tuple(part.name for part in timings.parts) == PART_NAMES
    assert math.fsum(part.seconds for part in timings.parts) == pytest.approx(timings.first_audio_seconds, abs=1e-9)
    return {part.name: part.seconds for part in timings.parts}


async def test_over_a_run_of_turns_the_parts_are_the_whole(mesh: Mesh) -> None:
    async with mesh.converse() as session:
        replies = [await session.ask(*said) for said in (["hello"], [tone(0.5)], [tone(0.3), "and?"]) for _ in range(4)]
    for reply in replies:
        parts_of(reply.ended.timings)
    whole, parts, counts = counted(mesh)
    assert counts == {12}
    assert parts == pytest.approx(whole, abs=1e-9)
    assert whole == pytest.approx(sum(reply.ended.timings.first_audio_seconds for reply in replies), abs=1e-9)
    hops = sum(parts_of(reply.ended.timings)["speech_hop"] for reply in replies)
    assert mesh.registry.get_sample_value(
        "chroma_orchestrator_hop_seconds_sum", {"from": "orchestrator", "to": "speech"}
    ) == pytest.approx(hops, abs=1e-9)


async def test_what_the_stages_tell_is_what_the_parts_say(mesh: Mesh) -> None:
    mesh.reasoner.timing = reasoner_pb2.FirstStepTiming(encode_seconds=1e-6, prefill_seconds=2e-6, step_seconds=3e-6)
    mesh.speech.timing = speech_pb2.FirstFrameTiming(prefill_seconds=4e-6, frame_seconds=5e-6)
    mesh.codec.timing = codec_pb2.FirstSoundTiming(queue_seconds=6e-6, decode_seconds=7e-6)
    mesh.codec.queue_seconds = 0.0
    async with mesh.converse() as session:
        found = parts_of((await session.ask("hello")).ended.timings)
    work = ("encode", "prefill", "first_step", "voice_prefill", "first_frame", "decode")
    assert [round(found[name] * 1e6) for name in work] == [1, 2, 3, 4, 5, 7]
    # Where the first frame is there before the codec was called, the wait for the call is a part of the queue.
    assert round(found["codec_queue"] * 1e6) >= 6
    assert min(found[hop] for hop in ("reasoner_hop", "speech_hop", "codec_hop")) > 0


async def test_the_first_sound_tells_the_parts_before_the_reply_is_over(mesh: Mesh) -> None:
    going_on = asyncio.Event()

    async def hold(index: int) -> None:
        if index:
            await going_on.wait()

    mesh.codec.hook = hold
    async with mesh.converse() as session:
        await session.say("hello")
        await session.end_turn()
        *_, first = await read_until(session, "audio")
        going_on.set()
        *_, last = await read_until(session, "reply_ended")
    told, known = first.audio.timings, last.reply_ended.timings
    assert told.total_seconds >= told.first_audio_seconds > 0
    # Of all parts only the last one still goes on.
    before, after = parts_of(told), parts_of(known)
    assert 0 <= before.pop("send") <= after.pop("send")
    assert before == after
    assert last.reply_ended.recovery_count == 0


@pytest.mark.parametrize("stage", ["reasoner", "speech", "codec"])
async def test_a_stage_that_is_lost_before_the_first_sound_has_a_part_of_its_own(mesh: Mesh, stage: str) -> None:
    async def lose(_index: int) -> None:
        getattr(mesh, stage).hook = stay
        raise Unavailable("this replica goes", reason="DRAINING")

    async def stay(_index: int) -> None:
        pass

    getattr(mesh, stage).hook = lose
    async with mesh.converse() as session:
        reply = await session.ask("hello")
    assert reply.ended.reason == STOP
    assert reply.ended.recovery_count == 1
    found = parts_of(reply.ended.timings)
    assert {name for name in ("reasoner_lost", "speech_lost", "codec_lost") if found[name]} == {f"{stage}_lost"}
    whole, parts, counts = counted(mesh)
    assert counts == {1}
    assert parts == pytest.approx(whole, abs=1e-9)


async def test_a_reply_that_is_cancelled_before_its_first_sound_has_no_parts(mesh: Mesh) -> None:
    never = asyncio.Event()
    mesh.codec.hook = lambda _index: never.wait()  # type: ignore[assignment]
    async with mesh.converse() as session:
        await session.say("hello")
        await session.end_turn()
        await mesh.signal.until(lambda: bool(mesh.speech.heard) and len(mesh.speech.heard[0].items) > 1)
        await session.cancel_reply()
        cut = await session.answer()
    assert cut.ended.reason == CANCELLED
    assert not cut.ended.timings.parts
    assert cut.ended.timings.first_audio_seconds == 0
    assert counted(mesh) == (0, 0, {0})
    assert mesh.count("under_run_seconds_count") == 0


async def test_replies_of_two_packets_or_more_have_an_under_run(mesh: Mesh) -> None:
    async with mesh.converse(max_frame_count=1) as session:
        await session.ask("hello")
        assert mesh.count("under_run_seconds_count") == 0
    async with mesh.converse() as session:
        await session.ask("hello")
    assert mesh.count("under_run_seconds_count") == 1
    within = [mesh.count("under_run_seconds_bucket", le=limit) for limit in ("0.05", "0.1", "+Inf")]
    assert within == sorted(within)
