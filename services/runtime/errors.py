"""Errors that cross the wire: raised by services, carried as google.rpc.Status, restored at the caller."""

import asyncio
from collections.abc import Iterator
from typing import ClassVar

import grpc
from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import DecodeError
from google.rpc import error_details_pb2, status_pb2
from grpc_status import rpc_status

DOMAIN = "chroma-mesh"
# A status travels in HTTP/2 trailers, which peers limit to 8 KiB and in which the message stands up to three times.
MESSAGE_LIMIT_BYTES = 600
FACT_LIMIT_BYTES = 200


class MeshError(Exception):
    """A failure that a caller is told about: gRPC code, reason (UPPER_SNAKE), message, wrong field, further facts.

    `retry_seconds` is when to try again, where that is known. Texts beyond what fits into a status are cut.
    """

    status_code: ClassVar[grpc.StatusCode] = grpc.StatusCode.UNKNOWN

    def __init__(
        self,
        message: str,
        *,
        reason: str | None = None,
        field: str | None = None,
        retry_seconds: float | None = None,
        **metadata: str,
    ) -> None:
        self.code: grpc.StatusCode = self.status_code
        self.message = _cut(message, MESSAGE_LIMIT_BYTES)
        self.reason = reason or self.code.name
        self.field = None if field is None else _cut(field, FACT_LIMIT_BYTES)
        self.retry_seconds = retry_seconds
        self.metadata = {key: _cut(value, FACT_LIMIT_BYTES) for key, value in metadata.items()}
        super().__init__(self.message)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.message!r}, code={self.code.name}, reason={self.reason!r})"


class InvalidArgument(MeshError):
    """What came is malformed, out of order, of the wrong shape or too long; never retry."""

    status_code = grpc.StatusCode.INVALID_ARGUMENT


class NotFound(MeshError):
    """What was named does not exist."""

    status_code = grpc.StatusCode.NOT_FOUND


class AlreadyExists(MeshError):
    """The name is taken."""

    status_code = grpc.StatusCode.ALREADY_EXISTS


class FailedPrecondition(MeshError):
    """The thing exists, but this may not be done to it."""

    status_code = grpc.StatusCode.FAILED_PRECONDITION


class Unavailable(MeshError):
    """This replica is full, loading, draining or gone; retry at another one."""

    status_code = grpc.StatusCode.UNAVAILABLE


class ResourceExhausted(MeshError):
    """The caller is over its quota; retry later."""

    status_code = grpc.StatusCode.RESOURCE_EXHAUSTED


class DeadlineExceeded(MeshError):
    """Too late, or idle for too long."""

    status_code = grpc.StatusCode.DEADLINE_EXCEEDED


class Cancelled(MeshError):
    """The caller cancelled (reason CANCELLED) or its input stopped without `end` (reason ABANDONED)."""

    status_code = grpc.StatusCode.CANCELLED


class Aborted(MeshError):
    """Something else has taken the place of this call."""

    status_code = grpc.StatusCode.ABORTED


class Internal(MeshError):
    """Non-finite values or another broken invariant of ours."""

    status_code = grpc.StatusCode.INTERNAL


class Unauthenticated(MeshError):
    """No key was given."""

    status_code = grpc.StatusCode.UNAUTHENTICATED


class PermissionDenied(MeshError):
    """The key that was given does not open this."""

    status_code = grpc.StatusCode.PERMISSION_DENIED


def to_rpc_status(error: MeshError) -> status_pb2.Status:
    """The error as google.rpc.Status with one ErrorInfo, BadRequest where a field is wrong, RetryInfo with a delay."""
    status = status_pb2.Status(code=error.code.value[0], message=error.message)
    status.details.add().Pack(error_details_pb2.ErrorInfo(reason=error.reason, domain=DOMAIN, metadata=error.metadata))
    if error.field is not None:
        violation = error_details_pb2.BadRequest.FieldViolation(field=error.field, description=error.message)
        status.details.add().Pack(error_details_pb2.BadRequest(field_violations=[violation]))
    if error.retry_seconds is not None:
        delay = Duration()
        delay.FromNanoseconds(round(error.retry_seconds * 1e9))
        status.details.add().Pack(error_details_pb2.RetryInfo(retry_delay=delay))
    return status


def from_rpc_error(error: grpc.aio.AioRpcError) -> MeshError:
    """The error that the peer raised; one without details (a lost connection, say) has its code's name as reason."""
    code, message = error.code(), error.details() or error.code().name.lower()
    info, field, retry_seconds = _details(error)
    if code is grpc.StatusCode.CANCELLED and info is None:
        # Whoever cancels a call itself sees asyncio.CancelledError. This is grpc's answer to a call that reached a
        # server which is being shut down, before its connection's end did.
        return Unavailable("the server is shutting down", reason="DRAINING")
    kinds = {kind.status_code: kind for kind in MeshError.__subclasses__()}
    restored = kinds.get(code, MeshError)(message, field=field, retry_seconds=retry_seconds)
    restored.code, restored.reason = code, code.name
    if info is not None:
        restored.reason, restored.metadata = info.reason, dict(info.metadata)
    return restored


def _details(error: grpc.aio.AioRpcError) -> tuple[error_details_pb2.ErrorInfo | None, str | None, float | None]:
    try:
        status = rpc_status.from_call(error)
    except (ValueError, DecodeError):  # of a foreign server: they contradict its status, or are none of ours
        return None, None, None
    found, field, retry_seconds = None, None, None
    info, bad_request, retry = (
        error_details_pb2.ErrorInfo(), error_details_pb2.BadRequest(), error_details_pb2.RetryInfo(),
    )  # fmt: skip
    for detail in status.details if status is not None else ():
        if detail.Unpack(info):
            found = info
        elif detail.Unpack(bad_request) and bad_request.field_violations:
            field = bad_request.field_violations[0].field
        elif detail.Unpack(retry):
            retry_seconds = retry.retry_delay.ToNanoseconds() / 1e9
    return found, field, retry_seconds


def most_telling(failure: BaseException) -> MeshError | None:
    """What to answer when `failure` (one exception, or a task group's) ended a call.

    None when anything in it is a bug: neither a MeshError, nor a cancellation, nor grpc's own sign of a lost call.
    """
    errors = [_as_mesh_error(leaf) for leaf in _leaves(failure)]
    known = [error for error in errors if error is not None]
    return min(known, key=_rank) if len(known) == len(errors) else None


def _leaves(failure: BaseException) -> Iterator[BaseException]:
    if isinstance(failure, BaseExceptionGroup):
        for member in failure.exceptions:
            yield from _leaves(member)
    else:
        yield failure


def _as_mesh_error(failure: BaseException) -> MeshError | None:
    match failure:
        case MeshError():
            return failure
        case asyncio.CancelledError():
            return Cancelled("the call was cancelled")
        case grpc.aio.InternalError():  # a read or a write on a call that is gone
            return Cancelled("the call was lost", reason="ABANDONED")
        case _:
            return None


def _rank(error: MeshError) -> int:
    # What we broke explains more than what the caller did wrong, and both explain more than that a stream ended early.
    match error:
        case Internal():
            return 0
        case Cancelled():
            return 3 if error.reason == "ABANDONED" else 2
        case _:
            return 1


def _cut(text: str, limit_bytes: int) -> str:
    data = text.encode()
    return text if len(data) <= limit_bytes else f"{data[:limit_bytes].decode(errors='ignore')}…"
