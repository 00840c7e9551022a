"""Whether the time to the first audio grows with what the user said, or with the turns before."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from statistics import median

from client.bench.caller import PACKET_SECONDS, Caller, Line
from client.bench.reply_record import ReplyRecord
from client.bench.sound import user_sound
from client.pcm import USER_RATE_HZ, Encoding
from client.report_table import ReportTable, digits, milliseconds
from client.session import Session

UTTERANCE_SECONDS = (2, 10, 30, 60)
TURNS = (1, 5, 20)
TURN_SECONDS = 2
SPEED = 10
"""How many times faster than people these users speak: all rounds would take more than an hour otherwise."""
LIVE_SECONDS = 2
"""What is said last of a turn that counts comes at the pace of people, so that the mesh has as little to do as beside
people when the turn ends, and has rested as long."""
ROUNDS = 21
FRAMES = 4
"""Of a reply: its first packet is what counts."""
SEED = 2**33


@dataclass
class Flatness:
    """Replies that counted: by length of what was said, and by number of the turn."""

    by_utterance_seconds: dict[int, list[ReplyRecord]] = field(default_factory=dict)
    by_turn: dict[int, list[ReplyRecord]] = field(default_factory=dict)


class FlatnessDriver:
    """One user at a time, who speaks in packets; lengths and sessions in turn: a busy moment is unfair to none."""

    def __init__(self, line: Line, found: Flatness, say: Callable[[str], None]) -> None:
        self._line = line
        self._caller = Caller(line, 0, line.clock.now())
        self._found = found
        self._say = say
        self._seed = SEED

    async def run(self) -> None:
        """All of it, after a round that is not counted."""
        for number in range(ROUNDS + 1):
            self._say(f"Flatness: round {number} of {ROUNDS}.")
            for seconds in UTTERANCE_SECONDS:
                async with self._session() as session:
                    reply = await self._take_turn(session, seconds, LIVE_SECONDS)
                if number:
                    self._found.by_utterance_seconds.setdefault(seconds, []).append(reply)
            async with self._session() as session:
                for turn in range(1, max(TURNS) + 1):
                    reply = await self._take_turn(session, TURN_SECONDS, LIVE_SECONDS if turn in TURNS else 0)
                    if number and turn in TURNS:
                        self._found.by_turn.setdefault(turn, []).append(reply)

    def _session(self) -> Session:
        return self._line.session(0, max_frame_count=FRAMES)

    async def _take_turn(self, session: Session, seconds: float, live_seconds: float) -> ReplyRecord:
        """Says something new, the last of it live, and hears the reply."""
        clock = self._line.clock
        self._seed += 1
        said = Encoding.S16.encode(user_sound(self._line.question, seconds, self._seed))
        size = round(PACKET_SECONDS * USER_RATE_HZ) * Encoding.S16.sample_bytes
        spoken_at = clock.now()
        live_from = len(said) - round(live_seconds / PACKET_SECONDS) * size
        for start in range(0, len(said), size):
            spoken_at += PACKET_SECONDS if start >= live_from else PACKET_SECONDS / SPEED
            await clock.sleep_until(spoken_at)
            await session.send_audio(said[start : start + size])
        return await self._caller.hear(session, self._seed, clock.now(), lateness_seconds=None)


def flatness_tables(found: Flatness) -> list[ReportTable]:
    """Both as tables."""
    kinds = (
        ("TTFA by length of the user's speech", "speech, s", found.by_utterance_seconds),
        ("TTFA by number of the turn in a session", "turn", found.by_turn),
    )
    note = (
        f"Users speak {SPEED} times as fast as people until the last {LIVE_SECONDS} s, which come at the pace of "
        f"people, in packets of 20 ms; medians of {ROUNDS} rounds. Over the least: the median as a multiple of the "
        "smallest in its table."
    )
    return [
        ReportTable(
            title,
            [head, "TTFA p50, ms", "least, ms", "most, ms", "over\nthe least"],
            [
                [
                    str(key),
                    milliseconds(median(_waits(replies))),
                    milliseconds(min(_waits(replies))),
                    milliseconds(max(_waits(replies))),
                    f"{digits(median(_waits(replies)) / min(median(_waits(others)) for others in by.values()))} ×",
                ]
                for key, replies in by.items()
            ],
            note,
        )
        for title, head, by in kinds
    ]


def _waits(replies: Sequence[ReplyRecord]) -> list[float]:
    return [seconds for reply in replies if (seconds := reply.first_audio_seconds) is not None]
