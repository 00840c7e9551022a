"""The figures of a load from its replies."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from client.bench.load import ClosedLoop, LoadRecord, OpenLoop
from client.bench.player import Packet
from client.bench.reply_record import Failure
from client.bench.shape import ReplyShape
from client.bench.summary import Sameness, most_at_once, percentile, sameness, spread, summarize, summarize_all

SHAPE = ReplyShape(frame_count=3, step_count=9, user_seconds=3)
NUMBERS = st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=200)


def failure(code: str, reason: str = "", *, is_warm_up: bool = False) -> Failure:
    """A turn that got no reply."""
    return Failure(0, 0, 0.0, 0.02, code, reason or code, "no", is_warm_up)


@given(NUMBERS, st.integers(1, 100))
def test_a_percentile_is_the_least_number_that_so_many_do_not_exceed(numbers, percent):
    value = percentile(sorted(numbers), percent)
    assert value in numbers
    assert sum(number <= value for number in numbers) * 100 >= percent * len(numbers)
    assert sum(number < value for number in numbers) * 100 < percent * len(numbers)


@given(NUMBERS)
def test_a_spread_is_in_order_and_knows_no_none(numbers):
    found = spread([None, *numbers, None])
    assert found is not None
    assert min(numbers) <= found.p50 <= found.p95 <= found.p99 <= found.maximum == max(numbers)
    assert found.count == len(numbers)
    assert math.isclose(found.mean, math.fsum(numbers) / len(numbers), abs_tol=1e-9)


def test_percentiles_by_hand():
    found = spread(float(number) for number in range(1, 101))
    assert found is not None
    assert (found.p50, found.p95, found.p99, found.maximum) == (50, 95, 99, 100)
    few = spread([3.0, 1.0, 2.0, 4.0])
    assert few is not None
    assert (few.mean, few.p50, few.p95, few.p99) == (2.5, 2.0, 4.0, 4.0)
    assert spread([]) is None
    assert spread([None]) is None


@given(st.lists(st.tuples(st.integers(0, 20), st.integers(1, 20)), max_size=20))
def test_most_at_once_is_what_some_moment_sees(spans):
    ends = [(begin, begin + length) for begin, length in spans]
    seen = max((sum(begin <= moment < end for begin, end in ends) for moment in range(41)), default=0)
    assert most_at_once(ends) == seen


def test_both_conventions_of_rtf(new_reply):
    reply = new_reply(0.2, 0.3, 0.5)
    assert reply.rtf_with_first_audio == pytest.approx(0.5 / 0.24)
    assert reply.rtf_without_first_audio == pytest.approx(0.3 / 0.16)
    packets = [Packet(0.2, 2, 0), Packet(0.4, 4, 0)]
    assert new_reply(packets=packets).rtf_without_first_audio == pytest.approx(0.2 / 0.32)
    assert new_reply(0.2).rtf_with_first_audio == pytest.approx(0.2 / 0.08)
    assert new_reply(0.2).rtf_without_first_audio is None
    assert new_reply().rtf_with_first_audio is None


def test_a_load_by_hand(new_reply):
    record = LoadRecord(ClosedLoop(2, 2, is_live=False), wall_seconds=2.0, is_complete=True)
    record.replies = [
        new_reply(0.10, 0.18, 0.26),  # in time
        new_reply(0.20, 0.36, 0.44),  # 80 ms of under-run
        new_reply(0.30),  # one packet: no word on continuity, and shorter than the shape
        new_reply(),  # empty
    ]
    record.failures = [
        failure("UNAVAILABLE", "SLOTS_IN_USE"),
        failure("UNAVAILABLE", "UNREACHABLE"),
        failure("RESOURCE_EXHAUSTED"),
        failure("INTERNAL", is_warm_up=True),
    ]
    found = summarize(record, SHAPE)
    assert (found.turn_count, found.reply_count, found.empty_count, found.short_count) == (4, 4, 1, 2)
    assert found.refusals == {"UNAVAILABLE SLOTS_IN_USE": 1, "RESOURCE_EXHAUSTED": 1}
    assert found.errors == {"UNAVAILABLE UNREACHABLE": 1, "INTERNAL (warm-up)": 1}
    assert found.ttfa is not None
    assert (found.ttfa.count, found.ttfa.p50, found.ttfa.maximum) == (3, 0.20, 0.30)
    assert found.ttft is not None
    assert found.ttff is not None
    assert (found.ttft.p50, found.ttff.p50) == (0.010, pytest.approx(0.030))
    assert (found.continuity_count, found.continuity_50, found.continuity_100) == (2, 0.5, 1.0)
    assert found.under_run is not None
    assert found.under_run.maximum == pytest.approx(0.08)
    assert found.frame_interval is not None
    assert (found.frame_interval.count, found.frame_interval.maximum) == (4, pytest.approx(0.16))
    assert found.audio_seconds == pytest.approx(7 * 0.08)
    assert found.audio_seconds_per_second == pytest.approx(0.28)
    assert (found.frames_per_second, found.seconds_per_frame) == (3.5, pytest.approx(2 / 7))
    assert found.first_packet_bytes is not None
    assert found.first_packet_bytes.p50 == 3840
    parts = found.first_audio_parts
    assert parts is not None
    assert parts.total == pytest.approx(0.2)
    assert list(parts.mesh) == ["reasoner_queue", "first_step", "speech_queue", "first_frame", "decode"]
    assert sum(parts.mesh.values()) + parts.rest == pytest.approx(parts.total)


def test_a_text_that_ended_early_is_counted_where_the_sound_did_not(new_reply):
    record = LoadRecord(ClosedLoop(1, 2, is_live=False))
    record.replies = [new_reply(0.1, 0.2, 0.3, step_count=steps) for steps in (1, 2)]
    assert SHAPE.spoken_step_count == 2
    assert summarize(record, SHAPE).short_text_count == 1


def test_no_replies_give_no_figures():
    found = summarize(LoadRecord(OpenLoop(1, 5)), SHAPE)
    assert found.reply_count == 0
    assert found.ttfa is found.first_audio_parts is found.under_run is found.continuity_50 is None
    assert found.frames_per_second is found.seconds_per_frame is found.audio_seconds_per_second is None


def test_throughput_is_compared_with_one_session_alone(new_reply):
    def record(load, reply_count, *, is_complete=True):
        replies = [new_reply(0.1, 0.2, 0.3)] * reply_count
        return LoadRecord(load, replies=replies, wall_seconds=1.0, is_complete=is_complete)

    one, four = ClosedLoop(1, 2, is_live=False), ClosedLoop(4, 2, is_live=False)
    records = [record(four, 6), record(one, 2), record(OpenLoop(1, 5), 3)]
    assert [found.speed_up for found in summarize_all(records, SHAPE)] == [3.0, 1.0, None]
    records[1] = record(one, 2, is_complete=False)
    assert [found.speed_up for found in summarize_all(records, SHAPE)] == [None, None, None]


def test_the_same_reply_at_another_load_has_the_same_bytes(new_reply):
    one = LoadRecord(ClosedLoop(1, 1, is_live=False), warm_ups=[new_reply(seed=7, digest="a")])
    two = LoadRecord(
        ClosedLoop(2, 1, is_live=False), warm_ups=[new_reply(seed=8, digest="c"), new_reply(seed=7, digest="a")]
    )
    assert sameness([one, two]) == Sameness(1, 0)
    two.warm_ups[1] = new_reply(seed=7, digest="b")
    assert sameness([one, two]) == Sameness(1, 1)
