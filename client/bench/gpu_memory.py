"""GPU cards and what processes hold on them, as nvidia-smi says where there is one."""

import asyncio
import contextlib
import csv
import shutil
from collections.abc import Mapping
from dataclasses import dataclass

PROGRAM = "nvidia-smi"
ANSWER_SECONDS = 10
MEBIBYTE = 2**20


@dataclass(frozen=True)
class GpuCard:
    """A card, its driver, and the memory in use on it by whomever."""

    name: str
    driver: str
    total_bytes: int
    used_bytes: int


@dataclass(frozen=True)
class GpuProcess:
    """What a process holds on a card."""

    name: str
    pid: int
    used_bytes: int


@dataclass(frozen=True)
class GpuUse:
    """What is in use on all cards, and by which processes."""

    processes: list[GpuProcess]
    used_bytes: int


async def gpu_cards() -> list[GpuCard]:
    """The cards of this machine."""
    rows = await query("--query-gpu=name,driver_version,memory.total,memory.used")
    return [GpuCard(row[0], row[1], mebibytes(row[2]), mebibytes(row[3])) for row in rows if len(row) == 4]


async def gpu_use(names: Mapping[int, str]) -> GpuUse | None:
    """What is in use now, None without a card; a process that has no name here is called by its id.

    In a container nvidia-smi often knows processes by other ids, or not at all: the sum is right all the same.
    """
    cards = await gpu_cards()
    if not cards:
        return None
    rows = await query("--query-compute-apps=pid,used_gpu_memory")
    processes = [
        GpuProcess(names.get(int(row[0]), f"process {row[0]}"), int(row[0]), mebibytes(row[1]))
        for row in rows
        if len(row) == 2 and row[0].isdigit()
    ]
    return GpuUse(processes, sum(card.used_bytes for card in cards))


async def query(what: str) -> list[list[str]]:
    """The rows of a query; none where there is no such program, or where it does not answer."""
    program = shutil.which(PROGRAM)
    if program is None:
        return []
    process = await asyncio.create_subprocess_exec(
        program,
        what,
        "--format=csv,noheader,nounits",
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.DEVNULL,
    )
    try:
        async with asyncio.timeout(ANSWER_SECONDS):
            out, _ = await process.communicate()
    except TimeoutError:
        return []
    finally:
        if process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            await process.wait()
    return read_rows(out.decode(errors="replace")) if process.returncode == 0 else []


def read_rows(text: str) -> list[list[str]]:
    """The cells of nvidia-smi's CSV."""
    return [[cell.strip() for cell in row] for row in csv.reader(text.splitlines()) if row]


def mebibytes(cell: str) -> int:
    """Bytes of a cell in MiB; 0 where it says that it does not know."""
    return int(cell) * MEBIBYTE if cell.isdigit() else 0
