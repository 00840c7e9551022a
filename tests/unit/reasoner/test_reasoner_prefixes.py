"""What slots still hold of prompts is found again: where they differ, whose it was, and never another's sound."""

import asyncio
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import takewhile
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from services.inference.slots import NotFinite
from services.inference.tokenizer import Tokenizer
from services.reasoner.engine import ReasonerEngine, ReasonerStream
from services.reasoner.prompt import Clip, Prompt, Turn
from tests.conftest import gated, started, until_idle
from tests.unit.stream_visits import rounds

NewEngine = Callable[..., ReasonerEngine]
Steps = list[tuple[int, bytes]]

SYSTEM = Turn("system", ("You are Chroma, a helpful assistant.",))
STEP_COUNT = 4


def common(one: list[int], other: list[int]) -> int:
    """How many tokens two prompts begin with alike."""
    return len(list(takewhile(lambda pair: pair[0] == pair[1], zip(one, other, strict=False))))


@dataclass
class Written:
    """One reply: its steps, and what its prompt was."""

    steps: Steps
    found_count: int
    prompt: Prompt


async def write(engine: ReasonerEngine, turns: list[Turn], resumed: list[int] | None = None) -> Written:
    stream = ReasonerStream(STEP_COUNT, resumed or [])
    async with engine.open(stream):
        await stream.send(turns)
        stream.end()
        steps = [(step.token_id, step.hidden_state.tobytes()) async for step in stream]
    await rounds(engine, 1)  # its slot is free
    assert stream.prompt is not None
    return Written(steps, stream.found_count, stream.prompt)


class Marks(Tokenizer):
    """A tokenizer by which a conversation's only text is its prompt, a token for each character."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer._tokenizer

    def refuse_special_tokens(self, text: str) -> None:
        """Takes all."""

    def render(self, messages: Sequence[dict[str, Any]]) -> str:
        return str(messages[0]["content"][0]["text"])

    def encode(self, text: str) -> list[int]:
        return [ord(mark) for mark in text]

    def token(self, token_id: int) -> str:
        return "no text has this"


@dataclass
class Tokens:
    """Prompts told by their tokens, so that a test may let them differ anywhere."""

    new_engine: NewEngine
    known: dict[tuple[int, ...], Steps] = field(default_factory=dict, repr=False)

    def engine(self, **shape: int) -> ReasonerEngine:
        engine = self.new_engine(**({"context_length": 128} | shape))
        engine.tokenizer = Marks(engine.tokenizer)
        return engine

    def turns(self, tokens: list[int]) -> list[Turn]:
        return [Turn("user", ("".join(map(chr, tokens)),))]

    async def alone(self, tokens: list[int]) -> Steps:
        """The reply in an engine that was never used before."""
        if (key := tuple(tokens)) not in self.known:
            async with started(self.engine(slot_count=1)) as engine:
                self.known[key] = (await write(engine, self.turns(tokens))).steps
        return self.known[key]


@pytest.fixture(scope="module")
def tokens(new_reasoner_engine: NewEngine) -> Tokens:
    return Tokens(new_reasoner_engine)


BASE = np.random.default_rng(0).integers(20, 390, 37).tolist()
OTHER = [token + 1 for token in BASE]


@pytest.mark.parametrize("slot_count", [1, 2])
@pytest.mark.parametrize("tail", [0, 1, 20])
async def test_a_prefix_of_every_length_is_found_and_gives_the_same_bytes(
    tokens: Tokens, slot_count: int, tail: int
) -> None:
    """In another slot and in the reply's own; of the whole prompt all but the last position, whose state is needed."""
    for length in range(len(BASE) + 1):
        prompt = BASE[:length] + (OTHER[length:] + OTHER)[:tail]
        if not prompt:
            continue
        chunk = (4, 16, 64)[length % 3]
        async with started(tokens.engine(slot_count=slot_count, prefill_chunk=chunk)) as engine:
            assert (await write(engine, tokens.turns(BASE))).found_count == 0
            with gated(engine.model, "prefill", at_call=0) as counted:
                written = await write(engine, tokens.turns(prompt))
        assert written.found_count == min(length, len(prompt) - 1), length
        assert counted.calls == math.ceil((len(prompt) - written.found_count) / chunk), length
        assert written.steps == await tokens.alone(prompt), length


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    prompts=st.lists(st.lists(st.sampled_from([30, 31]), min_size=1, max_size=7), min_size=2, max_size=8),
    slot_count=st.integers(1, 3),
)
def test_whatever_came_before_the_longest_prefix_that_is_left_is_found(
    tokens: Tokens, prompts: list[list[int]], slot_count: int
) -> None:
    """Slots are given in the order in which they were left, so the last so many prompts are there."""

    async def scenario() -> None:
        async with started(tokens.engine(slot_count=slot_count, prefill_chunk=4)) as engine:
            for number, prompt in enumerate(prompts):
                written = await write(engine, tokens.turns(prompt))
                left = prompts[max(0, number - slot_count) : number]
                longest = max((common(prompt, other) for other in left), default=0)
                assert written.found_count == min(longest, len(prompt) - 1)
                assert written.steps == await tokens.alone(prompt)

    asyncio.run(scenario())


async def test_tokens_that_were_decoded_are_not_found(tokens: Tokens) -> None:
    """A prompt with the reply in it would have been prefilled, which rounds in another way."""
    async with started(tokens.engine(slot_count=2)) as engine:
        first = await write(engine, tokens.turns(BASE))
        longer = [*BASE, *(token for token, _ in first.steps), 30]
        written = await write(engine, tokens.turns(longer))
    assert written.found_count == len(BASE)
    assert written.steps == await tokens.alone(longer)


# --- whose it was


async def test_a_donor_that_is_still_writing_is_left_in_peace(tokens: Tokens) -> None:
    async with started(tokens.engine(slot_count=3)) as engine:
        donor = ReasonerStream(STEP_COUNT)
        donor._outbox_limit = 2
        async with engine.open(donor):
            await donor.send(tokens.turns(BASE))
            donor.end()
            while donor.writable:
                await rounds(engine, 1)
            for length in (37, 20, 3):
                written = await write(engine, tokens.turns([*BASE[:length], 30, 31]))
                assert written.found_count == length
                assert written.steps == await tokens.alone([*BASE[:length], 30, 31])
            steps = [(step.token_id, step.hidden_state.tobytes()) async for step in donor]
        assert steps == await tokens.alone(BASE)


async def test_a_donor_may_have_left_amid_its_reply(tokens: Tokens) -> None:
    async with started(tokens.engine(slot_count=2)) as engine:
        async with engine.open(ReasonerStream()) as donor:
            await donor.send(tokens.turns(BASE))
            donor.end()
            await anext(donor)
        await until_idle(engine)
        written = await write(engine, tokens.turns([*BASE, 30]))
    assert written.found_count == len(BASE)
    assert written.steps == await tokens.alone([*BASE, 30])


async def test_of_what_was_half_prefilled_the_half_is_found(tokens: Tokens) -> None:
    """The stream left amid its second chunk; and what the slot held before is gone."""
    async with started(tokens.engine(slot_count=1, prefill_chunk=16)) as engine:
        assert (await write(engine, tokens.turns(OTHER))).found_count == 0
        with gated(engine.model, "prefill", at_call=2) as gate:
            leaving = asyncio.create_task(write(engine, tokens.turns(BASE)))
            await gate.reached()
            leaving.cancel()
            with pytest.raises(asyncio.CancelledError):
                await leaving
            gate.opened.set()
            await until_idle(engine)
        for prompt, found_count in ((BASE, 32), (OTHER, 0)):
            written = await write(engine, tokens.turns(prompt))
            assert written.found_count == found_count
            assert written.steps == await tokens.alone(prompt)


async def test_a_prefill_that_fails_leaves_nothing_to_be_found(tokens: Tokens, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise RuntimeError("the device is lost")

    async with started(tokens.engine(slot_count=1)) as engine:
        await write(engine, tokens.turns(BASE))
        with monkeypatch.context() as patch:
            patch.setattr(engine.model, "prefill", broken)
            with pytest.raises(RuntimeError, match="the device is lost"):
                await write(engine, tokens.turns([*BASE, 30]))
        await until_idle(engine)
        written = await write(engine, tokens.turns(BASE))
        assert written.found_count == 0
        assert written.steps == await tokens.alone(BASE)


async def test_a_donor_that_was_overwritten_since_is_no_donor(tokens: Tokens) -> None:
    prompts = [BASE, [*BASE[:9], 30, 31], OTHER]
    async with started(tokens.engine(slot_count=2)) as engine:
        for prompt in prompts:
            await write(engine, tokens.turns(prompt))
        written = await write(engine, tokens.turns(BASE))
    assert written.found_count == 9
    assert written.steps == await tokens.alone(BASE)


async def test_a_donor_may_be_overwritten_while_its_prefix_is_used(tokens: Tokens) -> None:
    """It is copied at once: what the other slot does afterwards is its own affair."""
    longer = [*BASE, *OTHER[::-1]]
    async with started(tokens.engine(slot_count=2, prefill_chunk=4)) as engine:
        await write(engine, tokens.turns(BASE))
        await write(engine, tokens.turns([31]))
        # Of the two slots the first is given first: `overwriting` gets the one with BASE, `using` copies from it.
        with gated(engine.model, "prefill") as gate:
            using, overwriting = ReasonerStream(STEP_COUNT), ReasonerStream(STEP_COUNT)
            async with engine.open(overwriting), engine.open(using):
                assert (overwriting.slot, using.slot) == (0, 1)
                await using.send(tokens.turns(longer))
                using.end()
                await gate.reached()
                await overwriting.send(tokens.turns(OTHER))
                overwriting.end()
                gate.opened.set()
                found = [
                    [(s.token_id, s.hidden_state.tobytes()) async for s in stream] for stream in (using, overwriting)
                ]
    assert using.found_count == len(BASE)
    assert found == [await tokens.alone(longer), await tokens.alone(OTHER)]


async def test_two_that_begin_alike_at_once_each_get_their_own(tokens: Tokens) -> None:
    prompts = [[*BASE[:length], 30] for length in (37, 37, 20, 1)]
    async with started(tokens.engine(slot_count=3, prefill_chunk=4)) as engine, engine.open(ReasonerStream()) as first:
        await first.send(tokens.turns(BASE))
        first.end()
        written = await asyncio.gather(*(write(engine, tokens.turns(prompt)) for prompt in prompts))
    assert [each.steps for each in written] == [await tokens.alone(prompt) for prompt in prompts]


async def test_a_reply_taken_up_finds_its_prompt_and_goes_on_with_the_same_bytes(tokens: Tokens) -> None:
    expected = await tokens.alone(BASE)
    async with started(tokens.engine(slot_count=2)) as engine:
        for count in range(STEP_COUNT + 1):
            written = await write(engine, tokens.turns(BASE), [token for token, _ in expected[:count]])
            assert written.steps == expected[count:]
            assert written.found_count == (len(BASE) - 1 if count else 0)


@pytest.mark.parametrize("at", ["prefill", "decode"])
async def test_a_reply_that_is_no_number_leaves_nothing_to_be_found(tokens: Tokens, at: str) -> None:
    expected = await tokens.alone(BASE)
    async with started(tokens.engine(slot_count=1)) as engine:
        table = engine.model.embed_tokens.weight
        poison = BASE[20] if at == "prefill" else expected[0][0]
        assert at == "prefill" or poison not in BASE
        kept = table[poison].clone()
        table[poison] = torch.nan
        try:
            with pytest.raises(NotFinite, match="step 0" if at == "prefill" else "step 1"):
                await write(engine, tokens.turns(BASE))
            await until_idle(engine)
        finally:
            table[poison] = kept
        written = await write(engine, tokens.turns(BASE))
        assert written.found_count == 0
        assert written.steps == expected


# --- conversations


@dataclass
class Conversations:
    """Real conversations and their replies in engines that were never used before."""

    new_engine: NewEngine

    async def alone(self, turns: list[Turn]) -> Steps:
        async with started(self.new_engine(slot_count=1)) as engine:
            return (await write(engine, turns)).steps


@pytest.fixture
def conversations(new_reasoner_engine: NewEngine) -> Conversations:
    return Conversations(new_reasoner_engine)


def sound(seed: int, seconds: float) -> np.ndarray:
    return (0.1 * np.random.default_rng(seed).normal(0, 1, round(16_000 * seconds))).astype(np.float32)


def said(*parts: str | np.ndarray) -> Turn:
    return Turn("user", tuple(part if isinstance(part, str) else Clip(part) for part in parts))


def answered(text: str) -> Turn:
    return Turn("assistant", (text,))


SOUND, LATER = sound(0, 2.5), sound(1, 0.6)
QUIETER = (SOUND * np.float32(0.5)).astype(np.float32)
ALTERED = SOUND.copy()
ALTERED[-1] += 1e-6


QUIET_THEN_LOUD = np.concatenate((SOUND * np.float32(1e-4), np.zeros(4000, "<f4"), sound(2, 2.5)))


@dataclass(frozen=True)
class Pair:
    """Two conversations, and how many positions of the second's first clip are found of the first's: 50 a block of 2 s,
    or all. None: they differ before the clip."""

    first: list[Turn]
    second: list[Turn]
    found_count: int | None


ALL = 62
PAIRS = {
    "another question after the sound": Pair([SYSTEM, said(SOUND, "a")], [SYSTEM, said(SOUND, "b c")], ALL),
    "the same sound, read anew": Pair([SYSTEM, said(SOUND)], [SYSTEM, said(SOUND.copy())], ALL),
    "the conversation goes on": Pair([SYSTEM, said(SOUND)], [SYSTEM, said(SOUND), answered("a"), said(LATER)], ALL),
    "longer by a sample": Pair([SYSTEM, said(SOUND)], [SYSTEM, said(np.append(SOUND, np.float32(0)))], 50),
    "longer by a second": Pair([SYSTEM, said(SOUND)], [SYSTEM, said(np.append(SOUND, LATER))], 50),
    "shorter": Pair([SYSTEM, said(SOUND)], [SYSTEM, said(SOUND[:-4000])], 50),
    "the first two seconds": Pair([SYSTEM, said(SOUND)], [SYSTEM, said(SOUND[:32_000])], 0),
    "another sound as long": Pair([SYSTEM, said(SOUND)], [SYSTEM, said(sound(5, 2.5))], 0),
    "less loud": Pair([SYSTEM, said(SOUND)], [SYSTEM, said(QUIETER)], 0),
    "one sample altered": Pair([SYSTEM, said(SOUND)], [SYSTEM, said(ALTERED)], 50),
    "silence of two lengths": Pair([said(np.zeros(16_000, "<f4"))], [said(np.zeros(24_000, "<f4"))], 0),
    "longer by something loud": Pair([SYSTEM, said(QUIET_THEN_LOUD[:36_000])], [SYSTEM, said(QUIET_THEN_LOUD)], 0),
    "the sounds in another order": Pair([SYSTEM, said(SOUND, LATER)], [SYSTEM, said(LATER, SOUND)], 0),
    "another instruction": Pair([SYSTEM, said(SOUND)], [Turn("system", ("You are Nobody.",)), said(SOUND)], None),
    "no instruction": Pair([SYSTEM, said(SOUND)], [said(SOUND)], None),
}


@pytest.mark.parametrize("name", PAIRS)
async def test_of_a_clip_the_blocks_are_found_that_begin_alike(
    new_reasoner_engine: NewEngine, conversations: Conversations, name: str
) -> None:
    pair = PAIRS[name]
    async with started(new_reasoner_engine(slot_count=2)) as engine:
        first = await write(engine, pair.first)
        with gated(engine.model, "encode_block", at_call=0) as counted:
            second = await write(engine, pair.second)
    assert second.steps == await conversations.alone(pair.second)
    alike = common(first.prompt.token_ids, second.prompt.token_ids)
    start, end = second.prompt.clip_spans[0]
    clips = [part for turn in pair.second for part in turn.parts if isinstance(part, Clip)]
    if pair.found_count == end - start:
        assert second.found_count == min(alike, len(second.prompt.token_ids) - 1)
        assert counted.calls == blocks(clips[1:])
    elif pair.found_count is not None:
        assert second.found_count == start + pair.found_count
        assert counted.calls == blocks(clips) - pair.found_count // 50
    else:
        assert second.found_count == min(start, alike)
        assert counted.calls == blocks(clips)


def blocks(clips: list[Clip]) -> int:
    """Blocks of 2 s that have to be encoded; one or two mel frames at the end have no position."""
    return sum(math.ceil((math.ceil(len(clip.samples) / 160) - 2) / 200) for clip in clips)


async def test_turn_after_turn_only_what_is_new_is_run(
    new_reasoner_engine: NewEngine, conversations: Conversations
) -> None:
    """As in a session: each prompt is the one before, the reply, and what was said since."""
    turns: list[Turn] = [SYSTEM]
    before: list[int] = []
    async with started(new_reasoner_engine(slot_count=3)) as engine:
        for number in range(4):
            turns = [*turns, said(sound(number, 0.5 + number))]
            with gated(engine.model, "encode_block", at_call=0) as counted:
                written = await write(engine, turns)
            assert counted.calls == blocks([Clip(sound(number, 0.5 + number))])
            assert written.steps == await conversations.alone(turns)
            ids = written.prompt.token_ids
            assert written.found_count == common(before, ids) >= len(before) - 8
            before, turns = ids, [*turns, answered("The quick brown fox.")]


async def test_sounds_are_told_apart_by_a_key_of_the_engines_own(new_reasoner_engine: NewEngine) -> None:
    """So nobody can make a sound elsewhere that passes for another's."""
    features = torch.zeros((128, 200))
    one, other = (new_reasoner_engine()._new_clip.args[-1] for _ in range(2))
    assert one.identity(features) == one.identity(features.clone())
    assert one.identity(features) != other.identity(features)
    assert one.identity(features) != one.identity(features[:, 1:])
