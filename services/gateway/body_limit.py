"""How large a request may be, and how long it may take to arrive."""

import asyncio

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from services.gateway.errors import Refusal

VALUE_LIMIT = 250_000
"""Most values in JSON, counted as the characters that separate them: ten million small ones would take the process
half a minute to read, in which it does nothing else. Base64 has none of these, and prose few."""

SEPARATORS = (b",", b"[", b"{")


class BodyLimit:
    """ASGI middleware that takes the body of a request before anyone sees it, if it is small and quick enough.

    A body of more than `limit_bytes` is answered with 413, and so is one with more values than any conversation has;
    one that has not come after `seconds` with 408. What is too much is read and let go, for who is still sending would
    see a broken connection in place of the answer; it is not even sent by who asks first (`Expect: 100-continue`) and
    says how much it is.
    """

    def __init__(self, app: ASGIApp, *, limit_bytes: int, seconds: float) -> None:
        self._app = app
        self._limit_bytes = limit_bytes
        self._seconds = seconds

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers a request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        try:
            async with asyncio.timeout(self._seconds):
                body = await self._body(scope, receive)
        except TimeoutError:
            late = Refusal(408, "invalid_request_error", f"the request did not arrive within {self._seconds:g} s")
            await _last_answer(late, scope, receive, send)
            return
        except Refusal as refusal:
            await _last_answer(refusal, scope, receive, send)
            return
        if body is None:  # the client has gone
            return
        pending: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

        async def replay() -> Message:
            return pending.pop() if pending else await receive()

        await self._app(scope, replay, send)

    async def _body(self, scope: Scope, receive: Receive) -> bytes | None:
        headers = dict(scope["headers"])
        announced = int(headers.get(b"content-length", 0))
        if announced > self._limit_bytes and b"expect" in headers:
            raise self._too_large(announced)
        pieces, size = [], 0
        while True:
            message = await receive()
            if message["type"] == "http.disconnect":
                return None
            piece = message.get("body", b"")
            size += len(piece)
            if size <= self._limit_bytes:
                pieces.append(piece)
            else:
                pieces.clear()
            if not message.get("more_body", False):
                break
        if size > self._limit_bytes:
            raise self._too_large(size)
        body = b"".join(pieces)
        if size > VALUE_LIMIT and b"json" in headers.get(b"content-type", b""):
            count = sum(map(body.count, SEPARATORS))
            if count > VALUE_LIMIT:
                too_many = f"the body must have at most {VALUE_LIMIT} values, got about {count}"
                raise Refusal(413, "invalid_request_error", too_many, code="request_too_large")
        return body

    def _too_large(self, size: int) -> Refusal:
        return Refusal(
            413,
            "invalid_request_error",
            f"the body must have at most {self._limit_bytes} bytes, got {size}",
            code="request_too_large",
        )


async def _last_answer(refusal: Refusal, scope: Scope, receive: Receive, send: Send) -> None:
    response = refusal.response()
    response.headers["Connection"] = "close"  # a rest of the body may be on its way
    await response(scope, receive, send)
