"""ReasonerService over a real server: golden replies, the stream law, and what every bad input is answered with."""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import grpc
import numpy as np
import pytest
import pytest_asyncio
from chroma_mesh.reasoner.v1 import reasoner_pb2, reasoner_pb2_grpc
from chroma_mesh.types.v1 import types_pb2
from grpc import StatusCode
from grpc_health.v1 import health_pb2, health_pb2_grpc
from prometheus_client import CollectorRegistry

from services.reasoner.engine import ReasonerEngine
from services.reasoner.metrics import ReasonerMetrics
from services.reasoner.prompt import Clip, Turn
from services.reasoner.service import SERVICE_NAME, ReasonerService
from services.reasoner.settings import ReasonerSettings
from services.runtime.channel import open_channel
from services.runtime.errors import MeshError, from_rpc_error
from services.runtime.tensors import decode_tensor
from services.stage.gathering import MESSAGE_SHARE
from tests.conftest import GOLDEN, GoldenCase, gated, serving, until_idle
from tests.contract.scraped_metrics import scraped

RATE, HIDDEN = 16_000, 48
DEADLINE_SECONDS = 60.0
S16 = types_pb2.AudioFormat(encoding=types_pb2.AUDIO_ENCODING_PCM_S16LE, sample_rate_hz=RATE)
F32 = types_pb2.AudioFormat(encoding=types_pb2.AUDIO_ENCODING_PCM_F32LE, sample_rate_hz=RATE)
ROLES = {"system": types_pb2.ROLE_SYSTEM, "user": types_pb2.ROLE_USER, "assistant": types_pb2.ROLE_ASSISTANT}
STOP, LENGTH = types_pb2.FINISH_REASON_STOP, types_pb2.FINISH_REASON_LENGTH

Request, Response = reasoner_pb2.GenerateRequest, reasoner_pb2.GenerateResponse

# Most tests share one server, which therefore lives on one event loop.
pytestmark = pytest.mark.asyncio(loop_scope="module")


@dataclass(frozen=True)
class Server:
    """A reasoner that serves, from both sides."""

    address: str
    stub: reasoner_pb2_grpc.ReasonerServiceStub
    health: health_pb2_grpc.HealthStub
    engine: ReasonerEngine
    registry: CollectorRegistry

    def ended(self, reason: str) -> float:
        """Streams that ended for this reason."""
        return self.registry.get_sample_value("chroma_reasoner_finished_streams_total", {"reason": reason}) or 0.0

    async def is_whole(self) -> None:
        """All slots come free, and the service answers."""
        await until_idle(self.engine)
        assert self.registry.get_sample_value("chroma_reasoner_slots_in_use") == 0
        reply = await generate(self, [opening(max_step_count=2), text(0, "hello"), END])
        assert len(reply.steps) == 2


@dataclass(frozen=True)
class Reply:
    """What one call gave, in its parts."""

    opened: reasoner_pb2.GenerateOpened
    steps: list[types_pb2.Step]
    finished: reasoner_pb2.GenerateFinished

    @property
    def tokens(self) -> list[int]:
        return [step.token_id for step in self.steps]

    @property
    def hidden(self) -> np.ndarray:
        return np.stack([decode_tensor(step.hidden_state, shape=(HIDDEN,), field="step") for step in self.steps])


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def shared(new_reasoner_engine: Callable[..., ReasonerEngine]) -> AsyncIterator[Server]:
    """The server of most tests."""
    async with served(new_reasoner_engine()) as server:
        yield server


@pytest_asyncio.fixture(loop_scope="module")
async def server(shared: Server) -> AsyncIterator[Server]:
    """The same, which must be whole again after the test."""
    yield shared
    await shared.is_whole()


@asynccontextmanager
async def served(engine: ReasonerEngine) -> AsyncIterator[Server]:
    registry = CollectorRegistry()
    settings = ReasonerSettings(checkpoint=str(GOLDEN / "checkpoint"), grace_seconds=5)
    service = ReasonerService(ReasonerMetrics(registry))
    async with serving(engine, service, SERVICE_NAME, settings, registry) as address, open_channel(address) as channel:
        stub, health = reasoner_pb2_grpc.ReasonerServiceStub(channel), health_pb2_grpc.HealthStub(channel)
        yield Server(address, stub, health, engine, registry)


def opening(**facts: Any) -> Request:
    if (tokens := facts.pop("resumed", None)) is not None:
        facts["resume"] = reasoner_pb2.GenerateResume(token_ids=tokens)
    return Request(open=reasoner_pb2.GenerateOpen(**({"audio_format": S16} | facts)))


def text(index: int, words: str) -> Request:
    return Request(part=reasoner_pb2.TurnPart(index=index, text=words))


def audio(index: int, data: bytes) -> Request:
    return Request(part=reasoner_pb2.TurnPart(index=index, audio=data))


def message(role: int, *parts: str | types_pb2.Audio) -> Request:
    content = [
        types_pb2.ContentPart(text=part) if isinstance(part, str) else types_pb2.ContentPart(audio=part)
        for part in parts
    ]
    return Request(message=types_pb2.Message(role=role, parts=content))


END = Request(end=reasoner_pb2.GenerateEnd())
NOTHING = Request()


def s16(samples: np.ndarray) -> bytes:
    """Exactly the 16-bit samples that the float ones were read from."""
    return np.rint(samples * 32768).astype("<i2").tobytes()


def clip(part: Clip) -> types_pb2.Audio:
    return types_pb2.Audio(format=S16, data=s16(part.samples))


def silence(seconds: float) -> bytes:
    return bytes(2 * round(seconds * RATE))


def wire(turns: list[Turn], **facts: Any) -> list[Request]:
    """The client's messages of a whole conversation, each clip of the turn in one piece."""
    *earlier, last = turns
    messages = [
        message(ROLES[turn.role], *(clip(part) if isinstance(part, Clip) else part for part in turn.parts))
        for turn in earlier
    ]
    parts = [
        audio(index, s16(part.samples)) if isinstance(part, Clip) else text(index, part)
        for index, part in enumerate(last.parts)
    ]
    return [opening(**facts), *messages, *parts, END]


def wire_case(case: GoldenCase, **facts: Any) -> list[Request]:
    return wire(case.turns(), **({"max_step_count": len(case.tokens)} | facts))


async def answers(server: Server, requests: Iterable[Request]) -> list[Response]:
    """All that the service sends; the requests go out one after the other, then the client half-closes."""
    return [answer async for answer in server.stub.Generate(iter(requests), timeout=DEADLINE_SECONDS)]


async def generate(server: Server, requests: Iterable[Request]) -> Reply:
    """A call that goes well: opened, steps in order, finished."""
    first, *middle, last = await answers(server, requests)
    assert first.WhichOneof("payload") == "opened"
    assert {answer.WhichOneof("payload") for answer in middle} <= {"steps"}
    assert last.WhichOneof("payload") == "finished"
    return Reply(first.opened, [step for answer in middle for step in answer.steps.steps], last.finished)


async def failure(server: Server, requests: Iterable[Request], *, half_close: bool = False) -> MeshError:
    """What a call that goes wrong is answered with, which may be before all of it is written."""
    call = server.stub.Generate(timeout=DEADLINE_SECONDS)
    with suppress(asyncio.InvalidStateError, grpc.aio.AioRpcError):
        for request in requests:
            await call.write(request)
    if half_close:
        await call.done_writing()
    with pytest.raises(grpc.aio.AioRpcError) as raised:
        await rest(call)
    return from_rpc_error(raised.value)


async def rest(call: Any) -> list[str]:
    """Kinds of all answers that still come."""
    kinds = []
    while (answer := await call.read()) is not grpc.aio.EOF:
        kinds.append(answer.WhichOneof("payload"))
    return kinds


def exact(reply: Reply) -> list[bytes]:
    return [step.SerializeToString(deterministic=True) for step in reply.steps]


async def test_replies_are_golden(server: Server, golden_case: GoldenCase) -> None:
    reply = await generate(server, wire_case(golden_case, return_prompt=True))
    assert reply.tokens == golden_case.tokens
    np.testing.assert_allclose(reply.hidden, golden_case.expected["reasoner_hidden"], rtol=1e-3, atol=1e-4)
    assert [step.index for step in reply.steps] == list(range(len(reply.steps)))
    assert reply.finished.prompt_token_ids == golden_case.expected["reasoner_input_ids"].reshape(-1).tolist()
    assert reply.finished.prompt_token_count == len(reply.finished.prompt_token_ids)
    assert reply.finished.step_count == len(reply.steps)
    assert reply.finished.reason == (STOP if reply.steps[-1].is_end else LENGTH)
    assert reply.finished.first_step_seconds > 0
    assert (reply.opened.hidden_size, reply.opened.vocabulary_size) == (HIDDEN, 448)
    assert (reply.opened.context_length, reply.opened.sample_rate_hz) == (1024, RATE)


async def test_the_first_steps_tell_where_the_time_until_them_went(server: Server) -> None:
    seconds = np.random.default_rng(3).integers(-3000, 3000, RATE, dtype=np.int16).tobytes()
    opened, *steps, finished = await answers(
        server, [opening(max_step_count=4), audio(0, seconds), text(1, "so?"), END]
    )
    assert opened.WhichOneof("payload") == "opened"
    assert [answer.HasField("timing") for answer in steps] == [True, *[False] * (len(steps) - 1)]
    timing = steps[0].timing
    parts = (timing.queue_seconds, timing.encode_seconds, timing.prefill_seconds, timing.step_seconds)
    assert min(parts[1:]) > 0
    assert sum(parts) == pytest.approx(finished.finished.first_step_seconds)


async def test_the_prompt_comes_only_when_asked_for(server: Server, golden_cases: dict[str, GoldenCase]) -> None:
    reply = await generate(server, wire_case(golden_cases["text_only"]))
    assert not reply.finished.prompt_token_ids
    assert reply.finished.prompt_token_count == golden_cases["text_only"].expected["reasoner_input_ids"].size


async def test_calls_at_once_each_get_the_reply_they_get_alone(
    server: Server, golden_cases: dict[str, GoldenCase]
) -> None:
    requests = [wire_case(case) for case in golden_cases.values()]
    alone = [exact(await generate(server, each)) for each in requests]
    together = await asyncio.gather(*(generate(server, each) for each in requests))
    assert [exact(reply) for reply in together] == alone


@pytest.mark.parametrize("seed", range(3))
async def test_how_the_turn_is_cut_changes_no_bit(
    server: Server, golden_cases: dict[str, GoldenCase], seed: int
) -> None:
    case = golden_cases["text_and_speech"]
    whole = await generate(server, wire_case(case))
    chance, index, parts = np.random.default_rng(seed), 0, []
    for part in case.turns()[-1].parts:
        length = len(part) if isinstance(part, str) else len(part.samples)
        cuts = [0, *sorted(chance.choice(range(1, length), 7, replace=False).tolist()), length]
        for start, end in pairwise(cuts):
            is_text = isinstance(part, str)
            parts.append(text(index, part[start:end]) if is_text else audio(index, s16(part.samples[start:end])))
            index += 1
    first, *_, end = wire_case(case)
    system = wire_case(case)[1]
    assert exact(await generate(server, [first, system, *parts, end])) == exact(whole)


def loud_at_last(seconds: float) -> np.ndarray:
    """Silence in soft noise, and a bang at the very end."""
    samples = np.random.default_rng(0).normal(0, 1e-3, round(seconds * RATE))
    samples[RATE // 2 : RATE] = 0
    samples[-1] = 0.5
    return np.rint(samples * 32768) / 32768


@pytest.mark.parametrize("packet", [16, 320, 4001], ids=["1 ms", "20 ms", "odd"])
async def test_a_turn_in_packets_gives_the_same_bytes(server: Server, packet: int) -> None:
    """Something loud at the end of it and all."""
    sound = loud_at_last(4.51)
    facts = {"max_step_count": 3, "return_prompt": True}
    packets = [sound[start : start + packet] for start in range(0, len(sound), packet)]
    past = [message(SYSTEM, "You are Chroma."), message(USER, "hear this", CLIP), message(ASSISTANT, "I did.")]
    whole = await generate(server, [opening(**facts), *past, audio(0, s16(sound)), END])
    parts = [audio(index, s16(samples)) for index, samples in enumerate(packets)]
    reply = await generate(server, [opening(**facts), *past, *parts, END])
    assert exact(reply) == exact(whole)
    assert reply.finished.prompt_token_ids == whole.finished.prompt_token_ids
    assert reply.finished.audio_block_count == whole.finished.audio_block_count == 3


async def test_a_turn_is_read_while_it_comes_and_that_is_counted(
    new_reasoner_engine: Callable[..., ReasonerEngine],
) -> None:
    """All but its last block is encoded before its end; what something loud at the end changes, again."""
    async with served(new_reasoner_engine()) as server:
        call = server.stub.Generate(timeout=DEADLINE_SECONDS)
        await call.write(opening(max_step_count=1))
        assert (await call.read()).WhichOneof("payload") == "opened"
        sound = loud_at_last(4.51)
        with gated(server.engine.model, "encode_block", at_call=0) as encoded:
            for index, start in enumerate(range(0, len(sound) - 320, 320)):
                await call.write(audio(index, s16(sound[start : start + 320])))
            while encoded.calls < 2:
                await server.engine.call(lambda: None)
            await call.write(audio(index + 1, s16(sound[start + 320 :])))
            await call.write(END)
            step, finished = [await call.read() for _ in range(2)]
        assert step.WhichOneof("payload") == "steps"
        counts = finished.finished.audio_block_count, finished.finished.redone_block_count
        assert counts[0] == 3
        assert 1 <= counts[1] <= 2
        assert encoded.calls == sum(counts)
        await until_idle(server.engine)
        values = await scraped(server.registry)
        assert values["chroma_reasoner_audio_blocks_total"] == sum(counts)
        assert values["chroma_reasoner_redone_audio_blocks_total"] == counts[1]
        assert values["chroma_reasoner_first_token_seconds_count"] == 1


async def test_a_client_that_goes_away_amid_its_turn_frees_the_slot(server: Server) -> None:
    before = server.ended("cancelled")
    for leaves in (True, False):
        # A sound of its own for each: what the first left behind would be found, and nothing encoded.
        sound = np.random.default_rng(leaves).normal(0, 0.1, 4 * RATE)
        call = server.stub.Generate(timeout=DEADLINE_SECONDS)
        await call.write(opening())
        with gated(server.engine.model, "encode_block") as gate:
            await call.write(audio(0, s16(sound)))
            await gate.reached()
            if leaves:
                call.cancel()
            else:
                await call.done_writing()
                with pytest.raises(grpc.aio.AioRpcError, match="stopped before end"):
                    await rest(call)
            gate.opened.set()
        await until_idle(server.engine)
        assert not server.engine._prefilling
    assert server.ended("cancelled") == before + 2


async def test_float_samples_give_the_same_bits(server: Server, golden_cases: dict[str, GoldenCase]) -> None:
    case = golden_cases["short_speech"]
    opened, system, _, end = wire_case(case)
    opened.open.audio_format.CopyFrom(F32)
    samples = audio(0, case.clips[0].astype("<f4").tobytes())
    reply = await generate(server, [opened, system, samples, end])
    assert exact(reply) == exact(await generate(server, wire_case(case)))


async def test_a_reply_is_taken_up_where_it_was_lost(server: Server, golden_cases: dict[str, GoldenCase]) -> None:
    case = golden_cases["greedy_one_turn"]
    whole = await generate(server, wire_case(case))
    for start in (0, 1, 5, len(case.tokens)):
        rest = await generate(server, wire_case(case, resumed=case.tokens[:start]))
        assert exact(rest) == exact(whole)[start:]
        assert (rest.finished.step_count, rest.finished.reason) == (len(case.tokens), STOP)


async def test_steps_leave_together_when_nobody_waits_for_them(server: Server) -> None:
    """The first leaves alone; the steps are the same, each once. Who has much gets more at once."""
    said = [text(0, "Tell me all that you know."), END]
    each_alone = await generate(server, [opening(max_step_count=60), *said])
    together = await answers(server, [opening(max_step_count=60, step_seconds=0.16), *said])
    assert [step for answer in together for step in answer.steps.steps] == each_alone.steps
    sizes = [len(answer.steps.steps) for answer in together[1:-1]]
    assert sizes[0] == 1
    assert all(size <= max(5, MESSAGE_SHARE * sum(sizes[:index])) for index, size in enumerate(sizes))


async def test_silence_is_answered(server: Server) -> None:
    reply = await generate(server, [opening(max_step_count=3), audio(0, silence(2.5)), END])
    assert len(reply.steps) == 3


@pytest.mark.parametrize("count", [321, 480, 16_001])
async def test_short_and_odd_clips_are_answered(server: Server, count: int) -> None:
    assert (await generate(server, [opening(max_step_count=1), audio(0, bytes(2 * count)), END])).steps


async def test_a_generation_that_reaches_the_context_ends_with_length(
    new_reasoner_engine: Callable[..., ReasonerEngine], golden_cases: dict[str, GoldenCase]
) -> None:
    case = golden_cases["text_only"]
    room = 3
    length = case.expected["reasoner_input_ids"].size + room
    async with served(new_reasoner_engine(context_length=length)) as server:
        reply = await generate(server, wire(case.turns()))
        assert (reply.finished.reason, reply.tokens) == (LENGTH, case.tokens[: room + 1])
        assert reply.opened.context_length == length


HELLO, SOUND = text(0, "hello"), audio(0, silence(0.5))
INVALID = StatusCode.INVALID_ARGUMENT
NAN, BANG = np.full(1000, np.nan, "<f4").tobytes(), np.full(1000, 1e30, "<f4").tobytes()
WORDS = " ".join(["word"] * 10_000)
USER, ASSISTANT, SYSTEM = types_pb2.ROLE_USER, types_pb2.ROLE_ASSISTANT, types_pb2.ROLE_SYSTEM
CLIP = types_pb2.Audio(format=S16, data=silence(0.5))
SHORT_CLIP = types_pb2.Audio(format=S16, data=silence(0.01))
NO_FORMAT = types_pb2.Audio(data=silence(0.5))


@dataclass(frozen=True)
class Bad:
    """What a client sends, the last of it wrong, and what it is answered with."""

    requests: list[Request]
    reason: str
    says: str
    code: StatusCode = INVALID


def abandoned(*requests: Request, before: str = "end") -> Bad:
    return Bad([*requests], "ABANDONED", f"stopped before {before}", StatusCode.CANCELLED)


def part(index: int) -> Request:
    return Request(part=reasoner_pb2.TurnPart(index=index))


def other_rate(rate: int) -> types_pb2.AudioFormat:
    return types_pb2.AudioFormat(encoding=types_pb2.AUDIO_ENCODING_PCM_S16LE, sample_rate_hz=rate)


BAD = {
    "nothing at all": abandoned(before="open"),
    "no end after open": abandoned(opening()),
    "no end after the turn": abandoned(opening(), HELLO),
    "a part first": Bad([HELLO], "OUT_OF_ORDER", "must be open, got part"),
    "end first": Bad([END], "OUT_OF_ORDER", "must be open, got end"),
    "open twice": Bad([opening(), opening()], "OUT_OF_ORDER", "open must be sent once"),
    "a message after text": Bad([opening(), HELLO, message(USER, "a")], "OUT_OF_ORDER", "messages come before"),
    "a message after sound": Bad([opening(), SOUND, message(USER, "a")], "OUT_OF_ORDER", "messages come before"),
    "an empty message first": Bad([NOTHING], "INVALID_ARGUMENT", "must have a payload"),
    "an empty message later": Bad([opening(), NOTHING], "INVALID_ARGUMENT", "must have a payload"),
    "parts that start at 1": Bad([opening(), text(1, "a")], "INDEX_GAP", "part.index must be 0, got 1"),
    "a gap": Bad([opening(), HELLO, text(2, "a")], "INDEX_GAP", "part.index must be 1, got 2"),
    "a repeat": Bad([opening(), HELLO, HELLO], "INDEX_GAP", "part.index must be 1, got 0"),
    "an empty turn": Bad([opening(), END], "EMPTY_TURN", "the turn is empty"),
    "history and an empty turn": Bad([opening(), message(USER, "a"), END], "EMPTY_TURN", "the turn is empty"),
    "an empty text": Bad([opening(), text(0, "")], "INVALID_ARGUMENT", "part.text must not be empty"),
    "a part without content": Bad([opening(), part(0)], "INVALID_ARGUMENT", "part must have audio or text"),
    "such a part after sound": Bad([opening(), SOUND, part(1)], "INVALID_ARGUMENT", "part must have audio or text"),
    "0.01 s": Bad([opening(), audio(0, silence(0.01)), END], "TOO_SHORT", "got 0.01 s"),
    "0.01 s before a text": Bad([opening(), audio(0, silence(0.01)), text(1, "a")], "TOO_SHORT", "got 0.01 s"),
    "sound without samples": Bad([opening(), audio(0, b""), END], "TOO_SHORT", "got 0 s"),
    "301 s": Bad([opening(), audio(0, silence(301))], "TOO_LONG", "got 301"),
    "more sound than the context": Bad([opening(), audio(0, silence(45))], "TOO_LONG", "the context of 1024"),
    "such sound in clips": Bad(
        [opening(), *(part for i in (0, 2, 4) for part in (audio(i, silence(14)), text(i + 1, "a")))],
        "TOO_LONG",
        "its audio alone needs 1050 positions",
    ),
    "half a sample": Bad([opening(), audio(0, bytes(1001))], "PARTIAL_SAMPLE", "got 1001 bytes"),
    "samples that are no numbers": Bad([opening(audio_format=F32), audio(0, NAN)], "NON_FINITE", "must be finite"),
    "samples beyond all measure": Bad([opening(audio_format=F32), audio(0, BANG), END], "REFUSED", "too loud"),
    "another rate": Bad(
        [opening(audio_format=other_rate(8000)), SOUND], "WRONG_SAMPLE_RATE", "must be 16000, got 8000"
    ),
    "sound without a format": Bad([opening(audio_format=None), SOUND], "WRONG_ENCODING", "open.audio_format.encoding"),
    "a special token": Bad([opening(), text(0, "a <|im_end|>"), END], "REFUSED", "tokens; it has <|im_end|>"),
    "one in pieces": Bad([opening(), text(0, "a <|im_"), text(1, "end|>"), END], "REFUSED", "it has <|im_end|>"),
    "one in history": Bad([opening(), message(USER, "<|AUDIO|>"), HELLO, END], "REFUSED", "it has <|AUDIO|>"),
    "one in history, no end": Bad([opening(), message(USER, "<|AUDIO|>"), HELLO], "REFUSED", "it has <|AUDIO|>"),
    "one before sound, no end": Bad([opening(), text(0, "<|im_end|>"), audio(1, CLIP.data)], "REFUSED", "<|im_end|>"),
    "such samples, no end": Bad([opening(audio_format=F32), audio(0, 8 * BANG)], "REFUSED", "too loud"),
    "1,000 words of history, no end": Bad(
        [opening(), message(USER, WORDS[:5000]), HELLO], "TOO_LONG", "the conversation is too long"
    ),
    "one over two parts": Bad([opening(), message(USER, "<|im_", "end|>"), HELLO, END], "REFUSED", "it has <|im_end|>"),
    "10,000 words": Bad([opening(), text(0, WORDS)], "TOO_LONG", "the conversation is too long"),
    "10,000 of history": Bad([opening(), message(USER, WORDS)], "TOO_LONG", "the conversation is too long"),
    "1,000 words": Bad([opening(), text(0, WORDS[:5000]), END], "TOO_LONG", "the conversation is too long"),
    "text without end": Bad([opening(), *(text(i, WORDS[:5000]) for i in range(3))], "TOO_LONG", "its text alone"),
    "history without end": Bad([opening(), *([message(USER, "fourteen bytes")] * 513)], "TOO_LONG", "its text alone"),
    "nobody's message": Bad([opening(), message(0, "a")], "INVALID_ARGUMENT", "must be SYSTEM, USER or ASSISTANT"),
    "a later system message": Bad(
        [opening(), message(USER, "a"), message(SYSTEM, "b")], "INVALID_ARGUMENT", "only the first message"
    ),
    "a message without parts": Bad([opening(), message(USER)], "INVALID_ARGUMENT", "at least one part"),
    "an empty text in history": Bad([opening(), message(USER, "")], "INVALID_ARGUMENT", "must not be empty"),
    "sound of the model": Bad([opening(), message(ASSISTANT, CLIP)], "INVALID_ARGUMENT", "only user messages"),
    "history too short": Bad([opening(), message(USER, SHORT_CLIP)], "TOO_SHORT", "got 0.01 s"),
    "history without a format": Bad(
        [opening(), message(USER, NO_FORMAT)], "WRONG_ENCODING", "message.parts.audio.format"
    ),
    "steps of no length": Bad([opening(step_seconds=1e-5)], "INVALID_ARGUMENT", "must be 0, or 0.01 to 1, got 1e-05"),
    "no step at most": Bad([opening(max_step_count=0)], "INVALID_ARGUMENT", "max_step_count must be at least 1"),
    "a token that does not exist": Bad([opening(resumed=[5, 448])], "INVALID_ARGUMENT", "must be below 448, got 448"),
    **{
        f"due in {seconds} s": Bad(
            [opening(due_seconds=seconds)],
            "INVALID_ARGUMENT",
            f"open.due_seconds must be 0 to 3600, got {seconds:g}",
        )
        for seconds in (-0.5, 3601.0, np.inf, -np.inf, np.nan)
    },
}


@pytest.mark.parametrize("name", BAD)
async def test_bad_input_is_refused_with_what_is_wrong(server: Server, name: str) -> None:
    bad = BAD[name]
    kind = "cancelled" if bad.code is StatusCode.CANCELLED else "invalid"
    before = server.ended(kind)
    error = await failure(server, bad.requests, half_close=bad.code is StatusCode.CANCELLED)
    assert (error.code, error.reason) == (bad.code, bad.reason)
    assert bad.says in error.message
    assert server.ended(kind) == before + 1


async def test_data_after_end_is_refused(server: Server) -> None:
    with gated(server.engine.model, "prefill"):  # the reply may not be over before the data comes
        error = await failure(server, [opening(), HELLO, END, text(1, "and")])
    assert (error.code, error.reason) == (INVALID, "DATA_AFTER_END")


async def test_301_seconds_in_pieces_are_refused_whatever_the_context(
    new_reasoner_engine: Callable[..., ReasonerEngine],
) -> None:
    async with served(new_reasoner_engine(slot_count=1, context_length=8192)) as server:
        error = await failure(server, [opening(), *(audio(index, silence(43)) for index in range(7))])
        assert (error.code, error.reason) == (INVALID, "TOO_LONG")
        assert "must be 0 to 300 seconds long, got 301" in error.message


async def test_a_message_beyond_the_limit_is_refused(server: Server) -> None:
    options = [("grpc.max_send_message_length", -1)]
    async with grpc.aio.insecure_channel(server.address, options=options) as channel:
        stub = reasoner_pb2_grpc.ReasonerServiceStub(channel)
        error = await failure(replace(server, stub=stub), [opening(), audio(0, bytes(17 << 20))])
    assert error.code is StatusCode.RESOURCE_EXHAUSTED


async def test_a_refusal_names_the_field(server: Server) -> None:
    assert (await failure(server, [opening(), text(3, "a")])).field == "part.index"
    assert (await failure(server, [opening(max_step_count=0)])).field == "open.max_step_count"
    assert (await failure(server, [opening(resumed=[999])])).field == "open.resume.token_ids"
    assert (await failure(server, [opening(due_seconds=np.nan)])).field == "open.due_seconds"


async def test_all_that_is_bad_at_once_harms_no_reply(server: Server, golden_cases: dict[str, GoldenCase]) -> None:
    case = golden_cases["text_and_speech"]
    expected = exact(await generate(server, wire_case(case)))

    async def all_bad() -> None:
        for bad in BAD.values():
            await failure(server, bad.requests, half_close=bad.code is StatusCode.CANCELLED)

    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(all_bad())
        for _ in range(6):
            assert exact(await generate(server, wire_case(case))) == expected


async def test_more_calls_than_there_is_room_for_are_told_so(
    new_reasoner_engine: Callable[..., ReasonerEngine],
) -> None:
    async with served(new_reasoner_engine(slot_count=1, queue_limit=1)) as server:
        first = server.stub.Generate(timeout=DEADLINE_SECONDS)
        await first.write(opening(max_step_count=1))
        assert (await first.read()).WhichOneof("payload") == "opened"
        # Of two more, one waits and the other is told that all is full, whichever comes first.
        others = [asyncio.create_task(answers(server, [opening(max_step_count=1), HELLO, END])) for _ in range(2)]
        done, waiting = await asyncio.wait(others, return_when=asyncio.FIRST_COMPLETED)
        with pytest.raises(grpc.aio.AioRpcError) as raised:
            await done.pop()
        error = from_rpc_error(raised.value)
        assert (error.code, error.reason) == (StatusCode.UNAVAILABLE, "FULL")
        assert server.ended("unavailable") == 1
        await first.write(HELLO)
        await first.write(END)
        assert await rest(first) == ["steps", "finished"]
        assert len(await waiting.pop()) == 3
        await server.is_whole()


async def test_of_those_that_wait_the_one_that_is_due_first_is_served_first(
    new_reasoner_engine: Callable[..., ReasonerEngine],
) -> None:
    async with served(new_reasoner_engine(slot_count=1, queue_limit=4)) as server:
        first = server.stub.Generate(timeout=DEADLINE_SECONDS)
        await first.write(opening())
        assert (await first.read()).WhichOneof("payload") == "opened"
        calls: dict[float, Any] = {}
        for seconds in (500.0, 3600.0, 0.0, 300.0):
            calls[seconds] = server.stub.Generate(timeout=DEADLINE_SECONDS)
            await calls[seconds].write(opening(due_seconds=seconds))
            while len(server.engine._waiting) < len(calls):
                await server.engine.call(lambda: None)
        served_seconds = []

        async def until_served(seconds: float) -> None:
            assert (await calls[seconds].read()).WhichOneof("payload") == "opened"
            served_seconds.append(seconds)
            calls[seconds].cancel()

        async with asyncio.TaskGroup() as tasks:
            for seconds in calls:
                tasks.create_task(until_served(seconds))
            first.cancel()
        assert served_seconds == [0.0, 300.0, 500.0, 3600.0]
        await server.is_whole()


async def test_it_is_counted_what_was_found_of_a_prompt(
    new_reasoner_engine: Callable[..., ReasonerEngine], golden_cases: dict[str, GoldenCase]
) -> None:
    """Two that differ at the first position have nothing in common; all but the last of a prompt may be found."""
    async with served(new_reasoner_engine()) as server:
        positions = golden_cases["text_only"].expected["reasoner_input_ids"].size
        found = []
        for name in (None, "text_only", "text_only", "short_speech", "text_only"):
            if name is not None:
                await generate(server, wire_case(golden_cases[name]))
            values = await scraped(server.registry)
            found.append([values[f"chroma_reasoner_prefix_lookups_total/{outcome}"] for outcome in ("hit", "miss")])
            found[-1].append(values["chroma_reasoner_prefix_positions_total"])
        short = found[3][2] - found[2][2]
        assert 0 < short < positions
        again = positions - 1
        assert found == [[0, 0, 0], [0, 1, 0], [1, 1, again], [2, 1, again + short], [3, 1, 2 * again + short]]


async def test_cancelling_frees_the_slot(server: Server, golden_cases: dict[str, GoldenCase]) -> None:
    """Before the turn is complete, amid the prefill, and amid the reply."""
    case = golden_cases["text_only"]
    before = server.ended("cancelled")
    *begun, end = wire_case(case, max_step_count=None)
    for requests in ([opening()], begun, [*begun, end]):
        call = server.stub.Generate(timeout=DEADLINE_SECONDS)
        for request in requests:
            await call.write(request)
        assert (await call.read()).WhichOneof("payload") == "opened"
        if requests[-1] is end:
            assert (await call.read()).WhichOneof("payload") == "steps"
        call.cancel()
        await until_idle(server.engine)
    with gated(server.engine.model, "prefill") as gate:
        call = server.stub.Generate(iter([*begun, end]), timeout=DEADLINE_SECONDS)
        await gate.reached()
        call.cancel()
        gate.opened.set()
        await until_idle(server.engine)
    assert server.ended("cancelled") == before + 4


async def test_a_deadline_that_passes_frees_the_slot(server: Server) -> None:
    before = server.ended("cancelled")
    call = server.stub.Generate(timeout=0.2)
    await call.write(opening())
    with pytest.raises(grpc.aio.AioRpcError) as raised:
        await rest(call)
    assert raised.value.code() is StatusCode.DEADLINE_EXCEEDED
    await until_idle(server.engine)
    assert server.ended("cancelled") == before + 1


async def test_a_bug_is_internal_and_tells_no_secret(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any, **__: Any) -> None:
        raise RuntimeError("a secret of ours")

    with monkeypatch.context() as patch:
        patch.setattr(server.engine.step, "run", broken)
        error = await failure(server, [opening(), HELLO, END])
    assert (error.code, error.message) == (StatusCode.INTERNAL, "internal error")


async def test_health_answers_while_a_prefill_runs(server: Server, golden_cases: dict[str, GoldenCase]) -> None:
    with gated(server.engine.model, "prefill") as gate:
        reply = asyncio.create_task(generate(server, wire_case(golden_cases["text_only"])))
        await gate.reached()
        for name in ("", SERVICE_NAME):
            answer = await server.health.Check(health_pb2.HealthCheckRequest(service=name), timeout=DEADLINE_SECONDS)
            assert answer.status == health_pb2.HealthCheckResponse.SERVING
        other = server.stub.Generate(timeout=DEADLINE_SECONDS)
        await other.write(opening())
        assert (await other.read()).WhichOneof("payload") == "opened"
        assert not gate.opened.is_set()
        assert not reply.done()
        other.cancel()
        gate.opened.set()
        assert (await reply).tokens == golden_cases["text_only"].tokens
