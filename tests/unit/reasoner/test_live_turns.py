"""A turn is read while it comes: in any pieces to the same bytes, so that next to nothing is left at its end."""

import asyncio
import math
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from services.inference.slots import Refused
from services.reasoner.engine import ReasonerEngine, ReasonerStream
from services.reasoner.live_prompt import Input
from services.reasoner.prompt import Clip, History, Samples, Turn
from tests.conftest import gated, started, until_idle
from tests.unit.stream_visits import rounds

NewEngine = Callable[..., ReasonerEngine]
Part = str | Samples

RATE, BLOCK_SAMPLES, BLOCK_POSITIONS = 16_000, 32_000, 50
STEP_COUNT = 3
SYSTEM = Turn("system", ("You are Chroma, a helpful assistant.",))


def noise(seconds: float, seed: int = 0, loudness: float = 0.1) -> Samples:
    count = round(RATE * seconds)
    return (loudness * np.random.default_rng(seed).normal(0, 1, count)).astype(np.float32)


def late_loud(seconds: float) -> Samples:
    """Soft, with silence in it, until something loud at the very end."""
    samples = noise(seconds, loudness=1e-3)
    samples[len(samples) // 4 : len(samples) // 2] = 0
    samples[-1] = 1
    return samples


def crescendo(seconds: float) -> Samples:
    """Louder and louder, and silent half of the time."""
    samples = noise(seconds)
    moments = np.arange(len(samples)) / RATE
    return (samples * np.exp(moments / 4 - 12) * (moments % 1 < 0.5)).astype(np.float32)


def silent(seconds: float) -> Samples:
    return np.zeros(round(RATE * seconds), np.float32)


SOUNDS = {"noise": noise, "late loud": late_loud, "crescendo": crescendo, "silent": silent}


def pieces(part: Part, size: int) -> list[Part]:
    return [part[start : start + size] for start in range(0, len(part), size)]


def turn(*parts: Part) -> Turn:
    return Turn("user", tuple(part if isinstance(part, str) else Clip(part) for part in parts))


@dataclass(frozen=True)
class Read:
    """A reply and what its prompt was; equal to another only if every bit is."""

    steps: list[tuple[int, bytes]]
    token_ids: list[int]
    stream: ReasonerStream = field(compare=False)


async def finished(stream: ReasonerStream) -> Read:
    stream.end()
    steps = [(step.token_id, step.hidden_state.tobytes()) async for step in stream]
    assert stream.prompt is not None
    return Read(steps, stream.prompt.token_ids, stream)


async def at_once(engine: ReasonerEngine, turns: Sequence[Turn]) -> Read:
    """The reply to a conversation that comes as a whole."""
    async with engine.open(stream := ReasonerStream(STEP_COUNT)):
        await stream.send(list(turns))
        return await finished(stream)


async def in_pieces(engine: ReasonerEngine, inputs: Sequence[Input], waits: Iterator[int]) -> Read:
    """The reply to one that comes piece by piece, with so many rounds between the pieces."""
    async with engine.open(stream := ReasonerStream(STEP_COUNT)):
        for item in inputs:
            await stream.send(item)
            await rounds(engine, next(waits))
        return await finished(stream)


async def until_heard(engine: ReasonerEngine, stream: ReasonerStream) -> None:
    """Returns when all is done that can be done with what was sent."""
    while await engine.call(lambda: bool(stream.inbox) or stream.is_in_queue):
        pass


@asynccontextmanager
async def hearing(engine: ReasonerEngine, *inputs: Input) -> AsyncIterator[ReasonerStream]:
    """A stream that has done all that it can with its input so far."""
    async with engine.open(stream := ReasonerStream(STEP_COUNT)):
        for item in inputs:
            await stream.send(item)
        await until_heard(engine, stream)
        yield stream


@dataclass
class Work:
    """Blocks that were encoded, and positions that were prefilled."""

    block_count: int = 0
    position_count: int = 0


@contextmanager
def counted(engine: ReasonerEngine, monkeypatch: pytest.MonkeyPatch) -> Iterator[Work]:
    """What is done within the block."""
    work, encode, prefill = Work(), engine.model.encode_block, engine.model.prefill

    def counted_encode(mel: Any) -> Any:
        work.block_count += 1
        return encode(mel)

    def counted_prefill(chunk: Any, cache: Any) -> Any:
        work.position_count += int(chunk.last) + 1
        return prefill(chunk, cache)

    with monkeypatch.context() as patch:
        patch.setattr(engine.model, "encode_block", counted_encode)
        patch.setattr(engine.model, "prefill", counted_prefill)
        yield work


@pytest.fixture(scope="module")
def new_engine(new_reasoner_engine: NewEngine) -> NewEngine:
    def make(**shape: int) -> ReasonerEngine:
        return new_reasoner_engine(**({"slot_count": 1, "context_length": 2048} | shape))

    return make


# --- the same bytes


@pytest.mark.parametrize("size", [16, 320, 12_345, 10**9], ids=["1 ms", "20 ms", "odd", "whole"])
@pytest.mark.parametrize("seconds", [0.3, 1.9, 2.0, 2.002, 4.51, 60.0])
@pytest.mark.parametrize("kind", SOUNDS)
async def test_a_clip_in_pieces_gives_the_bytes_of_the_whole(
    new_engine: NewEngine, kind: str, seconds: float, size: int
) -> None:
    if size * 3000 < seconds * RATE:
        size *= 20  # in the smallest pieces long clips take too long
    sound = SOUNDS[kind](seconds)
    async with started(new_engine()) as engine:
        whole = await at_once(engine, [SYSTEM, turn(sound)])
    async with started(new_engine()) as engine:
        read = await in_pieces(engine, [History((SYSTEM,)), *pieces(sound, size)], iter(int, 1))
    assert read == whole
    assert whole.stream.redone_block_count == 0
    assert whole.stream.turn_block_count == read.stream.turn_block_count == whole.stream.encoded_block_count
    assert read.stream.encoded_block_count == read.stream.turn_block_count + read.stream.redone_block_count


PART = st.one_of(
    st.text("ab .\n", min_size=1, max_size=12),
    st.builds(
        lambda kind, milliseconds: SOUNDS[kind](milliseconds / 1000),
        st.sampled_from(sorted(SOUNDS)),
        st.sampled_from([30, 300, 1990, 2000, 2001, 2500, 4700]),
    ),
)


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(parts=st.lists(PART, min_size=1, max_size=4), past=st.booleans(), chance=st.randoms(use_true_random=False))
def test_a_turn_in_pieces_gives_the_bytes_of_the_whole(
    new_engine: NewEngine, parts: list[Part], past: bool, chance: Any
) -> None:
    """Texts and clips mixed, after sound in the history, in pieces of any sizes at any times."""
    history = (SYSTEM, turn("hear this", noise(2.3, 7)), Turn("assistant", ("I did.",))) if past else ()
    said: list[Part] = []
    for part in parts:  # sound beside sound would be one clip
        if not said or isinstance(said[-1], str) or isinstance(part, str):
            said.append(part)
    inputs: list[Input] = [History(history)] if past else []
    for part in said:
        start = 0
        while start < len(part):
            size = chance.choice([1, 3, len(part)]) if isinstance(part, str) else chance.choice([160, 5000, 30_000])
            inputs.append(part[start : start + size])
            start += size

    async def scenario() -> None:
        shape = {"prefill_chunk": chance.choice([4, 64])}
        async with started(new_engine(**shape)) as engine:
            whole = await at_once(engine, [*history, turn(*said)])
        async with started(new_engine(**shape)) as engine:
            assert await in_pieces(engine, inputs, iter(lambda: chance.choice([0, 0, 1, 5]), None)) == whole

    asyncio.run(scenario())


async def test_turns_that_are_spoken_at_once_each_get_the_reply_they_get_alone(new_engine: NewEngine) -> None:
    said = [make(seconds) for make in SOUNDS.values() for seconds in (0.7, 4.2)]
    alone = []
    for sound in said:
        async with started(new_engine()) as engine:
            alone.append(await at_once(engine, [SYSTEM, turn(sound)]))
    async with started(new_engine(slot_count=3, queue_limit=len(said))) as engine:
        together = await asyncio.gather(
            *(
                in_pieces(engine, [History((SYSTEM,)), *pieces(sound, 800 + 400 * index)], iter(lambda: 2, None))
                for index, sound in enumerate(said)
            )
        )
        await until_idle(engine)
        assert not engine._prefilling
    assert together == alone


# --- what is left at the end


@pytest.mark.parametrize("seconds", [0.3, 1.99, 2.0, 2.001, 2.01, 3.99, 4.0, 4.5, 9.8])
async def test_after_the_end_a_block_and_the_templates_tail_are_left(
    new_engine: NewEngine, monkeypatch: pytest.MonkeyPatch, seconds: float
) -> None:
    async with (
        started(new_engine()) as engine,
        hearing(engine, History((SYSTEM,)), *pieces(noise(seconds), 3200)) as stream,
    ):
        with counted(engine, monkeypatch) as work:
            read = await finished(stream)
        assert stream.prompt is not None
        tail = len(read.token_ids) - stream.prompt.clip_spans[-1][1]
        assert work.block_count <= 1
        assert work.position_count <= BLOCK_POSITIONS + tail
        assert tail < 10


async def test_the_past_is_read_before_the_first_sample(new_engine: NewEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    """Up to where a clip's first position will be; a turn that is typed takes back no more than that guess."""
    history = History((SYSTEM, turn(noise(2.5)), Turn("assistant", ("I see.",))))
    for part, most in ((noise(0.3), 0), ("and now?", 2)):
        async with started(new_engine(slot_count=2)) as engine, hearing(engine, history) as stream:
            known = stream.column
            await stream.send(part)
            with counted(engine, monkeypatch) as work:
                read = await finished(stream)
            assert known - most <= len(read.token_ids) - work.position_count <= known
            assert read == await at_once(engine, [*history.turns, turn(part)])


async def test_of_a_text_nothing_is_read_before_its_end(new_engine: NewEngine) -> None:
    """Its last token may change with what follows."""
    async with started(new_engine(slot_count=2)) as engine, hearing(engine, History((SYSTEM,))) as stream:
        known = stream.column
        for piece in ("wha", "t i", "s"):
            await stream.send(piece)
            await until_heard(engine, stream)
            assert stream.column == known
        await stream.send(noise(0.2))
        await until_heard(engine, stream)
        assert stream.column > known
        assert await finished(stream) == await at_once(engine, [SYSTEM, turn("what is", noise(0.2))])


# --- the floor


async def test_only_blocks_that_the_floor_reaches_are_done_again(new_engine: NewEngine) -> None:
    """The first has nothing so soft, the second has silence; then, in the third, something louder."""
    sound = np.concatenate((noise(2), noise(1.9, 1), silent(0.1), noise(1.0, 2), 5 * noise(0.5, 3), noise(0.3, 4)))
    async with started(new_engine()) as engine, hearing(engine, History((SYSTEM,)), sound[: 4 * RATE + 1600]) as stream:
        assert (stream.encoded_block_count, stream.redone_block_count) == (2, 0)
        known = stream.column
        await stream.send(sound[4 * RATE + 1600 :])
        await until_heard(engine, stream)
        assert (stream.encoded_block_count, stream.redone_block_count) == (3, 1)
        assert stream.column == known
        read = await finished(stream)
        assert (stream.turn_block_count, stream.encoded_block_count, stream.redone_block_count) == (3, 4, 1)
    async with started(new_engine()) as engine:
        assert read == await at_once(engine, [SYSTEM, turn(sound)])


def changed_block_count(engine: ReasonerEngine, sound: Samples, loud: int) -> int:
    """Full blocks before sample `loud` whose features are others without it."""
    without = sound.copy()
    without[loud] = 0
    one, other = (engine.features.extract(samples)[:, : loud // BLOCK_SAMPLES * 200] for samples in (sound, without))
    return sum(not a.equal(b) for a, b in zip(one.split(200, dim=1), other.split(200, dim=1), strict=True))


@pytest.mark.parametrize("before", [0.0, 0.8], ids=["in the last sample", "before the end"])
async def test_something_loud_is_dealt_with_when_it_comes(
    new_engine: NewEngine, monkeypatch: pytest.MonkeyPatch, before: float
) -> None:
    sound = late_loud(9)
    loud = len(sound) - 1 - round(before * RATE)
    sound[loud], sound[-1] = sound[-1], 0 if before else sound[-1]
    async with started(new_engine()) as engine, hearing(engine, *pieces(sound[:loud], 320)) as stream:
        redone = changed_block_count(engine, sound, loud)
        assert redone >= 2
        assert (stream.encoded_block_count, stream.redone_block_count) == (4, 0)
        await stream.send(sound[loud:])
        await until_heard(engine, stream)
        assert stream.redone_block_count == (redone if before else 0)
        with counted(engine, monkeypatch) as work:
            await finished(stream)
        assert stream.redone_block_count == redone
        assert work.block_count == (1 if before else 1 + redone)


# --- the conversation so far


async def test_what_was_said_live_is_found_in_the_history(
    new_engine: NewEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Up to the reply, whose tokens were decoded; so what a turn costs does not grow with their number."""
    history: tuple[Turn, ...] = (SYSTEM,)
    before: list[int] = []
    for_text: list[int] = []
    async with started(new_engine(slot_count=2)) as engine:
        for number, make in enumerate([noise, late_loud, crescendo, noise]):
            sound = make(2.5 + number)
            with counted(engine, monkeypatch) as work:
                async with hearing(engine, History(history), *pieces(sound, 320)) as stream:
                    read = await finished(stream)
            await until_idle(engine)
            if before:
                assert read.token_ids[: len(before)] == before
                assert stream.found_count == len(before)
            assert work.block_count == stream.turn_block_count + stream.redone_block_count
            for_text.append(len(read.token_ids) - stream.found_count - _positions(sound))
            before, history = read.token_ids, (*history, turn(sound), Turn("assistant", ("The quick brown fox.",)))
    assert len(set(for_text[1:])) == 1


def _positions(sound: Samples) -> int:
    return ((math.ceil(len(sound) / 160) - 1) // 2 - 1) // 2 + 1


async def test_sound_that_was_heard_needs_no_features_to_be_found(
    new_engine: NewEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with started(new_engine()) as engine:
        first = await at_once(engine, [SYSTEM, turn(noise(9))])
        history = [SYSTEM, turn(noise(9)), Turn("assistant", ("Yes.",)), turn("why?")]
        with gated(engine.features, "log_powers", at_call=0) as computed:
            second = await at_once(engine, history)
        assert (second.stream.found_count, computed.calls) == (len(first.token_ids), 0)
        # What is known of a sound is not all that is needed of it where the slot has something else.
        await at_once(engine, [turn("something else")])
        assert await at_once(engine, history) == second
        assert second.stream.encoded_block_count == 0


async def test_a_turn_that_is_given_up_leaves_what_it_had_read(new_engine: NewEngine) -> None:
    """A cough opens a stream that is cancelled soon: it may not cost the conversation its prefix."""
    async with started(new_engine()) as engine:
        history = (SYSTEM, turn(noise(2.5)), Turn("assistant", ("I see.",)))
        first = await at_once(engine, history[:2])
        async with hearing(engine, History(history), noise(4.5, 5)) as given_up:
            assert given_up.found_count == len(first.token_ids)
        await until_idle(engine)
        read = await in_pieces(engine, [History(history), *pieces(noise(3, 6), 1600)], iter(int, 1))
        assert read.stream.found_count >= given_up.column - 2 * BLOCK_POSITIONS
    async with started(new_engine()) as engine:
        assert read == await at_once(engine, [*history, turn(noise(3, 6))])


# --- others


async def test_a_turn_that_is_still_spoken_does_not_delay_one_that_has_ended(
    new_engine: NewEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = new_engine(slot_count=3, prefill_chunk=8)
    done: list[ReasonerStream] = []

    def noting(run: Callable[..., Any]) -> Callable[..., Any]:
        def noted(stream: ReasonerStream, *rest: Any) -> Any:
            done.append(stream)
            return run(stream, *rest)

        return noted

    for name in ("_encode", "_run"):
        monkeypatch.setattr(engine, name, noting(getattr(engine, name)))
    speaking, ended = [ReasonerStream(STEP_COUNT) for _ in range(2)], ReasonerStream(STEP_COUNT)
    ended.due_seconds = 60.0
    async with started(engine), engine.open(speaking[0]), engine.open(speaking[1]), engine.open(ended):
        with gated(engine.model, "encode_block", at_call=2) as gate:
            for stream in speaking:
                await stream.send(noise(30, stream.slot))
            await gate.reached()
            begun = len(done)
            await ended.send([SYSTEM, turn(noise(9), "what was that?")])
            ended.end()
            gate.opened.set()
            read = await finished(ended)
        last = max(index for index, stream in enumerate(done) if stream is ended)
        assert set(done[:begun]) <= set(speaking)
        assert done[begun : last + 1] == [ended] * (last + 1 - begun)
        for stream in speaking:
            await until_heard(engine, stream)
            assert stream.column > 14 * BLOCK_POSITIONS
    async with started(new_engine()) as engine:
        assert read == await at_once(engine, [SYSTEM, turn(noise(9), "what was that?")])


async def test_of_turns_that_have_ended_the_first_is_due_first(new_engine: NewEngine) -> None:
    """Whichever began first; one whose listener has time is due later."""
    streams = [ReasonerStream(STEP_COUNT) for _ in range(3)]
    streams[1].due_seconds = 60.0
    async with started(new_engine(slot_count=3)) as engine, AsyncExitStack() as opened:
        for stream in streams:
            await opened.enter_async_context(engine.open(stream))
            await stream.send(noise(1))
        for stream in reversed(streams):
            await finished(stream)
    assert streams[2].due_at < streams[0].due_at < streams[1].due_at


async def test_leaving_amid_a_turn_frees_all(new_engine: NewEngine) -> None:
    async with started(new_engine(slot_count=2)) as engine:
        for count in range(4):
            async with engine.open(stream := ReasonerStream()):
                await stream.send(History((SYSTEM,)))
                await stream.send(noise(5))
                await rounds(engine, count)
            await until_idle(engine)
            assert not engine.streams
            assert not engine._prefilling
        read = await in_pieces(engine, [History((SYSTEM,)), *pieces(noise(5), 999)], iter(int, 1))
    async with started(new_engine()) as engine:
        assert read == await at_once(engine, [SYSTEM, turn(noise(5))])


@pytest.mark.parametrize(
    ("inputs", "says"),
    [
        pytest.param([History((turn("<|im_end|>"),))], "special tokens", id="a special token in the history"),
        pytest.param(["<|im_", "end|>", noise(0.1)], "special tokens", id="one before a clip"),
        pytest.param([History((turn("word " * 300),))], "too long: it has", id="a history that is too long"),
        pytest.param([noise(15)], "too long: it has", id="a clip that is too long"),
        pytest.param([np.full(9000, 1e30, np.float32)], "too loud", id="a sound that is too loud"),
    ],
)
async def test_what_can_not_be_answered_is_refused_before_the_end(
    new_engine: NewEngine, inputs: list[Input], says: str
) -> None:
    async with started(new_engine(context_length=256)) as engine:
        async with engine.open(stream := ReasonerStream()):
            for item in inputs:
                await stream.send(item)
            with pytest.raises(Refused, match=says):
                await anext(stream)
        await until_idle(engine)
        assert (await at_once(engine, [turn("hello")])).steps


async def test_an_empty_conversation_is_refused(new_engine: NewEngine) -> None:
    async with started(new_engine()) as engine, engine.open(stream := ReasonerStream()):
        with pytest.raises(Refused, match="the conversation is empty"):
            await finished(stream)
