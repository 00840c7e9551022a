"""Mel features: those of the reference, which pads every clip to 300 s."""

import json
from collections.abc import Iterator
from itertools import repeat
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from transformers import WhisperFeatureExtractor

from services.inference.checkpoint import CheckpointError
from services.inference.slots import Refused
from services.reasoner.features import FRAMES_AT_ONCE, ClipFeatures, MelFeatures
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


@pytest.mark.parametrize("short", [1, 20, 39, 40, 41, 200, 201, 400])
def test_clips_of_nearly_300_seconds_equal_too(
    mel_features: MelFeatures, extractor: WhisperFeatureExtractor, short: int
) -> None:
    """Their end is mirrored as well, beyond the zeros up to 300 s."""
    samples = noise(MAXIMUM_SAMPLES - short)
    ends = [mel_features.extract(samples)[:, -20:], reference(extractor, samples)[:, -20:]]
    torch.testing.assert_close(*ends, rtol=0, atol=1e-4)


def in_pieces(mel_features: MelFeatures, samples: np.ndarray, sizes: Iterator[int]) -> Tensor:
    """Features of a clip that comes in pieces of these sizes, computed as soon as they can be."""
    clip, start = ClipFeatures(mel_features), 0
    while start < len(samples):
        size = next(sizes)
        clip.add(samples[start : start + size])
        start += size
        while clip.advance():
            pass
    clip.end()
    while clip.advance():
        pass
    return clip.features(0, clip.final_count)


@pytest.mark.parametrize("size", [16, 320, 12_345])
@pytest.mark.parametrize("seconds", [0.3, 2.0, 60.0])
def test_a_clip_in_pieces_has_the_bits_of_the_whole(mel_features: MelFeatures, seconds: float, size: int) -> None:
    samples = noise(round(16_000 * seconds))
    samples[-1] = 1
    assert in_pieces(mel_features, samples, repeat(size)).equal(mel_features.extract(samples))


@given(count=st.integers(1, 30_000), chance=st.randoms(use_true_random=False))
def test_however_a_clip_is_cut_its_features_have_the_same_bits(
    mel_features: MelFeatures, count: int, chance: Any
) -> None:
    samples, sizes = noise(count), iter(lambda: chance.choice([1, 100, 3440, 10_000]), None)
    assert in_pieces(mel_features, samples, sizes).equal(mel_features.extract(samples))


def test_frames_are_final_as_soon_as_all_that_they_see_has_come(mel_features: MelFeatures) -> None:
    """In sets of FRAMES_AT_ONCE, of which the last sees 200 samples beyond its place."""
    clip, count = ClipFeatures(mel_features), 0
    for _ in range(3 * FRAMES_AT_ONCE):
        clip.add(noise(160))
        count += 160
        while clip.advance():
            pass
        finals = [n for n in range(0, 100, FRAMES_AT_ONCE) if (n - 1) * 160 + 200 <= count]
        assert clip.final_count == finals[-1]


def test_a_frame_that_is_final_changes_with_the_floor_alone(mel_features: MelFeatures) -> None:
    samples = noise(16_000, 1e-3)
    samples[4000:8000] = 0
    clip = ClipFeatures(mel_features)
    clip.add(samples)
    while clip.advance():
        pass
    before, floor, lowest = clip.features(0, 80), clip.floor, clip.lowest(0, 80)
    clip.add(noise(4000, 1.0))
    while clip.advance():
        pass
    assert lowest < clip.floor
    assert clip.floor > floor
    assert clip.features(0, 80).equal(before.clamp(min=float((torch.tensor(clip.floor) + 4) / 4)))
    assert not clip.features(0, 80).equal(before)


def test_sound_that_is_too_loud_is_refused(mel_features: MelFeatures) -> None:
    for loud in (1e25, 3e38):
        with pytest.raises(Refused, match="too loud"):
            mel_features.extract(np.full(5000, loud, np.float32))


def test_features_that_hang_on_chance_are_refused(tmp_path: Path) -> None:
    settings = json.loads((GOLDEN / "checkpoint" / "preprocessor_config.json").read_text())
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(settings | {"dither": 1e-4}))
    with pytest.raises(CheckpointError, match=r"dither is 0\.0001; expected 0"):
        MelFeatures(tmp_path)


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
