"""What every reply of a benchmark looks like."""

from dataclasses import dataclass

PUBLISHED_FRAMES = 485
PUBLISHED_STEPS = 144
"""The published measurement's reply: 38.8 s of speech to 144 reasoner steps (the paper's table of latencies)."""


@dataclass(frozen=True)
class ReplyShape:
    """The lengths that a benchmark fixes, because replies of random weights seldom end by themselves.

    `frame_count` and `step_count` are 1 or more; `user_seconds` is what the user says.
    """

    frame_count: int
    step_count: int
    user_seconds: float

    @classmethod
    def of(cls, frame_count: int, step_count: int | None, user_seconds: float) -> "ReplyShape":
        """The shape of so many frames; without a number of steps, the one that keeps the published proportion."""
        steps = max(1, round(frame_count * PUBLISHED_STEPS / PUBLISHED_FRAMES)) if step_count is None else step_count
        return cls(frame_count, steps, user_seconds)

    @property
    def spoken_step_count(self) -> int:
        """The steps that a reply of this shape can speak: one to two frames."""
        return min(self.step_count, (self.frame_count + 1) // 2)
