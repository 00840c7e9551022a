"""What is under way in the process, and the end of it."""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from starlette.types import ASGIApp, Receive, Scope, Send

from services.gateway.errors import Refusal

WITHOUT_WORK = ("/health", "/ready", "/metrics")
"""Asked for all the time, also while the process drains."""


class Drain:
    """Counts what is under way and, once the process is told to stop, waits for it.

    Long-lived work (a socket) watches `started`, and ends when it can do so without harm; new work is refused by
    whoever begins it.
    """

    def __init__(self) -> None:
        self.started = asyncio.Event()
        self._idle = asyncio.Event()
        self._idle.set()
        self._count = 0

    @contextmanager
    def work(self) -> Iterator[None]:
        """Something is under way within the block."""
        self._count += 1
        self._idle.clear()
        try:
            yield
        finally:
            self._count -= 1
            if not self._count:
                self._idle.set()

    async def drain(self, grace_seconds: float) -> None:
        """Says that the end has begun, and waits until nothing is under way, at most the grace time."""
        self.started.set()
        with suppress(TimeoutError):
            async with asyncio.timeout(grace_seconds):
                await self._idle.wait()


class DrainGate:
    """ASGI middleware that counts what is under way, to its last byte, and refuses requests once the end has begun.

    A WebSocket that comes then is refused by who would accept it.
    """

    def __init__(self, app: ASGIApp, *, drain: Drain) -> None:
        self._app = app
        self._drain = drain

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers a request, or carries a socket."""
        if scope["type"] == "lifespan" or scope["path"] in WITHOUT_WORK:
            await self._app(scope, receive, send)
        elif self._drain.started.is_set() and scope["type"] == "http":
            gone = Refusal(503, "server_error", "the gateway is being shut down", code="draining", retry_seconds=1)
            await gone.response()(scope, receive, send)
        else:
            with self._drain.work():
                await self._app(scope, receive, send)
