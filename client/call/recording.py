"""What both sides of a call sounded like: the caller on the left, the mesh as its listener heard it on the right."""

import numpy as np
import soxr

from client.call.player import Player
from client.pcm import Samples


class Recording:
    """Two tracks that begin together; the caller's positions are in samples at `caller_rate_hz`."""

    def __init__(self, caller_rate_hz: int, player: Player) -> None:
        self._caller_rate_hz = caller_rate_hz
        self._player = player
        self._said: list[tuple[int, Samples]] = []

    @property
    def sample_rate_hz(self) -> int:
        """The rate of the mesh's sound, which the caller's is brought to."""
        return self._player.sample_rate_hz

    def say(self, position: int, samples: Samples) -> None:
        """The caller said something at a position."""
        self._said.append((position, samples))

    def stereo(self) -> Samples:
        """Samples of shape [samples, 2]."""
        caller = track(self._said)
        if self._caller_rate_hz != self.sample_rate_hz:
            caller = soxr.resample(caller, self._caller_rate_hz, self.sample_rate_hz)
        mesh = track(
            [(round(run.started_at * self.sample_rate_hz), np.concatenate(run.pieces)) for run in self._player.runs]
        )
        both = np.zeros((max(len(caller), len(mesh)), 2), np.float32)
        both[: len(caller), 0] = caller
        both[: len(mesh), 1] = mesh
        return both


def track(placed: list[tuple[int, Samples]]) -> Samples:
    """Sound from position 0 on with every piece at its place, and silence where there is none."""
    samples = np.zeros(max((position + len(piece) for position, piece in placed), default=0), np.float32)
    for position, piece in placed:
        samples[position : position + len(piece)] = piece
    return samples
