"""Refusals in the form that OpenAI's clients know."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import grpc
from fastapi import Request
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel
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

KEY_REASONS = ("NO_KEY", "WRONG_KEY", "KEY_REVOKED")

RETRIED = (429, 503)
"""Answers that tell when to try again."""

RETRY_SECONDS = 1.0
"""When, where nobody knows better."""

WORDS = {400: "malformed_request", 404: "unknown_url", 405: "method_not_allowed", 415: "unsupported_media_type"}
"""The code of what no route takes."""


class ErrorDetails(BaseModel):
    """What is wrong: for people, and for programs. `param` is the field that is."""

    message: str
    type: str
    param: str | None
    code: str | None


class ErrorAnswer(BaseModel):
    """The body of every answer that is no success."""

    error: ErrorDetails


IN_DOCUMENT: dict[int | str, dict[str, Any]] = {
    "4XX": {"model": ErrorAnswer, "description": "the request, or its sender, is refused; the error says why"},
    "5XX": {"model": ErrorAnswer, "description": "the request cannot be answered, or not now; the error says why"},
}
"""How the OpenAPI document tells of it, for every path."""


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
        headers = {}
        if self.retry_seconds is not None or self.status in RETRIED:
            headers["Retry-After"] = str(max(1, round(self.retry_seconds or RETRY_SECONDS)))
        if self.status == 401:
            headers["WWW-Authenticate"] = "Bearer"
        return JSONResponse({"error": self.body}, self.status, headers)


def invalid(message: str, param: str | None = None, code: str | None = None) -> Refusal:
    """A request that is wrong in itself."""
    return Refusal(400, "invalid_request_error", message, param, code)


def mesh_refusal(error: MeshError) -> Refusal:
    """What the mesh has refused, or could not do."""
    if error.reason in KEY_REASONS:  # OpenAI's clients know no key and a wrong one as the same
        return Refusal(401, "authentication_error", error.message, code="invalid_api_key")
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


async def answer_wrong_request(request: Request, error: Exception) -> JSONResponse:
    """The response to a body, path or query that is not as the OpenAPI document has it."""
    assert isinstance(error, RequestValidationError)
    if isinstance(error.body, bytes):  # it was not read: curl, for one, calls everything a form
        sent_as = request.headers.get("content-type") or "no content-type"
        message = f"the body must be JSON, sent as application/json, got {sent_as[:80]!r}"
        return Refusal(415, "invalid_request_error", message, code=WORDS[415]).response()
    return validation_refusal(error).response()


async def answer_http_error(request: Request, error: Exception) -> JSONResponse:
    """The response to what no route takes."""
    assert isinstance(error, HTTPException)
    message = str(error.detail)
    if error.status_code in (404, 405):
        message = f"there is no {request.method} {request.url.path}"
    refusal = Refusal(error.status_code, "invalid_request_error", message, code=WORDS.get(error.status_code))
    response = refusal.response()
    response.headers.update(error.headers or {})
    if error.status_code == 405:
        # Starlette names those of the first route only that has the path.
        path = getattr(request.scope.get("route"), "path", None)
        methods = request.app.openapi()["paths"].get(path, {})
        response.headers["Allow"] = ", ".join(map(str.upper, methods)) or response.headers.get("Allow", "")
    return response


def validation_refusal(error: RequestValidationError) -> Refusal:
    """What is wrong with a body, path or query, in a sentence: of several things the one that was looked at longest."""
    worst = max(error.errors(), key=lambda entry: len(entry["loc"]))
    message = str(worst["msg"]).removeprefix("Value error, ")
    if worst["type"] == "json_invalid":
        return invalid(f"the body is not JSON: {worst['ctx']['error']} at byte {worst['loc'][-1]}", code="invalid_json")
    if worst["type"] == "too_long" and worst["ctx"]["max_length"] == 0:
        message = "this is not supported"
    place, *path = worst["loc"]
    node = error.body if place == "body" else {str(part): None for part in path}
    param = _field_name(path, node, is_missing=worst["type"] == "missing")
    return invalid(f"{param}: {message}" if param else f"the body: {message}", param or None)


def _field_name(path: list[str | int], node: Any, *, is_missing: bool) -> str:
    """`messages[0].content` for the path of an error, whose other steps name alternatives and not what came."""
    name = ""
    for depth, step in enumerate(path):
        if isinstance(step, int):
            if isinstance(node, list) and step < len(node):
                name, node = f"{name}[{step}]", node[step]
        elif isinstance(node, Mapping) and step in node:
            name, node = f"{name}.{step}", node[step]
        elif is_missing and depth == len(path) - 1:
            name = f"{name}.{step}"
    return name.removeprefix(".")
