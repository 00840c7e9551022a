"""SpeechService over a real server: golden frames, the stream law, and what every bad input is answered with."""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from typing import Any

import grpc
import numpy as np
import pytest
import pytest_asyncio
from chroma_mesh.speech.v1 import speech_pb2, speech_pb2_grpc
from chroma_mesh.types.v1 import types_pb2
from grpc import StatusCode
from grpc_health.v1 import health_pb2, health_pb2_grpc
from prometheus_client import CollectorRegistry

from services.runtime.channel import open_channel
from services.runtime.errors import MeshError, from_rpc_error
from services.runtime.tensors import encode_tensor
from services.speech.engine import Codes, SpeechEngine, SpeechStep, Voice
from services.speech.metrics import SpeechMetrics
from services.speech.service import SERVICE_NAME, SpeechService
from services.speech.settings import SpeechSettings
from services.stage.gathering import MESSAGE_SHARE
from tests.conftest import GOLDEN, GoldenCase, gated, serving, until_idle
from tests.contract.scraped_metrics import scraped

HIDDEN, CODEBOOKS, CODES, END_TOKEN_ID = 48, 8, 2048, 2
DEADLINE_SECONDS = 60.0
STOP, LENGTH = types_pb2.FINISH_REASON_STOP, types_pb2.FINISH_REASON_LENGTH
FLOAT32, BFLOAT16 = types_pb2.DATA_TYPE_FLOAT32, types_pb2.DATA_TYPE_BFLOAT16

Request, Response = speech_pb2.GenerateFramesRequest, speech_pb2.GenerateFramesResponse

# Most tests share one server, which therefore lives on one event loop.
pytestmark = pytest.mark.asyncio(loop_scope="module")


@dataclass(frozen=True)
class Server:
    """A speech stage that serves, from both sides."""

    address: str
    stub: speech_pb2_grpc.SpeechServiceStub
    health: health_pb2_grpc.HealthStub
    engine: SpeechEngine
    registry: CollectorRegistry

    def ended(self, reason: str) -> float:
        """Streams that ended for this reason."""
        return self.registry.get_sample_value("chroma_speech_finished_streams_total", {"reason": reason}) or 0.0

    async def is_whole(self) -> None:
        """All slots come free, and the service answers."""
        await until_idle(self.engine)
        assert self.registry.get_sample_value("chroma_speech_slots_in_use") == 0
        assert len((await generate(self, [opening(max_frame_count=2), STEP, END])).frames) == 2


@dataclass(frozen=True)
class Reply:
    """What one call gave, in its parts."""

    opened: speech_pb2.GenerateFramesOpened
    frames: list[Codes]
    finished: speech_pb2.GenerateFramesFinished


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def shared(new_speech_engine: Callable[..., SpeechEngine]) -> AsyncIterator[Server]:
    """The server of most tests."""
    async with served(new_speech_engine()) as server:
        yield server


@pytest_asyncio.fixture(loop_scope="module")
async def server(shared: Server) -> AsyncIterator[Server]:
    """The same, which must be whole again after the test."""
    yield shared
    await shared.is_whole()


@asynccontextmanager
async def served(engine: SpeechEngine) -> AsyncIterator[Server]:
    registry = CollectorRegistry()
    settings = SpeechSettings(checkpoint=str(GOLDEN / "checkpoint"), grace_seconds=5)
    service = SpeechService(SpeechMetrics(registry))
    async with serving(engine, service, SERVICE_NAME, settings, registry) as address, open_channel(address) as channel:
        stub, health = speech_pb2_grpc.SpeechServiceStub(channel), health_pb2_grpc.HealthStub(channel)
        yield Server(address, stub, health, engine, registry)


VOICE = Voice("The quick brown fox.", [[1, 2, 3, 4, 5, 6, 7, 8]] * 3)


def opening(voice: Voice = VOICE, *, resumed: list[Codes] | None = None, **facts: Any) -> Request:
    """The first message; greedy unless told otherwise."""
    prompt = types_pb2.VoicePrompt(transcript=voice.transcript, frames=frames(voice.frames))
    resume = None if resumed is None else speech_pb2.GenerateFramesResume(frames=frames(resumed))
    facts = {"sampling": sampling(temperature=0.0)} | facts
    return Request(open=speech_pb2.GenerateFramesOpen(voice_prompt=prompt, resume=resume, **facts))


def sampling(**values: float) -> types_pb2.Sampling:
    return types_pb2.Sampling(**values)


def frames(codes: list[Codes]) -> list[types_pb2.Frame]:
    return [types_pb2.Frame(codes=each) for each in codes]


def step(
    index: int, *, token: int = 30, hidden: np.ndarray | types_pb2.Tensor | None = None, is_end: bool = False
) -> Request:
    if hidden is None:
        hidden = np.random.default_rng(index).normal(0, 1, HIDDEN).astype(np.float32)
    tensor = encode_tensor(hidden, FLOAT32) if isinstance(hidden, np.ndarray) else hidden
    one = types_pb2.Step(index=index, token_id=token, hidden_state=tensor, is_end=is_end)
    return Request(steps=types_pb2.Steps(steps=[one]))


STEP = step(0)
END = Request(end=speech_pb2.GenerateFramesEnd())
NOTHING = Request()


def wire_steps(steps: list[SpeechStep]) -> list[Request]:
    return [
        step(index, token=each.token_id, hidden=each.hidden_state, is_end=each.is_end)
        for index, each in enumerate(steps)
    ]


def wire_case(case: GoldenCase, **facts: Any) -> list[Request]:
    facts = {"max_frame_count": case.maximum_frame_count} | facts
    return [opening(case.voice(), **facts), *wire_steps(case.steps(END_TOKEN_ID)), END]


async def answers(server: Server, requests: Iterable[Request]) -> list[Response]:
    """All that the service sends; the requests go out one after the other, then the client half-closes."""
    return [answer async for answer in server.stub.GenerateFrames(iter(requests), timeout=DEADLINE_SECONDS)]


def read_reply(all_answers: list[Response]) -> Reply:
    """The parts of a call that went well: opened, frames in order, finished."""
    first, *middle, last = all_answers
    assert first.WhichOneof("payload") == "opened"
    assert {answer.WhichOneof("payload") for answer in middle} <= {"frames"}
    assert last.WhichOneof("payload") == "finished"
    return Reply(
        first.opened, [list(frame.codes) for answer in middle for frame in answer.frames.frames], last.finished
    )


async def generate(server: Server, requests: Iterable[Request]) -> Reply:
    return read_reply(await answers(server, requests))


async def failure(server: Server, requests: Iterable[Request], *, half_close: bool = False) -> MeshError:
    """What a call that goes wrong is answered with; nothing is written after the request that is wrong."""
    call = server.stub.GenerateFrames(timeout=DEADLINE_SECONDS)
    for request in requests:
        await call.write(request)
    if half_close:
        await call.done_writing()
    with pytest.raises(grpc.aio.AioRpcError) as raised:
        await rest(call)
    return from_rpc_error(raised.value)


async def rest(call: Any) -> list[Response]:
    """All answers that still come."""
    found = []
    while (answer := await call.read()) is not grpc.aio.EOF:
        found.append(answer)
    return found


async def test_frames_are_golden(server: Server, golden_case: GoldenCase) -> None:
    all_answers = await answers(server, wire_case(golden_case, return_prompt=True))
    reply = read_reply(all_answers)
    assert reply.frames == golden_case.frames
    assert [answer.frames.index for answer in all_answers[1:-1]] == list(range(len(reply.frames)))
    assert reply.finished.transcript_token_ids == golden_case.expected["voice_text_ids"].reshape(-1).tolist()
    steps = len(golden_case.tokens)
    assert [list(answer.frames.step_counts) for answer in all_answers[1:-1]] == [
        [min(index // 2 + 1, steps)] for index in range(len(reply.frames))
    ]
    assert (reply.finished.frame_count, reply.finished.step_count) == (len(reply.frames), steps)
    assert reply.finished.reason == (LENGTH if len(reply.frames) == golden_case.maximum_frame_count else STOP)
    assert reply.finished.first_frame_seconds > 0
    assert [answer.HasField("timing") for answer in all_answers] == [False, True, *[False] * (len(all_answers) - 2)]
    timing = all_answers[1].timing
    parts = (timing.queue_seconds, timing.prefill_seconds, timing.frame_seconds)
    assert timing.frame_seconds > 0
    assert sum(parts) == pytest.approx(reply.finished.first_frame_seconds)
    assert (reply.opened.hidden_size, reply.opened.context_length) == (HIDDEN, 1024)
    assert (reply.opened.codebook_count, reply.opened.codebook_size) == (CODEBOOKS, CODES)


async def test_frames_leave_together_when_nobody_waits_for_them(
    server: Server, golden_cases: dict[str, GoldenCase]
) -> None:
    """The first leaves alone; the frames are the same, each once, with their steps. Who has much gets more at once."""
    requests = wire_case(golden_cases["length_limit"], max_frame_count=60, sampling=sampling(seed=3))
    each_alone = read_reply(alone := await answers(server, requests))
    step_counts = [count for answer in alone[1:-1] for count in answer.frames.step_counts]
    for frame_seconds, most in ((0.08, 10), (0.1, 8), (0.5, 1), (1.0, 1)):
        requests[0].open.frame_seconds = frame_seconds
        together = await answers(server, requests)
        assert read_reply(together).frames == each_alone.frames
        messages = [answer.frames for answer in together[1:-1]]
        assert [count for message in messages for count in message.step_counts] == step_counts
        sizes = [len(message.frames) for message in messages]
        assert sizes[0] == 1
        sent_seconds = [frame_seconds * sum(sizes[:index]) for index in range(len(sizes))]
        for size, in_hand_seconds in zip(sizes, sent_seconds, strict=True):
            assert size <= max(most, MESSAGE_SHARE * in_hand_seconds / frame_seconds)
        assert [message.index for message in messages] == [sum(sizes[:index]) for index in range(len(sizes))]


async def test_a_frame_waits_for_others_no_longer_than_the_listener_can(
    server: Server, golden_cases: dict[str, GoldenCase]
) -> None:
    """With four frames in hand the fifth and the sixth wait for a seventh; they come although its step does not."""
    first, *steps, end = wire_case(golden_cases["length_limit"], frame_seconds=0.13)
    call = server.stub.GenerateFrames(timeout=DEADLINE_SECONDS)
    for request in (first, *steps[:3]):
        await call.write(request)
    count = -1
    while count < 6:
        answer = await call.read()
        count += len(answer.frames.frames) if answer.WhichOneof("payload") == "frames" else 1
    await call.write(end)
    assert (await rest(call))[-1].WhichOneof("payload") == "finished"


async def test_the_transcript_comes_only_when_asked_for(server: Server) -> None:
    reply = await generate(server, [opening(max_frame_count=1), STEP, END])
    assert not reply.finished.transcript_token_ids


async def test_calls_at_once_each_get_the_reply_they_get_alone(
    server: Server, golden_cases: dict[str, GoldenCase]
) -> None:
    how = [sampling(temperature=0.0), sampling(seed=2**64 - 1), sampling(temperature=1.5, top_k=0, seed=7)]
    requests = [
        wire_case(case, sampling=how[number % 3], max_frame_count=8)
        for number, case in enumerate(golden_cases.values())
    ]
    alone = [(await generate(server, each)).frames for each in requests]
    together = await asyncio.gather(*(generate(server, each) for each in requests))
    assert [reply.frames for reply in together] == alone


async def test_absent_sampling_is_its_defaults(server: Server, golden_cases: dict[str, GoldenCase]) -> None:
    case = golden_cases["length_limit"]
    spelled = sampling(temperature=0.7, top_k=50, seed=0)
    expected = (await generate(server, wire_case(case, sampling=spelled))).frames
    for absent in (None, types_pb2.Sampling(), sampling(top_k=50), sampling(temperature=0.7)):
        assert (await generate(server, wire_case(case, sampling=absent))).frames == expected
    assert expected != case.frames


async def test_states_come_in_both_data_types(server: Server) -> None:
    """A state that bfloat16 can hold gives the same frames either way."""
    state = np.random.default_rng(0).integers(-8, 8, HIDDEN).astype(np.float32)
    replies = [
        (await generate(server, [opening(max_frame_count=4), step(0, hidden=encode_tensor(state, kind)), END])).frames
        for kind in (FLOAT32, BFLOAT16)
    ]
    assert replies[0] == replies[1]


async def test_frames_are_sent_while_steps_still_come(server: Server, golden_cases: dict[str, GoldenCase]) -> None:
    case = golden_cases["length_limit"]
    call = server.stub.GenerateFrames(timeout=DEADLINE_SECONDS)
    first, *steps, end = wire_case(case)
    await call.write(first)
    assert (await call.read()).WhichOneof("payload") == "opened"
    heard: list[Codes] = []
    for request in steps:
        await call.write(request)
        while len(heard) < min(2 * (request.steps.steps[0].index + 1), case.maximum_frame_count):
            heard += [list(frame.codes) for frame in (await call.read()).frames.frames]
    await call.write(end)
    assert heard == case.frames
    assert [answer.WhichOneof("payload") for answer in await rest(call)] == ["finished"]


async def test_a_reply_is_taken_up_where_it_was_lost(server: Server, golden_cases: dict[str, GoldenCase]) -> None:
    case = golden_cases["greedy_one_turn"]
    for start in (1, 6, len(case.frames)):
        requests = wire_case(case, resumed=case.frames[:start])
        all_answers = await answers(server, requests)
        reply = read_reply(all_answers)
        assert reply.frames == case.frames[start:]
        assert [answer.frames.index for answer in all_answers[1:-1]] == list(range(start, len(case.frames)))
        assert (reply.finished.frame_count, reply.finished.reason) == (len(case.frames), STOP)


async def test_a_client_that_still_writes_when_its_reply_ends_may_finish(server: Server) -> None:
    call = server.stub.GenerateFrames(timeout=DEADLINE_SECONDS)
    await call.write(opening(max_frame_count=2))
    for index in range(200):
        await call.write(step(index))
    reading = asyncio.create_task(rest(call))
    await call.write(END)
    kinds = [answer.WhichOneof("payload") for answer in await reading]
    assert kinds == ["opened", "frames", "frames", "finished"]
    assert await call.code() is StatusCode.OK


async def test_a_generation_that_reaches_the_context_ends_with_length(
    new_speech_engine: Callable[..., SpeechEngine], golden_cases: dict[str, GoldenCase]
) -> None:
    case = golden_cases["text_only"]
    prompt_length = case.expected["voice_text_ids"].size + len(case.voice().frames) + 3
    async with served(new_speech_engine(context_length=prompt_length + 2 * 3 + 4)) as server:
        reply = await generate(server, wire_case(case, max_frame_count=None))
        assert (reply.finished.reason, reply.frames) == (LENGTH, case.frames[:5])


def tensor(data_type: int = FLOAT32, shape: tuple[int, ...] = (HIDDEN,), size: int = 4 * HIDDEN) -> types_pb2.Tensor:
    return types_pb2.Tensor(data_type=data_type, shape=shape, data=bytes(size))


def spoilt(value: float) -> types_pb2.Tensor:
    state = np.zeros(HIDDEN, "<f4")
    state[17] = value
    return types_pb2.Tensor(data_type=FLOAT32, shape=[HIDDEN], data=state.tobytes())


def voice(transcript: str = VOICE.transcript, codes: list[Codes] = VOICE.frames) -> Voice:
    return Voice(transcript, codes)


INVALID = StatusCode.INVALID_ARGUMENT
GOOD, WRONG = [1] * 8, [1, 1, 1, 1, 1, 1, 1, CODES]
WORDS = " ".join(["word"] * 10_000)


@dataclass(frozen=True)
class Bad:
    """What a client sends, the last of it wrong, and what it is answered with."""

    requests: list[Request]
    reason: str
    says: str
    code: StatusCode = INVALID


def abandoned(*requests: Request, before: str = "end") -> Bad:
    return Bad([*requests], "ABANDONED", f"stopped before {before}", StatusCode.CANCELLED)


def bad_open(reason: str, says: str, *prompt: Voice, **facts: Any) -> Bad:
    return Bad([opening(*prompt, **facts)], reason, says)


def bad_state(state: types_pb2.Tensor, reason: str, says: str, code: StatusCode = INVALID) -> Bad:
    return Bad([opening(), STEP, step(1, hidden=state)], reason, says, code)


BAD = {
    "nothing at all": abandoned(before="open"),
    "no end after open": abandoned(opening()),
    "no end after a step": abandoned(opening(), STEP),
    "a step first": Bad([STEP], "OUT_OF_ORDER", "must be open, got step"),
    "end first": Bad([END], "OUT_OF_ORDER", "must be open, got end"),
    "open twice": Bad([opening(), STEP, opening()], "OUT_OF_ORDER", "open must be sent once"),
    "an empty message first": Bad([NOTHING], "INVALID_ARGUMENT", "must have a payload"),
    "an empty message later": Bad([opening(), NOTHING], "INVALID_ARGUMENT", "must have a payload"),
    "steps that start at 1": Bad([opening(), step(1)], "INDEX_GAP", "step.index must be 0, got 1"),
    "a gap": Bad([opening(), STEP, step(2)], "INDEX_GAP", "step.index must be 1, got 2"),
    "a repeat": Bad([opening(), STEP, STEP], "INDEX_GAP", "step.index must be 1, got 0"),
    "no step": Bad([opening(), END], "REFUSED", "expected at least one step"),
    "a step after the last": Bad([opening(), step(0, is_end=True), step(1)], "OUT_OF_ORDER", "no step may follow"),
    "no such token": Bad([opening(), step(0, token=448)], "INVALID_ARGUMENT", "must be below 448, got 448"),
    "a state too short": bad_state(tensor(shape=(47,), size=188), "WRONG_SHAPE", "must have shape [48], got [47]"),
    "a state too deep": bad_state(tensor(shape=(1, 48)), "WRONG_SHAPE", "must have shape [48], got [1, 48]"),
    "no state": bad_state(types_pb2.Tensor(), "WRONG_SHAPE", "must have shape [48], got []"),
    "a state of too few bytes": bad_state(tensor(size=188), "WRONG_LENGTH", "must have 192 bytes, got 188"),
    "a state of too many bytes": bad_state(tensor(BFLOAT16), "WRONG_LENGTH", "must have 96 bytes, got 192"),
    "a state of no type": bad_state(tensor(0), "WRONG_DATA_TYPE", "must be FLOAT32 or BFLOAT16"),
    "a state that is no number": bad_state(spoilt(np.nan), "NON_FINITE", "must be finite", StatusCode.INTERNAL),
    "an infinite state": bad_state(spoilt(-np.inf), "NON_FINITE", "must be finite", StatusCode.INTERNAL),
    "no transcript": bad_open("NO_TRANSCRIPT", "what is said in the voice's example", voice("")),
    "a blank transcript": bad_open("NO_TRANSCRIPT", "what is said in the voice's example", voice(" \n")),
    "no voice": Bad([Request(open=speech_pb2.GenerateFramesOpen())], "NO_TRANSCRIPT", "got nothing"),
    "a voice without frames": bad_open("INVALID_ARGUMENT", "must have a frame", voice(codes=[])),
    "a code out of range": bad_open("CODE_OUT_OF_RANGE", "below 2048, got 2048", voice(codes=[GOOD, WRONG])),
    "too few codes": bad_open("WRONG_CODE_COUNT", "must have 8 codes, got 7", voice(codes=[GOOD, [1] * 7])),
    "too many codes": bad_open("WRONG_CODE_COUNT", "must have 8 codes, got 9", voice(codes=[[1] * 9])),
    "a resumed code out of range": bad_open("CODE_OUT_OF_RANGE", "below 2048, got 2048", resumed=[GOOD, WRONG]),
    "too few resumed codes": bad_open("WRONG_CODE_COUNT", "must have 8 codes, got 0", resumed=[[]]),
    "10,000 words": bad_open("REFUSED", "the voice prompt is too long", voice(WORDS)),
    "too many frames": bad_open("REFUSED", "the voice prompt is too long", voice(codes=[GOOD] * 1020)),
    "a special token": bad_open("REFUSED", "it has <|text_end|>", voice("hello <|text_end|>")),
    "below zero": bad_open("INVALID_ARGUMENT", "must be 0 to 2, got -0.1", sampling=sampling(temperature=-0.1)),
    "too hot": bad_open("INVALID_ARGUMENT", "must be 0 to 2, got 2.1", sampling=sampling(temperature=2.1)),
    "no temperature": bad_open("INVALID_ARGUMENT", "must be 0 to 2, got nan", sampling=sampling(temperature=np.nan)),
    "boundless heat": bad_open("INVALID_ARGUMENT", "must be 0 to 2, got inf", sampling=sampling(temperature=np.inf)),
    "too many codes to draw": bad_open("INVALID_ARGUMENT", "0 to 2048, got 2049", sampling=sampling(top_k=2049)),
    "no frame at most": bad_open("INVALID_ARGUMENT", "must be at least 1, got 0", max_frame_count=0),
    "frames of no length": bad_open("INVALID_ARGUMENT", "must be 0, or 0.01 to 1, got 1e-05", frame_seconds=1e-5),
    "frames of nan": bad_open("INVALID_ARGUMENT", "must be 0, or 0.01 to 1, got nan", frame_seconds=float("nan")),
    **{
        f"due in {seconds} s": bad_open(
            "INVALID_ARGUMENT", f"open.due_seconds must be 0 to 3600, got {seconds:g}", due_seconds=seconds
        )
        for seconds in (-0.5, 3601.0, np.inf, -np.inf, np.nan)
    },
}


@pytest.mark.parametrize("name", BAD)
async def test_bad_input_is_refused_with_what_is_wrong(server: Server, name: str) -> None:
    bad = BAD[name]
    kind = {StatusCode.CANCELLED: "cancelled", StatusCode.INTERNAL: "failed"}.get(bad.code, "invalid")
    before = server.ended(kind)
    with gated(server.engine.step, "run"):  # the reply may not be over before what is wrong comes
        error = await failure(server, bad.requests, half_close=bad.code is StatusCode.CANCELLED)
    assert (error.code, error.reason) == (bad.code, bad.reason)
    assert bad.says in error.message
    assert server.ended(kind) == before + 1


async def test_data_after_end_is_refused(server: Server) -> None:
    with gated(server.engine.step, "run"):
        error = await failure(server, [opening(), STEP, END, step(1)])
    assert (error.code, error.reason) == (INVALID, "DATA_AFTER_END")


async def test_a_message_beyond_the_limit_is_refused(server: Server) -> None:
    options = [("grpc.max_send_message_length", -1)]
    async with grpc.aio.insecure_channel(server.address, options=options) as channel:
        stub = speech_pb2_grpc.SpeechServiceStub(channel)
        error = await failure(replace(server, stub=stub), [opening(), step(0, hidden=tensor(size=17 << 20))])
    assert error.code is StatusCode.RESOURCE_EXHAUSTED


async def test_a_refusal_names_the_field(server: Server) -> None:
    wanted = {
        "a gap": "step.index",
        "a state too short": "step.hidden_state.shape",
        "a code out of range": "open.voice_prompt.frames[1].codes[7]",
        "a resumed code out of range": "open.resume.frames[1].codes[7]",
        "too hot": "sampling.temperature",
        "no frame at most": "open.max_frame_count",
        "frames of no length": "open.frame_seconds",
        "frames of nan": "open.frame_seconds",
        "due in nan s": "open.due_seconds",
    }
    with gated(server.engine.step, "run"):
        assert {name: (await failure(server, BAD[name].requests)).field for name in wanted} == wanted


async def test_all_that_is_bad_at_once_harms_no_reply(server: Server, golden_cases: dict[str, GoldenCase]) -> None:
    case = golden_cases["length_limit"]
    refused_while_speaking = ("a step after the last", "open twice")

    async def all_bad() -> None:
        for name, bad in BAD.items():
            if name not in refused_while_speaking:
                await failure(server, bad.requests, half_close=bad.code is StatusCode.CANCELLED)

    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(all_bad())
        for _ in range(3):
            assert (await generate(server, wire_case(case))).frames == case.frames


async def test_more_calls_than_there_is_room_for_are_told_so(new_speech_engine: Callable[..., SpeechEngine]) -> None:
    async with served(new_speech_engine(slot_count=1, queue_limit=1)) as server:
        first = server.stub.GenerateFrames(timeout=DEADLINE_SECONDS)
        await first.write(opening(max_frame_count=1))
        assert (await first.read()).WhichOneof("payload") == "opened"
        # Of two more, one waits and the other is told that all is full, whichever comes first.
        calls = [server.stub.GenerateFrames(timeout=DEADLINE_SECONDS) for _ in range(2)]
        others = [asyncio.create_task(open_alone(call)) for call in calls]
        done, waiting = await asyncio.wait(others, return_when=asyncio.FIRST_COMPLETED)
        with pytest.raises(grpc.aio.AioRpcError) as raised:
            await done.pop()
        error = from_rpc_error(raised.value)
        assert (error.code, error.reason) == (StatusCode.UNAVAILABLE, "FULL")
        assert server.ended("unavailable") == 1
        for request in (STEP, END):
            await first.write(request)
        assert [answer.WhichOneof("payload") for answer in await rest(first)] == ["frames", "finished"]
        assert (await waiting.pop()).WhichOneof("payload") == "opened"
        for call in calls:
            call.cancel()
        await server.is_whole()


async def open_alone(call: Any) -> Response:
    """Opens and waits for the first answer."""
    await call.write(opening(max_frame_count=1))
    answer = await call.read()
    if answer is grpc.aio.EOF:
        await rest(call)
    return answer


async def test_of_those_that_wait_the_one_that_is_due_first_is_served_first(
    new_speech_engine: Callable[..., SpeechEngine],
) -> None:
    async with served(new_speech_engine(slot_count=1, queue_limit=4)) as server:
        first = server.stub.GenerateFrames(timeout=DEADLINE_SECONDS)
        await first.write(opening())
        assert (await first.read()).WhichOneof("payload") == "opened"
        calls: dict[float, Any] = {}
        for seconds in (500.0, 3600.0, 0.0, 300.0):
            calls[seconds] = server.stub.GenerateFrames(timeout=DEADLINE_SECONDS)
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


async def test_it_is_counted_whether_a_voice_was_kept(new_speech_engine: Callable[..., SpeechEngine]) -> None:
    async with served(new_speech_engine()) as server:
        lookups = "chroma_speech_voice_lookups_total"
        found = []
        for spoken in (None, VOICE, VOICE, voice("Hello."), VOICE):
            if spoken is not None:
                await generate(server, [opening(spoken, max_frame_count=1), STEP, END])
            values = await scraped(server.registry)
            found.append((values[f"{lookups}/hit"], values[f"{lookups}/miss"]))
        assert found == [(0, 0), (0, 1), (1, 1), (1, 2), (2, 2)]


async def test_cancelling_frees_the_slot(server: Server) -> None:
    """Before the first step, amid the voice's prefill, and amid the reply."""
    before = server.ended("cancelled")
    for steps in (0, 3):
        call = server.stub.GenerateFrames(timeout=DEADLINE_SECONDS)
        await call.write(opening())
        for index in range(steps):
            await call.write(step(index))
        for _ in range(1 + steps):
            assert await call.read() is not grpc.aio.EOF
        call.cancel()
        await until_idle(server.engine)
    unheard = Voice("A voice that was never run before.", VOICE.frames)
    with gated(server.engine.model, "prefill") as gate:
        call = server.stub.GenerateFrames(iter([opening(unheard), STEP, END]), timeout=DEADLINE_SECONDS)
        await gate.reached()
        call.cancel()
        gate.opened.set()
        await until_idle(server.engine)
    assert server.ended("cancelled") == before + 3


async def test_a_deadline_that_passes_frees_the_slot(server: Server) -> None:
    before = server.ended("cancelled")
    call = server.stub.GenerateFrames(timeout=0.2)
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
        error = await failure(server, [opening(), STEP, END])
    assert (error.code, error.message) == (StatusCode.INTERNAL, "internal error")


async def test_health_answers_while_a_prefill_runs(server: Server, golden_cases: dict[str, GoldenCase]) -> None:
    requests = wire_case(golden_cases["length_limit"])
    requests[0].open.voice_prompt.transcript += " As nobody has asked for it before."
    with gated(server.engine.model, "prefill") as gate:
        reply = asyncio.create_task(generate(server, requests))
        await gate.reached()
        for name in ("", SERVICE_NAME):
            answer = await server.health.Check(health_pb2.HealthCheckRequest(service=name), timeout=DEADLINE_SECONDS)
            assert answer.status == health_pb2.HealthCheckResponse.SERVING
        assert not gate.opened.is_set()
        assert not reply.done()
        gate.opened.set()
        assert (await reply).frames == (await generate(server, requests)).frames


async def test_a_reply_that_ends_before_its_steps_ends_well_however_the_client_leaves(server: Server) -> None:
    call = server.stub.GenerateFrames(timeout=DEADLINE_SECONDS)
    for request in (opening(max_frame_count=2), STEP):
        await call.write(request)
    while (answer := await call.read()).WhichOneof("payload") != "finished":
        assert answer is not grpc.aio.EOF
    await call.done_writing()  # without `end`: nothing that could still be said is wanted
    assert await rest(call) == []
    assert await call.code() is StatusCode.OK
    assert (answer.finished.frame_count, answer.finished.step_count) == (2, 1)
