"""How long a request is worked on: until its client goes away, or its time is up."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import Request
from starlette.responses import Response

from services.gateway.errors import Refusal

CLIENT_GONE = 499
"""The status of a request whose client has gone; nobody reads it but the log and the metrics."""


class ClientGone(Exception):
    """Who asked has gone."""


@asynccontextmanager
async def attended(request: Request, seconds: float) -> AsyncIterator[None]:
    """Works on a request whose body has come; the block is cancelled when nobody waits for the answer any more.

    Raises ClientGone then, and Refusal after `seconds`.
    """
    try:
        async with asyncio.timeout(seconds) as limit:
            watching = asyncio.create_task(_end_when_gone(request, limit))
            try:
                yield
            finally:
                watching.cancel()
                await asyncio.wait({watching})
    except TimeoutError:
        if not limit.expired():
            raise
        if not watching.cancelled():
            raise ClientGone from None
        message = f"the answer was not complete within {seconds:g} s"
        raise Refusal(504, "server_error", message, code="timeout") from None


async def _end_when_gone(request: Request, limit: asyncio.Timeout) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
    limit.reschedule(asyncio.get_running_loop().time())


async def answer_nobody(_request: Request, _error: Exception) -> Response:
    """The response to who has gone."""
    return Response(status_code=CLIENT_GONE)
