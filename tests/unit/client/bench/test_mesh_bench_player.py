"""Under-run and frame intervals: laws of any packets, and cases that can be worked out by hand."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from client.bench.player import Packet, frame_intervals, played_seconds, under_run_seconds

FRAME = 0.08


@st.composite
def packet_lists(draw: st.DrawFn) -> list[Packet]:
    """One packet or more, in the order in which they come."""
    gaps = draw(st.lists(st.floats(0, 1), min_size=1, max_size=20))
    counts = draw(st.lists(st.integers(1, 5), min_size=len(gaps), max_size=len(gaps)))
    return [Packet(sum(gaps[: i + 1]), count, 3840 * count) for i, count in enumerate(counts)]


def silence_and_end(packets: list[Packet]) -> tuple[float, float]:
    """What a player does, packet by packet: how long it is silent after it has begun, and when it is done."""
    playing_until, silence = packets[0].seconds, 0.0
    for packet in packets:
        silence += max(0.0, packet.seconds - playing_until)
        playing_until = max(playing_until, packet.seconds) + packet.frame_count * FRAME
    return silence, playing_until


@given(packet_lists())
def test_the_under_run_is_the_silence_that_a_listener_hears(packets):
    silence, end = silence_and_end(packets)
    assert math.isclose(under_run_seconds(packets, FRAME), silence, abs_tol=1e-9)
    assert math.isclose(played_seconds(packets, FRAME), end, abs_tol=1e-9)


@given(packet_lists(), st.floats(0, 100))
def test_when_the_reply_begins_is_no_under_run(packets, later):
    moved = [Packet(packet.seconds + later, packet.frame_count, packet.byte_count) for packet in packets]
    assert math.isclose(under_run_seconds(moved, FRAME), under_run_seconds(packets, FRAME), abs_tol=1e-9)


@given(packet_lists(), st.floats(0, 1))
def test_later_packets_never_lessen_it(packets, later):
    moved = [packets[0], *(Packet(packet.seconds + later, packet.frame_count, 0) for packet in packets[1:])]
    assert under_run_seconds(moved, FRAME) >= under_run_seconds(packets, FRAME)


@given(packet_lists())
def test_the_intervals_of_the_frames_after_the_first_packet_add_up_to_the_time_from_first_to_last(packets):
    intervals = frame_intervals(packets)
    assert len(intervals) == sum(packet.frame_count for packet in packets[1:])
    assert math.isclose(math.fsum(intervals), packets[-1].seconds - packets[0].seconds, abs_tol=1e-9)


@pytest.mark.parametrize(
    ("packets", "expected"),
    [
        ([], 0.0),
        ([(0.3, 1)], 0.0),
        ([(0.3, 1), (0.3, 1), (0.3, 1)], 0.0),  # all at once
        ([(0.3, 1), (0.38, 1), (0.46, 1)], 0.0),  # each in the moment it is needed
        ([(0.3, 1), (0.40, 1), (0.46, 1)], 0.02),  # one is late, the next is not
        ([(0.3, 1), (0.40, 1), (0.50, 1)], 0.04),  # each is later than the one before
        ([(0.3, 2), (0.40, 1)], 0.0),  # the first brings more to play
        ([(0.3, 1), (0.50, 4), (0.70, 1)], 0.12),  # a long wait, then plenty
    ],
)
def test_by_hand(packets, expected):
    made = [Packet(seconds, count, 0) for seconds, count in packets]
    assert under_run_seconds(made, FRAME) == pytest.approx(expected, abs=1e-9)


def test_a_packet_of_several_frames_shares_its_wait_among_them():
    packets = [Packet(0.3, 2, 0), Packet(0.4, 1, 0), Packet(0.7, 3, 0)]
    assert frame_intervals(packets) == pytest.approx([0.1, 0.1, 0.1, 0.1])
    assert frame_intervals([]) == []
    assert played_seconds([], FRAME) == 0.0
