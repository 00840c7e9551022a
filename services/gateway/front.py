"""What all requests share: the way to the orchestrators, the settings, the drain."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

import grpc
from prometheus_client import CollectorRegistry
from starlette.requests import HTTPConnection

from client.connection import Mesh
from services.gateway.drain import Drain
from services.gateway.metrics import GatewayMetrics
from services.gateway.realtime.socket_limit import SocketLimit
from services.gateway.settings import GatewaySettings
from services.runtime.channel import open_channel


@dataclass(frozen=True)
class Front:
    """What all requests share."""

    settings: GatewaySettings
    channel: grpc.aio.Channel
    registry: CollectorRegistry
    metrics: GatewayMetrics
    drain: Drain
    sockets: SocketLimit

    def mesh(self, api_key: str | None) -> Mesh:
        """The mesh as the bearer of a key sees it."""
        return Mesh.over(self.channel, self.settings.orchestrator_address, api_key)


@asynccontextmanager
async def open_front(settings: GatewaySettings, registry: CollectorRegistry) -> AsyncIterator[Front]:
    """Opens the way to the orchestrators, which need not be there yet, and closes it at the end."""
    channel = open_channel(
        settings.orchestrator_address,
        service="chroma_mesh.orchestrator.v1.OrchestratorService",
        repeated=["ListVoices"],
        tls=settings.orchestrator_tls,
    )
    metrics = GatewayMetrics(registry)
    async with channel:
        yield Front(settings, channel, registry, metrics, Drain(), SocketLimit(settings.socket_limit, metrics))


def front_of(connection: HTTPConnection) -> Front:
    """What the app was built with, for a request or a socket."""
    front = connection.app.state.front
    assert isinstance(front, Front)
    return front
