"""How long pieces of work take on a device that is not waited for."""

import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch


class Stopwatch:
    """Adds up the time that pieces of work take, by name.

    On CUDA a call only queues its work: pieces are timed by the card itself, and read when it has done them.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._pieces: list[tuple[str, _Mark, _Mark]] = []

    @contextmanager
    def time(self, name: str) -> Iterator[None]:
        """Times the block's work."""
        begin = _Mark(self._device)
        yield
        self._pieces.append((name, begin, _Mark(self._device)))

    def seconds(self, name: str) -> float:
        """What the pieces of this name took; to be asked when the device has done them."""
        return sum(begin.seconds_until(end) for piece, begin, end in self._pieces if piece == name)


class _Mark:
    """A moment in the work of a device."""

    def __init__(self, device: torch.device) -> None:
        self._event: torch.cuda.Event | None = None
        self._at = time.perf_counter()
        if device.type == "cuda":
            self._event = torch.cuda.Event(enable_timing=True)
            self._event.record()

    def seconds_until(self, end: "_Mark") -> float:
        """The time from this moment to that one."""
        if self._event is None or end._event is None:
            return end._at - self._at
        return self._event.elapsed_time(end._event) / 1000
