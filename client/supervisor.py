"""A mesh on this machine: its services in child processes that live and die together."""

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
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from client.errors import ClientError, MeshError
from client.mesh_settings import GRACE_SECONDS, STAGES, MeshSettings

SERVER_PACKAGES = ("torch", "transformers", "structlog", "pydantic_settings")
KILL_SECONDS = 5
"""What a service gets on top of the grace time before it is killed."""

PIPE_SECONDS = 2
"""What the last lines of a service that has ended get to arrive."""

NOTICE_SECONDS = 0.5

TAIL_LINES = 20
MAXIMUM_LINE_BYTES = 2**20

Command = Callable[[str], Sequence[str]]
LineSink = Callable[[str, str], None]
"""Takes a process's name, which is its service's or "colocated", and one line that it wrote."""


@dataclass(frozen=True)
class ServiceEvent:
    """Something that happened to a service: its process runs, it is ready to serve, or it has ended as asked.

    `service` names all of a process's services where it is the process that started or stopped, and it has no address.
    `size`: how many replies at a time it has memory for, in words; "" for one that does not say.
    """

    service: str
    kind: Literal["started", "ready", "stopped"]
    pid: int
    address: str
    metrics_address: str
    size: str
    seconds: float


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
    """A server of a child process, and what it has said."""

    name: str
    process: asyncio.subprocess.Process
    address: "asyncio.Future[str]"
    metrics_address: str = ""
    size: str = ""
    ready: asyncio.Event = field(default_factory=asyncio.Event)


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

    def event(self, kind: Literal["started", "ready", "stopped"], service: Service | None = None) -> ServiceEvent:
        """What there is to report now, of one service or of the process."""
        if service is None and len(self.services) == 1:
            (service,) = self.services.values()
        name = in_words(list(self.services)) if service is None else service.name
        address = service.address.result() if service is not None and service.address.done() else ""
        metrics_address, size = ("", "") if service is None else (service.metrics_address, service.size)
        seconds = time.monotonic() - self.started_at
        return ServiceEvent(name, kind, self.process.pid, address, metrics_address, size, seconds)

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
        elif event == "listening" and not service.address.done():
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
    """A mesh that is ready; a `ServiceDiedError` interrupts whoever is inside `running_mesh` when a service ends."""

    def __init__(self, services: dict[str, Service]) -> None:
        self.services = services

    @property
    def address(self) -> str:
        """Where the orchestrator listens, "host:port"."""
        return self.stage_address("orchestrator")

    def stage_address(self, service: str) -> str:
        """Where a service listens, "host:port"."""
        return self.services[service].address.result()


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
    """Refuses an address that is taken at once, rather than when the models are loaded."""
    for host, port in settings.fixed_addresses:
        try:
            family = socket.AF_INET6 if ":" in host else socket.AF_INET
            socket.create_server((host, port), family=family).close()
        except OSError as error:
            cause = error.strerror or str(error)
            raise ClientError(f"nothing can listen at {host}:{port} ({cause}): give another address or port") from None


@asynccontextmanager
async def running_mesh(
    settings: MeshSettings,
    *,
    report: Reporter = ignore,
    log: LineSink = ignore,
    command: Command = module_command,
) -> AsyncIterator[RunningMesh]:
    """Starts the services, yields when all are ready, and stops them all at exit, whatever the reason.

    `report` is told what happens to each service, `log` gets every line they write, `command` says how the process of a
    name is started. ServiceDiedError when one ends by itself, also while the caller is inside.
    """
    check_addresses_free(settings)
    supervisor = Supervisor(settings, report, log, command)
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
    """Starts services, reads what they write and stops them; made by `running_mesh`."""

    def __init__(self, settings: MeshSettings, report: Reporter, log: LineSink, command: Command) -> None:
        self._settings = settings
        self._report = report
        self._log = log
        self._command = command
        self._processes: dict[str, ServiceProcess] = {}
        self._watching: list[asyncio.Task[None]] = []

    async def start(self, readers: asyncio.TaskGroup, watchers: asyncio.TaskGroup) -> RunningMesh:
        """Starts the stages side by side, then the orchestrator in front of them.

        `watchers` fails when a process ends; `readers` goes on until the last of them has.
        """
        services: dict[str, Service] = {}
        for process, stages in self._settings.stage_processes.items():
            services |= await self._spawn(process, stages, {}, readers, watchers)
        for stage in STAGES:
            await services[stage].ready.wait()
        addresses = {stage: services[stage].address.result() for stage in STAGES}
        services |= await self._spawn("orchestrator", ("orchestrator",), addresses, readers, watchers)
        await services["orchestrator"].ready.wait()
        return RunningMesh(services)

    async def wait_for_end(self) -> None:
        """Gives the end of a service a moment to be noticed; the watchers then interrupt the caller."""
        await asyncio.wait(self._watching, timeout=NOTICE_SECONDS, return_when=asyncio.FIRST_COMPLETED)
        await asyncio.sleep(0)

    def stop_watching(self) -> None:
        """From here on services may end."""
        for task in self._watching:
            task.cancel()

    async def stop(self) -> None:
        """Stops the orchestrator, which drains through the stages, then the stages; cancelled, it kills them all."""
        try:
            await self._stop("orchestrator")
            await self._stop(*self._settings.stage_processes)
        finally:
            for child in self._processes.values():
                send_signal(child.process, signal.SIGKILL)
            for child in self._processes.values():
                await child.process.wait()
                await child.drain()

    async def _spawn(
        self,
        name: str,
        services: Sequence[str],
        stage_addresses: dict[str, str],
        readers: asyncio.TaskGroup,
        watchers: asyncio.TaskGroup,
    ) -> dict[str, Service]:
        process = await asyncio.create_subprocess_exec(
            *tethered(self._command(name)),
            *self._settings.flags(name, stage_addresses),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            process_group=0,  # a terminal's Ctrl-C is for the supervisor, which stops them in order
        )
        loop = asyncio.get_running_loop()
        servers = {service: Service(service, process, loop.create_future()) for service in services}
        child = ServiceProcess(name, process, time.monotonic(), servers)
        child.readers = [
            readers.create_task(self._read_stdout(child), name=f"stdout of {name}"),
            readers.create_task(self._read_stderr(child), name=f"stderr of {name}"),
        ]
        self._processes[name] = child
        self._report(child.event("started"))
        self._watching.append(watchers.create_task(self._watch(child), name=f"watch {name}"))
        return servers

    async def _watch(self, child: ServiceProcess) -> None:
        status = await child.process.wait()
        await child.drain()
        raise ServiceDiedError(list(child.services), status, child.reason)

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
