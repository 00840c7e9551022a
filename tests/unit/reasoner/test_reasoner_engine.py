"""The reasoner's engine: the golden steps, whatever else happens in the batch and wherever a reply is taken up."""

import asyncio
import random
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from services.inference.kv_cache import KvCache
from services.inference.slots import NotFinite, Refused
from services.reasoner.engine import ReasonerEngine, ReasonerStep, ReasonerStream
from services.reasoner.prompt import Clip, Turn
from tests.conftest import GoldenCase, Running, gated, started, until_idle

END_TOKEN_ID = 2


async def write(
    engine: ReasonerEngine, turns: list[Turn], max_step_count: int | None = None, resumed: list[int] | None = None
) -> tuple[ReasonerStream, list[ReasonerStep]]:
    """One whole reply."""
    stream = ReasonerStream(max_step_count, resumed or [])
    async with engine.open(stream):
        await stream.send(turns)
        stream.end()
        return stream, [step async for step in stream]


async def write_case(engine: ReasonerEngine, case: GoldenCase) -> list[ReasonerStep]:
    return (await write(engine, case.turns(), len(case.tokens)))[1]


def exact(steps: list[ReasonerStep]) -> list[tuple[Any, ...]]:
    """Steps as values that are equal only if every bit is."""
    return [(s.index, s.token_id, s.text, s.hidden_state.tobytes(), s.is_end) for s in steps]


def assert_golden(steps: list[ReasonerStep], case: GoldenCase) -> None:
    assert [step.token_id for step in steps] == case.tokens
    expected = case.expected["reasoner_hidden"]
    np.testing.assert_allclose(np.stack([step.hidden_state for step in steps]), expected, rtol=1e-3, atol=1e-4)


async def test_steps_are_golden(reasoner_engine: Running, golden_case: GoldenCase) -> None:
    async with reasoner_engine() as engine:
        stream, steps = await write(engine, golden_case.turns(), len(golden_case.tokens))
        await until_idle(engine)
    assert stream.prompt is not None
    assert stream.prompt.token_ids == golden_case.expected["reasoner_input_ids"].reshape(-1).tolist()
    assert_golden(steps, golden_case)
    assert [step.index for step in steps] == list(range(len(steps)))
    assert [step.is_end for step in steps] == [token == END_TOKEN_ID for token in golden_case.tokens]
    assert stream.finish_reason == ("stop" if steps[-1].is_end else "length")
    assert stream.step_count == len(steps)
    assert all(step.hidden_state.dtype == np.float32 for step in steps)


async def test_texts_joined_are_the_reply(reasoner_engine: Running, golden_case: GoldenCase, tokenizer: Any) -> None:
    async with reasoner_engine() as engine:
        steps = await write_case(engine, golden_case)
    backend = tokenizer._tokenizer.backend_tokenizer
    whole = backend.decode([t for t in golden_case.tokens if backend.id_to_token(t) is not None])
    text = "".join(step.text for step in steps)
    assert whole.startswith(text)
    assert text == whole or whole.endswith("�")


@pytest.mark.parametrize("seed", range(3))
async def test_replies_written_together_equal_those_written_alone(
    reasoner_engine: Running, golden_cases: dict[str, GoldenCase], seed: int
) -> None:
    chance = random.Random(seed)
    async with reasoner_engine() as engine:
        alone = {name: exact(await write_case(engine, case)) for name, case in golden_cases.items()}

        async def later(case: GoldenCase) -> list[ReasonerStep]:
            for _ in range(chance.randrange(60)):
                await engine.call(lambda: None)
            return await write_case(engine, case)

        names = chance.sample(sorted(golden_cases), len(golden_cases))
        together = await asyncio.gather(*(later(golden_cases[name]) for name in names))
    assert {name: exact(steps) for name, steps in zip(names, together, strict=True)} == alone


@pytest.mark.parametrize("chunk", [1, 7, 32, 100, 512])
async def test_the_size_of_a_prefill_chunk_changes_no_token(
    reasoner_engine: Running, golden_cases: dict[str, GoldenCase], chunk: int
) -> None:
    async with reasoner_engine(prefill_chunk=chunk) as engine:
        for name in ("two_turns", "text_only", "short_speech"):
            assert_golden(await write_case(engine, golden_cases[name]), golden_cases[name])


async def test_a_reply_taken_up_anywhere_goes_on_with_the_same_bits(
    reasoner_engine: Running, golden_case: GoldenCase
) -> None:
    turns, count = golden_case.turns(), len(golden_case.tokens)
    async with reasoner_engine() as engine:
        stream, steps = await write(engine, turns, count)
        for start in range(count + 1):
            resumed, rest = await write(engine, turns, count, golden_case.tokens[:start])
            assert exact(rest) == exact(steps[start:])
            assert (resumed.step_count, resumed.finish_reason) == (stream.step_count, stream.finish_reason)


async def test_a_reply_taken_up_ends_where_its_tokens_do(reasoner_engine: Running, golden_cases: Any) -> None:
    case = golden_cases["greedy_one_turn"]
    assert case.tokens[-1] == END_TOKEN_ID
    async with reasoner_engine() as engine:
        stream, rest = await write(engine, case.turns(), None, case.tokens)
        assert (rest, stream.step_count, stream.finish_reason) == ([], len(case.tokens), "stop")
        stream, rest = await write(engine, case.turns(), 4, case.tokens[:6])
        assert (rest, stream.step_count, stream.finish_reason) == ([], 4, "length")


async def test_the_tokens_of_a_resume_point_lead_the_reply(reasoner_engine: Running, golden_cases: Any) -> None:
    """Another replica may have chosen otherwise in a near tie: what it sent stands."""
    case = golden_cases["text_only"]
    other = [token + 1 for token in case.tokens[:3]]
    async with reasoner_engine() as engine:
        _, steps = await write(engine, case.turns(), 6)
        _, rest = await write(engine, case.turns(), 6, other)
        assert [step.index for step in rest] == [3, 4, 5]
        assert exact(rest) != exact(steps[3:])
        assert exact((await write(engine, case.turns(), 6, [*other, rest[0].token_id]))[1]) == exact(rest[1:])


@pytest.mark.parametrize("limit", [1, 2, 5, 10])
async def test_a_step_limit_cuts_the_same_reply(reasoner_engine: Running, golden_cases: Any, limit: int) -> None:
    case = golden_cases["two_turns"]
    async with reasoner_engine() as engine:
        whole = await write_case(engine, case)
        stream, steps = await write(engine, case.turns(), limit)
    assert exact(steps) == exact(whole[:limit])
    assert (stream.finish_reason, stream.step_count) == ("length", limit)


async def test_a_limit_at_the_end_token_is_a_stop(reasoner_engine: Running, golden_cases: Any) -> None:
    case = golden_cases["greedy_one_turn"]
    async with reasoner_engine() as engine:
        stream, _ = await write(engine, case.turns(), len(case.tokens))
        unlimited, steps = await write(engine, case.turns())
    assert (stream.finish_reason, unlimited.finish_reason) == ("stop", "stop")
    assert [step.token_id for step in steps] == case.tokens


async def test_a_long_reply_sees_all_that_came_before(
    reasoner_engine: Running, golden_cases: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Beyond the shortest reach: as if each step looked at the whole slot."""
    case = golden_cases["long_speech"]
    turns = [*case.turns(), *case.turns()[1:]]
    async with reasoner_engine(prefill_chunk=100) as engine:
        stream, steps = await write(engine, turns, 4)
        assert stream.column > engine.step.cache.reach(0)
        with monkeypatch.context() as patch:
            patch.setattr(KvCache, "reach", lambda cache, column: cache.position_count)
            assert exact((await write(engine, turns, 4))[1]) == exact(steps)


@pytest.mark.parametrize("room", [1, 2, 4])
async def test_the_end_of_the_context_ends_the_reply(reasoner_engine: Running, golden_cases: Any, room: int) -> None:
    """Every position is used: `room` of them after the prompt, each with one more step."""
    case = golden_cases["text_only"]
    prompt_length = case.expected["reasoner_input_ids"].size
    async with reasoner_engine() as engine:
        whole = await write_case(engine, case)
    async with reasoner_engine(context_length=prompt_length + room, prefill_chunk=16) as engine:
        stream, steps = await write(engine, case.turns())
        assert (stream.finish_reason, stream.column) == ("length", prompt_length + room)
        assert [step.token_id for step in steps] == [step.token_id for step in whole[: room + 1]]
        # The reply before has written the whole slot.
        assert exact((await write(engine, case.turns()))[1]) == exact(steps)


@pytest.mark.parametrize("short", [0, 1, 20])
async def test_a_conversation_that_leaves_no_room_is_refused(
    reasoner_engine: Running, golden_cases: Any, short: int
) -> None:
    case = golden_cases["text_only"]
    length = case.expected["reasoner_input_ids"].size
    async with reasoner_engine(context_length=length - short) as engine:
        with pytest.raises(Refused, match=f"it has {length} positions; expected fewer than .* {length - short}"):
            await write(engine, case.turns())
        await until_idle(engine)
        assert len((await write(engine, [Turn("user", ("a",))], 1))[1]) == 1


@pytest.mark.parametrize(
    "turns",
    [
        [Turn("user", ("hello <|im_end|> there",))],
        [Turn("system", ("<|im_start|>",)), Turn("user", ("hello",))],
        [Turn("user", ("<|AUDIO|>",))],
        [Turn("user", ("a",)), Turn("assistant", ("<|endoftext|>",)), Turn("user", ("b",))],
        # Parts stand side by side in the prompt, so the token may be spread over several.
        [Turn("user", ("hello <|im_", "end|> there"))],
        [Turn("user", ("<", "|", "im_start", "|", ">"))],
    ],
)
async def test_special_tokens_are_refused(reasoner_engine: Running, turns: list[Turn]) -> None:
    async with reasoner_engine() as engine:
        with pytest.raises(Refused, match=r"special tokens; it has <\|"):
            await write(engine, turns, 1)
        await until_idle(engine)
        assert len((await write(engine, [Turn("user", ("hello",))], 2))[1]) == 2


@pytest.mark.parametrize("loudness", [1e25, 3e38])
async def test_sound_beyond_all_measure_is_refused_and_spoils_nothing(
    reasoner_engine: Running, golden_cases: Any, loudness: float
) -> None:
    """Finite samples whose power is not: in the cache they would make every later reply of the slot nonsense."""
    case = golden_cases["text_only"]
    bang = np.zeros(16_000, np.float32)
    bang[8_000] = loudness
    async with reasoner_engine(slot_count=1) as engine:
        expected = exact(await write_case(engine, case))
        with pytest.raises(Refused, match="too loud"):
            await write(engine, [Turn("user", (Clip(bang),))], 3)
        assert exact(await write_case(engine, case)) == expected


async def test_leaving_amid_a_prefill_frees_the_slot_and_others_go_on(
    new_reasoner_engine: Callable[..., ReasonerEngine], golden_cases: dict[str, GoldenCase]
) -> None:
    engine = new_reasoner_engine(slot_count=2, prefill_chunk=16)
    long, other = golden_cases["long_speech"], golden_cases["text_only"]
    async with started(engine):
        expected = exact(await write_case(engine, other))
        with gated(engine.model, "prefill", at_call=3) as gate:
            leaving = asyncio.create_task(write_case(engine, long))
            staying = asyncio.create_task(write_case(engine, other))
            await gate.reached()
            leaving.cancel()
            with pytest.raises(asyncio.CancelledError):
                await leaving
            gate.opened.set()
            assert exact(await staying) == expected
            await until_idle(engine)
            assert not engine.streams
            calls = gate.calls
            for _ in range(5):  # a round follows each
                await engine.call(lambda: None)
            assert gate.calls == calls
        assert_golden(await write_case(engine, long), long)


async def test_leaving_amid_a_reply_frees_the_slot(reasoner_engine: Running, golden_cases: Any) -> None:
    case = golden_cases["text_only"]
    async with reasoner_engine(slot_count=1) as engine:
        expected = exact(await write_case(engine, case))
        for steps in (1, 3):
            stream = ReasonerStream()
            async with engine.open(stream):
                await stream.send(case.turns())
                stream.end()
                for _ in range(steps):
                    await anext(stream)
            await until_idle(engine)
        assert exact(await write_case(engine, case)) == expected


async def test_a_reply_waits_for_its_reader(
    new_reasoner_engine: Callable[..., ReasonerEngine], golden_cases: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine, case = new_reasoner_engine(), golden_cases["text_only"]
    monkeypatch.setattr(engine.model, "config", replace(engine.model.config, end_token_id=-1))
    async with started(engine):
        whole = (await write(engine, case.turns(), 30))[1]
        lagging = ReasonerStream(30)
        lagging._outbox_limit = 6
        async with engine.open(lagging):
            await lagging.send(case.turns())
            lagging.end()
            while lagging.writable:
                await engine.call(lambda: None)
            others = (await write(engine, case.turns(), 30))[1]
            assert lagging.step_count == 6
            assert exact([step async for step in lagging]) == exact(whole) == exact(others)


async def test_an_error_in_a_round_fails_its_replies_and_the_engine_goes_on(
    new_reasoner_engine: Callable[..., ReasonerEngine], golden_cases: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine, case = new_reasoner_engine(), golden_cases["text_only"]

    def broken(*_: Any, **__: Any) -> None:
        raise RuntimeError("the device is lost")

    async with started(engine):
        for owner, step in ((engine.model, "prefill"), (engine.model, "encode_block"), (engine.step, "run")):
            with monkeypatch.context() as patch:
                patch.setattr(owner, step, broken)
                with pytest.raises(RuntimeError, match="the device is lost"):
                    await write_case(engine, golden_cases["short_speech"])
            await until_idle(engine)
            assert_golden(await write_case(engine, case), case)


async def test_a_prompt_that_can_not_be_made_fails_its_own_reply_alone(
    new_reasoner_engine: Callable[..., ReasonerEngine], golden_cases: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine, case = new_reasoner_engine(), golden_cases["text_only"]
    render = engine.tokenizer.render

    def render_or_fail(messages: Any) -> str:
        if messages[0]["content"][0]["text"] == "unlucky":
            raise ValueError("the template does not like it")
        return render(messages)

    monkeypatch.setattr(engine.tokenizer, "render", render_or_fail)
    async with started(engine):
        expected = exact(await write_case(engine, case))
        with gated(engine.step, "run") as gate:
            writing = asyncio.create_task(write_case(engine, case))
            await gate.reached()
            unlucky = asyncio.create_task(write(engine, [Turn("user", ("unlucky",))]))
            await asyncio.sleep(0)
            gate.opened.set()
            with pytest.raises(ValueError, match="the template does not like it"):
                await unlucky
            assert exact(await writing) == expected


async def test_warming_leaves_no_trace(reasoner_engine: Running, golden_case: GoldenCase) -> None:
    async with reasoner_engine() as engine:
        cold = exact(await write_case(engine, golden_case))
        await engine.call(engine.warm)
        assert exact(await write_case(engine, golden_case)) == cold


async def test_a_state_that_is_no_number_fails_its_reply_and_leaves_nothing_behind(
    new_reasoner_engine: Callable[..., ReasonerEngine], golden_cases: Any
) -> None:
    engine, case = new_reasoner_engine(slot_count=1), golden_cases["text_only"]
    table = engine.model.embed_tokens.weight
    spared = set(case.expected["reasoner_input_ids"].tolist()) | set(case.tokens)
    said = "zebra, quick, 9 8 7"
    poison = next(token for token in engine.tokenizer.encode(said) if token not in spared)
    kept = table[poison].clone()
    async with started(engine):
        table[poison] = torch.nan
        try:
            with pytest.raises(NotFinite, match="step 0"):
                await write(engine, [Turn("user", (said,))])
            await until_idle(engine)
            assert_golden(await write_case(engine, case), case)
        finally:
            table[poison] = kept
