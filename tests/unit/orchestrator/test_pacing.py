"""Frames are made in time and not long before; packets grow, and no frame that is needed waits for another."""

import asyncio
import math

from hypothesis import given
from hypothesis import strategies as st

from services.orchestrator.heard import Playback
from services.orchestrator.pacing import (
    IN_HAND_SECONDS,
    LONGEST_PACKET_SECONDS,
    PACKET_SECONDS,
    PACKET_SHARE,
    Pace,
    Packets,
)
from tests.unit.orchestrator.fake_clock import FakeClock

RATE_HZ, FRAME = 24_000, 1_920
FRAME_SECONDS = FRAME / RATE_HZ
ROUNDING = 0.0011


@given(
    ahead=st.floats(0.1, 5),
    costs=st.lists(st.floats(0.0, 0.079), min_size=1, max_size=120),
)
def test_a_reply_is_ahead_by_no_more_than_it_may_and_never_late_by_our_doing(ahead: float, costs: list[float]) -> None:
    clock = FakeClock()
    playback = Playback(clock, RATE_HZ)
    pace = Pace(clock, playback, frame_seconds=FRAME_SECONDS, ahead_seconds=ahead)

    async def speak() -> None:
        for index, cost in enumerate(costs):
            await pace.until_due(index)
            clock.time += cost
            if index > 1:  # frames that take less than they last: the player never runs dry
                assert playback.ahead_seconds > 0
            playback.send(FRAME)
            assert playback.ahead_seconds <= max(ahead, 2 * FRAME_SECONDS) + ROUNDING

    asyncio.run(speak())


async def test_a_listener_who_ran_dry_is_sent_all_at_once_and_infinity_never_waits() -> None:
    clock = FakeClock()
    for ahead in (4.0, math.inf):
        playback = Playback(clock, RATE_HZ)
        pace = Pace(clock, playback, frame_seconds=FRAME_SECONDS, ahead_seconds=ahead)
        playback.send(FRAME)
        clock.time += 100
        assert playback.ahead_seconds == 0
        for index in range(1, 50 if ahead == 4.0 else 1000):
            await pace.until_due(index)
            playback.send(FRAME)
        assert not clock.waits


def test_a_pause_of_the_player_that_is_reported_holds_the_reply_back() -> None:
    clock = FakeClock()
    playback = Playback(clock, RATE_HZ)
    pace = Pace(clock, playback, frame_seconds=FRAME_SECONDS, ahead_seconds=0.8)
    for _ in range(10):
        playback.send(FRAME)
    clock.time += 0.4
    assert pace.seconds_until(14) <= ROUNDING
    playback.report(0)
    assert abs(pace.seconds_until(14) - 0.4) < ROUNDING


class AsItIs:
    def speak(self, data: bytes) -> bytes:
        return data

    def end(self) -> bytes:
        return b""


class HeldBack:
    """Holds the last bytes back, as a resampler does."""

    def __init__(self) -> None:
        self.held = b""

    def speak(self, data: bytes) -> bytes:
        data = self.held + data
        self.held = data[-3:]
        return data[:-3]

    def end(self) -> bytes:
        held, self.held = self.held, b""
        return held


@given(
    arrivals=st.lists(st.tuples(st.floats(0, 0.3), st.integers(1, 9)), min_size=1, max_size=40),
    is_held_back=st.booleans(),
)
def test_packets_join_what_can_wait(arrivals: list[tuple[float, int]], is_held_back: bool) -> None:
    clock = FakeClock()
    playback = Playback(clock, RATE_HZ)
    sent: list[tuple[int, int, bytes]] = []
    arrived: list[float] = []

    async def send(first: int, count: int, data: bytes) -> None:
        now, in_hand = clock.now(), playback.ahead_seconds
        for frame in range(first, first + count):
            # It leaves when it comes, or while there is still as much to play as there must be.
            assert now - arrived[frame] < ROUNDING or in_hand >= IN_HAND_SECONDS - ROUNDING
        assert count * FRAME_SECONDS <= max(PACKET_SECONDS, PACKET_SHARE * in_hand)
        sent.append((first, count, data))
        playback.send(count * FRAME)

    sound = HeldBack() if is_held_back else AsItIs()
    packets = Packets(clock, playback, sound, send, frame_seconds=FRAME_SECONDS, frame_bytes=4)
    whole = b""

    async def scenario() -> None:
        nonlocal whole
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(packets.run())
            for seconds, count in arrivals:
                await clock.wait(asyncio.Event(), seconds)
                data = b"".join((len(arrived) + index).to_bytes(4, "big") for index in range(count))
                arrived.extend([clock.now()] * count)
                whole += data
                await packets.add(data)
            packets.end()

    asyncio.run(scenario())
    assert b"".join(data for _, _, data in sent) == whole
    assert [first for first, _, _ in sent] == [sum(count for _, count, _ in sent[:i]) for i in range(len(sent))]
    assert sent[0][1] == 1
    assert sum(count for _, count, _ in sent) == len(arrived)


async def packet_sizes(frame_count: int, times_as_fast: int) -> list[int]:
    """Frames of each packet of a reply whose frames come so many times as fast as they are played."""
    clock = FakeClock()
    playback = Playback(clock, RATE_HZ)
    counts: list[int] = []

    async def send(_first: int, count: int, _data: bytes) -> None:
        counts.append(count)
        playback.send(count * FRAME)

    packets = Packets(clock, playback, AsItIs(), send, frame_seconds=FRAME_SECONDS, frame_bytes=1)
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(packets.run())
        for _ in range(frame_count):
            await clock.wait(asyncio.Event(), FRAME_SECONDS / times_as_fast)
            await packets.add(b"x")
        packets.end()
    return counts


async def test_in_a_long_reply_packets_are_few() -> None:
    counts = await packet_sizes(100, 4)
    assert (counts[0], sum(counts)) == (1, 100)
    assert len(counts) < 40


async def test_who_is_far_behind_is_sent_a_share_of_what_he_has_at_once() -> None:
    counts = await packet_sizes(500, 100)
    assert (counts[0], sum(counts)) == (1, 500)
    assert counts[1:-1] == sorted(counts[1:-1])
    assert max(counts) == int(LONGEST_PACKET_SECONDS / FRAME_SECONDS)
    assert len(counts) < 50
