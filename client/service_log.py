"""Where the services' own lines go."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager

from client.errors import InputError
from client.supervisor import LineSink, ignore


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
