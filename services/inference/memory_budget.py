"""What a stage may take on its device."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil
import torch

GIB = 2**30
MIB = 2**20

FREE_SHARE = 0.9
"""Of what is free on the device: the rest is for its libraries, and for what an allocator can't fill."""

CGROUPS = Path("/sys/fs/cgroup")


@dataclass(frozen=True)
class DeviceMemory:
    """A device's memory: all of it, and what nobody has taken."""

    total_bytes: int
    free_bytes: int


@dataclass(frozen=True)
class Budget:
    """Bytes that a stage may take, weights included, and who says so."""

    bytes: int
    source: str

    @property
    def in_words(self) -> str:
        """The budget as a clause."""
        return f"the budget is {bytes_in_words(self.bytes)} ({self.source})"


def budget(memory: DeviceMemory, *, gib: float | None, share: float) -> Budget:
    """`gib` GiB, or else `share` of the device's memory and at most 90 % of what is free; never more than is free."""
    if gib is not None and gib * GIB <= memory.free_bytes:
        return Budget(int(gib * GIB), "memory_gib")
    if gib is not None:
        return Budget(memory.free_bytes, f"all that is free of the {gib:g} GiB that memory_gib allows")
    of_total, of_free = share * memory.total_bytes, FREE_SHARE * memory.free_bytes
    if of_total < of_free:
        return Budget(int(of_total), f"memory_share, {share:.0%} of the device's {bytes_in_words(memory.total_bytes)}")
    return Budget(int(of_free), f"{FREE_SHARE:.0%} of what is free on the device")


def device_memory(device: torch.device) -> DeviceMemory:
    """The memory of the card or of the machine, as far as this process may use it."""
    if device.type == "cuda":
        free, total = torch.cuda.mem_get_info(device)
        return DeviceMemory(total, free)
    machine = psutil.virtual_memory()
    total, free = machine.total, machine.available
    for limit, used in cgroup_limits(Path("/proc/self/cgroup").read_text(), CGROUPS):
        total, free = min(total, limit), min(free, max(0, limit - used))
    return DeviceMemory(total, free)


@dataclass(frozen=True)
class CgroupFiles:
    """How one version of control groups spells its files."""

    limit: str
    used: str
    reclaimable: str
    """The line of memory.stat that says what of `used` is only a copy of files, and given up when it is needed."""


VERSION_1 = CgroupFiles("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
VERSION_2 = CgroupFiles("memory.max", "memory.current", "inactive_file")


def cgroup_limits(membership: str, root: Path) -> Iterator[tuple[int, int]]:
    """Limit and use, in bytes, of every control group with a memory limit that the process is in; psutil knows none.

    membership: what /proc/self/cgroup says. root: where control groups are mounted.
    """
    for line in membership.splitlines():
        number, controllers, path = line.split(":", 2)
        if number == "0":
            files, mount = VERSION_2, root
        elif "memory" in controllers.split(","):
            files, mount = VERSION_1, root / "memory"
        else:
            continue
        # In a container the path may be the host's, of which only the last group is mounted: as the root.
        group = mount / path.lstrip("/")
        for folder in (group, *group.parents):
            if (limit := read_limit(folder / files.limit)) is not None:
                statistics = dict(row.split() for row in (folder / "memory.stat").read_text().splitlines())
                used = int((folder / files.used).read_text()) - int(statistics.get(files.reclaimable, 0))
                yield limit, used
            if folder == mount:
                break


def read_limit(file: Path) -> int | None:
    """The bytes in a limit's file; None without the file or without a limit."""
    text = file.read_text().strip() if file.is_file() else "max"
    return None if text == "max" else int(text)


def bytes_in_words(count: int) -> str:
    """Three digits and a unit: "1.50 GiB"."""
    size, unit = (count / GIB, "GiB") if count >= GIB else (count / MIB, "MiB")
    return f"{size:.{0 if size >= 99.95 else 1 if size >= 9.995 else 2}f} {unit}"
