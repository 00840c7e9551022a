"""The life of a service's process: listen, load, serve, drain."""

import asyncio
import signal
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager, nullcontext, suppress
from dataclasses import dataclass
from typing import Any

import grpc
import structlog
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection
from prometheus_client import CollectorRegistry

from services.runtime.api_keys import admit_anybody
from services.runtime.file_value import FileUnusable
from services.runtime.interceptors import Admit, CallInterceptor, Gate, Phase, replica_name
from services.runtime.logs import configure
from services.runtime.metrics import serve_metrics
from services.runtime.probe import Probe
from services.runtime.settings import ServerSettings, ServiceSettings
from services.runtime.tls import server_credentials
from services.runtime.tracing import SpanWriter

SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING
# Time for callers to hear that calls are refused, before the server closes: a call that grpc accepts while it closes
# may be forgotten until the grace is over.
NOTICE_SECONDS = 0.1
# Time for the last statuses to leave, and for watchers of health to hear of the end.
LINGER_SECONDS = 0.25
# Time for the streams that are handed over to let go of what they hold.
HAND_OVER_SECONDS = 2.0


class CannotStart(Exception):
    """What a service was told to start with can't be used; the message says which and why, and a trace adds nothing."""


@dataclass(frozen=True)
class RunningServer:
    """A server that listens; `prepared` is done when prepare() is.

    `refuse` answers all new calls with UNAVAILABLE, reason DRAINING, and gives callers time to hear of it by health.
    """

    address: str
    metrics_port: int
    prepared: asyncio.Task[None]
    refuse: Callable[[], Awaitable[None]]


async def serve(
    *,
    stage: str,
    settings: ServiceSettings,
    add: Callable[[grpc.aio.Server], None],
    services: Sequence[str],
    prepare: Callable[[], Awaitable[None]],
    close: Callable[[], Awaitable[None]],
    registry: CollectorRegistry,
    admit: Admit = admit_anybody,
) -> None:
    """Serves until SIGTERM or SIGINT; the body of a service's process, under `uvloop.run`.

    `add` puts the servicers on the server, `services` are their full proto names. It listens at once, with health
    NOT_SERVING and calls UNAVAILABLE until `prepare` (load and warm, without blocking the loop) is done. At the end
    streams that end within the grace time finish, the others are ended with UNAVAILABLE, reason DRAINING; then `close`
    is called, also after a `prepare` that failed or was cut short.
    Log lines "listening", "ready" and "failed" say how far it is; a failure before "ready" ends with status 1.
    """
    configure(stage, settings)
    server = running(
        stage=stage,
        settings=settings,
        add=add,
        services=services,
        prepare=prepare,
        close=close,
        registry=registry,
        admit=admit,
        wait_ready=False,
    )
    await serve_until_signalled({stage: server})


async def serve_until_signalled(servers: Mapping[str, AbstractAsyncContextManager[RunningServer]]) -> None:
    """Serves side by side, a server for each stage, until SIGTERM or SIGINT; then all of them drain.

    `servers` are from `running`, without waiting. What is logged meanwhile on any of a server's tasks has its stage.
    One that fails before it is ready logs "failed"; the others drain as well, and the process ends with status 1.
    """
    stop, loop = asyncio.Event(), asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    try:
        async with asyncio.TaskGroup() as tasks:
            serving = [tasks.create_task(_serve_until(stop, *server)) for server in servers.items()]
    finally:
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.remove_signal_handler(number)
    if not all(served.result() for served in serving):
        raise SystemExit(1)


async def _serve_until(stop: asyncio.Event, stage: str, entering: AbstractAsyncContextManager[RunningServer]) -> bool:
    with structlog.contextvars.bound_contextvars(stage=stage):
        log = structlog.get_logger()
        try:
            async with entering as server:
                stopped = asyncio.create_task(stop.wait())
                try:
                    await asyncio.wait((stopped, server.prepared), return_when=asyncio.FIRST_COMPLETED)
                    if server.prepared.done():
                        server.prepared.result()
                        await stopped
                        await server.refuse()
                finally:
                    await _cancel(stopped)
        except CannotStart as refusal:
            log.error("failed", reason=str(refusal))
        except Exception as failure:
            log.error("failed", reason=str(failure), exc_info=failure)
        else:
            return True
        # Not by cancelling them: a gRPC server that is cancelled while it starts can neither start nor stop.
        stop.set()
        return False


@asynccontextmanager
async def running(
    *,
    stage: str,
    settings: ServiceSettings,
    add: Callable[[grpc.aio.Server], None],
    services: Sequence[str],
    prepare: Callable[[], Awaitable[None]],
    close: Callable[[], Awaitable[None]],
    registry: CollectorRegistry,
    admit: Admit = admit_anybody,
    wait_ready: bool = True,
) -> AsyncIterator[RunningServer]:
    """The same server without signals, in this process: it serves within the block and drains after it."""
    log = structlog.get_logger().bind(stage=stage)
    gate, servicer = Gate(), health.aio.HealthServicer()

    async def set_health(status: health_pb2.HealthCheckResponse.ServingStatus) -> None:
        for name in ("", *services):
            await servicer.set(name, status)

    async def load() -> None:
        await prepare()
        gate.phase = Phase.SERVING
        await set_health(SERVING)
        log.info("ready")

    async def stop_serving() -> None:
        gate.phase = Phase.DRAINING
        await servicer.enter_graceful_shutdown()

    async def refuse() -> None:
        await stop_serving()
        await asyncio.sleep(NOTICE_SECONDS)

    async def drain() -> None:
        await stop_serving()
        await _stop(server, gate, settings.grace_seconds)

    async with AsyncExitStack() as stack:
        writer = await stack.enter_async_context(span_writer(settings, stage))
        interceptor = CallInterceptor(gate, stage=stage, admit=admit, writer=writer)
        server = grpc.aio.server(interceptors=[interceptor], options=_options(settings))
        add(server)
        health_pb2_grpc.add_HealthServicer_to_server(servicer, server)
        reflection.enable_server_reflection([*services, health.SERVICE_NAME, reflection.SERVICE_NAME], server)
        stack.push_async_callback(close)
        await set_health(NOT_SERVING)
        port = _listen(server, settings)
        probe = Probe(lambda: gate.phase is Phase.SERVING)
        metrics_port = stack.enter_context(serve_metrics(registry, settings.host, settings.metrics_port, probe))
        stack.push_async_callback(drain)
        await server.start()
        address = _address(settings.host, port)
        log.info(
            "listening", address=address, metrics_address=_address(settings.host, metrics_port), replica=replica_name()
        )
        prepared = asyncio.create_task(load())
        stack.push_async_callback(_cancel, prepared)
        if wait_ready:
            await prepared
        yield RunningServer(address, metrics_port, prepared, refuse)


def span_writer(settings: ServerSettings, stage: str) -> AbstractAsyncContextManager[SpanWriter | None]:
    """Where the spans of a process go within the block; None where it is told of no collector. Raises CannotStart."""
    if settings.otlp_endpoint is None:
        return nullcontext()
    try:
        from services.runtime.otlp import otlp_writer  # nobody who does not trace needs OpenTelemetry
    except ImportError as failure:
        raise CannotStart(
            f"otlp_endpoint needs OpenTelemetry, which is not there ({failure}): install the extra tracing"
        ) from failure
    return otlp_writer(settings.otlp_endpoint, ratio=settings.trace_ratio, stage=stage, replica=replica_name())


def _listen(server: grpc.aio.Server, settings: ServiceSettings) -> int:
    address = _address(settings.host, settings.port)
    if settings.tls is None:
        return server.add_insecure_port(address)
    try:
        return server.add_secure_port(address, server_credentials(settings.tls))
    except FileUnusable as refusal:
        raise CannotStart(str(refusal)) from refusal


def _options(settings: ServiceSettings) -> list[tuple[str, int]]:
    return [
        ("grpc.max_send_message_length", settings.max_message_bytes),
        ("grpc.max_receive_message_length", settings.max_message_bytes),
        ("grpc.max_concurrent_streams", settings.connection_stream_limit),
        # Between the two, a call would be refused by chance.
        ("grpc.max_metadata_size", settings.max_metadata_bytes),
        ("grpc.absolute_max_metadata_size", settings.max_metadata_bytes),
        ("grpc.max_connection_age_ms", max(1, round(settings.connection_age_seconds * 1000))),
        # Without end: a stream ends by its own deadline, never because of the connection's age.
        ("grpc.max_connection_age_grace_ms", 2**31 - 1),
        ("grpc.so_reuseport", 0),  # or a second process would share the port in silence
        ("grpc.keepalive_time_ms", 20_000),
        ("grpc.keepalive_timeout_ms", 10_000),  # for TCP
        ("grpc.http2.ping_timeout_ms", 10_000),  # for the ping; by default a minute
        # Pings that were sent apart come together at a process that was held up: nobody is cut off for them.
        ("grpc.http2.max_ping_strikes", 0),
    ]


async def _stop(server: grpc.aio.Server, gate: Gate, grace_seconds: float) -> None:
    # New calls go elsewhere from the first moment. Streams that end within the grace finish; the others are handed
    # over: ended with UNAVAILABLE, reason DRAINING, for their caller to go on at another replica. Watchers of health
    # never leave by themselves, so only the mesh's own calls may use up the grace. When the last of them has ended, its
    # status still has to leave. The group also waits for the handlers: they give back what they hold before it is
    # closed.
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(server.stop(grace_seconds + HAND_OVER_SECONDS))
        with suppress(TimeoutError):
            await asyncio.wait_for(gate.until_idle(), grace_seconds)
        gate.hand_over()
        with suppress(TimeoutError):
            await asyncio.wait_for(gate.until_idle(), HAND_OVER_SECONDS)
        await server.stop(LINGER_SECONDS)


async def _cancel(task: asyncio.Task[Any]) -> None:
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


def _address(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
