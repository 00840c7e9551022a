"""Loads: when turns arrive, and what callers do with a real server and a clock that stands still."""

import itertools
from contextlib import asynccontextmanager

import numpy as np
import pytest
from google.rpc import code_pb2
from hypothesis import given
from hypothesis import strategies as st

from client.bench.caller import Caller, Line
from client.bench.load import WARM_UP_SEED, ClosedLoop, LoadDriver, LoadRecord, OpenLoop, live_starts, poisson_arrivals
from client.bench.settings import read_loads
from client.bench.shape import ReplyShape
from client.bench.sound import question, user_sound, voice_example
from client.channel import open_channel
from client.errors import InputError, MeshError
from client.pcm import USER_RATE_HZ, VOICE_RATE_HZ, Encoding

SAID = question(USER_RATE_HZ)
SHAPE = ReplyShape(frame_count=3, step_count=2, user_seconds=0.05)


@asynccontextmanager
async def line_to(address, clock, heard=lambda frame_count: None):
    """A line to a mesh."""
    async with open_channel(address) as channel:
        yield Line(address, channel, voice="ash", question=SAID, shape=SHAPE, clock=clock, heard=heard)


@given(st.floats(0.01, 50), st.floats(0, 100))
def test_arrivals_are_the_same_every_time_in_order_and_within_the_duration(rate, duration):
    arrivals = poisson_arrivals(rate, duration)
    assert arrivals == poisson_arrivals(rate, duration)
    assert all(a < b for a, b in itertools.pairwise(arrivals))
    assert all(0 < arrival <= duration for arrival in arrivals)


@given(st.floats(0.1, 20), st.floats(0, 50), st.floats(0, 50))
def test_a_longer_run_begins_as_a_shorter_one_does(rate, duration, more):
    arrivals, longer = poisson_arrivals(rate, duration), poisson_arrivals(rate, duration + more)
    assert longer[: len(arrivals)] == arrivals
    assert all(arrival > duration for arrival in longer[len(arrivals) :])


def test_arrivals_are_poissons():
    gaps = np.diff([0.0, *poisson_arrivals(4.0, 5000.0)])
    assert len(gaps) == pytest.approx(20_000, rel=0.02)
    assert gaps.mean() == pytest.approx(0.25, rel=0.02)
    assert gaps.std() == pytest.approx(0.25, rel=0.02)  # of an exponential distribution it is the mean
    assert (gaps > 0.25).mean() == pytest.approx(np.exp(-1), rel=0.03)


@given(st.integers(1, 200), st.floats(0, 100))
def test_live_callers_begin_within_a_turn_of_each_other(count, turn_seconds):
    starts = live_starts(count, turn_seconds)
    assert len(starts) == count
    assert min(starts) == 0
    assert max(starts) <= turn_seconds
    assert starts == live_starts(count, turn_seconds)


def test_no_two_turns_of_a_run_say_the_same():
    said = {user_sound(SAID, 0.1, seed).tobytes() for seed in (*range(3000), *range(WARM_UP_SEED, WARM_UP_SEED + 200))}
    assert len(said) == 3200


@pytest.mark.parametrize("seconds", [0.1, 2.8, 3.0, 12.5])
def test_sounds_are_as_long_as_asked_for(seconds):
    assert len(user_sound(SAID, seconds, 5)) == round(seconds * USER_RATE_HZ)
    example = voice_example(seconds)
    assert len(example.samples) == round(seconds * VOICE_RATE_HZ)
    assert example.transcript.startswith("How do I")
    assert np.array_equal(user_sound(SAID, 0.1, 0), SAID[:1600])


def test_a_shape_keeps_the_published_proportion():
    assert ReplyShape.of(485, None, 3).step_count == 144
    assert ReplyShape.of(64, None, 3).step_count == 19
    assert ReplyShape.of(1, None, 3).step_count == 1
    assert ReplyShape.of(64, 40, 3).step_count == 40
    assert ReplyShape.of(64, 40, 3).spoken_step_count == 32


def test_loads_are_read():
    options = {"reply_count": 2, "is_live": False, "duration_seconds": 10.0}
    assert [load.label for load in read_loads(None, None, **options)] == [
        "1 session",
        "2 sessions",
        "4 sessions",
        "8 sessions",
    ]
    loads = read_loads("3, 1", "0.5,1", **options)
    assert [load.label for load in loads] == ["3 sessions", "1 session", "0.5 turns/s", "1 turn/s"]
    assert [load.turn_count for load in loads[:2]] == [6, 2]
    assert [load.label for load in read_loads(None, "2", **options)] == ["2 turns/s"]
    (live,) = read_loads("4", None, reply_count=1, is_live=True, duration_seconds=1)
    assert live == ClosedLoop(4, 1, is_live=True)


@pytest.mark.parametrize(
    ("sessions", "rates", "said"),
    [
        ("a,b", None, "--sessions: expected numbers of 1 or more with commas between them, as 1,2,4; got 'a,b'"),
        ("0", None, "--sessions"),
        ("", None, "--sessions"),
        ("1,,2", None, "--sessions"),
        ("-1", None, "--sessions"),
        ("1.5", None, "--sessions"),
        (None, "x", "--rate: expected turns a second"),
        (None, "0", "--rate"),
        (None, "-1", "--rate"),
        (None, "nan", "--rate"),
        (None, "inf", "--rate"),
        (None, "", "--rate"),
        (None, "0.0001", "--duration: no turn arrives within 10 s at 0.0001 a second"),
    ],
)
def test_lists_that_are_none_are_refused(sessions, rates, said):
    with pytest.raises(InputError) as caught:
        read_loads(sessions, rates, reply_count=1, is_live=False, duration_seconds=10)
    assert str(caught.value).startswith(said)


def test_live_is_for_callers():
    with pytest.raises(InputError, match="--live"):
        read_loads(None, "1", reply_count=1, is_live=True, duration_seconds=10)


async def test_a_turn_says_everything_at_once_and_notes_the_reply(orchestrator, clock):
    heard = []
    async with line_to(orchestrator.address, clock, heard.append) as line:
        reply = await Caller(line, 4, started_at=990.0).take_turn(9)
    assert orchestrator.heard == Encoding.S16.encode(user_sound(SAID, 0.05, 9))
    (opened,) = orchestrator.received("open")
    assert (opened.voice_name, opened.sampling.seed) == ("ash", 9)
    assert (opened.max_frame_count, opened.max_step_count) == (3, 2)
    assert (reply.caller_index, reply.seed, reply.turn_ended_seconds, reply.lateness_seconds) == (4, 9, 10.0, None)
    assert [(packet.frame_count, packet.byte_count) for packet in reply.packets] == [(1, 3840), (2, 7680)]
    assert heard == [1, 2]
    assert (reply.frame_seconds, reply.audio_seconds) == (0.08, 0.24)
    assert reply.timings.first_step_seconds == 0.01
    assert not clock.slept_until


async def test_a_planned_turn_counts_from_its_plan(orchestrator, clock):
    async with line_to(orchestrator.address, clock) as line:
        caller = Caller(line, 0, started_at=1000.0)
        punctual = await caller.take_planned_turn(0, 1002.0)
        late = await caller.take_planned_turn(1, 1001.5)
    assert (punctual.turn_ended_seconds, punctual.lateness_seconds, punctual.first_audio_seconds) == (2.0, 0.0, 0.0)
    assert (late.turn_ended_seconds, late.lateness_seconds, late.first_audio_seconds) == (1.5, 0.5, 0.5)


async def test_a_live_turn_speaks_and_listens_in_real_time(orchestrator, clock):
    async with line_to(orchestrator.address, clock) as line:
        reply = await Caller(line, 0, started_at=1000.0).take_live_turn(3)
    packets = [audio.data for audio in orchestrator.received("audio")]
    assert [len(packet) for packet in packets] == [640, 640, 320]  # 20 ms each, and the 10 ms that remain
    assert b"".join(packets) == Encoding.S16.encode(user_sound(SAID, 0.05, 3))
    assert clock.slept_until[:3] == pytest.approx([1000.02, 1000.04, 1000.05])
    assert reply.turn_ended_seconds == pytest.approx(0.05)
    assert reply.lateness_seconds == 0
    assert clock.now() == pytest.approx(1000.05 + reply.played_seconds)
    assert reply.played_seconds == pytest.approx(reply.packets[0].seconds + 0.24)


async def test_a_reply_of_another_length_than_announced_is_an_error(orchestrator, clock, monkeypatch):
    write = orchestrator.write_audio

    async def write_first_only(context, turn_index, frames, encoding):
        if frames[0] == 0:
            await write(context, turn_index, frames, encoding)

    monkeypatch.setattr(orchestrator, "write_audio", write_first_only)
    async with line_to(orchestrator.address, clock) as line:
        with pytest.raises(MeshError, match="a reply of 3 frames came with the sound of 1") as caught:
            await Caller(line, 0, started_at=1000.0).take_turn(0)
    assert caught.value.reason == "FRAME_COUNT"


@pytest.mark.parametrize("is_live", [False, True])
async def test_a_closed_loop_takes_all_its_turns(orchestrator, clock, is_live):
    record = LoadRecord(ClosedLoop(3, 2, is_live))
    async with line_to(orchestrator.address, clock) as line:
        driver = LoadDriver(line, record, first_seed=10)
        await driver.warm_up()
        assert (len(record.warm_ups), len(record.replies), record.is_complete) == (3, 0, False)
        await driver.run()
    assert record.is_complete
    assert sorted(reply.seed for reply in record.replies) == list(range(10, 16))
    assert sorted(reply.caller_index for reply in record.replies) == [0, 0, 1, 1, 2, 2]
    assert sorted(reply.seed for reply in record.warm_ups) == [WARM_UP_SEED + index for index in range(3)]
    seeds = {opened.sampling.seed for opened in orchestrator.received("open")}
    assert len(seeds) == 9


async def test_an_open_loop_takes_every_arrival_at_its_time(orchestrator, clock):
    load = OpenLoop(2.0, 3.0)
    record = LoadRecord(load)
    async with line_to(orchestrator.address, clock) as line:
        driver = LoadDriver(line, record, first_seed=0)
        await driver.warm_up()
        await driver.run()
    assert len(record.replies) == load.turn_count > 2
    planned = sorted(reply.turn_ended_seconds for reply in record.replies)
    assert planned == pytest.approx(load.arrivals)
    assert all(reply.lateness_seconds is not None for reply in record.replies)
    assert record.wall_seconds == pytest.approx(load.arrivals[-1])


async def test_what_the_mesh_refuses_is_kept_by_reason(orchestrator, refusal, clock):
    orchestrator.refuse["end_turn"] = refusal(code_pb2.UNAVAILABLE, "QUEUE_FULL", "no room")
    record = LoadRecord(ClosedLoop(1, 2, is_live=False))
    async with line_to(orchestrator.address, clock) as line:
        driver = LoadDriver(line, record, first_seed=0)
        await driver.warm_up()
        await driver.run()
    assert not record.replies
    assert [failure.kind for failure in record.failures] == [
        "UNAVAILABLE QUEUE_FULL (warm-up)",
        "UNAVAILABLE QUEUE_FULL",
        "UNAVAILABLE QUEUE_FULL",
    ]
    assert all(failure.is_refusal for failure in record.failures)
