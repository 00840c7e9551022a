"""A mesh of real processes, each replica behind a proxy, in which anything can be made to fail."""

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from client.mesh_settings import SERVICES, Device, MeshSettings
from client.service_process import ServiceEvent
from client.supervisor import RunningMesh, running_mesh
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

    def orchestrator_at(self, address: str) -> str:
        """The name of the orchestrator that is reached at one of `addresses`."""
        return next(name for name in self.replicas("orchestrator") if self.proxies[name].address == address)

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
        """Returns when a replica answers through its proxy: somebody who is connected to it, or asks."""
        if name not in self.replicas("orchestrator"):
            await self.proxies[name].until_answered()  # the orchestrators ask
            return
        async with grpc.aio.insecure_channel(self.proxies[name].address) as channel:
            check = health_pb2_grpc.HealthStub(channel).Check
            health = await check(health_pb2.HealthCheckRequest(), wait_for_ready=True)
        assert health.status == health_pb2.HealthCheckResponse.SERVING, f"{name} does not serve"


@asynccontextmanager
async def faulty_mesh(folder: Path, *, slots: int = 8) -> AsyncIterator[FaultyMesh]:
    """Two replicas of each service on the tiny random model, within the block; the orchestrators share a journal.

    The journal, and what the services write, are in `folder`.
    """
    replicas, journal = dict.fromkeys(SERVICES, 2), str(folder / "journal.db")
    names = MeshSettings(replicas=replicas, journal=journal)
    happened = asyncio.Event()
    async with AsyncExitStack() as stack:
        log = stack.enter_context((folder / "services.log").open("w"))
        proxies = {
            names.replica_name(service, index): await stack.enter_async_context(TcpProxy.open())
            for service in SERVICES
            for index in range(replicas[service])
        }
        settings = ProxiedSettings(
            checkpoint="random:tiny",
            device=Device.CPU,
            threads=1,
            slots=slots,
            replicas=replicas,
            journal=journal,
            proxies=proxies,
        )

        def report(event: ServiceEvent) -> None:
            log.write(f"{event.service} | {event.kind} pid {event.pid} {event.reason}\n")
            happened.set()

        mesh = await stack.enter_async_context(
            running_mesh(settings, report=report, log=lambda name, line: log.write(f"{name} | {line}\n"), restart=True)
        )
        for name, address in zip(mesh.replicas("orchestrator"), mesh.addresses, strict=True):
            proxies[name].target = address
        yield FaultyMesh(mesh, proxies, happened)
