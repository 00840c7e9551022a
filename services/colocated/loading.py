"""How the models of one process are loaded."""

import asyncio
from collections.abc import Awaitable, Callable

Prepare = Callable[[], Awaitable[None]]


class Loading:
    """Loads the stages of a process one after the other, once all of them listen; they serve from the same moment.

    A default precision that is set for a module that is being made, and CUDA's capture of a graph, concern the whole
    process: nothing else may be loaded, nor be computed, beside them. What one finds free on the device is what those
    before it left.
    """

    def __init__(self, stage_count: int) -> None:
        self._listening = asyncio.Barrier(stage_count)
        self._loaded = [asyncio.Event() for _ in range(stage_count)]

    async def load(self, turn: int, prepare: Prepare) -> None:
        """Prepares the stage whose turn it is, from 0; returns when all are prepared. After one that fails none is."""
        await self._listening.wait()
        if turn:
            await self._loaded[turn - 1].wait()
        await prepare()
        self._loaded[turn].set()
        await self._loaded[-1].wait()
