"""A line in the log, an id, a count and a span for every request."""

import secrets
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import structlog
from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from services.gateway.departure import CLIENT_GONE
from services.gateway.drain import WITHOUT_WORK
from services.gateway.errors import Refusal
from services.gateway.metrics import GatewayMetrics
from services.runtime.interceptors import with_ids
from services.runtime.tracing import SpanContext, SpanWriter, current_span, new_traceparent, traced_call, turn_span

REQUEST_ID_HEADER = "x-request-id"


class RequestLog:
    """ASGI middleware that gives each request an id, tells it (`x-request-id`), and logs and counts what came of it.

    What was asked and answered is in no line: neither body nor query, no header, and of the path only which route it
    is. A handler may add to the line by `scope["state"]["log"]`, with ids. An error of ours is logged with its trace,
    and answered with 500.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        metrics: GatewayMetrics,
        writer: SpanWriter | None,
        is_draining: Callable[[], bool],
    ) -> None:
        """`writer` is where the spans of requests go; those of a socket's responses are its own matter."""
        self._app = app
        self._metrics = metrics
        self._writer = writer
        self._is_draining = is_draining

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers a request; carries a socket, which it only gives an id."""
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        request_id = f"req_{secrets.token_hex(12)}"
        with structlog.contextvars.bound_contextvars(request_id=request_id), self._traced(request_id, scope):
            if scope["type"] == "websocket":
                await self._app(scope, receive, send)
            else:
                await self._answer(request_id, scope, receive, send)

    @contextmanager
    def _traced(self, request_id: str, scope: Scope) -> Iterator[None]:
        """The turns of the request or the socket belong to the trace of who asks, or else a request begins one."""
        parent = SpanContext.read(Headers(scope=scope).get("traceparent", ""))
        traceparent = None if parent is None else parent.traceparent
        if self._writer is None or scope["type"] == "websocket" or scope["path"] in WITHOUT_WORK:
            with with_ids(traceparent=traceparent):
                yield
            return
        facts = {"chroma.request_id": request_id, "http.request.method": scope["method"]}
        with (
            traced_call(self._writer, parent, facts, is_draining=self._is_draining),
            turn_span("request", is_call=True) as span,
            # Of a request that is not chosen here, the orchestrator does not choose the turn either.
            with_ids(traceparent=(traceparent or new_traceparent()) if span is None else span.context.traceparent),
        ):
            yield

    async def _answer(self, request_id: str, scope: Scope, receive: Receive, send: Send) -> None:
        began_at = time.perf_counter()
        ids = scope.setdefault("state", {}).setdefault("log", {})
        status, is_complete = CLIENT_GONE, False

        async def told(message: Message) -> None:
            nonlocal status, is_complete
            if message["type"] == "http.response.start":
                status = message["status"]
                MutableHeaders(scope=message)[REQUEST_ID_HEADER] = request_id
            elif message["type"] == "http.response.body":
                is_complete = not message.get("more_body", False)
            await send(message)

        log = structlog.get_logger()
        with self._metrics.open_request():
            try:
                await self._app(scope, receive, told)
            except Exception:
                log.exception("request failed")
                if status != CLIENT_GONE:  # it has begun to be answered: the connection is cut
                    raise
                failed = Refusal(500, "server_error", "the gateway failed; its log says why", code="internal_error")
                await failed.response()(scope, receive, told)
        seconds = time.perf_counter() - began_at
        status = status if is_complete else CLIENT_GONE
        route = getattr(scope.get("route"), "path", None)
        self._metrics.count_request(route, scope["method"], status, seconds)
        if (span := current_span()) is not None:
            span.attributes |= {"http.response.status_code": status} | ({} if route is None else {"http.route": route})
            if status >= 500:
                span.failure = f"status {status}"
        if scope["path"] not in WITHOUT_WORK:
            log.info("request", method=scope["method"], route=route, status=status, seconds=round(seconds, 4), **ids)
