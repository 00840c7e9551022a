"""The one thread of a process that owns the device."""

import asyncio
import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, TypeVar

import torch

Result = TypeVar("Result")


class Loop:
    """Runs rounds of work on a thread of its own, so that the event loop never waits for the device.

    `work` does one round and returns True to be called again at once; after False the thread sleeps until `wake`.
    Between two rounds at most one posted call is run that may take long, so that a series of them cannot stall the
    rounds, and those that are brief around it. On CUDA the thread queues its work on a stream of its own, beside those
    of other stages in the same process.
    """

    def __init__(self, work: Callable[[], bool], name: str, device: torch.device) -> None:
        self._work = work
        self._device = device
        self._condition = threading.Condition()
        self._calls: deque[tuple[Callable[[], Any], Future[Any], bool]] = deque()
        self._awake = False
        self._closed = False
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)

    def start(self) -> None:
        """Starts the thread; once."""
        self._thread.start()

    def close(self) -> None:
        """Ends the thread after its present round; calls that did not run are cancelled."""
        with self._condition:
            self._closed = True
            self._condition.notify()
        if self._thread.ident is not None:
            self._thread.join()
        while self._calls:
            self._calls.popleft()[1].cancel()

    def wake(self) -> None:
        """Says that there may be work; from any thread."""
        with self._condition:
            self._awake = True
            self._condition.notify()

    def post(self, call: Callable[[], Result], *, is_brief: bool = False) -> "Future[Result]":
        """Runs a call on the thread, in order; from any thread. The future is cancelled if the loop closes first.

        `is_brief`: it takes next to no time, so it need not have a round before it.
        """
        future: Future[Result] = Future()
        with self._condition:
            if self._closed:
                future.cancel()
                return future
            self._calls.append((call, future, is_brief))
            self._condition.notify()
        return future

    async def call(self, call: Callable[[], Result]) -> Result:
        """Runs a call on the thread and returns what it returns, or raises what it raises."""
        return await asyncio.wrap_future(self.post(call))

    def _run(self) -> None:
        if self._device.type != "cuda":
            self._serve()
            return
        torch.cuda.synchronize(self._device)  # the weights were put there by other threads
        with torch.cuda.stream(torch.cuda.Stream(self._device)):
            self._serve()

    def _serve(self) -> None:
        while True:
            with self._condition:
                while not (self._calls or self._awake or self._closed):
                    self._condition.wait()
                if self._closed:
                    return
                posted = self._take()
                awake, self._awake = self._awake, False
            # A posted call may have made work, so a round follows it either way.
            awake = awake or bool(posted)
            while posted:
                # No name keeps a call, and what it is about, while the thread sleeps.
                _settle(*posted.popleft())
            if awake and self._work():
                self.wake()

    def _take(self) -> "deque[tuple[Callable[[], Any], Future[Any]]]":
        """The calls up to the second that may take long."""
        taken: deque[tuple[Callable[[], Any], Future[Any]]] = deque()
        may_be_long = True
        while self._calls and (self._calls[0][2] or may_be_long):
            call, future, is_brief = self._calls.popleft()
            may_be_long &= is_brief
            taken.append((call, future))
        return taken


def _settle(call: Callable[[], Any], future: "Future[Any]") -> None:
    if not future.set_running_or_notify_cancel():
        return
    try:
        future.set_result(call())
    except BaseException as error:  # the caller's, whatever it is: it is raised where the call was posted
        future.set_exception(error)
