"""A process with services of a mesh, and what it has said of them."""

import asyncio
import json
import time
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from client.child_process import last_line

TAIL_LINES = 20
PIPE_SECONDS = 2
"""What the last lines of a service that has ended get to arrive."""

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


def in_words(names: Sequence[str]) -> str:
    """ "reasoner", "reasoner and speech", "reasoner, speech and codec"."""
    *others, last = names
    return f"{', '.join(others)} and {last}" if others else last


def port_of(address: str) -> int:
    """The port of "host:port"."""
    return int(address.rpartition(":")[2])
