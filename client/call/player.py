"""A loudspeaker that is not there: what a listener would hear of sound that comes when it comes."""

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np

from client.pcm import Samples


@dataclass
class Run:
    """Sound of one reply that is played without a gap, from a moment on, in seconds on the caller's clock."""

    turn_index: int
    started_at: float
    sample_rate_hz: int
    sample_count: int = 0
    pieces: list[Samples] = field(default_factory=list)

    @property
    def ends_at(self) -> float:
        """When its last sample has been played."""
        return self.started_at + self.sample_count / self.sample_rate_hz

    def played_count(self, now: float) -> int:
        """Samples that have been played."""
        return min(self.sample_count, max(0, round((now - self.started_at) * self.sample_rate_hz)))

    def cut(self, sample_count: int) -> None:
        """Forgets what comes after so many samples."""
        self.sample_count = sample_count
        if self.pieces:
            self.pieces = [np.concatenate(self.pieces)[:sample_count]]


class Player:
    """Plays sound as soon as it comes, and silence while there is none.

    `keeps_sound`: whether the runs keep their samples, for a recording.
    """

    def __init__(self, sample_rate_hz: int, *, keeps_sound: bool) -> None:
        self.sample_rate_hz = sample_rate_hz
        self.runs: list[Run] = []
        self._keeps_sound = keeps_sound

    def hear(self, turn_index: int, samples: Samples, now: float) -> float:
        """Sound has come; returns for how many seconds this reply was silent because it had not."""
        last = self.runs[-1] if self.runs else None
        is_playing = last is not None and last.ends_at >= now - 0.5 / self.sample_rate_hz
        if last is None or last.turn_index != turn_index or not is_playing:
            started_at = last.ends_at if last is not None and is_playing else now
            self.runs.append(Run(turn_index, started_at, self.sample_rate_hz))
        run = self.runs[-1]
        run.sample_count += len(samples)
        if self._keeps_sound:
            run.pieces.append(samples)
        return now - last.ends_at if last is not None and last.turn_index == turn_index and not is_playing else 0.0

    def stop(self, now: float) -> None:
        """Silence from now on: what has not been played never will be."""
        while self.runs and self.runs[-1].ends_at > now:
            played = self.runs[-1].played_count(now)
            if played:
                self.runs[-1].cut(played)
                break
            self.runs.pop()

    def played_count(self, turn_index: int, now: float) -> int:
        """Samples of a reply that have been played."""
        return sum(run.played_count(now) for run in self._runs_of(turn_index))

    def _runs_of(self, turn_index: int) -> Iterator[Run]:
        """The runs of a reply, last first; replies are played one after the other."""
        for run in reversed(self.runs):
            if run.turn_index == turn_index:
                yield run
            elif run.turn_index < turn_index:
                return
