"""When a reply's frames are made, and when their sound leaves."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Protocol

from services.orchestrator.clock import Clock
from services.orchestrator.heard import Playback

# A listener with less than this in hand is sent every frame as soon as it is there.
IN_HAND_SECONDS = 0.5
# Nobody waits for less than this.
TICK_SECONDS = 0.001
# Most sound in a packet: so much; but of what a listener has in hand who is far behind, a share, up to an end.
PACKET_SECONDS = 0.4
PACKET_SHARE = 0.25
LONGEST_PACKET_SECONDS = 1.6


class Pace:
    """Holds a reply's frames back that its listener needs only later.

    Bounded where they are made, not where they are sent: what a barge-in finds unheard is lost work of every stage.
    """

    def __init__(self, clock: Clock, playback: Playback, *, frame_seconds: float, ahead_seconds: float) -> None:
        self._clock = clock
        self._playback = playback
        self._frame_seconds = frame_seconds
        # One frame is played while the next is made.
        self._ahead_seconds = max(ahead_seconds, 2 * frame_seconds)
        self._never = asyncio.Event()

    def seconds_until(self, frame_index: int) -> float:
        """Time until the frame may be made, with which the reply is that far ahead of its listener; 0 or less: now.

        A player that has run dry stands still: nothing that is needed is ever held back.
        """
        return (frame_index + 1) * self._frame_seconds - self._playback.played_seconds - self._ahead_seconds

    def is_due(self, frame_index: int) -> bool:
        """Whether the frame may be made."""
        return self.seconds_until(frame_index) < TICK_SECONDS

    async def until_due(self, frame_index: int) -> None:
        """Returns when the frame may be made."""
        while not self.is_due(frame_index):
            await self._clock.wait(self._never, self.seconds_until(frame_index))


class Encode(Protocol):
    """Makes what the listener is sent of the codec's sound."""

    def speak(self, data: bytes) -> bytes:
        """The sound that is complete with this."""
        ...

    def end(self) -> bytes:
        """The sound that was held back."""
        ...


Send = Callable[[int, int, bytes], Awaitable[None]]


class Packets:
    """Joins a reply's frames to packets: the first leaves alone and at once, later ones grow.

    A frame waits for others only while the listener has IN_HAND_SECONDS to play without it. `send` takes the index of
    the first frame, the count of frames and the sound; while it waits, so does `add` after a packet's worth of frames.
    """

    def __init__(
        self,
        clock: Clock,
        playback: Playback,
        sound: Encode,
        send: Send,
        *,
        frame_seconds: float,
        frame_bytes: int,
    ) -> None:
        self._clock = clock
        self._playback = playback
        self._sound = sound
        self._send = send
        self._frame_seconds = frame_seconds
        self._frame_bytes = frame_bytes
        self._sent_count = 0
        self._waiting = bytearray()
        self._is_ended = False
        self._changed = asyncio.Event()
        self._taken = asyncio.Event()

    async def add(self, data: bytes) -> None:
        """Takes sound of whole frames; returns when less than a packet of it waits."""
        self._waiting += data
        self._changed.set()
        while self._waiting_count >= self._most_frames:
            self._taken.clear()
            await self._taken.wait()

    def end(self) -> None:
        """No frame follows."""
        self._is_ended = True
        self._changed.set()

    async def run(self) -> None:
        """Sends packets until the end."""
        while await self._is_due():
            count = min(self._waiting_count, self._most_frames if self._sent_count else 1)
            size = count * self._frame_bytes
            sound = self._sound.speak(bytes(self._waiting[:size]))
            if self._is_ended and size == len(self._waiting):
                sound += self._sound.end()
            await self._send(self._sent_count, count, sound)
            self._sent_count += count
            del self._waiting[:size]
            self._taken.set()
        if rest := self._sound.end():
            await self._send(self._sent_count, 0, rest)

    @property
    def _most_frames(self) -> int:
        share = PACKET_SHARE * self._playback.ahead_seconds
        return max(1, int(min(max(PACKET_SECONDS, share), LONGEST_PACKET_SECONDS) / self._frame_seconds))

    @property
    def _waiting_count(self) -> int:
        return len(self._waiting) // self._frame_bytes

    async def _is_due(self) -> bool:
        """Waits until a packet is to leave; False when all have left."""
        while not self._is_ended:
            spare_seconds = self._playback.ahead_seconds - IN_HAND_SECONDS
            self._changed.clear()
            if not self._waiting:
                await self._changed.wait()
            elif spare_seconds >= TICK_SECONDS and self._waiting_count < self._most_frames:
                await self._clock.wait(self._changed, spare_seconds)
            else:
                return True
        return bool(self._waiting)
