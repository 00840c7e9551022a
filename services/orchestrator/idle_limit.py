"""How long a session may be without anything happening."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager

from services.runtime.errors import DeadlineExceeded


class IdleLimit:
    """Ends a block in which for some time nothing came from the client and nothing was done for it."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._busy_count = 0
        self._timeout = asyncio.timeout(None)

    @asynccontextmanager
    async def watch(self) -> AsyncIterator[None]:
        """Raises DeadlineExceeded, reason IDLE, out of the block when the limit is reached; once."""
        try:
            async with self._timeout:
                self.touch()
                yield
        except TimeoutError:
            if not self._timeout.expired():
                raise
            raise DeadlineExceeded(
                f"the session was idle for {self._seconds:g} s: no message came and no reply was given", reason="IDLE"
            ) from None

    @property
    def deadline(self) -> float | None:
        """When the block ends if nothing happens, on the loop's clock; None while something is done for the client."""
        return self._timeout.when()

    def touch(self) -> None:
        """The client did something."""
        if not self._busy_count and not self._timeout.expired():
            self._timeout.reschedule(asyncio.get_running_loop().time() + self._seconds)

    @contextmanager
    def busy(self) -> Iterator[None]:
        """Something is done for the client within the block, however long it takes."""
        self._busy_count += 1
        if not self._timeout.expired():
            self._timeout.reschedule(None)
        try:
            yield
        finally:
            self._busy_count -= 1
            self.touch()
