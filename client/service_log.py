"""Where the services' own lines go."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from client.errors import InputError

LineSink = Callable[[str, str], None]
"""Takes a process's name, which is its replica's or "colocated", and one line that it wrote."""


@contextmanager
def open_log(target: str | None) -> Iterator[LineSink]:
    """Takes lines to a file, to stdout for "-", or nowhere for None; every line begins with its service's name."""
    if target is None:
        yield ignore
    elif target == "-":
        yield print_line
    else:
        try:
            file = open(target, "w", encoding="utf-8", buffering=1)  # noqa: SIM115 - the error is about opening only
        except OSError as error:
            raise InputError(f"{target}: cannot be written: {error.strerror or error}") from None
        with file:
            yield lambda service, line: print(f"{service} | {line}", file=file)


def print_line(service: str, line: str) -> None:
    """One line of a service on stdout."""
    sys.stdout.write(f"{service} | {line}\n")
    sys.stdout.flush()


def ignore(*_: object) -> None:
    """The sink of what nobody wants to know."""
