"""A second thread for work that a listener waits for."""

import ctypes
import os
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import cache

from services.inference.cpu.team import Team, alone, team


class SecondThread:
    """A thread that is woken on another core than the one that wakes it."""

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="second-thread")
        self._id = self._pool.submit(threading.get_native_id).result()

    def work(self, work: Callable[[Team], None], both: Team, cores: set[int]) -> None:
        """Does work in the caller's thread and in this one, on one of these cores.

        It is not waited for where it is late, busy or fails before it takes a part.
        """
        # Linux likes to wake a thread where the one that wakes it runs, and there they would only take turns.
        with suppress(OSError):  # the cores that the process has were changed just now
            os.sched_setaffinity(self._id, cores)
        second = self._pool.submit(work, both._replace(from_end=True))
        try:
            work(both)
        except BaseException:
            # It may still be writing where others will.
            if not second.cancel():
                second.exception()
            raise
        second.cancel()


def work_together(phases: int, work: Callable[[Team], None]) -> None:
    """Does work of so many phases in this thread and, where there is a core for it, in a second one."""
    cores = other_cores()
    if cores:
        _second_thread().work(work, team(phases), cores)
    else:
        work(alone(phases))


def other_cores() -> set[int]:
    """The cores that this process may use, but for the one that it runs on."""
    return os.sched_getaffinity(0) - {_c_library().sched_getcpu()}


@cache
def _second_thread() -> SecondThread:
    return SecondThread()


@cache
def _c_library() -> ctypes.CDLL:
    return ctypes.CDLL(None)
