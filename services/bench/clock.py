"""Which time is measured."""

import time
from collections.abc import Callable
from typing import Literal

Clock = Callable[[], float]
"""Tells seconds from some moment on."""

ClockName = Literal["wall", "cpu"]


def clock(name: ClockName) -> Clock:
    """The time that passes, or the CPU time of all threads of this process: on one busy core the fairer of the two."""
    return time.perf_counter if name == "wall" else time.process_time
