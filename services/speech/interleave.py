"""Which reasoner step feeds which frame: the 1:2 rule (model.md B.3).

    frame   0      1      2      3      4      5     …
    step    0      ·      1      ·      2      ·     …     until the step that ends the text has been fed

A step enters the backbone just before the frame is predicted, as two positions: its hidden state, then its token.
Before them stands the frame spoken last, so a frame costs three positions with a step and one without.
"""

from dataclasses import dataclass
from enum import Enum, auto

FRAMES_PER_STEP = 2


class Next(Enum):
    """What the next frame needs."""

    STEP = auto()
    """A step goes in first, and it is there."""
    FRAME_ALONE = auto()
    """Only the frame spoken last goes in."""
    WAIT = auto()
    """A step goes in first, and it is not there yet."""


@dataclass
class Interleave:
    """One reply's place in the rule."""

    frame_index: int = 0
    text_ended: bool = False

    def next(self, *, step_waits: bool, steps_ended: bool) -> Next:
        """What the next frame needs, given whether a step waits to be fed and whether more can come.

        The answer depends on the reply alone, never on when its steps arrive: a frame that is due a step waits.
        """
        if self.text_ended or self.frame_index % FRAMES_PER_STEP:
            return Next.FRAME_ALONE
        if step_waits:
            return Next.STEP
        return Next.FRAME_ALONE if steps_ended else Next.WAIT

    def fed(self, *, is_end: bool) -> None:
        """A step was fed; `is_end`: it holds the token that ends the text."""
        self.text_ended = self.text_ended or is_end

    def spoken(self) -> None:
        """A frame was predicted."""
        self.frame_index += 1


def positions_needed(*, with_step: bool, first_frame: bool) -> int:
    """Backbone positions that the next frame takes: the frame before it, if any, and two for a step."""
    return (0 if first_frame else 1) + (2 if with_step else 0)
