"""Spans on their way to a collector, over OTLP and gRPC; the only file that knows OpenTelemetry."""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import structlog
from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.sdk.trace.id_generator import IdGenerator
from opentelemetry.sdk.trace.sampling import ALWAYS_ON, Decision, TraceIdRatioBased

from services.runtime.tracing import Span, SpanContext

# Spans that wait to be sent; those beyond are dropped. A turn has some 25.
QUEUE_LIMIT = 4096
SEND_EVERY_SECONDS = 1.0
# How long a collector that does not answer is tried, and at the end of the process at most.
EXPORT_SECONDS = 5.0
LAST_SECONDS = 2.0
SCOPE = "chroma-mesh"


class GivenIds(IdGenerator):
    """The ids that a span has already: they went out with calls before it was over."""

    def __init__(self) -> None:
        self.context: SpanContext | None = None

    def generate_span_id(self) -> int:
        """The span's own."""
        assert self.context is not None
        return int(self.context.span_id, 16)

    def generate_trace_id(self) -> int:
        """The trace's."""
        assert self.context is not None
        return int(self.context.trace_id, 16)


class OtlpWriter:
    """Sends spans on a thread of its own; a collector that is slow or gone costs spans, and nothing else."""

    def __init__(self, endpoint: str, *, ratio: float, stage: str, replica: str) -> None:
        self._sampler = TraceIdRatioBased(ratio)
        self._ids = GivenIds()
        self._exporter = OTLPSpanExporter(endpoint, timeout=EXPORT_SECONDS)
        self._processor = BatchSpanProcessor(
            self._exporter, max_queue_size=QUEUE_LIMIT, schedule_delay_millis=SEND_EVERY_SECONDS * 1000
        )
        resource = Resource.create({"service.name": stage, "service.namespace": SCOPE, "service.instance.id": replica})
        # What comes here is sampled.
        self._provider = TracerProvider(
            sampler=ALWAYS_ON, resource=resource, shutdown_on_exit=False, id_generator=self._ids
        )
        self._provider.add_span_processor(self._processor)
        self._tracer = self._provider.get_tracer(SCOPE)

    def samples(self, trace_id: str) -> bool:
        """Whether a trace that begins here is written."""
        decision = self._sampler.should_sample(None, int(trace_id, 16), "").decision
        return decision is Decision.RECORD_AND_SAMPLE

    def write(self, span: Span) -> None:
        """Takes a span that has ended, and its children."""
        # One reading for all of them: what touches in one clock does in the other.
        origin_seconds = time.time() - time.perf_counter()
        try:
            for each in (span, *span.children):
                self._write(each, origin_seconds)
        except Exception as failure:  # whatever it is, no reply is to end for it
            structlog.get_logger().warning("a span was not written", exc_info=failure)

    async def close(self) -> None:
        """Sends what waits, and ends the thread; at most LAST_SECONDS for a collector that does not answer."""
        closing = asyncio.create_task(asyncio.to_thread(self._provider.shutdown))
        await asyncio.wait({closing}, timeout=LAST_SECONDS)
        if not closing.done():
            await asyncio.to_thread(self._exporter.shutdown)  # ends its tries
        await closing

    def _write(self, span: Span, origin_seconds: float) -> None:
        def nanoseconds(at: float) -> int:
            return round((origin_seconds + at) * 1e9)

        self._ids.context = span.context
        written = self._tracer.start_span(
            span.name,
            context=_inside(span.parent),
            kind=trace.SpanKind.SERVER if span.is_call else trace.SpanKind.INTERNAL,
            attributes=span.attributes,
            start_time=nanoseconds(span.began_at),
        )
        for event in span.events:
            written.add_event(event.name, event.attributes, nanoseconds(event.at))
        if span.failure is not None:
            written.set_status(trace.StatusCode.ERROR, span.failure)
        written.end(nanoseconds(span.ended_at))


def _inside(parent: SpanContext | None) -> Context:
    if parent is None:
        return Context()
    context = trace.SpanContext(
        int(parent.trace_id, 16),
        int(parent.span_id, 16),
        is_remote=True,
        trace_flags=trace.TraceFlags(trace.TraceFlags.SAMPLED),
    )
    return trace.set_span_in_context(trace.NonRecordingSpan(context), Context())


@asynccontextmanager
async def otlp_writer(endpoint: str, *, ratio: float, stage: str, replica: str) -> AsyncIterator[OtlpWriter]:
    """A writer to the collector at `endpoint`, open for the block."""
    writer = OtlpWriter(endpoint, ratio=ratio, stage=stage, replica=replica)
    try:
        yield writer
    finally:
        await writer.close()
