"""A mesh on this machine: its services in child processes that die together, or are started again one by one."""

import asyncio
import contextlib
import importlib.util
import json
import os
import signal
import socket
import sys
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from client.errors import ClientError, MeshError
from client.mesh_settings import GATEWAY, GRACE_SECONDS, STAGES, MeshSettings

SERVER_PACKAGES = ("torch", "transformers", "structlog", "pydantic_settings", "fastapi", "uvicorn")
KILL_SECONDS = 5
"""What a service gets on top of the grace time before it is killed."""

PIPE_SECONDS = 2
"""What the last lines of a service that has ended get to arrive."""

NOTICE_SECONDS = 0.5

FIRST_PAUSE_SECONDS = 0.5
LONGEST_PAUSE_SECONDS = 30.0
"""A process that has ended is started again after a pause, twice as long each time."""

STEADY_SECONDS = 60.0
"""A process that lived so long begins with the first pause again."""

TAIL_LINES = 20
MAXIMUM_LINE_BYTES = 2**20

Command = Callable[[str], Sequence[str]]
LineSink = Callable[[str, str], None]
"""Takes a process's name, which is its replica's or "colocated", and one line that it wrote."""

Kind = Literal["started", "ready", "lost", "stopped"]


@dataclass(frozen=True)
class ServiceEvent:
    """Something that happened to a service: it runs, is ready to serve, ended by itself (lost) or as asked (stopped).

    `service` is its name, "speech-1" where it has several replicas; all names of a process's services where it is the
    process that started or ended, and it has no address. `size`: how many replies at a time it has memory for, in
    words; "" for one that does not say. `seconds` after its start; `reason` and `pause_seconds` until the next one
    where it was lost.
    """

    service: str
    kind: Kind
    pid: int
    address: str
    metrics_address: str
    size: str
    seconds: float
    reason: str = ""
    pause_seconds: float = 0.0


Reporter = Callable[[ServiceEvent], None]


class ServiceDiedError(ClientError):
    """A service of the mesh ended by itself, and with it those that share its process."""

    def __init__(self, services: Sequence[str], status: int, reason: str) -> None:
        names = in_words(services)
        what = f"the {names} service" if len(services) == 1 else f"the process of {names}"
        super().__init__(f"{what} {describe_status(status)}: {reason}")
        self.service = names
        self.status = status
        self.reason = reason


def describe_status(status: int) -> str:
    """How a process ended, in words."""
    if status >= 0:
        return f"exited with status {status}"
    try:
        return f"was killed by {signal.Signals(-status).name}"
    except ValueError:
        return f"was killed by signal {-status}"


def in_words(names: Sequence[str]) -> str:
    """ "reasoner", "reasoner and speech", "reasoner, speech and codec"."""
    *others, last = names
    return f"{', '.join(others)} and {last}" if others else last


@dataclass
class Service:
    """A server of a child process, and what it has said; its process is another one after each start."""

    name: str
    address: "asyncio.Future[str]"
    process: asyncio.subprocess.Process | None = None
    metrics_address: str = ""
    size: str = ""
    ready: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def pid(self) -> int:
        """The process that it is in now, or was in last."""
        assert self.process is not None, "it was started"
        return self.process.pid


@dataclass
class Replica:
    """A place in the mesh that a process is to fill: its module, which of the module's it is, and its services."""

    module: str
    index: int
    name: str
    stage_addresses: Mapping[str, str]
    services: dict[str, Service]

    @property
    def ports(self) -> dict[str, int]:
        """The ports it had before, so that who knows it finds it there again; none at the first start."""
        ports = {}
        for stage, service in self.services.items():
            prefix = "" if stage == self.module else f"{stage}-"
            if service.address.done():
                ports[f"{prefix}port"] = port_of(service.address.result())
            if service.metrics_address:
                ports[f"{prefix}metrics-port"] = port_of(service.metrics_address)
        return ports


@dataclass
class ServiceProcess:
    """A child process with one service or several, and what it has said."""

    name: str
    process: asyncio.subprocess.Process
    started_at: float
    services: dict[str, Service]
    failure: str = ""
    error: str = ""
    stderr_tail: deque[str] = field(default_factory=lambda: deque(maxlen=TAIL_LINES))
    readers: "list[asyncio.Task[None]]" = field(default_factory=list)

    @property
    def names(self) -> list[str]:
        """What its services are called."""
        return [service.name for service in self.services.values()]

    @property
    def age_seconds(self) -> float:
        """How long ago it was started."""
        return time.monotonic() - self.started_at

    def event(
        self, kind: Kind, service: Service | None = None, *, reason: str = "", pause_seconds: float = 0.0
    ) -> ServiceEvent:
        """What there is to report now, of one service or of the process."""
        if service is None and len(self.services) == 1:
            (service,) = self.services.values()
        name = in_words(self.names) if service is None else service.name
        address = service.address.result() if service is not None and service.address.done() else ""
        metrics_address, size = ("", "") if service is None else (service.metrics_address, service.size)
        return ServiceEvent(
            name, kind, self.process.pid, address, metrics_address, size, self.age_seconds, reason, pause_seconds
        )

    def read_line(self, line: str) -> Service | None:
        """Takes in a line of its log; returns the service that became ready with it."""
        try:
            entry = json.loads(line)
        except ValueError:
            return None
        if not isinstance(entry, dict):
            return None
        event, service = entry.get("event"), self.services.get(str(entry.get("stage")))
        said_by = f"{service.name}: " if service is not None and len(self.services) > 1 else ""
        if event == "failed":
            reason = str(entry.get("reason") or last_line(str(entry.get("exception", ""))) or line)
            self.failure = self.failure or said_by + reason
        elif entry.get("level") in ("error", "critical"):
            self.error = said_by + str(entry.get("reason") or event)
        elif service is None:
            return None
        elif event == "listening":
            if not service.address.done():  # or it listens where it did before
                service.metrics_address = str(entry.get("metrics_address") or "")
                service.address.set_result(str(entry.get("address")))
        elif event == "memory":
            service.size = str(entry.get("summary") or "")
        elif event == "ready" and service.address.done():
            service.ready.set()
            return service
        return None

    async def drain(self) -> None:
        """Waits for its last lines once it has ended; a process of its own that holds the pipes is not waited for."""
        _, unread = await asyncio.wait(self.readers, timeout=PIPE_SECONDS)
        for task in unread:
            task.cancel()

    @property
    def reason(self) -> str:
        """Why it ended, as far as it said so."""
        reason = (
            self.failure or self.error or last_line("\n".join(self.stderr_tail)) or "it said nothing about the cause"
        )
        return "; ".join(line.strip() for line in reason.splitlines() if line.strip())


class RunningMesh:
    """A mesh that is ready, its services by the names of their replicas.

    Unless lost ones are started again, a `ServiceDiedError` interrupts whoever is inside `running_mesh` when one ends.
    """

    def __init__(self, settings: MeshSettings, services: dict[str, Service]) -> None:
        self._settings = settings
        self.services = services

    @property
    def address(self) -> str:
        """Where the (first) orchestrator listens, "host:port"."""
        return self.addresses[0]

    @property
    def addresses(self) -> list[str]:
        """Where the orchestrators listen."""
        return addresses(self.services, self.replicas("orchestrator"))

    @property
    def url(self) -> str | None:
        """Where the gateway answers HTTP; None without one."""
        return f"http://{self.services[GATEWAY].address.result()}" if GATEWAY in self.services else None

    def replicas(self, service: str) -> list[str]:
        """The names of a service's replicas."""
        return replica_names(self._settings, service)

    def stage_address(self, service: str) -> str:
        """Where a service listens, "host:port", with commas between several replicas."""
        return ",".join(addresses(self.services, self.replicas(service)))


def tethered(command: Sequence[str]) -> list[str]:
    """The command, made to end with this process."""
    return [sys.executable, "-I", "-S", str(Path(__file__).with_name("tether.py")), str(os.getpid()), *command]


def module_command(process: str) -> list[str]:
    """How a process is started: by this interpreter, never from the working directory."""
    return [sys.executable, "-P", "-m", f"services.{process}"]


def check_server_installed() -> None:
    """Refuses to start services where only the client is installed."""
    missing = [package for package in SERVER_PACKAGES if importlib.util.find_spec(package) is None]
    if missing:
        raise ClientError(f"the services cannot run without {', '.join(missing)}: pip install 'chroma-mesh[server]'")


def ignore(*_: object) -> None:
    """The sink of what nobody wants to know."""


def check_addresses_free(settings: MeshSettings) -> None:
    """Refuses an address that is taken, or given twice, at once rather than when the models are loaded."""
    with contextlib.ExitStack() as taken:
        for host, port in settings.fixed_addresses:
            try:
                family = socket.AF_INET6 if ":" in host else socket.AF_INET
                taken.enter_context(socket.create_server((host, port), family=family))
            except OSError as error:
                cause = error.strerror or str(error)
                raise ClientError(
                    f"nothing can listen at {host}:{port} ({cause}): give another address or port"
                ) from None


@asynccontextmanager
async def running_mesh(
    settings: MeshSettings,
    *,
    report: Reporter = ignore,
    log: LineSink = ignore,
    command: Command = module_command,
    restart: bool = False,
) -> AsyncIterator[RunningMesh]:
    """Starts the services, yields when all are ready, and stops them all at exit, whatever the reason.

    `report` is told what happens to each service, `log` gets every line they write, `command` says how a process with a
    module's services is started. ServiceDiedError when one ends by itself, also while the caller is inside; with
    `restart` only when it has never been ready, and after that it is started again where it was.
    """
    check_addresses_free(settings)
    supervisor = Supervisor(settings, report, log, command, restart)
    try:
        async with asyncio.TaskGroup() as readers:
            try:
                async with asyncio.TaskGroup() as watchers:
                    try:
                        yield await supervisor.start(readers, watchers)
                    except MeshError:  # a lost service is seen by its callers first: its end says more
                        await supervisor.wait_for_end()
                        raise
                    supervisor.stop_watching()
            finally:
                await supervisor.stop()
    except BaseExceptionGroup as group:
        raise first_cause(group) from None


def first_cause(group: BaseExceptionGroup[BaseException]) -> BaseException:
    """The exception that made the others of a group happen."""
    error: BaseException = group
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error


class Supervisor:
    """Starts services, reads what they write, starts them again and stops them; made by `running_mesh`."""

    def __init__(
        self, settings: MeshSettings, report: Reporter, log: LineSink, command: Command, restart: bool
    ) -> None:
        self._settings = settings
        self._report = report
        self._log = log
        self._command = command
        self._restart = restart
        self._processes: dict[str, ServiceProcess] = {}
        self._watching: list[asyncio.Task[None]] = []

    async def start(self, readers: asyncio.TaskGroup, watchers: asyncio.TaskGroup) -> RunningMesh:
        """Starts the stages side by side, then the orchestrators in front of them, then the gateway.

        `watchers` fails when a process ends for good; `readers` goes on until the last of them has.
        """
        services: dict[str, Service] = {}
        for module, stages in self._settings.stage_processes.items():
            services |= self._keep(module, stages, {}, readers, watchers)
        for service in services.values():
            await service.ready.wait()
        stage_addresses = {
            stage: ",".join(addresses(services, replica_names(self._settings, stage))) for stage in STAGES
        }
        fronts = self._keep("orchestrator", ("orchestrator",), stage_addresses, readers, watchers)
        for service in fronts.values():
            await service.ready.wait()
        services |= fronts
        if self._settings.http_port is not None:
            called = {"orchestrator": ",".join(addresses(fronts, list(fronts)))}
            gateway = self._keep(GATEWAY, (GATEWAY,), called, readers, watchers)
            await gateway[GATEWAY].ready.wait()
            services |= gateway
        return RunningMesh(self._settings, services)

    async def wait_for_end(self) -> None:
        """Gives the end of a service a moment to be noticed; the watchers then interrupt the caller."""
        await asyncio.wait(self._watching, timeout=NOTICE_SECONDS, return_when=asyncio.FIRST_COMPLETED)
        await asyncio.sleep(0)

    def stop_watching(self) -> None:
        """From here on services may end."""
        for task in self._watching:
            task.cancel()

    async def stop(self) -> None:
        """Stops the gateway, then the orchestrators, which drain through the stages, then these.

        Cancelled, it kills them all.
        """
        fronts = replica_names(self._settings, "orchestrator")
        try:
            await self._stop(GATEWAY)
            await self._stop(*fronts)
            await self._stop(*(name for name in self._processes if name not in (*fronts, GATEWAY)))
        finally:
            for child in self._processes.values():
                send_signal(child.process, signal.SIGKILL)
            for child in self._processes.values():
                await child.process.wait()
                await child.drain()

    def _keep(
        self,
        module: str,
        stages: Sequence[str],
        stage_addresses: Mapping[str, str],
        readers: asyncio.TaskGroup,
        watchers: asyncio.TaskGroup,
    ) -> dict[str, Service]:
        """Starts all replicas of a module and watches over them; returns their services by name."""
        services: dict[str, Service] = {}
        loop = asyncio.get_running_loop()
        for index in range(self._settings.replica_count(module)):
            held = {stage: Service(self._settings.replica_name(stage, index), loop.create_future()) for stage in stages}
            services |= {service.name: service for service in held.values()}
            name = self._settings.replica_name(module, index)
            replica = Replica(module, index, name, stage_addresses, held)
            self._watching.append(watchers.create_task(self._watch(replica, readers), name=f"watch {name}"))
        return services

    async def _watch(self, replica: Replica, readers: asyncio.TaskGroup) -> None:
        pause_seconds, was_ready = FIRST_PAUSE_SECONDS, False
        while True:
            child = await self._spawn(replica, readers)
            status = await child.process.wait()
            await child.drain()
            was_ready = was_ready or all(service.ready.is_set() for service in replica.services.values())
            for service in replica.services.values():
                service.ready.clear()
            if not (self._restart and was_ready):
                raise ServiceDiedError(child.names, status, child.reason)
            if child.age_seconds >= STEADY_SECONDS:
                pause_seconds = FIRST_PAUSE_SECONDS
            reason = describe_status(status) + (f": {child.reason}" if status else "")
            self._report(child.event("lost", reason=reason, pause_seconds=pause_seconds))
            await asyncio.sleep(pause_seconds)
            pause_seconds = min(LONGEST_PAUSE_SECONDS, 2 * pause_seconds)

    async def _spawn(self, replica: Replica, readers: asyncio.TaskGroup) -> ServiceProcess:
        process = await asyncio.create_subprocess_exec(
            *tethered(self._command(replica.module)),
            *self._settings.flags(replica.module, replica.stage_addresses, replica.index, replica.ports),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            process_group=0,  # a terminal's Ctrl-C is for the supervisor, which stops them in order
        )
        child = ServiceProcess(replica.name, process, time.monotonic(), replica.services)
        for service in replica.services.values():
            service.process = process
        child.readers = [
            readers.create_task(self._read_stdout(child), name=f"stdout of {replica.name}"),
            readers.create_task(self._read_stderr(child), name=f"stderr of {replica.name}"),
        ]
        self._processes[replica.name] = child
        self._report(child.event("started"))
        return child

    async def _read_stdout(self, child: ServiceProcess) -> None:
        assert child.process.stdout is not None
        async for line in lines(child.process.stdout):
            self._log(child.name, line)
            if (service := child.read_line(line)) is not None:
                self._report(child.event("ready", service))

    async def _read_stderr(self, child: ServiceProcess) -> None:
        assert child.process.stderr is not None
        async for line in lines(child.process.stderr):
            self._log(child.name, line)
            child.stderr_tail.append(line)

    async def _stop(self, *names: str) -> None:
        """Asks processes to end and waits, at most the grace time and a little more."""
        children = [self._processes[name] for name in names if name in self._processes]
        running = [child for child in children if child.process.returncode is None]
        for child in running:
            send_signal(child.process, signal.SIGTERM)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(GRACE_SECONDS + KILL_SECONDS):
                for child in running:
                    await child.process.wait()
                    self._report(child.event("stopped"))


def send_signal(process: asyncio.subprocess.Process, number: signal.Signals) -> None:
    """Signals a child unless it has ended already."""
    if process.returncode is None:
        with contextlib.suppress(ProcessLookupError):
            process.send_signal(number)


def replica_names(settings: MeshSettings, service: str) -> list[str]:
    """What the replicas of a service are called."""
    return [settings.replica_name(service, index) for index in range(settings.replica_count(service))]


def addresses(services: Mapping[str, Service], names: Sequence[str]) -> list[str]:
    """Where the services of these names listen."""
    return [services[name].address.result() for name in names]


def port_of(address: str) -> int:
    """The port of "host:port"."""
    return int(address.rpartition(":")[2])


def last_line(text: str) -> str:
    """The last line that is not empty; "" without one."""
    return next((line.strip() for line in reversed(text.splitlines()) if line.strip()), "")


async def lines(stream: asyncio.StreamReader) -> AsyncIterator[str]:
    """Lines without their end; one that is longer than 1 MiB comes in pieces."""
    pending = b""
    while block := await stream.read(2**16):
        *whole, pending = (pending + block).split(b"\n")
        for line in whole:
            yield line.decode(errors="replace").rstrip("\r")
        if len(pending) > MAXIMUM_LINE_BYTES:
            yield pending.decode(errors="replace")
            pending = b""
    if pending:
        yield pending.decode(errors="replace")
