"""Talking to a mesh from the command line: turns in, replies out, with the clock running."""

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from client.access import Access
from client.connection import connect
from client.events import Audio, Event, ReplyEnded
from client.pcm import Samples
from client.session import Session
from client.session_settings import ReplySettings, SessionSettings


@dataclass(frozen=True, eq=False)
class Turn:
    """One user turn: what it is called, and what is typed or said (mono samples at 16,000 Hz)."""

    name: str
    content: str | Samples


@dataclass(frozen=True, eq=False)
class HeardReply:
    """A reply with the times that the client measured, in seconds from the end of the user turn being sent.

    `first_audio_seconds` (TTFA) is until the first sample was received, None for an empty reply; `last_audio_seconds`
    until the last one was.
    """

    turn: Turn
    samples: Samples
    sample_rate_hz: int
    ended: ReplyEnded
    first_audio_seconds: float | None
    last_audio_seconds: float

    @property
    def audio_seconds(self) -> float:
        """How long the reply is."""
        return len(self.samples) / self.sample_rate_hz

    @property
    def rtf(self) -> float | None:
        """Time from the end of the turn to the last sample, divided by the length of the reply."""
        return self.last_audio_seconds / self.audio_seconds if len(self.samples) else None


@dataclass
class ReplyClock:
    """Gathers a reply's sound and when it came."""

    sent_at: float
    pieces: list[Samples] = field(default_factory=lambda: [np.zeros(0, np.float32)])
    first_audio_seconds: float | None = None
    last_audio_seconds: float = 0.0

    def hear(self, audio: Audio) -> None:
        """Takes in a piece of sound that has just come."""
        self.last_audio_seconds = time.perf_counter() - self.sent_at
        if self.first_audio_seconds is None:
            self.first_audio_seconds = self.last_audio_seconds
        self.pieces.append(audio.samples)


async def talk(
    addresses: Sequence[str],
    settings: SessionSettings,
    turns: Sequence[Turn],
    *,
    access: Access | None = None,
    watch: Callable[[Turn, Event], None],
    keep: Callable[[HeardReply], None],
) -> list[HeardReply]:
    """Holds a session of one or more turns, each sent when the reply before it has ended.

    `watch` sees every event as it comes, `keep` gets every reply as soon as it is whole. Nobody listens meanwhile, so
    replies come as fast as they are made.
    """
    replies = []
    hurried = replace(settings, ahead_seconds=math.inf)
    async with connect(addresses, access) as mesh, mesh.open_session(hurried) as session:
        for turn in turns:
            reply = await take_turn(session, turn, watch)
            keep(reply)
            replies.append(reply)
    return replies


async def take_turn(
    session: Session, turn: Turn, watch: Callable[[Turn, Event], None], settings: ReplySettings | None = None
) -> HeardReply:
    """Sends one user turn and hears its reply to the end, by `settings` of its own; raises MeshError when it failed."""
    if isinstance(turn.content, str):
        await session.send_text(turn.content)
    else:
        await session.send_audio(turn.content)
    await session.end_turn(settings)
    clock = ReplyClock(time.perf_counter())
    async for event in session.reply():
        if isinstance(event, Audio):
            clock.hear(event)
        watch(turn, event)
        if isinstance(event, ReplyEnded):
            if event.failure is not None:
                raise event.failure
            ended = event
    return HeardReply(
        turn=turn,
        samples=np.concatenate(clock.pieces),
        sample_rate_hz=session.sample_rate_hz,
        ended=ended,
        first_audio_seconds=clock.first_audio_seconds,
        last_audio_seconds=clock.last_audio_seconds,
    )
