"""The speech engine: the golden frames, however steps arrive, whoever else speaks, wherever a reply is taken up."""

import asyncio
import copy
import random
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import numpy as np
import pytest
import torch

from services.inference.checkpoint import Checkpoint
from services.inference.kv_cache import KvCache
from services.inference.sampling import Draw, GumbelNoise
from services.inference.slots import NotFinite, Refused
from services.speech import weights
from services.speech.engine import Codes, Sampling, SpeechEngine, SpeechFrame, SpeechStep, SpeechStream, Voice
from services.speech.model import SpeechModel
from tests.conftest import GoldenCase, Running, gated, started, until_idle

END_TOKEN_ID = 2
GREEDY = Sampling(temperature=0.0, top_k=0, seed=0)
SHORT_VOICE = Voice("The quick brown fox.", [[1, 2, 3, 4, 5, 6, 7, 8]] * 4)

Feed = Callable[[SpeechStream, list[SpeechStep]], Awaitable[None]]


def new_stream(
    engine: SpeechEngine,
    voice: Voice,
    sampling: Sampling = GREEDY,
    limit: int | None = None,
    resumed: list[Codes] | None = None,
) -> SpeechStream:
    stream = SpeechStream(voice, sampling, limit, resumed or [])
    stream.transcript_ids = engine.transcript_ids(voice)
    return stream


async def feed_at_once(stream: SpeechStream, steps: list[SpeechStep]) -> None:
    for step in steps:
        await stream.send(step)
    stream.end()


async def speak(
    engine: SpeechEngine, stream: SpeechStream, steps: list[SpeechStep], feed: Feed = feed_at_once
) -> list[SpeechFrame]:
    """One whole reply."""
    async with engine.open(stream):
        feeding = asyncio.create_task(feed(stream, steps))
        try:
            return [frame async for frame in stream]
        finally:
            feeding.cancel()
            await asyncio.wait([feeding])


async def speak_case(
    engine: SpeechEngine,
    case: GoldenCase,
    sampling: Sampling = GREEDY,
    feed: Feed = feed_at_once,
    limit: int | None = None,
) -> list[Codes]:
    stream = new_stream(engine, case.voice(), sampling, limit or case.maximum_frame_count)
    steps = case.steps(END_TOKEN_ID)
    frames = await speak(engine, stream, steps, feed)
    assert [frame.index for frame in frames] == list(range(len(frames)))
    assert [frame.step_count for frame in frames] == [min(i // 2 + 1, len(steps)) for i in range(len(frames))]
    return [frame.codes for frame in frames]


def random_steps(seed: int, count: int, *, with_end: bool = False) -> list[SpeechStep]:
    generator = np.random.default_rng(seed)
    return [
        SpeechStep(
            END_TOKEN_ID if with_end and index == count - 1 else int(generator.integers(20, 390)),
            generator.normal(0, 1, 48).astype(np.float32),
            is_end=with_end and index == count - 1,
        )
        for index in range(count)
    ]


async def test_frames_are_golden(speech_engine: Running, golden_case: GoldenCase) -> None:
    stream: SpeechStream
    async with speech_engine() as engine:
        stream = new_stream(engine, golden_case.voice(), limit=golden_case.maximum_frame_count)
        frames = await speak(engine, stream, golden_case.steps(END_TOKEN_ID))
        await until_idle(engine)
    assert stream.transcript_ids == golden_case.expected["voice_text_ids"].reshape(-1).tolist()
    assert [frame.codes for frame in frames] == golden_case.frames
    assert [frame.index for frame in frames] == list(range(len(frames)))
    fed = [min(index // 2 + 1, len(golden_case.tokens)) for index in range(len(frames))]
    assert [frame.step_count for frame in frames] == fed
    assert stream.step_count == len(golden_case.tokens)
    assert stream.frame_count == len(frames)
    assert stream.finish_reason == ("length" if len(frames) == golden_case.maximum_frame_count else "stop")


async def feed_slowly(stream: SpeechStream, steps: list[SpeechStep]) -> None:
    """Each step only when the engine has run out of the ones before."""
    for step in steps:
        await stream.send(step)
        before = -1
        while before != stream.column:
            before = stream.column
            await stream._engine.call(lambda: None)
    stream.end()


def feed_in_bursts(seed: int) -> Feed:
    chance = random.Random(seed)

    async def feed(stream: SpeechStream, steps: list[SpeechStep]) -> None:
        for step in steps:
            for _ in range(chance.choice([0, 0, 0, 1, 5, 20])):
                await stream._engine.call(lambda: None)
            await stream.send(step)
        for _ in range(chance.choice([0, 10])):
            await stream._engine.call(lambda: None)
        stream.end()

    return feed


@pytest.mark.parametrize("sampling", [GREEDY, Sampling(1.0, 50, 7)], ids=["greedy", "sampled"])
async def test_arrival_times_of_steps_never_change_the_frames(
    speech_engine: Running, golden_cases: dict[str, GoldenCase], sampling: Sampling
) -> None:
    case = golden_cases["greedy_one_turn"]
    async with speech_engine() as engine:
        expected = await speak_case(engine, case, sampling, limit=16)
        assert await speak_case(engine, case, sampling, feed_slowly, limit=16) == expected
        for seed in range(2):
            assert await speak_case(engine, case, sampling, feed_in_bursts(seed), limit=16) == expected


async def test_a_frame_that_is_due_a_step_waits_for_it(speech_engine: Running) -> None:
    steps = random_steps(0, 3)
    async with speech_engine() as engine, engine.open(new_stream(engine, SHORT_VOICE, limit=9)) as stream:
        for count, step in enumerate(steps, start=1):
            assert stream.frame_count == 2 * (count - 1)
            await stream.send(step)
            for _ in range(2):
                await anext(stream)
            for _ in range(5):
                await engine.call(lambda: None)
        assert stream.frame_count == 6
        stream.end()
        assert len([frame async for frame in stream]) == 3


SAMPLINGS = [
    *(Sampling(1.0, 50, seed) for seed in (0, 1, 2**63, 2**64 - 1)),
    Sampling(0.7, 0, 5),
    Sampling(2.0, 3, 6),
    GREEDY,
    Sampling(0.1, 2048, 9),
]


@pytest.mark.parametrize("samplings", [[GREEDY] * 8, SAMPLINGS], ids=["greedy", "sampled"])
async def test_replies_spoken_together_equal_those_spoken_alone(
    speech_engine: Running, golden_cases: dict[str, GoldenCase], samplings: list[Sampling]
) -> None:
    """Eight at once, each with its own voice, steps, sampling and pace."""
    cases = [*golden_cases.values(), golden_cases["text_only"]]
    async with speech_engine(slot_count=8) as engine:

        async def one(number: int, feed: Feed = feed_at_once, wait: int = 0) -> list[Codes]:
            for _ in range(wait):
                await engine.call(lambda: None)
            return await speak_case(engine, cases[number], samplings[number], feed, limit=9)

        alone = [await one(number) for number in range(8)]
        for seed in range(2):
            chance = random.Random(seed)
            order = chance.sample(range(8), 8)
            together = await asyncio.gather(
                *(one(number, feed_in_bursts(number + 10 * seed), chance.randrange(30)) for number in order)
            )
            assert dict(zip(order, together, strict=True)) == dict(enumerate(alone))


async def test_seeds_are_told_apart_over_all_64_bits(speech_engine: Running, golden_cases: Any) -> None:
    case, seeds = golden_cases["length_limit"], [0, 1, 2**31, 2**32, 2**63, 2**64 - 1]
    async with speech_engine() as engine:
        replies = [await speak_case(engine, case, Sampling(1.0, 0, seed), limit=3) for seed in seeds]
        assert [await speak_case(engine, case, Sampling(1.0, 0, seed), limit=3) for seed in seeds] == replies
    assert len({str(reply) for reply in replies}) == len(seeds)


async def test_top_k_1_is_greedy_at_any_temperature(speech_engine: Running, golden_cases: Any) -> None:
    case = golden_cases["length_limit"]
    async with speech_engine() as engine:
        assert await speak_case(engine, case, Sampling(2.0, 1, 3)) == case.frames


@pytest.mark.parametrize(
    ("name", "sampling"),
    [
        ("greedy_one_turn", GREEDY),
        ("length_limit", Sampling(0.9, 40, 11)),
        ("short_speech", Sampling(1.5, 0, 2**64 - 2)),
        ("text_only", GREEDY),
    ],
)
async def test_a_reply_taken_up_anywhere_goes_on_with_the_same_codes(
    speech_engine: Running, golden_cases: dict[str, GoldenCase], name: str, sampling: Sampling
) -> None:
    case = golden_cases[name]
    steps, limit = case.steps(END_TOKEN_ID), case.maximum_frame_count
    async with speech_engine(slot_count=8, queue_limit=limit) as engine:
        whole = new_stream(engine, case.voice(), sampling, limit)
        frames = await speak(engine, whole, steps)
        codes = [frame.codes for frame in frames]

        async def take_up(start: int) -> None:
            stream = new_stream(engine, case.voice(), sampling, limit, codes[:start])
            assert await speak(engine, stream, steps) == frames[start:]
            assert (stream.frame_count, stream.finish_reason) == (whole.frame_count, whole.finish_reason)

        await asyncio.gather(*(take_up(start) for start in range(len(frames) + 1)))


async def test_the_frames_of_a_resume_point_lead_the_reply(speech_engine: Running, golden_cases: Any) -> None:
    """Another replica may have drawn otherwise in a near tie: what it sent stands."""
    case = golden_cases["length_limit"]
    steps, other = case.steps(END_TOKEN_ID), [[code ^ 1 for code in codes] for codes in case.frames[:4]]
    async with speech_engine() as engine:
        rest = await speak(engine, new_stream(engine, case.voice(), limit=8, resumed=other), steps)
        assert [frame.index for frame in rest] == [4, 5, 6, 7]
        assert [frame.codes for frame in rest] != case.frames[4:8]
        further = new_stream(engine, case.voice(), limit=8, resumed=[*other, rest[0].codes])
        assert await speak(engine, further, steps) == rest[1:]


@pytest.mark.parametrize("limit", [1, 2, 7, 20])
async def test_a_frame_limit_cuts_the_same_reply(speech_engine: Running, golden_cases: Any, limit: int) -> None:
    case = golden_cases["two_turns"]
    async with speech_engine() as engine:
        stream = new_stream(engine, case.voice(), limit=limit)
        frames = await speak(engine, stream, case.steps(END_TOKEN_ID))
    assert [frame.codes for frame in frames] == case.frames[:limit]
    assert (stream.finish_reason, stream.frame_count) == ("length", limit)


@pytest.mark.parametrize("room", [2, 3, 4, 5, 6, 7, 8, 20])
async def test_the_end_of_the_context_ends_the_reply(speech_engine: Running, golden_cases: Any, room: int) -> None:
    """As many frames as fit, model.md B.10: positions P + 2R + (F - 1), a step before every other frame."""
    case = golden_cases["greedy_one_turn"]
    prompt_length = case.expected["voice_text_ids"].size + len(case.expected["voice_codes"]) + 3
    fitting = max(frames for frames in range(1, 30) if 2 * min(-(-frames // 2), 10) + frames - 1 <= room)
    async with speech_engine(context_length=prompt_length + room, prefill_chunk=16) as engine:
        for _ in range(2):
            stream = new_stream(engine, case.voice())
            frames = await speak(engine, stream, case.steps(END_TOKEN_ID))
            assert (stream.finish_reason, stream.frame_count) == ("length", fitting)
            assert stream.column <= engine.context_length
            assert [frame.codes for frame in frames] == case.frames[:fitting]


async def test_a_long_voice_is_seen_to_its_beginning(speech_engine: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    """Beyond the shortest reach: as if each step looked at the whole slot."""
    chance = np.random.default_rng(0)
    voice, steps = Voice("The quick brown fox.", chance.integers(0, 2048, (600, 8)).tolist()), random_steps(0, 3)
    async with speech_engine(prefill_chunk=100) as engine:
        stream = new_stream(engine, voice, limit=6)
        frames = await speak(engine, stream, steps)
        assert stream.column > engine.step.cache.reach(0)
        with monkeypatch.context() as patch:
            patch.setattr(KvCache, "reach", lambda cache, column: cache.position_count)
            assert await speak(engine, new_stream(engine, voice, limit=6), steps) == frames


@pytest.mark.parametrize("missing", [1, 2, 30])
async def test_a_voice_that_leaves_no_room_to_speak_is_refused(
    new_speech_engine: Callable[..., SpeechEngine], golden_cases: Any, missing: int
) -> None:
    voice = golden_cases["text_only"].voice()
    needed = golden_cases["text_only"].expected["voice_text_ids"].size + len(voice.frames) + 3 + 2
    engine = new_speech_engine(context_length=needed - missing)
    with pytest.raises(Refused, match=f"need {needed} positions .* at most the context of {needed - missing}"):
        engine.transcript_ids(voice)
    assert new_speech_engine(context_length=needed).transcript_ids(voice)


async def test_a_transcript_of_megabytes_is_refused_by_its_length(
    new_speech_engine: Callable[..., SpeechEngine], monkeypatch: pytest.MonkeyPatch
) -> None:
    """To encode it would hold up the event loop for seconds."""
    engine = new_speech_engine()
    with monkeypatch.context() as patch:
        patch.setattr(engine.tokenizer, "encode", lambda text: pytest.fail("the transcript was encoded"))
        with pytest.raises(Refused, match="the voice prompt is too long: its transcript has 1000000 bytes"):
            engine.transcript_ids(Voice("word " * 200_000, SHORT_VOICE.frames))


async def test_special_tokens_in_a_transcript_are_refused(new_speech_engine: Callable[..., SpeechEngine]) -> None:
    with pytest.raises(Refused, match=r"voice_prompt.transcript: .* <\|text_end\|>"):
        new_speech_engine().transcript_ids(Voice("hello <|text_end|>", SHORT_VOICE.frames))


async def test_a_reply_without_steps_is_refused(speech_engine: Running, golden_cases: Any) -> None:
    case = golden_cases["length_limit"]
    async with speech_engine(slot_count=1) as engine:
        with pytest.raises(Refused, match="expected at least one step"):
            await speak(engine, new_stream(engine, case.voice()), [])
        await until_idle(engine)
        assert await speak_case(engine, case) == case.frames


async def test_steps_may_end_without_the_token_that_says_so(speech_engine: Running) -> None:
    """A reasoner that reached its limit: speech goes on alone, as after an end token."""
    steps = random_steps(3, 3)
    async with speech_engine() as engine:
        stream = new_stream(engine, SHORT_VOICE, limit=12)
        frames = await speak(engine, stream, steps)
        assert len(frames) == 12
        more = await speak(engine, new_stream(engine, SHORT_VOICE, limit=12), [*steps, *random_steps(4, 1)])
        assert more[:6] == frames[:6]
        assert more[6:] != frames[6:]


async def test_steps_after_the_end_token_are_not_fed(speech_engine: Running) -> None:
    steps = random_steps(3, 3, with_end=True)
    async with speech_engine() as engine:
        frames = await speak(engine, new_stream(engine, SHORT_VOICE, limit=12), steps)
        more = await speak(engine, new_stream(engine, SHORT_VOICE, limit=12), [*steps, *random_steps(4, 5)])
    assert more == frames


@pytest.fixture
def mute_model(speech_model: SpeechModel) -> SpeechModel:
    """A model whose heads say 0 whatever they read."""
    model = copy.deepcopy(speech_model)
    model.backbone.codebook0_head.weight.zero_()
    model.depth_decoder.codebook_head.zero_()
    return model


async def test_an_end_at_the_first_frame_is_an_empty_reply(
    new_speech_engine: Callable[..., SpeechEngine], mute_model: SpeechModel
) -> None:
    async with started(new_speech_engine(mute_model)) as engine:
        stream = new_stream(engine, SHORT_VOICE)
        assert await speak(engine, stream, random_steps(0, 4)) == []
        assert (stream.finish_reason, stream.frame_count) == ("stop", 0)


async def test_a_last_frame_with_a_last_code_is_kept(
    new_speech_engine: Callable[..., SpeechEngine], mute_model: SpeechModel
) -> None:
    # Of two opposite columns one is above 0, whatever the state is.
    column = torch.randn(mute_model.config.depth_decoder.hidden_size, generator=torch.Generator().manual_seed(0))
    mute_model.depth_decoder.codebook_head[-1, :, 5] = column
    mute_model.depth_decoder.codebook_head[-1, :, 6] = -column
    async with started(new_speech_engine(mute_model)) as engine:
        stream = new_stream(engine, SHORT_VOICE)
        (frame,) = await speak(engine, stream, random_steps(0, 4))
        assert frame.codes[:7] == [0] * 7
        assert frame.codes[7] in (5, 6)
        assert (stream.finish_reason, stream.frame_count) == ("stop", 1)
        taken_up = new_stream(engine, SHORT_VOICE, resumed=[frame.codes])
        assert await speak(engine, taken_up, random_steps(0, 4)) == []
        assert (taken_up.finish_reason, taken_up.frame_count) == ("stop", 1)


async def test_every_code_is_drawn_with_the_noise_of_its_frame_and_codebook(
    new_speech_engine: Callable[..., SpeechEngine], mute_model: SpeechModel
) -> None:
    """Where all codes are equally likely, the noise alone decides."""
    seed, count = 77, mute_model.config.code_count
    how = Draw(torch.ones(6), torch.zeros(6, dtype=torch.int64), torch.full((6,), seed), ranked=count)
    noise = GumbelNoise(8, count)(how, torch.arange(6))
    assert noise is not None
    expected = noise.argmax(dim=-1).tolist()
    async with started(new_speech_engine(mute_model)) as engine:
        for start in (0, 4):
            stream = new_stream(engine, SHORT_VOICE, Sampling(1.0, 0, seed), 6, expected[:start])
            frames = await speak(engine, stream, random_steps(0, 2))
            assert [frame.codes for frame in frames] == expected[start:]


async def test_codes_without_a_sound_are_never_spoken(
    new_speech_engine: Callable[..., SpeechEngine], speech_model: SpeechModel
) -> None:
    model = copy.deepcopy(speech_model)
    code_count, generator = model.config.code_count, torch.Generator().manual_seed(0)
    heads = (model.backbone.codebook0_head.weight[code_count:], model.depth_decoder.codebook_head[..., code_count:])
    for spare in heads:
        spare.copy_(1e4 * torch.randn(spare.shape, generator=generator))
    async with started(new_speech_engine(model)) as engine:
        for sampling in (GREEDY, Sampling(2.0, 0, 1), Sampling(1.0, 2048, 2)):
            frames = await speak(engine, new_stream(engine, SHORT_VOICE, sampling, limit=20), random_steps(0, 10))
            assert len(frames) == 20
            assert max(max(frame.codes) for frame in frames) < code_count


@pytest.mark.parametrize("chunk", [1, 5, 16, 500])
async def test_the_size_of_a_prefill_chunk_changes_no_code(
    speech_engine: Running, golden_cases: dict[str, GoldenCase], chunk: int
) -> None:
    async with speech_engine(prefill_chunk=chunk) as engine:
        for name in ("length_limit", "text_and_speech"):
            assert await speak_case(engine, golden_cases[name], limit=11) == golden_cases[name].frames[:11]


async def test_leaving_amid_a_prefill_frees_the_slot_and_others_go_on(
    new_speech_engine: Callable[..., SpeechEngine], golden_cases: dict[str, GoldenCase]
) -> None:
    engine, case = new_speech_engine(slot_count=2, prefill_chunk=8), golden_cases["length_limit"]
    long = Voice("The quick brown fox.", SHORT_VOICE.frames * 100)
    async with started(engine):
        with gated(engine.model, "prefill", at_call=3) as gate:
            leaving = asyncio.create_task(speak(engine, new_stream(engine, long), random_steps(0, 3)))
            staying = asyncio.create_task(speak_case(engine, case))
            await gate.reached()
            leaving.cancel()
            with pytest.raises(asyncio.CancelledError):
                await leaving
            gate.opened.set()
            assert await staying == case.frames
            await until_idle(engine)
            calls = gate.calls
            for _ in range(5):  # a round follows each
                await engine.call(lambda: None)
            assert gate.calls == calls
        assert await speak_case(engine, case) == case.frames


async def test_leaving_amid_a_reply_frees_the_slot(speech_engine: Running, golden_cases: Any) -> None:
    case = golden_cases["length_limit"]
    async with speech_engine(slot_count=1) as engine:
        for frames in (0, 1, 3):
            async with engine.open(new_stream(engine, case.voice())) as stream:
                await feed_at_once(stream, case.steps(END_TOKEN_ID))
                for _ in range(frames):
                    await anext(stream)
            await until_idle(engine)
        assert await speak_case(engine, case) == case.frames


async def test_a_reply_waits_for_its_reader(speech_engine: Running) -> None:
    steps = random_steps(0, 20)
    async with speech_engine() as engine:
        whole = await speak(engine, new_stream(engine, SHORT_VOICE, limit=16), steps)
        assert len(whole) == 16
        lagging = new_stream(engine, SHORT_VOICE, limit=16)
        lagging._outbox_limit = 6
        async with engine.open(lagging):
            await feed_at_once(lagging, steps)
            while lagging.writable:
                await engine.call(lambda: None)
            assert await speak(engine, new_stream(engine, SHORT_VOICE, limit=16), steps) == whole
            assert lagging.frame_count == 6
            assert [frame async for frame in lagging] == whole


@pytest.fixture
async def half_precision_engine(
    new_speech_engine: Callable[..., SpeechEngine], golden_checkpoint: Checkpoint
) -> AsyncIterator[SpeechEngine]:
    model = weights.load(golden_checkpoint, torch.device("cpu"), torch.bfloat16)
    async with started(new_speech_engine(model, slot_count=1)) as engine:
        yield engine


async def test_a_state_beyond_the_models_precision_is_refused_and_spoils_nothing(
    half_precision_engine: SpeechEngine,
) -> None:
    """Finite in float32 and infinite in bfloat16: in the cache it would make every later reply of the slot nonsense."""
    engine, steps = half_precision_engine, random_steps(0, 4)
    expected = await speak(engine, new_stream(engine, SHORT_VOICE, limit=6), steps)
    assert len(expected) == 6
    for value in (3.4e38, -3.4e38):
        huge = SpeechStep(30, np.full(48, value, np.float32), is_end=False)
        with pytest.raises(Refused, match="hidden_state"):
            await speak(engine, new_stream(engine, SHORT_VOICE, limit=6), [steps[0], huge, *steps[2:]])
        assert await speak(engine, new_stream(engine, SHORT_VOICE, limit=6), steps) == expected


async def test_an_error_in_a_round_fails_its_replies_and_the_engine_goes_on(
    new_speech_engine: Callable[..., SpeechEngine], golden_cases: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine, case = new_speech_engine(), golden_cases["length_limit"]

    def broken(*_: Any, **__: Any) -> None:
        raise RuntimeError("the device is lost")

    async with started(engine):
        for owner, step in ((engine.model, "prefill"), (engine.step, "run")):
            with monkeypatch.context() as patch:
                patch.setattr(owner, step, broken)
                with pytest.raises(RuntimeError, match="the device is lost"):
                    await speak_case(engine, case)
            await until_idle(engine)
            assert await speak_case(engine, case) == case.frames


async def test_a_voice_that_can_not_be_read_fails_its_own_reply_alone(
    new_speech_engine: Callable[..., SpeechEngine], golden_cases: Any
) -> None:
    engine, case = new_speech_engine(), golden_cases["length_limit"]
    async with started(engine):
        with gated(engine.step, "run") as gate:
            speaking = asyncio.create_task(speak_case(engine, case))
            await gate.reached()
            unlucky = SpeechStream(SHORT_VOICE, GREEDY)
            unlucky.transcript_ids = [engine.model.config.vocabulary_size]
            failing = asyncio.create_task(speak(engine, unlucky, random_steps(0, 2)))
            await asyncio.sleep(0)
            gate.opened.set()
            with pytest.raises(IndexError):
                await failing
            assert await speaking == case.frames


async def test_warming_leaves_no_trace(speech_engine: Running, golden_cases: Any) -> None:
    case = golden_cases["length_limit"]
    async with speech_engine() as engine:
        await engine.call(engine.warm)
        assert await speak_case(engine, case) == case.frames


async def test_a_state_that_is_no_number_fails_its_reply_and_leaves_nothing_behind(
    new_speech_engine: Callable[..., SpeechEngine], speech_model: SpeechModel, golden_cases: Any
) -> None:
    model, poison = copy.deepcopy(speech_model), 30
    model.text_embedding.weight[poison] = torch.nan
    case = golden_cases["length_limit"]
    assert poison not in case.tokens
    engine = new_speech_engine(model, slot_count=2)
    async with started(engine):
        clean = random_steps(0, 3)
        poisoned = [clean[0], SpeechStep(poison, clean[1].hidden_state, is_end=False), clean[2]]
        speaking = asyncio.create_task(speak_case(engine, case))
        with pytest.raises(NotFinite, match="frame 2"):
            await speak(engine, new_stream(engine, SHORT_VOICE, limit=6), poisoned)
        assert await speaking == case.frames
        await until_idle(engine)
        both = await asyncio.gather(speak_case(engine, case), speak_case(engine, case))
        assert both == [case.frames, case.frames]
