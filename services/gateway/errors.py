"""Refusals in the form that OpenAI's clients know."""

from dataclasses import dataclass
from typing import Any

import grpc
from fastapi import Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse

from client.errors import MeshError

# HTTP status and OpenAI's error type of each code that the mesh answers with.
ANSWERS: dict[grpc.StatusCode, tuple[int, str]] = {
    grpc.StatusCode.INVALID_ARGUMENT: (400, "invalid_request_error"),
    grpc.StatusCode.OUT_OF_RANGE: (400, "invalid_request_error"),
    grpc.StatusCode.UNAUTHENTICATED: (401, "authentication_error"),
    grpc.StatusCode.PERMISSION_DENIED: (403, "permission_error"),
    grpc.StatusCode.NOT_FOUND: (404, "invalid_request_error"),
    grpc.StatusCode.ALREADY_EXISTS: (409, "invalid_request_error"),
    grpc.StatusCode.FAILED_PRECONDITION: (409, "invalid_request_error"),
    grpc.StatusCode.RESOURCE_EXHAUSTED: (429, "rate_limit_error"),
    grpc.StatusCode.UNAVAILABLE: (503, "server_error"),
    grpc.StatusCode.DEADLINE_EXCEEDED: (504, "server_error"),
}
OTHERWISE = (500, "server_error")


@dataclass
class Refusal(Exception):
    """A request that is not done: HTTP status, OpenAI's error type, what was expected and what came.

    `param` is the field that is wrong; `code` a word for programs; `retry_seconds` when to try again.
    """

    status: int
    type: str
    message: str
    param: str | None = None
    code: str | None = None
    retry_seconds: float | None = None

    @property
    def body(self) -> dict[str, Any]:
        """The error as OpenAI's clients read it."""
        return {"message": self.message, "type": self.type, "param": self.param, "code": self.code}

    def response(self) -> JSONResponse:
        """The HTTP response."""
        headers = {} if self.retry_seconds is None else {"Retry-After": str(max(1, round(self.retry_seconds)))}
        return JSONResponse({"error": self.body}, self.status, headers)


def invalid(message: str, param: str | None = None, code: str | None = None) -> Refusal:
    """A request that is wrong in itself."""
    return Refusal(400, "invalid_request_error", message, param, code)


def mesh_refusal(error: MeshError) -> Refusal:
    """What the mesh has refused, or could not do."""
    status, kind = ANSWERS.get(error.code, OTHERWISE)
    message = "no orchestrator can be reached" if error.reason == "UNREACHABLE" else error.message  # nor where it is
    return Refusal(status, kind, message, error.field, error.reason.lower() or None, error.retry_seconds)


async def answer_refusal(_request: Request, error: Exception) -> JSONResponse:
    """The response to a Refusal."""
    assert isinstance(error, Refusal)
    return error.response()


async def answer_mesh_error(_request: Request, error: Exception) -> JSONResponse:
    """The response where the mesh refuses."""
    assert isinstance(error, MeshError)
    return mesh_refusal(error).response()


async def answer_wrong_request(_request: Request, error: Exception) -> JSONResponse:
    """The response to a body, path or query that is not as the OpenAPI document has it."""
    assert isinstance(error, RequestValidationError)
    first = error.errors()[0]
    place = ".".join(str(part) for part in first["loc"] if part not in ("body", "query", "path"))
    message = first["msg"].removeprefix("Value error, ")
    return invalid(f"{place}: {message}" if place else message, place or None).response()


async def answer_http_error(_request: Request, error: Exception) -> JSONResponse:
    """The response to what no route takes."""
    assert isinstance(error, HTTPException)
    return Refusal(error.status_code, "invalid_request_error", str(error.detail)).response()
