"""What flows through a reply, and what is kept of it."""

import asyncio
from collections.abc import AsyncIterator

from hypothesis import given
from hypothesis import strategies as st

from services.orchestrator.track import Track


async def put(track: Track[int], item: int) -> None:
    track.keep(item)
    await track.room()


async def collect(reader: AsyncIterator[list[int]]) -> list[int]:
    return [item async for items in reader for item in items]


@given(count=st.integers(0, 40), ahead=st.integers(1, 8), first=st.integers(0, 40))
def test_a_track_gives_every_item_once_in_order_from_anywhere(count: int, ahead: int, first: int) -> None:
    async def scenario() -> None:
        track: Track[int] = Track(ahead)
        most_unused = 0

        async def write() -> None:
            nonlocal most_unused
            for item in range(count):
                most_unused = max(most_unused, track.unused_count + 1)
                await put(track, item)
            track.end()

        async def read() -> list[int]:
            seen = []
            async for items in track.read():
                seen += items
                track.use(len(seen))
            return seen

        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(write())
            reading = tasks.create_task(read())
        assert reading.result() == track.items == list(range(count))
        assert most_unused <= ahead
        assert await collect(track.read(first)) == list(range(first, count))

    asyncio.run(scenario())


async def test_a_writer_waits_for_the_next_stage_not_for_the_reader() -> None:
    track: Track[int] = Track(2)
    await put(track, 0)
    reader = track.read()
    waiting = asyncio.create_task(put(track, 1))
    assert [await anext(reader), await anext(reader)] == [[0], [1]]
    assert not waiting.done()
    track.use(1)
    await waiting
    assert track.unused_count == 1


async def test_the_end_lets_everyone_go() -> None:
    track: Track[int] = Track(1)
    waiting = asyncio.create_task(put(track, 0))
    reading = asyncio.create_task(collect(track.read()))
    await asyncio.sleep(0)
    track.end()
    await waiting
    assert await reading == [0]
