"""Connections over which nothing comes any more, and that nobody has ended."""

import asyncio

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from prometheus_client import CollectorRegistry

from services.runtime.channel import open_channel
from services.runtime.server import running
from services.runtime.settings import ServiceSettings
from tests.faults.tcp_proxy import TcpProxy

# Four are promised. By default gRPC gives a ping a minute, whatever the timeout of its keepalive is said to be.
FAR_TOO_LONG_SECONDS = 30


async def nothing() -> None:
    """Neither loads nor closes anything."""


async def test_a_peer_that_is_silently_gone_is_noticed() -> None:
    async with (
        TcpProxy.open() as proxy,
        running(
            stage="codec",
            settings=ServiceSettings(),
            add=lambda _: None,
            services=[],
            prepare=nothing,
            close=nothing,
            registry=CollectorRegistry(),
        ) as server,
    ):
        proxy.target = server.address
        async with open_channel(proxy.address) as channel:
            watch = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest())
            assert (await watch.read()).status == health_pb2.HealthCheckResponse.SERVING
            proxy.stall()
            with pytest.raises(grpc.aio.AioRpcError) as raised:
                async with asyncio.timeout(FAR_TOO_LONG_SECONDS):
                    await watch.read()
            assert raised.value.code() is grpc.StatusCode.UNAVAILABLE
            proxy.resume()
