"""The gateway behind a real HTTP server in this process, in front of any orchestrator."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import uvicorn
from prometheus_client import CollectorRegistry

from services.gateway.__main__ import Server, listen, server_config
from services.gateway.app import build_app
from services.gateway.front import Front, open_front
from services.gateway.settings import GatewaySettings


@dataclass
class Gateway:
    """A gateway that serves: `address` is host:port."""

    address: str
    front: Front
    server: uvicorn.Server
    is_encrypted: bool = False

    @property
    def url(self) -> str:
        return f"http{'s' * self.is_encrypted}://{self.address}"

    @property
    def socket_url(self) -> str:
        return f"ws{'s' * self.is_encrypted}://{self.address}"


@asynccontextmanager
async def running_gateway(orchestrator_address: str, **settings: Any) -> AsyncIterator[Gateway]:
    """Serves within the block, and drains after it."""
    told = GatewaySettings(orchestrator_address=orchestrator_address, grace_seconds=2, **settings)
    async with open_front(told, CollectorRegistry()) as front:
        with listen("127.0.0.1", 0) as listening:
            server = Server(server_config(build_app(front), told.tls))
            serving = asyncio.create_task(server.serve([listening]))
            try:
                yield Gateway(f"127.0.0.1:{listening.getsockname()[1]}", front, server, told.tls is not None)
            finally:
                await front.drain.drain(told.grace_seconds)
                server.should_exit = True
                await serving
