"""Log-mel features of what the user said, as it comes."""

import math
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import WhisperFeatureExtractor

from services.inference.checkpoint import CheckpointError
from services.inference.slots import Refused

FRAMES_AT_ONCE = 20
"""Frames of one computation, 0.2 s. Always as many: a product or a transform of another width may round otherwise, and
then a frame's bits would hang on how its clip was cut."""

_LEAST_POWER = 1e-10
_RANGE = 8.0
"""Powers of ten that a clip's features reach below its loudest."""


class MelFeatures:
    """The checkpoint's feature extractor, without the silence up to 300 s that the reference pads every clip with."""

    def __init__(self, folder: Path) -> None:
        try:
            extractor = WhisperFeatureExtractor.from_pretrained(folder, local_files_only=True)
        except (OSError, ValueError, KeyError) as error:
            raise CheckpointError(f"{folder}: preprocessor_config.json can't be read: {error}") from error
        if extractor.dither:
            raise CheckpointError(f"{folder}: dither is {extractor.dither}; expected 0: nothing may hang on chance")
        self.sample_rate_hz = int(extractor.sampling_rate)
        self.hop = int(extractor.hop_length)
        self.longest_clip = int(extractor.n_samples)
        """Samples of the longest clip: 300 s."""
        self._transform_size = int(extractor.n_fft)
        self._window = torch.hann_window(self._transform_size)
        self._filters = torch.from_numpy(extractor.mel_filters).to(torch.float32).T

    @property
    def look_ahead(self) -> int:
        """Samples that a frame sees on either side of its place."""
        return self._transform_size // 2

    @property
    def samples_at_once(self) -> int:
        """Samples that the frames of one computation see."""
        return (FRAMES_AT_ONCE - 1) * self.hop + self._transform_size

    def frame_count(self, sample_count: int) -> int:
        """Mel frames of a clip."""
        return math.ceil(sample_count / self.hop)

    def log_powers(self, samples: NDArray[np.float32]) -> Tensor:
        """samples [samples_at_once] → log10 of the powers of frames, [mel bins, FRAMES_AT_ONCE], before any floor."""
        spectrum = torch.stft(
            torch.from_numpy(samples),
            self._transform_size,
            self.hop,
            window=self._window,
            center=False,
            return_complex=True,
        )
        return (self._filters @ (spectrum.abs() ** 2)).clamp(min=_LEAST_POWER).log10()

    def extract(self, samples: NDArray[np.float32]) -> Tensor:
        """samples [n ≤ 300 s] float32 in [-1, 1] at `sample_rate_hz` → log-mel [mel bins, ceil(n / hop)] float32.

        Equal to padding the clip to the full 300 s: frames that touch the clip see zeros after it, and the loudest
        frame, which sets the floor, is among them (model.md C.2).
        """
        clip = ClipFeatures(self)
        clip.add(samples)
        clip.end()
        while clip.advance():
            pass
        return clip.features(0, clip.final_count)


class ClipFeatures:
    """The features of a clip that may still be coming.

    A frame is final when all that it sees has come. Its features are not: they are cut off at a floor below the loudest
    frame of the whole clip, so what comes later may raise it.
    """

    def __init__(self, mel: MelFeatures) -> None:
        self._mel = mel
        self._sample_count = 0
        # Samples from the first on that the next computation sees, and those that came since.
        self._samples = np.empty(0, np.float32)
        self._arrived: list[NDArray[np.float32]] = []
        self._waiting_count = 0
        self._log_powers: list[Tensor] = []
        self._highest = -math.inf
        # Computations in all, once that is known.
        self._total: int | None = None

    def add(self, samples: NDArray[np.float32]) -> None:
        """Takes the next samples."""
        assert self._total is None, "the clip has ended"
        self._arrived.append(samples)
        self._sample_count += len(samples)
        self._waiting_count += len(samples)

    def end(self) -> None:
        """Says that the clip is complete: what follows is silence up to 300 s, and there the sound is mirrored."""
        mel, longest = self._mel, self._mel.longest_clip
        assert self._sample_count <= longest, "a longer clip is refused when it comes"
        touched = min(math.ceil((self._sample_count + mel.look_ahead) / mel.hop), longest // mel.hop)
        self._total = math.ceil(touched / FRAMES_AT_ONCE)
        seen = (self._total * FRAMES_AT_ONCE - 1) * mel.hop + mel.look_ahead
        self._arrived.append(np.zeros(min(seen, longest) - self._sample_count, np.float32))
        self._join()
        if (beyond := seen - longest) > 0:
            self._samples = np.concatenate((self._samples, self._samples[-2 : -2 - beyond : -1]))

    @property
    def can_advance(self) -> bool:
        """Whether the next frames are there to be computed."""
        if self._total is not None:
            return len(self._log_powers) < self._total
        mirrored = 0 if self._log_powers else self._mel.look_ahead
        return self._waiting_count + mirrored >= self._mel.samples_at_once

    def advance(self) -> bool:
        """Computes the next FRAMES_AT_ONCE frames; False when their samples are not all there.

        Raises Refused for sound that is no number any more as a power.
        """
        if not self.can_advance:
            return False
        mel = self._mel
        if len(self._samples) < mel.samples_at_once:
            self._join()
        if not self._log_powers:
            self._samples = np.concatenate((self._samples[mel.look_ahead : 0 : -1], self._samples))
        computed = mel.log_powers(self._samples[: mel.samples_at_once])
        if not math.isfinite(highest := float(computed.max())):
            # In the cache it would spoil every later reply of the slot: a mask does not hide what is no number.
            raise Refused("the sound is too loud: its power is beyond float32; full scale is 1.0")
        self._highest = max(self._highest, highest)
        self._log_powers.append(computed)
        self._samples = self._samples[FRAMES_AT_ONCE * mel.hop :]
        self._waiting_count = len(self._samples) + sum(map(len, self._arrived))
        if len(self._log_powers) == self._total:
            self._samples = np.empty(0, np.float32)
        return True

    @property
    def final_count(self) -> int:
        """Frames that are final, from the first."""
        return min(len(self._log_powers) * FRAMES_AT_ONCE, self._mel.frame_count(self._sample_count))

    @property
    def floor(self) -> float:
        """What the features are cut off at so far, as log10 of a power."""
        return self._highest - _RANGE

    def lowest(self, first: int, end: int) -> float:
        """The least log10 of a power of final frames `first` ..< `end`: a floor below it changes nothing there."""
        return float(self._cut(first, end).min())

    def features(self, first: int, end: int) -> Tensor:
        """Features of final frames `first` ..< `end`, [mel bins, end - first], by the floor so far."""
        return (self._cut(first, end).clamp(min=self.floor) + 4.0) / 4.0

    def _cut(self, first: int, end: int) -> Tensor:
        if first == end:
            return self._mel._filters.new_empty((len(self._mel._filters), 0))
        begin = first // FRAMES_AT_ONCE
        joined = torch.cat(self._log_powers[begin : -(-end // FRAMES_AT_ONCE)], dim=1)
        return joined[:, first - begin * FRAMES_AT_ONCE : end - begin * FRAMES_AT_ONCE]

    def _join(self) -> None:
        self._samples = np.concatenate((self._samples, *self._arrived))
        self._arrived = []
