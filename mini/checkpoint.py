"""Writing what was trained as a checkpoint in the published layout."""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import MimiModel

from mini.domain import SMALL_TALK
from mini.recordings import Recordings, step_counts
from mini.rhythm import RATE_HZ
from mini.sizes import (
    AUDIO_ENCODER,
    BACKBONE,
    CODEBOOKS,
    CODEC,
    CODES,
    DEPTH_DECODER,
    FRAME_SAMPLES,
    LANGUAGE_MODEL,
    VISION,
)
from mini.speakers import VOICES
from mini.tokenizer import AUDIO, AUDIO_END, AUDIO_START, PAD, SPECIAL, TEXT_END, TEXT_START, TURN_END, build, save
from services.codec.weights import PREFIX as CODEC_PREFIX
from services.codec.weights import newer_name
from services.codec.weights import published_tensors as codec_tensors
from services.reasoner.weights import published_tensors as reasoner_tensors
from services.speech.weights import published_tensors as speech_tensors

WEIGHTS = "model.safetensors"
SAMPLING = {"do_sample": True, "temperature": 0.5, "top_k": 20}
EXAMPLE_SENTENCE = SMALL_TALK["hello"]
"""What the shipped voices say in their examples."""

_THINKER = {"model.": "thinker.model.", "lm_head.": "thinker.lm_head.", "hearing.encoder.": "thinker.audio_tower."}
_SPEECH = {
    "backbone.": "backbone.model.",
    "first_head.": "backbone.codebook0_head.",
    "depth_decoder.": "decoder.model.",
    "projection.": "decoder.projection.",
    "heads": "decoder.codebook_head.weight",
    "code_embedding.": "decoder.audio_embedding.embed_audio_tokens.",
}


def config(vocabulary_size: int) -> dict[str, Any]:
    """config.json."""
    dtype = "bfloat16"
    thinker = {
        "model_type": "qwen2_5_omni_thinker",
        "dtype": dtype,
        "pad_token_id": PAD,
        "audio_token_index": AUDIO,
        "audio_start_token_id": AUDIO_START,
        "audio_end_token_id": AUDIO_END,
        "image_token_index": SPECIAL.index("<|IMAGE|>"),
        "video_token_index": SPECIAL.index("<|VIDEO|>"),
        "vision_start_token_id": SPECIAL.index("<|vision_bos|>"),
        "vision_end_token_id": SPECIAL.index("<|vision_eos|>"),
        "position_id_per_seconds": 25,
        "seconds_per_chunk": 2,
        "tie_word_embeddings": False,
        "text_config": {**LANGUAGE_MODEL, "model_type": "qwen2_5_omni_text", "vocab_size": vocabulary_size},
        "audio_config": {**AUDIO_ENCODER, "model_type": "qwen2_5_omni_audio_encoder"},
        "vision_config": {**VISION, "model_type": "qwen2_5_omni_vision_encoder"},
    }
    return {
        "architectures": ["ChromaForConditionalGeneration"],
        "model_type": "chroma",
        "dtype": dtype,
        "audio_num_codebooks": CODEBOOKS,
        "audio_frame_freq": FRAME_SAMPLES,
        "codebook_eos_token_id": 0,
        "codebook_pad_token_id": CODES + 2,
        "im_end_token_id": TURN_END,
        "text_start_token_id": TEXT_START,
        "text_end_token_id": TEXT_END,
        "thinker_config": thinker,
        "backbone_config": {**BACKBONE, "model_type": "chroma_backbone"},
        "decoder_config": {**DEPTH_DECODER, "model_type": "chroma_decoder"},
        "codec_config": {**CODEC, "model_type": "mimi", "_frame_rate": 12.5},
    }


def write(state: Path, out: Path) -> int:
    """Writes the checkpoint from what `state` holds; returns its bytes.

    Raises ValueError when what was trained is not what config.json describes.
    """
    tokenizer = build(step_counts(state))
    settings = config(tokenizer.get_vocab_size())
    tensors = {
        **_renamed(_trained(state / "reasoner.pt"), _THINKER),
        **_renamed(_trained(state / "speech_joined.pt"), _SPEECH),
        **_codec(state / "codec", settings),
    }
    _check(tensors, settings)
    partial = out.with_name(f".{out.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    (partial / "config.json").write_text(_pretty(settings))
    (partial / "generation_config.json").write_text(_pretty(SAMPLING))
    (partial / "preprocessor_config.json").write_text(_pretty(_preprocessor()))
    save(tokenizer, partial)
    stored = {name: tensor.bfloat16().contiguous() for name, tensor in sorted(tensors.items())}
    save_file(stored, partial / WEIGHTS, metadata={"format": "pt"})
    (partial / WEIGHTS).chmod(0o644)
    shutil.rmtree(out, ignore_errors=True)
    partial.replace(out)
    return sum(path.stat().st_size for path in out.iterdir())


def write_voices(state: Path, folder: Path) -> None:
    """Writes an example of each voice, as a mesh's folder of voices has them."""
    folder.mkdir(parents=True, exist_ok=True)
    recordings = Recordings(state / "answers")
    for item in recordings.items:
        if item.sentence == EXAMPLE_SENTENCE:
            samples = np.round(recordings.samples(item) * 32768).astype(np.int16)
            soundfile.write(folder / f"{item.speaker}.wav", samples, RATE_HZ, subtype="PCM_16")
            speaker = VOICES[item.speaker]
            made = f"espeak-ng, voice {speaker.voice}, pitch {speaker.pitch}, range {speaker.range}, said in steps"
            (folder / f"{item.speaker}.json").write_text(_pretty({"transcript": item.sentence, "made_with": made}))


def _trained(path: Path) -> dict[str, Tensor]:
    module: dict[str, Tensor] = torch.load(path, weights_only=True, map_location="cpu")["module"]
    return module


def _renamed(module: Mapping[str, Tensor], prefixes: Mapping[str, str]) -> dict[str, Tensor]:
    """The tensors that are shipped, by their published names; what only training needed is left out."""
    return {
        published + name.removeprefix(ours): tensor
        for name, tensor in module.items()
        for ours, published in prefixes.items()
        if name.startswith(ours)
    }


def _codec(folder: Path, settings: dict[str, Any]) -> dict[str, Tensor]:
    module = MimiModel.from_pretrained(folder).state_dict()
    published = {newer_name(name.removeprefix(CODEC_PREFIX)): name for name in codec_tensors(settings)}
    return {published.get(name, name): tensor for name, tensor in module.items()}


def _check(tensors: Mapping[str, Tensor], settings: dict[str, Any]) -> None:
    expected = reasoner_tensors(settings) | speech_tensors(settings) | codec_tensors(settings)
    found = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    differing = {name for name in expected.keys() | found.keys() if expected.get(name) != found.get(name)}
    if differing:
        raise ValueError(f"these are not as config.json has them: {', '.join(sorted(differing))}")


def _preprocessor() -> dict[str, Any]:
    return {
        "feature_extractor_type": "WhisperFeatureExtractor",
        "chunk_length": 300,
        "dither": 0.0,
        "feature_size": 128,
        "hop_length": 160,
        "n_fft": 400,
        "n_samples": 4800000,
        "nb_max_frames": 30000,
        "padding_side": "right",
        "padding_value": 0.0,
        "return_attention_mask": True,
        "sampling_rate": 16000,
    }


def _pretty(value: Mapping[str, Any]) -> str:
    return json.dumps(value, indent=2, sort_keys=True) + "\n"
