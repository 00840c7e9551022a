"""Slots and streams: who gets a slot and when, what reaches whom, and that a failure or a leaver harms nobody else."""

import asyncio
import gc
import random
import threading
import weakref
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from services.inference.slots import Full, SlotEngine, Stream
from tests.conftest import gated, until_idle


class EchoStream(Stream[int, int]):
    """Gives back what it is sent."""

    def __init__(self, inbox_limit: int = 64, outbox_limit: int = 64) -> None:
        super().__init__(inbox_limit, outbox_limit)
        self.most_unread = 0
        self.most_inbox = 0


class EchoEngine(SlotEngine[EchoStream]):
    """A fake engine that checks its own laws on the device thread: `broken` lists those that were not kept."""

    def __init__(self, slot_count: int = 2, queue_limit: int = 4, *, keeps_longest: bool = False) -> None:
        super().__init__(
            slot_count, queue_limit, "echo-device", device=torch.device("cpu"), keeps_longest=keeps_longest
        )
        self.joined: list[EchoStream] = []
        self.left: list[EchoStream] = []
        self.broken: list[str] = []
        self.fail_next: Exception | None = None
        self.fail_join: Exception | None = None
        self.fail_leave: Exception | None = None

    def join(self, stream: EchoStream) -> None:
        self.joined.append(stream)
        if stream.slot in self.streams:
            self.broken.append(f"slot {stream.slot} was given twice")
        if not 0 <= stream.slot < self.slot_count:
            self.broken.append(f"slot {stream.slot} does not exist")
        if self.fail_join:
            error, self.fail_join = self.fail_join, None
            raise error

    def leave(self, stream: EchoStream) -> None:
        self.left.append(stream)
        if self.fail_leave:
            error, self.fail_leave = self.fail_leave, None
            raise error

    def advance(self) -> bool:
        if len(self.streams) > self.slot_count:
            self.broken.append(f"{len(self.streams)} streams in {self.slot_count} slots")
        if self.fail_next:
            error, self.fail_next = self.fail_next, None
            raise error
        active = False
        for stream in self.streams.values():
            stream.most_inbox = max(stream.most_inbox, len(stream.inbox))
            ended = stream.ended
            if stream.done or not stream.writable:
                continue
            if stream.inbox:
                stream.emit(stream.take())
                stream.most_unread = max(stream.most_unread, stream.unread_count)
                active = True
            elif ended:
                stream.finish()
        return active


@asynccontextmanager
async def running(engine: SlotEngine[EchoStream]) -> AsyncIterator[None]:
    engine.start()
    try:
        yield
    finally:
        await asyncio.to_thread(engine.close)


@asynccontextmanager
async def device_blocked(engine: EchoEngine) -> AsyncIterator[None]:
    """Keeps the device thread in a call for the block."""
    arrived, opened = threading.Event(), threading.Event()

    def wait() -> None:
        arrived.set()
        opened.wait()

    call = asyncio.create_task(engine.call(wait))
    await asyncio.to_thread(arrived.wait)
    try:
        yield
    finally:
        opened.set()
        await call


async def echo(engine: EchoEngine, items: list[int]) -> list[int]:
    """One whole stream."""
    async with engine.open(EchoStream()) as stream:
        for item in items:
            await stream.send(item)
        stream.end()
        return [item async for item in stream]


def begin_open(engine: EchoEngine, stream: EchoStream | None = None) -> Callable[[], None]:
    """Runs `open` up to where it first waits; raises what it raises before that."""
    entering = engine.open(stream or EchoStream()).__aenter__()
    entering.send(None)
    return entering.close


class Holder:
    """A stream in a task of its own: opens, notes that it has its slot, holds it until told to leave."""

    def __init__(
        self, engine: EchoEngine, name: int = 0, order: list[int] | None = None, due_seconds: float = 0.0
    ) -> None:
        self._engine, self._name, self._order = engine, name, order if order is not None else []
        self.stream = EchoStream()
        self.stream.due_seconds = due_seconds
        self.entered, self._leave = asyncio.Event(), asyncio.Event()
        self.task = asyncio.create_task(self._run())

    async def _run(self) -> None:
        async with self._engine.open(self.stream):
            self._order.append(self._name)
            self.entered.set()
            await self._leave.wait()

    async def leave(self) -> None:
        self._leave.set()
        await self.task

    async def cancel(self) -> None:
        self.task.cancel()
        with suppress(asyncio.CancelledError):
            await self.task


@dataclass(frozen=True)
class Plan:
    """What one stream of the law does: when it comes, how much it says, and whether it leaves early."""

    wait: int
    item_count: int
    leave_after: int | None
    cancel_after: int | None
    slow_reader: bool


PLANS = st.builds(
    Plan,
    wait=st.integers(0, 6),
    item_count=st.integers(0, 12),
    leave_after=st.none() | st.integers(0, 4),
    cancel_after=st.none() | st.integers(0, 30),
    slow_reader=st.booleans(),
)


@settings(max_examples=60)
@given(
    plans=st.lists(PLANS, min_size=1, max_size=10),
    slot_count=st.integers(1, 3),
    queue_limit=st.integers(0, 4),
    limit=st.integers(1, 4),
)
def test_whatever_joins_and_leaves_each_stream_gets_its_own(
    plans: list[Plan], slot_count: int, queue_limit: int, limit: int
) -> None:
    engine = EchoEngine(slot_count, queue_limit)
    opened: list[EchoStream] = []

    async def follow(number: int, plan: Plan) -> None:
        for _ in range(plan.wait):
            await asyncio.sleep(0)
        said = [100 * number + index for index in range(plan.item_count)]
        stream = EchoStream(limit, limit)
        try:
            async with engine.open(stream), asyncio.TaskGroup() as tasks:
                opened.append(stream)
                feeding = tasks.create_task(feed(stream, said))
                heard: list[int] = []
                if plan.leave_after != 0:
                    async for item in stream:
                        heard.append(item)
                        if plan.slow_reader:
                            await asyncio.sleep(0)
                        if len(heard) == plan.leave_after:
                            break
                feeding.cancel()
        except Full:
            assert engine.slots_in_use == slot_count
            return
        assert heard == said[: plan.leave_after if plan.leave_after is not None else None]
        assert stream.most_unread <= limit
        assert stream.most_inbox <= limit

    async def feed(stream: EchoStream, said: list[int]) -> None:
        for item in said:
            await stream.send(item)
        stream.end()

    async def cancel_later(task: "asyncio.Task[None]", plan: Plan) -> None:
        if plan.cancel_after is not None:
            for _ in range(plan.cancel_after):
                await asyncio.sleep(0)
            task.cancel()

    async def scenario() -> None:
        async with running(engine):
            following = [asyncio.create_task(follow(*numbered)) for numbered in enumerate(plans)]
            cancelling = [asyncio.create_task(cancel_later(t, p)) for t, p in zip(following, plans, strict=True)]
            for outcome in await asyncio.gather(*following, return_exceptions=True):
                if outcome is not None and not isinstance(outcome, asyncio.CancelledError):
                    raise outcome
            await asyncio.gather(*cancelling)
            await until_idle(engine)
            assert await echo(engine, [1, 2, 3]) == [1, 2, 3]
            await until_idle(engine)

    asyncio.run(scenario())
    assert engine.broken == []
    assert engine.streams == {}
    # Whoever got a slot joined once and left once; the last is the echo after the storm.
    assert set(map(id, engine.joined)) == set(map(id, engine.left)) > set(map(id, opened))
    assert len(engine.joined) == len(engine.left) == len(opened) + 1


async def test_slots_are_given_in_the_order_they_were_asked_for() -> None:
    engine, order = EchoEngine(slot_count=2, queue_limit=20), []
    async with running(engine):
        holders = [Holder(engine, number, order) for number in range(12)]
        for holder in holders:
            await holder.entered.wait()
            await holder.leave()
    assert order == list(range(12))


@pytest.mark.parametrize("dues", [[0.0], [0.0, 1000.0, 2000.0]], ids=["alike", "apart"])
@pytest.mark.parametrize("seed", range(5))
async def test_slots_are_given_to_who_is_due_first_and_of_those_to_who_asked_first(
    seed: int, dues: list[float]
) -> None:
    """Also where some of those that wait give up."""
    engine, order, chance = EchoEngine(slot_count=1, queue_limit=20), [], random.Random(seed)
    async with running(engine):
        due_seconds = [chance.choice(dues) for _ in range(12)]
        holders = [Holder(engine, number, order, due) for number, due in enumerate(due_seconds)]
        await holders[0].entered.wait()
        gone = set(chance.sample(range(1, 12), 5))
        for number in gone:
            await holders[number].cancel()
        expected = [0, *sorted(set(range(1, 12)) - gone, key=lambda number: (due_seconds[number], number))]
        for number in expected:
            await holders[number].entered.wait()
            await holders[number].leave()
        await until_idle(engine)
    assert order == expected


async def test_one_that_comes_later_but_is_due_sooner_passes_those_that_wait() -> None:
    engine, order = EchoEngine(slot_count=1, queue_limit=20), []
    async with running(engine):
        first, patient = Holder(engine, 0, order), Holder(engine, 1, order, 1000.0)
        await first.entered.wait()
        await asyncio.sleep(0)
        urgent = Holder(engine, 2, order, 10.0)
        await asyncio.sleep(0)
        await first.leave()
        await urgent.entered.wait()
        assert not patient.entered.is_set()
        assert first.stream.due_at < urgent.stream.due_at < patient.stream.due_at
        for holder in (urgent, patient):
            await holder.leave()
    assert order == [0, 2, 1]


async def test_however_urgent_a_stream_is_a_full_queue_is_full() -> None:
    engine = EchoEngine(slot_count=1, queue_limit=1)
    async with running(engine):
        holder, waiting = Holder(engine), Holder(engine, due_seconds=1000.0)
        await holder.entered.wait()
        await asyncio.sleep(0)
        with pytest.raises(Full):
            begin_open(engine)
        await holder.leave()
        await waiting.entered.wait()
        await waiting.leave()


@pytest.mark.parametrize("keeps_longest", [True, False])
@given(visits=st.lists(st.integers(0, 3), max_size=30))
def test_the_free_slot_that_is_given_is_the_lowest_or_the_one_left_first(
    visits: list[int], keeps_longest: bool
) -> None:
    """Against a model: each number says whose turn it is to come, or to leave if it is there."""
    engine = EchoEngine(slot_count=4, queue_limit=0, keeps_longest=keeps_longest)
    free, held = [0, 1, 2, 3], dict[int, Holder]()

    async def scenario() -> None:
        async with running(engine):
            for number in visits:
                if number in held:
                    holder = held.pop(number)
                    await holder.leave()
                    await engine.call(lambda: None)  # its slot is free
                    free.append(holder.stream.slot)
                else:
                    held[number] = Holder(engine)
                    await held[number].entered.wait()
                    expected = free[0] if keeps_longest else min(free)
                    assert held[number].stream.slot == expected
                    free.remove(expected)
            for holder in held.values():
                await holder.leave()

    asyncio.run(scenario())


@pytest.mark.parametrize("queue_limit", [0, 1, 3])
async def test_full_is_said_at_once_and_only_when_the_queue_is_full(queue_limit: int) -> None:
    engine = EchoEngine(slot_count=2, queue_limit=queue_limit)
    async with running(engine):
        holders = [Holder(engine) for _ in range(2)]
        for holder in holders:
            await holder.entered.wait()
        waiting = [begin_open(engine) for _ in range(queue_limit)]
        with pytest.raises(Full, match=f"all 2 slots are taken and {queue_limit} streams wait"):
            begin_open(engine)
        assert engine.slots_in_use == 2
        for stop_waiting in waiting:
            stop_waiting()
        for holder in holders:
            await holder.leave()
        await until_idle(engine)
        assert await echo(engine, [1]) == [1]


async def test_a_place_in_the_queue_is_free_when_its_stream_has_given_up() -> None:
    engine = EchoEngine(slot_count=1, queue_limit=1)
    async with running(engine):
        holder = Holder(engine)
        await holder.entered.wait()
        for _ in range(3):
            waiter = Holder(engine)
            await asyncio.sleep(0)
            await waiter.cancel()
        last = Holder(engine)
        await holder.leave()
        await last.entered.wait()
        await last.leave()


class CancellingEngine(EchoEngine):
    """Cancels a task in the very moment in which a slot is released."""

    victim: Holder | None = None

    def _release(self, slot: int) -> None:
        super()._release(slot)
        if self.victim is not None:
            self.victim.task.cancel()
            self.victim = None


async def test_a_slot_that_is_given_to_a_stream_just_cancelled_goes_to_the_next() -> None:
    engine, order = CancellingEngine(slot_count=1, queue_limit=4), []
    async with running(engine):
        first, second, third = (Holder(engine, number, order) for number in range(3))
        await first.entered.wait()
        engine.victim = second
        await first.leave()
        await third.entered.wait()
        assert second.task.cancelled()
        await third.leave()
        await until_idle(engine)
    assert order == [0, 2]


async def test_an_error_in_a_round_fails_its_streams_and_the_engine_goes_on() -> None:
    engine = EchoEngine(slot_count=2)
    async with running(engine), AsyncExitStack() as stack:
        streams = [await stack.enter_async_context(engine.open(EchoStream())) for _ in range(2)]
        await engine.call(lambda: None)  # both have joined
        engine.fail_next = RuntimeError("broken round")
        engine.wake()
        for stream in streams:
            with pytest.raises(RuntimeError, match="broken round"):
                await anext(stream)
            assert stream.done
        await stack.aclose()
        await until_idle(engine)
        assert await asyncio.gather(echo(engine, [1, 2]), echo(engine, [3])) == [[1, 2], [3]]


async def test_what_came_before_an_error_is_still_read() -> None:
    engine = EchoEngine()
    async with running(engine), engine.open(EchoStream()) as stream:
        await stream.send(1)
        assert await anext(stream) == 1
        async with device_blocked(engine):
            await stream.send(2)
        await engine.call(lambda: None)  # a round follows a call: 2 is emitted
        engine.fail_next = RuntimeError("broken round")
        engine.wake()
        assert await anext(stream) == 2
        with pytest.raises(RuntimeError, match="broken round"):
            await anext(stream)


async def test_an_error_at_joining_fails_that_stream_alone() -> None:
    engine = EchoEngine()
    async with running(engine), engine.open(EchoStream()) as healthy:
        await engine.call(lambda: None)
        engine.fail_join = RuntimeError("no room")
        with pytest.raises(RuntimeError, match="no room"):
            await echo(engine, [1])
        await healthy.send(7)
        assert await anext(healthy) == 7


async def test_a_stream_that_is_cut_is_part_of_no_round_after_the_one_under_way() -> None:
    engine, told = EchoEngine(), list[float]()
    engine.on_cut = told.append
    items = list(range(9))
    async with running(engine), engine.open(EchoStream()) as other, AsyncExitStack() as cutting:
        cut = await cutting.enter_async_context(engine.open(EchoStream()))
        await engine.call(lambda: None)  # both have joined
        with gated(engine, "advance") as gate:
            for item in items:
                await cut.send(item)
                await other.send(item)
            await gate.reached()
            await cutting.aclose()
            assert not told
        assert [await anext(other) for _ in items] == items
        await engine.call(lambda: None)
        assert (len(cut.inbox), cut.unread_count) == (8, 1), "one round was under way"
        assert len(told) == 1
        assert told[0] > 0
        assert await echo(engine, [1]) == [1]
        await engine.call(lambda: None)
        assert len(told) == 1, "a stream that was finished was not cut"


async def test_an_error_at_leaving_frees_the_slot_all_the_same() -> None:
    engine = EchoEngine(slot_count=1)
    async with running(engine):
        engine.fail_leave = RuntimeError("could not leave")
        await echo(engine, [1])
        await until_idle(engine)
        assert await echo(engine, [2]) == [2]


async def test_a_reader_that_stops_is_left_out_until_it_reads_again() -> None:
    engine = EchoEngine()
    said = list(range(40))
    async with running(engine), engine.open(EchoStream(inbox_limit=64, outbox_limit=5)) as lagging:
        for item in said:
            await lagging.send(item)
        lagging.end()
        # Others go on meanwhile, and give the engine every chance to write more than the reader takes.
        for _ in range(3):
            assert await echo(engine, said) == said
        assert (lagging.unread_count, lagging.writable, lagging.done) == (5, False, False)
        assert [item async for item in lagging] == said
        assert lagging.most_unread == 5


async def test_send_waits_while_the_inbox_is_full() -> None:
    engine = EchoEngine()
    async with running(engine), engine.open(EchoStream(inbox_limit=3)) as stream:
        async with device_blocked(engine):
            for item in range(3):
                await stream.send(item)
            fourth = asyncio.create_task(stream.send(3))
            for _ in range(10):
                await asyncio.sleep(0)
            assert not fourth.done()
            assert list(stream.inbox) == [0, 1, 2]
        await fourth
        stream.end()
        assert [item async for item in stream] == [0, 1, 2, 3]


async def test_more_than_there_is_room_for_is_sent_as_it_is_read() -> None:
    engine = EchoEngine()
    async with running(engine), engine.open(EchoStream(inbox_limit=3)) as stream:
        async with device_blocked(engine):
            sending = asyncio.create_task(stream.send(*range(10)))
            for _ in range(10):
                await asyncio.sleep(0)
            assert not sending.done()
            assert list(stream.inbox) == [0, 1, 2]
        await sending
        stream.end()
        assert [item async for item in stream] == list(range(10))


class CountingStream(EchoStream):
    """Counts how often asyncio's side was woken."""

    notified_count = 0

    def notify(self) -> None:
        self.notified_count += 1
        super().notify()


async def test_a_reader_that_waits_for_several_outputs_is_woken_once() -> None:
    engine = EchoEngine()
    async with running(engine), engine.open(stream := CountingStream()):
        waiting = asyncio.create_task(stream.arrived(5))
        for item in range(5):
            assert (stream.notified_count, waiting.done()) == (0, False)
            await stream.send(item)
            await engine.call(lambda: None)  # a round has followed the one before this
        await waiting
        assert (stream.notified_count, stream.read(9)) == (1, [0, 1, 2, 3, 4])


async def test_nobody_is_woken_for_outputs_that_nobody_waits_for() -> None:
    engine = EchoEngine()
    async with running(engine), engine.open(stream := CountingStream()):
        await stream.send(1, 2)
        while stream.unread_count < 2:
            await engine.call(lambda: None)
        assert stream.notified_count == 0
        assert [await anext(stream), await anext(stream)] == [1, 2]


@pytest.mark.parametrize("failed", [False, True])
async def test_a_reader_that_waits_for_more_than_there_will_be_gets_what_there_is(failed: bool) -> None:
    engine = EchoEngine()
    async with running(engine), engine.open(EchoStream()) as stream:
        await stream.send(1, 2)
        while stream.unread_count < 2:
            await engine.call(lambda: None)
        waiting = asyncio.create_task(stream.arrived(3))
        if failed:
            engine.fail_next = RuntimeError("the device broke")
        stream.end()
        await waiting
        assert stream.read(3) == [1, 2]
        with pytest.raises(RuntimeError if failed else StopAsyncIteration):
            await anext(stream)


async def test_a_reader_that_has_waited_long_enough_loses_nothing() -> None:
    engine = EchoEngine()
    async with running(engine), engine.open(EchoStream()) as stream:
        await stream.send(1)
        while not stream.unread_count:
            await engine.call(lambda: None)
        waiting = asyncio.create_task(stream.arrived(3))
        await asyncio.sleep(0)
        waiting.cancel()
        assert stream.read(3) == [1]
        await stream.send(2)
        stream.end()
        assert [item async for item in stream] == [2]


@settings(deadline=None)
@given(
    count=st.integers(0, 60),
    limit=st.integers(1, 8),
    portions=st.lists(st.tuples(st.integers(0, 12), st.integers(1, 12)), min_size=1, max_size=20),
)
def test_outputs_come_in_order_in_whatever_portions_they_are_read(
    count: int, limit: int, portions: list[tuple[int, int]]
) -> None:
    async def read() -> list[int]:
        engine, found = EchoEngine(), list[int]()
        async with running(engine), engine.open(EchoStream(outbox_limit=limit)) as stream:
            sending = asyncio.create_task(stream.send(*range(count)))
            sending.add_done_callback(lambda _: stream.end())
            for awaited, most in portions:
                await stream.arrived(awaited)
                assert stream.done or stream.unread_count >= min(awaited, limit)
                found += stream.read(most)
            found += [item async for item in stream]
        return found

    assert asyncio.run(read()) == list(range(count))


class SumEngine(EchoEngine):
    """Reads all that it is sent and says nothing before the end."""

    total = 0

    def advance(self) -> bool:
        active = False
        for stream in self.streams.values():
            ended = stream.ended
            if stream.inbox:
                self.total += stream.take()
                active = True
            elif ended and not stream.done:
                stream.emit(self.total)
                stream.finish()
        return active


async def test_a_sender_goes_on_when_an_input_is_read_whatever_is_said() -> None:
    engine = SumEngine()
    async with running(engine), engine.open(EchoStream(inbox_limit=2)) as stream:
        for item in range(100):
            await stream.send(item)
        stream.end()
        assert [item async for item in stream] == [sum(range(100))]


async def test_send_does_not_wait_for_a_stream_that_is_done() -> None:
    engine = EchoEngine()
    async with running(engine), engine.open(EchoStream(inbox_limit=2)) as stream:
        async with device_blocked(engine):
            await stream.send(0)
            await stream.send(1)
            third = asyncio.create_task(stream.send(2))
            await asyncio.sleep(0)
            engine.fail_next = RuntimeError("broken round")
        await third
        with pytest.raises(RuntimeError, match="broken round"):
            await anext(stream)


async def test_what_is_sent_to_a_stream_that_is_done_is_not_kept() -> None:
    """Its reader may be slow, and its sender must not fill the memory meanwhile."""
    engine = EchoEngine()
    async with running(engine), engine.open(EchoStream(inbox_limit=2)) as stream:
        stream.end()
        assert [item async for item in stream] == []
        for item in range(100):
            await stream.send(item)
        assert not stream.inbox


async def test_nothing_of_a_stream_is_kept_when_it_is_over() -> None:
    engine = EchoEngine(slot_count=2, queue_limit=4)
    engine.joined = engine.left = Forgetful()
    gone: list[weakref.ref[EchoStream]] = []

    async def run(items: list[int], leave_after: int | None) -> None:
        async with engine.open(EchoStream()) as stream:
            gone.append(weakref.ref(stream))
            for item in items:
                await stream.send(item)
            stream.end()
            heard = 0
            async for _ in stream:
                heard += 1
                if heard == leave_after:
                    break

    async with running(engine):
        await asyncio.gather(*(run([1, 2, 3], leave_after) for leave_after in (None, 1, 2, None, 3)))
        waiting = asyncio.create_task(run([], None))
        waiting.cancel()
        with suppress(asyncio.CancelledError):
            await waiting
        await until_idle(engine)
        await engine.call(lambda: None)
        gc.collect()
        assert len(gone) == 5
        assert [ref() for ref in gone] == [None] * 5


class Forgetful(list[EchoStream]):
    """Keeps nothing."""

    def append(self, stream: EchoStream) -> None:
        del stream


async def test_waiting_time_is_told() -> None:
    engine = EchoEngine(slot_count=1)
    async with running(engine):
        holder = Holder(engine)
        await holder.entered.wait()
        stream = EchoStream()
        assert stream.queue_seconds == 0

        async def wait() -> None:
            async with engine.open(stream):
                pass

        waiting = asyncio.create_task(wait())
        await asyncio.sleep(0)
        await holder.leave()
        await waiting
        assert stream.queue_seconds > 0
