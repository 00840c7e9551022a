"""What every call of every service goes through: admission, ids, and errors made into statuses."""

import asyncio
import os
import re
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import AbstractContextManager, asynccontextmanager, contextmanager, nullcontext
from contextvars import ContextVar
from dataclasses import asdict, dataclass, replace
from enum import Enum
from functools import partial
from typing import Any

import grpc
import structlog
from google.protobuf.message import DecodeError
from grpc_health.v1 import health
from grpc_reflection.v1alpha import reflection
from grpc_status import rpc_status

from services.runtime.api_keys import Caller, Metadata, admit_anybody, with_caller
from services.runtime.errors import (
    Cancelled,
    Internal,
    InvalidArgument,
    MeshError,
    PermissionDenied,
    Unavailable,
    most_telling,
    to_rpc_status,
)
from services.runtime.tracing import SpanWriter, incoming_parent, new_traceparent, traced_call

# Answered at all times, whatever state the service is in.
ALWAYS_OPEN = (health.SERVICE_NAME, reflection.SERVICE_NAME)
# So often a stream asks whether its key still opens it.
ASK_AGAIN_SECONDS = 5.0
# In the initial metadata of an answer: who gives it.
REPLICA_KEY = "x-replica"
SESSION_ID = re.compile(r"[!-~]{1,128}")
TURN_INDEX = re.compile(r"[0-9]{1,9}")

Behavior = Callable[[Any, Any], Awaitable[Any]]
# Who makes a call of a method with this metadata; raises Unauthenticated or PermissionDenied.
Admit = Callable[[str, Metadata], Caller]


@dataclass(frozen=True)
class Ids:
    """What a call belongs to; None where it is unknown."""

    session_id: str | None = None
    turn_index: int | None = None
    traceparent: str | None = None


_ids: ContextVar[Ids] = ContextVar("ids", default=Ids())  # noqa: B039 - Ids is frozen


def current_ids() -> Ids:
    """The ids of the running call."""
    return _ids.get()


@contextmanager
def with_ids(
    *, session_id: str | None = None, turn_index: int | None = None, traceparent: str | None = None
) -> Iterator[Ids]:
    """Within the block, these ids go out with every call and are in every log line, of the traceparent its trace's.

    One left out stays as it was.
    """
    given = {"session_id": session_id, "turn_index": turn_index, "traceparent": traceparent}
    given = {name: value for name, value in given.items() if value is not None}
    ids = replace(_ids.get(), **given)  # type: ignore[arg-type]
    logged = {name: value for name, value in given.items() if name != "traceparent"}
    if traceparent is not None:
        logged["trace_id"] = traceparent.split("-")[1]
    token = _ids.set(ids)
    try:
        with structlog.contextvars.bound_contextvars(**logged):
            yield ids
    finally:
        _ids.reset(token)


def outgoing_metadata() -> tuple[tuple[str, str], ...]:
    """The current ids as call metadata."""
    ids = current_ids()
    pairs = (("x-session-id", ids.session_id), ("x-turn-index", ids.turn_index), ("traceparent", ids.traceparent))
    return tuple((key, str(value)) for key, value in pairs if value is not None)


def incoming_ids(metadata: Sequence[tuple[str, str | bytes]]) -> Ids:
    """The ids that came with a call.

    Ids only describe, so a malformed one is left out rather than refused. A trace is begun where none came.
    """
    found = {key: value for key, value in metadata if isinstance(value, str)}
    session_id, turn_index = found.get("x-session-id", ""), found.get("x-turn-index", "")
    parent = incoming_parent(metadata)
    return Ids(
        session_id=session_id if SESSION_ID.fullmatch(session_id) else None,
        turn_index=int(turn_index) if TURN_INDEX.fullmatch(turn_index) else None,
        traceparent=new_traceparent() if parent is None else parent.traceparent,
    )


class Phase(Enum):
    """Where a service is in its life; the value is what a refused caller is told."""

    LOADING = "the service is loading"
    SERVING = "the service answers calls"
    DRAINING = "the service is shutting down"


class Gate:
    """Lets calls in while the service is serving, ends those that outstay it, and knows when the last one has ended."""

    def __init__(self) -> None:
        self.phase = Phase.LOADING
        self._open_calls = 0
        self._idle = asyncio.Event()
        self._idle.set()
        self._working: set[asyncio.Timeout] = set()

    @contextmanager
    def count(self) -> Iterator[None]:
        """Counts the block as an open call."""
        self._open_calls += 1
        self._idle.clear()
        try:
            yield
        finally:
            self._open_calls -= 1
            if self._open_calls == 0:
                self._idle.set()

    @asynccontextmanager
    async def pass_through(self) -> AsyncIterator[None]:
        """The block in which a call's work is done.

        Raises Unavailable, reason LOADING or DRAINING, at its begin unless the service is serving, and reason DRAINING
        at any await within once the call is handed over.
        """
        if self.phase is not Phase.SERVING:
            raise Unavailable(self.phase.value, reason=self.phase.name)
        limit = asyncio.timeout(None)
        try:
            async with limit:
                self._working.add(limit)
                try:
                    yield
                finally:
                    self._working.discard(limit)
        except TimeoutError:
            if limit.expired():
                raise Unavailable(f"{Phase.DRAINING.value} before this call ended", reason="DRAINING") from None
            raise

    def hand_over(self) -> None:
        """Ends the calls at work: their callers go on at another replica."""
        now = asyncio.get_running_loop().time()
        for limit in self._working:
            limit.reschedule(now)

    async def until_idle(self) -> None:
        """Returns when no call is open."""
        await self._idle.wait()


def replica_name() -> str:
    """What this process is called among the replicas of its service."""
    return f"{socket.gethostname()}-{os.getpid()}"


class NamingContext:
    """A call's context that adds metadata to what is sent ahead of the first message."""

    def __init__(self, context: Any, metadata: tuple[tuple[str, str], ...]) -> None:
        self._context = context
        self._metadata = metadata
        self._is_sent = False

    async def send_initial_metadata(self, metadata: Sequence[tuple[str, str | bytes]] = ()) -> None:
        """As in grpc."""
        self._is_sent = True
        await self._context.send_initial_metadata((*metadata, *self._metadata))

    async def write(self, message: Any) -> None:
        """As in grpc."""
        if not self._is_sent:
            await self.send_initial_metadata()
        await self._context.write(message)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._context, name)


class CallInterceptor(grpc.aio.ServerInterceptor):
    """Wraps the handlers of the mesh's services; health and reflection stay as they are, and ask for no key."""

    def __init__(
        self, gate: Gate, *, stage: str, admit: Admit = admit_anybody, writer: SpanWriter | None = None
    ) -> None:
        """`writer` is where the spans of calls go."""
        self._gate = gate
        self._writer = writer
        self._admit = admit
        self._name = ((REPLICA_KEY, replica_name()),)
        self._log = structlog.get_logger().bind(stage=stage)

    async def intercept_service(
        self, continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Any]], handler_call_details: Any
    ) -> Any:
        """The method's handler, wrapped."""
        handler, method = await continuation(handler_call_details), handler_call_details.method
        if handler is None or method.split("/")[1] in ALWAYS_OPEN:
            return handler
        wire = {
            "request_deserializer": partial(_read, handler.request_deserializer),
            "response_serializer": handler.response_serializer,
        }
        if handler.stream_stream is not None:
            stream = partial(self._stream, handler.stream_stream, method)
            return grpc.stream_stream_rpc_method_handler(self._guard(method, stream), **wire)
        if handler.unary_unary is not None:
            unary = partial(self._unary, handler.unary_unary)
            # The same on the wire. grpc.aio reads the message of a unary method before it asks anybody: one that cannot
            # be read is UNKNOWN then, with a trace, and a call that has none is never answered.
            return grpc.stream_unary_rpc_method_handler(self._guard(method, unary), **wire)
        raise TypeError(f"{method} must be unary or bidirectional")

    # Metadata ahead of an error would make it an answer, after which gRPC tries no other replica.

    async def _unary(self, behavior: Behavior, requests: Any, context: Any) -> Any:
        request = await anext(aiter(requests), None)
        if request is None:
            raise Cancelled("the input stopped before the request", reason="ABANDONED")
        response = await behavior(request, context)
        await context.send_initial_metadata(self._name)
        return response

    async def _stream(self, behavior: Behavior, method: str, requests: Any, context: Any) -> None:
        if self._admit is admit_anybody:
            await behavior(requests, NamingContext(context, self._name))
            return
        async with asyncio.TaskGroup() as tasks:
            watching = tasks.create_task(self._until_revoked(method, tuple(context.invocation_metadata() or ())))
            await behavior(requests, NamingContext(context, self._name))
            watching.cancel()

    async def _until_revoked(self, method: str, metadata: Metadata) -> None:
        """Raises PermissionDenied, reason KEY_REVOKED, once the key does not open the method any more."""
        while True:
            await asyncio.sleep(ASK_AGAIN_SECONDS)
            try:
                self._admit(method, metadata)
            except PermissionDenied as refusal:
                raise PermissionDenied(
                    f"the API key was good when the call began and is not any more: {refusal.message}",
                    reason="KEY_REVOKED",
                ) from None

    def _guard(self, method: str, behavior: Behavior) -> Any:
        async def guarded(request: Any, context: grpc.aio.ServicerContext[Any, Any]) -> Any:
            metadata = tuple(context.invocation_metadata() or ())
            ids = incoming_ids(metadata)
            with self._gate.count(), with_ids(**asdict(ids)), self._traced(metadata, ids):
                try:
                    async with self._gate.pass_through():
                        with with_caller(self._admit(method, metadata)):
                            return await behavior(request, context)
                except (Exception, BaseExceptionGroup) as failure:
                    error = self._explain(method, failure)
                # On a call that is gone this raises as well; grpc knows why and stays silent.
                return await context.abort_with_status(rpc_status.to_status(to_rpc_status(error)))

        return guarded

    def _traced(self, metadata: Metadata, ids: Ids) -> AbstractContextManager[None]:
        if self._writer is None:
            return nullcontext()
        facts = {"chroma.session_id": ids.session_id, "chroma.turn_index": ids.turn_index}
        return traced_call(
            self._writer,
            incoming_parent(metadata),
            {name: value for name, value in facts.items() if value is not None},
            is_draining=lambda: self._gate.phase is Phase.DRAINING,
        )

    def _explain(self, method: str, failure: BaseException) -> MeshError:
        error = most_telling(failure)
        if error is None:
            self._log.error("call failed", method=method, exc_info=failure)
            return Internal("internal error")
        facts = {"method": method, "code": error.code.name, "reason": error.reason, "detail": error.message}
        match error:
            case Internal():
                self._log.error("call failed", exc_info=failure, **facts)
            case Cancelled():
                self._log.debug("call cancelled", **facts)
            case _:
                self._log.info("call refused", **facts)
        return error


def _read(deserialize: Callable[[bytes], Any], data: bytes) -> Any:
    try:
        return deserialize(data)
    except DecodeError as error:
        raise InvalidArgument(
            "a message must be one that the method takes, got bytes that are none", reason="MALFORMED"
        ) from error
