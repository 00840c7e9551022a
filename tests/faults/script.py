"""What a session says and what it must hear: the same bytes whatever happens meanwhile."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import client
from client.audio_file import read_audio
from client.events import Audio, FinishReason, ReplyEnded
from client.pcm import USER_RATE_HZ

QUESTION = Path(client.__file__).parent / "data" / "question.wav"
QUESTION_SECONDS = 1.0
FRAME_SECONDS = 0.08
FRAME_COUNT = 24
# How far replies are made ahead of their listener: little, so that they last and can be hit.
AHEAD_SECONDS = 0.6


@dataclass(frozen=True)
class Script:
    """A session: its seed, and what the user types or, where that is "", says."""

    seed: int
    turns: tuple[str, ...] = ("", "And then?")


@dataclass
class HeardReply:
    """A reply as it came: its sound, when its packets came, and how it ended; `error` where it failed."""

    sound: bytes = b""
    packets: list[tuple[float, float]] = field(default_factory=list)
    """When each packet came, and how many seconds of sound had come with it."""
    said_at: float = 0.0
    address: str = ""
    """Where its session was when it was last looked at."""
    error: str = ""
    has_ended: bool = False

    def take(self, audio: Audio) -> None:
        """A packet came."""
        self.sound += audio.data
        self.packets.append((time.monotonic(), (audio.frame_index + audio.frame_count) * FRAME_SECONDS))

    def end(self, ended: ReplyEnded) -> None:
        """It ended."""
        self.has_ended = True
        if ended.reason not in (FinishReason.STOP, FinishReason.LENGTH):
            self.error = f"it ended as {ended.reason.name}: {ended.failure!r}"

    @property
    def heard_seconds(self) -> float:
        """Sound that has come."""
        return self.packets[-1][1] if self.packets else 0.0

    def packet_count_at(self, moment: float) -> int:
        """Packets that had come by then."""
        return sum(at <= moment for at, _ in self.packets)

    def next_packet_seconds(self, count: int) -> float | None:
        """From packet `count`, or from the end of the turn, to the packet after it; None after the last."""
        if count >= len(self.packets):
            return None
        return self.packets[count][0] - (self.packets[count - 1][0] if count else self.said_at)

    def in_hand_at(self, moment: float) -> float:
        """Sound that a listener who plays from the first packet on has not played yet, in seconds."""
        before = [(at, seconds) for at, seconds in self.packets if at <= moment]
        return max(0.0, before[-1][1] - (moment - before[0][0])) if before else 0.0


class Watcher(Protocol):
    """Follows one reply of a session."""

    def said(self, reply: HeardReply) -> None:
        """What the user says is on its way, and not complete."""

    def heard(self, reply: HeardReply) -> None:
        """A packet came."""

    def ended(self, reply: HeardReply) -> None:
        """The reply ended, or failed."""


class Nobody:
    """Follows nothing."""

    def said(self, reply: HeardReply) -> None:
        """Nothing."""

    heard = ended = said


def watched_by_nobody(_: int) -> Watcher:
    """A session that is left alone."""
    return Nobody()


async def hold(
    addresses: Sequence[str], script: Script, watch: Callable[[int], Watcher] = watched_by_nobody
) -> list[HeardReply]:
    """Holds a session at the first of these orchestrators to its end, and gives a reply for each turn, also where it
    fails.

    `watch` gives who follows the reply to a turn, asked when the turn begins.
    """
    replies: list[HeardReply] = []
    watcher: Watcher = Nobody()
    question = read_audio(QUESTION, USER_RATE_HZ)[: round(QUESTION_SECONDS * USER_RATE_HZ)]
    try:
        async with (
            client.connect(addresses) as mesh,
            mesh.session(seed=script.seed, max_frame_count=FRAME_COUNT, ahead_seconds=AHEAD_SECONDS) as session,
        ):
            for turn, text in enumerate(script.turns):
                reply, watcher = HeardReply(), watch(turn)
                replies.append(reply)
                reply.address = session.address
                await (session.send_text(text) if text else session.send_audio(question))
                watcher.said(reply)
                reply.said_at = time.monotonic()
                await session.end_turn()
                async for event in session.reply():
                    match event:
                        case Audio():
                            reply.take(event)
                            reply.address = session.address
                            watcher.heard(reply)
                        case ReplyEnded():
                            reply.end(event)
                            watcher.ended(reply)
    except client.MeshError as error:
        why = f"{error.code.name} {error.reason}: {error}"
        replies += [HeardReply() for _ in script.turns[len(replies) :]]
        for reply in replies:
            if not reply.has_ended:
                reply.error = why
                watcher.ended(reply)
    return replies
