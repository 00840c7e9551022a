"""A clock that a test moves."""

import asyncio


class StillClock:
    """Stands still until the test moves it."""

    def __init__(self) -> None:
        self.time = 1000.0
        self._moved = asyncio.Event()

    def now(self) -> float:
        return self.time

    def move(self, seconds: float) -> None:
        self.time += seconds
        self._moved.set()

    async def wait(self, event: asyncio.Event, seconds: float) -> None:
        deadline = self.time + seconds
        while self.time < deadline and not event.is_set():
            self._moved.clear()
            async with asyncio.TaskGroup() as tasks:
                waits = [tasks.create_task(it.wait()) for it in (self._moved, event)]
                await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
                for waiting in waits:
                    waiting.cancel()
