"""A value made of files, made anew when they change."""

import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Generic, TypeVar

import structlog

Value = TypeVar("Value")

# What tells one state of a file from another: of a symbolic link, of what it leads to, for that is how a mounted secret
# is replaced.
Stamp = tuple[int, int, int, int]


class FileUnusable(Exception):
    """A file that the process was told to use can't be used; the message says which and why."""


class FileValue(Generic[Value]):
    """What `make` makes of some files; a change is noticed when the value is asked for, so that nothing has to watch.

    `make` raises FileUnusable: at first to whoever makes this object, later it is logged once for each change, and the
    value before stays: files are often replaced one after the other. Any thread may ask.
    """

    def __init__(self, paths: Sequence[Path], make: Callable[[], Value], *, what: str) -> None:
        self._paths = tuple(paths)
        self._make = make
        self._what = what
        self._lock = threading.Lock()
        self._stamps = self._look()
        self._value = make()

    def current(self) -> Value:
        """The value of the files as they are, or as they were when they were last any good."""
        with self._lock:
            stamps = self._look()
            if stamps != self._stamps:
                self._stamps = stamps
                self._renew()
            return self._value

    def _renew(self) -> None:
        log = structlog.get_logger()
        try:
            self._value = self._make()
        except FileUnusable as refusal:
            log.error(f"{self._what} changed and can't be used, what was read before stays", reason=str(refusal))
        else:
            log.info(f"{self._what} changed and was read again")

    def _look(self) -> tuple[Stamp | None, ...]:
        return tuple(_stamp(path) for path in self._paths)


def read_bytes(path: Path) -> bytes:
    """The file's content; raises FileUnusable."""
    try:
        return path.read_bytes()
    except OSError as failure:
        raise FileUnusable(f"{path} cannot be read: {failure.strerror}") from failure


def _stamp(path: Path) -> Stamp | None:
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_mtime_ns, status.st_ctime_ns, status.st_size, status.st_ino
