"""The reasoner's part of a checkpoint: every spelling that is published, and errors that name what is wrong."""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from services.inference.checkpoint import Checkpoint, CheckpointError
from services.reasoner import weights
from services.reasoner.model import ReasonerModel

CPU = torch.device("cpu")
Rewrite = Callable[..., Checkpoint]


def load(checkpoint: Checkpoint) -> ReasonerModel:
    return weights.load(checkpoint, CPU, torch.float32)


def test_both_spellings_of_rope_give_one_config(golden_checkpoint: Checkpoint) -> None:
    new = copy.deepcopy(golden_checkpoint.config)
    old = copy.deepcopy(new)
    text = old["thinker_config"]["text_config"]
    text["rope_theta"] = text.pop("rope_parameters")["rope_theta"]
    text["rope_scaling"] = {"type": "mrope", "mrope_section": [1, 2, 3]}
    assert weights.read_config(old).stack == weights.read_config(new).stack


def test_both_names_of_the_audio_token_are_read(golden_checkpoint: Checkpoint) -> None:
    new = copy.deepcopy(golden_checkpoint.config)
    new["thinker_config"]["audio_token_id"] = new["thinker_config"].pop("audio_token_index")
    assert weights.read_config(new).audio_token_id == weights.read_config(golden_checkpoint.config).audio_token_id == 3


@pytest.mark.parametrize(
    "path",
    [
        ("im_end_token_id",),
        ("thinker_config", "text_config"),
        ("thinker_config", "audio_config"),
        ("thinker_config", "audio_token_index"),
    ],
)
def test_a_config_with_a_gap_is_refused_by_name(golden_checkpoint: Checkpoint, path: tuple[str, ...]) -> None:
    config = copy.deepcopy(golden_checkpoint.config)
    *parents, last = path
    section = config
    for parent in parents:
        section = section[parent]
    del section[last]
    with pytest.raises(CheckpointError, match=".".join(path) + " is missing"):
        weights.read_config(config)


def test_all_tensors_that_are_missing_are_listed(rewritten: Rewrite) -> None:
    gone = ["thinker.model.norm.weight", "thinker.lm_head.weight", "thinker.audio_tower.conv1.bias"]

    def drop(tensors: dict[str, Tensor], _: dict[str, Any]) -> None:
        for name in gone:
            del tensors[name]

    with pytest.raises(CheckpointError) as refused:
        load(rewritten(drop))
    assert all(f"missing: {name}" in str(refused.value) for name in gone)


def test_a_tensor_of_another_shape_is_refused(rewritten: Rewrite) -> None:
    def cut(tensors: dict[str, Tensor], _: dict[str, Any]) -> None:
        tensors["thinker.model.norm.weight"] = tensors["thinker.model.norm.weight"][:10].clone()

    with pytest.raises(CheckpointError, match=r"thinker.model.norm.weight is \[10\], expected \[48\]"):
        load(rewritten(cut))


def test_a_tied_head_is_the_embedding_unless_it_is_stored(rewritten: Rewrite, reasoner_model: ReasonerModel) -> None:
    def tie(tensors: dict[str, Tensor], config: dict[str, Any]) -> None:
        config["thinker_config"]["text_config"]["tie_word_embeddings"] = True
        del tensors["thinker.lm_head.weight"]

    def tie_and_store(_: dict[str, Tensor], config: dict[str, Any]) -> None:
        config["thinker_config"]["text_config"]["tie_word_embeddings"] = True

    def tie_the_whole(tensors: dict[str, Tensor], config: dict[str, Any]) -> None:
        config["thinker_config"]["tie_word_embeddings"] = True
        del tensors["thinker.lm_head.weight"]

    for way in (tie, tie_the_whole):
        assert load(rewritten(way)).lm_head.weight.equal(reasoner_model.embed_tokens.weight)
    assert load(rewritten(tie_and_store)).lm_head.weight.equal(reasoner_model.lm_head.weight)


def test_the_vision_tower_is_left_out_and_other_strangers_are_not(rewritten: Rewrite) -> None:
    def see(tensors: dict[str, Tensor], _: dict[str, Any]) -> None:
        tensors["thinker.visual.blocks.7.weight"] = torch.zeros(2)

    def stray(tensors: dict[str, Tensor], _: dict[str, Any]) -> None:
        tensors["thinker.model.layers.77.mlp.weight"] = torch.zeros(2)

    load(rewritten(see))
    with pytest.raises(CheckpointError, match=r"unexpected: thinker\.model\.layers\.77\.mlp\.weight"):
        load(rewritten(stray))


def test_published_tensors_are_those_that_are_stored(golden_checkpoint: Any, reasoner_model: ReasonerModel) -> None:
    published = weights.published_tensors(golden_checkpoint.config)
    stored = {n: t.shape for n, t in golden_checkpoint.tensors.items() if n.startswith("thinker.")}
    assert published == {n: shape for n, shape in stored.items() if not n.startswith("thinker.visual.")}
    assert len(published) == len(reasoner_model.state_dict())


def test_a_model_is_loaded_for_inference_in_the_asked_precision(golden_checkpoint: Checkpoint) -> None:
    model = weights.load(golden_checkpoint, CPU, torch.bfloat16)
    assert not model.training
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
    assert not any(p.requires_grad for p in model.parameters())
    assert model.stack.rope.inverse_frequencies.dtype == torch.float32


def test_folder_is_kept(rewritten: Rewrite, tmp_path: Path) -> None:
    """The tokenizer is read from where the weights are."""
    assert rewritten(lambda tensors, config: None).folder.parent == tmp_path
