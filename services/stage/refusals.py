"""What an engine says no to, as the errors of the wire."""

from collections.abc import Iterator
from contextlib import contextmanager

from services.inference.slots import Full, Refused
from services.runtime.errors import InvalidArgument, Unavailable


@contextmanager
def refusals() -> Iterator[None]:
    """Raises Unavailable for a full engine and InvalidArgument for an input that it refused."""
    try:
        yield
    except Full as full:
        raise Unavailable(str(full), reason="FULL") from full
    except Refused as refusal:
        raise InvalidArgument(str(refusal), reason="REFUSED") from refusal
