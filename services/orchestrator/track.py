"""What flows from one side of a reply to the next, kept for as long as the reply lasts."""

import asyncio
import math
from collections.abc import AsyncIterator
from typing import Generic, TypeVar

Item = TypeVar("Item")


class Track(Generic[Item]):
    """What the user, or one stage, gave for a reply, in order, kept until the reply ends.

    The writer waits while the next stage has `ahead` items still to use. That is counted by what the next stage gave in
    turn: HTTP/2 alone would take thousands of small messages ahead of a stage that has stopped. The reader may begin
    again at any index, so that what a lost replica was told can be told to the next.
    """

    def __init__(self, ahead: float = math.inf) -> None:
        self.items: list[Item] = []
        self._ahead = ahead
        self._used_count = 0
        self._is_ended = False
        self._written = asyncio.Event()
        self._used = asyncio.Event()

    @property
    def unused_count(self) -> int:
        """Items that the next stage has still to use."""
        return len(self.items) - self._used_count

    def keep(self, item: Item) -> None:
        """Keeps the item."""
        self.items.append(item)
        self._written.set()

    async def room(self) -> None:
        """Waits while the next stage is behind."""
        while self.unused_count >= self._ahead and not self._is_ended:
            self._used.clear()
            await self._used.wait()

    def use(self, count: int) -> None:
        """The next stage has used the first `count` items."""
        self._used_count = min(count, len(self.items))
        self._used.set()

    def end(self) -> None:
        """No item follows: the reader stops after the last one, and the writer waits no more."""
        self._is_ended = True
        self._written.set()
        self._used.set()

    async def read(self, first: int = 0) -> AsyncIterator[list[Item]]:
        """The items from index `first` on, those to come included, until the end: each time all that are there."""
        index = first
        while True:
            while items := self.items[index:]:
                index += len(items)
                yield items
            if self._is_ended:
                return
            self._written.clear()
            await self._written.wait()
