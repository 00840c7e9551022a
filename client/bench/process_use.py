"""CPU time and memory of the processes of a mesh, and of the driver."""

import asyncio
import contextlib
import os
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass

import psutil

SAMPLE_SECONDS = 0.2
DRIVER = "driver"


@dataclass(frozen=True)
class ProcessUse:
    """What a process used during a load: its own CPU time, and the most memory it held at any sample."""

    name: str
    pid: int
    cpu_seconds: float
    peak_resident_bytes: int


def process_names(pids: Mapping[str, int]) -> dict[int, str]:
    """Processes by id, under the names of all services that they are, and this one as the driver."""
    names: dict[int, list[str]] = {}
    for service, pid in pids.items():
        names.setdefault(pid, []).append(service)
    return {pid: " + ".join(services) for pid, services in names.items()} | {os.getpid(): DRIVER}


class ProcessMeter:
    """Measures processes from now on; one that has gone keeps what it had."""

    def __init__(self, names: Mapping[int, str]) -> None:
        self._names = names
        self._processes: dict[int, psutil.Process] = {}
        self._cpu_seconds_before: dict[int, float] = {}
        for pid in names:
            with contextlib.suppress(psutil.NoSuchProcess):
                process = psutil.Process(pid)
                self._cpu_seconds_before[pid] = cpu_seconds(process)
                self._processes[pid] = process
        self._cpu_seconds = dict(self._cpu_seconds_before)
        self._peak_bytes = dict.fromkeys(self._processes, 0)

    def sample(self) -> None:
        """Looks at all processes."""
        for pid, process in self._processes.items():
            with contextlib.suppress(psutil.NoSuchProcess):
                self._cpu_seconds[pid] = cpu_seconds(process)
                self._peak_bytes[pid] = max(self._peak_bytes[pid], process.memory_info().rss)

    def uses(self) -> list[ProcessUse]:
        """What they used until the last look."""
        return [
            ProcessUse(self._names[pid], pid, self._cpu_seconds[pid] - before, self._peak_bytes[pid])
            for pid, before in self._cpu_seconds_before.items()
        ]


def cpu_seconds(process: psutil.Process) -> float:
    """User and system time of a process."""
    times = process.cpu_times()
    return float(times.user + times.system)


@contextlib.asynccontextmanager
async def metered(names: Mapping[int, str], uses: list[ProcessUse]) -> AsyncIterator[None]:
    """Within the block processes are measured; what they used is in `uses` afterwards, however the block ends."""
    meter = ProcessMeter(names)

    async def keep_looking() -> None:
        while True:
            meter.sample()
            await asyncio.sleep(SAMPLE_SECONDS)

    async with asyncio.TaskGroup() as tasks:
        looking = tasks.create_task(keep_looking())
        try:
            yield
        finally:
            looking.cancel()
            meter.sample()
            uses += meter.uses()
