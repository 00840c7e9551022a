"""Somebody who talks to the mesh and notes when they hear what."""

import hashlib
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import grpc

from client.bench.player import Packet
from client.bench.reply_record import ReplyRecord
from client.bench.shape import ReplyShape
from client.bench.sound import user_sound
from client.clock import Clock
from client.errors import MeshError
from client.events import Audio, ReplyEnded
from client.front import Front
from client.pcm import USER_RATE_HZ, Encoding, Samples
from client.session import Session
from client.session_settings import SessionSettings

PACKET_SECONDS = 0.02
"""The packets of a microphone, as browsers and telephones send them."""


@dataclass(frozen=True)
class Line:
    """What callers share: how they reach the mesh, what they say and hear, and whom to tell of frames that came.

    `question` is at 16,000 Hz; every turn says another cut of it.
    """

    address: str
    channel: grpc.aio.Channel
    voice: str
    question: Samples
    shape: ReplyShape
    clock: Clock
    heard: Callable[[int], None]

    def session(
        self, seed: int, *, ahead_seconds: float | None = math.inf, max_frame_count: int | None = None
    ) -> Session:
        """A session that is not open yet; replies come as fast as they are made, unless told otherwise.

        ahead_seconds None: as the mesh paces them by itself. max_frame_count None: the shape's.
        """
        settings = SessionSettings(
            voice=self.voice,
            seed=seed,
            max_frame_count=max_frame_count or self.shape.frame_count,
            max_step_count=self.shape.step_count,
            ahead_seconds=ahead_seconds,
        )
        return Session([Front(self.channel, self.address)], settings)


class Caller:
    """One user. Every turn is a session of its own, so that all replies of a benchmark are the same work.

    Times of records are from `started_at`, on the line's clock. MeshError when a turn gets no whole reply.
    """

    def __init__(self, line: Line, index: int, started_at: float) -> None:
        self.index = index
        self._line = line
        self._clock = line.clock
        self._started_at = started_at

    async def take_turn(self, seed: int) -> ReplyRecord:
        """Says everything at once; the turn ends when it is said."""
        sound = self._sound(seed)
        async with self._line.session(seed) as session:
            await session.send_audio(sound)
            return await self.hear(session, seed, self._clock.now(), lateness_seconds=None)

    async def take_planned_turn(self, seed: int, planned_at: float) -> ReplyRecord:
        """As `take_turn`, but not before the planned moment, which all times are counted from."""
        sound = self._sound(seed)
        await self._clock.sleep_until(planned_at)
        lateness = self._clock.now() - planned_at
        async with self._line.session(seed) as session:
            await session.send_audio(sound)
            return await self.hear(session, seed, planned_at, lateness_seconds=lateness)

    async def take_live_turn(self, seed: int) -> ReplyRecord:
        """Speaks in real time, then listens until the reply would have been played to its end."""
        sound = self._sound(seed)
        packet_bytes = round(PACKET_SECONDS * USER_RATE_HZ) * Encoding.S16.sample_bytes
        async with self._line.session(seed, ahead_seconds=None) as session:
            began_at = self._clock.now()
            planned_at = began_at + self._line.shape.user_seconds
            for index, start in enumerate(range(0, len(sound), packet_bytes)):
                spoken_at = began_at + (index + 1) * PACKET_SECONDS
                await self._clock.sleep_until(min(spoken_at, planned_at))
                await session.send_audio(sound[start : start + packet_bytes])
            lateness = self._clock.now() - planned_at
            record = await self.hear(session, seed, planned_at, lateness_seconds=lateness)
        await self._clock.sleep_until(planned_at + record.played_seconds)
        return record

    def _sound(self, seed: int) -> bytes:
        return Encoding.S16.encode(user_sound(self._line.question, self._line.shape.user_seconds, seed))

    async def hear(
        self, session: Session, seed: int, turn_ended_at: float, *, lateness_seconds: float | None
    ) -> ReplyRecord:
        """Ends the turn and listens to the reply; times are from `turn_ended_at`, on the line's clock."""
        packets: list[Packet] = []
        digest = hashlib.sha256()
        ended: Any = None
        await session.end_turn()
        async for event in session.reply():
            match event:
                case Audio():
                    packets.append(Packet(self._clock.now() - turn_ended_at, event.frame_count, len(event.data)))
                    digest.update(event.data)
                    self._line.heard(event.frame_count)
                case ReplyEnded(failure=failure):
                    if failure is not None:
                        raise failure
                    ended = event
        record = ReplyRecord(
            caller_index=self.index,
            seed=seed,
            turn_ended_seconds=turn_ended_at - self._started_at,
            lateness_seconds=lateness_seconds,
            packets=packets,
            frame_seconds=session.samples_per_frame / session.sample_rate_hz,
            reason=ended.reason,
            step_count=ended.step_count,
            timings=ended.timings,
            digest=digest.hexdigest(),
        )
        if record.frame_count != ended.frame_count:
            message = f"a reply of {ended.frame_count} frames came with the sound of {record.frame_count}"
            raise MeshError(grpc.StatusCode.INTERNAL, "FRAME_COUNT", message)
        return record
