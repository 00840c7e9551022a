"""A mesh of real processes, each replica behind a proxy, in which anything can be made to fail."""

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

from client.mesh_settings import SERVICES, STAGES, Device, MeshSettings
from client.supervisor import RunningMesh, ServiceEvent, running_mesh
from tests.faults.tcp_proxy import TcpProxy


@dataclass(frozen=True, kw_only=True)
class ProxiedSettings(MeshSettings):
    """A mesh whose orchestrators reach every stage through proxies, by replica name."""

    proxies: Mapping[str, TcpProxy] = field(default_factory=dict)

    def flags(
        self, process: str, stage_addresses: Mapping[str, str], index: int = 0, ports: Mapping[str, int] | None = None
    ) -> list[str]:
        """As of any mesh, with the proxies' addresses for the stages'."""
        proxied = {}
        for stage, addresses in stage_addresses.items():
            names = [self.replica_name(stage, place) for place in range(self.replica_count(stage))]
            for name, address in zip(names, addresses.split(","), strict=True):
                self.proxies[name].target = address
            proxied[stage] = ",".join(self.proxies[name].address for name in names)
        return super().flags(process, proxied, index, ports)


class FaultyMesh:
    """A running mesh with two replicas of everything, and the proxies in front of them."""

    def __init__(self, mesh: RunningMesh, proxies: Mapping[str, TcpProxy], happened: asyncio.Event) -> None:
        self._mesh = mesh
        self._happened = happened
        self.proxies = proxies

    @property
    def addresses(self) -> list[str]:
        """Where the orchestrators are reached: their proxies."""
        return [self.proxies[name].address for name in self.replicas("orchestrator")]

    def replicas(self, service: str) -> list[str]:
        """The names of a service's replicas."""
        return self._mesh.replicas(service)

    def pid(self, name: str) -> int:
        """The process of a replica."""
        return self._mesh.services[name].pid

    def signal(self, name: str, number: signal.Signals) -> None:
        """Signals a replica's process."""
        os.kill(self.pid(name), number)

    async def until_replaced(self, name: str, pid: int) -> None:
        """Returns when another process than `pid` is this replica, is ready, and is connected to an orchestrator."""
        service = self._mesh.services[name]
        while service.pid == pid:
            self._happened.clear()
            await self._happened.wait()
        await service.ready.wait()
        await self.until_connected(name)

    async def until_connected(self, name: str) -> None:
        """Returns when somebody is connected to a replica through its proxy."""
        await self.proxies[name].until_answered()


@asynccontextmanager
async def faulty_mesh(log_file: Path, *, orchestrators: int = 1, slots: int = 8) -> AsyncIterator[FaultyMesh]:
    """Two replicas of each stage on the tiny random model, and their orchestrators, within the block.

    What the services write goes to `log_file`.
    """
    replicas = {**dict.fromkeys(STAGES, 2), "orchestrator": orchestrators}
    names = MeshSettings(replicas=replicas)
    happened = asyncio.Event()
    async with AsyncExitStack() as stack:
        log = stack.enter_context(log_file.open("w"))
        proxies = {
            names.replica_name(service, index): await stack.enter_async_context(TcpProxy.open())
            for service in SERVICES
            for index in range(replicas[service])
        }
        settings = ProxiedSettings(device=Device.CPU, threads=1, slots=slots, replicas=replicas, proxies=proxies)

        def report(event: ServiceEvent) -> None:
            log.write(f"{event.service} | {event.kind} pid {event.pid} {event.reason}\n")
            happened.set()

        mesh = await stack.enter_async_context(
            running_mesh(settings, report=report, log=lambda name, line: log.write(f"{name} | {line}\n"), restart=True)
        )
        for name, address in zip(mesh.replicas("orchestrator"), mesh.addresses, strict=True):
            proxies[name].target = address
        yield FaultyMesh(mesh, proxies, happened)
