"""Slots, the rows of a static batch, and the streams that hold them."""

import asyncio
import sys
import time
from abc import ABC, abstractmethod
from bisect import insort
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from functools import partial
from itertools import count
from typing import Any, Generic, TypeVar

import torch

from services.inference.loop import Loop
from services.inference.memory_budget import DeviceMemory, device_memory

In = TypeVar("In")
Out = TypeVar("Out")
S = TypeVar("S", bound="Stream[Any, Any]")
Result = TypeVar("Result")


class Full(Exception):
    """All slots are taken and the queue for them is full."""


class Refused(ValueError):
    """An input that the engine can't take; the message says what was expected and what came."""


class TooLong(Refused):
    """An input that has more positions than a slot; less of it could be taken."""


class NotFinite(ArithmeticError):
    """A model's state has a value that is no number: nothing that follows from it means anything."""


class _End:
    """Closes a stream's outbox."""


NOBODY_WAITS = sys.maxsize
"""More outputs than there ever are unread."""


class Stream(Generic[In, Out]):
    """One reply in a stage: asyncio on one side, the device thread on the other.

    asyncio: `send`, `end`, then iterate, or wait until several have `arrived` and `read` them together: the reader is
    woken once for all of them. The inbox holds at most `inbox_limit` items: `send` waits for room.
    Device thread: `inbox`, `ended`, `emit`, `finish`, `fail`. A stream whose reader lags is not `writable`
    after `outbox_limit` unread items, and its engine leaves it out until it is read again.
    """

    def __init__(self, inbox_limit: int = 64, outbox_limit: int = 64) -> None:
        self.slot = -1
        self.queue_seconds = 0.0
        # When the listener needs the next output: `due_seconds` after the opening, as time.perf_counter() tells it.
        self.due_seconds = 0.0
        self.due_at = 0.0
        self.inbox: deque[In] = deque()
        self.ended = False
        self.done = False
        self._inbox_limit = inbox_limit
        self._outbox_limit = outbox_limit
        # Appended to by the device thread, and read by asyncio, with what comes behind the last.
        self._outbox: deque[Out] = deque()
        self._ending: BaseException | _End | None = None
        # Unread outputs at which the reader is woken. It looks once more after it has said so, and the device thread
        # looks at it after it has appended: one of them sees the other.
        self._awaited_count = NOBODY_WAITS
        self._news = asyncio.Event()
        self._room = asyncio.Event()
        self._engine: SlotEngine[Any] | None = None

    # --- asyncio's side

    async def send(self, *items: In) -> None:
        """Hands inputs to the engine, which is woken once for all of them; waits while the inbox is full.

        A stream that is done takes nothing more.
        """
        for item in items:
            while len(self.inbox) >= self._inbox_limit and not self.done:
                self._wake()
                self._room.clear()
                await self._room.wait()
            if self.done:
                return
            self.inbox.append(item)
        self._wake()

    def end(self) -> None:
        """Says that the input is complete."""
        self.ended = True
        self._wake()

    def __aiter__(self) -> AsyncIterator[Out]:
        return self

    async def __anext__(self) -> Out:
        await self.arrived(1)
        if outputs := self.read(1):
            return outputs[0]
        if isinstance(self._ending, BaseException):
            raise self._ending
        raise StopAsyncIteration

    async def arrived(self, count: int) -> None:
        """Returns when so many outputs can be read at once, or as many as there ever will be."""
        count = min(count, self._outbox_limit)
        try:
            while self.unread_count < count and self._ending is None:
                self._news.clear()
                self._awaited_count = count
                if self.unread_count < count and self._ending is None:
                    await self._news.wait()
        finally:
            self._awaited_count = NOBODY_WAITS

    def read(self, most_count: int) -> list[Out]:
        """The outputs that have arrived, up to so many."""
        before = self.unread_count
        outputs = [self._outbox.popleft() for _ in range(min(before, most_count))]
        if before >= self._outbox_limit > before - len(outputs):
            self._wake()
        return outputs

    @property
    def unread_count(self) -> int:
        """Outputs that were emitted but not read."""
        return len(self._outbox)

    def _wake(self) -> None:
        if self._engine is not None:
            self._engine.wake()

    def notify(self) -> None:
        """There is something to be read, or the inbox has room."""
        self._news.set()
        self._room.set()

    # --- the device thread's side

    @property
    def writable(self) -> bool:
        """Whether the reader keeps up."""
        return self.room > 0

    @property
    def room(self) -> int:
        """How many outputs more the reader may leave unread; below 0 where there were more than it may."""
        return self._outbox_limit - self.unread_count

    def take(self) -> In:
        """Removes the oldest input."""
        item = self.inbox.popleft()
        if len(self.inbox) == self._inbox_limit - 1:
            self._tell()
        return item

    def emit(self, item: Out) -> None:
        """Sends an output."""
        self._outbox.append(item)
        if self.unread_count >= self._awaited_count:
            self._tell()

    def finish(self) -> None:
        """Ends the stream; nothing is emitted after it."""
        self._end(_End())

    def fail(self, error: BaseException) -> None:
        """Ends the stream with an error, which its reader raises."""
        self._end(error)

    def _end(self, ending: "BaseException | _End") -> None:
        self.done = True
        self._ending = ending
        self._tell()

    def _tell(self) -> None:
        assert self._engine is not None
        self._engine.tell(self)


class SlotEngine(ABC, Generic[S]):
    """Gives slots to streams and runs rounds over those that have one; the stream that is due first comes first.

    `keeps_longest`: a free slot is given to a stream only after those that were left earlier, so that what it holds
    can be used again for long; otherwise the lowest is given, so that the slots in use lie close together.

    `open` is asyncio's; `join`, `leave` and `advance` run on the device thread. An error in a round fails the streams
    that were part of it; the engine goes on.
    """

    def __init__(
        self, slot_count: int, queue_limit: int, name: str, *, device: torch.device, keeps_longest: bool = False
    ) -> None:
        self.slot_count = slot_count
        self.queue_limit = queue_limit
        self.streams: dict[int, S] = {}
        # Told on the device thread, for each stream that was cut, how long after that its last step had ended.
        self.on_cut: Callable[[float], None] | None = None
        # Told on the device thread, for each step, how many streams were part of it.
        self.on_step: Callable[[int], None] | None = None
        self._free = list(range(slot_count))
        self._keeps_longest = keeps_longest
        self._waiting: list[tuple[float, int, asyncio.Future[int]]] = []
        self._turns = count()
        self._event_loop: asyncio.AbstractEventLoop | None = None
        # Streams whose readers or senders have something to look at, in the order in which they had.
        self._told: dict[Stream[Any, Any], None] = {}
        self._device = device
        self._loop = Loop(self._round, name, device)

    # --- asyncio's side

    def start(self) -> None:
        """Starts the device thread; the running event loop receives what streams emit."""
        self._event_loop = asyncio.get_running_loop()
        self._loop.start()

    def close(self) -> None:
        """Ends the device thread."""
        self._loop.close()

    def wake(self) -> None:
        """Says that a stream has new input or room for output."""
        self._loop.wake()

    async def call(self, call: Callable[[], Result]) -> Result:
        """Runs a call on the device thread, between two rounds."""
        return await self._loop.call(call)

    @property
    def slots_in_use(self) -> int:
        """Slots that are held by a stream."""
        return self.slot_count - len(self._free)

    def memory(self) -> DeviceMemory:
        """The device's memory now; from any thread."""
        return device_memory(self._device)

    @asynccontextmanager
    async def open(self, stream: S) -> AsyncIterator[S]:
        """Waits for a slot and holds it for the block.

        Raises Full at once when `queue_limit` streams already wait. After the block, however it ends, the stream
        is out of the batch at the next round and its slot is free.
        """
        asked = time.perf_counter()
        stream.due_at = asked + stream.due_seconds
        stream.slot = await self._acquire(stream.due_at)
        stream.queue_seconds = time.perf_counter() - asked
        stream._engine = self
        self._loop.post(partial(self._admit, stream), is_brief=True)
        try:
            yield stream
        finally:
            self._loop.post(partial(self._dismiss, stream, time.perf_counter()), is_brief=True)

    async def _acquire(self, due_at: float) -> int:
        if self._free and not self._waiting:
            return self._free.pop(0)
        if len(self._waiting) >= self.queue_limit:
            raise Full(f"all {self.slot_count} slots are taken and {len(self._waiting)} streams wait")
        turn: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        place = (due_at, next(self._turns), turn)
        insort(self._waiting, place)
        try:
            return await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():
                self._release(turn.result())
            raise
        finally:
            if place in self._waiting:
                self._waiting.remove(place)

    def _release(self, slot: int) -> None:
        while self._waiting:
            *_, turn = self._waiting.pop(0)
            if not turn.done():
                turn.set_result(slot)
                return
        if self._keeps_longest:
            self._free.append(slot)
        else:
            insort(self._free, slot)

    # --- the device thread's side

    @abstractmethod
    def join(self, stream: S) -> None:
        """Prepares the slot of a stream that enters the batch."""

    @abstractmethod
    def leave(self, stream: S) -> None:
        """Forgets a stream that leaves the batch, finished or not."""

    @abstractmethod
    def advance(self) -> bool:
        """Does one round over `streams`; True if another may follow at once."""

    def tell(self, stream: Stream[Any, Any]) -> None:
        """Has a stream notified at the end of the round: one wake-up of the event loop is for all of them."""
        self._told[stream] = None

    def deliver(self) -> None:
        """Notifies those that are to be, before the end of a round where somebody waits for it."""
        if self._told:
            told, self._told = self._told, {}
            assert self._event_loop is not None
            self._event_loop.call_soon_threadsafe(_notify, told)

    def count_step(self, stream_count: int) -> None:
        """A step was done for so many streams."""
        if self.on_step is not None:
            self.on_step(stream_count)

    def _admit(self, stream: S) -> None:
        try:
            self.join(stream)
        except Exception as error:
            stream.fail(error)
        self.streams[stream.slot] = stream

    def _dismiss(self, stream: S, left_at: float) -> None:
        try:
            if self.on_cut is not None and not stream.done:
                self.on_cut(time.perf_counter() - left_at)
            if self.streams.pop(stream.slot, None) is not None:
                self.leave(stream)
        finally:
            assert self._event_loop is not None
            self._event_loop.call_soon_threadsafe(self._release, stream.slot)

    def _round(self) -> bool:
        try:
            more = self.advance()
        except Exception as error:
            # Which stream broke the round is not known, and the state of all may be half-written.
            for stream in self.streams.values():
                if not stream.done:
                    stream.fail(error)
            more = True
        self.deliver()
        return more


def _notify(told: Iterable[Stream[Any, Any]]) -> None:
    for stream in told:
        stream.notify()
