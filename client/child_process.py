"""A child process: how it ends with this one, what it writes, how it ended."""

import asyncio
import contextlib
import os
import signal
import sys
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

MAXIMUM_LINE_BYTES = 2**20


def tethered(command: Sequence[str]) -> list[str]:
    """The command, made to end with this process."""
    return [sys.executable, "-I", "-S", str(Path(__file__).with_name("tether.py")), str(os.getpid()), *command]


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


def last_line(text: str) -> str:
    """The last line that is not empty; "" without one."""
    return next((line.strip() for line in reversed(text.splitlines()) if line.strip()), "")


def send_signal(process: asyncio.subprocess.Process, number: signal.Signals) -> None:
    """Signals a child unless it has ended already."""
    if process.returncode is None:
        with contextlib.suppress(ProcessLookupError):
            process.send_signal(number)


def describe_status(status: int) -> str:
    """How a process ended, in words."""
    if status >= 0:
        return f"exited with status {status}"
    try:
        return f"was killed by {signal.Signals(-status).name}"
    except ValueError:
        return f"was killed by signal {-status}"
