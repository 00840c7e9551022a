"""Outputs that leave a stage in one message."""

import asyncio
import time
from contextlib import suppress
from typing import Any, Generic, TypeVar

from services.inference.slots import Stream
from services.runtime.errors import InvalidArgument

Out = TypeVar("Out")

# A listener with less than this in hand is sent every output as soon as it is there.
IN_HAND_SECONDS = 0.5
# Most speech in a message: so much; but of what a listener has in hand who is far behind, a share, up to an end.
MESSAGE_SECONDS = 0.8
MESSAGE_SHARE = 0.25
LONGEST_MESSAGE_SECONDS = 2.56
# Nobody waits for less than this.
TICK_SECONDS = 0.001
# An output that is told to last less than this would make messages of any size.
LEAST_SECONDS, MOST_SECONDS = 0.01, 1.0


def check_lasts(seconds: float, *, field: str) -> float:
    """How long an output lasts; InvalidArgument where it is neither 0 nor in range."""
    if seconds != 0 and not LEAST_SECONDS <= seconds <= MOST_SECONDS:
        raise InvalidArgument(
            f"{field} must be 0, or {LEAST_SECONDS:g} to {MOST_SECONDS:g}, got {seconds:g}", field=field
        )
    return seconds


class Gathering(Generic[Out]):
    """Joins a stream's outputs to messages: a message costs every hop the same, whatever it carries.

    lasts_seconds: speech that an output makes; 0 sends each alone. The listener is taken to play since the first one
    left, so that an output waits for others only while nobody waits for it.
    """

    def __init__(self, stream: Stream[Any, Out], lasts_seconds: float) -> None:
        self._stream = stream
        self._lasts_seconds = lasts_seconds
        self._sent_count = 0
        self._began_at = 0.0

    async def message(self) -> list[Out]:
        """The next outputs that leave together; empty at the end of the stream. Raises what the stream raises."""
        async for output in self._stream:
            outputs = [output]
            if self._sent_count == 0:
                self._began_at = time.perf_counter()
            else:
                await self._gather(outputs)
            self._sent_count += len(outputs)
            return outputs
        return []

    async def _gather(self, outputs: list[Out]) -> None:
        stream, most_count = self._stream, self._most_count
        outputs += stream.read(most_count - len(outputs))
        spare_seconds = self._in_hand_seconds - IN_HAND_SECONDS
        if spare_seconds < TICK_SECONDS:
            return
        with suppress(TimeoutError):
            async with asyncio.timeout(spare_seconds):
                while len(outputs) < most_count:
                    await stream.arrived(most_count - len(outputs))
                    if not (arrived := stream.read(most_count - len(outputs))):
                        return
                    outputs += arrived
        outputs += stream.read(most_count - len(outputs))

    @property
    def _most_count(self) -> int:
        if not self._lasts_seconds:
            return 1
        share = MESSAGE_SHARE * self._in_hand_seconds
        return max(1, int(min(max(MESSAGE_SECONDS, share), LONGEST_MESSAGE_SECONDS) / self._lasts_seconds))

    @property
    def _in_hand_seconds(self) -> float:
        return self._sent_count * self._lasts_seconds - (time.perf_counter() - self._began_at)
