"""One channel to several replicas: who gets a call, who does not, and what becomes of streams when one leaves."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest
from chroma_mesh.codec.v1 import codec_pb2, codec_pb2_grpc
from prometheus_client import CollectorRegistry

from services.runtime import channel as channel_module
from services.runtime.channel import open_channel
from services.runtime.errors import MeshError, Unavailable, from_rpc_error
from services.runtime.interceptors import REPLICA_KEY, replica_name
from services.runtime.server import RunningServer, running
from services.runtime.settings import ServiceSettings
from services.runtime.stream import RequestStream
from tests.name_server import NameServer, needs_name_server

CODEC = "chroma_mesh.codec.v1.CodecService"
OPEN = codec_pb2.DecodeRequest(open=codec_pb2.DecodeOpen())
FRAMES = codec_pb2.DecodeRequest(frames=codec_pb2.DecodeFrames())
END = codec_pb2.DecodeRequest(end=codec_pb2.DecodeEnd())
# More than a connection takes from somebody who does not read.
MUCH = codec_pb2.DecodeResponse(audio=codec_pb2.DecodedAudio(data=bytes(2**20)))


class Replica(codec_pb2_grpc.CodecServiceServicer):
    """A codec that counts frames, or is told to refuse, to fail, to work for ever, or to send more than is read.

    It keeps its callers' connections.
    """

    def __init__(self) -> None:
        self.peers: list[str] = []
        self.is_full = False
        self.is_slow = False
        self.is_talkative = False
        self.fails_late = False
        self.working = asyncio.Event()
        self.left_count = 0

    def take(self, context: Any) -> None:
        """A call came."""
        self.peers.append(context.peer())
        if self.is_full:
            raise Unavailable("no slot is free", reason="FULL")

    async def Encode(self, request: codec_pb2.EncodeRequest, context: Any) -> codec_pb2.EncodeResponse:
        """Answers with nothing."""
        self.take(context)
        if self.is_slow:
            self.working.set()
            await asyncio.Event().wait()
        return codec_pb2.EncodeResponse()

    async def Decode(self, requests: AsyncIterator[codec_pb2.DecodeRequest], context: Any) -> None:
        """Answers open at once, and the end with a count."""
        stream = RequestStream(requests)
        try:
            await stream.open()
            self.take(context)
            await context.write(codec_pb2.DecodeResponse(opened=codec_pb2.DecodeOpened()))
            if self.fails_late:
                raise Unavailable("the slot is gone", reason="LATE")
            while self.is_talkative:
                await context.write(MUCH)
            count = len([payload async for _, payload in stream])
            await context.write(codec_pb2.DecodeResponse(finished=codec_pb2.DecodeFinished(frame_count=count)))
        finally:
            self.left_count += 1


async def at_once() -> None:
    """Neither loads nor closes anything."""


@asynccontextmanager
async def serving(
    replica: Replica, *, prepare: Callable[[], Awaitable[None]] = at_once, wait_ready: bool = True, **settings: Any
) -> AsyncIterator[RunningServer]:
    """Serves a replica within the block."""
    async with running(
        stage="codec",
        settings=ServiceSettings(**settings),
        add=lambda server: codec_pb2_grpc.add_CodecServiceServicer_to_server(replica, server),
        services=[CODEC],
        prepare=prepare,
        close=at_once,
        registry=CollectorRegistry(),
        wait_ready=wait_ready,
    ) as server:
        yield server


@pytest.fixture
async def pair() -> AsyncIterator[tuple[Replica, Replica, grpc.aio.Channel]]:
    """Two replicas, and a channel that has reached both."""
    first, second = Replica(), Replica()
    async with (
        serving(first, grace_seconds=0) as one,
        serving(second, grace_seconds=0) as other,
        channel_to(f"{one.address},{other.address}") as channel,
    ):
        await encode_until(channel, lambda: bool(first.peers) and bool(second.peers))
        first.peers.clear()
        second.peers.clear()
        yield first, second, channel


def channel_to(address: str) -> grpc.aio.Channel:
    """As the orchestrator's to the codec."""
    return open_channel(address, service=CODEC, repeated=["Encode"])


async def encode_until(channel: grpc.aio.Channel, condition: Callable[[], bool]) -> None:
    """Makes calls, none of which may fail, until something is the case."""
    while not condition():
        await codec_pb2_grpc.CodecServiceStub(channel).Encode(codec_pb2.EncodeRequest())


async def opened(channel: grpc.aio.Channel, refusals: list[str] | None = None) -> Any:
    """A stream that has been answered `opened`, begun again at once where it was refused: each time for a reason."""
    refusals = [] if refusals is None else refusals
    while True:
        call = codec_pb2_grpc.CodecServiceStub(channel).Decode()
        try:
            await call.write(OPEN)
            assert (await call.read()).HasField("opened")
        except grpc.aio.AioRpcError as error:
            refusals.append(from_rpc_error(error).reason)
        else:
            return call


async def finish(call: Any) -> int:
    """Sends a frame and the end; how many frames arrived."""
    for request in (FRAMES, END):
        await call.write(request)
    count: int = (await call.read()).finished.frame_count
    assert await call.read() is grpc.aio.EOF
    return count


async def failure(call: Awaitable[Any]) -> MeshError:
    """The error that a call ends with."""
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    return from_rpc_error(caught.value)


async def test_calls_go_to_the_replicas_in_turn(pair: Any) -> None:
    first, second, channel = pair
    for _ in range(10):
        await codec_pb2_grpc.CodecServiceStub(channel).Encode(codec_pb2.EncodeRequest())
    assert (len(first.peers), len(second.peers)) == (5, 5)


async def test_an_answer_says_whose_it_is(pair: Any) -> None:
    _, _, channel = pair
    unary = codec_pb2_grpc.CodecServiceStub(channel).Encode(codec_pb2.EncodeRequest())
    await unary
    stream = await opened(channel)
    for call in (unary, stream):
        assert dict(await call.initial_metadata())[REPLICA_KEY] == replica_name()
    await finish(stream)


async def test_a_full_replica_is_skipped(pair: Any) -> None:
    first, second, channel = pair
    first.is_full = True
    await encode_until(channel, lambda: len(second.peers) == 6)
    assert first.peers


async def test_a_stream_that_is_refused_is_begun_again_elsewhere_by_its_caller(pair: Any) -> None:
    first, _, channel = pair
    first.is_full = True
    refusals: list[str] = []
    for _ in range(6):
        await finish(await opened(channel, refusals))
    assert refusals == ["FULL"] * len(first.peers)
    assert len(refusals) in (5, 6)


async def test_full_replicas_say_so(pair: Any) -> None:
    first, second, channel = pair
    first.is_full = second.is_full = True
    error = await failure(codec_pb2_grpc.CodecServiceStub(channel).Encode(codec_pb2.EncodeRequest()))
    assert (type(error), error.reason) == (Unavailable, "FULL")
    assert first.peers
    assert second.peers


async def test_an_error_after_the_first_message_is_the_callers(pair: Any) -> None:
    first, second, channel = pair
    first.fails_late = second.fails_late = True
    call = await opened(channel)
    assert (await failure(call.read())).reason == "LATE"
    assert len(first.peers + second.peers) == 1


async def test_a_replica_takes_part_when_it_is_loaded_and_not_before() -> None:
    old, new, loaded = Replica(), Replica(), asyncio.Event()
    async with (
        serving(old) as one,
        serving(new, prepare=loaded.wait, wait_ready=False) as other,  # type: ignore[arg-type]
        channel_to(f"{other.address},{one.address}") as channel,
    ):
        await encode_until(channel, lambda: len(old.peers) == 10)
        assert not new.peers
        loaded.set()
        await encode_until(channel, lambda: bool(new.peers))


async def test_a_replica_that_is_lost_leaves_and_takes_part_again_when_it_is_back() -> None:
    stays, returns = Replica(), Replica()
    async with serving(stays) as one, AsyncExitStack() as channels:
        async with serving(returns) as other:
            channel = await channels.enter_async_context(channel_to(f"{one.address},{other.address}"))
            await encode_until(channel, lambda: bool(returns.peers))
        stays.peers.clear()
        await encode_until(channel, lambda: len(stays.peers) == 10)
        returns.peers.clear()
        async with serving(returns, port=int(other.address.split(":")[1])):
            await encode_until(channel, lambda: bool(returns.peers))


async def test_draining_takes_no_new_stream_and_breaks_no_open_one() -> None:
    leaves, stays = Replica(), Replica()
    async with serving(stays) as other, AsyncExitStack() as channels:
        async with serving(leaves, grace_seconds=3600) as one:
            channel = await channels.enter_async_context(channel_to(f"{one.address},{other.address}"))
            calls = []
            while not (leaves.peers and stays.peers):
                calls.append(await opened(channel))
            count = len(leaves.peers)

            async def while_draining() -> None:
                new = [await opened(channel) for _ in range(10)]
                assert [await finish(call) for call in (*calls, *new)] == [1] * (len(calls) + 10)

            draining = asyncio.create_task(while_draining())
        await draining
    assert len(leaves.peers) == count


async def test_a_stream_that_outlives_the_grace_is_handed_over() -> None:
    replica = Replica()
    async with AsyncExitStack() as channels:
        async with serving(replica, grace_seconds=0.1) as server:
            channel = await channels.enter_async_context(channel_to(server.address))
            call = await opened(channel)
        assert replica.left_count == 1
        error = await failure(call.read())
    assert (type(error), error.reason) == (Unavailable, "DRAINING")


@pytest.mark.parametrize("is_read", [False, True])
async def test_a_stream_that_is_cut_in_the_middle_of_a_message_is_unavailable_as_well(is_read: bool) -> None:
    replica = Replica()
    replica.is_talkative = True
    async with AsyncExitStack() as channels:
        async with serving(replica, grace_seconds=0) as server:
            channel = await channels.enter_async_context(channel_to(server.address))
            call = await opened(channel)
            reading = asyncio.create_task(read_all(call)) if is_read else None
        assert replica.left_count == 1
        assert isinstance(await failure(reading or read_all(call)), Unavailable)


async def read_all(call: Any) -> None:
    """Reads to the end."""
    while await call.read() is not grpc.aio.EOF:
        pass


async def test_a_call_that_is_not_answered_yet_is_begun_again_elsewhere() -> None:
    leaves, stays = Replica(), Replica()
    async with serving(stays) as other, AsyncExitStack() as channels:
        async with serving(leaves, grace_seconds=0) as one:
            channel = await channels.enter_async_context(channel_to(f"{one.address},{other.address}"))
            await encode_until(channel, lambda: bool(leaves.peers) and bool(stays.peers))
            leaves.is_slow = True
            stays.peers.clear()
            stub = codec_pb2_grpc.CodecServiceStub(channel)
            calls = [stub.Encode(codec_pb2.EncodeRequest()) for _ in range(4)]
            await leaves.working.wait()
        for call in calls:
            await call
    assert len(stays.peers) == 4


async def test_the_age_of_a_connection_ends_it_for_new_calls_and_breaks_no_stream() -> None:
    replica = Replica()
    async with (
        serving(replica, connection_age_seconds=0.1) as server,
        channel_to(server.address) as channel,
    ):
        call = await opened(channel)
        await encode_until(channel, lambda: len(set(replica.peers)) == 4)
        assert await finish(call) == 1


@needs_name_server
async def test_a_names_new_addresses_take_part_and_lost_ones_leave(tmp_path: Path) -> None:
    old, new = Replica(), Replica()
    async with (
        NameServer.open(tmp_path) as names,
        serving(old, host="127.0.0.2", connection_age_seconds=0.1) as one,
    ):
        port = int(one.address.split(":")[1])
        await names.change("codec", "127.0.0.2")
        async with (
            serving(new, host="127.0.0.3", port=port, connection_age_seconds=0.1),
            channel_to(names.target("codec", port)) as channel,
        ):
            call = await opened(channel)
            await encode_until(channel, lambda: len(old.peers) == 10)
            assert not new.peers
            await names.change("codec", "127.0.0.2", "127.0.0.3")
            await encode_until(channel, lambda: bool(new.peers))
            await names.change("codec", "127.0.0.3")

            def only_new() -> bool:
                if len(new.peers) >= 20:
                    return True
                if old.peers:
                    old.peers.clear()
                    new.peers.clear()
                return False

            await encode_until(channel, only_new)
            assert await finish(call) == 1


@needs_name_server
async def test_a_name_that_stands_for_nobody_is_asked_for_again_before_long(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(channel_module, "LOOK_AGAIN_SECONDS", 0)
    old, new = Replica(), Replica()
    async with NameServer.open(tmp_path) as names, AsyncExitStack() as channels:
        async with serving(old, host="127.0.0.2", grace_seconds=0) as one:
            port = int(one.address.split(":")[1])
            channel = await channels.enter_async_context(channel_to(names.target("codec", port)))
            encode = codec_pb2_grpc.CodecServiceStub(channel).Encode
            assert isinstance(await failure(encode(codec_pb2.EncodeRequest())), Unavailable)
            await names.change("codec", "127.0.0.2")
            await encode(codec_pb2.EncodeRequest())
            await names.change("codec")
        for _ in range(10):
            assert isinstance(await failure(encode(codec_pb2.EncodeRequest())), Unavailable)
        async with serving(new, host="127.0.0.3", port=port):
            await names.change("codec", "127.0.0.3")
            await encode(codec_pb2.EncodeRequest())
    assert (len(old.peers), len(new.peers)) == (1, 1)
