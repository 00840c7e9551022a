"""Whether the time to the first audio grows with what the user said, or with the turns before."""

from collections.abc import Callable
from dataclasses import dataclass, field
from statistics import median

from client.bench.caller import PACKET_SECONDS, Line
from client.bench.sound import user_sound
from client.clock import Clock
from client.events import Audio
from client.pcm import USER_RATE_HZ, Encoding
from client.report_table import ReportTable, digits, milliseconds
from client.session import Session

UTTERANCE_SECONDS = (2, 10, 30, 60)
TURNS = (1, 5, 20)
TURN_SECONDS = 2
SPEED = 10
"""How many times faster than people these users speak: all rounds would take more than an hour otherwise."""
ROUNDS = 31
FRAMES = 4
"""Of a reply: its first packet is what counts."""
SEED = 2**33


@dataclass
class Flatness:
    """Seconds from the end of the turn to the first sound: by length of what was said, and by number of the turn."""

    by_utterance_seconds: dict[int, list[float]] = field(default_factory=dict)
    by_turn: dict[int, list[float]] = field(default_factory=dict)


class FlatnessDriver:
    """One user at a time, who speaks in packets; lengths and sessions in turn: a busy moment is unfair to none."""

    def __init__(self, line: Line, found: Flatness, say: Callable[[str], None]) -> None:
        self._line = line
        self._found = found
        self._say = say
        self._seed = SEED

    async def run(self) -> None:
        """All of it, after a round that is not counted."""
        for number in range(ROUNDS + 1):
            self._say(f"Flatness: round {number} of {ROUNDS}.")
            for seconds in UTTERANCE_SECONDS:
                async with self._session() as session:
                    waited = await self._take_turn(session, seconds)
                if number:
                    self._found.by_utterance_seconds.setdefault(seconds, []).append(waited)
            async with self._session() as session:
                for turn in range(1, max(TURNS) + 1):
                    waited = await self._take_turn(session, TURN_SECONDS)
                    if number and turn in TURNS:
                        self._found.by_turn.setdefault(turn, []).append(waited)

    def _session(self) -> Session:
        return self._line.session(0, max_frame_count=FRAMES)

    async def _take_turn(self, session: Session, seconds: float) -> float:
        """Says something new and hears the reply → the time to its first sound."""
        clock: Clock = self._line.clock
        self._seed += 1
        said = Encoding.S16.encode(user_sound(self._line.question, seconds, self._seed))
        size = round(PACKET_SECONDS * USER_RATE_HZ) * Encoding.S16.sample_bytes
        began_at, waited = clock.now(), 0.0
        for index, start in enumerate(range(0, len(said), size)):
            await clock.sleep_until(began_at + (index + 1) * PACKET_SECONDS / SPEED)
            await session.send_audio(said[start : start + size])
        ended_at = clock.now()
        await session.end_turn()
        async for event in session.reply():
            if isinstance(event, Audio) and not waited:
                waited = clock.now() - ended_at
        return waited


def flatness_tables(found: Flatness) -> list[ReportTable]:
    """Both as tables."""
    kinds = (
        ("TTFA by length of the user's speech", "speech, s", found.by_utterance_seconds),
        ("TTFA by number of the turn in a session", "turn", found.by_turn),
    )
    note = (
        f"Users speak {SPEED} times as fast as people, in packets of 20 ms; medians of {ROUNDS} rounds. "
        "Over the least: the median as a multiple of the smallest in its table."
    )
    return [
        ReportTable(
            title,
            [head, "TTFA p50, ms", "least, ms", "most, ms", "over\nthe least"],
            [
                [
                    str(key),
                    milliseconds(median(times)),
                    milliseconds(min(times)),
                    milliseconds(max(times)),
                    f"{digits(median(times) / min(map(median, by.values())))} ×",
                ]
                for key, times in by.items()
            ],
            note,
        )
        for title, head, by in kinds
    ]
