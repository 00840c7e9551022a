"""How fast a reply's sound is made."""


class MakingSpeed:
    """Time in which sound was made ÷ how long it lasts: the RTF without the time to the first sound.

    Only sound that is never held back counts: that of the first `free_seconds`, which a reply may be ahead of its
    listener. What was there first is what the time runs from, so it counts neither.
    """

    def __init__(self, *, frame_seconds: float, free_seconds: float) -> None:
        self._frame_seconds = frame_seconds
        self._free_seconds = free_seconds
        self._began_at = 0.0
        self._began_count = 0
        self._made_count = 0
        # Frames after the first ones that were not held back, and the time that they took.
        self._free_count = 0
        self._took_seconds = 0.0

    def made(self, now: float, frame_count: int) -> None:
        """The sound of so many more frames is there at `now`."""
        if not self._made_count:
            self._began_at, self._began_count = now, frame_count
        self._made_count += frame_count
        if self._made_count * self._frame_seconds <= self._free_seconds:
            self._free_count, self._took_seconds = self._made_count - self._began_count, now - self._began_at

    @property
    def rtf(self) -> float | None:
        """Below 1 is faster than real time; None while there is nothing to tell it from."""
        return self._took_seconds / (self._free_count * self._frame_seconds) if self._free_count > 0 else None
