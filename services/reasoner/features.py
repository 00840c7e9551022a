"""Log-mel features of what the user said."""

import math
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from transformers import WhisperFeatureExtractor

from services.inference.checkpoint import CheckpointError


class MelFeatures:
    """The checkpoint's feature extractor, without the silence up to 300 s that the reference pads every clip with."""

    def __init__(self, folder: Path) -> None:
        try:
            self._extractor = WhisperFeatureExtractor.from_pretrained(folder, local_files_only=True)
        except (OSError, ValueError, KeyError) as error:
            raise CheckpointError(f"{folder}: preprocessor_config.json can't be read: {error}") from error
        self.sample_rate_hz = int(self._extractor.sampling_rate)
        self.hop = int(self._extractor.hop_length)

    def frame_count(self, sample_count: int) -> int:
        """Mel frames of a clip."""
        return math.ceil(sample_count / self.hop)

    def extract(self, samples: np.ndarray) -> Tensor:
        """samples [n ≤ 300 s] float32 in [-1, 1] at `sample_rate_hz` → log-mel [mel bins, ceil(n / hop)] float32.

        Equal to padding the clip to the full 300 s: frames that touch the clip see zeros after it, and the loudest
        frame, which sets the floor, is among them (model.md C.2).
        """
        frames = self.frame_count(len(samples))
        # Zeros so far that the extractor's reflection at the end mirrors only zeros, plus a frame that it drops. At the
        # full length there is no room for them, and the reference mirrors the clip itself.
        enough = (frames + 1) * self.hop + 2 * int(self._extractor.n_fft)
        padded = np.zeros(min(enough, int(self._extractor.n_samples)), dtype=np.float32)
        padded[: len(samples)] = samples
        mel = self._extractor(
            padded, sampling_rate=self.sample_rate_hz, padding="do_not_pad", truncation=False, return_tensors="pt"
        )
        features: Tensor = mel["input_features"][0, :, :frames]
        return features.to(torch.float32)
