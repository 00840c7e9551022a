"""TLS in front of a server without: the openai package for Node knows no other Realtime sockets than `wss:`."""

import asyncio
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import trustme


@dataclass(frozen=True)
class TlsRelay:
    """`address` is host:port; `authority` is the file whose certificate its clients are to trust."""

    address: str
    authority: Path


@asynccontextmanager
async def tls_relay(to: str, folder: Path) -> AsyncIterator[TlsRelay]:
    """Relays connections to `to`, host:port, within the block."""
    authority = trustme.CA()
    authority.cert_pem.write_to_path(folder / "authority.pem")
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert("localhost").configure_cert(context)
    host, port = to.rsplit(":", 1)

    async def relay(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        onward_reader, onward_writer = await asyncio.open_connection(host, int(port))
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(_pump(reader, onward_writer))
            tasks.create_task(_pump(onward_reader, writer))

    async with await asyncio.start_server(relay, "localhost", 0, ssl=context) as server:
        yield TlsRelay(f"localhost:{server.sockets[0].getsockname()[1]}", folder / "authority.pem")


async def _pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()
    except ConnectionError:
        pass
    finally:
        writer.close()
