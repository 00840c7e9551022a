"""What sockets cost in memory, in a gateway that is a process of its own.

`pytest -rP tests/contract/test_realtime_memory.py` prints the figures.
"""

import asyncio
import json
import sys
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass

import psutil

from tests.contract.fake_mesh import Mesh
from tests.contract.realtime_socket import open_socket

SOCKET_COUNT = 64
LIMIT_MB = 100


@dataclass(frozen=True)
class GatewayProcess:
    url: str
    pid: int

    @property
    def resident_mb(self) -> float:
        return float(psutil.Process(self.pid).memory_info().rss) / 1e6


@asynccontextmanager
async def gateway_process(orchestrator_address: str) -> AsyncIterator[GatewayProcess]:
    words = ["-m", "services.gateway", "--orchestrator-address", orchestrator_address, "--port", "0"]
    process = await asyncio.create_subprocess_exec(
        sys.executable, *words, "--log-format", "json", stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT
    )
    assert process.stdout is not None
    try:
        address = ""
        while not address:
            line = json.loads(await process.stdout.readline())
            address = line.get("address", "")
        draining = asyncio.create_task(process.stdout.read())
        yield GatewayProcess(f"ws://{address}", process.pid)
    finally:
        process.terminate()
        await process.wait()
    await draining


async def test_idle_sockets_are_cheap() -> None:
    async with Mesh().running() as mesh, gateway_process(mesh.address) as gateway, AsyncExitStack() as stack:
        async with open_socket(gateway.url) as first:
            await first.ask("one")  # what is loaded or opened once
        before = gateway.resident_mb
        sockets = [await stack.enter_async_context(open_socket(gateway.url)) for _ in range(SOCKET_COUNT)]
        idle = gateway.resident_mb - before
        for socket in sockets:
            await socket.ask("one")
        after_a_turn = gateway.resident_mb - before
    figures = f"{SOCKET_COUNT} idle sockets: {idle:.1f} MB; after a turn of each: {after_a_turn:.1f} MB"
    sys.stdout.write(f"{figures}; the process without: {before:.0f} MB\n")
    assert after_a_turn < LIMIT_MB
