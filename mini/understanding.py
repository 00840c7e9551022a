"""What a recogniser understands of the miniature's speech, stage by stage: recordings, codec, replies."""

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from transformers import MimiModel

from client.evaluate.recogniser import Recogniser, word_errors
from mini.domain import PRONUNCIATIONS, answers
from mini.espeak import Samples
from mini.recordings import Recordings, step_counts
from mini.rhythm import RATE_HZ
from mini.speech import JOINED, SPEECH, Speech, Task, Utterance, Utterances, speak
from mini.states import states_of_answers
from mini.tokenizer import build

STAGES = ("recordings", "codec", "replies")


@dataclass(frozen=True)
class Understood:
    """Of how many sentences: the share that forced choice gets right, and of words that a bigram gets right."""

    count: int
    choice: float
    words: float
    wrong: list[tuple[str, str, str]]
    """Voice, sentence, what was chosen instead."""


def understood(said: Iterable[tuple[str, str, Samples]], *, words: bool = True) -> Understood:
    """What is understood of (voice, sentence, samples at RATE_HZ)."""
    choice = Recogniser.of_sentences(answers(), PRONUNCIATIONS)
    free = Recogniser.of_words(answers(), PRONUNCIATIONS)
    count = right = errors = total = 0
    wrong = []
    for voice, sentence, samples in said:
        found = choice.read(samples, RATE_HZ)
        count, right = count + 1, right + (found == sentence)
        if found != sentence:
            wrong.append((voice, sentence, found))
        if words:
            errors += word_errors(sentence.split(), free.read(samples, RATE_HZ).split())
            total += len(sentence.split())
    return Understood(count, right / count, 1 - errors / total if words else float("nan"), wrong)


def spoken(folder: Path, stage: str, stride: int) -> list[tuple[str, str, Samples]]:
    """Every `stride`-th answer, in all voices, as it sounds after a stage: (voice, sentence, samples)."""
    recordings = Recordings(folder / "answers")
    sentences = set(answers()[::stride])
    chosen = [item for item in recordings.items if item.sentence in sentences]
    if stage == "recordings":
        return [(item.speaker, item.sentence, recordings.samples(item)) for item in chosen]
    kept = folder / "codec"
    codec = MimiModel.from_pretrained(kept if kept.exists() else folder / "codec_quantized").eval()
    tokenizer = build(step_counts(folder))
    is_joined = (folder / f"{JOINED.name}.pt").exists()
    utterances = Utterances(folder, tokenizer, states_of_answers(folder) if is_joined else None)
    wanted = {(item.speaker, item.sentence) for item in chosen}
    targets = [it for it in utterances.all if (it.voice, it.sentence) in wanted]
    if stage == "codec":
        codes = [it.codes for it in targets]
    else:
        model = Speech(tokenizer.get_vocab_size())
        plan = JOINED if is_joined else SPEECH
        model.load_state_dict(torch.load(folder / f"{plan.name}.pt", weights_only=True)["module"])
        codes = _replies(model.eval(), utterances, targets)
    return [(it.voice, it.sentence, _decoded(codec, each)) for it, each in zip(targets, codes, strict=True)]


def _replies(model: Speech, utterances: Utterances, targets: list[Utterance]) -> list[Tensor]:
    chance = np.random.default_rng(9)
    alike = defaultdict(list)
    for index, target in enumerate(targets):
        alike[target.voice, len(target.token_ids)].append(index)
    found: dict[int, Tensor] = {}
    for (voice, _), indices in alike.items():
        prompt = utterances.prompts[voice][0]
        tasks = [Task(prompt, targets[index], utterances.hidden(targets[index], chance)) for index in indices]
        found |= dict(zip(indices, speak(model, tasks), strict=True))
    return [found[index] for index in range(len(targets))]


@torch.no_grad()
def _decoded(codec: MimiModel, codes: Tensor) -> Samples:
    if not len(codes):
        return np.zeros(RATE_HZ // 10, np.float32)
    samples: Samples = codec.decode(codes.T[None]).audio_values[0, 0].numpy()
    return samples
