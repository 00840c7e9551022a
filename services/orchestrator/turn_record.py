"""What the user says in a turn, as the journal gets it: in parts, while it is said."""

from collections.abc import Callable

from chroma_mesh.orchestrator.v1 import journal_pb2
from chroma_mesh.types.v1 import types_pb2

PART_BYTES = 64 * 1024
"""Two seconds of 16-bit sound."""

KeepPart = Callable[[int, bytes], None]
"""Takes a part's index, from 0, and its bytes."""


class TurnRecordParts:
    """A turn's record in parts: their bytes, one after the other, are a TurnRecord.

    A part is given away when it is large enough, for at the end of a turn the listener waits: a long turn leaves as
    little to be written then as a short one.
    """

    def __init__(self, keep: KeepPart) -> None:
        self.full_count = 0
        """Parts that were given away."""
        self.rest = bytearray()
        """What is in none of them yet."""
        self._keep = keep

    def add(self, part: types_pb2.ContentPart) -> None:
        """Takes what was said next."""
        # Messages of repeated fields are joined by joining their bytes.
        self.rest += journal_pb2.TurnRecord(pieces=[part]).SerializeToString()
        if len(self.rest) >= PART_BYTES:
            self._keep(self.full_count, bytes(self.rest))
            self.full_count += 1
            self.rest.clear()
