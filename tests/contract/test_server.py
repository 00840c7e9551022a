"""What every service does besides its work: health, reflection, loading, draining, failing.

Run as a program, this file is a service whose codec counts frames; the tests of signals start it as a child process.
"""

import asyncio
import json
import logging
import os
import signal
import socket
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager, suppress
from pathlib import Path
from typing import Any, Literal

import grpc
import pytest
import structlog
import uvloop
from chroma_mesh.codec.v1 import codec_pb2, codec_pb2_grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from prometheus_client import CollectorRegistry
from pydantic import Field

from services.runtime.channel import open_channel
from services.runtime.errors import MeshError, NotFound, Unavailable, from_rpc_error
from services.runtime.server import RunningServer, running, serve
from services.runtime.settings import ServiceSettings, load
from services.runtime.stream import RequestStream

CODEC = "chroma_mesh.codec.v1.CodecService"
SERVING, NOT_SERVING = health_pb2.HealthCheckResponse.SERVING, health_pb2.HealthCheckResponse.NOT_SERVING
OPEN = codec_pb2.DecodeRequest(open=codec_pb2.DecodeOpen())
FRAME = codec_pb2.DecodeRequest(frames=codec_pb2.DecodeFrames())
END = codec_pb2.DecodeRequest(end=codec_pb2.DecodeEnd())


class CountingCodec(codec_pb2_grpc.CodecServiceServicer):
    """Counts frames; encoding fails as it is told to."""

    def __init__(self) -> None:
        self.events: list[str] = []
        self.failure: Exception = ValueError("secret of the house")

    async def Encode(self, request: codec_pb2.EncodeRequest, context: Any) -> codec_pb2.EncodeResponse:
        """Fails."""
        raise self.failure

    async def Decode(self, requests: AsyncIterator[codec_pb2.DecodeRequest], context: Any) -> None:
        """Answers open at once, and the end with a count."""
        try:
            stream = RequestStream(requests)
            await stream.open()
            await context.write(codec_pb2.DecodeResponse(opened=codec_pb2.DecodeOpened()))
            count = len([payload async for _, payload in stream])
            await context.write(codec_pb2.DecodeResponse(finished=codec_pb2.DecodeFinished(frame_count=count)))
        finally:
            self.events.append("call left")

    async def close(self) -> None:
        """What an engine's end would be."""
        self.events.append("closed")


async def at_once() -> None:
    """Loads nothing."""


Served = Callable[..., AbstractAsyncContextManager[tuple[RunningServer, grpc.aio.Channel]]]


@pytest.fixture
async def served() -> AsyncIterator[Served]:
    """`served(codec, ...)` serves in this process within its block; its channel outlives it, as callers' do."""
    async with AsyncExitStack() as channels:

        @asynccontextmanager
        async def serve_codec(
            codec: CountingCodec,
            *,
            prepare: Callable[[], Awaitable[None]] = at_once,
            wait_ready: bool = True,
            grace_seconds: float = 30,
        ) -> AsyncIterator[tuple[RunningServer, grpc.aio.Channel]]:
            async with running(
                stage="codec",
                settings=ServiceSettings(grace_seconds=grace_seconds),
                add=lambda server: codec_pb2_grpc.add_CodecServiceServicer_to_server(codec, server),
                services=[CODEC],
                prepare=prepare,
                close=codec.close,
                registry=CollectorRegistry(),
                wait_ready=wait_ready,
            ) as server:
                yield server, await channels.enter_async_context(open_channel(server.address))

        yield serve_codec


async def health_of(channel: grpc.aio.Channel, service: str) -> int:
    """What health says of a service."""
    stub = health_pb2_grpc.HealthStub(channel)
    return (await stub.Check(health_pb2.HealthCheckRequest(service=service))).status


async def refusal(call: Awaitable[Any]) -> Any:
    """The error that a call ends with."""
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    return from_rpc_error(caught.value)


async def opened_stream(channel: grpc.aio.Channel) -> Any:
    """A decode call that has been answered `opened`."""
    call = codec_pb2_grpc.CodecServiceStub(channel).Decode()
    await call.write(OPEN)
    assert (await call.read()).HasField("opened")
    return call


async def test_health_turns_serving_and_calls_are_let_in_when_loading_is_done(served: Served) -> None:
    loaded = asyncio.Event()

    async def prepare() -> None:
        await loaded.wait()

    async with served(CountingCodec(), prepare=prepare, wait_ready=False) as (server, channel):
        for service in ("", CODEC):
            assert await health_of(channel, service) == NOT_SERVING
        stub = codec_pb2_grpc.CodecServiceStub(channel)
        for call in (stub.Encode(codec_pb2.EncodeRequest()), stub.Decode().read()):
            error = await refusal(call)
            assert (type(error), error.reason) == (Unavailable, "LOADING")
        watch = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest(service=CODEC))
        assert (await watch.read()).status == NOT_SERVING
        loaded.set()
        assert (await watch.read()).status == SERVING
        await server.prepared
        for service in ("", CODEC):
            assert await health_of(channel, service) == SERVING
        call = await opened_stream(channel)
        await call.write(END)
        assert (await call.read()).finished.frame_count == 0


async def test_health_does_not_know_other_services(served: Served) -> None:
    async with served(CountingCodec()) as (_, channel):
        assert (await refusal(health_of(channel, "chroma_mesh.speech.v1.SpeechService"))).code is (
            grpc.StatusCode.NOT_FOUND
        )


async def test_a_failure_of_loading_is_raised_and_all_is_closed(served: Served) -> None:
    async def prepare() -> None:
        raise ValueError("the checkpoint has no config.json")

    codec = CountingCodec()
    with pytest.raises(ValueError, match=r"config\.json"):
        async with served(codec, prepare=prepare):
            pytest.fail("it must not come up")
    assert codec.events == ["closed"]


async def test_reflection_lists_the_services_and_their_messages(served: Served) -> None:
    async with served(CountingCodec()) as (_, channel):
        stub = reflection_pb2_grpc.ServerReflectionStub(channel)
        request = reflection_pb2.ServerReflectionRequest
        asked = [request(list_services=""), request(file_containing_symbol=CODEC)]
        listed, described = [answer async for answer in stub.ServerReflectionInfo(iter(asked))]
    assert {service.name for service in listed.list_services_response.service} == {
        CODEC,
        "grpc.health.v1.Health",
        "grpc.reflection.v1alpha.ServerReflection",
    }
    assert any(
        b"DecodeRequest" in descriptor for descriptor in described.file_descriptor_response.file_descriptor_proto
    )


async def test_health_answers_while_a_call_is_at_work(served: Served) -> None:
    async with served(CountingCodec()) as (_, channel):
        call = await opened_stream(channel)
        assert await health_of(channel, CODEC) == SERVING
        await call.write(END)
        assert (await call.read()).HasField("finished")


@pytest.mark.parametrize(
    "failure",
    [ValueError("secret of the house"), ExceptionGroup("outer", [ExceptionGroup("inner", [KeyError("secret")])])],
)
async def test_a_bug_is_internal_and_its_trace_is_only_in_the_log(served: Served, failure: Exception) -> None:
    codec = CountingCodec()
    codec.failure = failure
    with structlog.testing.capture_logs() as lines:
        async with served(codec) as (_, channel):
            error = await refusal(codec_pb2_grpc.CodecServiceStub(channel).Encode(codec_pb2.EncodeRequest()))
    assert (error.code, error.reason, error.message) == (grpc.StatusCode.INTERNAL, "INTERNAL", "internal error")
    logged = [line for line in lines if line["log_level"] == "error"]
    assert [(line["event"], line["exc_info"]) for line in logged] == [("call failed", failure)]
    assert logged[0]["method"] == f"/{CODEC}/Encode"


async def test_an_abandoned_or_cancelled_call_is_no_error_in_the_log(
    served: Served, caplog: pytest.LogCaptureFixture
) -> None:
    codec = CountingCodec()
    with structlog.testing.capture_logs() as lines:
        async with served(codec) as (_, channel):
            (await opened_stream(channel)).cancel()
            abandoned = await opened_stream(channel)
            await abandoned.done_writing()
            assert (await refusal(abandoned.read())).reason == "ABANDONED"
    assert codec.events == ["call left", "call left", "closed"]
    assert {line["log_level"] for line in lines} <= {"info", "debug"}
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


async def test_an_oversized_message_is_refused_by_grpc_itself(served: Served) -> None:
    async with served(CountingCodec()) as (server, _):
        options = [("grpc.max_send_message_length", -1)]
        async with grpc.aio.insecure_channel(server.address, options=options) as channel:
            request = codec_pb2.EncodeRequest()
            request.audio.data = bytes(17 * 2**20)
            error = await refusal(codec_pb2_grpc.CodecServiceStub(channel).Encode(request))
    assert error.code is grpc.StatusCode.RESOURCE_EXHAUSTED


async def test_what_is_as_large_as_the_limit_is_taken(served: Served) -> None:
    codec = CountingCodec()
    codec.failure = NotFound("taken")
    async with served(codec) as (_, channel):
        request = codec_pb2.EncodeRequest()
        request.audio.data = bytes(16 * 2**20 - 100)
        error = await refusal(codec_pb2_grpc.CodecServiceStub(channel).Encode(request))
    assert error.message == "taken"


async def test_draining_lets_open_streams_end_and_new_ones_not_begin(served: Served) -> None:
    codec = CountingCodec()
    async with served(codec) as (_, channel):
        call = await opened_stream(channel)
        watch = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest())
        assert (await watch.read()).status == SERVING

        async def while_draining() -> None:
            assert (await watch.read()).status == NOT_SERVING
            # The server may also be so far gone that grpc itself answers, as CANCELLED: from_rpc_error knows.
            error = await refusal(codec_pb2_grpc.CodecServiceStub(channel).Decode().read())
            assert isinstance(error, Unavailable)
            for request in (FRAME, END):
                await call.write(request)
            assert (await call.read()).finished.frame_count == 1
            assert await call.read() is grpc.aio.EOF
            assert await call.code() is grpc.StatusCode.OK

        draining = asyncio.create_task(while_draining())
    await draining
    assert codec.events == ["call left", "closed"]


async def test_callers_who_keep_calling_are_answered_or_told_unavailable(served: Served) -> None:
    codec, answered = CountingCodec(), asyncio.Event()
    codec.failure = NotFound("an answer")

    async def call_until_refused(channel: grpc.aio.Channel) -> MeshError:
        while True:
            error: MeshError = await refusal(codec_pb2_grpc.CodecServiceStub(channel).Encode(codec_pb2.EncodeRequest()))
            if not isinstance(error, NotFound):
                return error
            answered.set()

    async with served(codec) as (_, channel):
        callers = [asyncio.create_task(call_until_refused(channel)) for _ in range(20)]
        await answered.wait()
    errors = await asyncio.gather(*callers)
    assert {type(error) for error in errors} == {Unavailable}, errors


async def test_a_stream_that_outlives_the_grace_is_unavailable_and_left_before_the_end(served: Served) -> None:
    codec = CountingCodec()
    async with served(codec, grace_seconds=0) as (_, channel):
        call = await opened_stream(channel)
    assert isinstance(await refusal(call.read()), Unavailable)
    assert codec.events == ["call left", "closed"]


async def test_a_watcher_of_health_does_not_use_up_the_grace(served: Served) -> None:
    async with served(CountingCodec(), grace_seconds=3600) as (_, channel):
        watch = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest())
        assert (await watch.read()).status == SERVING
    assert (await watch.read()).status == NOT_SERVING


async def test_metrics_are_served(served: Served) -> None:
    async with served(CountingCodec()) as (server, _):
        reader, writer = await asyncio.open_connection("127.0.0.1", server.metrics_port)
        writer.write(b"GET /metrics HTTP/1.0\r\n\r\n")
        assert b"200 OK" in await reader.readline()
        writer.close()
        await writer.wait_closed()


class Child:
    """This file as a process of its own."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process

    async def line(self, event: str) -> dict[str, Any]:
        """The next log line about `event`."""
        assert self._process.stdout is not None
        async for text in self._process.stdout:
            line: dict[str, Any] = json.loads(text)
            if line["event"] == event:
                return line
        raise AssertionError(f"no line about {event}")

    def kill(self, number: int = signal.SIGTERM) -> None:
        """Sends a signal."""
        self._process.send_signal(number)

    async def status(self) -> int:
        """The exit status, at the end."""
        return await self._process.wait()


Start = Callable[..., AbstractAsyncContextManager[Child]]


@pytest.fixture
def start() -> Start:
    """`start(*flags)` runs a child within its block."""

    @asynccontextmanager
    async def child(*flags: str) -> AsyncIterator[Child]:
        environment = {name: value for name, value in os.environ.items() if not name.startswith("CHROMA_")}
        process = await asyncio.create_subprocess_exec(
            sys.executable, str(Path(__file__)), *flags, stdout=asyncio.subprocess.PIPE, env=environment
        )
        try:
            yield Child(process)
        finally:
            with suppress(ProcessLookupError):
                process.kill()
            await process.communicate()

    return child


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_a_signal_drains_and_ends_with_status_0(start: Start, number: int) -> None:
    async with start("--grace-seconds", "60") as child:
        listening = await child.line("listening")
        await child.line("ready")
        async with open_channel(listening["address"]) as channel:
            assert listening["metrics_address"].startswith("127.0.0.1:")
            call = await opened_stream(channel)
            watch = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest(service=CODEC))
            assert (await watch.read()).status == SERVING
            child.kill(number)
            assert (await watch.read()).status == NOT_SERVING
            assert isinstance(await refusal(codec_pb2_grpc.CodecServiceStub(channel).Decode().read()), Unavailable)
            for request in (FRAME, FRAME, END):
                await call.write(request)
            assert (await call.read()).finished.frame_count == 2
            assert await call.read() is grpc.aio.EOF
        await child.line("closed")
        assert await child.status() == 0


async def test_a_signal_while_loading_ends_with_status_0(start: Start) -> None:
    async with start("--loading", "forever") as child:
        await child.line("listening")
        child.kill()
        await child.line("closed")
        assert await child.status() == 0


async def test_a_failure_of_loading_is_logged_with_its_reason_and_ends_with_status_1(start: Start) -> None:
    async with start("--loading", "failing") as child:
        await child.line("listening")
        failed = await child.line("failed")
        assert (failed["stage"], failed["level"]) == ("codec", "error")
        assert failed["reason"] == "the checkpoint has no config.json"
        assert "Traceback" in failed["exception"]
        assert await child.status() == 1


@pytest.mark.parametrize("flag", ["--port", "--metrics-port"])
async def test_a_port_that_is_taken_is_a_failure(start: Start, flag: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        async with start(flag, str(port)) as child:
            assert str(port) in (await child.line("failed"))["reason"]
            assert await child.status() == 1


class ChildSettings(ServiceSettings):
    """What the child process is told."""

    loading: Literal["done", "forever", "failing"] = Field("done", description="how loading goes")


def main() -> None:
    """The child process."""
    settings = load(ChildSettings, sys.argv[1:], stage="codec")
    codec = CountingCodec()

    async def prepare() -> None:
        if settings.loading == "forever":
            await asyncio.Event().wait()
        if settings.loading == "failing":
            raise ValueError("the checkpoint has no config.json")

    async def close() -> None:
        structlog.get_logger().info("closed")

    uvloop.run(
        serve(
            stage="codec",
            settings=settings,
            add=lambda server: codec_pb2_grpc.add_CodecServiceServicer_to_server(codec, server),
            services=[CODEC],
            prepare=prepare,
            close=close,
            registry=CollectorRegistry(),
        )
    )


if __name__ == "__main__":
    main()
