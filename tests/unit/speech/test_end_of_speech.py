"""When speech ends: model.md B.6."""

import pytest

from services.speech.end_of_speech import Verdict, judge


@pytest.mark.parametrize(
    ("codes", "verdict"),
    [
        ([0] * 8, Verdict(is_spoken=False, is_last=True)),
        ([0] * 7 + [1], Verdict(is_spoken=True, is_last=True)),
        ([0] * 7 + [2047], Verdict(is_spoken=True, is_last=True)),
        ([1] + [0] * 7, Verdict(is_spoken=True, is_last=False)),
        ([0] * 6 + [9, 0], Verdict(is_spoken=True, is_last=False)),
        ([5, 3, 0, 0, 7, 0, 1, 2], Verdict(is_spoken=True, is_last=False)),
        ([0, 0, 0, 0], Verdict(is_spoken=False, is_last=True)),
        ([0, 0, 0, 4], Verdict(is_spoken=True, is_last=True)),
    ],
)
def test_frames_are_judged_as_the_reference_does(codes: list[int], verdict: Verdict) -> None:
    assert judge(codes) == verdict
