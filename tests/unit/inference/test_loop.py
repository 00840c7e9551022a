"""The device thread: rounds and calls in turn, whatever is posted from where."""

import asyncio
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch

from services.inference.loop import Loop


@dataclass
class Rounds:
    """Work that notes its rounds; `left` of them ask for another."""

    left: int = 0
    events: list[Any] = field(default_factory=list)

    def __call__(self) -> bool:
        self.events.append("round")
        self.left -= 1
        return self.left >= 0


@contextmanager
def running(work: Callable[[], bool]) -> Iterator[Loop]:
    loop = Loop(work, "device-test", torch.device("cpu"))
    loop.start()
    try:
        yield loop
    finally:
        loop.close()


@contextmanager
def blocked(loop: Loop) -> Iterator[None]:
    """Keeps the thread in a call for the block."""
    arrived, opened = threading.Event(), threading.Event()

    def wait() -> None:
        arrived.set()
        opened.wait()

    loop.post(wait)
    arrived.wait()
    try:
        yield
    finally:
        opened.set()


def test_calls_run_in_order_with_a_round_between_any_two() -> None:
    rounds = Rounds()
    with running(rounds) as loop:
        with blocked(loop):
            rounds.events.clear()
            posted = [loop.post(lambda number=number: rounds.events.append(number)) for number in range(20)]
        posted[-1].result()
    calls = [event for event in rounds.events if event != "round"]
    assert calls == list(range(20))
    assert [event for event in rounds.events[1:] if event != "round"] == rounds.events[1::2]


def test_brief_calls_wait_for_no_round_but_keep_their_place() -> None:
    rounds = Rounds()
    with running(rounds) as loop:
        with blocked(loop):
            rounds.events.clear()
            for number in range(20):
                last = loop.post(lambda number=number: rounds.events.append(number), is_brief=number % 5 > 0)
        last.result()
    assert [event for event in rounds.events if event != "round"] == list(range(20))
    # Rounds come before each call that may take long, and only there.
    before = [rounds.events[rounds.events.index(number) - 1] for number in range(1, 20)]
    assert [number for number, event in enumerate(before, start=1) if event == "round"] == [5, 10, 15]


def test_calls_from_many_threads_keep_each_threads_order() -> None:
    rounds = Rounds()
    with running(rounds) as loop:

        def post_in_order(name: str) -> None:
            futures = [loop.post(lambda number=number: rounds.events.append((name, number))) for number in range(50)]
            futures[-1].result()

        threads = [threading.Thread(target=post_in_order, args=(name,)) for name in "abc"]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    for name in "abc":
        assert [event[1] for event in rounds.events if event[0] == name] == list(range(50))


async def test_a_call_runs_on_the_thread_and_gives_back_its_result() -> None:
    with running(Rounds()) as loop:
        name, number = await loop.call(lambda: (threading.current_thread().name, 7))
    assert (name, number) == ("device-test", 7)


@pytest.mark.parametrize("kind", [ValueError, SystemExit, KeyboardInterrupt])
async def test_an_exception_comes_back_and_the_thread_goes_on(kind: type[BaseException]) -> None:
    def fail() -> None:
        raise kind("of the caller")

    with running(Rounds()) as loop:
        failed = loop.post(fail)
        assert isinstance(failed.exception(), kind)
        assert await loop.call(lambda: "still here") == "still here"


async def test_call_raises_what_the_call_raised() -> None:
    def fail() -> None:
        raise LookupError("of the caller")

    with running(Rounds()) as loop, pytest.raises(LookupError, match="of the caller"):
        await loop.call(fail)


async def test_a_call_whose_caller_left_is_not_run() -> None:
    ran: list[str] = []
    with running(Rounds()) as loop:
        with blocked(loop):
            left = asyncio.create_task(loop.call(lambda: ran.append("left")))
            await asyncio.sleep(0)
            left.cancel()
            with pytest.raises(asyncio.CancelledError):
                await left
            kept = loop.post(lambda: ran.append("kept"))
        kept.result()
    assert ran == ["kept"]


def test_work_is_called_again_until_it_says_no_more() -> None:
    rounds, idle = Rounds(left=5), threading.Event()

    def work() -> bool:
        again = rounds()
        if not again:
            idle.set()
        return again

    with running(work) as loop:
        loop.wake()
        idle.wait()
        loop.post(lambda: None).result()
    assert rounds.events == ["round"] * 7  # six of its own, and the one that follows the call


def test_a_wake_during_a_round_is_not_lost() -> None:
    seen, done = [], threading.Event()

    def work() -> bool:
        seen.append("round")
        if len(seen) < 10:
            loop.wake()
        else:
            done.set()
        return False

    with running(work) as loop:
        loop.wake()
        done.wait()


def test_close_cancels_what_did_not_run_and_ends_the_thread() -> None:
    ran: list[int] = []
    loop = Loop(Rounds(), "device-test", torch.device("cpu"))
    loop.start()
    waiting: list[Future[None]] = []
    with blocked(loop):
        waiting += [loop.post(lambda number=number: ran.append(number)) for number in range(5)]
        closing = threading.Thread(target=loop.close)
        closing.start()
        # The thread stands in its call, so close can't be through yet; it is when the block has ended.
        refused = wait_until_closed(loop)
    closing.join()
    assert all(future.cancelled() for future in waiting)
    assert refused.cancelled()
    assert ran == []
    assert "device-test" not in {thread.name for thread in threading.enumerate()}


def wait_until_closed(loop: Loop) -> "Future[None]":
    """Posts until the loop no longer takes calls; returns the call that it refused."""
    while not (refused := loop.post(lambda: None)).cancelled():
        pass
    return refused


async def test_a_call_after_close_is_cancelled() -> None:
    with running(Rounds()) as loop:
        pass
    with pytest.raises(asyncio.CancelledError):
        await loop.call(lambda: None)


def test_close_before_start_and_twice_is_harmless() -> None:
    never_started = Loop(Rounds(), "device-test", torch.device("cpu"))
    posted = never_started.post(lambda: None)
    never_started.close()
    assert posted.cancelled()
    with running(Rounds()) as loop:
        loop.close()
