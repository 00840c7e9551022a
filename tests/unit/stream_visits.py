"""Streams that come to an engine and leave it at random times, by seed; and the devices that they are run on."""

import asyncio
import random
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import pytest
import torch

from services.inference.slots import SlotEngine, Stream

Out = TypeVar("Out")
Feed = Callable[[], Awaitable[None]]

needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
DEVICES = [pytest.param("cpu", id="cpu"), pytest.param("cuda", id="cuda", marks=needs_cuda)]


@contextmanager
def threads(count: int) -> Iterator[None]:
    """Within the block torch computes with `count` threads, on a CPU."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@dataclass(frozen=True)
class Visit:
    """What one stream does: it comes after `wait` rounds, and leaves after `leave_after` outputs; None: at its end.

    A stream that leaves after 0 outputs does so `pause` rounds after it has its slot. `outbox_limit`: outputs that may
    be unread; `pause`: rounds that its reader lets pass after each output.
    """

    wait: int = 0
    leave_after: int | None = None
    outbox_limit: int = 64
    pause: int = 0


def random_visits(seed: int, count: int) -> list[Visit]:
    """As many visits: about a third leave early, a third are read slowly."""
    chance = random.Random(seed)
    return [
        Visit(
            wait=chance.randrange(20),
            leave_after=chance.choice([None, None, None, 0, 2]),
            outbox_limit=chance.choice([64, 2]),
            pause=chance.choice([0, 0, 1, 3]),
        )
        for _ in range(count)
    ]


async def rounds(engine: SlotEngine[Any], count: int) -> None:
    """Lets rounds pass: one follows each call."""
    for _ in range(count):
        await engine.call(lambda: None)


async def visit(
    engine: SlotEngine[Any], stream: Stream[Any, Out], feed: Feed, plan: Visit, at_end: Callable[[], None] | None = None
) -> list[Out]:
    """The outputs that one stream has seen; `at_end` is called on the device thread while it still has its slot."""
    await rounds(engine, plan.wait)
    stream._outbox_limit = plan.outbox_limit
    seen: list[Out] = []
    async with engine.open(stream):
        feeding = asyncio.create_task(feed())
        try:
            if plan.leave_after == 0:
                await rounds(engine, plan.pause)
                return seen
            async for output in stream:
                seen.append(output)
                if len(seen) == plan.leave_after:
                    break
                await rounds(engine, plan.pause)
            if at_end is not None:
                await engine.call(at_end)
        finally:
            feeding.cancel()
            await asyncio.wait([feeding])
    return seen
