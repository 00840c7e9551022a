"""A reply's shape and what a frame of it costs."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.bench.shape import CannotMeasure, Cost, ReplyShape
from services.speech.interleave import Interleave, Next


@given(frames=st.integers(2, 60), data=st.data())
def test_steps_go_in_where_the_interleave_has_them(frames: int, data: st.DataObject) -> None:
    steps = data.draw(st.integers(1, frames // 2))
    shape = ReplyShape(frames, steps, 1.0, 1.0)
    rule, fed, expected = Interleave(), 0, []
    for _ in range(frames):
        need = rule.next(step_waits=fed < steps, steps_ended=fed == steps)
        expected.append(need is Next.STEP)
        fed += need is Next.STEP
        rule.spoken()
    assert [shape.has_step(index) for index in range(frames)] == expected
    assert sum(expected) == steps


def test_more_steps_than_frames_take_are_refused() -> None:
    with pytest.raises(CannotMeasure, match="9 frames take at most 4, got 5"):
        ReplyShape(9, 5, 1.0, 1.0)


def test_a_frame_has_its_share_of_a_step() -> None:
    cost = Cost(speech_frame_seconds=3.0, reasoner_step_seconds=4.0, codec_frame_seconds=0.5)
    assert cost.frame_seconds(ReplyShape(8, 2, 1.0, 1.0)) == 4.5
