"""The speech stage's part of a checkpoint: every spelling that is published, and errors that name what is wrong."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from services.inference.checkpoint import Checkpoint, CheckpointError
from services.inference.rope import Rope
from services.speech import weights
from services.speech.model import SpeechModel

CPU = torch.device("cpu")
STACKS = ["backbone_config", "decoder_config"]
TABLE = "decoder.audio_embedding.embed_audio_tokens.weight"
TIED = "backbone.audio_embedding.embed_audio_tokens.weight"
Rewrite = Callable[..., Checkpoint]


def load(checkpoint: Checkpoint, **options: Any) -> SpeechModel:
    return weights.load(checkpoint, CPU, torch.float32, **options)


def old_spelling(config: dict[str, Any]) -> dict[str, Any]:
    old = copy.deepcopy(config)
    for name in STACKS:
        parameters = old[name].pop("rope_parameters")
        old[name]["rope_theta"] = parameters.pop("rope_theta")
        old[name]["rope_scaling"] = parameters
    return old


def unscaled(config: dict[str, Any], *names: str) -> dict[str, Any]:
    plain = copy.deepcopy(config)
    for name in names:
        plain[name]["rope_parameters"] = {"rope_type": "default", "rope_theta": 500_000.0}
    return plain


def test_both_spellings_of_rope_give_one_config(golden_checkpoint: Checkpoint) -> None:
    new = golden_checkpoint.config
    assert weights.read_config(old_spelling(new)) == weights.read_config(new)


def test_stacks_without_rope_scaling_are_told(golden_checkpoint: Checkpoint) -> None:
    config = golden_checkpoint.config
    assert weights.unscaled_stacks(config) == weights.unscaled_stacks(old_spelling(config)) == []
    assert weights.unscaled_stacks(unscaled(config, "backbone_config")) == ["backbone_config"]
    assert weights.unscaled_stacks(unscaled(config, *STACKS)) == STACKS
    bare = copy.deepcopy(config)
    del bare["decoder_config"]["rope_parameters"]
    assert weights.unscaled_stacks(bare) == ["decoder_config"]
    bare["decoder_config"] |= {"rope_theta": 5e5, "rope_scaling": None}
    assert weights.unscaled_stacks(bare) == ["decoder_config"]


@pytest.mark.parametrize("name", STACKS)
def test_the_published_scaling_fills_a_gap_and_changes_nothing_else(golden_checkpoint: Checkpoint, name: str) -> None:
    """The golden config has the published values, so the option must bring them back where they are taken out."""
    config = golden_checkpoint.config
    gap = unscaled(config, name)
    assert weights.read_config(gap) != weights.read_config(config)
    assert weights.read_config(gap, "published") == weights.read_config(config)
    assert weights.read_config(config, "published") == weights.read_config(config)
    assert weights.read_config(old_spelling(config), "published") == weights.read_config(config)


def test_the_published_scaling_replaces_no_other(golden_checkpoint: Checkpoint) -> None:
    config = copy.deepcopy(golden_checkpoint.config)
    config["backbone_config"]["rope_parameters"]["factor"] = 8.0
    assert weights.read_config(config, "published").backbone.rope.parameters["factor"] == 8.0


def test_rope_scaling_reaches_the_model(rewritten: Rewrite, speech_model: SpeechModel) -> None:
    def take_out(_: dict[str, Tensor], config: dict[str, Any]) -> None:
        config |= unscaled(config, *STACKS)

    checkpoint = rewritten(take_out)
    plain, published = load(checkpoint), load(checkpoint, rope_scaling="published")
    for stack in ("backbone", "depth_decoder"):
        expected = frequencies(speech_model, stack)
        assert frequencies(published, stack).equal(expected)
        assert not frequencies(plain, stack).equal(expected)


def frequencies(model: SpeechModel, stack: str) -> Tensor:
    rope = getattr(model, stack).stack.rope
    assert isinstance(rope, Rope)
    return rope.inverse_frequencies


@pytest.mark.parametrize("places", [(TABLE,), (TIED,), (TABLE, TIED)])
def test_the_tied_table_is_read_from_either_place(
    rewritten: Rewrite, speech_model: SpeechModel, places: tuple[str, ...]
) -> None:
    def place(tensors: dict[str, Tensor], _: dict[str, Any]) -> None:
        table = tensors.pop(TABLE)
        tensors.pop(TIED, None)
        tensors.update({name: table.clone() for name in places})

    assert load(rewritten(place)).code_embedding.weight.equal(speech_model.code_embedding.weight)


def test_a_table_that_is_nowhere_is_missed_under_both_names(rewritten: Rewrite) -> None:
    def drop(tensors: dict[str, Tensor], _: dict[str, Any]) -> None:
        tensors.pop(TABLE)
        tensors.pop(TIED, None)

    with pytest.raises(CheckpointError, match=f"missing: {TABLE} or {TIED}"):
        load(rewritten(drop))


def test_all_tensors_that_are_missing_are_listed(rewritten: Rewrite) -> None:
    gone = ["backbone.model.norm.weight", "decoder.codebook_head.weight", "decoder.projection.weight"]

    def drop(tensors: dict[str, Tensor], _: dict[str, Any]) -> None:
        for name in [*gone, "thinker.model.embed_tokens.weight"]:
            del tensors[name]

    with pytest.raises(CheckpointError) as refused:
        load(rewritten(drop))
    for name in [*gone, "thinker.model.embed_tokens.weight"]:
        assert f"missing: {name}" in str(refused.value)


def test_a_stranger_among_the_stages_tensors_is_refused(rewritten: Rewrite) -> None:
    def stray(tensors: dict[str, Tensor], _: dict[str, Any]) -> None:
        tensors["decoder.model.layers.9.mlp.weight"] = torch.zeros(2)

    with pytest.raises(CheckpointError, match=r"unexpected: decoder\.model\.layers\.9\.mlp\.weight"):
        load(rewritten(stray))


@pytest.mark.parametrize(
    "path",
    [
        ("audio_num_codebooks",),
        ("text_start_token_id",),
        ("text_end_token_id",),
        ("backbone_config", "vocab_size"),
        ("codec_config", "codebook_size"),
        ("decoder_config",),
        ("thinker_config", "text_config", "vocab_size"),
    ],
)
def test_a_config_with_a_gap_is_refused_by_name(golden_checkpoint: Checkpoint, path: tuple[str, ...]) -> None:
    config = copy.deepcopy(golden_checkpoint.config)
    *parents, last = path
    section = config
    for parent in parents:
        section = section[parent]
    del section[last]
    with pytest.raises(CheckpointError, match=r"\.".join(path) + " is missing"):
        weights.read_config(config)


def test_widths_that_do_not_match_are_refused(golden_checkpoint: Checkpoint) -> None:
    config = copy.deepcopy(golden_checkpoint.config)
    config["decoder_config"]["audio_embedding_dim"] = 32
    with pytest.raises(CheckpointError, match="audio_embedding_dim is 32; expected the backbone's hidden_size, 48"):
        weights.read_config(config)


def test_published_tensors_are_those_that_are_stored(golden_checkpoint: Any) -> None:
    stored = {
        name: tensor.shape
        for name, tensor in golden_checkpoint.tensors.items()
        if name.startswith(("backbone.", "decoder.")) and name != TIED
    }
    assert weights.published_tensors(golden_checkpoint.config) == stored


def test_depth_positions_reach_the_model(golden_checkpoint: Checkpoint) -> None:
    hidden, first = torch.randn(20, 48, generator=torch.Generator().manual_seed(0)), torch.arange(20)
    codes = []
    for positions in ("reference", "training"):
        model = load(golden_checkpoint, depth_positions=positions)
        codes.append(depth_codes(model, hidden, first))
    assert not codes[0].equal(codes[1])


def depth_codes(model: SpeechModel, hidden: Tensor, first: Tensor) -> Tensor:
    from services.inference.sampling import Draw

    zeros = torch.zeros(len(hidden), dtype=torch.int64)
    how, cache = Draw(torch.zeros(len(hidden)), zeros, zeros, 0), model.depth_decoder.cache(len(hidden))
    return model.depth_decoder.decode(hidden, first, model.code_embedding, model.config.code_count, how, None, cache)


def test_a_model_is_loaded_for_inference_in_the_asked_precision(golden_checkpoint: Checkpoint) -> None:
    model = weights.load(golden_checkpoint, CPU, torch.bfloat16)
    assert not model.training
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
    assert not any(p.requires_grad for p in model.parameters())
    assert frequencies(model, "backbone").dtype == torch.float32
