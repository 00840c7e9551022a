"""The player that is not there, and clocks in a hurry."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from client.bench.player import Packet, under_run_seconds
from client.call.clock import FastClock
from client.call.player import Player

RATE = 24_000
FRAME = 1920

moments = st.lists(st.integers(0, 400), min_size=1, max_size=20).map(sorted)
frame_counts = st.lists(st.integers(1, 5), min_size=20, max_size=20)


def frames(count):
    """Sound of so many frames, every sample another."""
    return np.arange(count * FRAME, dtype=np.float32)


def played(arrivals, counts):
    """A player that has heard one reply, and how long it was silent in it."""
    player = Player(RATE, keeps_sound=True)
    silent = [player.hear(0, frames(count), moment / 100) for moment, count in zip(arrivals, counts, strict=False)]
    return player, sum(silent)


@given(moments, frame_counts)
def test_all_gaps_together_are_the_under_run_of_the_benchmark(arrivals, counts):
    player, silent = played(arrivals, counts)
    packets = [Packet(moment / 100, count, 0) for moment, count in zip(arrivals, counts, strict=False)]
    assert silent == pytest.approx(under_run_seconds(packets, FRAME / RATE), abs=1e-4)
    total = sum(packet.frame_count for packet in packets)
    assert player.runs[-1].ends_at == pytest.approx(arrivals[0] / 100 + silent + total * FRAME / RATE, abs=1e-4)
    assert player.played_count(0, player.runs[-1].ends_at) == total * FRAME


@given(moments, frame_counts, st.floats(0, 10))
def test_what_was_stopped_stays_as_it_was_heard(arrivals, counts, now):
    before = [moment for moment in arrivals if moment / 100 <= now]
    player, _ = played(before, counts)
    heard = player.played_count(0, now)
    player.stop(now)
    for later in (now, now + 1, now + 100):
        assert player.played_count(0, later) == heard
    assert sum(len(piece) for run in player.runs for piece in run.pieces) == heard
    assert all(run.ends_at <= now + 1 / RATE for run in player.runs)


@given(moments, frame_counts, st.floats(0, 10), st.floats(0, 10))
def test_no_sample_is_unplayed(arrivals, counts, one, other):
    player, _ = played(arrivals, counts)
    earlier, later = sorted((one, other))
    assert player.played_count(0, earlier) <= player.played_count(0, later)


def test_a_reply_waits_for_the_one_before_it_and_that_is_no_gap():
    player = Player(RATE, keeps_sound=False)
    assert player.hear(0, frames(2), 1.0) == 0
    assert player.hear(1, frames(1), 1.1) == 0
    assert player.hear(2, frames(1), 5.0) == 0
    assert [run.started_at for run in player.runs] == pytest.approx([1.0, 1.16, 5.0])
    assert [player.played_count(index, 1.2) for index in (0, 1, 2)] == [2 * FRAME, 960, 0]
    player.stop(1.1)
    assert [(run.turn_index, run.sample_count) for run in player.runs] == [(0, 2400)]
    assert not player.runs[0].pieces


async def test_a_fast_clock_is_so_many_times_as_fast(time):
    fast = FastClock(time, 10)
    await fast.sleep_until(5.0)
    assert (time.now(), fast.now()) == (0.5, 5.0)
