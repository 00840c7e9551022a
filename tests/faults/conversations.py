"""Sessions that follow each other without a pause, each reply compared with that of an undisturbed run."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Self, TypeVar

from tests.faults.campaign import SCRIPTS
from tests.faults.script import HeardReply, Nobody, Script, hold

Found = TypeVar("Found")


class Conversations:
    """Sessions at one orchestrator, one for each script at a time; made by `open`."""

    def __init__(self, address: str) -> None:
        self._addresses = [address]
        self._is_over = False
        self._packet_came = asyncio.Event()
        self.reply_count = 0
        """Replies that ended as they should, with the very bytes of the undisturbed run."""

    @classmethod
    @asynccontextmanager
    async def open(cls, address: str) -> AsyncIterator[Self]:
        """Goes on within the block, after one run of each script in peace; at the end the last replies are heard."""
        conversations = cls(address)
        undisturbed = await asyncio.gather(*(hold([address], script) for script in SCRIPTS))
        async with asyncio.TaskGroup() as tasks:
            for script, replies in zip(SCRIPTS, undisturbed, strict=True):
                assert [(reply.error, bool(reply.sound)) for reply in replies] == [("", True)] * len(script.turns)
                tasks.create_task(conversations._go_on(script, replies))
            yield conversations
            conversations._is_over = True

    async def until(self, find: Callable[[], Awaitable[Found]]) -> Found:
        """Asks with each packet that comes, until something is found; it is given back."""
        while not (found := await find()):
            self._packet_came.clear()
            await self._packet_came.wait()
        return found

    async def _go_on(self, script: Script, undisturbed: list[HeardReply]) -> None:
        came = self._packet_came

        class Listener(Nobody):
            def heard(self, _: HeardReply) -> None:
                came.set()

        while not self._is_over:
            replies = await hold(self._addresses, script, lambda _: Listener())
            assert [reply.error for reply in replies] == [""] * len(undisturbed)
            equal = [reply.sound == expected.sound for reply, expected in zip(replies, undisturbed, strict=True)]
            assert equal == [True] * len(undisturbed), f"the replies of {script} differ from the undisturbed run"
            self.reply_count += len(replies)
