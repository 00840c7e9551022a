"""What a simulated caller says, and when."""

from collections.abc import Sequence
from dataclasses import dataclass

from client.errors import InputError
from client.pcm import Samples

PATIENCE_SECONDS = 30.0
"""By then any detector has heard that a turn is over."""


@dataclass(frozen=True, eq=False)
class SpokenTurn:
    """One user turn: what it is called, and mono samples at the rate of the session's input, at least one."""

    name: str
    samples: Samples


@dataclass(frozen=True, kw_only=True)
class Script:
    """The turns in their order.

    Each begins `pause_seconds` after the reply before it was played to its end, or over that reply: for each turn
    `barge_in_seconds` says how long after the reply's first sound the next turn begins, None for never; it is gone
    through again and again. Sound leaves in packets of `packet_ms`. A mesh that is to hear when a turn is over is given
    `patience_seconds` of silence for that.
    """

    turns: Sequence[SpokenTurn]
    pause_seconds: float = 1.0
    barge_in_seconds: Sequence[float | None] = ()
    packet_ms: int = 20
    patience_seconds: float = PATIENCE_SECONDS

    def barge_in_after(self, position: int) -> float | None:
        """How long after the first sound of the reply to this turn the next turn begins over it; None for never."""
        if not self.barge_in_seconds or position + 1 >= len(self.turns):
            return None
        return self.barge_in_seconds[position % len(self.barge_in_seconds)]


def read_barge_in(text: str) -> tuple[float | None, ...]:
    """A schedule as in "1.5,-,0.8": seconds, or - for a reply that is heard to its end."""
    try:
        schedule = tuple(None if word.strip() == "-" else float(word) for word in text.split(","))
    except ValueError:
        schedule = (-1.0,)
    if not all(seconds is None or 0 <= seconds <= 86_400 for seconds in schedule):
        raise InputError(f"--barge-in: expected seconds or - with commas between them, as 1.5,-,0.8; got {text!r}")
    return schedule
