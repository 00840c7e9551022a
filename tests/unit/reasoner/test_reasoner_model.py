"""The reasoner's networks: the audio encoder block by block."""

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from services.reasoner.model import ReasonerModel, audio_token_count, reasoner_config


@pytest.fixture(autouse=True)
def _inference() -> Iterator[None]:
    with torch.inference_mode():
        yield


def mel(frames: int) -> Tensor:
    return torch.randn(128, frames, generator=torch.Generator().manual_seed(frames))


def encode_whole(model: ReasonerModel, features: Tensor) -> Tensor:
    """transformers' encoder on the clip at once; it cuts the blocks itself."""
    return model.audio_encoder(
        input_features=features, feature_lens=torch.tensor([features.shape[1]])
    ).last_hidden_state


def encode_blocks(model: ReasonerModel, features: Tensor) -> Tensor:
    return torch.cat([model.encode_block(block) for block in features.split(model.config.mel_block, dim=1)])


@pytest.mark.parametrize(
    "frames", [3, 4, 5, 6, 7, 31, 199, 200, 201, 202, 203, 204, 205, 230, 399, 400, 401, 402, 403, 777, 1000]
)
def test_blocks_joined_are_the_clip_encoded_at_once(reasoner_model: ReasonerModel, frames: int) -> None:
    features = mel(frames)
    joined = encode_blocks(reasoner_model, features)
    assert joined.shape == (audio_token_count(frames), reasoner_model.config.stack.hidden_size)
    torch.testing.assert_close(joined, encode_whole(reasoner_model, features), rtol=1e-4, atol=1e-5)


def test_a_block_does_not_see_the_others(reasoner_model: ReasonerModel) -> None:
    features = mel(600)
    changed = features.clone()
    changed[:, 200:] = 0
    assert encode_whole(reasoner_model, features)[:50].equal(encode_whole(reasoner_model, changed)[:50])
    assert reasoner_model.encode_block(features[:, :200]).equal(reasoner_model.encode_block(changed[:, :200]))


@pytest.mark.parametrize("frames", [1, 2])
def test_a_block_too_short_for_a_position_has_none(reasoner_model: ReasonerModel, frames: int) -> None:
    assert reasoner_model.encode_block(mel(frames)).shape == (0, reasoner_model.config.stack.hidden_size)


@pytest.mark.parametrize(
    ("frames", "tokens"), [(1, 0), (2, 0), (3, 1), (4, 1), (230, 57), (500, 125), (1000, 250), (30_000, 7500)]
)
def test_positions_of_a_clip(frames: int, tokens: int) -> None:
    assert audio_token_count(frames) == tokens


def test_blocks_of_any_clip_have_its_positions_in_sum() -> None:
    for frames in range(1, 2000):
        blocks = [min(200, frames - start) for start in range(0, frames, 200)]
        assert sum(audio_token_count(block) for block in blocks) == audio_token_count(frames)


def test_widths_that_do_not_match_are_refused(reasoner_model: ReasonerModel) -> None:
    text = {
        "hidden_size": 48,
        "num_attention_heads": 4,
        "num_hidden_layers": 1,
        "intermediate_size": 8,
        "rms_norm_eps": 1e-6,
        "max_position_embeddings": 64,
        "vocab_size": 8,
    }
    audio = reasoner_model.config.audio.to_dict() | {"output_dim": 32}
    with pytest.raises(ValueError, match="output_dim is 32; expected the language model's hidden_size, 48"):
        reasoner_config(text, audio, audio_token_id=1, end_token_id=2)
