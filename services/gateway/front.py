"""What all requests share: the way to the orchestrators, the settings, the drain."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

import grpc
from chroma_mesh.orchestrator.v1 import orchestrator_pb2
from prometheus_client import CollectorRegistry
from starlette.requests import HTTPConnection

from client.connection import Mesh
from services.gateway.drain import Drain
from services.gateway.metrics import GatewayMetrics
from services.gateway.realtime.socket_limit import SocketLimit
from services.gateway.settings import GatewaySettings
from services.runtime.channel import open_channel
from services.runtime.server import span_writer
from services.runtime.tracing import SpanWriter

ORCHESTRATOR = orchestrator_pb2.DESCRIPTOR.services_by_name["OrchestratorService"].full_name


@dataclass(frozen=True)
class Front:
    """What all requests share."""

    settings: GatewaySettings
    channel: grpc.aio.Channel
    registry: CollectorRegistry
    metrics: GatewayMetrics
    drain: Drain
    sockets: SocketLimit
    writer: SpanWriter | None

    def mesh(self, api_key: str | None) -> Mesh:
        """The mesh as the bearer of a key sees it."""
        return Mesh.over(self.channel, self.settings.orchestrator_address, api_key)


@asynccontextmanager
async def open_front(settings: GatewaySettings, registry: CollectorRegistry) -> AsyncIterator[Front]:
    """Opens the way to the orchestrators, which need not be there yet, and closes it at the end; raises CannotStart."""
    channel = open_channel(
        settings.orchestrator_address,
        service=ORCHESTRATOR,
        repeated=["ListVoices"],
        tls=settings.orchestrator_tls,
    )
    metrics = GatewayMetrics(registry)
    sockets = SocketLimit(settings.socket_limit, metrics)
    async with span_writer(settings, "gateway") as writer, channel:
        yield Front(settings, channel, registry, metrics, Drain(), sockets, writer)


def front_of(connection: HTTPConnection) -> Front:
    """What the app was built with, for a request or a socket."""
    front = connection.app.state.front
    assert isinstance(front, Front)
    return front
