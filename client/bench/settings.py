"""What a benchmark is asked to do."""

from dataclasses import dataclass

from client.bench.load import ClosedLoop, Load, OpenLoop
from client.bench.shape import ReplyShape
from client.errors import InputError

DEFAULT_SESSIONS = "1,2,4,8"


@dataclass(frozen=True, kw_only=True)
class BenchSettings:
    """Which loads to put on the mesh, and what the replies look like.

    `voice` names a voice of the mesh; None makes one of `voice_seconds` for the run. `is_flatness_asked`: also whether
    the time to the first audio stays the same however much was said.
    """

    shape: ReplyShape
    loads: tuple[Load, ...]
    voice: str | None
    voice_seconds: float
    is_flatness_asked: bool = False


def read_loads(
    sessions: str | None, rates: str | None, *, reply_count: int, is_live: bool, duration_seconds: float
) -> tuple[Load, ...]:
    """The closed loops of "1,2,4" and the open loops of "0.5,1"; without either, the default closed loops.

    InputError when they are not lists of numbers, or an open loop would have no turn.
    """
    if sessions is None and rates is None:
        sessions = DEFAULT_SESSIONS
    if is_live and sessions is None:
        raise InputError("--live is about callers, and --rate has none: give --sessions as well, or leave it out")
    loads: list[Load] = [ClosedLoop(count, reply_count, is_live) for count in read_counts(sessions)]
    for rate in read_rates(rates):
        load = OpenLoop(rate, duration_seconds)
        if not load.turn_count:
            raise InputError(f"--duration: no turn arrives within {duration_seconds:g} s at {rate:g} a second")
        loads.append(load)
    return tuple(loads)


def read_counts(text: str | None) -> list[int]:
    """Numbers of sessions, as in "1,2,4,8"."""
    words = [] if text is None else text.split(",")
    if not all(word.strip().isdecimal() and int(word) for word in words):
        raise InputError(f"--sessions: expected numbers of 1 or more with commas between them, as 1,2,4; got {text!r}")
    return [int(word) for word in words]


def read_rates(text: str | None) -> list[float]:
    """Turns a second, as in "0.5,1,2"."""
    words = [] if text is None else text.split(",")
    try:
        rates = [float(word) for word in words]
    except ValueError:
        rates = [0.0]
    if not all(0 < rate <= 1_000_000 for rate in rates):
        raise InputError(f"--rate: expected turns a second with commas between them, as 0.5,1,2; got {text!r}")
    return rates
