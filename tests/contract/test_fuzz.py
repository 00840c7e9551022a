"""Every RPC, given anything in any order and left in any way: only the statuses that there are, an answer, no leak.

CHROMA_TEST_FUZZ=2000 tries so many examples of each law, others at every run.
"""

import asyncio
import os
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from functools import partial
from typing import Any

import grpc
import numpy as np
import pytest
import pytest_asyncio
from chroma_mesh.codec.v1 import codec_pb2, codec_pb2_grpc
from chroma_mesh.orchestrator.v1 import orchestrator_pb2 as pb
from chroma_mesh.orchestrator.v1 import orchestrator_pb2_grpc
from chroma_mesh.reasoner.v1 import reasoner_pb2, reasoner_pb2_grpc
from chroma_mesh.speech.v1 import speech_pb2, speech_pb2_grpc
from chroma_mesh.stage.v1 import stage_pb2
from chroma_mesh.types.v1 import types_pb2
from google.protobuf.message import Message
from grpc import StatusCode
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from hypothesis.strategies import DrawFn
from prometheus_client import CollectorRegistry

from services.codec.__main__ import build as build_codec
from services.codec.metrics import CodecMetrics
from services.codec.service import CodecService
from services.codec.settings import CodecSettings
from services.orchestrator.service import OrchestratorService
from services.orchestrator.settings import OrchestratorSettings
from services.reasoner.metrics import ReasonerMetrics
from services.reasoner.service import ReasonerService
from services.reasoner.settings import ReasonerSettings
from services.runtime.channel import open_channel
from services.runtime.tensors import encode_tensor
from services.speech.metrics import SpeechMetrics
from services.speech.service import SpeechService
from services.speech.settings import SpeechSettings
from tests.conftest import BUILTIN_VOICES, GOLDEN, GoldenCase, serving, until_idle
from tests.contract import fake_mesh
from tests.contract.fuzzed_calls import Script, ask, in_time, no_bug_logged, play, scripts
from tests.contract.fuzzed_messages import SOUNDS, any_floats, any_message

EXAMPLES = int(os.environ.get("CHROMA_TEST_FUZZ", "80"))
fuzz = settings(
    max_examples=EXAMPLES,
    derandomize="CHROMA_TEST_FUZZ" not in os.environ,
    database=None,
    phases=(Phase.generate,),  # a hang that is shrunk takes an hour
    print_blob=True,
    suppress_health_check=list(HealthCheck),
)

HIDDEN, CODEBOOKS, CODES, END_TOKEN_ID = 48, 8, 2048, 2
S16, F32 = types_pb2.AUDIO_ENCODING_PCM_S16LE, types_pb2.AUDIO_ENCODING_PCM_F32LE
STAGES = ("reasoner", "speech", "codec")

pytestmark = [
    pytest.mark.asyncio(loop_scope="module"),
    pytest.mark.filterwarnings("ignore:Generating overly large repr"),  # messages may be long
]


def audio_format(encoding: types_pb2.AudioEncoding, rate: int) -> types_pb2.AudioFormat:
    return types_pb2.AudioFormat(encoding=encoding, sample_rate_hz=rate)


# --- what is served --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Mesh:
    """The three stages of the golden checkpoint and an orchestrator over them, each a server of its own."""

    # What good requests are made of.
    case: GoldenCase
    engines: dict[str, Any]
    registries: dict[str, CollectorRegistry]
    channels: dict[str, grpc.aio.Channel]

    def _repr_pretty_(self, printer: Any, _cycle: bool) -> None:
        printer.text("mesh")

    @property
    def reasoner(self) -> reasoner_pb2_grpc.ReasonerServiceStub:
        return reasoner_pb2_grpc.ReasonerServiceStub(self.channels["reasoner"])

    @property
    def speech(self) -> speech_pb2_grpc.SpeechServiceStub:
        return speech_pb2_grpc.SpeechServiceStub(self.channels["speech"])

    @property
    def codec(self) -> codec_pb2_grpc.CodecServiceStub:
        return codec_pb2_grpc.CodecServiceStub(self.channels["codec"])

    @property
    def orchestrator(self) -> orchestrator_pb2_grpc.OrchestratorServiceStub:
        return orchestrator_pb2_grpc.OrchestratorServiceStub(self.channels["orchestrator"])

    async def is_idle(self) -> None:
        """Nothing is in use."""
        async with in_time("a slot that is not given back"):
            for stage, engine in self.engines.items():
                await until_idle(engine)
                assert self.registries[stage].get_sample_value(f"chroma_{stage}_slots_in_use") == 0
            sessions = partial(self.registries["orchestrator"].get_sample_value, "chroma_orchestrator_sessions_in_use")
            while sessions():  # noqa: ASYNC110 - nothing tells of the change
                await asyncio.sleep(0)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def mesh(
    golden_cases: dict[str, GoldenCase],
    new_reasoner_engine: Callable[..., Any],
    new_speech_engine: Callable[..., Any],
) -> AsyncIterator[Mesh]:
    """All that is fuzzed: models of the golden cases, and small enough contexts for replies that nobody limits."""
    checkpoint = str(GOLDEN / "checkpoint")
    codec_settings = CodecSettings(checkpoint=checkpoint, device="cpu", slots=4, grace_seconds=5)
    registries = {name: CollectorRegistry() for name in (*STAGES, "orchestrator")}
    stages: dict[str, tuple[Any, Any, Any]] = {
        "reasoner": (
            new_reasoner_engine(context_length=384),
            ReasonerService(ReasonerMetrics(registries["reasoner"])),
            ReasonerSettings(checkpoint=checkpoint, grace_seconds=5),
        ),
        "speech": (
            new_speech_engine(context_length=384),
            SpeechService(SpeechMetrics(registries["speech"])),
            SpeechSettings(checkpoint=checkpoint, grace_seconds=5),
        ),
        "codec": (build_codec(codec_settings), CodecService(CodecMetrics(registries["codec"])), codec_settings),
    }
    async with AsyncExitStack() as stack:
        addresses, channels, engines = {}, {}, {}
        for stage, (engine, service, stage_settings) in stages.items():
            name = f"chroma_mesh.{stage}.v1.{stage.capitalize()}Service"
            address = await stack.enter_async_context(serving(engine, service, name, stage_settings, registries[stage]))
            addresses[f"{stage}_address"] = address
            channels[stage] = await stack.enter_async_context(open_channel(address))
            engines[stage] = engine
        orchestrator = OrchestratorService(OrchestratorSettings(**addresses), registries["orchestrator"])
        stack.push_async_callback(orchestrator.close)
        await orchestrator.prepare()
        address, _ = await stack.enter_async_context(fake_mesh.serving(orchestrator.add_to))
        channels["orchestrator"] = await stack.enter_async_context(open_channel(address))
        yield Mesh(golden_cases["text_only"], engines, registries, channels)


async def concurrently(*calls: Awaitable[Any]) -> list[Any]:
    return list(await asyncio.gather(*calls))


# --- the reasoner ----------------------------------------------------------------------------------------------------


@st.composite
def generate_requests(draw: DrawFn) -> list[Message]:
    """A whole call, whose sound may be any."""
    encoding = draw(st.sampled_from([S16, F32]))
    resumed = draw(st.none() | st.lists(st.integers(3, 447), max_size=3))
    requests = [
        reasoner_pb2.GenerateRequest(
            open=reasoner_pb2.GenerateOpen(
                audio_format=audio_format(encoding, 16_000),
                max_step_count=draw(st.integers(1, 6)),
                resume=None if resumed is None else reasoner_pb2.GenerateResume(token_ids=resumed),
                step_seconds=draw(st.sampled_from([0, 0.16])),
            )
        )
    ]
    for _ in range(draw(st.integers(0, 2))):
        parts = draw(st.lists(st.sampled_from(["text", "audio"]), min_size=1, max_size=2))
        sound = types_pb2.Audio(format=audio_format(S16, 16_000), data=bytes(6_400))
        content = [
            types_pb2.ContentPart(text="word") if part == "text" else types_pb2.ContentPart(audio=sound)
            for part in parts
        ]
        role = types_pb2.ROLE_USER if "audio" in parts else types_pb2.ROLE_ASSISTANT
        requests.append(reasoner_pb2.GenerateRequest(message=types_pb2.Message(role=role, parts=content)))
    for index in range(draw(st.integers(1, 3))):
        part = reasoner_pb2.TurnPart(index=index)
        if draw(st.booleans()):
            part.text = draw(st.sampled_from(["hello", "ä", "a <|im_", "end|>"]))
        else:
            part.audio = draw(st.sampled_from([sound for sound in SOUNDS if len(sound) < 100_000]))
        requests.append(reasoner_pb2.GenerateRequest(part=part))
    return [*requests, reasoner_pb2.GenerateRequest(end=reasoner_pb2.GenerateEnd())]


@fuzz
@given(fuzzed=st.lists(scripts(reasoner_pb2.GenerateRequest, generate_requests()), min_size=1, max_size=2))
async def test_any_call_of_the_reasoner_ends_well(mesh: Mesh, fuzzed: list[Script]) -> None:
    case, method = mesh.case, mesh.reasoner.Generate
    with no_bug_logged():
        await concurrently(*(play(method, script) for script in fuzzed))
        await mesh.is_idle()
    ended = await play(method, Script(golden_turn(case)))
    assert ended.code is StatusCode.OK
    assert [step.token_id for answer in ended.answers for step in answer.steps.steps] == case.tokens[:3]


def golden_turn(case: GoldenCase) -> tuple[Message, ...]:
    """The reasoner's part of a golden case, the first three steps of it."""
    roles = {"system": types_pb2.ROLE_SYSTEM, "user": types_pb2.ROLE_USER, "assistant": types_pb2.ROLE_ASSISTANT}
    *earlier, last = case.turns()
    request = reasoner_pb2.GenerateRequest
    assert all(isinstance(part, str) for turn in (*earlier, last) for part in turn.parts)
    return (
        request(open=reasoner_pb2.GenerateOpen(max_step_count=3)),
        *(
            request(
                message=types_pb2.Message(
                    role=roles[turn.role], parts=[types_pb2.ContentPart(text=str(part)) for part in turn.parts]
                )
            )
            for turn in earlier
        ),
        *(request(part=reasoner_pb2.TurnPart(index=index, text=str(part))) for index, part in enumerate(last.parts)),
        request(end=reasoner_pb2.GenerateEnd()),
    )


# --- speech ----------------------------------------------------------------------------------------------------------


def frame(*codes: int) -> types_pb2.Frame:
    return types_pb2.Frame(codes=codes)


def voice_prompt(case: GoldenCase) -> types_pb2.VoicePrompt:
    voice = case.voice()
    return types_pb2.VoicePrompt(transcript=voice.transcript, frames=[frame(*codes) for codes in voice.frames])


codes = st.sampled_from([0, 1, 2047])
frames = st.lists(codes, min_size=CODEBOOKS, max_size=CODEBOOKS).map(lambda drawn: frame(*drawn))


@st.composite
def speech_requests(draw: DrawFn) -> list[Message]:
    """A whole call, whose states may be of any size, or no numbers."""
    resumed = draw(st.none() | st.lists(frames, max_size=3))
    opening = speech_pb2.GenerateFramesOpen(
        voice_prompt=types_pb2.VoicePrompt(transcript="hello", frames=draw(st.lists(frames, min_size=1, max_size=3))),
        sampling=types_pb2.Sampling(
            temperature=draw(st.sampled_from([0, 1e-45, 1e-9, 0.7, 2])),
            top_k=draw(st.sampled_from([0, 1, 50, CODES])),
            seed=draw(st.sampled_from([0, 2**64 - 1])),
        ),
        max_frame_count=draw(st.integers(1, 6)),
        resume=None if resumed is None else speech_pb2.GenerateFramesResume(frames=resumed),
        frame_seconds=draw(st.sampled_from([0, 0.08])),
    )
    requests = [speech_pb2.GenerateFramesRequest(open=opening)]
    count = 0
    for _ in range(draw(st.integers(1, 3))):
        steps = []
        for _ in range(draw(st.integers(1, 3))):
            scale = draw(st.sampled_from([0, 1, 1, 1, 1e3, 1e18, 1e37, np.nan]))
            state = np.random.default_rng(count).normal(0, 1, HIDDEN) * scale
            data = state.astype("<f4").tobytes()
            tensor = types_pb2.Tensor(data_type=types_pb2.DATA_TYPE_FLOAT32, shape=[HIDDEN], data=data)
            steps.append(types_pb2.Step(index=count, token_id=draw(st.integers(3, 447)), hidden_state=tensor))
            count += 1
        requests.append(speech_pb2.GenerateFramesRequest(steps=types_pb2.Steps(steps=steps)))
    return [*requests, speech_pb2.GenerateFramesRequest(end=speech_pb2.GenerateFramesEnd())]


def has_no_measure(values: np.ndarray) -> bool:
    """Not finite, or so large that the network's own values are not."""
    return bool(len(values)) and not bool((np.abs(values) < 1e6).all())


@fuzz
@given(fuzzed=st.lists(scripts(speech_pb2.GenerateFramesRequest, speech_requests()), min_size=1, max_size=2))
async def test_any_call_of_the_speech_stage_ends_well(mesh: Mesh, fuzzed: list[Script]) -> None:
    case, method = mesh.case, mesh.speech.GenerateFrames
    # A state comes from a network of ours: one that is no number is our failure, whoever hands it on.
    may_fail = [any(any_floats(request, has_no_measure) for request in script.requests) for script in fuzzed]
    with no_bug_logged(except_not_finite=any(may_fail)):
        ended = await concurrently(*(play(method, script) for script in fuzzed))
        await mesh.is_idle()
    assert all(may or each.code is not StatusCode.INTERNAL for may, each in zip(may_fail, ended, strict=True))
    request = speech_pb2.GenerateFramesRequest
    opening = speech_pb2.GenerateFramesOpen(
        voice_prompt=voice_prompt(case), sampling=types_pb2.Sampling(temperature=0), max_frame_count=3
    )
    steps = [
        types_pb2.Step(index=index, token_id=step.token_id, hidden_state=encode_tensor(step.hidden_state, 1))
        for index, step in enumerate(case.steps(END_TOKEN_ID)[:2])
    ]
    good = (request(open=opening), request(steps=types_pb2.Steps(steps=steps)))
    spoken = await play(method, Script((*good, request(end=speech_pb2.GenerateFramesEnd()))))
    assert spoken.code is StatusCode.OK
    assert [list(each.codes) for answer in spoken.answers for each in answer.frames.frames] == case.frames[:3]


# --- the codec -------------------------------------------------------------------------------------------------------


@st.composite
def decode_requests(draw: DrawFn) -> list[Message]:
    """A whole call."""
    resumed = draw(st.none() | st.lists(frames, max_size=3))
    resume = None
    if resumed is not None:
        resume = codec_pb2.DecodeResume(frames=resumed, played_frame_count=draw(st.integers(0, len(resumed))))
    encoding = draw(st.sampled_from([S16, F32]))
    opening = codec_pb2.DecodeOpen(audio_format=audio_format(encoding, 24_000), resume=resume)
    requests, index = [codec_pb2.DecodeRequest(open=opening)], len(resumed or [])
    for _ in range(draw(st.integers(0, 3))):
        some = draw(st.lists(frames, min_size=1, max_size=3))
        requests.append(codec_pb2.DecodeRequest(frames=codec_pb2.DecodeFrames(index=index, frames=some)))
        index += len(some)
    return [*requests, codec_pb2.DecodeRequest(end=codec_pb2.DecodeEnd())]


@fuzz
@given(
    fuzzed=st.lists(scripts(codec_pb2.DecodeRequest, decode_requests()), min_size=1, max_size=2),
    sound=st.builds(
        types_pb2.Audio,
        format=st.builds(audio_format, st.sampled_from([S16, F32]), st.just(24_000)),
        data=st.sampled_from(SOUNDS) | st.binary(max_size=24),
    )
    | any_message(types_pb2.Audio),
)
async def test_any_call_of_the_codec_ends_well(mesh: Mesh, fuzzed: list[Script], sound: types_pb2.Audio) -> None:
    case, stub = mesh.case, mesh.codec
    with no_bug_logged():
        calls = [play(stub.Decode, script) for script in fuzzed]
        *_, encoded = await concurrently(*calls, ask(stub.Encode, codec_pb2.EncodeRequest(audio=sound)))
        await mesh.is_idle()
    for each in encoded.answers:
        assert all(len(found.codes) == CODEBOOKS and max(found.codes) < CODES for found in each.frames)
    voice = (GOLDEN / "cases" / case.name / case.spec["voice_wav"]).read_bytes()
    assert voice[36:40] == b"data"
    example = types_pb2.Audio(format=audio_format(S16, 24_000), data=voice[44:])
    good = await ask(stub.Encode, codec_pb2.EncodeRequest(audio=example))
    assert [list(each.codes) for each in good.answers[0].frames] == case.expected["voice_codes"].tolist()


# --- the orchestrator ------------------------------------------------------------------------------------------------


@st.composite
def converse_requests(draw: DrawFn) -> list[Message]:
    """A whole session, whose sound may be any."""
    formats = [(S16, 16_000), (F32, 16_000), (S16, 48_000), (F32, 8_000), (3, 8_000), (4, 8_000), (S16, 24_000)]
    opening = pb.ConverseOpen(
        max_frame_count=draw(st.integers(1, 4)), max_step_count=draw(st.integers(1, 4)), ahead_seconds=np.inf
    )
    if draw(st.booleans()):
        opening.input_format.CopyFrom(audio_format(*draw(st.sampled_from(formats))))
    if draw(st.booleans()):
        opening.output_format.CopyFrom(audio_format(*draw(st.sampled_from(formats))))
    if draw(st.booleans()):
        opening.turn_detection.server_vad.silence_duration_ms = 100
    if draw(st.booleans()):
        opening.voice_name = "birch"
    requests, audio_index = [pb.ConverseRequest(open=opening)], 0
    for _ in range(draw(st.integers(0, 6))):
        match draw(st.sampled_from(["text", "turn", "audio", "end_turn", "cancel_reply", "reply_played", "update"])):
            case "text":
                requests.append(pb.ConverseRequest(text=pb.UserText(text="hello")))
            case "turn":
                requests.append(pb.ConverseRequest(text=pb.UserText(text="hello")))
                requests.append(pb.ConverseRequest(end_turn=pb.EndTurn()))
            case "audio":
                data = draw(st.sampled_from(SOUNDS))
                requests.append(pb.ConverseRequest(audio=pb.UserAudio(index=audio_index, data=data)))
                audio_index += 1
            case "end_turn":
                requests.append(pb.ConverseRequest(end_turn=pb.EndTurn()))
            case "cancel_reply":
                requests.append(pb.ConverseRequest(cancel_reply=pb.CancelReply()))
            case "reply_played":
                played = pb.ReplyPlayed(
                    turn_index=draw(st.integers(0, 2)), sample_count=draw(st.integers(0, 2**64 - 1))
                )
                requests.append(pb.ConverseRequest(reply_played=played))
            case "update":
                other = pb.ReplySettings(voice_name="ash", max_frame_count=2)
                requests.append(pb.ConverseRequest(update=pb.SessionUpdate(reply=other)))
    return [*requests, pb.ConverseRequest(end=pb.ConverseEnd())]


@fuzz
@given(fuzzed=st.lists(scripts(pb.ConverseRequest, converse_requests()), min_size=1, max_size=2))
async def test_any_session_ends_well(mesh: Mesh, fuzzed: list[Script]) -> None:
    with no_bug_logged():
        ended = await concurrently(*(play(mesh.orchestrator.Converse, script) for script in fuzzed))
        await mesh.is_idle()
    # No input of a client's makes a stage fail.
    endings = [each.reply_ended for one in ended for each in one.answers if each.HasField("reply_ended")]
    assert not [ending for ending in endings if ending.HasField("failure")]
    sound = await good_session(mesh)
    assert sound == await good_session(mesh)
    assert len(sound) == 2 * 2 * 1_920


async def good_session(mesh: Mesh) -> bytes:
    opening = pb.ConverseOpen(max_frame_count=2, sampling=types_pb2.Sampling(temperature=0))
    requests = (
        pb.ConverseRequest(open=opening),
        pb.ConverseRequest(text=pb.UserText(text="hello")),
        pb.ConverseRequest(end_turn=pb.EndTurn()),
        pb.ConverseRequest(end=pb.ConverseEnd()),
    )
    ended = await play(mesh.orchestrator.Converse, Script(requests))
    assert ended.code is StatusCode.OK
    return b"".join(answer.audio.data for answer in ended.answers)


names = st.sampled_from(["mine", "yours", "ash", "", "../ash", "x" * 65])
examples = st.builds(
    pb.VoiceExample,
    transcript=st.sampled_from(["hello", " ", "<|im_end|>", "x" * 2001]),
    audio=st.builds(
        types_pb2.Audio,
        format=st.builds(audio_format, st.sampled_from([S16, F32]), st.just(24_000)),
        data=st.sampled_from(SOUNDS),
    ),
)
voice_requests = (
    st.just(pb.ListVoicesRequest())
    | st.builds(pb.CreateVoiceRequest, name=names, example=examples)
    | any_message(pb.CreateVoiceRequest)
    | st.builds(pb.DeleteVoiceRequest, name=names)
    | any_message(pb.DeleteVoiceRequest)
)


@fuzz
@given(requests=st.lists(voice_requests, min_size=1, max_size=4), deadline=st.sampled_from([None, None, 0.002]))
async def test_any_calls_about_voices_end_well(mesh: Mesh, requests: list[Message], deadline: float | None) -> None:
    stub = mesh.orchestrator
    methods = {
        pb.ListVoicesRequest: stub.ListVoices,
        pb.CreateVoiceRequest: stub.CreateVoice,
        pb.DeleteVoiceRequest: stub.DeleteVoice,
    }
    with no_bug_logged():
        await concurrently(*(ask(methods[type(request)], request, deadline) for request in requests))
        listed = await ask(stub.ListVoices, pb.ListVoicesRequest())
        voices = listed.answers[0].voices
        assert {*BUILTIN_VOICES} <= {voice.name for voice in voices}
        # What was taken for a voice is one.
        for voice in voices:
            if not voice.is_builtin:
                requests_of_it = speaking_with(voice.name)
                spoken = await play(stub.Converse, Script(requests_of_it))
                assert spoken.code in (StatusCode.OK, StatusCode.NOT_FOUND, StatusCode.INVALID_ARGUMENT), spoken
                await ask(stub.DeleteVoice, pb.DeleteVoiceRequest(name=voice.name))
        await mesh.is_idle()


def speaking_with(name: str) -> Sequence[Message]:
    opening = pb.ConverseOpen(voice_name=name, max_frame_count=1)
    return (
        pb.ConverseRequest(open=opening),
        pb.ConverseRequest(text=pb.UserText(text="hello")),
        pb.ConverseRequest(end_turn=pb.EndTurn()),
        pb.ConverseRequest(end=pb.ConverseEnd()),
    )


# --- bytes that are no message ---------------------------------------------------------------------------------------

METHODS = [
    (stage, f"/{service.full_name}/{method.name}")
    for stage, module in (
        ("reasoner", reasoner_pb2),
        ("speech", speech_pb2),
        ("codec", codec_pb2),
        ("orchestrator", pb),
    )
    for service in module.DESCRIPTOR.services_by_name.values()
    for method in service.methods
] + [(stage, f"/{stage_pb2.DESCRIPTOR.package}.StageService/GetCapacity") for stage in STAGES]
# The same numbers in other forms: a length beyond the end, a group that is not closed, a number without end, no UTF-8.
MALFORMED = [b"\xff", b"\x0a\x7f", b"\x0b", b"\x08" + b"\xff" * 11, b"\x0a\x04\x0a\x02\xff\xfe", b"\x00", b"\x07\x07"]
METADATA = [
    (),
    (("x-turn-index", "9" * 5000),),
    (("x-turn-index", "-1"), ("traceparent", "00-0-0-0")),
    (("x-session-id", "s" * 5000), ("traceparent", "x")),
    (("x-session-id", "a b"),),
]


@fuzz
@given(
    at=st.sampled_from(METHODS),
    messages=st.lists(st.sampled_from([b"", *MALFORMED]) | st.binary(max_size=30), max_size=3),
    metadata=st.sampled_from(METADATA),
)
async def test_bytes_that_are_no_message_are_refused(
    mesh: Mesh, at: tuple[str, str], messages: list[bytes], metadata: tuple[tuple[str, str], ...]
) -> None:
    stage, path = at
    method = mesh.channels[stage].stream_stream(path)
    with no_bug_logged():
        # On the wire a unary call is a stream of one message.
        await play(partial(method, metadata=metadata), Script(tuple(messages)))  # type: ignore[arg-type]
        await mesh.is_idle()


@pytest.mark.parametrize("malformed", MALFORMED)
@pytest.mark.parametrize(("stage", "path"), METHODS)
async def test_what_cannot_be_read_is_malformed(mesh: Mesh, stage: str, path: str, malformed: bytes) -> None:
    ended = await play(mesh.channels[stage].stream_stream(path), Script((malformed,)))  # type: ignore[arg-type]
    assert (ended.code, ended.reason) == (StatusCode.INVALID_ARGUMENT, "MALFORMED") or malformed[:1] == b"\x0a"


@pytest.mark.parametrize(("stage", "path"), METHODS)
async def test_a_call_without_a_message_is_answered(mesh: Mesh, stage: str, path: str) -> None:
    ended = await play(mesh.channels[stage].stream_stream(path), Script(()))
    assert (ended.code, ended.reason) == (StatusCode.CANCELLED, "ABANDONED")
