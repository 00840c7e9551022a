"""The baseline: a reply in a plain transformers loop at batch 1, as a user of that library would write it (model.md B).

It has the checkpoint's weights to itself and shares no model code with the services, so it is an oracle as well.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import (
    DynamicCache,
    LlamaConfig,
    LlamaModel,
    LogitsProcessorList,
    Qwen2_5OmniAudioEncoderConfig,
    Qwen2Config,
    Qwen2Model,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
)
from transformers.models.qwen2_5_omni.modeling_qwen2_5_omni import Qwen2_5OmniAudioEncoder

from services.bench.clock import Clock
from services.bench.plain_codec import plain_codec
from services.bench.shape import Cost
from services.codec import weights as codec_weights
from services.codec.streaming_decoder import exact_float32
from services.inference.checkpoint import Checkpoint
from services.inference.device import blank_modules
from services.inference.rope import rope_settings
from services.speech.interleave import FRAMES_PER_STEP

_STORED = {
    "reasoner.": "thinker.model.",
    "lm_head.": "thinker.lm_head.",
    "audio_encoder.": "thinker.audio_tower.",
    "backbone.": "backbone.model.",
    "codebook0_head.": "backbone.codebook0_head.",
    "depth_decoder.": "decoder.model.",
    "projection.": "decoder.projection.",
    "codebook_head": "decoder.codebook_head.weight",
    "code_embedding.": "decoder.audio_embedding.embed_audio_tokens.",
}
_REPLACED = ("model_type", "dtype", "rope_parameters", "rope_scaling", "rope_theta", "vocab_size")


@dataclass(frozen=True)
class PlainPrompt:
    """What a reply is made from. mels: the log-mel features [mel bins, n] of each clip in the prompt."""

    token_ids: Sequence[int]
    mels: Sequence[Tensor]
    transcript_ids: Sequence[int]
    voice_frames: Sequence[Sequence[int]]


@dataclass(frozen=True)
class PlainSampling:
    """How codes are drawn."""

    temperature: float
    top_k: int


@dataclass(frozen=True)
class PlainReply:
    """The reply: its codes [frames, codebooks], its sound [samples], and what its parts cost but for the first ones."""

    codes: Tensor
    samples: Tensor
    cost: Cost


class PlainModels(nn.Module):
    """The networks as transformers has them."""

    def __init__(self, config: dict[str, Any]) -> None:
        super().__init__()
        thinker, codebooks = config["thinker_config"], config["audio_num_codebooks"]
        text, backbone, depth = thinker["text_config"], config["backbone_config"], config["decoder_config"]
        audio = {key: value for key, value in thinker["audio_config"].items() if key not in _REPLACED}
        self.reasoner = Qwen2Model(Qwen2Config(**_numbers(text, 1e6), vocab_size=text["vocab_size"]))
        self.lm_head = nn.Linear(text["hidden_size"], text["vocab_size"], bias=False)
        self.audio_encoder = Qwen2_5OmniAudioEncoder(Qwen2_5OmniAudioEncoderConfig(**audio))
        self.backbone = _llama(backbone)
        self.codebook0_head = nn.Linear(backbone["hidden_size"], backbone["vocab_size"], bias=False)
        self.depth_decoder = _llama(depth)
        self.projection = nn.Linear(backbone["hidden_size"], depth["hidden_size"], bias=False)
        self.codebook_head = nn.Parameter(torch.empty(codebooks - 1, depth["hidden_size"], backbone["vocab_size"]))
        self.code_embedding = nn.Embedding(codebooks * backbone["vocab_size"], backbone["hidden_size"])


def _llama(section: dict[str, Any]) -> LlamaModel:
    numbers = _numbers(section, 5e5) | {"vocab_size": 1, "bos_token_id": None, "eos_token_id": None}
    model = LlamaModel(LlamaConfig(**numbers))
    model.set_submodule("embed_tokens", nn.Identity())  # all its inputs are embedded already
    return model


def _numbers(section: dict[str, Any], default_theta: float) -> dict[str, Any]:
    """A stack's section as transformers' config classes take it."""
    head_dim = int(section.get("head_dim") or section["hidden_size"] // section["num_attention_heads"])
    rope = rope_settings(section, head_dim=head_dim, default_theta=default_theta).parameters
    return {key: value for key, value in section.items() if key not in _REPLACED} | {"rope_parameters": rope}


class Baseline:
    """A checkpoint's models, ready to reply."""

    def __init__(self, checkpoint: Checkpoint, device: torch.device, dtype: torch.dtype, clock: Clock) -> None:
        config = checkpoint.config
        self._clock = clock
        with blank_modules(device, dtype):
            self.models = PlainModels(config).eval().requires_grad_(False)
        names = {
            name: [stored + name.removeprefix(ours)]
            for name in self.models.state_dict()
            for ours, stored in _STORED.items()
            if name.startswith(ours)
        }
        thinker = config["thinker_config"]
        if thinker.get("tie_word_embeddings") or thinker["text_config"].get("tie_word_embeddings"):
            names["lm_head.weight"].append("thinker.model.embed_tokens.weight")
        names["code_embedding.weight"].append("backbone.audio_embedding.embed_audio_tokens.weight")
        checkpoint.fill(self.models, names, own=(), foreign=("",))
        self.codec: Any = plain_codec(codec_weights.load(checkpoint, device).mimi)
        self._device = device
        self._rows: int = config["backbone_config"]["vocab_size"]
        self._code_count: int = config["codec_config"]["codebook_size"]
        self._marks = (config["text_start_token_id"], config["text_end_token_id"])
        self._audio_token_id = thinker.get("audio_token_id", thinker.get("audio_token_index"))
        self._first_rows = torch.arange(config["audio_num_codebooks"], device=device) * self._rows
        # The rotations of [state, code 0], code 1, …: 0,0,1,…,6 (model.md B.5).
        self._depth_positions = [torch.tensor([[0, 0]], device=device)] + [
            torch.tensor([[place]], device=device) for place in range(1, config["audio_num_codebooks"] - 1)
        ]

    @torch.inference_mode()
    def reply(
        self, prompt: PlainPrompt, sampling: PlainSampling | None, *, frame_count: int, step_count: int
    ) -> PlainReply:
        """Speaks so many frames to so many steps, at least two of each; greedy without `sampling`."""
        draw = _drawing(sampling)
        reasoner_cache, backbone_cache = DynamicCache(), DynamicCache()
        state, token = self._reason(self._prompt(prompt), reasoner_cache)
        inputs = torch.cat((self._voice(prompt), state[None], self._embed(token)[None]), dim=1)
        speech_seconds = reasoner_seconds = 0.0
        frames: list[Tensor] = []
        while len(frames) < frame_count:
            index = len(frames)
            if index and index % FRAMES_PER_STEP == 0 and index // FRAMES_PER_STEP < step_count:
                began = self._clock()
                state, token = self._reason(self._embed(token)[None], reasoner_cache)
                token.item()  # is it the last?
                reasoner_seconds += self._clock() - began
                inputs = torch.cat((inputs, state[None], self._embed(token)[None]), dim=1)
            began = self._clock()
            codes = self._frame(inputs, backbone_cache, draw)
            codes.tolist()  # is it the last?
            frames.append(codes)
            inputs = self.models.code_embedding(codes + self._first_rows).sum(dim=1, keepdim=True)
            speech_seconds += self._clock() - began if index else 0.0
        began = self._clock()
        with exact_float32():
            samples = self.codec.decode(torch.cat(frames).T[None]).audio_values[0, 0].cpu()
        codec_seconds = self._clock() - began
        cost = Cost(
            speech_frame_seconds=speech_seconds / (frame_count - 1),
            reasoner_step_seconds=reasoner_seconds / (step_count - 1),
            codec_frame_seconds=codec_seconds / frame_count,
        )
        return PlainReply(torch.cat(frames).cpu(), samples, cost)

    def _prompt(self, prompt: PlainPrompt) -> Tensor:
        """The conversation as the reasoner reads it, [1, n, hidden]."""
        ids = torch.tensor(prompt.token_ids, device=self._device)
        embedded = self.models.reasoner.embed_tokens(ids)
        heard = [
            self.models.audio_encoder(
                input_features=mel.to(self._device), feature_lens=torch.tensor([mel.shape[1]], device=self._device)
            ).last_hidden_state
            for mel in prompt.mels
        ]
        if heard:
            embedded[ids == self._audio_token_id] = torch.cat(heard).to(embedded.dtype)
        return embedded[None]

    def _voice(self, prompt: PlainPrompt) -> Tensor:
        """The voice prompt, [1, n, hidden]."""
        start, end = self._marks
        ids = torch.tensor([start, *prompt.transcript_ids, end], device=self._device)
        text = self.models.reasoner.embed_tokens(ids)
        codes = torch.tensor(prompt.voice_frames, device=self._device)
        spoken = self.models.code_embedding(codes + self._first_rows).sum(dim=1)
        return torch.cat((text, spoken, torch.zeros_like(text[:1])))[None]

    def _embed(self, token: Tensor) -> Tensor:
        return self.models.reasoner.embed_tokens(token)

    def _reason(self, inputs: Tensor, cache: DynamicCache) -> tuple[Tensor, Tensor]:
        """inputs [1, n, hidden] → the last state [1, hidden] and the token after it [1]."""
        states = self.models.reasoner(inputs_embeds=inputs, past_key_values=cache, use_cache=True).last_hidden_state
        return states[:, -1], self.models.lm_head(states[:, -1]).argmax(dim=-1)

    def _frame(self, inputs: Tensor, cache: DynamicCache, draw: "Drawing") -> Tensor:
        """inputs [1, n, hidden] → the next frame's codes [1, codebooks]."""
        models = self.models
        state = models.backbone(inputs_embeds=inputs, past_key_values=cache, use_cache=True).last_hidden_state[:, -1]
        code = draw(models.codebook0_head(state)[:, : self._code_count].float())
        codes = [code]
        # With a cache, transformers does not take the repeated place for the start of another sequence.
        depth_cache = DynamicCache()
        fed = torch.stack((state, models.code_embedding(code)), dim=1)
        for codebook, (positions, head) in enumerate(
            zip(self._depth_positions, models.codebook_head, strict=True), start=1
        ):
            states = models.depth_decoder(
                inputs_embeds=models.projection(fed),
                position_ids=positions,
                past_key_values=depth_cache,
                use_cache=True,
            ).last_hidden_state
            code = draw((states[:, -1] @ head)[:, : self._code_count].float())
            codes.append(code)
            fed = models.code_embedding(code + codebook * self._rows)[:, None]
        return torch.stack(codes, dim=1)


Drawing = Callable[[Tensor], Tensor]
"""From logits [1, codes] to a code [1]."""


def _drawing(sampling: PlainSampling | None) -> Drawing:
    if sampling is None:
        return lambda logits: logits.argmax(dim=-1)
    warpers = LogitsProcessorList([TemperatureLogitsWarper(sampling.temperature), TopKLogitsWarper(sampling.top_k)])
    nothing: Any = None  # these two look at the scores alone
    return lambda logits: torch.multinomial(warpers(nothing, logits).softmax(dim=-1), 1)[:, 0]
