"""A real DNS server that plays a cluster's: names that stand for the addresses of all replicas."""

import asyncio
import os
import shutil
import signal
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Self

import pytest

PROGRAM = shutil.which("dnsmasq", path=f"{os.environ.get('PATH', '')}:/usr/sbin")
DOMAIN = "mesh"
"""Names end with it; those that stand for nothing do not exist."""

needs_name_server = pytest.mark.skipif(PROGRAM is None, reason="needs dnsmasq")


class NameServer:
    """A dnsmasq on a port of its own; made by `open`."""

    def __init__(self, hosts: Path, port: int, process: asyncio.subprocess.Process) -> None:
        self._hosts = hosts
        self._port = port
        self._process = process
        self._addresses: dict[str, tuple[str, ...]] = {}
        self._changing = asyncio.Lock()

    @classmethod
    @asynccontextmanager
    async def open(cls, folder: Path) -> AsyncIterator[Self]:
        """Answers within the block; what it knows is a file in `folder`."""
        assert PROGRAM is not None, "the test needs the mark"
        hosts, port = folder / "hosts", free_port("127.0.0.1")
        hosts.touch()
        process = await asyncio.create_subprocess_exec(
            PROGRAM,
            *("--no-daemon", "--conf-file=/dev/null", "--no-hosts", "--no-resolv", f"--addn-hosts={hosts}"),
            *("--listen-address=127.0.0.1", "--bind-interfaces", f"--port={port}"),
            *("--local-ttl=0", f"--local=/{DOMAIN}/"),
            stderr=asyncio.subprocess.PIPE,
        )
        server = cls(hosts, port, process)
        try:
            await server._until_read()
            yield server
        finally:
            with suppress(ProcessLookupError):
                process.terminate()
            await process.communicate()

    def target(self, name: str, port: int) -> str:
        """What a service is told so that it asks here for all addresses of a name."""
        return f"dns://127.0.0.1:{self._port}/{name}.{DOMAIN}:{port}"

    async def change(self, name: str, *addresses: str) -> None:
        """What a name stands for, from now on."""
        async with self._changing:
            self._addresses[name] = addresses
            lines = [f"{address} {name}.{DOMAIN}\n" for name, known in self._addresses.items() for address in known]
            self._hosts.write_text("".join(lines))
            self._process.send_signal(signal.SIGHUP)
            await self._until_read()

    async def _until_read(self) -> None:
        assert self._process.stderr is not None
        async for line in self._process.stderr:
            if b"read " in line:
                return
        raise AssertionError("dnsmasq has ended")


def free_port(host: str) -> int:
    """A port at which nobody listens, on an address or, with "", on any."""
    with socket.create_server((host, 0)) as probe:
        port: int = probe.getsockname()[1]
        return port
