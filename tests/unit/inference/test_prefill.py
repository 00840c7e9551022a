"""Prompts in chunks of one shape, and whose turn it is to be prefilled."""

import math
from collections.abc import Generator, Iterator
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from services.inference.kv_cache import KvCache, allocate
from services.inference.prefill import PrefillQueue, Progress, chunks
from services.inference.slots import Stream


def cache(positions: int) -> KvCache:
    return allocate(
        layers=1, slots=1, kv_heads=1, positions=positions, head_dim=2, device=torch.device("cpu"), dtype=torch.float32
    )


# --- chunks


@given(count=st.integers(1, 40), size=st.integers(1, 12), first=st.integers(0, 600))
def test_chunks_are_the_prompt_in_order_all_of_one_shape(count: int, size: int, first: int) -> None:
    prompt, kept = torch.randn(count, 3, generator=torch.Generator().manual_seed(count)), cache(700)
    found = list(chunks(prompt, size, kept, first))
    assert len(found) == math.ceil(count / size)
    seen, places = [], []
    for chunk in found:
        assert chunk.embeddings.shape == (1, size, 3)
        assert chunk.columns.shape == (1, size)
        filled = int(chunk.last) + 1
        seen.append(chunk.embeddings[0, :filled])
        places += chunk.columns[0, :filled].tolist()
        assert not chunk.embeddings[0, filled:].any()
        assert (chunk.columns[0, filled:] == kept.dump).all()
        assert places[-1] < chunk.reach <= kept.dump
        assert chunk.reach == kept.reach(places[-1])
    assert torch.cat(seen).equal(prompt)
    assert places == list(range(first, first + count))


def test_an_empty_prompt_has_no_chunk() -> None:
    assert list(chunks(torch.zeros(0, 3), 4, cache(8))) == []


# --- the queue


class Waiting(Stream[Any, Any]):
    """A stream that is due at some time, and what became of it."""

    def __init__(self, name: str, due_at: float) -> None:
        super().__init__()
        self.name, self.due_at = name, due_at
        self.failure: BaseException | None = None

    def fail(self, error: BaseException) -> None:
        self.done, self.failure = True, error


class Prefills:
    """A queue, and which stream had each piece."""

    def __init__(self) -> None:
        self.queue = PrefillQueue[Waiting]()
        self.pieces: list[str] = []
        self.closed: list[str] = []
        # Held, so that none is closed only because nobody knows it any more.
        self._runs: list[Generator[Progress, None, None]] = []

    def add(self, name: str, count: int, due_at: float = 0.0) -> Waiting:
        stream = Waiting(name, due_at)
        self._runs.append(self._run(name, count))
        self.queue.add(stream, self._runs[-1])
        return stream

    def _run(self, name: str, count: int) -> Generator[Progress, None, None]:
        try:
            for _ in range(count):
                self.pieces.append(name)
                yield Progress.WORKED
        finally:
            self.closed.append(name)

    def finish(self) -> list[str]:
        """Advances until nothing is under way; the names in the order of completion."""
        complete = []
        while self.queue:
            if (stream := self.queue.advance()) is not None:
                complete.append(stream.name)
        return complete


def test_a_prefill_that_is_alone_has_every_turn() -> None:
    prefills = Prefills()
    stream = prefills.add("a", 3)
    assert bool(prefills.queue)
    assert [prefills.queue.advance() for _ in range(4)] == [None, None, None, stream]
    assert prefills.pieces == ["a"] * 3
    assert not prefills.queue
    assert prefills.queue.advance() is None


def test_every_other_piece_is_for_who_is_due_first_the_others_take_turns() -> None:
    prefills = Prefills()
    for name, due_at in (("late", 9.0), ("later", 10.0), ("first", 1.0), ("last", 11.0)):
        prefills.add(name, 20, due_at)
    for _ in range(12):
        prefills.queue.advance()
    assert prefills.pieces[::2] == ["first"] * 6
    assert prefills.pieces[1::2] == ["late", "later", "last", "late", "later", "last"]


def test_one_that_comes_later_but_is_due_sooner_is_first_at_the_next_urgent_turn() -> None:
    prefills = Prefills()
    prefills.add("a", 9, 5.0)
    for _ in range(2):
        prefills.queue.advance()
    prefills.add("b", 9, 1.0)
    for _ in range(4):
        prefills.queue.advance()
    assert prefills.pieces == ["a", "a", "b", "a", "b", "a"]


def test_of_those_due_at_once_the_one_whose_last_piece_is_longest_ago_is_first() -> None:
    prefills = Prefills()
    for name in "abc":
        prefills.add(name, 4)
    for _ in range(9):
        prefills.queue.advance()
    assert "".join(prefills.pieces) == "abcabcabc"


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 9)), min_size=1, max_size=6))
def test_nobody_starves_and_every_other_turn_is_for_one_that_is_due_first(plans: list[tuple[int, int]]) -> None:
    """Of n under way each has a turn within 2n of them."""
    prefills = Prefills()
    for number, (due_at, count) in enumerate(plans):
        prefills.add(str(number), count, float(due_at))
    waited = {str(number): 0 for number in range(len(plans))}
    turn = 0
    while prefills.queue:
        first_due = min(plans[int(name)][0] for name in waited)
        before = len(prefills.pieces)
        complete = prefills.queue.advance()
        had = [*prefills.pieces[before:], *([] if complete is None else [complete.name])]
        assert len(had) == 1
        assert turn % 2 or plans[int(had[0])][0] == first_due
        waited = {name: 0 if name == had[0] else turns + 1 for name, turns in waited.items()}
        if complete is not None:
            del waited[complete.name]
        assert all(turns < 2 * len(plans) for turns in waited.values())
        turn += 1
    assert waited == {}
    assert [prefills.pieces.count(str(number)) for number in range(len(plans))] == [count for _, count in plans]


def waiting_for(ready: list[bool], pieces: list[str], name: str) -> Iterator[Progress]:
    while not ready[0]:
        yield Progress.WAITED
    pieces.append(name)
    yield Progress.WORKED


def test_one_that_waits_for_another_gives_its_turn_away() -> None:
    prefills, ready = Prefills(), [False]
    waiting = Waiting("waiting", 0.0)
    prefills.queue.add(waiting, waiting_for(ready, prefills.pieces, "waiting"))  # type: ignore[arg-type]
    prefills.add("a", 3, 5.0)
    prefills.add("b", 3, 6.0)
    for count in range(1, 5):  # a piece in every turn
        assert prefills.queue.advance() is None
        assert len(prefills.pieces) == count
    assert sorted(prefills.pieces) == ["a", "a", "b", "b"]
    ready[0] = True
    assert prefills.finish()[0] == "waiting"


def test_where_all_wait_each_is_asked_once_a_turn() -> None:
    queue, asked = PrefillQueue[Waiting](), []

    def wait(name: str) -> Generator[Progress, None, None]:
        while True:
            asked.append(name)
            yield Progress.WAITED

    for name in "abc":
        queue.add(Waiting(name, 0.0), wait(name))
    for turn in range(1, 4):
        assert queue.advance() is None
        assert sorted(asked) == sorted("abc" * turn)
    assert bool(queue)


def test_one_that_leaves_is_closed_and_has_no_more_turns() -> None:
    prefills = Prefills()
    streams = [prefills.add(name, 5) for name in "abc"]
    for _ in range(4):
        prefills.queue.advance()
    prefills.queue.drop(streams[1])
    assert prefills.closed == ["b"]
    had = prefills.pieces.count("b")
    assert sorted(prefills.finish()) == ["a", "c"]
    assert prefills.pieces.count("b") == had
    assert sorted(prefills.closed) == ["a", "b", "c"]


def test_one_that_was_never_run_or_is_no_longer_under_way_may_leave() -> None:
    prefills = Prefills()
    streams = [prefills.add(name, 1) for name in "ab"]
    prefills.queue.drop(streams[0])
    assert prefills.finish() == ["b"]
    assert prefills.pieces == ["b"]
    prefills.queue.drop(streams[1])
    prefills.queue.drop(streams[0])


@pytest.mark.parametrize("at", [0, 2])
def test_an_error_fails_its_own_stream_alone(at: int) -> None:
    prefills = Prefills()

    def broken() -> Generator[Progress, None, None]:
        for _ in range(at):
            yield Progress.WORKED
        raise RuntimeError("this prompt is broken")

    unlucky = Waiting("unlucky", 0.0)
    prefills.queue.add(unlucky, broken())
    prefills.add("a", 3)
    assert prefills.finish() == ["a"]
    assert str(unlucky.failure) == "this prompt is broken"


def test_one_that_ended_with_its_prefill_is_not_handed_back() -> None:
    """A reply may be over with its first step."""
    prefills = Prefills()
    stream = prefills.add("a", 1)
    prefills.queue.advance()
    stream.done = True
    assert prefills.queue.advance() is None
    assert not prefills.queue
