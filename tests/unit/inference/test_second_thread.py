"""Two threads do each unit of a phase once, and begin no phase before the one ahead of it is finished."""

import os
import threading
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.inference.cpu import second_thread
from services.inference.cpu.compilation import compiled
from services.inference.cpu.second_thread import other_cores, work_together
from services.inference.cpu.team import PARTS, Ints, Team, alone, parts, team


@compiled
def _count(units: Ints, counts: Ints, missing: Ints, team: Team) -> None:
    """Counts each unit, [phase, unit], and in each phase the units before that were not counted yet."""
    for phase in range(len(units)):
        for first, end in parts(team, phase, units[phase]):
            for unit in range(first, end):
                counts[phase, unit] += 1
            for unit in range(units[phase - 1] if phase else 0):
                missing[phase] += counts[phase - 1, unit] == 0


def worked(units: list[int], work: Callable[[int, Callable[[Team], None]], None]) -> None:
    """Asserts that work of phases with so many units is done as it should be."""
    counts = np.zeros((len(units), max(units) + 1), np.int64)
    missing = np.zeros(len(units), np.int64)
    work(len(units), lambda team: _count(np.array(units), counts, missing, team))
    assert [list(row) for row in counts] == [[1] * count + [0] * (max(units) + 1 - count) for count in units]
    assert not missing.any()


UNITS = st.lists(st.integers(0, 5 * PARTS), min_size=1, max_size=30)


@given(units=UNITS)
def test_two_threads_do_everything_once_and_in_order(units: list[int]) -> None:
    worked(units, work_together)


@given(units=UNITS)
def test_one_thread_does_it_alone(units: list[int]) -> None:
    worked(units, lambda phases, work: work(alone(phases)))


@given(units=UNITS)
def test_one_that_comes_when_all_is_done_finds_nothing(units: list[int]) -> None:
    def one_after_the_other(phases: int, work: Callable[[Team], None]) -> None:
        both = team(phases)
        work(both)
        work(both)

    worked(units, one_after_the_other)


def test_several_callers_at_the_same_time_get_what_they_asked_for() -> None:
    def call() -> None:
        for _ in range(50):
            worked([40, 1, 7, 40], work_together)

    callers = [threading.Thread(target=call) for _ in range(3)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()


def test_the_second_thread_works_on_another_core() -> None:
    seen: dict[str, set[int]] = {}

    def look(_: Team) -> None:
        seen[threading.current_thread().name] = os.sched_getaffinity(0)

    together = threading.Barrier(2)

    def look_together(both: Team) -> None:
        look(both)
        together.wait()

    cores = other_cores()
    if not cores:
        pytest.skip("this machine has one core")
    work_together(1, look_together)
    others = {name: where for name, where in seen.items() if name != threading.current_thread().name}
    assert [name.startswith("second-thread") for name in others] == [True]
    assert all(len(where) == len(os.sched_getaffinity(0)) - 1 for where in others.values())


def test_where_there_is_one_core_nobody_else_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(second_thread, "other_cores", set)
    monkeypatch.setattr(second_thread, "_second_thread", None)
    worked([3, 20, 1], work_together)


def test_an_error_of_the_caller_waits_for_the_second_thread() -> None:
    ended = threading.Event()
    caller, begun = threading.current_thread(), threading.Event()

    def work(_: Team) -> None:
        if threading.current_thread() is caller:
            begun.wait()
            raise MemoryError("no room")
        begun.set()
        sum(range(10**6))  # the caller has failed long before
        ended.set()

    if not other_cores():
        pytest.skip("this machine has one core")
    with pytest.raises(MemoryError, match="no room"):
        work_together(1, work)
    assert ended.is_set()
