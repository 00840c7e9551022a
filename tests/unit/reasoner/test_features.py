"""Mel features: those of the reference, which pads every clip to 300 s."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import WhisperFeatureExtractor

from services.reasoner.features import MelFeatures
from tests.conftest import GOLDEN, GoldenCase

MAXIMUM_SAMPLES = 4_800_000


@pytest.fixture(scope="module")
def extractor() -> WhisperFeatureExtractor:
    return WhisperFeatureExtractor.from_pretrained(Path(GOLDEN / "checkpoint"), local_files_only=True)


def noise(count: int, loudness: float = 0.1) -> np.ndarray:
    return np.random.default_rng(count).normal(0, loudness, count).astype(np.float32)


def reference(extractor: WhisperFeatureExtractor, samples: np.ndarray) -> Tensor:
    """The reference's features of a clip: padded to the full 300 s, then cut to the frames that its mask keeps."""
    features = extractor(samples, sampling_rate=16_000, return_attention_mask=True, return_tensors="pt")
    assert features["input_features"].shape == (1, 128, 30_000)
    return features["input_features"][0, :, : int(features["attention_mask"].sum())]


@pytest.mark.parametrize("count", [321, 400, 16_000, 33_333])
def test_features_equal_those_of_the_padded_clip(
    mel_features: MelFeatures, extractor: WhisperFeatureExtractor, count: int
) -> None:
    samples = noise(count)
    torch.testing.assert_close(mel_features.extract(samples), reference(extractor, samples), rtol=0, atol=1e-4)


def test_a_clip_of_300_seconds_equals_too(mel_features: MelFeatures, extractor: WhisperFeatureExtractor) -> None:
    """There is no room for zeros after it: its end is mirrored."""
    samples = noise(MAXIMUM_SAMPLES)
    torch.testing.assert_close(mel_features.extract(samples), reference(extractor, samples), rtol=0, atol=1e-4)


def shapes() -> dict[str, np.ndarray]:
    silence = np.zeros(5_000, np.float32)
    loud_end, loud_start, click_at_the_end = noise(5_000, 1e-4), noise(5_000, 1e-4), silence.copy()
    loud_end[-500:] *= 1e4
    loud_start[:500] *= 1e4
    click_at_the_end[-1] = 1.0
    return {
        "silence": silence,
        "loud end": loud_end,
        "loud start": loud_start,
        "click at the very end": click_at_the_end,
        "constant": np.full(5_000, 0.5, np.float32),
        "clipped": np.sign(noise(5_000)),
    }


@pytest.mark.parametrize("shape", shapes())
def test_the_floor_is_set_by_the_loudest_frame_wherever_it_is(
    mel_features: MelFeatures, extractor: WhisperFeatureExtractor, shape: str
) -> None:
    samples = shapes()[shape]
    torch.testing.assert_close(mel_features.extract(samples), reference(extractor, samples), rtol=0, atol=1e-4)


def test_what_follows_a_clip_is_silence(mel_features: MelFeatures) -> None:
    """A clip and the same clip with zeros after it have the same features, as far as both go."""
    samples = noise(16_123)
    longer = np.concatenate((samples, np.zeros(7_777, np.float32)))
    features = mel_features.extract(samples)
    torch.testing.assert_close(mel_features.extract(longer)[:, : features.shape[1]], features, rtol=0, atol=1e-5)


@pytest.mark.parametrize("count", [1, 159, 160, 161, 320, 321, 16_000, 33_333])
def test_a_clip_has_a_frame_for_every_10_ms_begun(mel_features: MelFeatures, count: int) -> None:
    frames = (count + 159) // 160
    features = mel_features.extract(noise(count))
    assert features.shape == (128, frames)
    assert features.dtype == torch.float32
    assert mel_features.frame_count(count) == frames


def test_samples_are_left_as_they_were(mel_features: MelFeatures, golden_cases: dict[str, GoldenCase]) -> None:
    samples = golden_cases["short_speech"].clips[0]
    before = samples.copy()
    mel_features.extract(samples)
    assert (samples == before).all()


def test_rate_and_hop_are_the_checkpoints(mel_features: MelFeatures) -> None:
    assert (mel_features.sample_rate_hz, mel_features.hop) == (16_000, 160)
