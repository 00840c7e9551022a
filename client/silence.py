"""Calls of which nothing comes, from servers that may be gone."""

import asyncio
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import grpc

from client.call_status import value_of

QUIET_SECONDS = 1.5
"""When nothing happens for so long, the server is asked whether it is there."""


class Silence:
    """Cancels a call when nothing happens in it and its server, asked over the same connection, does not answer.

    A stopped process looks like a slow one: only an answer tells. HTTP/2's own pings are no good for it, for on a
    narrow connection their answers come after all the sound that is on its way. Here that sound is an answer, and so is
    whatever else the server says.
    """

    def __init__(self, call: grpc.aio.Call, ask: Callable[[float], grpc.aio.Call]) -> None:
        """`ask` begins a small call that has so many seconds for its answer."""
        self.is_given_up = False
        self.sign_count = 0
        """How often the server has shown that it is there."""
        self._call = call
        self._ask = ask

    @contextmanager
    def watched(self, answer_seconds: Callable[[], float | None]) -> Iterator[None]:
        """The block in which something is to come of the call, or be taken by it, which shows that the server is there.

        `answer_seconds` is what the server gets for its answer, None where it need not give any now.
        """
        watch = _Watch(self, answer_seconds)
        try:
            yield
            self.sign_count += 1
        finally:
            watch.end()

    def ask(self, answer_seconds: float) -> grpc.aio.Call:
        """Asks the server whether it is there."""
        return self._ask(answer_seconds)

    def give_up(self) -> None:
        """Ends the call."""
        self.is_given_up = True
        self._call.cancel()


class _Watch:
    """Asks at times, from when it is made until its end."""

    def __init__(self, silence: Silence, answer_seconds: Callable[[], float | None]) -> None:
        self._silence = silence
        self._answer_seconds = answer_seconds
        self._question: grpc.aio.Call | None = None
        self._wait()

    def end(self) -> None:
        """Asks no more."""
        self._timer.cancel()
        if (question := self._question) is not None:
            self._question = None
            question.cancel()

    def _wait(self) -> None:
        self._timer = asyncio.get_running_loop().call_later(QUIET_SECONDS, self._ask)

    def _ask(self) -> None:
        if (seconds := self._answer_seconds()) is None:
            self._wait()
            return
        self._sign_count = self._silence.sign_count
        self._question = self._silence.ask(seconds)
        self._question.add_done_callback(self._hear)

    def _hear(self, question: grpc.aio.Call) -> None:
        if self._question is not question:
            return
        self._question = None
        was_too_late = value_of(question.code()) is grpc.StatusCode.DEADLINE_EXCEEDED
        if was_too_late and self._sign_count == self._silence.sign_count:
            self._silence.give_up()
        else:
            self._wait()
