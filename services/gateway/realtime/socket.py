"""The WebSocket itself: what comes in, what goes out, and when it ends."""

import asyncio
import time
from dataclasses import dataclass
from functools import partial

import structlog
from starlette.websockets import WebSocket, WebSocketDisconnect

from client.connection import Mesh
from services.gateway.drain import Drain
from services.gateway.metrics import GatewayMetrics
from services.gateway.realtime.line import Heard
from services.gateway.realtime.server_events import ServerEvent
from services.gateway.realtime.session_config import SessionConfig
from services.gateway.realtime.socket_session import SocketSession
from services.runtime.tracing import SpanWriter

OUTGOING_LIMIT = 64
"""Messages that wait for a client; the mesh is not read meanwhile."""

SEND_SECONDS = 20.0
"""The longest that a message waits for a client that does not read; after that the socket is closed."""

GOING_AWAY, SERVICE_RESTART = 1001, 1012


@dataclass
class SocketEnded(Exception):
    """The socket is over; `code` is what it is to be closed with, None where the client has closed it."""

    code: int | None = None
    reason: str = ""


@dataclass(frozen=True)
class Received:
    """A message of the client."""

    content: str | bytes
    is_done: asyncio.Event


class Socket:
    """One socket, from its acceptance on.

    One message of the client and one of the mesh are dealt with at a time: who sends more waits.
    """

    def __init__(self, websocket: WebSocket) -> None:
        self._websocket = websocket
        self._incoming: asyncio.Queue[Received | Heard] = asyncio.Queue()
        self._outgoing: asyncio.Queue[ServerEvent] = asyncio.Queue(OUTGOING_LIMIT)

    async def run(
        self, mesh: Mesh, config: SessionConfig, drain: Drain, metrics: GatewayMetrics, writer: SpanWriter | None
    ) -> None:
        """Carries the socket to its end; the spans of its responses go to `writer`."""
        began_at = time.monotonic()
        async with asyncio.TaskGroup() as calls:
            session = SocketSession(
                config,
                mesh,
                calls,
                deliver=self._incoming.put_nowait,
                send=self._outgoing.put,
                count_first_audio=partial(metrics.count_first_audio, "realtime"),
                writer=writer,
            )
            try:
                async with asyncio.TaskGroup() as tasks:
                    tasks.create_task(self._receive())
                    tasks.create_task(self._send())
                    tasks.create_task(self._serve(session))
                    tasks.create_task(_leave(session, drain))
            except* SocketEnded as ended:
                first = ended.exceptions[0]
                assert isinstance(first, SocketEnded)
                ending = first
            finally:
                await session.close()
        log = structlog.get_logger()
        log.info("socket ended", socket_id=session.id, code=ending.code, seconds=round(time.monotonic() - began_at, 3))
        if ending.code is not None:
            await self._websocket.close(ending.code, ending.reason)

    async def _serve(self, session: SocketSession) -> None:
        await session.begin()
        while True:
            match await self._incoming.get():
                case Received(content, is_done):
                    await session.receive(content)
                    is_done.set()
                case Heard() as heard:
                    await session.hear(heard)

    async def _receive(self) -> None:
        is_done = asyncio.Event()
        while True:
            message = await self._websocket.receive()
            if message["type"] == "websocket.disconnect":
                raise SocketEnded
            text = message.get("text")
            is_done.clear()
            self._incoming.put_nowait(Received(message["bytes"] if text is None else text, is_done))
            await is_done.wait()

    async def _send(self) -> None:
        while True:
            event = await self._outgoing.get()
            try:
                async with asyncio.timeout(SEND_SECONDS):
                    await self._websocket.send_text(event.message())
            except TimeoutError:
                raise SocketEnded from None  # it would not read why
            except WebSocketDisconnect:
                raise SocketEnded from None


async def _leave(session: SocketSession, drain: Drain) -> None:
    await drain.started.wait()
    await session.is_quiet.wait()
    raise SocketEnded(SERVICE_RESTART, "the gateway is being shut down")
