"""The engines called directly, without a mesh around them: measured by a program of the services."""

import asyncio
import contextlib
import json
import sys
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from client.bench.shape import ReplyShape
from client.child_process import describe_status, last_line, lines, tethered
from client.errors import ClientError
from client.mesh_settings import MeshSettings
from client.report_table import ReportTable

FRAME_SECONDS_VALUE = "direct_frame_seconds"
"""Name of the value that says what a frame costs at one session in one process, in seconds of wall time."""

TAIL_LINES = 20


@dataclass(frozen=True)
class EnginePart:
    """What that program found: tables for people, and figures by name. `content` is all that it wrote."""

    tables: list[ReportTable]
    values: dict[str, float]
    content: dict[str, Any]

    @property
    def frame_seconds(self) -> float | None:
        """Wall time of a frame at one session, in one process."""
        return self.values.get(FRAME_SECONDS_VALUE)


def engine_command(mesh: MeshSettings, shape: ReplyShape, voice_seconds: float) -> list[str]:
    """The program, on what the mesh runs on and with replies of the same shape."""
    flags = {
        "checkpoint": mesh.checkpoint,
        "device": mesh.device,
        "dtype": mesh.dtype,
        "slots": mesh.slots,
        "threads": mesh.threads,
        "frames": shape.frame_count,
        "steps": shape.step_count,
        "user-seconds": shape.user_seconds,
        "voice-seconds": voice_seconds,
    }
    words = [word for name, value in flags.items() if value is not None for word in (f"--{name}", str(value))]
    return [sys.executable, "-P", "-m", "services.bench", *words]


async def measure_engines(command: Sequence[str], watch: Callable[[str], None]) -> EnginePart:
    """Runs the program to its end; `watch` gets the lines it says meanwhile. ClientError when it fails."""
    process = await asyncio.create_subprocess_exec(
        *tethered(command),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        process_group=0,  # a terminal's Ctrl-C comes to it through this process
    )
    assert process.stdout is not None
    assert process.stderr is not None
    said: deque[str] = deque(maxlen=TAIL_LINES)

    async def listen(stream: asyncio.StreamReader) -> None:
        async for line in lines(stream):
            said.append(line)
            watch(line)

    try:
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(listen(process.stderr))
            out = await process.stdout.read()
        status = await process.wait()
    finally:
        if process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            await process.wait()
    if status:
        reason = last_line("\n".join(said)) or "it said nothing about the cause"
        raise ClientError(f"the measurement of the engines {describe_status(status)}: {reason}")
    return read_engine_part(out.decode(errors="replace"))


def read_engine_part(text: str) -> EnginePart:
    """The parts of the program's JSON; ClientError when it is something else."""
    try:
        content = json.loads(text)
        tables = [
            ReportTable(
                str(table["title"]),
                [str(column) for column in table["columns"]],
                [[cell_text(cell) for cell in row] for row in table["rows"]],
            )
            for table in content["tables"]
        ]
        values = {str(name): float(value) for name, value in content["values"].items()}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ClientError(f"the measurement of the engines wrote something else than its tables: {error!r}") from None
    if not all(len(row) == len(table.columns) for table in tables for row in table.rows):
        raise ClientError("the measurement of the engines wrote a table whose rows are not as wide as its head")
    return EnginePart(tables, values, content)


def cell_text(cell: object) -> str:
    """A cell as it is printed: numbers to four digits, everything else as it is."""
    if isinstance(cell, float):
        return f"{cell:,.0f}" if abs(cell) >= 1000 else f"{cell:.4g}"
    return str(cell)
