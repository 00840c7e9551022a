"""A mesh on this machine: the four services as child processes that live and die together."""

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
"""Takes a service's name and one line that it wrote."""


@dataclass(frozen=True)
class ServiceEvent:
    """Something that happened to a service: its process runs, it is ready to serve, or it has ended as asked."""

    service: str
    kind: Literal["started", "ready", "stopped"]
    pid: int
    address: str
    metrics_address: str
    seconds: float


Reporter = Callable[[ServiceEvent], None]


class ServiceDiedError(ClientError):
    """A service of the mesh ended by itself."""

    def __init__(self, service: str, status: int, reason: str) -> None:
        super().__init__(f"the {service} service {describe_status(status)}: {reason}")
        self.service = service
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


@dataclass
class Service:
    """A child process and what it has said."""

    name: str
    process: asyncio.subprocess.Process
    started_at: float
    address: "asyncio.Future[str]"
    ready: asyncio.Event = field(default_factory=asyncio.Event)
    metrics_address: str = ""
    failure: str = ""
    error: str = ""
    stderr_tail: deque[str] = field(default_factory=lambda: deque(maxlen=TAIL_LINES))
    readers: "list[asyncio.Task[None]]" = field(default_factory=list)

    def event(self, kind: Literal["started", "ready", "stopped"]) -> ServiceEvent:
        """What there is to report now."""
        address = self.address.result() if self.address.done() else ""
        seconds = time.monotonic() - self.started_at
        return ServiceEvent(self.name, kind, self.process.pid, address, self.metrics_address, seconds)

    def read_line(self, line: str) -> bool:
        """Takes in a line of its log; returns whether the service became ready with it."""
        try:
            entry = json.loads(line)
        except ValueError:
            return False
        if not isinstance(entry, dict):
            return False
        event = entry.get("event")
        if event == "listening" and not self.address.done():
            self.metrics_address = str(entry.get("metrics_address") or "")
            self.address.set_result(str(entry.get("address")))
        elif event == "failed":
            self.failure = str(entry.get("reason") or last_line(str(entry.get("exception", ""))) or line)
        elif entry.get("level") in ("error", "critical"):
            self.error = str(entry.get("reason") or event)
        elif event == "ready" and self.address.done():
            self.ready.set()
            return True
        return False

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


def module_command(service: str) -> list[str]:
    """How a service is started: by this interpreter, never from the working directory."""
    return [sys.executable, "-P", "-m", f"services.{service}"]


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

    `report` is told what happens to each service, `log` gets every line they write. ServiceDiedError when one ends by
    itself, also while the caller is inside.
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
        self._services: dict[str, Service] = {}
        self._watching: list[asyncio.Task[None]] = []

    async def start(self, readers: asyncio.TaskGroup, watchers: asyncio.TaskGroup) -> RunningMesh:
        """Starts the stages side by side, then the orchestrator in front of them.

        `watchers` fails when a service ends; `readers` goes on until the last of them has.
        """
        for stage in STAGES:
            await self._spawn(stage, {}, readers, watchers)
        for stage in STAGES:
            await self._services[stage].ready.wait()
        addresses = {stage: self._services[stage].address.result() for stage in STAGES}
        await self._spawn("orchestrator", addresses, readers, watchers)
        await self._services["orchestrator"].ready.wait()
        return RunningMesh(self._services)

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
            await self._stop(*STAGES)
        finally:
            for service in self._services.values():
                send_signal(service.process, signal.SIGKILL)
            for service in self._services.values():
                await service.process.wait()
                await service.drain()

    async def _spawn(
        self, name: str, stage_addresses: dict[str, str], readers: asyncio.TaskGroup, watchers: asyncio.TaskGroup
    ) -> None:
        process = await asyncio.create_subprocess_exec(
            *tethered(self._command(name)),
            *self._settings.flags(name, stage_addresses),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            process_group=0,  # a terminal's Ctrl-C is for the supervisor, which stops them in order
        )
        service = Service(name, process, time.monotonic(), asyncio.get_running_loop().create_future())
        service.readers = [
            readers.create_task(self._read_stdout(service), name=f"stdout of {name}"),
            readers.create_task(self._read_stderr(service), name=f"stderr of {name}"),
        ]
        self._services[name] = service
        self._report(service.event("started"))
        self._watching.append(watchers.create_task(self._watch(service), name=f"watch {name}"))

    async def _watch(self, service: Service) -> None:
        status = await service.process.wait()
        await service.drain()
        raise ServiceDiedError(service.name, status, service.reason)

    async def _read_stdout(self, service: Service) -> None:
        assert service.process.stdout is not None
        async for line in lines(service.process.stdout):
            self._log(service.name, line)
            if service.read_line(line):
                self._report(service.event("ready"))

    async def _read_stderr(self, service: Service) -> None:
        assert service.process.stderr is not None
        async for line in lines(service.process.stderr):
            self._log(service.name, line)
            service.stderr_tail.append(line)

    async def _stop(self, *names: str) -> None:
        """Asks services to end and waits, at most the grace time and a little more."""
        services = [self._services[name] for name in names if name in self._services]
        running = [service for service in services if service.process.returncode is None]
        for service in running:
            send_signal(service.process, signal.SIGTERM)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(GRACE_SECONDS + KILL_SECONDS):
                for service in running:
                    await service.process.wait()
                    self._report(service.event("stopped"))


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
