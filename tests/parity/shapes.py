"""Small checkpoints of other shapes than the golden one, and cases for them, made with the second oracle."""

import copy
import json
import math
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import torch
from oracle import Case, Oracle, write_case
from safetensors.torch import save_file

from services.codec.weights import published_tensors as codec_tensors
from services.reasoner.weights import published_tensors as reasoner_tensors
from services.speech.weights import published_tensors as speech_tensors

Changes = dict[str, Any]

_OLD_ROPE: Changes = {"rope_parameters": None, "rope_theta": 500000.0}
SHAPES: dict[str, Changes] = {
    # Plain rope in the old spelling, one key-value head, heads wider than the hidden size has room for.
    "plain_rope": {
        "thinker_config.text_config": {
            "hidden_size": 64, "intermediate_size": 80, "num_attention_heads": 6, "num_key_value_heads": 1,
            "head_dim": 16, "num_hidden_layers": 2, "layer_types": ["full_attention"] * 2,
            "rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [2, 3, 3]},
        },
        "thinker_config.audio_config": {
            "output_dim": 64, "d_model": 48, "encoder_attention_heads": 4, "encoder_layers": 1,
        },
        "backbone_config": {
            **_OLD_ROPE, "hidden_size": 64, "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 32,
            "num_hidden_layers": 4,
        },
        "decoder_config": {
            **_OLD_ROPE, "audio_embedding_dim": 64, "hidden_size": 48, "num_attention_heads": 3,
            "num_key_value_heads": 3, "head_dim": 16, "num_hidden_layers": 1,
        },
        "codec_config": {
            "upsampling_ratios": [4, 5, 6, 8], "num_filters": 6, "hidden_size": 48, "num_attention_heads": 3,
            "num_key_value_heads": 3, "num_hidden_layers": 1, "upsample_groups": 48, "sliding_window": 20,
        },
    },
    # Rope scaling in the old spelling, fewer and smaller codebooks than the codec has.
    "old_rope_scaling": {
        "": {"audio_num_codebooks": 5},
        "thinker_config.text_config": {
            "num_attention_heads": 3, "num_key_value_heads": 3, "head_dim": 16,
            "rope_parameters": None, "rope_theta": 1e6,
            "rope_scaling": {"mrope_section": [2, 3, 3], "rope_type": "default", "type": "default"},
        },
        "backbone_config": {
            **_OLD_ROPE, "audio_num_codebooks": 5, "vocab_size": 67, "num_hidden_layers": 1,
            "rope_scaling": {
                "type": "llama3", "factor": 8.0, "low_freq_factor": 0.125, "high_freq_factor": 0.5,
                "original_max_position_embeddings": 256,
            },
        },
        "decoder_config": {
            **_OLD_ROPE, "audio_num_codebooks": 5, "vocab_size": 67, "num_hidden_layers": 3,
            "rope_scaling": {
                "rope_type": "llama3", "factor": 4.0, "low_freq_factor": 0.002, "high_freq_factor": 0.008,
                "original_max_position_embeddings": 16,
            },
        },
        "codec_config": {"codebook_size": 64, "num_quantizers": 7, "num_residual_layers": 2, "num_key_value_heads": 1},
    },
}  # fmt: skip

_SAID = "one two three four five"


def write_set(folder: Path, shape: str, golden: Path) -> None:
    """Writes folder/checkpoint and folder/cases; what is not in the shape is as in the golden set."""
    checkpoint = folder / "checkpoint"
    checkpoint.mkdir(parents=True)
    for path in (golden / "checkpoint").iterdir():
        if path.suffix != ".safetensors":
            shutil.copy(path, checkpoint)
    config = _changed(json.loads((checkpoint / "config.json").read_text()), SHAPES[shape])
    (checkpoint / "config.json").write_text(json.dumps(config))
    _write_weights(checkpoint, config)
    oracle = Oracle(checkpoint)
    for name, case in _cases(config).items():
        # Through the file and back: what is compared must have heard the very samples that were stored.
        expected = oracle.reply(case)
        write_case(folder / "cases" / name, case, expected)


def _changed(config: dict[str, Any], changes: Changes) -> dict[str, Any]:
    config = copy.deepcopy(config)
    for path, values in changes.items():
        section = config
        for key in filter(None, path.split(".")):
            section = section[key]
        section.update(values)
    return config


def _write_weights(checkpoint: Path, config: dict[str, Any]) -> None:
    """Two shards and an index, bfloat16, values of size one over the square root of what is summed."""
    shapes = reasoner_tensors(config) | speech_tensors(config) | codec_tensors(config)
    random = torch.Generator().manual_seed(len(shapes))
    tensors = {name: _tensor(name, shape, random).bfloat16() for name, shape in sorted(shapes.items())}
    weight_map = {name: f"model-0000{1 + index % 2}-of-00002.safetensors" for index, name in enumerate(tensors)}
    for shard in sorted(set(weight_map.values())):
        save_file({name: tensors[name] for name in tensors if weight_map[name] == shard}, checkpoint / shard)
    (checkpoint / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))


def _tensor(name: str, shape: tuple[int, ...], random: torch.Generator) -> torch.Tensor:
    if name.endswith(("initialized", "cluster_usage")):
        return torch.ones(shape)
    noise = torch.randn(shape, generator=random)
    if name.endswith(".scale"):
        return 0.3 + 0.1 * noise
    if len(shape) == 1:
        return 0.1 * noise + (0.0 if name.endswith("bias") else 1.0)
    summed = shape[1] if name.endswith("codebook_head.weight") else math.prod(shape[1:])
    # The one convolution with a single output gives the sound: well within [-1, 1].
    loudness = 0.01 if len(shape) == 3 and shape[0] == 1 else 1.0
    return noise * (1.5 * loudness / math.sqrt(summed))


def _cases(config: dict[str, Any]) -> dict[str, Case]:
    rate = config["codec_config"]["sampling_rate"]
    voice = _sound(1.3, rate, 5)
    system = {"role": "system", "content": [{"type": "text", "text": "You are Chroma."}]}
    said = {"role": "user", "content": [{"type": "audio", "audio": ""}]}
    typed = {"role": "user", "content": [{"type": "text", "text": "How are you?"}]}
    answer = {"role": "assistant", "content": [{"type": "text", "text": "The quick brown fox."}]}
    return {
        "typed": Case([typed], [], _SAID, voice, 9),
        "spoken": Case([system, said], [_sound(2.37, 16000, 7)], _SAID, voice, 14),
        "history": Case(
            [system, said, answer, said], [_sound(0.9, 16000, 11), _sound(4.1, 16000, 13)], _SAID, voice, 12
        ),
    }


def _sound(seconds: float, rate: int, seed: int) -> np.ndarray:
    """Noise through a slow swell, rounded to 16 bits as a WAV file holds it."""
    random = np.random.default_rng(seed)
    count = int(seconds * rate)
    swell = np.sin(np.linspace(0, 9, count)) ** 2
    return (np.round(random.normal(0, 0.1, count) * swell * 32768) / 32768).astype(np.float32)
