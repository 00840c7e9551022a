"""The 1:2 rule: which step feeds which frame, a function of the steps alone."""

from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.speech.interleave import Interleave, Next, positions_needed


@dataclass
class Reference:
    """The schedule as model.md B.3 writes it down: `alive`, and a flag that turns over at every frame."""

    alive: bool = True
    flag: bool = True

    def frame(self, step_count: int, fed: int, ends_with_end_token: bool) -> bool:
        """One frame; whether a step goes in before it."""
        pair = self.alive and self.flag and fed < step_count
        if self.alive and self.flag and fed >= step_count:
            self.alive = False  # the steps ended without the token that says so
        if pair and ends_with_end_token and fed == step_count - 1:
            self.alive = False
        self.flag = self.alive and not self.flag
        return pair


def by_reference(step_count: int, frame_count: int, *, with_end_token: bool) -> list[int | None]:
    reference, fed, schedule = Reference(), 0, []
    for _ in range(frame_count):
        if reference.frame(step_count, fed, with_end_token):
            schedule.append(fed)
            fed += 1
        else:
            schedule.append(None)
    return schedule


def by_rule(
    step_count: int, frame_count: int, *, with_end_token: bool, arrivals: list[int] | None = None
) -> list[int | None]:
    """The schedule that Interleave gives. arrivals: how often the engine looks in vain before each step is there."""
    rule, fed, schedule = Interleave(), 0, []
    delays = list(arrivals or [0] * (step_count + 1))
    while len(schedule) < frame_count:
        here = delays[min(fed, len(delays) - 1)] == 0
        need = rule.next(step_waits=fed < step_count and here, steps_ended=fed >= step_count and here)
        if need is Next.WAIT:
            delays[min(fed, len(delays) - 1)] -= 1
            continue
        if need is Next.STEP:
            rule.fed(is_end=with_end_token and fed == step_count - 1)
            schedule.append(fed)
            fed += 1
        else:
            schedule.append(None)
        rule.spoken()
    return schedule


@pytest.mark.parametrize("with_end_token", [True, False])
@pytest.mark.parametrize("step_count", [1, 2, 3, 7])
def test_the_rule_is_the_references(step_count: int, with_end_token: bool) -> None:
    expected = by_reference(step_count, 20, with_end_token=with_end_token)
    assert by_rule(step_count, 20, with_end_token=with_end_token) == expected


def test_step_j_feeds_frame_2j() -> None:
    assert by_rule(3, 8, with_end_token=True) == [0, None, 1, None, 2, None, None, None]
    assert by_rule(3, 8, with_end_token=False) == [0, None, 1, None, 2, None, None, None]


@given(
    step_count=st.integers(1, 8),
    with_end_token=st.booleans(),
    arrivals=st.lists(st.integers(0, 5), min_size=9, max_size=9),
)
def test_arrival_times_change_nothing(step_count: int, with_end_token: bool, arrivals: list[int]) -> None:
    late = by_rule(step_count, 24, with_end_token=with_end_token, arrivals=arrivals)
    assert late == by_rule(step_count, 24, with_end_token=with_end_token)


def test_what_the_next_frame_needs() -> None:
    due, between, ended = Interleave(frame_index=4), Interleave(frame_index=3), Interleave(4, text_ended=True)
    for waits in (True, False):
        for over in (True, False):
            assert between.next(step_waits=waits, steps_ended=over) is Next.FRAME_ALONE
            assert ended.next(step_waits=waits, steps_ended=over) is Next.FRAME_ALONE
    assert due.next(step_waits=True, steps_ended=False) is Next.STEP
    assert due.next(step_waits=True, steps_ended=True) is Next.STEP
    assert due.next(step_waits=False, steps_ended=False) is Next.WAIT
    assert due.next(step_waits=False, steps_ended=True) is Next.FRAME_ALONE


def test_text_that_has_ended_stays_ended() -> None:
    rule = Interleave()
    rule.fed(is_end=True)
    rule.fed(is_end=False)
    assert rule.text_ended


@given(step_count=st.integers(1, 10), frame_count=st.integers(1, 30))
def test_positions_add_up(step_count: int, frame_count: int) -> None:
    """model.md B.10: after the voice prompt, 2 for each step that was fed and 1 for each frame but the last."""
    schedule = by_rule(step_count, frame_count, with_end_token=True)
    needed = [
        positions_needed(with_step=step is not None, first_frame=index == 0) for index, step in enumerate(schedule)
    ]
    fed = sum(step is not None for step in schedule)
    assert sum(needed) == 2 * fed + frame_count - 1
