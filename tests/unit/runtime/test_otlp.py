"""Spans leave on a thread of their own, and whatever becomes of them is nobody's trouble."""

import asyncio
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import grpc
import pytest
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2, trace_service_pb2_grpc
from pydantic import ValidationError

from services.runtime import otlp
from services.runtime.otlp import OtlpWriter, otlp_writer
from services.runtime.server import CannotStart, running
from services.runtime.settings import ServiceSettings
from services.runtime.tracing import Span, SpanContext

ROOT = SpanContext("0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331", is_sampled=True)


class Collector(trace_service_pb2_grpc.TraceServiceServicer):
    """Keeps requests; one that `holds` never answers."""

    def __init__(self, *, holds: bool = False) -> None:
        self.requests: list[trace_service_pb2.ExportTraceServiceRequest] = []
        self._holds = holds

    async def Export(
        self, request: trace_service_pb2.ExportTraceServiceRequest, context: Any
    ) -> trace_service_pb2.ExportTraceServiceResponse:
        self.requests.append(request)
        if self._holds:
            await asyncio.Event().wait()
        return trace_service_pb2.ExportTraceServiceResponse()


@asynccontextmanager
async def serving(collector: Collector) -> AsyncIterator[str]:
    server = grpc.aio.server()
    trace_service_pb2_grpc.add_TraceServiceServicer_to_server(collector, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        await server.stop(None)


def writing(endpoint: str, ratio: float = 1.0) -> Any:
    return otlp_writer(endpoint, ratio=ratio, stage="speech", replica="speech-0")


def sending_threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("Otel")]


def span(**fields: Any) -> Span:
    now = time.perf_counter()
    return Span("speech", SpanContext.below(ROOT), ROOT, began_at=now - 2, ended_at=now, **fields)


async def test_a_span_arrives_as_it_was_with_what_is_below_it() -> None:
    collector, told = Collector(), span(is_call=True, attributes={"chroma.turn_index": 3}, failure="UNAVAILABLE FULL")
    told.event("lost", stage="codec")
    told.parts(told.began_at, ("queue", 0.5), ("voice_prefill", 0.0), ("first_frame", 0.25))
    async with serving(collector) as endpoint:
        async with writing(endpoint) as writer:
            writer.write(told)
        assert not sending_threads()
    (of_service,) = (each for request in collector.requests for each in request.resource_spans)
    facts = {pair.key: pair.value.string_value for pair in of_service.resource.attributes}
    assert (facts["service.name"], facts["service.namespace"]) == ("speech", "chroma-mesh")
    assert facts["service.instance.id"] == "speech-0"
    (scope,) = of_service.scope_spans
    root, queue, frame = scope.spans
    assert [root.name, queue.name, frame.name] == ["speech", "queue", "first_frame"]
    assert {each.trace_id.hex() for each in scope.spans} == {ROOT.trace_id}
    assert (root.span_id.hex(), root.parent_span_id.hex()) == (told.context.span_id, ROOT.span_id)
    assert queue.parent_span_id == frame.parent_span_id == root.span_id
    assert (root.status.message, root.attributes[0].value.int_value) == ("UNAVAILABLE FULL", 3)
    assert [event.name for event in root.events] == ["lost"]
    assert queue.start_time_unix_nano == root.start_time_unix_nano
    assert queue.end_time_unix_nano == frame.start_time_unix_nano == queue.start_time_unix_nano + 5 * 10**8
    assert abs(root.end_time_unix_nano / 1e9 - time.time()) < 60


@pytest.mark.parametrize("is_there", [False, True])
async def test_a_collector_that_does_not_answer_holds_up_nobody(
    is_there: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(otlp, "LAST_SECONDS", 0.05)
    async with serving(Collector(holds=True)) as endpoint:
        async with writing(endpoint if is_there else "http://127.0.0.1:1") as writer:
            writer.write(span())
        assert not sending_threads()


async def test_more_spans_than_can_wait_are_dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(otlp, "LAST_SECONDS", 0.05)
    async with writing("http://127.0.0.1:1") as writer:
        assert isinstance(writer, OtlpWriter)
        for _ in range(2 * otlp.QUEUE_LIMIT):
            writer.write(span())


async def test_the_ratio_is_that_of_the_traces_and_the_same_everywhere() -> None:
    traces = [SpanContext.below(ROOT).span_id * 2 for _ in range(400)]
    async with writing("http://127.0.0.1:1", 0.25) as one, writing("http://127.0.0.1:1", 0.25) as other:
        chosen = [one.samples(trace) for trace in traces]
        assert chosen == [other.samples(trace) for trace in traces]
    assert 40 < sum(chosen) < 180
    async with writing("http://127.0.0.1:1", 0.0) as none:
        assert not any(none.samples(trace) for trace in traces)


async def test_without_its_packages_a_service_says_what_it_lacks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "services.runtime.otlp", None)

    async def nothing() -> None:
        pass

    server = running(
        stage="speech",
        settings=ServiceSettings(otlp_endpoint="http://127.0.0.1:1"),
        add=lambda _: None,
        services=[],
        prepare=nothing,
        close=nothing,
        registry=None,  # type: ignore[arg-type]
    )
    with pytest.raises(CannotStart, match="install the extra tracing"):
        await server.__aenter__()


@pytest.mark.parametrize("endpoint", ["collector:4317", "http://", "http://collector:4317/v1/traces", "ftp://there"])
def test_an_endpoint_is_an_address(endpoint: str) -> None:
    with pytest.raises(ValidationError):
        ServiceSettings(otlp_endpoint=endpoint)


def test_who_does_not_trace_does_not_load_it() -> None:
    code = (
        "import sys, services.gateway.__main__, services.orchestrator.service; "
        "sys.exit(any(name.startswith('opentelemetry.sdk') for name in sys.modules))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
