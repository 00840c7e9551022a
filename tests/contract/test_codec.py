"""CodecService over a real server: the stream law, what is refused, and that sound does not depend on who else asks."""

import asyncio
import threading
import wave
from collections.abc import AsyncIterator, Awaitable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import grpc
import numpy as np
import pytest
import pytest_asyncio
import torch
from chroma_mesh.codec.v1 import codec_pb2, codec_pb2_grpc
from chroma_mesh.types.v1 import types_pb2
from prometheus_client import CollectorRegistry

from services.bench.plain_codec import plain_codec
from services.codec.__main__ import STAGE, build
from services.codec.engine import CodecEngine
from services.codec.metrics import CodecMetrics
from services.codec.service import SERVICE_NAME, CodecService
from services.codec.settings import CodecSettings
from services.codec.streaming_decoder import exact_float32
from services.runtime.channel import open_channel
from services.runtime.errors import MeshError, from_rpc_error
from services.runtime.server import running
from services.stage.process import StageLife

GOLDEN = Path(__file__).parents[1] / "golden" / "tiny"
RATE, SAMPLES_PER_FRAME, CODEBOOKS, CODES = 24_000, 1920, 8, 2048
F32 = types_pb2.AudioFormat(encoding=types_pb2.AUDIO_ENCODING_PCM_F32LE, sample_rate_hz=RATE)
S16 = types_pb2.AudioFormat(encoding=types_pb2.AUDIO_ENCODING_PCM_S16LE, sample_rate_hz=RATE)
DEADLINE = 60.0

Codes = list[list[int]]

# Most tests share one server, which therefore lives on one event loop.
pytestmark = pytest.mark.asyncio(loop_scope="module")


@dataclass(frozen=True)
class Server:
    """A codec that serves, from both sides."""

    stub: codec_pb2_grpc.CodecServiceStub
    engine: CodecEngine
    registry: CollectorRegistry

    def count(self, reason: str) -> float:
        """Streams that ended for this reason."""
        return self.registry.get_sample_value("chroma_codec_finished_streams_total", {"reason": reason}) or 0.0


@asynccontextmanager
async def serving(slots: int = 3, queue_limit: int = 16) -> AsyncIterator[Server]:
    """A codec with the golden checkpoint."""
    settings = CodecSettings(
        checkpoint=str(GOLDEN / "checkpoint"), device="cpu", slots=slots, queue_limit=queue_limit, grace_seconds=5
    )
    registry = CollectorRegistry()
    engine = build(settings)
    service = CodecService(CodecMetrics(registry))
    life = StageLife(settings, service, lambda: engine, CodecEngine.warm)
    async with (
        running(
            stage=STAGE,
            settings=settings,
            add=service.add_to,
            services=[SERVICE_NAME],
            prepare=life.prepare,
            close=life.close,
            registry=registry,
        ) as server,
        open_channel(server.address) as channel,
    ):
        codec = Server(codec_pb2_grpc.CodecServiceStub(channel), engine, registry)
        yield codec
        await all_slots_are_free(codec)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def shared() -> AsyncIterator[Server]:
    """The server of most tests."""
    async with serving() as server:
        yield server


@pytest_asyncio.fixture(loop_scope="module")
async def server(shared: Server) -> AsyncIterator[Server]:
    """The same, which must be whole again after the test."""
    yield shared
    await all_slots_are_free(shared)


async def all_slots_are_free(server: Server) -> None:
    """Takes all slots at once: that many streams can only be open together if none has leaked."""
    calls = [server.stub.Decode(timeout=DEADLINE) for _ in range(server.engine.slot_count)]
    for call in calls:
        await call.write(opening())
    for call in calls:
        assert (await call.read()).WhichOneof("payload") == "opened"
    for call in calls:
        await call.write(END)
        assert (await call.read()).WhichOneof("payload") == "finished"


def opening(
    audio_format: types_pb2.AudioFormat = F32,
    resumed: Codes | None = None,
    played: int = 0,
    due_seconds: float = 0.0,
) -> codec_pb2.DecodeRequest:
    """The first message."""
    resume = None
    if resumed is not None:
        resume = codec_pb2.DecodeResume(
            frames=[types_pb2.Frame(codes=codes) for codes in resumed], played_frame_count=played
        )
    return codec_pb2.DecodeRequest(
        open=codec_pb2.DecodeOpen(audio_format=audio_format, resume=resume, due_seconds=due_seconds)
    )


def frame(index: int, *codes: Sequence[int]) -> codec_pb2.DecodeRequest:
    """The message of a frame, or of several from `index` on."""
    frames = [types_pb2.Frame(codes=each) for each in codes]
    return codec_pb2.DecodeRequest(frames=codec_pb2.DecodeFrames(index=index, frames=frames))


END = codec_pb2.DecodeRequest(end=codec_pb2.DecodeEnd())


def random_codes(frames: int, seed: int = 0) -> Codes:
    """A reply to be decoded."""
    return np.random.default_rng(seed).integers(0, CODES, (frames, CODEBOOKS)).tolist()


def read_wave(path: Path) -> bytes:
    """The 16-bit samples of a file."""
    with wave.open(str(path)) as file:
        return file.readframes(file.getnframes())


async def exchange(
    server: Server,
    requests: Sequence[codec_pb2.DecodeRequest],
    *,
    half_close: bool = True,
    deadline: float = DEADLINE,
) -> list[codec_pb2.DecodeResponse]:
    """Sends all messages and returns all answers; a refusal may come before all is sent."""
    call = server.stub.Decode(timeout=deadline)

    async def write() -> None:
        try:
            for request in requests:
                await call.write(request)
            if half_close:
                await call.done_writing()
        except (grpc.aio.AioRpcError, asyncio.InvalidStateError):
            pass  # the reading side raises what ended the call

    writing = asyncio.ensure_future(write())
    try:
        return [response async for response in call]
    finally:
        await writing


def sound_of(responses: Sequence[codec_pb2.DecodeResponse], first: int = 0) -> bytes:
    """The sound of a complete stream, having checked the law for what the server sends."""
    kinds = [response.WhichOneof("payload") for response in responses]
    assert kinds == ["opened", *["audio"] * (len(kinds) - 2), "finished"]
    opened, finished = responses[0].opened, responses[-1].finished
    assert (opened.sample_rate_hz, opened.samples_per_frame) == (RATE, SAMPLES_PER_FRAME)
    assert (opened.codebook_count, opened.codebook_size) == (CODEBOOKS, CODES)
    messages = [response.audio for response in responses[1:-1]]
    index = first
    for audio in messages:
        assert audio.frame_index == index
        assert audio.frame_count >= 1
        assert len(audio.data) in {audio.frame_count * SAMPLES_PER_FRAME * size for size in (2, 4)}
        index += audio.frame_count
    assert finished.frame_count == index
    assert (finished.first_audio_seconds > 0) == bool(messages)
    assert [response.HasField("timing") for response in responses[1:-1]] == [True, *[False] * (len(kinds) - 3)][
        : len(messages)
    ]
    for timing in (response.timing for response in responses[1:2] if messages):
        assert timing.decode_seconds > 0
        assert timing.queue_seconds + timing.decode_seconds == pytest.approx(finished.first_audio_seconds)
    return b"".join(audio.data for audio in messages)


async def decode(
    server: Server, codes: Codes, *, audio_format: types_pb2.AudioFormat = F32, resumed: int = 0, played: int = 0
) -> bytes:
    """The sound of a reply; `resumed` of its frames come with the opening message."""
    first = opening(audio_format, codes[:resumed] if resumed or played else None, played)
    frames = [frame(index, codes[index]) for index in range(resumed, len(codes))]
    return sound_of(await exchange(server, [first, *frames, END]), played)


@asynccontextmanager
async def device_held(engine: CodecEngine) -> AsyncIterator[None]:
    """No round is run within the block."""
    go_on = threading.Event()
    held = asyncio.ensure_future(engine.call(go_on.wait))
    try:
        yield
    finally:
        go_on.set()
        await held


async def refusal(answer: Awaitable[object]) -> MeshError:
    """The error that a call ends with."""
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await answer
    return from_rpc_error(caught.value)


def encode_request(data: bytes, audio_format: types_pb2.AudioFormat = F32) -> codec_pb2.EncodeRequest:
    """A voice's example."""
    return codec_pb2.EncodeRequest(audio=types_pb2.Audio(format=audio_format, data=data))


# --- what is heard


@pytest.mark.parametrize("case", ["greedy_one_turn", "long_speech"])
async def test_golden_cases_both_ways(server: Server, case: str) -> None:
    expected = np.load(GOLDEN / "cases" / case / "expected.npz")
    request = encode_request(read_wave(GOLDEN / "cases" / case / "voice.wav"), S16)
    encoded = await server.stub.Encode(request, timeout=DEADLINE)
    assert [list(each.codes) for each in encoded.frames] == expected["voice_codes"].tolist()
    heard = np.frombuffer(await decode(server, expected["spoken_frames"].tolist()), "<f4")
    np.testing.assert_allclose(heard, expected["audio"], atol=1e-4, rtol=0)


async def test_sound_does_not_depend_on_the_pace_of_the_frames(server: Server) -> None:
    codes = random_codes(160)
    at_once = await decode(server, codes)
    for chunk in (1, 2, 3, 7):
        call = server.stub.Decode(timeout=DEADLINE)
        await call.write(opening())
        responses = [await call.read()]
        for start in range(0, len(codes), chunk):
            chunk_end = min(start + chunk, len(codes))
            for index in range(start, chunk_end):
                await call.write(frame(index, codes[index]))
            while sum(response.audio.frame_count for response in responses) < chunk_end:
                responses.append(await call.read())
        await call.write(END)
        responses.append(await call.read())
        assert sound_of(responses) == at_once
        assert await call.read() is grpc.aio.EOF
    with exact_float32():
        expected = plain_codec(server.engine.codec.mimi).decode(torch.tensor(codes).T[None]).audio_values[0, 0].numpy()
    np.testing.assert_allclose(np.frombuffer(at_once, "<f4"), expected, atol=1e-4, rtol=0)


async def test_sound_leaves_as_its_frames_came(server: Server) -> None:
    """That of a message's frames together, but never more than 32 of them; the samples are the same in every way."""
    codes = random_codes(150)
    alone = await decode(server, codes)
    for sizes in ([5] * 30, [1, 2, 4, 8, 16, 32, 64, 23], [150], [149, 1], [33] * 4 + [18]):
        starts = [sum(sizes[:index]) for index in range(len(sizes))]
        messages = [frame(start, *codes[start : start + size]) for start, size in zip(starts, sizes, strict=True)]
        responses = await exchange(server, [OPEN, *messages, END])
        assert sound_of(responses) == alone
        told = [response.audio.frame_count for response in responses[1:-1]]
        assert told == [min(32, size - start) for size in sizes for start in range(0, size, 32)]


async def test_sixteen_bit_sound_is_the_float_sound_rounded(server: Server) -> None:
    codes = random_codes(5)
    exact = np.frombuffer(await decode(server, codes), "<f4")
    rounded = np.frombuffer(await decode(server, codes, audio_format=S16), "<i2")
    assert np.array_equal(rounded, np.rint(np.clip(exact, -1, 1) * np.float32(32767)))


async def test_eight_interleaved_streams_are_heard_as_if_alone() -> None:
    replies = [random_codes(20 + 3 * seed, seed) for seed in range(8)]
    async with serving(slots=8) as server:
        alone = [await decode(server, reply) for reply in replies]
        assert await asyncio.gather(*(decode(server, reply) for reply in replies)) == alone
    async with serving(slots=3) as server:
        assert await asyncio.gather(*(decode(server, reply) for reply in replies)) == alone


@pytest.mark.parametrize("resumed", [1, 7, 12])
async def test_a_resumed_reply_goes_on_with_the_very_samples(server: Server, resumed: int) -> None:
    codes = random_codes(12)
    whole = await decode(server, codes)
    for played in {0, 1, resumed // 2, resumed}:
        rest = await decode(server, codes, resumed=resumed, played=played)
        assert rest == whole[played * SAMPLES_PER_FRAME * 4 :]


async def test_an_empty_reply_is_silent(server: Server) -> None:
    assert await decode(server, []) == b""
    assert await decode(server, random_codes(3), resumed=3, played=3) == b""


# --- the stream law


OPEN = opening()
GOOD = frame(0, [0] * CODEBOOKS)


@pytest.mark.parametrize(
    ("requests", "reason"),
    [
        ([GOOD], "OUT_OF_ORDER"),
        ([END], "OUT_OF_ORDER"),
        ([OPEN, OPEN], "OUT_OF_ORDER"),
        ([OPEN, GOOD, OPEN], "OUT_OF_ORDER"),
        ([codec_pb2.DecodeRequest()], "INVALID_ARGUMENT"),
        ([OPEN, codec_pb2.DecodeRequest()], "INVALID_ARGUMENT"),
        ([OPEN, frame(1, [0] * CODEBOOKS)], "INDEX_GAP"),
        ([OPEN, GOOD, GOOD], "INDEX_GAP"),
        ([OPEN, GOOD, frame(2, [0] * CODEBOOKS)], "INDEX_GAP"),
        ([opening(resumed=random_codes(2)), GOOD], "INDEX_GAP"),
        ([OPEN, frame(0)], "INVALID_ARGUMENT"),
        ([OPEN, frame(0, [0] * CODEBOOKS, [0] * CODEBOOKS), frame(1, [0] * CODEBOOKS)], "INDEX_GAP"),
        ([OPEN, frame(0, [0] * CODEBOOKS, [0] * (CODEBOOKS - 1))], "WRONG_CODE_COUNT"),
        ([OPEN, frame(0, [0] * (CODEBOOKS - 1))], "WRONG_CODE_COUNT"),
        ([OPEN, frame(0, [0] * (CODEBOOKS + 1))], "WRONG_CODE_COUNT"),
        ([OPEN, frame(0, [])], "WRONG_CODE_COUNT"),
        ([OPEN, frame(0, [0] * (CODEBOOKS - 1) + [CODES])], "CODE_OUT_OF_RANGE"),
        ([OPEN, frame(0, [2**32 - 1] + [0] * (CODEBOOKS - 1))], "CODE_OUT_OF_RANGE"),
        ([opening(resumed=[[CODES] * CODEBOOKS])], "CODE_OUT_OF_RANGE"),
        ([opening(resumed=[[0]])], "WRONG_CODE_COUNT"),
        ([opening(resumed=random_codes(2), played=3)], "INVALID_ARGUMENT"),
        ([opening(types_pb2.AudioFormat(encoding=types_pb2.AUDIO_ENCODING_PCM_S16LE))], "WRONG_SAMPLE_RATE"),
        ([opening(types_pb2.AudioFormat(sample_rate_hz=RATE))], "WRONG_ENCODING"),
        ([codec_pb2.DecodeRequest(open=codec_pb2.DecodeOpen())], "WRONG_ENCODING"),
    ],
)
async def test_what_breaks_the_law_is_refused(
    server: Server, requests: list[codec_pb2.DecodeRequest], reason: str
) -> None:
    before = server.count("invalid")
    error = await refusal(exchange(server, requests, half_close=False))
    assert (error.code, error.reason) == (grpc.StatusCode.INVALID_ARGUMENT, reason)
    assert server.count("invalid") == before + 1


@pytest.mark.parametrize("seconds", [-0.5, 3601.0, np.inf, -np.inf, np.nan])
async def test_a_time_that_is_out_of_range_or_none_is_refused(server: Server, seconds: float) -> None:
    error = await refusal(exchange(server, [opening(due_seconds=seconds)], half_close=False))
    assert (error.code, error.field) == (grpc.StatusCode.INVALID_ARGUMENT, "open.due_seconds")
    assert error.message == f"open.due_seconds must be 0 to 3600, got {seconds:g}"


@pytest.mark.parametrize("after", [OPEN, frame(1, [0] * CODEBOOKS), END, codec_pb2.DecodeRequest()])
async def test_nothing_may_follow_end(server: Server, after: codec_pb2.DecodeRequest) -> None:
    # Or the reply might be finished before the server sees what follows.
    async with device_held(server.engine):
        error = await refusal(exchange(server, [OPEN, GOOD, END, after], half_close=False))
    assert (error.code, error.reason) == (grpc.StatusCode.INVALID_ARGUMENT, "DATA_AFTER_END")


@pytest.mark.parametrize("requests", [[], [OPEN], [OPEN, GOOD]])
async def test_input_that_stops_without_end_is_abandoned(
    server: Server, requests: list[codec_pb2.DecodeRequest]
) -> None:
    before = server.count("cancelled")
    error = await refusal(exchange(server, requests))
    assert (error.code, error.reason) == (grpc.StatusCode.CANCELLED, "ABANDONED")
    assert server.count("cancelled") == before + 1


async def test_a_client_may_stay_half_open_after_end(server: Server) -> None:
    assert sound_of(await exchange(server, [OPEN, GOOD, END], half_close=False))


# --- slots


async def test_a_full_codec_is_unavailable_at_once_and_the_queue_is_served() -> None:
    codes = random_codes(2)
    async with serving(slots=1, queue_limit=1) as server:
        holder = server.stub.Decode(timeout=DEADLINE)
        await holder.write(OPEN)
        assert (await holder.read()).opened.queue_seconds < DEADLINE
        # One of the three gets the only place in the queue. The others end while the slot is still held.
        served = asyncio.Event()

        async def ask() -> bytes:
            # Nothing is written before the answer to `open`: grpc.aio may lose a status that meets a write.
            call = server.stub.Decode(timeout=DEADLINE)
            await call.write(OPEN)
            responses = [await call.read()]
            served.set()
            for request in (*(frame(index, each) for index, each in enumerate(codes)), END):
                await call.write(request)
            while (response := await call.read()) is not grpc.aio.EOF:
                responses.append(response)
            return sound_of(responses)

        ends = asyncio.as_completed([ask() for _ in range(3)])
        for _ in range(2):
            error = await refusal(next(ends))
            assert (error.code, error.reason) == (grpc.StatusCode.UNAVAILABLE, "FULL")
        assert server.count("unavailable") == 2
        assert not served.is_set()
        holder.cancel()
        assert len(await next(ends)) == len(codes) * SAMPLES_PER_FRAME * 4


async def test_of_those_that_wait_the_one_that_is_due_first_is_served_first() -> None:
    async with serving(slots=1, queue_limit=4) as server:
        first = server.stub.Decode(timeout=DEADLINE)
        await first.write(OPEN)
        assert (await first.read()).WhichOneof("payload") == "opened"
        calls = {}
        for seconds in (500.0, 3600.0, 0.0, 300.0):
            calls[seconds] = server.stub.Decode(timeout=DEADLINE)
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


async def test_cancelling_a_call_frees_its_slot() -> None:
    async with serving(slots=1, queue_limit=1) as server:
        for _ in range(3):
            call = server.stub.Decode(timeout=DEADLINE)
            await call.write(OPEN)
            assert (await call.read()).WhichOneof("payload") == "opened"
            await call.write(GOOD)
            await call.read()
            call.cancel()
            assert len(await decode(server, random_codes(2))) == 2 * SAMPLES_PER_FRAME * 4


async def test_a_deadline_frees_the_slot() -> None:
    async with serving(slots=1, queue_limit=1) as server:
        error = await refusal(exchange(server, [OPEN, GOOD], half_close=False, deadline=0.2))
        assert error.code == grpc.StatusCode.DEADLINE_EXCEEDED
        assert await decode(server, []) == b""


async def test_a_stream_cancelled_in_the_queue_leaves_no_trace() -> None:
    async with serving(slots=1, queue_limit=2) as server:
        holder = server.stub.Decode(timeout=DEADLINE)
        await holder.write(OPEN)
        await holder.read()
        waiting = server.stub.Decode(timeout=DEADLINE)
        await waiting.write(OPEN)
        waiting.cancel()
        behind = asyncio.ensure_future(decode(server, random_codes(1)))
        await holder.write(END)
        assert (await holder.read()).WhichOneof("payload") == "finished"
        assert len(await behind) == SAMPLES_PER_FRAME * 4


# --- our own failures


async def test_a_broken_round_is_internal_and_the_next_stream_is_served() -> None:
    async with serving() as server:
        healthy = await decode(server, random_codes(2))
        decoder = server.engine._decoder
        step = decoder.step

        def fail(frames: object) -> dict[int, np.ndarray]:
            decoder.step = step
            raise RuntimeError("a secret of the device")

        decoder.step = fail
        error = await refusal(decode(server, random_codes(2)))
        assert (error.code, error.message) == (grpc.StatusCode.INTERNAL, "internal error")
        assert server.count("failed") == 1
        assert await decode(server, random_codes(2)) == healthy


async def test_samples_that_are_not_finite_are_never_sent() -> None:
    async with serving() as server:
        nothing = np.full(SAMPLES_PER_FRAME, np.nan, np.float32)
        server.engine._decoder.step = lambda frames: {slot: [nothing] * len(codes) for slot, codes in frames.items()}
        error = await refusal(decode(server, random_codes(2)))
        assert (error.code, error.reason) == (grpc.StatusCode.INTERNAL, "NON_FINITE")


# --- encode


@pytest.mark.parametrize(
    ("samples", "reason"),
    [
        (np.zeros(0, "<f4"), "TOO_SHORT"),
        (np.zeros(479, "<f4"), "TOO_SHORT"),
        (np.zeros(30 * RATE + 1, "<f4"), "TOO_LONG"),
        (np.array([0.0] * 479 + [np.nan], "<f4"), "NON_FINITE"),
        (np.array([0.0] * 479 + [np.inf], "<f4"), "NON_FINITE"),
    ],
)
async def test_sound_that_cannot_be_encoded_is_refused(server: Server, samples: np.ndarray, reason: str) -> None:
    error = await refusal(server.stub.Encode(encode_request(samples.tobytes()), timeout=DEADLINE))
    assert (error.code, error.reason, error.field) == (grpc.StatusCode.INVALID_ARGUMENT, reason, "audio.data")


@pytest.mark.parametrize(
    ("audio_format", "reason"),
    [
        (
            types_pb2.AudioFormat(encoding=types_pb2.AUDIO_ENCODING_PCM_F32LE, sample_rate_hz=16_000),
            "WRONG_SAMPLE_RATE",
        ),
        (types_pb2.AudioFormat(sample_rate_hz=RATE), "WRONG_ENCODING"),
        (types_pb2.AudioFormat(), "WRONG_ENCODING"),
    ],
)
async def test_sound_in_another_format_is_refused(
    server: Server, audio_format: types_pb2.AudioFormat, reason: str
) -> None:
    error = await refusal(server.stub.Encode(encode_request(bytes(4 * RATE), audio_format), timeout=DEADLINE))
    assert (error.code, error.reason) == (grpc.StatusCode.INVALID_ARGUMENT, reason)


async def test_part_of_a_sample_is_refused(server: Server) -> None:
    error = await refusal(server.stub.Encode(encode_request(bytes(4 * 480 + 3)), timeout=DEADLINE))
    assert (error.code, error.reason) == (grpc.StatusCode.INVALID_ARGUMENT, "PARTIAL_SAMPLE")


async def test_there_is_a_frame_for_each_started_eighty_milliseconds(server: Server) -> None:
    lengths = [480, SAMPLES_PER_FRAME, SAMPLES_PER_FRAME + 1, 30 * RATE]
    counts = []
    for length in lengths:
        sound = np.random.default_rng(length).uniform(-0.5, 0.5, length).astype("<f4")
        encoded = await server.stub.Encode(encode_request(sound.tobytes()), timeout=DEADLINE)
        counts.append(len(encoded.frames))
        assert all(len(each.codes) == CODEBOOKS for each in encoded.frames)
    assert counts == [1, 1, 2, 375]


async def test_encoding_does_not_disturb_a_reply(server: Server) -> None:
    codes = random_codes(30)
    voice = encode_request(read_wave(GOLDEN / "cases" / "text_only" / "voice.wav"), S16)
    alone = await decode(server, codes)
    heard, *encoded = await asyncio.gather(
        decode(server, codes), *(server.stub.Encode(voice, timeout=DEADLINE) for _ in range(4))
    )
    assert heard == alone
    assert all(one == another for one, another in pairwise(encoded))


async def test_what_was_done_is_counted() -> None:
    async with serving() as server:
        await decode(server, random_codes(6), resumed=4, played=2)
        await server.stub.Encode(encode_request(bytes(4 * RATE)), timeout=DEADLINE)
        value = server.registry.get_sample_value
        assert value("chroma_codec_frames_total") == 4
        assert value("chroma_codec_first_audio_seconds_count") == 1
        assert value("chroma_codec_frame_interval_seconds_count") == 3
        assert value("chroma_codec_encode_seconds_count") == 1
        assert value("chroma_codec_slots") == 3
        assert server.count("stop") == 1
