"""Live conversations through the real stages of the golden checkpoint, all in this process."""

import asyncio
import gc
import os
import random
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
import pytest_asyncio
import soundfile
from chroma_mesh.orchestrator.v1 import orchestrator_pb2 as pb
from chroma_mesh.orchestrator.v1 import orchestrator_pb2_grpc
from chroma_mesh.types.v1 import types_pb2
from prometheus_client import CollectorRegistry

from services.codec.__main__ import build as build_codec
from services.codec.metrics import CodecMetrics
from services.codec.service import SERVICE_NAME as CODEC
from services.codec.service import CodecService
from services.codec.settings import CodecSettings
from services.inference.slots import SlotEngine
from services.orchestrator.service import OrchestratorService
from services.orchestrator.settings import OrchestratorSettings
from services.reasoner.engine import ReasonerEngine
from services.reasoner.metrics import ReasonerMetrics
from services.reasoner.service import SERVICE_NAME as REASONER
from services.reasoner.service import ReasonerService
from services.reasoner.settings import ReasonerSettings
from services.speech.engine import SpeechEngine
from services.speech.metrics import SpeechMetrics
from services.speech.service import SERVICE_NAME as SPEECH
from services.speech.service import SpeechService
from services.speech.settings import SpeechSettings
from tests.conftest import GOLDEN, GoldenCase, until_idle
from tests.conftest import serving as serving_stage
from tests.contract.fake_mesh import CANCELLED, Conversation, serving

QUESTION = Path(__file__).parents[2] / "client" / "data" / "question.wav"
# 10,000 leave nothing behind either; so many take some minutes.
CANCEL_COUNT = int(os.environ.get("CHROMA_TEST_CANCELS", "120"))
# Whose objects are counted.
OWNERS = ("services.", "chroma_mesh.", "asyncio", "_asyncio", "grpc", "torch", "numpy", "threading", "contextlib")
# Holds a clip of 60 s.
CONTEXT_LENGTH = 2048
# Calls that everything ends within.
ROUNDS = 1000
GREEDY = types_pb2.Sampling(temperature=0)
FLOATS = types_pb2.AudioFormat(encoding=types_pb2.AUDIO_ENCODING_PCM_F32LE, sample_rate_hz=16_000)

pytestmark = pytest.mark.asyncio(loop_scope="module")


@dataclass(frozen=True)
class Mesh:
    """An orchestrator, and the engines of the stages behind it."""

    stub: orchestrator_pb2_grpc.OrchestratorServiceStub
    engines: list[SlotEngine[Any]]
    registry: CollectorRegistry
    stage_registries: dict[str, CollectorRegistry]

    def cut_counts(self) -> list[float]:
        """How many streams each stage has told how fast their slots were free after they were cut."""
        names = {stage: f"chroma_{stage}_slot_release_seconds_count" for stage in self.stage_registries}
        return [registry.get_sample_value(names[it]) or 0.0 for it, registry in self.stage_registries.items()]

    async def until_idle(self) -> None:
        """Returns when no stage has a stream."""
        for engine in self.engines:
            await until_idle(engine)

    async def forget(self) -> None:
        """Sees that nothing that is heard was heard before."""
        await self.until_idle()
        reasoner = self.engines[0]
        assert isinstance(reasoner, ReasonerEngine)
        for slot in range(reasoner.slot_count):
            reasoner.kept.forget(slot)

    def count(self, name: str, **labels: str) -> float:
        return self.registry.get_sample_value(f"chroma_orchestrator_{name}", labels) or 0.0


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def mesh(
    new_reasoner_engine: Callable[..., ReasonerEngine], new_speech_engine: Callable[..., SpeechEngine]
) -> AsyncIterator[Mesh]:
    checkpoint: dict[str, Any] = {"checkpoint": str(GOLDEN / "checkpoint"), "grace_seconds": 5}
    codec_settings = CodecSettings(**checkpoint, device="cpu", slots=4, queue_limit=8)
    stages: list[tuple[str, Any, str, Any, Any]] = [
        (
            "reasoner",
            new_reasoner_engine(context_length=CONTEXT_LENGTH),
            REASONER,
            ReasonerSettings(**checkpoint),
            ReasonerMetrics,
        ),
        ("speech", new_speech_engine(), SPEECH, SpeechSettings(**checkpoint), SpeechMetrics),
        ("codec", build_codec(codec_settings), CODEC, codec_settings, CodecMetrics),
    ]
    services = {"reasoner": ReasonerService, "speech": SpeechService, "codec": CodecService}
    async with AsyncExitStack() as stack:
        addresses, registries = {}, {}
        for stage, engine, name, settings, metrics in stages:
            registry = registries[stage] = CollectorRegistry()
            service: Any = services[stage](metrics(registry))
            addresses[f"{stage}_address"] = await stack.enter_async_context(
                serving_stage(engine, service, name, settings, registry)
            )
        registry = CollectorRegistry()
        orchestrator = OrchestratorService(OrchestratorSettings(**addresses), registry)
        stack.push_async_callback(orchestrator.close)
        await orchestrator.prepare()
        address, _ = await stack.enter_async_context(serving(orchestrator.add_to))
        channel = await stack.enter_async_context(grpc.aio.insecure_channel(address))
        stub = orchestrator_pb2_grpc.OrchestratorServiceStub(channel)
        yield Mesh(stub, [engine for _, engine, *_ in stages], registry, registries)


def sound_of(case: GoldenCase) -> bytes:
    return case.clips[-1].astype("<f4").tobytes()


def packets(sound: bytes, milliseconds: float) -> list[bytes]:
    size = 4 * round(16 * milliseconds)
    return [sound[start : start + size] for start in range(0, len(sound), size)]


def running_tasks() -> Counter[str]:
    """How many tasks run each coroutine; a server always has one that waits for the next call."""
    return Counter(task.get_coro().__qualname__ for task in asyncio.all_tasks() if not task.done())


async def until_slots_are_counted() -> None:
    """Returns when the orchestrator is not just asking the stages, which it does every few seconds."""
    asking = [task for task in asyncio.all_tasks() if task.get_coro().__qualname__ == "Capacity._round"]
    if asking:
        await asyncio.wait(asking)


@pytest.mark.parametrize("name", ["greedy_one_turn", "long_speech"])
async def test_a_live_turn_gets_the_reply_of_the_whole_turn(
    mesh: Mesh, golden_cases: dict[str, GoldenCase], name: str
) -> None:
    said = sound_of(golden_cases[name])
    answers = []
    for milliseconds in (10**6, 20, 137):
        opening = {"sampling": GREEDY, "max_frame_count": 12, "input_format": FLOATS}
        async with Conversation(mesh.stub, **opening) as session:
            first = await session.ask(*packets(said, milliseconds))
            second = await session.ask(*packets(said[: 4 * 16_000], milliseconds))
            await session.end()
        answers.append([(answer.text, answer.audio) for answer in (first, second)])
    assert answers[0] == answers[1] == answers[2]
    await mesh.until_idle()


def soft(seconds: float) -> np.ndarray:
    """Hardly to be heard, in silence and out of it."""
    samples = np.random.default_rng(0).normal(0, 1e-3, round(16_000 * seconds)).astype("<f4")
    samples[len(samples) // 4 : len(samples) // 2] = 0
    return samples


def late_loud(seconds: float) -> np.ndarray:
    """As soft, until its last sample, which changes the features of all before it."""
    samples = soft(seconds)
    samples[-1] = 1
    return samples


@pytest.mark.parametrize("sound", [soft, late_loud])
@pytest.mark.parametrize(
    ("seconds", "milliseconds"), [(0.3, (1, 20, 125)), (2.002, (1, 33)), (9.7, (20, 1999)), (60.0, (20, 7000))]
)
async def test_any_length_in_any_packets_gets_the_reply_of_the_whole_turn(
    mesh: Mesh, sound: Callable[[float], np.ndarray], seconds: float, milliseconds: tuple[float, ...]
) -> None:
    said = sound(seconds).tobytes()
    answers = []
    for packet_milliseconds in (10**6, *milliseconds):
        await mesh.forget()
        async with Conversation(mesh.stub, sampling=GREEDY, max_frame_count=6, input_format=FLOATS) as session:
            answer = await session.ask(*packets(said, packet_milliseconds))
            await session.end()
        answers.append((answer.text, answer.audio))
    assert set(answers) == {answers[0]}
    assert answers[0][1]


async def test_cancels_at_any_moment_leave_nothing_behind(mesh: Mesh, golden_cases: dict[str, GoldenCase]) -> None:
    """Replies, turns and sessions are cut at random moments: no slot, task or stream stays."""
    said = sound_of(golden_cases["greedy_one_turn"])
    await mesh.until_idle()
    await mesh.stub.ListVoices(pb.ListVoicesRequest())
    tasks_before = running_tasks()
    chance = random.Random(0)

    async def one_session(count: int) -> None:
        opening = {"sampling": GREEDY, "max_frame_count": 40, "input_format": FLOATS}
        async with Conversation(mesh.stub, **opening) as session:
            for _ in range(count):
                how = chance.choice(("cancel_reply", "cancel_reply", "cancel_reply", "typed"))
                await session.say("hello") if how == "typed" else await session.say(*packets(said, 40)[:20])
                await session.end_turn()
                answer = await session.answer(cancel_after=chance.randrange(8))
                assert answer.ended.frame_count <= 40
            if chance.random() < 0.5:
                await session.end()
            else:  # it vanishes while it speaks
                await session.say(*packets(said, 40)[:5])

    for _ in range(-(-CANCEL_COUNT // 12)):
        async with asyncio.TaskGroup() as tasks:
            for _ in range(3):
                tasks.create_task(one_session(4))
    for _ in range(ROUNDS):  # a session whose client vanished learns of it in its own time
        await mesh.stub.ListVoices(pb.ListVoicesRequest())
        left = running_tasks() - tasks_before
        if not left and mesh.count("sessions_in_use") == 0:
            break
    assert mesh.count("sessions_in_use") == 0
    assert not left
    await mesh.until_idle()
    stopped = mesh.count("reply_stops_total", cause="cancel_reply")
    assert stopped >= mesh.count("replies_total", reason="cancelled") > 0


async def test_a_cancelled_reply_frees_its_slots_and_every_stage_tells_how_fast(mesh: Mesh) -> None:
    await mesh.until_idle()
    cut_before, stops_before = mesh.cut_counts(), mesh.count("reply_stop_seconds_count")
    async with Conversation(mesh.stub, sampling=GREEDY, max_frame_count=1000) as session:
        await session.say("hello")
        await session.end_turn()
        for _ in range(6):
            await session.call.read()
        assert all(engine.slots_in_use == 1 for engine in mesh.engines[1:])
        await session.cancel_reply()
        while (message := await session.call.read()).WhichOneof("payload") != "reply_ended":
            pass
        assert message.reply_ended.reason == CANCELLED
        await mesh.until_idle()
        _, *speech_and_codec = (after - before for before, after in zip(cut_before, mesh.cut_counts(), strict=True))
        assert speech_and_codec == [1, 1]
        assert mesh.count("reply_stop_seconds_count") == stops_before + 1
        await session.end()


async def test_the_time_to_the_first_sound_is_told_in_its_parts(mesh: Mesh) -> None:
    await mesh.forget()
    sound = np.random.default_rng(5).normal(0, 0.05, 16_000).astype("<f4").tobytes()
    async with Conversation(mesh.stub, sampling=GREEDY, max_frame_count=2, input_format=FLOATS) as session:
        timings = (await session.ask(sound)).ended.timings
        await session.end()
    parts = {part.name: part.seconds for part in timings.parts}
    assert all(parts[name] > 0 for name in ("encode", "prefill", "first_step", "first_frame", "decode"))
    assert sum(parts.values()) == pytest.approx(timings.first_audio_seconds, abs=1e-9)
    for stage, registry in mesh.stage_registries.items():
        assert (registry.get_sample_value(f"chroma_{stage}_batch_size_sum") or 0) > 0
    await mesh.until_idle()


async def test_a_question_is_heard_answered_and_barged_in_upon(mesh: Mesh) -> None:
    question, rate_hz = soundfile.read(QUESTION, dtype="int16")
    assert rate_hz == 16_000
    sound = question.tobytes() + bytes(2 * rate_hz)
    settings = pb.TurnDetection(server_vad=pb.ServerVad())
    async with Conversation(mesh.stub, sampling=GREEDY, max_frame_count=1000, turn_detection=settings) as session:
        stopped_before = mesh.count("reply_stops_total", cause="barge_in")

        async def until(kind: str) -> list[pb.ConverseResponse]:
            messages = [await session.call.read()]
            while messages[-1].WhichOneof("payload") != kind:
                messages.append(await session.call.read())
            return messages

        await session.say(*(sound[start : start + 640] for start in range(0, len(sound), 640)))
        kinds = [message.WhichOneof("payload") for message in await until("audio")]
        assert kinds[:3] == ["speech_started", "speech_stopped", "reply_started"]
        await session.say(sound)
        messages = await until("reply_ended")
        assert [m.speech_started.turn_index for m in messages if m.WhichOneof("payload") == "speech_started"] == [1]
        assert messages[-1].reply_ended.reason == CANCELLED
        assert mesh.count("reply_stops_total", cause="barge_in") == stopped_before + 1
        after = await until("audio")
        assert after[-1].audio.turn_index == 1
        assert not [m for m in after if m.WhichOneof("payload") == "text" and m.text.turn_index == 0]
    await mesh.until_idle()


async def test_speech_that_nobody_hears_yet_is_not_made(mesh: Mesh) -> None:
    """The text ends after four steps; what follows is bounded by what waits between the stages alone."""
    opening = {"max_frame_count": 1000, "max_step_count": 4, "ahead_seconds": 0.5}
    async with Conversation(mesh.stub, **opening) as session:
        await session.say("hello")
        await session.end_turn()
        sent = 0
        while sent < 12:
            message = await session.call.read()
            sent += message.audio.frame_count
        _, speech, codec = mesh.engines
        (spoken,) = (stream.frame_count for stream in speech.streams.values())
        (decoded,) = (stream.frame_count for stream in codec.streams.values())
        assert sent <= decoded <= 200
        assert spoken <= decoded + 200
    await mesh.until_idle()


def living() -> Counter[str]:
    """How many objects there are of the mesh's own kinds and of those that it is made of, by kind, and tasks.

    A timer that was cancelled is nobody's any more, but the loop keeps it until it would have been due.
    """
    gc.collect()
    things = (it for it in gc.get_objects() if not (type(it) is asyncio.TimerHandle and it.cancelled()))
    kinds = Counter(type(thing) for thing in things)
    ours = {kind.__qualname__: count for kind, count in kinds.items() if str(kind.__module__).startswith(OWNERS)}
    return running_tasks() + Counter(ours)


async def test_sixty_turns_are_one_conversation_that_leaves_no_more_than_five(mesh: Mesh) -> None:
    """The context is full after five, and is passed every few turns from then on."""
    sound = np.random.default_rng(0).normal(0, 0.05, 12 * 16_000).astype("<f4")
    after = {}
    async with Conversation(mesh.stub, sampling=GREEDY, max_frame_count=2, input_format=FLOATS) as session:
        for index in range(60):
            said = packets(sound[: 16_000 * (6 + index % 6)].tobytes(), 100) if index % 4 else ["This is typed."]
            assert (await session.ask(*said)).ended.turn_index == index
            if index + 1 in (5, 60):
                await mesh.until_idle()
                await until_slots_are_counted()
                after[index + 1] = living()
        await session.end()
    assert mesh.count("history_cuts_total") >= 5
    more = after[60] - after[5]
    assert after[5]["Exchange"] > 0
    assert more.total() < 55 / 2, f"something is kept of every turn: {more}"
    await mesh.until_idle()
