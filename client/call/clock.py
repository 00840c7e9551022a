"""The time of callers who are in a hurry."""

from client.clock import Clock


class FastClock:
    """A clock on which time passes `speed` times as fast as on another."""

    def __init__(self, clock: Clock, speed: float) -> None:
        self._clock = clock
        self._speed = speed
        self._origin = clock.now()

    def now(self) -> float:
        """The time."""
        return self._origin + (self._clock.now() - self._origin) * self._speed

    async def sleep_until(self, moment: float) -> None:
        """Returns at the moment, at once when it has passed."""
        await self._clock.sleep_until(self._origin + (moment - self._origin) / self._speed)
