"""An answer as server-sent events."""

import asyncio
import json
from collections.abc import AsyncGenerator
from contextlib import aclosing, suppress
from typing import Any

from fastapi import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from services.gateway.departure import ClientGone, attended
from services.gateway.errors import Refusal

HEADERS = {
    "Cache-Control": "no-cache",
    "X-Accel-Buffering": "no",  # proxies would wait for more
}

LAST_WORD_SECONDS = 1.0
"""What a client that does not read gets to be told why its answer ends."""


class EventStream(Response):
    """Sends events as they are made, which may raise Refusal; the last one is there within `seconds`.

    It begins with the first one: what goes wrong before has a status of its own. What goes wrong later is an event
    `{"error": …}`, the last one then.
    """

    media_type = "text/event-stream"

    def __init__(self, request: Request, events: AsyncGenerator[bytes, None], *, seconds: float) -> None:
        super().__init__(headers=HEADERS)
        del self.headers["content-length"]
        self._request = request
        self._events = events
        self._seconds = seconds

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:  # noqa: ARG002 - as Starlette calls it
        """Answers the request."""
        has_begun = False
        try:
            async with attended(self._request, self._seconds), aclosing(self._events) as events:
                async for event in events:
                    if not has_begun:
                        await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
                        has_begun = True
                    await send(_piece(event))
        except ClientGone:
            if not has_begun:
                raise
            return
        except Refusal as refusal:
            if not has_begun:
                raise
            with suppress(TimeoutError):
                async with asyncio.timeout(LAST_WORD_SECONDS):
                    await send(_piece(event_of(json.dumps({"error": refusal.body}))))
        await send(_piece(b"", is_last=True))


def event_of(data: str) -> bytes:
    """An event with this data, a line of text."""
    return f"data: {data}\n\n".encode()


def _piece(body: bytes, *, is_last: bool = False) -> dict[str, Any]:
    return {"type": "http.response.body", "body": body, "more_body": not is_last}
