"""The codec's section of a config: the numbers that transformers reads from it, and what is refused."""

import re
from typing import Any

import pytest
from transformers import MimiConfig as PlainConfig

from services.codec.config import MimiConfig, mimi_config
from services.inference.checkpoint import CheckpointError, config_numbers
from tests.unit.codec.mimi_shapes import SHAPES, SMALL

BASE: dict[str, Any] = {"sampling_rate": 2400, "upsampling_ratios": [3, 2], "upsample_groups": 16}
ROPE = {"rope_parameters", "rope_scaling", "rope_theta"}


@pytest.mark.parametrize(
    "section",
    [
        {},
        BASE,
        {"hidden_size": 1024, "num_attention_heads": 4, "num_key_value_heads": 4},
        {"hidden_size": 256, "upsample_groups": 256, "num_filters": None, "head_dim": None, "upsampling_ratios": None},
        {"_frame_rate": 12.5},
        {"frame_rate": 6.25},
        *(SMALL | shape for shape in SHAPES.values()),
    ],
)
def test_numbers_are_those_that_transformers_reads(section) -> None:
    ours = mimi_config(section)
    # Null, and the frame rate as it is stored, are what only checkpoints have.
    theirs = PlainConfig(**{name.lstrip("_"): value for name, value in section.items() if value is not None})
    for name in MimiConfig.model_fields.keys() - ROPE:
        expected = getattr(theirs, name)
        assert getattr(ours, name) == (tuple(expected) if isinstance(expected, list) else expected), name
    assert ours.rope.parameters == dict(theirs.rope_parameters)
    assert (ours.rope.head_dim, ours.rope.max_positions) == (theirs.head_dim, theirs.max_position_embeddings)
    assert ours.positions_per_frame == theirs.latent_stride


def test_without_a_window_attention_reaches_as_far_as_there_are_positions() -> None:
    assert mimi_config({"sliding_window": None}).sliding_window == 8000
    assert mimi_config({"sliding_window": None, "max_position_embeddings": 99}).sliding_window == 99


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"use_causal_conv": False}, "use_causal_conv is False; only a causal codec can be streamed"),
        ({"trim_right_ratio": 0.5}, "trim_right_ratio is 0.5; expected 1.0"),
        ({"pad_mode": "reflect"}, "pad_mode is 'reflect'; expected 'constant' or 'replicate'"),
        ({"audio_channels": 2}, "audio_channels is 2; expected 1"),
        ({"frame_rate": 400.0}, "frames come at 400.0 Hz without upsampling, which isn't Mimi"),
        ({"frame_rate": 0}, "frame_rate is 0; expected greater than 0"),
        ({"sliding_window": 0}, "sliding_window is 0; expected greater than 0"),
        ({"hidden_act": "relu"}, "hidden_act is 'relu'; expected 'gelu'"),
        ({"num_hidden_layers": 0}, "num_hidden_layers is 0; expected greater than 0"),
        ({"codebook_size": "many"}, "codebook_size is 'many'; expected a valid integer"),
        ({"upsampling_ratios": [3, 0]}, "upsampling_ratios.1 is 0; expected greater than 0"),
        ({"upsampling_ratios": []}, "upsampling_ratios is"),
        ({"hidden_size": "wide"}, "hidden_size is 'wide'; expected a valid integer"),
        ({"num_semantic_quantizers": 32}, "num_semantic_quantizers is 32; expected fewer than num_quantizers, 32"),
        ({"codebook_dim": 8}, "codebook_dim is 8; expected vector_quantization_hidden_dimension, 256"),
        ({"compress": 65}, "compress is 65; expected at most num_filters, 64"),
        ({"upsample_groups": 3}, "upsample_groups is 3; expected a divisor of hidden_size, 512"),
        ({"num_key_value_heads": 3}, "num_key_value_heads is 3; expected a divisor of num_attention_heads, 8"),
        (
            {"kernel_size": 0, "norm_eps": "no"},
            "kernel_size is 0; expected greater than 0; norm_eps is 'no'; expected a",
        ),
        ({"head_dim": 5}, "head_dim is 5; expected an even number"),
        ({"rope_parameters": {"rope_type": "spiral"}}, "rope_type is 'spiral'; expected one of default, "),
    ],
)
def test_what_cannot_be_a_streaming_codec_is_refused_by_name(settings, said: str) -> None:
    mimi_config(BASE)
    refused = pytest.raises(CheckpointError, match=f"^config.json: codec_config: {re.escape(said)}")
    with refused, config_numbers("codec_config"):
        mimi_config(BASE | settings)
