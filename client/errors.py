"""What can go wrong, said in one sentence each."""

import re
from typing import ClassVar

import grpc
from google.rpc import error_details_pb2
from grpc_status import rpc_status

# How grpc says that a certificate is no good.
DOUBT = re.compile(r"CERTIFICATE_VERIFY_FAILED: ([^:\]]+)|Hostname Verification Check failed")


class ClientError(Exception):
    """Something a user is told in one sentence; the CLI prints it and exits with `exit_status`."""

    exit_status: ClassVar[int] = 1


class InputError(ClientError):
    """What the user gave cannot be used: a file, a folder or an option."""

    exit_status = 2


class MeshError(ClientError):
    """The mesh refused or lost a call.

    `code` is the gRPC status code; `reason` is UPPER_SNAKE and meant for programs (INDEX_GAP, LOADING, …; UNREACHABLE
    when nothing answers at the address, UNTRUSTED when what answers has no good certificate); `field` is the path of
    the wrong request field, where there is one; `retry_seconds` is when to try again, where the mesh says.
    """

    def __init__(
        self,
        code: grpc.StatusCode,
        reason: str,
        message: str,
        field: str | None = None,
        retry_seconds: float | None = None,
    ) -> None:
        super().__init__(message)
        self.code = code
        self.reason = reason
        self.message = message
        self.field = field
        self.retry_seconds = retry_seconds


def from_rpc_error(error: grpc.aio.AioRpcError, address: str, *, was_open: bool = False) -> MeshError:
    """The error of a call to `address` with the details the mesh attached; `was_open` when it had answered before."""
    reason, field, retry_seconds = "", None, None
    try:
        status = rpc_status.from_call(error)
    except ValueError:  # the attached status contradicts the plain one: believe the plain one
        status = None
    for detail in status.details if status else ():
        info, bad_request = error_details_pb2.ErrorInfo(), error_details_pb2.BadRequest()
        retry = error_details_pb2.RetryInfo()
        if detail.Unpack(info):
            reason = info.reason
        elif detail.Unpack(bad_request) and bad_request.field_violations:
            field = bad_request.field_violations[0].field
        elif detail.Unpack(retry):
            retry_seconds = retry.retry_delay.ToNanoseconds() / 1e9
    details = error.details() or ""
    if reason:
        return MeshError(error.code(), reason, details, field, retry_seconds)
    if (doubt := DOUBT.search(details)) is not None:
        why = (doubt[1] or "it is made out to another name").strip()
        return MeshError(error.code(), "UNTRUSTED", f"the certificate of {address} is not trusted: {why}")
    if error.code() is grpc.StatusCode.UNAVAILABLE:  # without details of ours: the transport says it, not the mesh
        cause = details.rsplit(": ", 1)[-1].strip("[]")
        message = f"nothing answers at {address} ({cause}); 'chroma-mesh up' starts a mesh on this machine"
        lost = f"the connection to {address} was lost ({cause})"
        return MeshError(error.code(), "UNREACHABLE", lost if was_open else message)
    name = error.code().name
    return MeshError(error.code(), name, f"the mesh at {address} answered {name}: {details or 'no details'}")


def first_cause(group: BaseExceptionGroup[BaseException]) -> BaseException:
    """The exception that made the others of a group happen."""
    error: BaseException = group
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error
