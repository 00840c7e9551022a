"""Rope: what a config says, in either spelling, and the angles it gives."""

from typing import Any

import pytest
import torch
from transformers import LlamaConfig
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding, apply_rotary_pos_emb

from services.inference.rope import Rope, RopeSettings, rope_settings, rotate

LLAMA3 = {
    "factor": 32.0,
    "low_freq_factor": 0.125,
    "high_freq_factor": 0.5,
    "original_max_position_embeddings": 1024,
}
# The same settings in the spellings that published configs have.
SPELLINGS: dict[str, list[dict[str, Any]]] = {
    "plain": [
        {"rope_theta": 5e5},
        {"rope_theta": 5e5, "rope_scaling": None},
        {"rope_theta": 5e5, "rope_scaling": {"type": "default"}},
        {"rope_parameters": {"rope_type": "default", "rope_theta": 5e5}},
        {"rope_parameters": {"rope_theta": 5e5}, "rope_scaling": None},
    ],
    "llama3": [
        {"rope_theta": 5e5, "rope_scaling": {"rope_type": "llama3", **LLAMA3}},
        {"rope_theta": 5e5, "rope_scaling": {"type": "llama3", **LLAMA3}},
        {"rope_parameters": {"rope_type": "llama3", "rope_theta": 5e5, **LLAMA3}},
    ],
    "several axes": [
        {"rope_theta": 1e6, "rope_scaling": {"type": "mrope", "mrope_section": [1, 2, 3]}},
        {"rope_theta": 1e6, "rope_scaling": {"rope_type": "default", "type": "default", "mrope_section": [1, 2, 3]}},
        {"rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [1, 2, 3]}},
    ],
}


def read(spelling: dict[str, Any], head_dim: int = 16) -> RopeSettings:
    return rope_settings({"max_position_embeddings": 2048, **spelling}, head_dim=head_dim, default_theta=1e4)


@pytest.mark.parametrize("kind", SPELLINGS)
def test_every_spelling_means_the_same(kind: str) -> None:
    first, *others = (read(spelling) for spelling in SPELLINGS[kind])
    assert all(other == first for other in others)


def test_theta_is_the_familys_where_the_config_has_none() -> None:
    assert read({}).parameters == {"rope_type": "default", "rope_theta": 1e4}


def test_the_config_is_left_as_it_was() -> None:
    section = {
        "max_position_embeddings": 64,
        "rope_theta": 1e6,
        "rope_scaling": {"type": "mrope", "mrope_section": [2]},
    }
    before = {**section, "rope_scaling": dict(section["rope_scaling"])}
    rope_settings(section, head_dim=16, default_theta=1e4)
    assert section == before


@pytest.mark.parametrize("head_dim", [12, 16, 64, 128])
@pytest.mark.parametrize("kind", ["plain", "llama3"])
def test_angles_equal_those_of_transformers(kind: str, head_dim: int) -> None:
    settings = read(SPELLINGS[kind][0], head_dim)
    config = LlamaConfig(
        hidden_size=head_dim,
        num_attention_heads=1,
        head_dim=head_dim,
        max_position_embeddings=2048,
        rope_parameters=settings.parameters,
    )
    positions = torch.tensor([[0, 1, 2, 7, 500, 2047], [5, 5, 5, 0, 0, 1]])
    cosines, sines = Rope(settings)(positions)
    expected_cosines, expected_sines = LlamaRotaryEmbedding(config)(torch.zeros(1), positions)
    torch.testing.assert_close(cosines[:, :, 0], expected_cosines, rtol=0, atol=1e-6)
    # The first half is signed for `rotate`, which adds where the formula subtracts.
    signs = torch.tensor([-1.0, 1.0]).repeat_interleave(head_dim // 2)
    torch.testing.assert_close(sines[:, :, 0], signs * expected_sines, rtol=0, atol=1e-6)


@pytest.mark.parametrize("head_dim", [12, 64])
def test_rotation_equals_that_of_transformers(head_dim: int) -> None:
    rope = Rope(read(SPELLINGS["plain"][0], head_dim))
    positions = torch.tensor([[0, 1, 2, 7, 500], [2047, 5, 5, 0, 1]])
    cosines, sines = rope(positions)
    angles = positions[..., None].float() * rope.inverse_frequencies
    angles = torch.cat((angles, angles), dim=-1)
    queries, keys = torch.randn(2, 2, 3, 5, head_dim, generator=torch.Generator().manual_seed(0))
    expected = apply_rotary_pos_emb(queries, keys, angles.cos(), angles.sin())
    for x, rotated in zip((queries, keys), expected, strict=True):
        turned = rotate(x.transpose(1, 2), cosines, sines).transpose(1, 2)
        torch.testing.assert_close(turned, rotated, rtol=0, atol=1e-5)


def test_rotation_leaves_its_input_and_the_angles_as_they_were() -> None:
    """The angles are shared by all layers of a run."""
    given = (
        torch.randn(1, 4, 2, 16, generator=torch.Generator().manual_seed(0)),
        *Rope(read({}))(torch.arange(4)[None]),
    )
    before = [tensor.clone() for tensor in given]
    rotate(*given)
    assert all(tensor.equal(copy) for tensor, copy in zip(given, before, strict=True))


def test_the_two_published_rules_are_one() -> None:
    """model.md A.3: backbone's and depth decoder's numbers collapse to the same rule."""
    depth = {**LLAMA3, "low_freq_factor": 0.001953125, "high_freq_factor": 0.0078125}
    depth["original_max_position_embeddings"] = 16
    one = Rope(read({"rope_theta": 5e5, "rope_scaling": {"rope_type": "llama3", **LLAMA3}}))
    other = Rope(read({"rope_theta": 5e5, "rope_scaling": {"rope_type": "llama3", **depth}}))
    torch.testing.assert_close(one.inverse_frequencies, other.inverse_frequencies)


def test_scores_depend_on_the_distance_alone() -> None:
    rope = Rope(read({"rope_theta": 1e4}))
    generator = torch.Generator().manual_seed(0)
    query, key = torch.randn(2, 1, 1, 1, 16, generator=generator)

    def score(query_position: int, key_position: int) -> float:
        query_angles, key_angles = (rope(torch.tensor([[p]])) for p in (query_position, key_position))
        return float((rotate(query, *query_angles) * rotate(key, *key_angles)).sum())

    assert score(9, 4) == pytest.approx(score(105, 100), abs=1e-4)
    assert score(9, 4) != pytest.approx(score(9, 5), abs=1e-4)


def test_rotation_keeps_the_dtype_and_the_angles_stay_float32() -> None:
    cosines, sines = Rope(read({}))(torch.arange(4)[None])
    assert cosines.dtype == torch.float32
    assert rotate(torch.ones(1, 4, 2, 16, dtype=torch.bfloat16), cosines, sines).dtype == torch.bfloat16


def test_a_kind_that_there_is_not_is_refused_by_name() -> None:
    with pytest.raises(ValueError, match=r"rope_type is 'spiral'; expected one of default, .*llama3"):
        read({"rope_scaling": {"type": "spiral"}})
