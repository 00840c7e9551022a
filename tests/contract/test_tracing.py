"""Traces of turns: what a collector is sent over OTLP by a whole mesh, and what is recorded when replies go wrong."""

import asyncio
import math
import re
import sys
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any
from urllib.request import Request, urlopen

import grpc
import pytest
import structlog
from chroma_mesh.orchestrator.v1 import orchestrator_pb2 as pb
from chroma_mesh.orchestrator.v1 import orchestrator_pb2_grpc
from chroma_mesh.types.v1 import types_pb2
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2, trace_service_pb2_grpc
from opentelemetry.proto.trace.v1 import trace_pb2
from prometheus_client import CollectorRegistry

from services.codec.__main__ import build as build_codec
from services.codec.metrics import CodecMetrics
from services.codec.service import SERVICE_NAME as CODEC
from services.codec.service import CodecService
from services.codec.settings import CodecSettings
from services.orchestrator import session as session_module
from services.orchestrator.service import SERVICE, OrchestratorService
from services.orchestrator.settings import OrchestratorSettings
from services.orchestrator.turn_parts import PART_NAMES
from services.reasoner.engine import ReasonerEngine
from services.reasoner.metrics import ReasonerMetrics
from services.reasoner.service import SERVICE_NAME as REASONER
from services.reasoner.service import ReasonerService
from services.reasoner.settings import ReasonerSettings
from services.runtime import tracing
from services.runtime.errors import Unavailable
from services.runtime.interceptors import Phase
from services.runtime.server import running
from services.runtime.tracing import Span
from services.speech.engine import SpeechEngine
from services.speech.metrics import SpeechMetrics
from services.speech.service import SERVICE_NAME as SPEECH
from services.speech.service import SpeechService
from services.speech.settings import SpeechSettings
from services.stage.process import StageLife
from tests.conftest import GOLDEN
from tests.contract.fake_mesh import CANCELLED, FAILED, STOP, Conversation, Mesh, Signal, drain, no_hook, tone
from tests.contract.test_live_session import LoudnessDetector, silence, speech, vad

GREEDY = types_pb2.Sampling(temperature=0)
TOLERANCE_SECONDS = 0.002
PARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


class Collector(trace_service_pb2_grpc.TraceServiceServicer):
    """Takes spans as any collector of OpenTelemetry does."""

    def __init__(self) -> None:
        self.signal = Signal()
        self.services: list[tuple[str, trace_pb2.Span]] = []
        self.is_broken = False

    async def Export(
        self, request: trace_service_pb2.ExportTraceServiceRequest, context: Any
    ) -> trace_service_pb2.ExportTraceServiceResponse:
        if self.is_broken:
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, "no spans today")
        for of_service in request.resource_spans:
            attributes = {pair.key: pair.value.string_value for pair in of_service.resource.attributes}
            for scope in of_service.scope_spans:
                self.services += [(attributes["service.name"], span) for span in scope.spans]
        self.signal.touch()
        return trace_service_pb2.ExportTraceServiceResponse()

    @property
    def spans(self) -> list[trace_pb2.Span]:
        return [span for _, span in self.services]


@asynccontextmanager
async def collecting() -> AsyncIterator[tuple[Collector, str]]:
    """A collector, and where it is."""
    collector, server = Collector(), grpc.aio.server()
    trace_service_pb2_grpc.add_TraceServiceServicer_to_server(collector, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        yield collector, f"http://127.0.0.1:{port}"
    finally:
        await server.stop(None)


@dataclass(frozen=True)
class TracedMesh:
    """A whole mesh of real services whose traces go to a collector."""

    stub: orchestrator_pb2_grpc.OrchestratorServiceStub
    metrics_port: int


@asynccontextmanager
async def traced_mesh(
    endpoint: str, reasoner: ReasonerEngine, speech: SpeechEngine, **orchestrator: Any
) -> AsyncIterator[TracedMesh]:
    common: dict[str, Any] = {"otlp_endpoint": endpoint, "grace_seconds": 5}
    checkpoint = common | {"checkpoint": str(GOLDEN / "checkpoint")}
    codec_settings = CodecSettings(**checkpoint, device="cpu", slots=4, queue_limit=8)
    stages: list[tuple[str, Any, str, Any, Any]] = [
        ("reasoner", reasoner, REASONER, ReasonerSettings(**checkpoint), lambda r: ReasonerService(ReasonerMetrics(r))),
        ("speech", speech, SPEECH, SpeechSettings(**checkpoint), lambda r: SpeechService(SpeechMetrics(r))),
        ("codec", build_codec(codec_settings), CODEC, codec_settings, lambda r: CodecService(CodecMetrics(r))),
    ]
    async with AsyncExitStack() as stack:
        addresses = {}
        for stage, engine, name, settings, new_service in stages:
            registry = CollectorRegistry()
            life = StageLife(settings, new_service(registry), partial(lambda engine: engine, engine), type(engine).warm)
            serving = running(
                stage=stage,
                settings=settings,
                add=life.add_to,
                services=[name],
                prepare=life.prepare,
                close=life.close,
                registry=registry,
            )
            addresses[f"{stage}_address"] = (await stack.enter_async_context(serving)).address
        registry = CollectorRegistry()
        settings = OrchestratorSettings(**addresses, **(common | orchestrator))
        service = OrchestratorService(settings, registry)
        server = await stack.enter_async_context(
            running(
                stage="orchestrator",
                settings=settings,
                add=service.add_to,
                services=[SERVICE],
                prepare=service.prepare,
                close=service.close,
                registry=registry,
            )
        )
        channel = await stack.enter_async_context(grpc.aio.insecure_channel(server.address))
        yield TracedMesh(orchestrator_pb2_grpc.OrchestratorServiceStub(channel), server.metrics_port)


def by_trace(collector: Collector) -> list[list[tuple[str, trace_pb2.Span]]]:
    """The spans of each trace, in the order of their turns."""
    traces: dict[bytes, list[tuple[str, trace_pb2.Span]]] = {}
    for service, span in collector.services:
        traces.setdefault(span.trace_id, []).append((service, span))
    return sorted(traces.values(), key=lambda spans: min(span.start_time_unix_nano for _, span in spans))


def attributes(span: trace_pb2.Span) -> dict[str, Any]:
    return {pair.key: getattr(pair.value, pair.value.WhichOneof("value")) for pair in span.attributes}


def seconds(span: trace_pb2.Span) -> float:
    return (span.end_time_unix_nano - span.start_time_unix_nano) / 1e9


async def test_a_collector_gets_a_trace_of_every_turn_whose_parts_are_the_time_to_its_first_sound(
    new_reasoner_engine: Callable[..., ReasonerEngine], new_speech_engine: Callable[..., SpeechEngine]
) -> None:
    with structlog.testing.capture_logs(processors=[structlog.contextvars.merge_contextvars]) as lines:
        async with collecting() as (collector, endpoint):
            async with traced_mesh(endpoint, new_reasoner_engine(), new_speech_engine()) as mesh:
                async with Conversation(mesh.stub, sampling=GREEDY, max_frame_count=6) as session:
                    replies = [await session.ask(said) for said in (tone(0.7), "And typed?", tone(0.4, seed=1))]
                    await session.end()
                exposed = await asyncio.to_thread(openmetrics, mesh.metrics_port)
            # What waited was sent before the services had ended.
            traces = by_trace(collector)
    assert len(traces) == len(replies)
    for index, (spans, reply) in enumerate(zip(traces, replies, strict=True)):
        (root,) = [span for _, span in spans if not span.parent_span_id]
        assert root.name == "turn"
        assert attributes(root)["chroma.turn_index"] == index
        named = {service: {} for service in ("orchestrator", "reasoner", "speech", "codec")}
        for service, span in spans:
            named[service].setdefault(span.name, span)
        parts = [span for _, span in spans if span.parent_span_id == root.span_id and span.name in PART_NAMES]
        assert [span.name for span in parts] == [part.name for part in reply.ended.timings.parts if part.seconds]
        assert sum(map(seconds, parts)) == pytest.approx(reply.ended.timings.first_audio_seconds, abs=TOLERANCE_SECONDS)
        rest = named["orchestrator"]["rest"]
        edges = [root.start_time_unix_nano, *(span.end_time_unix_nano for span in (*parts, rest))]
        assert [span.start_time_unix_nano for span in (*parts, rest)] == edges[:-1]
        assert edges[-1] <= root.end_time_unix_nano
        for stage, work in (
            ("reasoner", ("encode", "prefill", "first_step")),
            ("speech", ("first_frame",)),
            ("codec", ("decode",)),
        ):
            call = named[stage][stage]
            assert call.parent_span_id == root.span_id
            assert call.kind == trace_pb2.Span.SPAN_KIND_SERVER
            assert attributes(call)["chroma.turn_index"] == index
            assert attributes(call)["chroma.session_id"] == session.opened.session_id
            inside = {name: span for name, span in named[stage].items() if name != stage}
            assert set(work) - ({"encode"} if index == 1 else set()) <= set(inside)
            for span in inside.values():
                assert span.parent_span_id == call.span_id
                assert call.start_time_unix_nano - 1e6 <= span.start_time_unix_nano
                assert span.end_time_unix_nano <= call.end_time_unix_nano + 1e6
        trace_id = root.trace_id.hex()
        logged = [line for line in lines if line["event"] == "reply ended" and line["turn_index"] == index]
        assert [line["trace_id"] for line in logged] == [trace_id]
    exemplars = re.findall(r'first_audio_seconds_bucket.* # {trace_id="(\w+)"}', exposed)
    assert exemplars
    assert set(exemplars) <= {spans[0][1].trace_id.hex() for spans in traces}


def openmetrics(port: int) -> str:
    """As Prometheus asks for metrics."""
    request = Request(
        f"http://127.0.0.1:{port}/metrics", headers={"Accept": "application/openmetrics-text;version=1.0.0"}
    )
    with urlopen(request) as answer:
        assert answer.headers["Content-Type"].startswith("application/openmetrics-text")
        text: str = answer.read().decode()
        return text


async def test_a_collector_that_is_gone_or_broken_costs_no_reply(
    new_reasoner_engine: Callable[..., ReasonerEngine], new_speech_engine: Callable[..., SpeechEngine]
) -> None:
    async with collecting() as (collector, endpoint):
        collector.is_broken = True
        async with (
            traced_mesh(endpoint, new_reasoner_engine(), new_speech_engine()) as mesh,
            Conversation(mesh.stub, sampling=GREEDY, max_frame_count=2) as session,
        ):
            assert (await session.ask("hello")).ended.frame_count == 2
            await session.end()
    assert not collector.spans


# --- what is recorded, on stages that are made up ---------------------------------------------------------------------


@dataclass
class Recorder:
    """Keeps the spans that have ended."""

    is_sampling: bool = True
    spans: list[Span] = field(default_factory=list)

    def samples(self, trace_id: str) -> bool:
        return self.is_sampling

    def write(self, span: Span) -> None:
        self.spans.append(span)

    def turn(self) -> Span:
        (span,) = self.spans
        assert span.name == "turn"
        assert span.began_at <= span.ended_at
        return span


@pytest.fixture
def recorder() -> Recorder:
    return Recorder()


@pytest.fixture
async def mesh(recorder: Recorder) -> AsyncIterator[Mesh]:
    async with Mesh().running(recovery_limit=2, writer=recorder) as mesh:
        yield mesh


async def quiet(mesh: Mesh, session: Conversation) -> None:
    await session.end()
    await mesh.until_quiet()


async def test_stages_are_told_the_turn_and_each_turn_is_a_trace(mesh: Mesh, recorder: Recorder) -> None:
    async with mesh.converse() as session:
        for _ in range(3):
            await session.ask("hello")
        await quiet(mesh, session)
    assert len({span.context.trace_id for span in recorder.spans}) == 3
    assert all(span.parent is None for span in recorder.spans)
    for stage in (mesh.reasoner, mesh.speech, mesh.codec):
        told = [heard.metadata["traceparent"] for heard in stage.heard]
        assert told == [span.context.traceparent for span in recorder.spans]


async def test_the_caller_says_whose_trace_it_is_and_whether_it_is_written(mesh: Mesh, recorder: Recorder) -> None:
    for parent in (PARENT, PARENT.removesuffix("01") + "00"):
        call = mesh.stub.Converse(metadata=(("traceparent", parent),))
        await call.write(pb.ConverseRequest(open=pb.ConverseOpen()))
        await call.write(pb.ConverseRequest(text=pb.UserText(text="hello")))
        await call.write(pb.ConverseRequest(end_turn=pb.EndTurn()))
        await call.write(pb.ConverseRequest(end=pb.ConverseEnd()))
        await drain(call)
    span = recorder.turn()
    assert span.parent is not None
    assert span.parent.traceparent == PARENT
    assert span.context.trace_id == span.parent.trace_id
    assert [heard.metadata["traceparent"][-3:] for heard in mesh.codec.heard] == ["-01", "-00"]


async def test_what_is_not_sampled_is_not_recorded(mesh: Mesh, recorder: Recorder) -> None:
    recorder.is_sampling = False
    async with mesh.converse() as session:
        await session.ask("hello")
        await quiet(mesh, session)
    assert not recorder.spans
    assert mesh.reasoner.heard[0].metadata["traceparent"].endswith("-00")


@pytest.mark.parametrize("stage", ["reasoner", "speech", "codec"])
async def test_a_recovery_is_an_event_and_the_parts_are_still_the_whole(
    mesh: Mesh, recorder: Recorder, stage: str
) -> None:
    async def lose(_index: int) -> None:
        getattr(mesh, stage).hook = no_hook
        raise Unavailable("this replica goes", reason="DRAINING")

    getattr(mesh, stage).hook = lose
    async with mesh.converse() as session:
        reply = await session.ask("hello")
        await quiet(mesh, session)
    assert reply.ended.reason == STOP
    span = recorder.turn()
    told = [(event.name, dict(event.attributes)) for event in span.events]
    assert told == [("lost", {"stage": stage, "reason": "DRAINING"}), ("recovered", {"stage": stage})]
    parts = [child for child in span.children if child.name in PART_NAMES]
    assert f"{stage}_lost" in {part.name for part in parts}
    whole = math.fsum(part.ended_at - part.began_at for part in parts)
    assert whole == pytest.approx(reply.ended.timings.first_audio_seconds, abs=TOLERANCE_SECONDS)
    assert all(child.parent == span.context for child in span.children)


async def test_a_reply_that_is_cut_ends_its_span_and_says_by_what(mesh: Mesh, recorder: Recorder) -> None:
    never = asyncio.Event()

    async def hold(index: int) -> None:
        if index == 3:
            await never.wait()

    mesh.codec.hook = hold
    async with mesh.converse() as session:
        await session.say("hello")
        await session.end_turn()
        while (message := await session.call.read()).WhichOneof("payload") != "audio":
            pass
        await session.cancel_reply()
        while (message := await session.call.read()).WhichOneof("payload") != "reply_ended":
            pass
        assert message.reply_ended.reason == CANCELLED
        await quiet(mesh, session)
    span = recorder.turn()
    assert [event.name for event in span.events] == ["cancel_reply"]
    assert span.attributes["chroma.reason"] == "cancelled"
    assert span.children[-1].name == "rest"


async def test_a_reply_that_is_cut_before_its_first_sound_has_no_parts(mesh: Mesh, recorder: Recorder) -> None:
    never = asyncio.Event()
    mesh.codec.hook = lambda _index: never.wait()  # type: ignore[assignment]
    async with mesh.converse() as session:
        await session.say("hello")
        await session.end_turn()
        await mesh.signal.until(lambda: bool(mesh.speech.heard) and len(mesh.speech.heard[0].items) > 1)
        await session.cancel_reply()
        await session.answer()
        await quiet(mesh, session)
    assert not recorder.turn().children


async def test_a_barge_in_is_an_event_of_the_reply_that_it_stops(
    mesh: Mesh, recorder: Recorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(session_module, "ServerVadDetector", LoudnessDetector)

    async def hold(index: int) -> None:
        if index == 3:
            await asyncio.Event().wait()

    mesh.speech.hook = hold
    async with mesh.converse(turn_detection=vad()) as session:
        await session.say(speech(0.4, 1), silence(0.4))
        await mesh.signal.until(lambda: bool(mesh.codec.heard) and len(mesh.codec.heard[0].items) == 3)
        mesh.speech.hook = no_hook
        await session.say(speech(0.4, 2), silence(0.4))
        await session.call.write(pb.ConverseRequest(end=pb.ConverseEnd()))
        await drain(session.call)
    await mesh.until_quiet()
    stopped, answered = recorder.spans
    assert [event.name for event in stopped.events] == ["barge_in"]
    assert not answered.events


async def test_a_reply_that_fails_says_why(mesh: Mesh, recorder: Recorder) -> None:
    async def lost(_index: int) -> None:
        raise Unavailable("this replica goes", reason="DRAINING")

    mesh.speech.hook = lost
    async with mesh.converse() as session:
        assert (await session.ask("hello")).ended.reason == FAILED
        await quiet(mesh, session)
    span = recorder.turn()
    assert span.failure == "UNAVAILABLE DRAINING"
    assert [event.name for event in span.events] == ["lost", "lost", "lost"]


async def test_spans_end_with_a_session_that_is_lost_and_one_that_drains(mesh: Mesh, recorder: Recorder) -> None:
    never = asyncio.Event()
    mesh.codec.hook = lambda _index: never.wait()  # type: ignore[assignment]
    for how in ("cancelled", "drained"):
        recorder.spans.clear()
        count = len(mesh.codec.heard)
        async with mesh.converse() as session:
            await session.say("hello")
            await session.end_turn()
            await mesh.signal.until(lambda count=count: len(mesh.codec.heard) > count)
            if how == "drained":
                mesh.gate.phase = Phase.DRAINING
                mesh.gate.hand_over()
                assert (await session.failure()).reason == "DRAINING"
        await mesh.until_quiet()
        await mesh.gate.until_idle()
        assert [event.name for event in recorder.turn().events] == [how]


async def test_a_turn_that_is_given_up_ends_its_span(mesh: Mesh, recorder: Recorder) -> None:
    async with mesh.converse() as session:
        await session.say(tone(0.5))
        await mesh.signal.until(lambda: bool(mesh.reasoner.heard))
        await quiet(mesh, session)
    assert not recorder.turn().children


@pytest.mark.parametrize("is_on", [False, True])
async def test_a_frame_costs_nothing_whether_its_turn_is_traced_or_not(recorder: Recorder, is_on: bool) -> None:
    calls: list[str] = []

    def count(frame: Any, event: str, _argument: Any) -> None:
        if event == "call" and frame.f_code.co_filename == tracing.__file__:
            calls.append(frame.f_code.co_qualname)

    counts = []
    async with Mesh().running(writer=recorder if is_on else None) as mesh, mesh.converse() as session:
        for mesh.reasoner.step_count in (4, 40):
            calls.clear()
            sys.setprofile(count)
            try:
                reply = await session.ask("hello")
            finally:
                sys.setprofile(None)
            # Parts that took no time are left out, and how many do is a matter of the clock.
            kept = [name for name in calls if not name.startswith(("Span.", "SpanContext."))]
            counts.append((reply.ended.frame_count, Counter(kept)))
        await quiet(mesh, session)
    (few, calls_of_few), (many, calls_of_many) = counts
    assert (few, many) == (10, 82)
    assert calls_of_few == calls_of_many
