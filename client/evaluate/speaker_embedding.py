"""Who speaks, as numbers: Resemblyzer, whose package has its weights."""

import warnings
from typing import Any

import numpy as np
import soxr

from client.pcm import Samples

RATE_HZ = 16_000
LOUDNESS_DB = -30.0
"""Of full scale; what Resemblyzer was trained on at least."""

Embedding = np.ndarray[Any, np.dtype[np.float32]]


class SpeakerEmbedding:
    """Turns speech into a vector of length 1: the nearer two are to each other, the more alike are the voices."""

    def __init__(self) -> None:
        with warnings.catch_warnings():
            # Resemblyzer's own imports of what scipy and setuptools mean to remove.
            warnings.filterwarnings("ignore", "Please import `binary_dilation`", DeprecationWarning)
            warnings.filterwarnings("ignore", "pkg_resources is deprecated", UserWarning)
            from resemblyzer import VoiceEncoder
            from resemblyzer.audio import trim_long_silences
        self._encoder = VoiceEncoder("cpu", verbose=False)
        self._trim = trim_long_silences

    def of(self, samples: Samples, rate_hz: int) -> Embedding | None:
        """The embedding [256] of mono sound; None where nobody speaks in it."""
        sound = soxr.resample(samples, rate_hz, RATE_HZ) if rate_hz != RATE_HZ else samples
        loudness = float(np.sqrt(np.mean(np.square(sound, dtype=np.float64)))) if len(sound) else 0.0
        if loudness == 0:
            return None
        voiced = self._trim(np.clip(sound * max(1.0, 10 ** (LOUDNESS_DB / 20) / loudness), -1, 1))
        if not len(voiced):
            return None
        embedding: Embedding = self._encoder.embed_utterance(voiced)
        return embedding if np.isfinite(embedding).all() else None
