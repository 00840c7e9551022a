"""The time that a reply goes by."""

import asyncio
import time
from contextlib import suppress
from typing import Protocol


class Clock(Protocol):
    """Tells the time and lets it pass."""

    def now(self) -> float:
        """The time, in seconds from any beginning; never goes back."""
        ...

    async def wait(self, event: asyncio.Event, seconds: float) -> None:
        """Returns when the event is set, or after this time."""
        ...


class SystemClock:
    """The machine's time."""

    def now(self) -> float:
        """The time, in seconds."""
        return time.perf_counter()

    async def wait(self, event: asyncio.Event, seconds: float) -> None:
        """Returns when the event is set, or after this time."""
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await event.wait()
