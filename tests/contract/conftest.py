"""A mesh on fake stages that hears speech by its loudness, a gateway before it, and a socket to that."""

from collections.abc import AsyncIterator

import pytest

from services.orchestrator import session as session_module
from tests.contract.fake_mesh import Mesh
from tests.contract.gateway_server import Gateway, running_gateway
from tests.contract.realtime_socket import RealtimeSocket, open_socket
from tests.contract.test_live_session import LoudnessDetector


@pytest.fixture
async def mesh(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Mesh]:
    monkeypatch.setattr(session_module, "ServerVadDetector", LoudnessDetector)
    async with Mesh().running() as mesh:
        yield mesh


@pytest.fixture
async def gateway(mesh: Mesh) -> AsyncIterator[Gateway]:
    async with running_gateway(mesh.address) as gateway:
        yield gateway


@pytest.fixture
async def socket(gateway: Gateway) -> AsyncIterator[RealtimeSocket]:
    async with open_socket(gateway.socket_url) as socket:
        yield socket
