"""What the gateway does of a reply, as a span of the turn's trace."""

import time
from typing import Self

from services.runtime.tracing import Span, SpanContext, SpanWriter


class ResponseSpan:
    """From the mesh's word that a reply begins to the last event that the client is told of it; made by `below`.

    It is below the turn's own span, not above it: who speaks to a mesh that listens has no part in when a turn begins,
    and a socket has many of them.
    """

    def __init__(self, span: Span, writer: SpanWriter) -> None:
        self._span = span
        self._writer = writer

    @classmethod
    def below(cls, traceparent: str, writer: SpanWriter | None, session_id: str, response_id: str) -> Self | None:
        """The span of a response that begins now; None where its turn is not traced, or nobody is to be told."""
        parent = SpanContext.read(traceparent)
        if writer is None or parent is None:
            return None
        facts = {"chroma.socket_id": session_id, "chroma.response_id": response_id}
        return cls(Span("response", SpanContext.below(parent), parent, is_call=True, attributes=dict(facts)), writer)

    def first_audio(self) -> None:
        """The first sound is on its way to the client."""
        self._span.event("first_audio")

    def end(self, reason: str, *, failure: str | None) -> None:
        """The client is told the end, with its reason."""
        self._span.attributes["chroma.reason"] = reason
        self._span.failure = failure
        self._span.ended_at = time.perf_counter()
        self._writer.write(self._span)
