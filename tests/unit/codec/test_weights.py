"""Names, shapes and settings of a checkpoint's codec."""

import copy
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from services.codec import weights
from services.codec.weights import published_tensors, read_config, stored_names
from services.inference.checkpoint import CheckpointError, StoredCheckpoint
from services.inference.checkpoint_spec import open_checkpoint

CPU = torch.device("cpu")


@pytest.fixture
def stored(golden: StoredCheckpoint) -> dict[str, torch.Tensor]:
    """The golden codec's tensors as they are stored."""
    tensors = load_file(golden.folder / "model.safetensors")
    return {name: tensor for name, tensor in tensors.items() if name.startswith("codec_model.")}


@pytest.fixture
def write(golden: StoredCheckpoint, tmp_path: Path):
    """Writes a checkpoint with the golden config, or a changed one, and these tensors."""

    def writer(tensors: dict[str, torch.Tensor], config: dict[str, Any] | None = None) -> StoredCheckpoint:
        folder = tmp_path / "checkpoint"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        (folder / "config.json").write_text(json.dumps(config or golden.config))
        save_file(tensors, folder / "model.safetensors")
        return StoredCheckpoint(folder)

    return writer


def state(checkpoint: StoredCheckpoint) -> dict[str, torch.Tensor]:
    """What is loaded, by the module's names."""
    return weights.load(checkpoint, CPU).mimi.state_dict()


def test_both_generations_of_names_load_the_same_weights(golden, golden_codec, stored, write) -> None:
    published = golden_codec.mimi.state_dict()
    newest = {names[0]: names[-1] for names in stored_names(published).values()}
    assert sum(old != new for old, new in newest.items()) == len(golden_codec.mimi.state_dict()) - len(
        [name for name in published if name.startswith("quantizer.")]
    )
    nested = state(write({newest[name]: tensor for name, tensor in stored.items()}))
    for name, tensor in published.items():
        assert torch.equal(nested[name], tensor), name


def test_what_is_loaded_is_what_is_stored(golden_codec, stored) -> None:
    loaded = golden_codec.mimi.state_dict()
    for name, (published, *_) in stored_names(loaded).items():
        assert loaded[name].dtype == torch.float32
        assert torch.equal(loaded[name], stored[published].float()), name


def test_published_tensors_are_those_of_the_published_layout(golden, stored) -> None:
    assert published_tensors(golden.config) == {name: tuple(tensor.shape) for name, tensor in stored.items()}


def test_missing_unexpected_and_misshapen_tensors_are_all_listed(stored, write) -> None:
    missing = ["codec_model.upsample.conv.weight", "codec_model.decoder.layers.0.conv.bias"]
    for name in missing:
        del stored[name]
    stored["codec_model.decoder.layers.1.conv.bias"] = torch.zeros(3)
    stored["codec_model.downsample.conv.weight"] = torch.zeros(2, 2, 2)
    with pytest.raises(CheckpointError) as caught:
        state(write(stored))
    for name in (*missing, "codec_model.decoder.layers.1.conv.bias", "codec_model.downsample.conv.weight"):
        assert name in str(caught.value)


def test_other_stages_tensors_are_left_alone(stored, write) -> None:
    others = {"thinker.lm_head.weight": torch.zeros(1), "backbone.x": torch.zeros(1), "decoder.y": torch.zeros(1)}
    assert state(write(stored | others))
    with pytest.raises(CheckpointError, match=r"stranger\.weight"):
        state(write(stored | {"stranger.weight": torch.zeros(1)}))


def test_random_checkpoints_load() -> None:
    codec = weights.load(open_checkpoint("random:tiny:3"), CPU)
    assert codec.encode(torch.zeros(codec.samples_per_frame)).shape == (1, codec.codebook_count)
    assert all(tensor.isfinite().all() for tensor in codec.mimi.state_dict().values())


def changed(config: dict[str, Any], **settings: Any) -> dict[str, Any]:
    """A config with other codec settings."""
    config = copy.deepcopy(config)
    config["codec_config"] |= settings
    return config


def test_both_spellings_of_rope_settings_are_read(golden) -> None:
    old = changed(golden.config, rope_theta=500.0)
    del old["codec_config"]["rope_parameters"]
    new = changed(golden.config, rope_parameters={"rope_theta": 500.0, "rope_type": "default"})
    assert read_config(old).mimi.rope == read_config(new).mimi.rope


def test_what_else_published_configs_say_changes_nothing(golden, stored, write) -> None:
    further = {
        "_name_or_path": "kyutai/mimi",
        "architectures": ["MimiModel"],
        "dtype": "bfloat16",
        "frame_rate": 12.5,
        "is_encoder_decoder": False,
        "normalize": False,
        "return_dict": True,
        "torch_dtype": "bfloat16",
        "transformers_version": "4.57.1",
    }
    loaded = weights.load(write(stored, changed(golden.config, **further)), CPU)
    assert {tensor.dtype for tensor in loaded.mimi.state_dict().values()} == {torch.float32}
    assert loaded.samples_per_frame == 1920


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"use_causal_conv": False}, "use_causal_conv"),
        ({"num_quantizers": 4}, "audio_num_codebooks is 8"),
        ({"codebook_size": "many"}, "codebook_size"),
    ],
)
def test_settings_that_do_not_make_a_codec_are_refused_by_name(golden, settings, said: str) -> None:
    with pytest.raises(CheckpointError, match=said):
        read_config(changed(golden.config, **settings))


def test_a_config_without_a_codec_is_refused(golden) -> None:
    with pytest.raises(CheckpointError, match="codec_config"):
        read_config({key: value for key, value in golden.config.items() if key != "codec_config"})
