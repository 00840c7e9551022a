"""Calls whose messages come in any order, and that are left in any way; and what must hold of how they end."""

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass
from typing import Any, Literal

import grpc
from google.protobuf.message import Message
from google.rpc import error_details_pb2
from grpc import StatusCode
from grpc_status import rpc_status
from hypothesis import strategies as st
from hypothesis.strategies import DrawFn, SearchStrategy
from structlog.testing import capture_logs

from services.orchestrator.call_ending import CallEnding
from services.runtime.errors import DOMAIN, from_rpc_error
from tests.contract.fuzzed_messages import any_message, spoilt

# What a call may end with. INTERNAL is for values that are not finite, and only where a test says so.
STATUSES = {
    StatusCode.OK, StatusCode.INVALID_ARGUMENT, StatusCode.NOT_FOUND, StatusCode.ALREADY_EXISTS,
    StatusCode.FAILED_PRECONDITION, StatusCode.UNAVAILABLE, StatusCode.RESOURCE_EXHAUSTED, StatusCode.DEADLINE_EXCEEDED,
    StatusCode.CANCELLED, StatusCode.UNAUTHENTICATED, StatusCode.PERMISSION_DENIED,
}  # fmt: skip
# Reasons of INVALID_ARGUMENT that are about more than a field.
WITHOUT_FIELD = {"DATA_AFTER_END", "EMPTY_TURN", "MALFORMED", "REFUSED", "TOO_LONG"}
# No call of these takes so long.
HANG_SECONDS = 20.0
# A server that waits for more input says nothing for so long; then the client half-closes.
LINGER_SECONDS = 0.05

# What a client's writes raise on a call that has ended.
GONE = (grpc.aio.AioRpcError, grpc.aio.InternalError, asyncio.InvalidStateError, asyncio.CancelledError)

Leaving = Literal["half-close", "linger", "cancel", "deadline"]


@dataclass(frozen=True)
class Script:
    """What a client does in one call: it sends these, and leaves."""

    requests: tuple[Message, ...]
    leaving: Leaving = "half-close"
    # After how many messages it cancels, or the deadline that it calls with.
    cancel_after: int = 0
    deadline_seconds: float | None = None

    def _repr_pretty_(self, printer: Any, _cycle: bool) -> None:
        # As much of it as can be read.
        requests = ", ".join(repr(str(request)[:200])[:300] for request in self.requests)
        printer.text(f"Script({self.leaving}, {self.cancel_after}, {self.deadline_seconds}, [{requests[:3000]}])")


@st.composite
def scripts(draw: DrawFn, kind: type[Message], good: SearchStrategy[Sequence[Message]]) -> Script:
    """A good call's messages, some of them spoilt, lost, sent twice or in another order, and any others among them."""
    requests = [*draw(good)]
    for edit in draw(st.lists(st.sampled_from(["spoil", "spoil", "drop", "repeat", "move", "insert"]), max_size=3)):
        at = draw(st.integers(0, max(0, len(requests) - 1)))
        if edit == "insert" or not requests:
            requests.insert(at, draw(any_message(kind)))
            continue
        match edit:
            case "spoil":
                requests[at] = draw(spoilt(requests[at]))
            case "drop":
                del requests[at]
            case "repeat":
                requests.insert(at, requests[at])
            case "move":
                requests.insert(draw(st.integers(0, len(requests) - 1)), requests.pop(at))
    leaving: Leaving = draw(st.sampled_from(["half-close", "half-close", "linger", "cancel", "deadline"]))
    return Script(
        tuple(requests),
        leaving,
        cancel_after=draw(st.integers(0, len(requests))) if leaving == "cancel" else 0,
        deadline_seconds=draw(st.sampled_from([0.0, 0.001, 0.005, 0.02])) if leaving == "deadline" else None,
    )


@dataclass(frozen=True)
class Ended:
    """How a call ended: its answers, and the error of one that ended with another status than OK."""

    code: StatusCode
    answers: list[Any]
    error: grpc.aio.AioRpcError | None = None

    @property
    def reason(self) -> str:
        """The error's reason; empty where the server gave none."""
        status = None if self.error is None else rpc_status.from_call(self.error)
        info = error_details_pb2.ErrorInfo()
        found = [info.reason for detail in (status.details if status else ()) if detail.Unpack(info)]
        assert all(info.domain == DOMAIN for _ in found)
        return found[0] if found else ""

    def check(self) -> None:
        """A refusal has a reason, a sentence, and the field where one is wrong."""
        assert self.code in STATUSES, f"{self.code}: {self.error}"
        if self.error is None or self.code is StatusCode.OK:
            return
        restored = from_rpc_error(self.error)
        assert restored.message, self.error
        assert self.reason, self.error
        if self.code is StatusCode.INVALID_ARGUMENT and self.reason not in WITHOUT_FIELD:
            assert restored.field, self.error


async def play(method: Callable[..., Any], script: Script) -> Ended:
    """Plays a script against a bidirectional method, and checks how the call ended."""
    call = method(timeout=script.deadline_seconds)
    ending, answers = CallEnding(call), []

    async def read() -> grpc.aio.AioRpcError | None:
        try:
            while (answer := await call.read()) is not grpc.aio.EOF:
                answers.append(answer)
        except grpc.aio.AioRpcError as error:
            return await ending.error(error)
        except asyncio.CancelledError:  # the call was
            if not call.cancelled():
                raise
        return None

    async with in_time(script), asyncio.TaskGroup() as tasks:
        reading = tasks.create_task(read())
        for index, request in enumerate(script.requests):
            if script.leaving == "cancel" and index == script.cancel_after:
                break
            with suppress(*GONE):
                await call.write(request)
        if script.leaving == "cancel":
            call.cancel()
        elif script.leaving == "linger":
            await asyncio.wait({reading}, timeout=LINGER_SECONDS)
        with suppress(*GONE):
            await call.done_writing()
        error = await reading
        # Not the call's own code: a write that met the end of a call that went well has made it another.
        code = error.code() if error else StatusCode.CANCELLED if call.cancelled() else StatusCode.OK
    return _checked(script, Ended(code, answers, error))


async def ask(method: Callable[..., Any], request: Message | bytes, deadline_seconds: float | None = None) -> Ended:
    """Calls a unary method, and checks how the call ended."""
    async with in_time(request):
        try:
            ended = Ended(StatusCode.OK, [await method(request, timeout=deadline_seconds)])
        except grpc.aio.AioRpcError as error:
            ended = Ended(error.code(), [], error)
    return _checked(Script((), "half-close" if deadline_seconds is None else "deadline"), ended)


def _checked(script: Script, ended: Ended) -> Ended:
    own = {"cancel": StatusCode.CANCELLED, "deadline": StatusCode.DEADLINE_EXCEEDED}.get(script.leaving)
    if ended.code is not own and not (ended.code is StatusCode.INTERNAL and ended.reason == "NON_FINITE"):
        ended.check()
    return ended


@asynccontextmanager
async def in_time(what: object) -> AsyncIterator[None]:
    """A block that does not hang."""
    try:
        async with asyncio.timeout(HANG_SECONDS):
            yield
    except TimeoutError:
        raise AssertionError(f"hangs: {what}") from None


@contextmanager
def no_bug_logged(*, except_not_finite: bool = False) -> Iterator[None]:
    """Within the block no service answers INTERNAL, be its caller there to hear it or not, and nothing fails beside."""
    with capture_logs() as events, _error_records() as records:
        yield
    failures = [event for event in events if event["log_level"] in ("error", "critical")]
    if except_not_finite:
        failures = [event for event in failures if event.get("reason") != "NON_FINITE"]
    assert not failures, failures
    assert not records, [(record.getMessage(), record.exc_info) for record in records]


@contextmanager
def _error_records() -> Iterator[list[logging.LogRecord]]:
    records: list[logging.LogRecord] = []
    handler = logging.Handler(logging.ERROR)
    # A status that finds its caller gone grpc calls an error of its own.
    handler.addFilter(lambda record: not (record.exc_info and isinstance(record.exc_info[1], grpc.aio.InternalError)))
    handler.emit = records.append  # type: ignore[method-assign]
    root = logging.getLogger()
    root.addHandler(handler)
    try:
        yield records
    finally:
        root.removeHandler(handler)
