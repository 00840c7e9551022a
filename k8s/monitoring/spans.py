"""Spans of time as PromQL has them."""

from dataclasses import dataclass

UNITS = (("d", 86_400), ("h", 3_600), ("m", 60), ("s", 1))


def span(seconds: float) -> str:
    """The largest unit that leaves a whole number: "5m", "90s", "1d"; milliseconds for what is no whole second."""
    if not seconds:
        return "0s"
    for unit, length in UNITS:
        if seconds % length == 0:
            return f"{seconds // length:.0f}{unit}"
    return f"{seconds * 1000:.0f}ms"


@dataclass(frozen=True)
class Spans:
    """All spans of the rules, `speed` times shorter than production has them, so that a drill need not take hours."""

    speed: float = 1.0

    def __call__(self, seconds: float) -> str:
        """The span that stands for so many seconds."""
        return span(seconds / self.speed)
