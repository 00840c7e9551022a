"""The shape of the replies that are measured."""

from dataclasses import dataclass

from services.speech.interleave import FRAMES_PER_STEP


class CannotMeasure(Exception):
    """What was asked for can't be measured; the message says why in one sentence."""


@dataclass(frozen=True)
class ReplyShape:
    """How long a reply, its voice prompt and the user turn before it are.

    A frame that a step goes into costs more than one without, so what a frame costs hangs on steps for frames.
    """

    frame_count: int
    step_count: int
    voice_seconds: float
    user_seconds: float

    def __post_init__(self) -> None:
        if self.step_count > (most := self.frame_count // FRAMES_PER_STEP):
            raise CannotMeasure(
                f"one of {FRAMES_PER_STEP} frames takes a step: {self.frame_count} frames take at most {most}, "
                f"got {self.step_count}"
            )

    @property
    def steps_per_frame(self) -> float:
        """Steps for each frame."""
        return self.step_count / self.frame_count

    def has_step(self, frame_index: int) -> bool:
        """Whether a step goes in before a frame."""
        return frame_index % FRAMES_PER_STEP == 0 and frame_index // FRAMES_PER_STEP < self.step_count


@dataclass(frozen=True)
class Cost:
    """What the parts of a frame took."""

    speech_frame_seconds: float
    reasoner_step_seconds: float
    codec_frame_seconds: float

    def frame_seconds(self, shape: ReplyShape) -> float:
        """A frame with its share of a step."""
        return self.speech_frame_seconds + shape.steps_per_frame * self.reasoner_step_seconds + self.codec_frame_seconds
