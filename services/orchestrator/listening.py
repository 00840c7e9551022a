"""Whose word ends a user turn: the client's, or a detector's that hears when the user speaks."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Protocol, TypeAlias

import numpy as np
from chroma_mesh.types.v1 import types_pb2
from numpy.typing import NDArray

from services.orchestrator.sound_formats import HEARD_RATE_HZ, HeardSound
from services.orchestrator.turn_detection import SpeechBegan, TurnDetector

# Sound kept beside the prefix padding: more than a detector needs to be sure that somebody speaks.
NOTICE_SECONDS = 1.0

Samples: TypeAlias = NDArray[np.float32]


@dataclass(frozen=True)
class TurnBegan:
    """A user turn begins at this sample of the session's input."""

    input_sample: int


@dataclass(frozen=True, eq=False)
class TurnHeard:
    """More of the turn: samples [count] at 16,000 Hz."""

    samples: Samples


@dataclass(frozen=True)
class TurnEnded:
    """The user turn ends at this sample of the session's input."""

    input_sample: int


Event: TypeAlias = TurnBegan | TurnHeard | TurnEnded


class Listening(Protocol):
    """Takes the session's sound as it comes, and says what of it belongs to a turn."""

    def hear(self, data: bytes) -> Iterator[Event]:
        """What the next packet, in the input format, says; raises InvalidArgument for one that is no sound."""
        ...

    def end_clip(self) -> Iterator[Event]:
        """Something is typed: what was said before it is complete."""
        ...

    def end_turn(self) -> Iterator[Event]:
        """The client says that the turn is over: what was held back of it."""
        ...


class ManualListening:
    """All sound belongs to the turn, which the client ends."""

    def __init__(self, input_format: types_pb2.AudioFormat) -> None:
        self._sound = HeardSound(input_format)

    def hear(self, data: bytes) -> Iterator[Event]:
        """The packet's sound."""
        yield TurnHeard(self._sound.hear(data))

    def end_clip(self) -> Iterator[Event]:
        """The rest of the clip."""
        yield TurnHeard(self._sound.end())

    def end_turn(self) -> Iterator[Event]:
        """The rest of the turn."""
        yield TurnHeard(self._sound.end())


class DetectedListening:
    """Sound belongs to a turn from where the detector says that it begins to where it ends; the rest is dropped.

    A turn that reaches the longest a turn may be, in seconds at that time, ends there, and the detector begins anew. So
    it does when the client ends a turn. The detector is asked in the event loop, some 0.1 ms of it for each 32 ms of
    sound: with a hundred sessions that listen a third of a core's time, so that a process takes about that many.
    """

    def __init__(
        self,
        input_format: types_pb2.AudioFormat,
        new_detector: Callable[[], TurnDetector],
        *,
        padding_ms: int,
        longest_seconds: Callable[[], float],
    ) -> None:
        self._sound = HeardSound(input_format)
        self._input_rate_hz = input_format.sample_rate_hz
        self._detector = new_detector()
        self._kept_count = round((padding_ms / 1000 + NOTICE_SECONDS) * HEARD_RATE_HZ)
        self._longest_seconds = longest_seconds
        # Sample 0 of the detector is sample `_origin` at 16,000 Hz; sample `_anchor` is the input's `_anchor_input`.
        self._origin = 0
        self._anchor = 0
        self._anchor_input = 0
        # Sound that belongs to no turn yet: its first sample, and the samples.
        self._first = 0
        self._recent: Samples = np.empty(0, np.float32)
        self._turn_start: int | None = None

    def hear(self, data: bytes) -> Iterator[Event]:
        """What the detector makes of the packet."""
        return self._take(self._sound.hear(data))

    def _take(self, samples: Samples) -> Iterator[Event]:
        self._recent = np.concatenate((self._recent, samples))
        end = self._first + len(self._recent)
        longest_count = self._longest_count
        for event in self._detector.hear(samples):
            sample = self._origin + event.sample
            if isinstance(event, SpeechBegan):
                self._turn_start = max(sample, self._first)
                self._drop_until(self._turn_start)
                yield TurnBegan(self._input_sample(self._turn_start))
            elif self._turn_start is not None:
                if sample - self._turn_start > longest_count:
                    break
                yield from self._end_at(sample)
        if self._turn_start is None:
            self._drop_until(end - self._kept_count)
        elif end - self._turn_start >= longest_count:
            # It may have become less than what was heard already.
            yield from self._end_at(max(self._turn_start + longest_count, self._first))
            rest = self._recent
            self._begin_anew()
            yield from self._take(rest)
        else:
            yield TurnHeard(self._take_until(end))

    def end_clip(self) -> Iterator[Event]:
        """Sound and its detector go on: a clip that is cut here loses nothing to the next."""
        return iter(())

    def end_turn(self) -> Iterator[Event]:
        """The rest of the turn, if the user is speaking, and its end."""
        if self._turn_start is None:
            return
        heard_count = self._sound.heard_sample_count
        self._recent = np.concatenate((self._recent, self._sound.end()))
        end = min(self._first + len(self._recent), max(self._turn_start + self._longest_count, self._first))
        yield TurnHeard(self._take_until(end))
        self._turn_start = None
        self._recent = np.empty(0, np.float32)
        self._first = self._anchor = end
        self._anchor_input += heard_count
        yield TurnEnded(self._anchor_input)
        self._begin_anew()

    @property
    def _longest_count(self) -> int:
        return round(self._longest_seconds() * HEARD_RATE_HZ)

    def _end_at(self, sample: int) -> Iterator[Event]:
        yield TurnHeard(self._take_until(sample))
        self._turn_start = None
        yield TurnEnded(self._input_sample(sample))

    def _begin_anew(self) -> None:
        self._detector.reset()
        self._origin = self._first
        self._recent = np.empty(0, np.float32)

    def _take_until(self, sample: int) -> Samples:
        taken = self._recent[: max(0, sample - self._first)]
        self._drop_until(sample)
        return taken

    def _drop_until(self, sample: int) -> None:
        count = min(max(0, sample - self._first), len(self._recent))
        self._recent = self._recent[count:].copy()  # a view would keep all of the sound
        self._first += count

    def _input_sample(self, sample: int) -> int:
        return self._anchor_input + round((sample - self._anchor) * self._input_rate_hz / HEARD_RATE_HZ)
