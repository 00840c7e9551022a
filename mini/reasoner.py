"""Training the reasoner: from what was said, or typed, to the text of the answer."""

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils.rnn import pad_sequence
from transformers.models.qwen2_5_omni.configuration_qwen2_5_omni import Qwen2_5OmniTextConfig
from transformers.models.qwen2_5_omni.modeling_qwen2_5_omni import Qwen2_5OmniThinkerTextModel

from mini.domain import Exchange, follow_ups, single_exchanges
from mini.espeak import Samples
from mini.hearing import Heard, Hearing, alike_in_length, disturbed, surrounded
from mini.recordings import Recording, Recordings, step_counts
from mini.sizes import HIDDEN, LANGUAGE_MODEL
from mini.tokenizer import AUDIO, AUDIO_END, AUDIO_START, PAD, TURN_END, TURN_START, build
from mini.training import Plan, Scores, Training, reduced_precision

REASONER = Plan("reasoner", steps=9000, learning_rate=1.2e-3, weight_decay=0.02)

_BATCH, _PADDED_TOGETHER = 20, 7
_TYPED_SHARE, _FOLLOWING_SHARE = 0.12, 0.28
_EMBEDDING_SIZE = 0.3
_CTC_WEIGHT = 0.3
_SCORED = 160


@dataclass(frozen=True)
class Conversation:
    """An exchange, with what was said in it and in the one before: a clip each, or nothing where it was typed."""

    exchange: Exchange
    said: tuple[Samples | None, ...]


@dataclass(frozen=True)
class Read:
    """The reasoner's states [B, L, hidden] over prompts and answers, and the answers' places: those of `targets`.

    predicting [B, L] bool: where the next token is one of the answer; targets [n]: those tokens, in order.
    """

    states: Tensor
    predicting: Tensor
    targets: Tensor
    heard: Heard | None


class Reasoner(nn.Module):
    """The reasoner in transformers' modules.

    Token embeddings are drawn once and stay: the speech stage reads the same table, so it can be trained beside.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        super().__init__()
        self.tokenizer = tokenizer
        self.hearing = Hearing()
        config = Qwen2_5OmniTextConfig(**LANGUAGE_MODEL, vocab_size=tokenizer.get_vocab_size(), pad_token_id=None)
        self.model = Qwen2_5OmniThinkerTextModel(config)
        self.model.embed_tokens.weight.data.copy_(token_embeddings(tokenizer.get_vocab_size()))
        self.model.embed_tokens.weight.requires_grad_(False)
        self.lm_head = nn.Linear(HIDDEN, tokenizer.get_vocab_size(), bias=False)
        self.spelling = nn.Linear(HIDDEN, tokenizer.get_vocab_size())
        """Reads the tokens of what was said from the audio embeddings: for training alone."""

    def forward(self, conversations: list[Conversation]) -> Read:
        """Reads conversations with their answers."""
        clips = [clip for it in conversations for clip in it.said if clip is not None]
        heard = self.hearing(self.hearing.features(clips)) if clips else None
        counts = iter(heard.counts if heard else ())
        ids, answers = [], []
        for conversation in conversations:
            prompt, answer = self._tokens(conversation, counts)
            ids.append(torch.tensor(prompt + answer))
            answers.append(len(answer))
        # Padding at the end is seen by nothing before it.
        tokens = pad_sequence(ids, batch_first=True, padding_value=PAD).to(self.lm_head.weight.device)
        embedded = self.model.embed_tokens(tokens)
        if heard is not None:
            embedded = embedded.masked_scatter((tokens == AUDIO)[..., None], heard.embeddings.to(embedded.dtype))
        states = self.model(inputs_embeds=embedded, use_cache=False).last_hidden_state
        places = torch.arange(tokens.shape[1], device=tokens.device)
        lengths = torch.tensor([len(it) for it in ids], device=tokens.device)[:, None]
        spoken = torch.tensor(answers, device=tokens.device)[:, None]
        predicting = (places >= lengths - spoken - 1) & (places < lengths - 1)
        return Read(states, predicting, tokens.roll(-1, dims=1)[predicting], heard)

    def _tokens(self, conversation: Conversation, counts: Iterator[int]) -> tuple[list[int], list[int]]:
        said = list(conversation.said)
        exchange = conversation.exchange
        prompt: list[int] = []
        for part in ([exchange.before] if exchange.before else []) + [exchange]:
            clip = said.pop(0)
            if clip is None:
                content = self.encode(part.question)
            else:
                content = [AUDIO_START, *[AUDIO] * next(counts), AUDIO_END]
            prompt += [TURN_START, *self.encode("user"), *content, TURN_END, TURN_START, *self.encode("assistant")]
            answer = [*self.encode(part.answer), TURN_END]
            if part is not exchange:
                prompt += answer
        return prompt, answer

    def encode(self, text: str) -> list[int]:
        """Token ids."""
        ids: list[int] = self.tokenizer.encode(text).ids
        return ids


def token_embeddings(count: int) -> Tensor:
    """The table [count, hidden] as it is shipped."""
    drawn = torch.randn(count, HIDDEN, generator=torch.Generator().manual_seed(7))
    return (_EMBEDDING_SIZE * drawn).bfloat16().float()


class Asked:
    """Recorded questions by their sentence."""

    def __init__(self, path: Path) -> None:
        self._recordings = Recordings(path)
        self._of: dict[str, list[Recording]] = defaultdict(list)
        for item in self._recordings.items:
            self._of[item.sentence].append(item)

    def clip(self, question: str, chance: np.random.Generator) -> Samples:
        """One of the recordings of a question."""
        found = self._of[question]
        return self._recordings.samples(found[chance.integers(len(found))])


class Curriculum:
    """Draws the conversations of a step, or those that scores are taken on."""

    def __init__(self, folder: Path) -> None:
        self._asked = {name: Asked(folder / name) for name in ("questions", "questions_anew", "questions_strangers")}
        self._single = single_exchanges()
        self._following: dict[str, list[Exchange]] = defaultdict(list)
        for exchange in follow_ups():
            self._following[exchange.kind].append(exchange)
        sizes = np.array([len(found) ** 0.5 for found in self._following.values()])
        self._shares = sizes / sizes.sum()

    def batch(self, step: int) -> list[Conversation]:
        """The conversations of one step."""
        chance = np.random.default_rng((3, step))
        return [self._drawn(chance) for _ in range(_BATCH)]

    def scored(self, asked: str, *, following: bool) -> list[Conversation]:
        """A fixed choice with recordings that training does not hear."""
        chance = np.random.default_rng(5)
        found = []
        for index in range(_SCORED):
            exchange = self._follow_up(chance) if following else self._single[index * len(self._single) // _SCORED]
            said = tuple(
                surrounded(
                    self._asked[asked].clip(part.question, chance),
                    before_seconds=0.25,
                    after_seconds=0.3,
                    noise=1e-4,
                    chance=chance,
                )
                for part in (exchange.before, exchange)
                if part
            )
            found.append(Conversation(exchange, said))
        return found

    def _drawn(self, chance: np.random.Generator) -> Conversation:
        if chance.random() < _FOLLOWING_SHARE:
            exchange = self._follow_up(chance)
        else:
            exchange = self._single[chance.integers(len(self._single))]
        said = []
        for part in (exchange.before, exchange):
            if part:
                typed = chance.random() < _TYPED_SHARE
                clip = None if typed else self._asked["questions"].clip(part.question, chance)
                said.append(None if clip is None else disturbed(clip, chance))
        return Conversation(exchange, tuple(said))

    def _follow_up(self, chance: np.random.Generator) -> Exchange:
        kinds = list(self._following)
        found = self._following[kinds[chance.choice(len(kinds), p=self._shares)]]
        return found[chance.integers(len(found))]


def train(folder: Path, device: torch.device, plan: Plan = REASONER) -> Reasoner:
    """The training, whatever of it is left."""
    torch.manual_seed(1)
    model = Reasoner(build(step_counts(folder))).to(device)
    curriculum = Curriculum(folder)
    Training(folder, plan, model).run(
        lambda step: loss(model, curriculum.batch(step)),
        lambda: score(model, curriculum),
    )
    return model


def loss(model: Reasoner, conversations: list[Conversation]) -> tuple[Tensor, Scores]:
    """How far the answers are from being certain, and the spelling of what was heard."""
    lengths = [sum(len(clip) for clip in it.said if clip is not None) for it in conversations]
    batches = [[conversations[index] for index in alike] for alike in alike_in_length(lengths, _PADDED_TOGETHER)]
    with reduced_precision(model.lm_head.weight.device.type):
        reads = [model(batch) for batch in batches]
        logits = model.lm_head(torch.cat([read.states[read.predicting] for read in reads])).float()
    targets = torch.cat([read.targets for read in reads])
    answer = functional.cross_entropy(logits, targets)
    right = (logits.argmax(dim=1) == targets).float().mean()
    in_order = [conversation for batch in batches for conversation in batch]
    spelling = _spelling_loss(model, in_order, [read.heard for read in reads if read.heard is not None])
    scores = {"answer": answer.item(), "token": right.item(), "spelling": spelling.item()}
    return answer + _CTC_WEIGHT * spelling, scores


def score(model: Reasoner, curriculum: Curriculum) -> Scores:
    """The share of exactly right answers."""
    return {
        f"{asked}{'_following' * following}": exact_share(model, curriculum.scored(asked, following=following))
        for asked in ("questions_anew", "questions_strangers")
        for following in (False, True)
    }


def exact_share(model: Reasoner, conversations: list[Conversation]) -> float:
    """How many answers come out exactly: greedy choice is right throughout when it is right after each right prefix."""
    right = []
    for first in range(0, len(conversations), _BATCH):
        read = model(conversations[first : first + _BATCH])
        correct = torch.ones_like(read.predicting)
        correct[read.predicting] = model.lm_head(read.states[read.predicting]).argmax(dim=1) == read.targets
        right += correct.all(dim=1).tolist()
    return float(np.mean(right))


def _spelling_loss(model: Reasoner, conversations: list[Conversation], heard: list[Heard]) -> Tensor:
    if not heard:
        return torch.zeros(())
    counts = [count for each in heard for count in each.counts]
    wanted = [
        model.encode(part.question)
        for it in conversations
        for part, clip in zip(filter(None, (it.exchange.before, it.exchange)), it.said, strict=True)
        if clip is not None
    ]
    logits = model.spelling(torch.cat([each.embeddings for each in heard]).float()).log_softmax(dim=1)
    padded = pad_sequence(list(logits.split(counts)))
    return functional.ctc_loss(
        padded,
        torch.tensor([token for ids in wanted for token in ids], device=padded.device),
        torch.tensor(counts),
        torch.tensor([len(ids) for ids in wanted]),
        blank=PAD,
        zero_infinity=True,
    )
