"""The proxy itself: what it passes is what came, and its failures look like a network's."""

import asyncio
import gc
import socket
import warnings
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.faults.tcp_proxy import TcpProxy


@asynccontextmanager
async def proxied_echo() -> AsyncIterator[TcpProxy]:
    """A proxy in front of a server that sends back what it gets."""

    async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while block := await reader.read(2**16):
            writer.write(block)
        writer.close()

    server = await asyncio.start_server(echo, "127.0.0.1", 0)
    host, port = server.sockets[0].getsockname()
    async with server, TcpProxy.open() as proxy:
        proxy.target = f"{host}:{port}"
        yield proxy


async def connect(proxy: TcpProxy) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """A connection to a proxy."""
    host, _, port = proxy.address.rpartition(":")
    return await asyncio.open_connection(host, int(port))


@given(blocks=st.lists(st.binary(min_size=1, max_size=4096), min_size=1, max_size=8), is_slow=st.booleans())
def test_what_passes_is_what_came(blocks: list[bytes], is_slow: bool) -> None:
    async def pass_through() -> bytes:
        async with proxied_echo() as proxy:
            proxy.delay_seconds = 0.001 if is_slow else 0.0
            reader, writer = await connect(proxy)
            for block in blocks:
                writer.write(block)
            answer = await reader.readexactly(sum(map(len, blocks)))
            writer.close()
            return answer

    assert asyncio.run(pass_through()) == b"".join(blocks)


async def test_a_stall_holds_everything_and_loses_nothing() -> None:
    async with proxied_echo() as proxy:
        reader, writer = await connect(proxy)
        writer.write(b"before")
        assert await reader.readexactly(6) == b"before"
        proxy.stall()
        writer.write(b"during")
        reading = asyncio.create_task(reader.readexactly(6))
        other_reader, other = await connect(proxy)
        other.write(b"other")
        for _ in range(20):  # loops of everything that could pass it on
            await asyncio.sleep(0)
        assert not reading.done()
        assert not writer.transport.is_closing()
        proxy.resume()
        assert await reading == b"during"
        assert await other_reader.readexactly(5) == b"other"
        other.close()
        writer.close()


async def test_a_cut_ends_all_connections_and_new_ones_pass() -> None:
    async with proxied_echo() as proxy:
        ends = [await connect(proxy) for _ in range(3)]
        for reader, writer in ends:
            writer.write(b"x")
            assert await reader.readexactly(1) == b"x"
        assert proxy.connection_count == 3
        proxy.cut()
        for reader, _ in ends:
            with pytest.raises((ConnectionError, asyncio.IncompleteReadError)):
                await reader.readexactly(1)
        reader, writer = await connect(proxy)
        writer.write(b"y")
        assert await reader.readexactly(1) == b"y"
        await proxy.until_answered()
        writer.close()
        for _, writer in ends:
            writer.close()


async def test_a_target_that_is_not_there_is_a_lost_connection() -> None:
    async with TcpProxy.open() as proxy:
        proxy.target = "127.0.0.1:1"
        reader, writer = await connect(proxy)
        with pytest.raises((ConnectionError, asyncio.IncompleteReadError)):
            await reader.readexactly(1)
        writer.close()


@pytest.mark.parametrize("loops", range(8))
def test_a_connection_that_comes_as_the_proxy_closes_is_ended(loops: int) -> None:
    async def connect_and_close() -> socket.socket:
        async with proxied_echo() as proxy:
            host, _, port = proxy.address.rpartition(":")
            caller = socket.create_connection((host, int(port)), timeout=20)
            for _ in range(loops):  # of the event loop, in which the connection gets further
                await asyncio.sleep(0)
        return caller

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        with asyncio.run(connect_and_close()) as caller, suppress(ConnectionResetError):  # not even accepted
            assert caller.recv(1) == b""
        gc.collect()
    assert [str(warning.message) for warning in caught] == []
