"""A codec service with a body given by the test, on a real server."""

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any

import pytest
from chroma_mesh.codec.v1 import codec_pb2_grpc
from prometheus_client import CollectorRegistry

from services.runtime.channel import open_channel
from services.runtime.server import running
from services.runtime.settings import ServiceSettings

Body = Callable[[Any, Any], Awaitable[Any]]
Codec = Callable[..., AbstractAsyncContextManager[codec_pb2_grpc.CodecServiceStub]]


async def nothing() -> None:
    """Neither loads nor closes anything."""


@pytest.fixture
def codec() -> Codec:
    """`codec(encode=..., decode=...)` serves within its block and gives a stub."""

    @asynccontextmanager
    async def serve_codec(
        *, encode: Body | None = None, decode: Body | None = None, settings: ServiceSettings | None = None
    ) -> AsyncIterator[Any]:
        class FakeCodec(codec_pb2_grpc.CodecServiceServicer):
            async def Encode(self, request: Any, context: Any) -> Any:
                assert encode is not None
                return await encode(request, context)

            async def Decode(self, requests: Any, context: Any) -> None:
                assert decode is not None
                await decode(requests, context)

        async with (
            running(
                stage="codec",
                settings=settings or ServiceSettings(),
                add=lambda server: codec_pb2_grpc.add_CodecServiceServicer_to_server(FakeCodec(), server),
                services=["chroma_mesh.codec.v1.CodecService"],
                prepare=nothing,
                close=nothing,
                registry=CollectorRegistry(),
            ) as server,
            open_channel(server.address) as channel,
        ):
            yield codec_pb2_grpc.CodecServiceStub(channel)

    return serve_codec
