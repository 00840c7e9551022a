"""Errors that cross the wire: raised by services, carried as google.rpc.Status, restored at the caller."""

from collections.abc import Iterator
from typing import ClassVar

import grpc
from google.protobuf.message import DecodeError
from google.rpc import error_details_pb2, status_pb2
from grpc_status import rpc_status

DOMAIN = "chroma-mesh"
# A status travels in HTTP/2 trailers, which peers limit to some KiB and which carry the message twice.
TEXT_LIMIT = 800


class MeshError(Exception):
    """A failure that a caller is told about: gRPC code, reason (UPPER_SNAKE), message, wrong field, further facts."""

    status_code: ClassVar[grpc.StatusCode] = grpc.StatusCode.UNKNOWN

    def __init__(self, message: str, *, reason: str | None = None, field: str | None = None, **metadata: str) -> None:
        super().__init__(message)
        self.code: grpc.StatusCode = self.status_code
        self.message = message
        self.reason = reason or self.code.name
        self.field = field
        self.metadata = metadata

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
    """The error as google.rpc.Status with one ErrorInfo, and BadRequest where a field is wrong."""
    message = _shorten(error.message)
    status = status_pb2.Status(code=error.code.value[0], message=message)
    metadata = {key: _shorten(value) for key, value in error.metadata.items()}
    status.details.add().Pack(error_details_pb2.ErrorInfo(reason=error.reason, domain=DOMAIN, metadata=metadata))
    if error.field is not None:
        violation = error_details_pb2.BadRequest.FieldViolation(field=_shorten(error.field), description=message)
        status.details.add().Pack(error_details_pb2.BadRequest(field_violations=[violation]))
    return status


def from_rpc_error(error: grpc.aio.AioRpcError) -> MeshError:
    """The error that the peer raised; one without details (a lost connection, say) has its code's name as reason."""
    code, message = error.code(), error.details() or error.code().name.lower()
    kinds = {kind.status_code: kind for kind in MeshError.__subclasses__()}
    restored = kinds.get(code, MeshError)(message)
    restored.code, restored.reason = code, code.name
    try:
        status = rpc_status.from_call(error)
    except (ValueError, DecodeError):  # details of a foreign server that contradict its status, or are none of ours
        return restored
    info, bad_request = error_details_pb2.ErrorInfo(), error_details_pb2.BadRequest()
    for detail in status.details if status is not None else ():
        if detail.Unpack(info):
            restored.reason, restored.metadata = info.reason, dict(info.metadata)
        elif detail.Unpack(bad_request) and bad_request.field_violations:
            restored.field = bad_request.field_violations[0].field
    return restored


def most_telling(failure: BaseException) -> MeshError | None:
    """The MeshError to answer with when `failure` (one exception, or a task group's) ended a call.

    None when it holds anything that is neither a MeshError nor a cancellation: a bug, which is INTERNAL.
    """
    leaves = [leaf for leaf in _leaves(failure) if _is_ours(leaf) or not _is_cancellation(leaf)]
    errors = [leaf for leaf in leaves if isinstance(leaf, MeshError)]
    if not errors or len(errors) < len(leaves):
        return None
    return min(errors, key=_rank)


def _leaves(failure: BaseException) -> Iterator[BaseException]:
    if isinstance(failure, BaseExceptionGroup):
        for member in failure.exceptions:
            yield from _leaves(member)
    else:
        yield failure


def _rank(error: MeshError) -> int:
    # What we broke explains more than what the caller did wrong, and both explain why a stream ended early.
    if isinstance(error, Internal):
        return 0
    if isinstance(error, Cancelled):
        return 3 if error.reason == "ABANDONED" else 2
    return 1


def _is_ours(failure: BaseException) -> bool:
    return isinstance(failure, MeshError)


def _is_cancellation(failure: BaseException) -> bool:
    import asyncio

    return isinstance(failure, asyncio.CancelledError)


def _shorten(text: str) -> str:
    return text if len(text) <= TEXT_LIMIT else f"{text[:TEXT_LIMIT]}…"
