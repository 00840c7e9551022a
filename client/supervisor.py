"""A mesh on this machine: its services in child processes that die together, or are started again one by one."""

import asyncio
import contextlib
import importlib.util
import signal
import socket
import sys
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager

from client.child_process import describe_status, lines, send_signal, tethered
from client.errors import ClientError, MeshError, first_cause
from client.mesh_settings import GATEWAY, GRACE_SECONDS, STAGES, MeshSettings
from client.service_log import LineSink, ignore
from client.service_process import Replica, Service, ServiceEvent, ServiceProcess, in_words

SERVER_PACKAGES = ("torch", "transformers", "structlog", "pydantic_settings", "fastapi", "uvicorn")
KILL_SECONDS = 5
"""What a service gets on top of the grace time before it is killed."""

NOTICE_SECONDS = 0.5

FIRST_PAUSE_SECONDS = 0.5
LONGEST_PAUSE_SECONDS = 30.0
"""A process that has ended is started again after a pause, twice as long each time."""

STEADY_SECONDS = 60.0
"""A process that lived so long begins with the first pause again."""

Command = Callable[[str], Sequence[str]]
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


def module_command(process: str) -> list[str]:
    """How a process is started: by this interpreter, never from the working directory."""
    return [sys.executable, "-P", "-m", f"services.{process}"]


def check_server_installed() -> None:
    """Refuses to start services where only the client is installed."""
    missing = [package for package in SERVER_PACKAGES if importlib.util.find_spec(package) is None]
    if missing:
        raise ClientError(f"the services cannot run without {', '.join(missing)}: pip install 'chroma-mesh[server]'")


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


def replica_names(settings: MeshSettings, service: str) -> list[str]:
    """What the replicas of a service are called."""
    return [settings.replica_name(service, index) for index in range(settings.replica_count(service))]


def addresses(services: Mapping[str, Service], names: Sequence[str]) -> list[str]:
    """Where the services of these names listen."""
    return [services[name].address.result() for name in names]
