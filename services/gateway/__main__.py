"""`python -m services.gateway`: the gateway's process."""

import asyncio
import signal
import socket
import sys
from collections.abc import Iterator
from contextlib import AsyncExitStack, contextmanager

import structlog
import uvicorn
import uvloop
from fastapi import FastAPI
from prometheus_client import CollectorRegistry

from services.gateway.app import build_app
from services.gateway.front import Front, open_front
from services.gateway.settings import GatewaySettings
from services.runtime.file_value import FileUnusable
from services.runtime.logs import configure
from services.runtime.metrics import serve_metrics
from services.runtime.server import CannotStart
from services.runtime.settings import load
from services.runtime.tls import ServerTls, server_context

LINGER_SECONDS = 2
"""What connections get to close, after the grace time."""

UNREAD_SECONDS = 20.0
"""How long a connection lives whose peer reads nothing of what it was sent."""


class Server(uvicorn.Server):
    """uvicorn's server, which is stopped by whoever runs it: its own way on SIGTERM closes sockets in mid-reply."""

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leaves signals alone."""
        yield


async def run(settings: GatewaySettings) -> None:
    """Serves until it is told to stop; then what is under way gets the grace time."""
    configure("gateway", settings)
    log = structlog.get_logger()
    registry = CollectorRegistry()
    try:
        async with AsyncExitStack() as stack:
            front = await stack.enter_async_context(open_front(settings, registry))
            listening = stack.enter_context(listen(settings.host, settings.port))
            metrics_port = stack.enter_context(serve_metrics(registry, settings.host, settings.metrics_port))
            host = f"[{settings.host}]" if ":" in settings.host else settings.host
            log.info(
                "listening",
                address=f"{host}:{listening.getsockname()[1]}",
                metrics_address=f"{host}:{metrics_port}",
            )
            await serve(front, listening)
    except (CannotStart, FileUnusable, OSError) as refusal:
        log.error("failed", reason=str(refusal))
        raise SystemExit(1) from refusal


async def serve(front: Front, listening: socket.socket) -> None:
    """Serves at a socket until SIGTERM or SIGINT, and drains."""
    server = Server(server_config(build_app(front), front.settings.tls))
    stop, loop = asyncio.Event(), asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    async with asyncio.TaskGroup() as tasks:
        serving = tasks.create_task(server.serve([listening]))
        stopping = tasks.create_task(stop.wait())
        structlog.get_logger().info("ready")
        await asyncio.wait((serving, stopping), return_when=asyncio.FIRST_COMPLETED)
        stopping.cancel()
        await front.drain.drain(front.settings.grace_seconds)
        server.should_exit = True


def server_config(app: FastAPI, tls: ServerTls | None) -> uvicorn.Config:
    """How uvicorn is to serve the app; raises FileUnusable."""
    context = None if tls is None else server_context(tls)
    return uvicorn.Config(
        app,
        log_config=None,
        log_level="warning",
        access_log=False,
        server_header=False,
        ws="websockets-sansio",
        ws_per_message_deflate=False,  # sound does not get smaller, and every packet would wait for it
        timeout_graceful_shutdown=LINGER_SECONDS,
        ssl_context_factory=None if context is None else lambda _config, _default: context,
    )


@contextmanager
def listen(host: str, port: int) -> Iterator[socket.socket]:
    """A socket that listens, and is closed at the end."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        listening = socket.create_server((host, port), family=family, backlog=2048)
    except OSError as error:
        raise OSError(f"cannot listen on {host} port {port}: {error.strerror}") from error
    with listening:
        # Sockets that are accepted take it over; macOS has no such limit.
        if hasattr(socket, "TCP_USER_TIMEOUT"):
            listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, round(UNREAD_SECONDS * 1000))
        yield listening


if __name__ == "__main__":
    uvloop.run(run(load(GatewaySettings, sys.argv[1:], stage="gateway")))
