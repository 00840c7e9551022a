"""When speech ends: the frame of zeros (model.md B.6, H)."""

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Verdict:
    """What a predicted frame means for the reply."""

    is_spoken: bool
    is_last: bool


def judge(codes: Sequence[int]) -> Verdict:
    """Speech ends at a frame whose codes are all 0, the last codebook's left aside.

    The last code decides only whether that frame is still heard: all zeros is a mark and no sound; a last code other
    than 0 is kept, because the reference keeps it.
    """
    return Verdict(is_spoken=any(codes), is_last=not any(codes[:-1]))
