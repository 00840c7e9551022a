"""What an engine says no to, as the errors of the wire."""

from collections.abc import Iterator
from contextlib import contextmanager

from services.inference.slots import Full, NotFinite, Refused, TooLong
from services.runtime.errors import Internal, InvalidArgument, Unavailable


@contextmanager
def refusals() -> Iterator[None]:
    """Raises Unavailable for a full engine, InvalidArgument for a refused input, Internal for what is no number."""
    try:
        yield
    except Full as full:
        raise Unavailable(str(full), reason="FULL") from full
    except TooLong as refusal:
        raise InvalidArgument(str(refusal), reason="TOO_LONG") from refusal
    except Refused as refusal:
        raise InvalidArgument(str(refusal), reason="REFUSED") from refusal
    except NotFinite as failure:
        raise Internal(str(failure), reason="NON_FINITE") from failure
