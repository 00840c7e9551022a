"""What can go wrong with a replica, and how it heals."""

import asyncio
import signal
from dataclasses import dataclass
from enum import StrEnum

from tests.faults.faulty_mesh import FaultyMesh

HELD_SECONDS = 5.0
"""How long a replica stays stopped, and a network silent: longer than anybody waits for it."""


class Kind(StrEnum):
    """How a replica fails."""

    KILL = "kill -9"
    STOP = "SIGSTOP"
    TERMINATE = "SIGTERM"
    CUT = "cut connections"
    STALL = "silent network"


@dataclass(frozen=True)
class Fault:
    """A failure of one of a service's replicas."""

    service: str
    kind: Kind
    replica: str

    def __str__(self) -> str:
        return f"{self.kind} of {self.replica}"

    def strike(self, mesh: FaultyMesh) -> int:
        """Makes it happen; returns the process that was hit."""
        pid, proxy = mesh.pid(self.replica), mesh.proxies[self.replica]
        match self.kind:
            case Kind.KILL:
                mesh.signal(self.replica, signal.SIGKILL)
            case Kind.STOP:
                mesh.signal(self.replica, signal.SIGSTOP)
            case Kind.TERMINATE:
                mesh.signal(self.replica, signal.SIGTERM)
            case Kind.CUT:
                proxy.cut()
            case Kind.STALL:
                proxy.stall()
        return pid

    async def heal(self, mesh: FaultyMesh, pid: int) -> None:
        """Returns when the replica takes part again."""
        match self.kind:
            case Kind.KILL | Kind.TERMINATE:
                await mesh.until_replaced(self.replica, pid)
                return
            case Kind.STOP:
                await asyncio.sleep(HELD_SECONDS)
                mesh.signal(self.replica, signal.SIGCONT)
            case Kind.STALL:
                await asyncio.sleep(HELD_SECONDS)
                mesh.proxies[self.replica].resume()
            case Kind.CUT:
                pass
        await mesh.until_connected(self.replica)
