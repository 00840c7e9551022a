"""The stages of one process load one after the other and serve from the same moment."""

import asyncio
import itertools

import pytest

from services.colocated.loading import Loading


class Stage:
    """A stage whose loading ends when the test says so."""

    def __init__(self, loading: Loading, turn: int) -> None:
        self.begun, self.may_end = asyncio.Event(), asyncio.Event()
        self.failure: Exception | None = None
        self.loading = asyncio.create_task(loading.load(turn, self.prepare))

    async def prepare(self) -> None:
        """Loads."""
        self.begun.set()
        await self.may_end.wait()
        if self.failure is not None:
            raise self.failure


def stages_of(loading: Loading, *turns: int) -> list[Stage]:
    """Stages that come in the order of these turns; given back from the first turn to the last."""
    stages = {turn: Stage(loading, turn) for turn in turns}
    return [stages[turn] for turn in sorted(turns)]


async def settle() -> None:
    """Lets every task go on as far as it can: nothing here waits for anything but other tasks."""
    for _ in range(20):
        await asyncio.sleep(0)


@pytest.mark.parametrize("turns", list(itertools.permutations(range(3))))
async def test_one_loads_at_a_time_in_order_and_all_are_done_together(turns: tuple[int, ...]) -> None:
    stages = stages_of(Loading(3), *turns)
    for count, stage in enumerate(stages, 1):
        await settle()
        assert [other.begun.is_set() for other in stages] == [True] * count + [False] * (3 - count)
        assert not any(other.loading.done() for other in stages)
        stage.may_end.set()
    await asyncio.gather(*(stage.loading for stage in stages))


async def test_nothing_is_loaded_before_every_stage_has_come_so_far() -> None:
    loading = Loading(2)
    first = Stage(loading, 0)
    await settle()
    assert not first.begun.is_set()
    second = Stage(loading, 1)
    for stage in (first, second):
        stage.may_end.set()
    await asyncio.gather(first.loading, second.loading)


async def test_after_a_failure_nobody_loads() -> None:
    first, *others = stages_of(Loading(3), 0, 1, 2)
    first.failure = ValueError("no such checkpoint")
    first.may_end.set()
    with pytest.raises(ValueError, match="no such checkpoint"):
        await first.loading
    await settle()
    assert not any(stage.begun.is_set() or stage.loading.done() for stage in others)
    for stage in others:
        stage.loading.cancel()
    await asyncio.gather(*(stage.loading for stage in others), return_exceptions=True)
