"""A day of calls: when they come, and how long they last."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

DAY_SECONDS = 86_400
TICK_SECONDS = 5
TICKS = DAY_SECONDS // TICK_SECONDS
CALL_SECONDS = 300.0
SPREAD = 0.8
"""Of the logarithm of a call's length: half of the calls last under 218 s, one of 20 over 13 minutes."""

RUSH_HOUR = 15.0
RUSH_SECONDS = 600
RUSH_SHARE = 0.3
"""Calls that come on top for ten minutes, of those at the peak: a broadcast, an outage elsewhere."""

# What people do in a call, in seconds: they speak, hear a reply, and think.
SPEAK_SECONDS, REPLY_SECONDS, PAUSE_SECONDS = 6.0, 9.0, 1.5
AHEAD_SECONDS = 4.0
"""What a reply is made ahead of its listener: its slots are free so much earlier than it is heard."""

TURN_SECONDS = SPEAK_SECONDS + REPLY_SECONDS + PAUSE_SECONDS
# Reasoner and speech are opened when the user begins to speak, the codec with the first frame.
HELD_SHARE = {
    "reasoner": (SPEAK_SECONDS + REPLY_SECONDS - AHEAD_SECONDS) / TURN_SECONDS,
    "speech": (SPEAK_SECONDS + REPLY_SECONDS - AHEAD_SECONDS) / TURN_SECONDS,
    "codec": (REPLY_SECONDS - AHEAD_SECONDS) / TURN_SECONDS,
}
"""Share of a call in which it holds a stage's slot."""

MAKING_SHARE = REPLY_SECONDS / TURN_SECONDS
"""Share of a call in which its listener needs frames at the pace of speech."""


@dataclass(frozen=True)
class DayOfCalls:
    """Calls by the tick in which they come, and the ticks that they last, in the order in which they come."""

    arrival_counts: NDArray[np.int64]
    length_ticks: NDArray[np.int32]

    @property
    def count(self) -> int:
        """Calls of the day."""
        return len(self.length_ticks)

    def firsts(self) -> NDArray[np.int64]:
        """The index of the first call of each tick, and the count of all behind them."""
        return np.concatenate(([0], np.cumsum(self.arrival_counts)))


def shape(hours: NDArray[np.float64]) -> NDArray[np.float64]:
    """How much is called by the hour, of the peak: little at night, most at 11 and at 15."""
    morning = np.exp(-((hours - 11.0) ** 2) / (2 * 2.0**2))
    afternoon = 0.9 * np.exp(-((hours - 16.0) ** 2) / (2 * 2.5**2))
    level = 0.04 + morning + afternoon
    return np.asarray(level / level.max())


def day_of_calls(peak_sessions: int, seed: int = 0) -> DayOfCalls:
    """Poisson arrivals with lognormal lengths, so that at the peak `peak_sessions` calls are expected at once."""
    random = np.random.default_rng((seed, peak_sessions))
    hours = (np.arange(TICKS) + 0.5) * TICK_SECONDS / 3600
    rush = (hours >= RUSH_HOUR) & (hours < RUSH_HOUR + RUSH_SECONDS / 3600)
    rate_hz = (shape(hours) + RUSH_SHARE * rush) * peak_sessions / CALL_SECONDS
    arrivals = random.poisson(rate_hz * TICK_SECONDS)
    seconds = random.lognormal(np.log(CALL_SECONDS) - SPREAD**2 / 2, SPREAD, int(arrivals.sum()))
    return DayOfCalls(arrivals, np.maximum(1, np.rint(seconds / TICK_SECONDS)).astype(np.int32))
