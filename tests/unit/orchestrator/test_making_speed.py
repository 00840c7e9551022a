"""How fast a reply's sound is made, of what nothing holds back."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.orchestrator.making_speed import MakingSpeed

GAPS = st.lists(st.tuples(st.floats(0.001, 1.0), st.integers(1, 8)), min_size=1, max_size=30)


@given(GAPS)
def test_it_is_the_time_after_the_first_piece_over_the_sound_after_it(gaps: list[tuple[float, int]]) -> None:
    speed = MakingSpeed(frame_seconds=0.08, free_seconds=math.inf)
    speed.made(5.0, 3)
    assert speed.rtf is None
    now = 5.0
    for seconds, frame_count in gaps:
        now += seconds
        speed.made(now, frame_count)
    assert speed.rtf == pytest.approx((now - 5.0) / (0.08 * sum(count for _, count in gaps)))


@given(GAPS)
def test_what_may_be_held_back_does_not_count(gaps: list[tuple[float, int]]) -> None:
    speed = MakingSpeed(frame_seconds=0.1, free_seconds=1.0)
    for index in range(8):
        speed.made(0.05 * index, 1)
    speed.made(1.0, 5)  # the last of them may be
    for index, (seconds, frame_count) in enumerate(gaps):
        speed.made(1.0 + seconds + index, frame_count)
    assert speed.rtf == pytest.approx(0.5)
