"""The parts of a turn add up to the time to its first sound, whatever the stages tell."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.orchestrator.turn_parts import PART_NAMES, STAGE_PARTS, STAGES, TurnMarks
from services.orchestrator.under_run import UnderRun
from tests.unit.orchestrator.fake_clock import FakeClock

SECONDS = st.floats(0, 10)


def parts_of(marks: TurnMarks, ended_at: float) -> dict[str, float]:
    return {part.name: part.seconds for part in marks.parts(ended_at, marks.left_at)}


@given(SECONDS, st.lists(SECONDS, min_size=10, max_size=10), st.lists(SECONDS, min_size=12, max_size=12))
def test_the_parts_add_up_to_the_whole_whatever_the_stages_tell(
    ended: float, waits: list[float], told: list[float]
) -> None:
    clock = FakeClock()
    marks, began_at, wait, tell = TurnMarks(clock), clock.now(), iter(waits), iter(told)
    for stage in STAGES:
        clock.time += next(wait)
        marks.called(stage)
        clock.time += next(wait)
        marks.opened(stage, next(tell))
        clock.time += next(wait)
        marks.gave(stage, next(tell), *(next(tell) for _ in STAGE_PARTS[stage].work))
    clock.time += next(wait)
    marks.left()
    ended_at = min(began_at + ended, clock.now())
    parts = marks.parts(ended_at, marks.left_at)
    assert tuple(part.name for part in parts) == PART_NAMES
    assert all(part.seconds >= 0 for part in parts)
    assert marks.left_at is not None
    assert math.fsum(part.seconds for part in parts) == pytest.approx(marks.left_at - ended_at, abs=1e-9)


def test_each_stage_explains_its_own_interval_and_the_hop_is_the_rest() -> None:
    clock = FakeClock()
    marks, ended_at = TurnMarks(clock), clock.now()
    for stage in STAGES:
        marks.called(stage)
        marks.opened(stage, 0.0)
    clock.time += 1.0
    marks.gave("reasoner", 0.1, 0.2, 0.3, 0.15)
    clock.time += 0.5
    marks.gave("speech", 0.0, 0.1, 0.2)
    clock.time += 0.25
    marks.gave("codec", 0.05, 0.1)
    clock.time += 0.125
    marks.left()
    found = {name: seconds for name, seconds in parts_of(marks, ended_at).items() if seconds}
    assert found == pytest.approx(
        {
            "reasoner_queue": 0.1, "encode": 0.2, "prefill": 0.3, "first_step": 0.15, "reasoner_hop": 0.25,
            "voice_prefill": 0.1, "first_frame": 0.2, "speech_hop": 0.2,
            "codec_queue": 0.05, "decode": 0.1, "codec_hop": 0.1,
            "send": 0.125,
        }
    )  # fmt: skip


def test_only_the_first_outputs_count_and_nothing_before_the_first_sound() -> None:
    clock = FakeClock()
    marks, ended_at = TurnMarks(clock), clock.now()
    marks.gave("reasoner", 0, 0, 0, 0)
    assert marks.parts(ended_at, marks.left_at) == ()
    for stage in STAGES[1:]:
        marks.gave(stage, *[0.0] * (1 + len(STAGE_PARTS[stage].work)))
    marks.left()
    clock.time += 1
    marks.gave("reasoner", 9, 9, 9, 9)
    marks.left()
    assert sum(parts_of(marks, ended_at).values()) == 0


def test_a_slot_that_was_waited_for_while_the_user_spoke_costs_nothing() -> None:
    clock = FakeClock()
    marks = TurnMarks(clock)
    marks.called("reasoner")
    clock.time += 2
    marks.opened("reasoner", 2.0)
    ended_at = clock.now()
    marks.called("speech")
    clock.time += 1
    marks.gave("reasoner", 0, 0, 0, 0)
    clock.time += 3
    marks.opened("speech", 4.0)
    marks.gave("speech", 0, 0, 0)
    marks.called("codec")
    marks.gave("codec", 0, 0)
    marks.left()
    found = parts_of(marks, ended_at)
    assert (found["reasoner_queue"], found["reasoner_hop"]) == (0, 1)
    # What was left of the wait when the first step was there.
    assert (found["speech_queue"], found["speech_hop"]) == (3, 0)
    assert marks.queue_seconds == 4


def test_a_turn_that_waits_for_the_reply_before_it_queues() -> None:
    clock = FakeClock()
    marks, ended_at = TurnMarks(clock), clock.now()
    clock.time += 3
    marks.called("reasoner")
    clock.time += 1
    for stage in STAGES:
        marks.gave(stage, *[0.0] * (1 + len(STAGE_PARTS[stage].work)))
    marks.left()
    found = {name: seconds for name, seconds in parts_of(marks, ended_at).items() if seconds}
    assert found == {"reasoner_queue": 3, "reasoner_hop": 1}


def test_calls_that_came_to_nothing_are_the_lost_part_of_their_stage() -> None:
    clock = FakeClock()
    marks, ended_at = TurnMarks(clock), clock.now()
    marks.called("reasoner")
    marks.gave("reasoner", 0, 0, 0, 0)
    marks.called("speech")
    marks.opened("speech", 0.5)
    clock.time += 2
    marks.called("speech")
    clock.time += 1
    marks.opened("speech", 0.75)
    clock.time += 1
    marks.gave("speech", 0, 0, 0.5)
    marks.gave("codec", 0, 0)
    marks.left()
    found = {name: seconds for name, seconds in parts_of(marks, ended_at).items() if seconds}
    assert found == {"speech_lost": 2, "speech_queue": 0.75, "first_frame": 0.5, "speech_hop": 0.75}


@given(st.lists(st.tuples(SECONDS, st.floats(0.01, 1)), min_size=1))
def test_the_under_run_is_all_the_silence_of_a_player_that_waits(packets: list[tuple[float, float]]) -> None:
    found, now, silence, played_until = UnderRun(), 0.0, 0.0, 0.0
    for index, (wait, sound) in enumerate(packets):
        now += wait
        if index:
            silence += max(0.0, now - played_until)
        played_until = max(now, played_until) + sound
        found.send(now, sound)
    assert found.seconds == pytest.approx(silence, abs=1e-9)
    assert found.packet_count == len(packets)
