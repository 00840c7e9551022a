"""The conversation's call to the mesh."""

import asyncio
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Self

import grpc

from client.errors import MeshError
from client.events import Event
from client.session import Session

OPEN_SECONDS = 10.0
"""The longest that the mesh may take to open a session."""

CLOSE_SECONDS = 2.0
"""The longest that a call may take to end well; after that it is cut off."""


@dataclass(frozen=True)
class Heard:
    """Something that the mesh says, or how the call ended without having been told to."""

    line: "Line"
    event: Event | MeshError


class Line:
    """A session of the mesh, open until it is closed or lost.

    What it says is delivered one by one: the next is read when `take_next` was called. What it says while it is being
    closed is not delivered.
    """

    def __init__(self, session: Session, deliver: Callable[[Heard], None], *, is_listening: bool, origin: int) -> None:
        """`is_listening`: the mesh hears when turns are over. `origin` is where its sound begins in what was said."""
        self.session = session
        self.is_listening = is_listening
        self.origin = origin
        self.is_stale = False
        """It remembers something else than what is true; to be replaced as soon as no reply is given."""
        self.hears_speech = False
        """The user is speaking, as far as it has heard."""
        self.told: list[str] = []
        """The items that make up its open turn."""
        self.heard: dict[int, str] = {}
        """The items of what the user said in turns whose replies have not begun, by turn."""
        self.last_item_id: str | None = None
        """The item of the reply that it gave last, as long as no other has begun, or is giving."""
        self.last_turn_index = -1
        self._deliver = deliver
        self._is_closing = False
        self._is_taken = asyncio.Event()
        self._opened: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._task: asyncio.Task[None] | None = None

    @classmethod
    async def open(
        cls,
        tasks: asyncio.TaskGroup,
        session: Session,
        deliver: Callable[[Heard], None],
        *,
        is_listening: bool,
        origin: int,
    ) -> Self:
        """Opens the session, in a task of its own; raises MeshError."""
        line = cls(session, deliver, is_listening=is_listening, origin=origin)
        line._task = tasks.create_task(line._run())
        try:
            async with asyncio.timeout(OPEN_SECONDS):
                await line._opened
        except TimeoutError:
            line._task.cancel()
            message = f"the mesh did not open a session within {OPEN_SECONDS:g} s"
            raise MeshError(grpc.StatusCode.DEADLINE_EXCEEDED, "SESSION_NOT_OPENED", message) from None
        except asyncio.CancelledError:
            line._task.cancel()
            raise
        return line

    def take_next(self) -> None:
        """What was delivered is dealt with."""
        self._is_taken.set()

    async def close(self) -> None:
        """Ends the session, the reply that is given included."""
        task = self._task
        assert task is not None, "a line is closed when it was opened"
        self._is_closing = True
        self._is_taken.set()
        try:
            async with asyncio.timeout(CLOSE_SECONDS):
                with suppress(MeshError):
                    await self.session.cancel_reply()
                    await self.session.end()
                await asyncio.wait({task})
        except TimeoutError:
            task.cancel()
            await asyncio.wait({task})

    async def _run(self) -> None:
        try:
            async with self.session as session:
                if not self._opened.done():  # nobody waits any more
                    self._opened.set_result(None)
                async for event in session.events():
                    await self._tell(event)
        except MeshError as error:
            if not self._opened.done():
                self._opened.set_exception(error)
            else:
                await self._tell(error)

    async def _tell(self, event: Event | MeshError) -> None:
        if self._is_closing:
            return
        self._is_taken.clear()
        self._deliver(Heard(self, event))
        await self._is_taken.wait()
