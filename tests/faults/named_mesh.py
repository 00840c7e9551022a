"""A mesh as a cluster has it: stages with replicas at addresses of their own, found by name and by nothing else."""

import asyncio
import itertools
import signal
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TextIO

from client.child_process import lines, send_signal, tethered
from client.mesh_settings import STAGES
from client.service_process import Service, ServiceProcess
from client.supervisor import module_command
from tests.contract.scraped_metrics import scraped_at
from tests.name_server import NameServer, free_port

# What a stage's replica has done, by its own count.
WORK = {
    "reasoner": "chroma_reasoner_steps_total",
    "speech": "chroma_speech_frames_total",
    "codec": "chroma_codec_frames_total",
}
SLOTS = 8
# Replicas that leave end the streams they have.
STAGE_FLAGS = (
    *("--checkpoint", "random:tiny", "--device", "cpu", "--threads", "1", "--slots", str(SLOTS)),
    *("--memory-share", "0.05", "--grace-seconds", "60", "--connection-age-seconds", "1"),
)


@dataclass
class Member:
    """A process of the mesh, and where it listens: a host of its own, at the port of its stage."""

    stage: str
    host: str
    child: ServiceProcess
    may_end: bool = False

    @property
    def name(self) -> str:
        """What its log lines begin with."""
        return f"{self.stage} at {self.host}"

    @property
    def service(self) -> Service:
        """The server in it."""
        return self.child.services[self.stage]

    @property
    def is_running(self) -> bool:
        """Whether it is the process that it was."""
        return self.child.process.returncode is None

    async def metrics(self) -> dict[str, float]:
        """What it counts, as `scraped` has it."""
        return await scraped_at(self.service.metrics_address)


@dataclass
class NamedMesh:
    """A running mesh: an orchestrator that was told three names, and the replicas that these stand for."""

    names: NameServer
    log: TextIO
    tasks: asyncio.TaskGroup
    members: list[Member] = field(default_factory=list)
    ports: dict[str, int] = field(default_factory=lambda: {stage: free_port("") for stage in STAGES})
    _named: dict[str, list[str]] = field(default_factory=lambda: {stage: [] for stage in STAGES})
    # Nothing else listens there, so that a stage's port is free on all of them.
    _hosts: Iterator[str] = field(default_factory=lambda: (f"127.0.0.{last}" for last in itertools.count(11)))

    @property
    def front(self) -> Member:
        """The orchestrator."""
        return next(member for member in self.members if member.stage == "orchestrator")

    @property
    def address(self) -> str:
        """Where the orchestrator listens."""
        return self.front.service.address.result()

    def replicas(self, stage: str) -> list[Member]:
        """A stage's replicas that the name stands for, and that are neither leaving nor killed."""
        named = self._named.get(stage, [])
        return [
            member for member in self.members if member.stage == stage and member.host in named and not member.may_end
        ]

    async def add_front(self) -> None:
        """Starts the orchestrator, which waits for its stages."""
        flags = [
            word for stage in STAGES for word in (f"--{stage}-address", self.names.target(stage, self.ports[stage]))
        ]
        await self._start("orchestrator", "127.0.0.1", *flags)

    async def start(self, stage: str) -> Member:
        """Starts a replica that nobody is told of yet; it is ready."""
        return await self._start(stage, next(self._hosts), "--port", str(self.ports[stage]), *STAGE_FLAGS)

    async def add(self, member: Member) -> None:
        """Makes a replica's address one of the name's."""
        self._named[member.stage].append(member.host)
        await self.names.change(member.stage, *self._named[member.stage])

    async def remove(self, member: Member) -> None:
        """Lets a replica leave as a cluster does: the name loses its address, and it is told to end."""
        self._named[member.stage].remove(member.host)
        await self.names.change(member.stage, *self._named[member.stage])
        member.may_end = True
        send_signal(member.child.process, signal.SIGTERM)

    def kill(self, member: Member) -> None:
        """Kills a replica, whose address stays one of the name's."""
        member.may_end = True
        send_signal(member.child.process, signal.SIGKILL)

    async def lost_calls(self) -> dict[str, float]:
        """The orchestrator's calls to stages that came to nothing, by stage and cause."""
        family = "chroma_orchestrator_lost_calls_total/"
        told = await self.front.metrics()
        return {name.removeprefix(family): value for name, value in told.items() if name.startswith(family)}

    async def _start(self, stage: str, host: str, *flags: str) -> Member:
        process = await asyncio.create_subprocess_exec(
            *tethered(module_command(stage)),
            *("--host", host, *flags),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=self.log,
        )
        service = Service(stage, asyncio.get_running_loop().create_future(), process)
        member = Member(stage, host, ServiceProcess(stage, process, time.monotonic(), {stage: service}))
        self.members.append(member)
        self.tasks.create_task(self._read(member), name=f"{member.name}")
        await service.ready.wait()
        return member

    async def _read(self, member: Member) -> None:
        process = member.child.process
        assert process.stdout is not None
        async for line in lines(process.stdout):
            print(f"{member.name} | {line}", file=self.log, flush=True)
            member.child.read_line(line)
        assert member.may_end, f"{member.name} ended by itself: {member.child.reason}"


@asynccontextmanager
async def named_mesh(folder: Path, *, replica_count: int) -> AsyncIterator[tuple[NamedMesh, list[Member]]]:
    """So many replicas of each stage on the tiny random model, and an orchestrator, within the block; and of each stage
    one more that is ready and that no name stands for.

    What they write is in `folder`.
    """
    with (folder / "services.log").open("w") as log:
        async with NameServer.open(folder) as names, asyncio.TaskGroup() as tasks:
            mesh = NamedMesh(names, log, tasks)
            try:

                async def start_and_add(stage: str) -> None:
                    await mesh.add(await mesh.start(stage))

                # In no order, as in a cluster: the names stand for nothing until the first replicas are ready. The
                # spare ones as well: to start is most of the work, and beside conversations it takes twice as long.
                async with asyncio.TaskGroup() as starts:
                    starts.create_task(mesh.add_front())
                    for stage in STAGES * replica_count:
                        starts.create_task(start_and_add(stage))
                    spare = [starts.create_task(mesh.start(stage)) for stage in STAGES]
                yield mesh, [start.result() for start in spare]
            finally:
                for member in mesh.members:
                    mesh.kill(member)
                for member in mesh.members:
                    await member.child.process.wait()
