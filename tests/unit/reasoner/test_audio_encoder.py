"""The audio encoder block by block: equal to transformers', on a CPU as elsewhere, for every shape."""

import copy
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import Qwen2_5OmniAudioEncoderConfig
from transformers.models.qwen2_5_omni.modeling_qwen2_5_omni import Qwen2_5OmniAudioEncoder

from services.inference.checkpoint import CheckpointError, config_numbers
from services.inference.cpu.compiled_product import laid_out_count
from services.reasoner import audio_encoder
from services.reasoner.audio_encoder import AudioEncoder, AudioEncoderConfig, audio_token_count
from services.reasoner.compiled_encoder import CompiledEncoder
from services.reasoner.model import reasoner_config

# The published shape's proportions, and numbers that fill no vector and no block.
SHAPES: dict[str, dict[str, Any]] = {
    "even": {"d_model": 64, "encoder_attention_heads": 4, "encoder_ffn_dim": 256, "output_dim": 96},
    "odd": {"d_model": 42, "encoder_attention_heads": 3, "encoder_ffn_dim": 50, "output_dim": 21, "num_mel_bins": 17},
    "one head": {"d_model": 20, "encoder_attention_heads": 1, "encoder_ffn_dim": 5, "output_dim": 3},
    "short blocks": {
        "d_model": 32,
        "encoder_attention_heads": 2,
        "encoder_ffn_dim": 64,
        "output_dim": 32,
        "n_window": 6,
    },
}
every_shape = pytest.mark.parametrize("settings", SHAPES.values(), ids=SHAPES)

MEL_BLOCK = 200


@pytest.fixture(autouse=True)
def _inference() -> Iterator[None]:
    with torch.inference_mode():
        yield


def section(**settings: Any) -> dict[str, Any]:
    """A config's section."""
    return {"num_mel_bins": 128, "encoder_layers": 3, "n_window": MEL_BLOCK // 2, **settings}


def encoder_of(settings: dict[str, Any]) -> AudioEncoder:
    """An encoder with random weights."""
    with torch.inference_mode(False):
        made = AudioEncoder(AudioEncoderConfig(**section(**settings))).requires_grad_(False)
        refill(made, seed=0)
    return made


def refill(encoder: AudioEncoder, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    for parameter in encoder.parameters():
        parameter.copy_(torch.randn(parameter.shape, generator=generator) * parameter[0].numel() ** -0.5)


def reference(encoder: AudioEncoder, settings: dict[str, Any]) -> Qwen2_5OmniAudioEncoder:
    """transformers' encoder with the same weights."""
    made = Qwen2_5OmniAudioEncoder(Qwen2_5OmniAudioEncoderConfig(**section(**settings))).eval()
    made.load_state_dict(encoder.state_dict())
    return made


def encode_whole(encoder: Qwen2_5OmniAudioEncoder, mel: Tensor) -> Tensor:
    """A clip at once; transformers' encoder cuts the blocks itself."""
    encoded: Tensor = encoder(input_features=mel, feature_lens=torch.tensor([mel.shape[1]])).last_hidden_state
    return encoded


def encode_blocks(encoder: AudioEncoder, mel: Tensor) -> Tensor:
    return torch.cat([encoder(block) for block in mel.split(encoder.config.mel_block, dim=1)])


def features(encoder: AudioEncoder, frames: int) -> Tensor:
    return torch.randn(encoder.config.mel_bins, frames, generator=torch.Generator().manual_seed(frames))


@pytest.fixture(params=[True, False], ids=["compiled", "torch"])
def is_compiled(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    """Encoders run as they do on a CPU, or as they do elsewhere."""
    compiled: bool = request.param
    if not compiled:
        monkeypatch.setattr(audio_encoder, "is_compiled_for", lambda *_: False)
    return compiled


@every_shape
@pytest.mark.parametrize("frames", [3, 4, 5, 6, 31, 199, 200, 201, 202, 203, 204, 230, 401, 777])
def test_blocks_joined_are_the_clip_encoded_at_once(settings: dict[str, Any], frames: int, is_compiled: bool) -> None:
    encoder = encoder_of(settings)
    assert (encoder.compiled is not None) == is_compiled
    mel = features(encoder, frames)
    joined = encode_blocks(encoder, mel)
    assert joined.shape == (audio_token_count(frames), encoder.config.output_size)
    torch.testing.assert_close(joined, encode_whole(reference(encoder, settings), mel), rtol=1e-4, atol=1e-5)


@every_shape
@pytest.mark.parametrize("frames", [1, 2])
def test_a_block_too_short_for_a_position_has_none(settings: dict[str, Any], frames: int) -> None:
    encoder = encoder_of(settings)
    assert encoder(features(encoder, frames)).shape == (0, encoder.config.output_size)


@every_shape
def test_a_block_is_the_same_bits_whatever_was_encoded_before(settings: dict[str, Any]) -> None:
    encoder = encoder_of(settings)
    mel = features(encoder, encoder.config.mel_block)
    first = encoder(mel)
    encoder(torch.full_like(mel, torch.inf))
    assert encoder(mel).equal(first)
    assert encoder(mel[:, :9].clone()).equal(encoder(mel[:, :9]))


def test_weights_that_are_filled_or_moved_are_the_ones_that_are_used() -> None:
    encoder = encoder_of(SHAPES["even"])
    mel = features(encoder, 60)
    first = encoder(mel)
    with torch.inference_mode(False):
        copied = copy.deepcopy(encoder)
        refill(copied, seed=1)
    second = copied(mel)
    torch.testing.assert_close(second, encode_whole(reference(copied, SHAPES["even"]), mel), rtol=1e-4, atol=1e-5)
    assert encoder(mel).equal(first)
    assert not second.isclose(first, atol=0.1).all()
    halved = copied.to(torch.bfloat16)
    assert halved.compiled is None
    torch.testing.assert_close(halved(mel).float(), second, rtol=0.05, atol=0.1)
    assert isinstance(halved.to(torch.float32).compiled, CompiledEncoder)


@every_shape
def test_what_compiled_code_holds_was_counted(settings: dict[str, Any]) -> None:
    encoder = encoder_of(settings)
    assert encoder.compiled is not None
    assert encoder.compiled.number_count <= laid_out_count(encoder)


@pytest.mark.parametrize(
    ("frames", "tokens"), [(1, 0), (2, 0), (3, 1), (4, 1), (230, 57), (500, 125), (1000, 250), (30_000, 7500)]
)
def test_positions_of_a_clip(frames: int, tokens: int) -> None:
    assert audio_token_count(frames) == tokens


def test_blocks_of_any_clip_have_its_positions_in_sum() -> None:
    for frames in range(1, 2000):
        blocks = [min(200, frames - start) for start in range(0, frames, 200)]
        assert sum(audio_token_count(block) for block in blocks) == audio_token_count(frames)


@pytest.mark.parametrize(
    ("setting", "complaint"),
    [
        ({"activation_function": "relu"}, "activation_function is 'relu'; expected 'gelu'"),
        ({"encoder_attention_heads": 5}, "d_model is 64; expected an even multiple of its 5 heads"),
        ({"n_window": 99}, "n_window is 99; expected an even number"),
        ({"n_window": 0}, "n_window is 0; expected greater than 0"),
        ({"encoder_layers": 0}, "encoder_layers is 0; expected greater than 0"),
        ({"num_hidden_layers": 0}, "num_hidden_layers is 0; expected greater than 0"),
        (
            {"d_model": 2, "encoder_attention_heads": 1},
            "d_model is 2; expected .* 4 or more",
        ),
        ({"output_dim": "wide"}, "output_dim is 'wide'; expected a valid integer"),
    ],
)
def test_numbers_that_can_not_be_are_refused(setting: dict[str, Any], complaint: str) -> None:
    with pytest.raises(CheckpointError, match=complaint), config_numbers("thinker_config"):
        AudioEncoderConfig(**section(**SHAPES["even"] | setting))


@pytest.mark.parametrize(
    "other", [{"num_hidden_layers": 5}, {"hidden_size": 72}, {"num_attention_heads": 8}, {"intermediate_size": 33}]
)
def test_a_number_that_has_two_names_is_the_one_that_transformers_takes(other: dict[str, int]) -> None:
    settings = section(**SHAPES["even"] | other)
    theirs = Qwen2_5OmniAudioEncoderConfig(**settings)
    ours = AudioEncoderConfig(**settings)
    assert (ours.hidden_size, ours.layers, ours.heads, ours.intermediate_size) == (
        theirs.d_model, theirs.encoder_layers, theirs.encoder_attention_heads, theirs.encoder_ffn_dim
    )  # fmt: skip
    assert next(iter(other.values())) in (ours.hidden_size, ours.layers, ours.heads, ours.intermediate_size)


def test_numbers_that_a_config_leaves_out_are_those_of_transformers() -> None:
    theirs = Qwen2_5OmniAudioEncoderConfig(output_dim=2048)
    assert AudioEncoderConfig(output_dim=2048) == AudioEncoderConfig(**theirs.to_dict())


def test_widths_that_do_not_match_are_refused() -> None:
    text = {
        "hidden_size": 48,
        "num_attention_heads": 4,
        "num_hidden_layers": 1,
        "intermediate_size": 8,
        "rms_norm_eps": 1e-6,
        "max_position_embeddings": 64,
        "vocab_size": 8,
    }
    with pytest.raises(ValueError, match="output_dim is 96; expected the language model's hidden_size, 48"):
        reasoner_config(text, section(**SHAPES["even"]), audio_token_id=1, end_token_id=2)
