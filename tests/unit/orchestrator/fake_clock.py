"""A clock that stands still until everybody waits for it."""

import asyncio

# Turns of the loop after which all that could happen at a time has happened.
TURNS = 6


class FakeClock:
    """Moves to the earliest time that anybody waits for, in no time at all."""

    def __init__(self) -> None:
        self.time = 1000.0
        self.waits: list[float] = []
        self._deadlines: list[float] = []

    def now(self) -> float:
        """The time."""
        return self.time

    async def wait(self, event: asyncio.Event, seconds: float) -> None:
        """Lets others run; returns when the event is set, or the time has come."""
        deadline = self.time + seconds
        self._deadlines.append(deadline)
        try:
            while not event.is_set() and self.time < deadline:
                for _ in range(TURNS):
                    await asyncio.sleep(0)
                if not event.is_set() and deadline == min(self._deadlines):
                    self.waits.append(seconds)
                    self.time = max(self.time, deadline)
        finally:
            self._deadlines.remove(deadline)
