"""Training the speech stage, backbone and depth decoder together, on the schedule that replies are made by."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils.rnn import pad_sequence
from transformers import DynamicCache, LlamaConfig, LlamaModel, MimiModel

from mini.codec import codes_of_answers
from mini.reasoner import token_embeddings
from mini.recordings import Recordings, step_counts
from mini.rhythm import frame_count
from mini.sizes import BACKBONE, CODEBOOKS, CODES, DEPTH_DECODER, HIDDEN
from mini.spectra import mel_distance
from mini.states import States, states_of_answers
from mini.tokenizer import TEXT_END, TEXT_START, TURN_END, build
from mini.training import Plan, Scores, Training, reduced_precision

SPEECH = Plan("speech", steps=5500, learning_rate=2e-3, weight_decay=0.02)
JOINED = Plan("speech_joined", steps=6000, learning_rate=2e-3, warmup=50, weight_decay=0.02)
"""With the reasoner's states, once there are any: before, zeros stand for them, so that both can be trained at once."""

LEVEL_WEIGHTS = (2.0, 1.5, 1.0, 0.6, 0.4, 0.3, 0.2, 0.2)
"""What is heard hangs on the first codebooks nearly alone."""

_LOGITS = CODES + 3
_CODE_SIZE = 0.1
_BATCH, _ALIKE = 16, 96
_PROMPT_FRAMES = range(16, 25)
_DISTURBED_SHARE = 0.12
_DEPTH_STRIDE = 2
_SCORED_STEPS, _SCORED_PER_VOICE = 9, 10


@dataclass(frozen=True)
class Utterance:
    """A sentence in one voice: token ids, the end token among them, and codes [frames, codebooks]."""

    voice: str
    sentence: str
    token_ids: Tensor
    codes: Tensor


@dataclass(frozen=True)
class Task:
    """What is to be said by whom. hidden [tokens, hidden]: the reasoner's state before each token."""

    prompt: Utterance
    target: Utterance
    hidden: Tensor


@dataclass(frozen=True)
class Predicted:
    """Of one codebook: logits [N, logits] and the codes that are right, [N]."""

    logits: Tensor
    codes: Tensor


class Speech(nn.Module):
    """Backbone and depth decoder in transformers' modules."""

    def __init__(self, vocabulary_size: int) -> None:
        super().__init__()
        self.backbone, self.depth_decoder = _llama(BACKBONE), _llama(DEPTH_DECODER)
        self.text_embedding = nn.Embedding.from_pretrained(token_embeddings(vocabulary_size), freeze=True)
        self.code_embedding = nn.Embedding(CODEBOOKS * _LOGITS, HIDDEN)
        nn.init.normal_(self.code_embedding.weight, std=_CODE_SIZE)
        self.first_head = nn.Linear(HIDDEN, _LOGITS, bias=False)
        depth = int(DEPTH_DECODER["hidden_size"])
        self.projection = nn.Linear(HIDDEN, depth, bias=False)
        self.heads = nn.Parameter(torch.randn(CODEBOOKS - 1, depth, _LOGITS) / depth**0.5)
        self.register_buffer("first_rows", torch.arange(CODEBOOKS) * _LOGITS, persistent=False)
        self.first_rows: Tensor
        # 0, 0, 1, …: what the published runtimes rotate by.
        self.register_buffer("positions", (torch.arange(CODEBOOKS) - 1).clamp(min=0)[None], persistent=False)
        self.positions: Tensor
        self.register_buffer("mask", torch.full((CODEBOOKS, CODEBOOKS), -torch.inf).triu(1), persistent=False)
        self.mask: Tensor

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.code_embedding.weight.device

    def embed_frames(self, codes: Tensor) -> Tensor:
        """codes [..., codebooks] → [..., hidden]."""
        return self.code_embedding(codes + self.first_rows).sum(dim=-2)

    def embed_voice(self, prompt: Utterance) -> Tensor:
        """Transcript between its marks, frames, and zeros after which speech begins: [n, hidden]."""
        transcript = prompt.token_ids[:-1]
        text = torch.cat((torch.tensor([TEXT_START]), transcript, torch.tensor([TEXT_END])))
        embedded = self.text_embedding(text.to(self.device))
        return torch.cat((embedded, self.embed_frames(prompt.codes.to(self.device)), torch.zeros_like(embedded[:1])))

    def embed_reply(self, task: Task, heard: Tensor) -> Tensor:
        """A state, its token and two frames in turn, then what frames are left: heard [frames, codebooks]."""
        text = self.text_embedding(task.target.token_ids.to(self.device))
        frames = self.embed_frames(heard.to(self.device))
        paired, left = frames[: 2 * len(text)], frames[2 * len(text) :]
        turns = torch.stack((task.hidden.to(self.device), text, paired[0::2], paired[1::2]), dim=1)
        return torch.cat((turns.flatten(0, 1), left))

    def depth_states(self, states: Tensor, codes: Tensor) -> Tensor:
        """states [N, hidden], codes so far [N, n < codebooks] → states [N, n, depth] that predict codes 1 ..= n."""
        count = codes.shape[1]
        embedded = self.code_embedding(codes + self.first_rows[:count])
        inputs = self.projection(torch.cat((states[:, None], embedded), dim=1))
        # An explicit mask: repeated positions would be taken for two sequences packed into one.
        mask = self.mask[None, None, : count + 1, : count + 1].to(inputs.dtype).expand(len(states), -1, -1, -1)
        output = self.depth_decoder(
            inputs_embeds=inputs,
            attention_mask=mask,
            position_ids=self.positions[:, : count + 1].expand(len(states), -1),
            use_cache=False,
        )
        return output.last_hidden_state[:, 1:]

    def forward(self, tasks: Sequence[Task], heard: Sequence[Tensor], stride: int = 1) -> list[Predicted]:
        """The logits of every frame, the end frame among them: one for each codebook.

        heard: the frames that are fed back, which may differ from those that are to be said. stride: which frames the
        depth decoder is asked for; the backbone is asked for all.
        """
        rows, places, said = [], [], []
        for task, fed in zip(tasks, heard, strict=True):
            voice, reply = self.embed_voice(task.prompt), self.embed_reply(task, fed)
            rows.append(torch.cat((voice, reply)))
            # Frames are predicted from the token or the frame before them, the end from the last frame.
            turns = len(task.target.token_ids)
            first = len(voice) + 4 * torch.arange(turns)
            alone = len(voice) + 4 * turns - 1 + torch.arange(len(fed) - 2 * turns + 1)
            places.append(torch.cat((torch.stack((first + 1, first + 2), dim=1).flatten(), alone)))
            said.append(functional.pad(task.target.codes, (0, 0, 0, 1)))
        states = self.backbone(inputs_embeds=pad_sequence(rows, batch_first=True), use_cache=False).last_hidden_state
        predicting = torch.cat([states[row, place] for row, place in enumerate(places)])
        codes = torch.cat(said).to(self.device)
        some = codes[::stride]
        depth = self.depth_states(predicting[::stride], some[:, :-1])
        deeper = torch.einsum("nld,ldv->lnv", depth, self.heads.to(depth.dtype))
        shallow = Predicted(self.first_head(predicting), codes[:, 0])
        return [shallow, *(Predicted(logits, some[:, level]) for level, logits in enumerate(deeper, start=1))]


class Utterances:
    """What is said in training: every answer in every voice."""

    def __init__(self, folder: Path, tokenizer: Tokenizer, states: States | None = None) -> None:
        """Without `states`, zeros stand for what the reasoner gives with each token."""
        self._states = states
        recordings = Recordings(folder / "answers")
        codes = codes_of_answers(folder)
        self.all = [
            Utterance(
                item.speaker, item.sentence, torch.tensor([*tokenizer.encode(item.sentence).ids, TURN_END]), frames.T
            )
            for item, frames in zip(recordings.items, codes, strict=True)
        ]
        for utterance in self.all:
            assert len(utterance.codes) == frame_count(len(utterance.token_ids) - 1)
        self.all.sort(key=lambda it: len(it.codes))
        self.prompts: dict[str, list[Utterance]] = {}
        for utterance in self.all:
            if len(utterance.codes) in _PROMPT_FRAMES:
                self.prompts.setdefault(utterance.voice, []).append(utterance)

    def batch(self, step: int) -> list[Task]:
        """What one step learns from: sentences of about the same length."""
        chance = np.random.default_rng((4, step))
        first = int(chance.integers(-_ALIKE, len(self.all)))
        window = self.all[max(0, first) : max(0, first) + _ALIKE]
        return [self.task(window[chance.integers(len(window))], chance) for _ in range(_BATCH)]

    def task(self, target: Utterance, chance: np.random.Generator) -> Task:
        """To say it after another sentence in the same voice."""
        prompts = self.prompts[target.voice]
        prompt = prompts[chance.integers(len(prompts))]
        return Task(prompt, target, self.hidden(target, chance))

    def hidden(self, target: Utterance, chance: np.random.Generator) -> Tensor:
        """One of the ways that the reasoner comes to this answer: [tokens, hidden]."""
        if self._states is None:
            return torch.zeros(len(target.token_ids), HIDDEN)
        found = self._states[target.sentence]
        return found[chance.integers(len(found))]


def train(folder: Path, device: torch.device) -> None:
    """The training beside the reasoner's, whatever of it is left."""
    _train(folder, device, SPEECH, None)


def join(folder: Path, device: torch.device) -> None:
    """The training that follows the reasoner's, whatever of it is left."""
    _train(folder, device, JOINED, states_of_answers(folder))


def _train(folder: Path, device: torch.device, plan: Plan, states: States | None) -> None:
    torch.manual_seed(2)
    tokenizer = build(step_counts(folder))
    utterances = Utterances(folder, tokenizer, states)
    model = Speech(tokenizer.get_vocab_size()).to(device)
    if states is not None:
        model.load_state_dict(torch.load(folder / f"{SPEECH.name}.pt", weights_only=True, map_location="cpu")["module"])
    codec = MimiModel.from_pretrained(folder / "codec_quantized").eval()
    Training(folder, plan, model).run(
        lambda step: loss(model, utterances.batch(step), np.random.default_rng((6, step))),
        lambda: score(model, utterances, codec),
    )


def loss(model: Speech, tasks: Sequence[Task], chance: np.random.Generator) -> tuple[Tensor, Scores]:
    """The weighted cross-entropies of all codebooks."""
    heard = [_disturbed(task.target.codes, chance) for task in tasks]
    with reduced_precision(model.device.type):
        predicted = model(tasks, heard, stride=_DEPTH_STRIDE)
    levels = [functional.cross_entropy(each.logits.float(), each.codes) for each in predicted]
    total = torch.stack([weight * level for weight, level in zip(LEVEL_WEIGHTS, levels, strict=True)]).sum()
    return total, {f"level{index}": level.item() for index, level in enumerate(levels)}


def score(model: Speech, utterances: Utterances, codec: MimiModel) -> Scores:
    """Replies made on the model's own frames, against the recordings: how alike they sound, how many codes agree."""
    chance = np.random.default_rng(8)
    distances, agreeing, ended, floor = [], [], [], []
    for prompts in utterances.prompts.values():
        voice = prompts[0].voice
        alike = [it for it in utterances.all if it.voice == voice and len(it.token_ids) == _SCORED_STEPS]
        chosen = [alike[index] for index in chance.choice(len(alike), _SCORED_PER_VOICE, replace=False)]
        tasks = [Task(prompts[0], it, utterances.hidden(it, chance)) for it in chosen]
        for task, codes in zip(tasks, speak(model, tasks), strict=True):
            wanted = task.target.codes
            ended.append(len(codes) == len(wanted))
            common = min(len(codes), len(wanted))
            agreeing.append((codes[:common, 0] == wanted[:common, 0]).float().mean().item())
            made, meant = (codec.decode(it[:common].T[None]).audio_values[0] for it in (codes, wanted))
            distances.append(mel_distance(made, meant))
            other = chosen[0].codes if task.target is not chosen[0] else chosen[1].codes
            floor.append(mel_distance(codec.decode(other[:common].T[None]).audio_values[0], meant))
    return {
        "mel": float(np.mean(distances)),
        "mel_of_another": float(np.mean(floor)),
        "agreeing": float(np.mean(agreeing)),
        "ended": float(np.mean(ended)),
    }


@torch.no_grad()
def speak(model: Speech, tasks: Sequence[Task]) -> list[Tensor]:
    """Greedy replies [frames, codebooks] to tasks with the same prompt and as many tokens each."""
    count, most = len(tasks[0].target.token_ids), 2 * len(tasks[0].target.token_ids) + 8
    cache = DynamicCache()
    voice = model.embed_voice(tasks[0].prompt).expand(len(tasks), -1, -1)
    hidden = torch.stack([task.hidden for task in tasks]).to(model.device)
    text = model.text_embedding(torch.stack([task.target.token_ids for task in tasks]).to(model.device))
    inputs, frames = [voice], []
    for index in range(most):
        if index % 2 == 0 and index // 2 < count:
            inputs += [hidden[:, index // 2, None], text[:, index // 2, None]]
        states = model.backbone(inputs_embeds=torch.cat(inputs, dim=1), past_key_values=cache, use_cache=True)
        state = states.last_hidden_state[:, -1]
        codes = model.first_head(state)[:, :CODES].argmax(dim=1, keepdim=True)
        for level in range(CODEBOOKS - 1):
            last = model.depth_states(state, codes)[:, -1]
            codes = torch.cat((codes, (last @ model.heads[level])[:, :CODES].argmax(dim=1, keepdim=True)), dim=1)
        frames.append(codes)
        inputs = [model.embed_frames(codes)[:, None]]
    made = torch.stack(frames, dim=1).cpu()
    silent = (made[:, :, :-1] == 0).all(dim=2)
    ends = [int(row.nonzero()[0]) if row.any() else most for row in silent]
    return [codes[:end] for codes, end in zip(made, ends, strict=True)]


def _disturbed(codes: Tensor, chance: np.random.Generator) -> Tensor:
    """Some frames with other codes from some codebook on: replies are made on frames that are not quite right."""
    count = len(codes)
    first = np.where(chance.random(count) < _DISTURBED_SHARE, chance.integers(0, CODEBOOKS, count), CODEBOOKS)
    changed = np.arange(CODEBOOKS) >= first[:, None]
    others = torch.from_numpy(chance.integers(0, CODES, codes.shape))
    return torch.where(torch.from_numpy(changed), others, codes)


def _llama(numbers: dict[str, Any]) -> LlamaModel:
    known = {
        name: value for name, value in numbers.items() if name not in ("audio_num_codebooks", "audio_embedding_dim")
    }
    model = LlamaModel(LlamaConfig(**{**known, "vocab_size": 1, "pad_token_id": None}))
    model.embed_tokens = nn.Identity()  # type: ignore[assignment]
    return model
