"""Asynchronous work that Ctrl-C and SIGTERM stop in good order."""

import asyncio
import contextlib
import signal
from collections.abc import Coroutine, Iterator
from typing import Any, TypeVar

from client.errors import ClientError

Result = TypeVar("Result")


class Interrupted(ClientError):
    """The user or the system asked the command to stop."""

    exit_status = 130  # what shells expect of a program that was interrupted


def run(work: Coroutine[Any, Any, Result]) -> Result:
    """Runs asynchronous work; SIGINT and SIGTERM cancel it, so that everything is put away, then raise Interrupted."""

    async def interruptible() -> Result:
        with cancelled_by_signals():
            return await work

    try:
        return asyncio.run(interruptible())
    except asyncio.CancelledError:
        raise Interrupted("stopped") from None


@contextlib.contextmanager
def cancelled_by_signals() -> Iterator[None]:
    """Makes SIGINT and SIGTERM cancel the current task, each time one comes."""
    loop, task = asyncio.get_running_loop(), asyncio.current_task()
    assert task is not None
    numbers = (signal.SIGINT, signal.SIGTERM)
    for number in numbers:
        loop.add_signal_handler(number, task.cancel)
    try:
        yield
    finally:
        for number in numbers:
            loop.remove_signal_handler(number)
