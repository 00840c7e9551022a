"""A second oracle: the reply in plain transformers at batch 1, slow and obvious.

It follows model.md §B with transformers' own models and caches and shares no code with the services, so that it can
say what any checkpoint's reply is, of any size, and write it down in the golden format.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import (
    DynamicCache,
    LlamaConfig,
    LlamaModel,
    MimiConfig,
    MimiModel,
    PreTrainedTokenizerFast,
    Qwen2_5OmniThinkerConfig,
    Qwen2_5OmniThinkerForConditionalGeneration,
    WhisperFeatureExtractor,
)

Messages = list[dict[str, Any]]


@dataclass(frozen=True)
class Case:
    """What goes in; audio items of the messages stand for user_wavs in order (samples at 16 kHz)."""

    messages: Messages
    user_wavs: list[np.ndarray]
    prompt_text: str
    voice_wav: np.ndarray
    max_new_frames: int


class Oracle:
    """A checkpoint directory in float32 on the CPU."""

    def __init__(self, folder: Path) -> None:
        self.config = json.loads((folder / "config.json").read_text())
        tensors: dict[str, Tensor] = {}
        for shard in sorted(folder.glob("*.safetensors")):
            tensors |= {name: tensor.float() for name, tensor in load_file(shard).items()}
        self._tensors = tensors
        self.tokenizer = PreTrainedTokenizerFast.from_pretrained(folder)
        self.extractor = WhisperFeatureExtractor.from_pretrained(folder)
        thinker = Qwen2_5OmniThinkerForConditionalGeneration(Qwen2_5OmniThinkerConfig(**self.config["thinker_config"]))
        self.thinker = self._filled(
            thinker,
            {
                "thinker.audio_tower.": "model.audio_tower.",
                "thinker.model.": "model.language_model.",
                "thinker.lm_head.": "lm_head.",
            },
        )
        self.backbone = self._llama("backbone_config", "backbone.model.")
        self.depth_decoder = self._llama("decoder_config", "decoder.model.")
        codec = {k: v for k, v in self.config["codec_config"].items() if k != "use_cache"}
        self.codec = MimiModel(MimiConfig(**codec)).eval()
        self.codec.load_state_dict(self._codec_tensors(), strict=True)
        self.text = tensors["thinker.model.embed_tokens.weight"]
        self.codes = tensors["decoder.audio_embedding.embed_audio_tokens.weight"]

    @torch.inference_mode()
    def reply(self, case: Case) -> dict[str, np.ndarray]:
        """The arrays of expected.npz, less backbone_hidden and codebook0_logits."""
        ids, steps = self._reason(case)
        voice_ids = self.tokenizer(case.prompt_text, add_special_tokens=False)["input_ids"]
        voice = torch.from_numpy(case.voice_wav)[None, None]
        count = self.config["audio_num_codebooks"]
        voice_codes = self.codec.encode(voice, num_quantizers=count).audio_codes[0].T
        frames = self._speak(voice_ids, voice_codes, steps, case.max_new_frames)
        spoken = frames
        silent = (frames == 0).all(dim=1).nonzero()
        if len(silent):
            spoken = frames[: int(silent[0])]
        audio = self.codec.decode(spoken.T[None]).audio_values[0, 0] if len(spoken) else torch.zeros(0)
        return {
            "reasoner_input_ids": np.array(ids),
            "voice_text_ids": np.array(voice_ids),
            "voice_codes": voice_codes.numpy().astype(np.int32),
            "reasoner_tokens": np.array([token for token, _ in steps], dtype=np.int32),
            "reasoner_hidden": np.stack([hidden.numpy() for _, hidden in steps]),
            "frames": frames.numpy().astype(np.int32),
            "spoken_frames": spoken.numpy().astype(np.int32),
            "audio": audio.numpy(),
        }

    def _reason(self, case: Case) -> tuple[list[int], list[tuple[int, Tensor]]]:
        """Prompt ids, and as many (token, state) as max_new_frames can use."""
        rendered = self.tokenizer.apply_chat_template(case.messages, tokenize=False, add_generation_prompt=True)
        placeholder = self.tokenizer.convert_ids_to_tokens(self.config["thinker_config"]["audio_token_index"])
        features: dict[str, Tensor] = {}
        if case.user_wavs:
            clips = self.extractor(
                case.user_wavs,
                sampling_rate=16000,
                padding="max_length",
                return_attention_mask=True,
                return_tensors="pt",
            )
            features = {
                "input_features": clips["input_features"],
                "feature_attention_mask": clips["attention_mask"],
            }
            for length in clips["attention_mask"].sum(dim=1).tolist():
                places = ((length - 1) // 2 + 1 - 2) // 2 + 1
                rendered = rendered.replace(placeholder, "\0" * places, 1)
            rendered = rendered.replace("\0", placeholder)
        ids = self.tokenizer(rendered, add_special_tokens=False)["input_ids"]
        step_input = torch.tensor([ids])
        cache = DynamicCache()
        steps: list[tuple[int, Tensor]] = []
        position = 0
        while len(steps) < (case.max_new_frames + 1) // 2 + 1:
            length = step_input.shape[1]
            positions = torch.arange(position, position + length)[None, None].expand(3, 1, -1)
            output = self.thinker(
                input_ids=step_input,
                attention_mask=torch.ones((1, position + length), dtype=torch.int64),
                position_ids=positions,
                past_key_values=cache,
                use_cache=True,
                output_hidden_states=True,
                **(features if position == 0 else {}),
            )
            position += length
            token = int(output.logits[0, -1].argmax())
            steps.append((token, output.hidden_states[-1][0, -1]))
            if token == self.config["im_end_token_id"]:
                break
            step_input = torch.tensor([[token]])
        return ids, steps

    def _speak(
        self, voice_ids: list[int], voice_codes: Tensor, steps: list[tuple[int, Tensor]], max_new_frames: int
    ) -> Tensor:
        start, end = self.config["text_start_token_id"], self.config["text_end_token_id"]
        frames = [self._embed_frame(codes) for codes in voice_codes]
        inputs = [self.text[start], *self.text[voice_ids], self.text[end], *frames, torch.zeros_like(self.text[0])]
        cache = DynamicCache()
        alive, feeds, fed = True, True, 0
        stored: list[Tensor] = []
        while len(stored) < max_new_frames:
            if alive and feeds:
                token, hidden = steps[fed]
                fed += 1
                inputs += [hidden, self.text[token]]
                alive = token != self.config["im_end_token_id"]
            feeds = (not feeds) if alive else False
            state = self.backbone(
                inputs_embeds=torch.stack(inputs)[None], past_key_values=cache, use_cache=True
            ).last_hidden_state[0, -1]
            codes = self._depth(state)
            if codes.any():
                stored.append(codes)
            if not codes[:-1].any():
                break
            inputs = [self._embed_frame(codes)]
        return (
            torch.stack(stored) if stored else torch.zeros((0, self.config["audio_num_codebooks"]), dtype=torch.int64)
        )

    def _depth(self, state: Tensor) -> Tensor:
        """One frame, the whole prefix run anew for every code: no cache, an explicit mask, positions 0,0,1,…"""
        size = self.config["codec_config"]["codebook_size"]
        rows = self.config["backbone_config"]["vocab_size"]
        codes = [int((self._tensors["backbone.codebook0_head.weight"] @ state)[:size].argmax())]
        inputs = [state, self.codes[codes[0]]]
        for codebook in range(1, self.config["audio_num_codebooks"]):
            length = len(inputs)
            mask = torch.full((length, length), -torch.inf).triu(1)[None, None]
            positions = torch.tensor([[0, *range(length - 1)]])
            projected = torch.stack(inputs) @ self._tensors["decoder.projection.weight"].T
            hidden = self.depth_decoder(
                inputs_embeds=projected[None], attention_mask=mask, position_ids=positions, use_cache=False
            ).last_hidden_state[0, -1]
            logits = hidden @ self._tensors["decoder.codebook_head.weight"][codebook - 1]
            codes.append(int(logits[:size].argmax()))
            inputs.append(self.codes[codebook * rows + codes[-1]])
        return torch.tensor(codes)

    def _embed_frame(self, codes: Tensor) -> Tensor:
        rows = self.config["backbone_config"]["vocab_size"]
        return self.codes[codes + torch.arange(len(codes)) * rows].sum(dim=0)

    def _llama(self, section: str, prefix: str) -> LlamaModel:
        numbers = {k: v for k, v in self.config[section].items() if k not in ("model_type", "dtype")}
        model = LlamaModel(LlamaConfig(**{**numbers, "vocab_size": 1})).eval()
        model.embed_tokens = nn.Identity()
        return self._filled(model, {prefix: ""})

    def _filled(self, model: Any, moved: dict[str, str]) -> Any:
        mine = {
            new + name.removeprefix(old): tensor
            for name, tensor in self._tensors.items()
            for old, new in moved.items()
            if name.startswith(old)
        }
        missing, _ = model.load_state_dict(mine, strict=False)
        # A checkpoint need not hold the vision tower: nothing here looks at a picture.
        assert not [name for name in missing if not name.startswith("model.visual.")], missing
        return model.eval()

    def _codec_tensors(self) -> dict[str, Tensor]:
        """The codec's tensors under the names that transformers gives them now."""
        moved = {
            "encoder_transformer.": "encoder.encoder_transformer.",
            "downsample.": "encoder.downsample.",
            "upsample.": "decoder.upsample.",
            "decoder_transformer.": "decoder.decoder_transformer.",
            "encoder.layers.": "encoder.encoder_seanet.layers.",
            "decoder.layers.": "decoder.decoder_seanet.layers.",
        }
        renamed = {}
        for stored, tensor in self._tensors.items():
            if stored.startswith("codec_model."):
                name = stored.removeprefix("codec_model.")
                prefix = next((old for old in moved if name.startswith(old)), "")
                renamed[moved.get(prefix, "") + name.removeprefix(prefix)] = tensor
        return renamed


def write_case(folder: Path, case: Case, expected: dict[str, np.ndarray]) -> None:
    """Writes one case of the golden format."""
    folder.mkdir(parents=True)
    names = [f"user{index}.wav" for index in range(len(case.user_wavs))]
    for name, samples in zip(names, case.user_wavs, strict=True):
        soundfile.write(folder / name, samples, 16000, subtype="PCM_16")
    soundfile.write(folder / "voice.wav", case.voice_wav, 24000, subtype="PCM_16")
    description = {
        "messages": case.messages,
        "prompt_text": case.prompt_text,
        "max_new_frames": case.max_new_frames,
        "user_wavs": names,
        "voice_wav": "voice.wav",
    }
    (folder / "case.json").write_text(json.dumps(description, indent=1))
    np.savez(folder / "expected.npz", **expected)


def read_case(folder: Path) -> Case:
    """Reads the inputs of one case of the golden format."""
    description = json.loads((folder / "case.json").read_text())
    return Case(
        messages=description["messages"],
        user_wavs=[soundfile.read(folder / name, dtype="float32")[0] for name in description["user_wavs"]],
        prompt_text=description["prompt_text"],
        voice_wav=soundfile.read(folder / description["voice_wav"], dtype="float32")[0],
        max_new_frames=description["max_new_frames"],
    )
