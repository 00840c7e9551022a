"""The idle limit."""

import asyncio

import pytest

from services.orchestrator.idle_limit import IdleLimit
from services.runtime.errors import DeadlineExceeded


async def test_the_limit_ends_what_waits_for_ever() -> None:
    limit = IdleLimit(0.01)
    with pytest.raises(DeadlineExceeded) as raised:
        async with limit.watch(), asyncio.TaskGroup() as tasks:
            tasks.create_task(asyncio.Event().wait())
    assert raised.value.reason == "IDLE"


async def test_a_touch_moves_the_limit_and_work_suspends_it() -> None:
    limit = IdleLimit(1000)
    clock = asyncio.get_running_loop().time
    async with limit.watch():
        first = limit.deadline
        assert first is not None
        assert first <= clock() + 1000
        limit.touch()
        assert limit.deadline is not None
        assert limit.deadline >= first
        with limit.busy():
            assert limit.deadline is None
            limit.touch()
            assert limit.deadline is None
        assert limit.deadline is not None


async def test_another_timeout_passes_through() -> None:
    with pytest.raises(TimeoutError):
        async with IdleLimit(1000).watch(), asyncio.timeout(0):
            await asyncio.Event().wait()
