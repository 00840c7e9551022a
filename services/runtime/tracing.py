"""Spans of the turns and calls that somebody traces; where nobody does, next to nothing."""

import re
import secrets
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Protocol, Self

from services.runtime.errors import Cancelled, most_telling

TRACEPARENT = re.compile(r"[0-9a-f]{2}-(?!0{32})([0-9a-f]{32})-(?!0{16})([0-9a-f]{16})-([0-9a-f]{2})")

Value = str | int | float | bool


@dataclass(frozen=True)
class SpanContext:
    """Where a span stands: its trace, itself, and whether the trace is written."""

    trace_id: str
    span_id: str
    is_sampled: bool

    @property
    def traceparent(self) -> str:
        """As W3C's header has it."""
        return f"00-{self.trace_id}-{self.span_id}-{int(self.is_sampled):02x}"

    @classmethod
    def read(cls, traceparent: str) -> Self | None:
        """From that header; None where it is none."""
        found = TRACEPARENT.fullmatch(traceparent)
        return None if found is None else cls(found[1], found[2], bool(int(found[3], 16) & 1))

    @classmethod
    def below(cls, parent: Self) -> Self:
        """Of a new span of the parent's trace."""
        return cls(parent.trace_id, secrets.token_hex(8), parent.is_sampled)


def new_traceparent() -> str:
    """A traceparent that begins a trace, marked as not sampled."""
    return SpanContext(secrets.token_hex(16), secrets.token_hex(8), is_sampled=False).traceparent


def incoming_parent(metadata: Sequence[tuple[str, str | bytes]]) -> SpanContext | None:
    """The caller's span, if the call's metadata names one."""
    return next(
        (SpanContext.read(value) for key, value in metadata if key == "traceparent" and isinstance(value, str)), None
    )


@dataclass(frozen=True)
class SpanEvent:
    """Something that happened in a span, and when."""

    name: str
    at: float
    attributes: Mapping[str, Value]


@dataclass
class Span:
    """A span that is being recorded; at its end it is written, with its `children`. Times are time.perf_counter()'s."""

    name: str
    context: SpanContext
    parent: SpanContext | None
    is_call: bool = False
    began_at: float = field(default_factory=time.perf_counter)
    ended_at: float = 0.0
    attributes: dict[str, Value] = field(default_factory=dict)
    events: list[SpanEvent] = field(default_factory=list)
    children: list["Span"] = field(default_factory=list)
    failure: str | None = None

    def event(self, name: str, **attributes: Value) -> None:
        """Something happens now."""
        self.events.append(SpanEvent(name, time.perf_counter(), attributes))

    def child(self, name: str, began_at: float, ended_at: float) -> None:
        """A part of it that is over."""
        context = SpanContext.below(self.context)
        self.children.append(Span(name, context, self.context, began_at=began_at, ended_at=ended_at))

    def parts(self, began_at: float, *parts: tuple[str, float]) -> None:
        """Parts that are over, as name and seconds, each from where the one before it ended; those that took no time
        are left out."""
        for name, seconds in parts:
            if seconds > 0:
                self.child(name, began_at, began_at + seconds)
                began_at += seconds


class SpanWriter(Protocol):
    """Where spans go."""

    def samples(self, trace_id: str) -> bool:
        """Whether a trace that begins here is written."""
        ...

    def write(self, span: Span) -> None:
        """Takes a span that has ended, and its children; neither waits nor raises."""


@dataclass(frozen=True)
class TracedCall:
    """What a call that is being answered knows of tracing: its caller's span, and whether the service is draining."""

    writer: SpanWriter
    parent: SpanContext | None
    attributes: Mapping[str, Value]
    is_draining: Callable[[], bool]


_call: ContextVar[TracedCall | None] = ContextVar("traced_call", default=None)
_span: ContextVar[Span | None] = ContextVar("span", default=None)


def current_span() -> Span | None:
    """The span that is being recorded; None where there is none."""
    return _span.get()


def current_traceparent() -> str | None:
    """What calls below that span carry."""
    span = _span.get()
    return None if span is None else span.context.traceparent


@contextmanager
def traced_call(
    writer: SpanWriter,
    parent: SpanContext | None,
    attributes: Mapping[str, Value],
    *,
    is_draining: Callable[[], bool],
) -> Iterator[None]:
    """The block in which a call below its caller's span is answered; its spans have the `attributes`."""
    token = _call.set(TracedCall(writer, parent, attributes, is_draining))
    try:
        yield
    finally:
        _call.reset(token)


def call_span(name: str) -> AbstractContextManager[Span | None]:
    """The block is a span below the caller's, if that is sampled."""
    call = _call.get()
    if call is None or call.parent is None or not call.parent.is_sampled:
        return nullcontext()
    return _recorded(call, Span(name, SpanContext.below(call.parent), call.parent, is_call=True))


def turn_span(name: str, *, is_call: bool = False) -> AbstractContextManager[Span | None]:
    """The block is a span below the caller's, or else begins a trace of its own; None where it is not sampled."""
    call = _call.get()
    if call is None:
        return nullcontext()
    if (parent := call.parent) is not None:
        context = SpanContext.below(parent)
    else:
        trace_id = secrets.token_hex(16)
        context = SpanContext(trace_id, secrets.token_hex(8), call.writer.samples(trace_id))
    return _recorded(call, Span(name, context, parent, is_call)) if context.is_sampled else nullcontext()


@contextmanager
def _recorded(call: TracedCall, span: Span) -> Iterator[Span]:
    span.attributes |= call.attributes
    token = _span.set(span)
    try:
        yield span
    except BaseException as failure:
        error = most_telling(failure)
        if not isinstance(error, Cancelled):
            span.failure = "internal error" if error is None else f"{error.code.name} {error.reason}"
        elif call.is_draining():
            span.event("drained")
        else:
            span.event("cancelled")
        raise
    finally:
        _span.reset(token)
        span.ended_at = max(span.began_at, time.perf_counter())
        call.writer.write(span)
