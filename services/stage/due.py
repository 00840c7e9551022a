"""The deadline that travels with a stream."""

from services.runtime.errors import InvalidArgument

MAXIMUM_SECONDS = 3600.0


def check_due(seconds: float) -> float:
    """The `due_seconds` of an open; InvalidArgument where it is out of range or no number."""
    if not 0 <= seconds <= MAXIMUM_SECONDS:
        raise InvalidArgument(
            f"open.due_seconds must be 0 to {MAXIMUM_SECONDS:g}, got {seconds:g}", field="open.due_seconds"
        )
    return seconds
