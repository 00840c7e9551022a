"""A mesh of real processes, its gateway too, and a real Prometheus that scrapes it with the project's own rules."""

import asyncio
import os
import signal
import sys
import time
import urllib.request
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from client.connection import connect
from client.events import Audio
from client.mesh_settings import Device, MeshSettings
from client.pcm import USER_RATE_HZ
from client.supervisor import RunningMesh, module_command, running_mesh
from k8s.monitoring.generated_files import rule_file
from tests.observe.prometheus import Prometheus, Target, running_prometheus

SLOTS = 4
SPEED = 20.0
"""How many times faster than in production the rules' spans pass: 5 minutes in 15 seconds."""

SCRAPE_SECONDS = 1.0
# A stage that is to stay away: what is started for it ends at once, and again.
ABSENT = (sys.executable, "-c", "raise SystemExit(1)")


class Absences:
    """Which services can't be started now."""

    def __init__(self) -> None:
        self.modules: set[str] = set()

    def command(self, module: str) -> Sequence[str]:
        """What is started for a module."""
        return ABSENT if module in self.modules else module_command(module)


@dataclass(frozen=True)
class WatchedMesh:
    """What runs: the mesh, who watches it, and what is kept from starting."""

    mesh: RunningMesh
    prometheus: Prometheus
    absences: Absences

    async def until_watched(self) -> None:
        """Returns when everything has been scraped, and nothing that was only a beginning is an alert any more."""
        is_calm = False
        while not is_calm:
            await asyncio.sleep(SCRAPE_SECONDS)
            healths = {target["health"] for target in await self.prometheus.targets()}
            is_calm = healths == {"up"} and not await self.prometheus.alerts()

    async def until_seen(self) -> None:
        """Returns when what has happened is scraped, and rules have seen it."""
        await asyncio.sleep(3 * SCRAPE_SECONDS)

    async def until(self, *alerts: str) -> None:
        """Returns when all of these alerts have fired, at some moment since this was called."""
        missing = set(alerts)
        while missing:
            missing -= await self.prometheus.alerts()
            await asyncio.sleep(SCRAPE_SECONDS)

    def kill(self, stage: str) -> None:
        """Kills a stage that does not come back before `revive`."""
        self.absences.modules.add(stage)
        os.kill(self.mesh.services[stage].pid, signal.SIGKILL)

    async def revive(self, stage: str) -> None:
        """Lets the stage come back, and waits until it is ready."""
        self.absences.modules.discard(stage)
        await self.mesh.services[stage].ready.wait()

    async def bench(self, *options: str) -> str:
        """`chroma-mesh bench` on the mesh; what it printed."""
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-P", "-m", "client", "bench", "--address", self.mesh.address, *options,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )  # fmt: skip
        try:
            out, _ = await process.communicate()
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()
        return out.decode()

    async def interrupt(self) -> None:
        """A reply that is stopped at its first sound."""
        async with connect(self.mesh.address) as mesh, mesh.session() as session:
            await session.send_text("Speak until I stop you.")
            await session.end_turn()
            async for event in session.reply():
                if isinstance(event, Audio):
                    await session.cancel_reply()

    @asynccontextmanager
    async def crowd(self) -> AsyncIterator[None]:
        """As many sessions as there is room for, within the block; each is in the middle of what it says."""
        async with connect(self.mesh.address) as mesh, AsyncExitStack() as stack:
            for _ in range(SLOTS):
                session = await stack.enter_async_context(mesh.session())
                await session.send_audio(np.zeros(USER_RATE_HZ, np.float32))
            yield

    async def ask_gateway(self) -> None:
        """A request that it answers."""
        url = f"{self.mesh.url}/v1/models"
        await asyncio.to_thread(lambda: urllib.request.urlopen(url, timeout=30).read())


@asynccontextmanager
async def watched_mesh(folder: Path) -> AsyncIterator[WatchedMesh]:
    """A mesh on the tiny random model within the block; what its processes write is in `folder`."""
    settings = MeshSettings(checkpoint="random:tiny", device=Device.CPU, threads=1, slots=SLOTS, http_port=0)
    absences = Absences()
    with (folder / "services.log").open("w") as log:
        async with running_mesh(
            settings,
            log=lambda name, line: print(f"{name} | {line}", file=log, flush=True),
            command=absences.command,
            restart=True,
        ) as mesh:
            targets = [Target(name, name, service.metrics_address) for name, service in mesh.services.items()]
            async with running_prometheus(
                folder, targets, rule_file(SPEED), scrape_seconds=SCRAPE_SECONDS
            ) as prometheus:
                yield WatchedMesh(mesh, prometheus, absences)


def moment() -> float:
    """Now, as Prometheus counts."""
    return time.time()
