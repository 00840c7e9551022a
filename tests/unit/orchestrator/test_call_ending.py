"""The status that a peer sends is the one that is told, whatever the client was writing meanwhile."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import grpc
import pytest
from chroma_mesh.codec.v1 import codec_pb2, codec_pb2_grpc

from services.orchestrator.call_ending import WRITE_FAILURE, CallEnding

REQUEST = codec_pb2.DecodeRequest(frames=codec_pb2.DecodeFrames(index=7))


class Peer(codec_pb2_grpc.CodecServiceServicer):
    """Ends every call while its client is writing."""

    code = grpc.StatusCode.UNAVAILABLE

    async def Decode(self, request_iterator: Any, context: Any) -> None:
        await anext(request_iterator)
        if self.code is not grpc.StatusCode.OK:
            await context.abort(self.code, "as the peer says", (("why", "because"),))


@pytest.fixture
async def peer() -> AsyncIterator[tuple[Peer, Any]]:
    peer = Peer()
    server = grpc.aio.server()
    codec_pb2_grpc.add_CodecServiceServicer_to_server(peer, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        yield peer, codec_pb2_grpc.CodecServiceStub(channel)
    await server.stop(None)


async def write_on() -> AsyncIterator[codec_pb2.DecodeRequest]:
    while True:
        yield REQUEST
        await asyncio.sleep(0)


async def failure(call: Any) -> grpc.aio.AioRpcError | None:
    try:
        async for _ in call:
            pass
    except grpc.aio.AioRpcError as error:
        return error
    return None


async def test_an_error_that_meets_a_write_is_the_peers(peer: tuple[Peer, Any]) -> None:
    for _ in range(150):  # a race: without care some 30 of 100 are INTERNAL
        call = peer[1].Decode(write_on())
        ending = CallEnding(call)
        error = await failure(call)
        assert error is not None
        sent = await ending.error(error)
        assert sent is not None
        assert (sent.code(), sent.details()) == (grpc.StatusCode.UNAVAILABLE, "as the peer says")
        assert dict(sent.trailing_metadata()) == {"why": "because"}


async def test_ok_that_meets_a_write_is_ok(peer: tuple[Peer, Any]) -> None:
    peer[0].code = grpc.StatusCode.OK
    for _ in range(150):
        call = peer[1].Decode(write_on())
        ending = CallEnding(call)
        error = await failure(call)
        assert error is None or error.details() == WRITE_FAILURE
        assert error is None or await ending.error(error) is None
