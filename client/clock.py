"""The time that callers live by."""

import asyncio
import time
from typing import Protocol


class Clock(Protocol):
    """Tells the time in seconds from any origin, and waits."""

    def now(self) -> float:
        """The time."""

    async def sleep_until(self, moment: float) -> None:
        """Returns at the moment, at once when it has passed."""


class WallClock:
    """Real time."""

    def now(self) -> float:
        """The time."""
        return time.perf_counter()

    async def sleep_until(self, moment: float) -> None:
        """Returns at the moment, at once when it has passed."""
        await asyncio.sleep(max(0.0, moment - self.now()))
