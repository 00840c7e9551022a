"""Encoding, and the golden cases both ways."""

import json
import math
import wave
from pathlib import Path

import numpy as np
import pytest
import torch

from services.bench.plain_codec import plain_codec
from services.codec.config import CodecConfig
from services.codec.model import Codec
from services.codec.streaming_decoder import exact_float32
from tests.unit.codec.mimi_shapes import SHAPES

CASES = sorted((Path(__file__).parents[2] / "golden" / "tiny" / "cases").iterdir())


def read_wave(path: Path) -> np.ndarray:
    """The samples of a 16-bit file, full scale 1."""
    with wave.open(str(path)) as file:
        return np.frombuffer(file.readframes(file.getnframes()), "<i2").astype(np.float32) / 32768


def sound(samples: int, seed: int = 0) -> torch.Tensor:
    """Noise."""
    return torch.randn(samples, generator=torch.Generator().manual_seed(seed)) * 0.3


@pytest.mark.parametrize("case", CASES, ids=[case.name for case in CASES])
def test_golden_voices_encode_to_their_codes(golden_codec, case: Path) -> None:
    codes = golden_codec.encode(torch.from_numpy(read_wave(case / "voice.wav")))
    assert np.array_equal(codes.numpy(), np.load(case / "expected.npz")["voice_codes"])


@pytest.mark.parametrize("case", CASES, ids=[case.name for case in CASES])
def test_golden_frames_decode_to_their_sound(golden_codec, case: Path) -> None:
    assert json.loads((case / "case.json").read_bytes())
    expected = np.load(case / "expected.npz")
    decoder = golden_codec.slot_decoder(1)
    decoded = np.concatenate(decoder.step({0: expected["spoken_frames"].tolist()})[0])
    np.testing.assert_allclose(decoded, expected["audio"], atol=1e-4, rtol=0)


@pytest.mark.parametrize("settings", SHAPES.values(), ids=SHAPES)
def test_encode_equals_transformers_for_every_shape_and_length(make_mimi, settings) -> None:
    mimi = make_mimi(3, **settings)
    plain = plain_codec(mimi)
    codec = Codec(mimi, mimi.config.num_quantizers - 1)
    for samples in (1, 2, codec.samples_per_frame - 1, codec.samples_per_frame, codec.samples_per_frame + 1, 1001):
        codes = codec.encode(sound(samples))
        assert codes.shape == (math.ceil(samples / codec.samples_per_frame), codec.codebook_count)
        with exact_float32():
            expected = plain.encode(sound(samples)[None, None], num_quantizers=codec.codebook_count).audio_codes
        assert torch.equal(codes, expected[0].T)


def test_codes_lie_within_the_codebook(golden_codec) -> None:
    codes = golden_codec.encode(sound(20 * golden_codec.samples_per_frame))
    assert 0 <= int(codes.min()) <= int(codes.max()) < golden_codec.codebook_size


def test_the_facts_come_from_the_config(make_mimi) -> None:
    codec = Codec(make_mimi(sampling_rate=4800, upsampling_ratios=[5, 3, 2]), 3)
    assert (codec.sample_rate_hz, codec.samples_per_frame, codec.codebook_count, codec.codebook_size) == (
        4800,
        2 * 5 * 3 * 2,
        3,
        32,
    )


@pytest.mark.parametrize("count", [0, 5])
def test_a_codebook_count_that_mimi_does_not_have_is_refused(make_mimi, count: int) -> None:
    with pytest.raises(ValueError, match=f"audio_num_codebooks is {count}; expected 1 ..= 4"):
        CodecConfig(make_mimi().config, count)
