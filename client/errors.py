"""What can go wrong, said in one sentence each."""

from typing import ClassVar

import grpc
from google.rpc import error_details_pb2
from grpc_status import rpc_status


class ClientError(Exception):
    """Something a user is told in one sentence; the CLI prints it and exits with `exit_status`."""

    exit_status: ClassVar[int] = 1


class InputError(ClientError):
    """What the user gave cannot be used: a file, a folder or an option."""

    exit_status = 2


class MeshError(ClientError):
    """The mesh refused or lost a call.

    `code` is the gRPC status code; `reason` is UPPER_SNAKE and meant for programs (INDEX_GAP, LOADING, …; UNREACHABLE
    when nothing answers at the address); `field` is the path of the wrong request field, where there is one.
    """

    def __init__(self, code: grpc.StatusCode, reason: str, message: str, field: str | None = None) -> None:
        super().__init__(message)
        self.code = code
        self.reason = reason
        self.message = message
        self.field = field


def from_rpc_error(error: grpc.aio.AioRpcError, address: str, *, was_open: bool = False) -> MeshError:
    """The error of a call to `address` with the details the mesh attached; `was_open` when it had answered before."""
    reason, field = "", None
    try:
        status = rpc_status.from_call(error)
    except ValueError:  # the attached status contradicts the plain one: believe the plain one
        status = None
    for detail in status.details if status else ():
        info, bad_request = error_details_pb2.ErrorInfo(), error_details_pb2.BadRequest()
        if detail.Unpack(info):
            reason = info.reason
        elif detail.Unpack(bad_request) and bad_request.field_violations:
            field = bad_request.field_violations[0].field
    details = error.details() or ""
    if reason:
        return MeshError(error.code(), reason, details, field)
    if error.code() is grpc.StatusCode.UNAVAILABLE:  # without details of ours: the transport says it, not the mesh
        cause = details.rsplit(": ", 1)[-1].strip("[]")
        message = f"nothing answers at {address} ({cause}); 'chroma-mesh up' starts a mesh on this machine"
        lost = f"the connection to {address} was lost ({cause})"
        return MeshError(error.code(), "UNREACHABLE", lost if was_open else message)
    name = error.code().name
    return MeshError(error.code(), name, f"the mesh at {address} answered {name}: {details or 'no details'}")
