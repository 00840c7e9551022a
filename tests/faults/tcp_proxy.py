"""A TCP proxy that can fail as networks do: lose its connections, go silent, be slow."""

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Self

BLOCK_BYTES = 2**16
# Blocks on their way, in one direction of one connection; more are left to TCP.
QUEUE_BLOCKS = 64


class Link:
    """One connection and its other half."""

    def __init__(self, near: asyncio.StreamWriter, far: asyncio.StreamWriter) -> None:
        self._writers = (near, far)
        self.has_answered = False

    def close(self) -> None:
        """Ends both halves once what was written has left."""
        for writer in self._writers:
            writer.close()

    def cut(self) -> None:
        """Ends both halves at once, without waiting for what is on its way."""
        for writer in self._writers:
            writer.transport.abort()


class TcpProxy:
    """Relays connections to `target` ("host:port", to be set before the first one comes) within `open`.

    While it stalls, connections stay open, new ones too, and nothing passes. `delay_seconds` is what every byte takes
    in each direction from then on.
    """

    def __init__(self, tasks: asyncio.TaskGroup) -> None:
        self.address = ""
        self.target = ""
        self.delay_seconds = 0.0
        self._tasks = tasks
        self._links: set[Link] = set()
        self._is_closed = False
        self._changed = asyncio.Event()
        self._flowing = asyncio.Event()
        self._flowing.set()

    @classmethod
    @asynccontextmanager
    async def open(cls) -> AsyncIterator[Self]:
        """Listens on a free port of 127.0.0.1 within the block; all is cut at its end."""
        loop = asyncio.get_running_loop()
        # asyncio's own server loses a connection that it has accepted when it is closed in the next turn of the loop.
        with socket.create_server(("127.0.0.1", 0)) as listening:
            listening.setblocking(False)
            host, port = listening.getsockname()
            async with asyncio.TaskGroup() as tasks:
                proxy = cls(tasks)
                proxy.address = f"{host}:{port}"
                loop.add_reader(listening, proxy._accept, listening)
                try:
                    yield proxy
                finally:
                    loop.remove_reader(listening)
                    proxy._is_closed = True  # to those that are still on their way to the target
                    proxy.resume()
                    proxy.cut()

    @property
    def connection_count(self) -> int:
        """Connections that are open."""
        return len(self._links)

    def cut(self) -> None:
        """Ends every connection; new ones are relayed."""
        for link in self._links:
            link.cut()

    def stall(self) -> None:
        """Lets nothing pass until `resume`."""
        self._flowing.clear()

    def resume(self) -> None:
        """Lets what waits pass, and all that comes."""
        self._flowing.set()

    async def until_answered(self) -> None:
        """Returns when there is a connection on which the target has said something."""
        while not any(link.has_answered for link in self._links):
            self._changed.clear()
            await self._changed.wait()

    def _accept(self, listening: socket.socket) -> None:
        connection, _ = listening.accept()
        self._tasks.create_task(self._relay(connection))

    async def _relay(self, connection: socket.socket) -> None:
        near_reader, near = await asyncio.open_connection(sock=connection)
        host, _, port = self.target.rpartition(":")
        try:
            far_reader, far = await asyncio.open_connection(host, int(port))
        except OSError:  # nobody is there: to the caller it looks like a connection that is lost
            near.transport.abort()
            return
        link = Link(near, far)
        if self._is_closed:
            link.cut()
            return
        self._links.add(link)
        try:
            async with asyncio.TaskGroup() as pumps:
                for reader, writer in ((near_reader, far), (far_reader, near)):
                    pumps.create_task(self._pump(link, reader, writer, is_answer=writer is near))
        finally:
            self._links.discard(link)
            link.cut()

    async def _pump(
        self, link: Link, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, is_answer: bool
    ) -> None:
        """Relays one direction; the end of it is the end of the connection."""
        loop = asyncio.get_running_loop()
        blocks: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue(QUEUE_BLOCKS)

        async def forward() -> None:
            while True:
                due, block = await blocks.get()
                await asyncio.sleep(due - loop.time())
                await self._flowing.wait()
                if not block:
                    return
                writer.write(block)
                await writer.drain()
                if is_answer and not link.has_answered:
                    link.has_answered = True
                    self._changed.set()

        try:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(forward())
                while block := await reader.read(BLOCK_BYTES):
                    await blocks.put((loop.time() + self.delay_seconds, block))
                await blocks.put((loop.time() + self.delay_seconds, b""))
        except* OSError:
            pass
        link.close()
