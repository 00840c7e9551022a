"""Chat completions, asked for by OpenAI's own client and by curl over a real HTTP server."""

import asyncio
import base64
import io
import json
import math
from collections.abc import AsyncIterator
from typing import Any

import httpx2
import numpy as np
import openai
import pytest
import soundfile
from hypothesis import given
from hypothesis import strategies as st
from openai import AsyncOpenAI

from client.connection import connect
from client.events import Audio, ReplyEnded
from client.pcm import Samples
from client.session_settings import SessionSettings
from client.voice import VoiceExample
from services.gateway.chat.audio_id import new_audio_id, transcript_of
from services.gateway.errors import Refusal
from tests.contract.fake_mesh import LENGTH, Mesh
from tests.contract.gateway_server import Gateway, running_gateway

MODEL = "chroma-4b"
SOUND: dict[str, Any] = {"modalities": ["text", "audio"], "audio": {"voice": "ash", "format": "pcm16"}}
RATE_HZ = 24_000
NOBODY = "none"  # the client must have a key, the mesh asks for none


def samples(seconds: float, seed: int = 0, rate: int = 16_000) -> Samples:
    noise = np.random.default_rng(seed).integers(-3000, 3000, round(seconds * rate), dtype=np.int16)
    return (noise / np.float32(32768)).astype(np.float32)


def sound_file(sound: Samples, kind: str = "WAV", rate: int = 16_000) -> bytes:
    written = io.BytesIO()
    soundfile.write(written, sound, rate, format=kind)
    return written.getvalue()


def in_base64(data: bytes) -> str:
    return base64.b64encode(data).decode()


def spoken(sound: Samples, kind: str = "WAV") -> dict[str, Any]:
    data = in_base64(sound_file(sound, kind))
    return {"type": "input_audio", "input_audio": {"data": data, "format": kind.lower()}}


def user(*content: Any) -> dict[str, Any]:
    return {"role": "user", "content": content[0] if isinstance(content[0], str) else list(content)}


@pytest.fixture
async def client(gateway: Gateway) -> AsyncIterator[AsyncOpenAI]:
    async with AsyncOpenAI(base_url=f"{gateway.url}/v1", api_key=NOBODY, max_retries=0) as client:
        yield client


@pytest.fixture
async def http(gateway: Gateway) -> AsyncIterator[httpx2.AsyncClient]:
    async with httpx2.AsyncClient(base_url=gateway.url, timeout=60) as http:
        yield http


async def over_grpc(mesh: Mesh, *turns: list[str | Samples], **settings: Any) -> list[tuple[str, bytes, ReplyEnded]]:
    """The replies to the turns of one session."""
    replies = []
    async with (
        connect(mesh.address) as direct,
        direct.open_session(SessionSettings(ahead_seconds=math.inf, **settings)) as session,
    ):
        for turn in turns:
            for part in turn:
                await (session.send_text(part) if isinstance(part, str) else session.send_audio(part))
            await session.end_turn()
            events = [event async for event in session.reply()]
            ended = events[-1]
            assert isinstance(ended, ReplyEnded)
            replies.append((ended.text, b"".join(it.data for it in events if isinstance(it, Audio)), ended))
    return replies


async def ask(http: httpx2.AsyncClient, **body: Any) -> httpx2.Response:
    return await http.post("/v1/chat/completions", json={"model": MODEL, **body})


def error_of(answer: httpx2.Response) -> dict[str, Any]:
    error = answer.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["message"]
    return error


async def test_a_completion_is_the_reply_of_the_same_turn_over_grpc(mesh: Mesh, client: AsyncOpenAI) -> None:
    question = samples(1.3)
    ((text, pcm, ended),) = await over_grpc(
        mesh, [question, "and quickly"], voice="ash", instructions="be brief", seed=7
    )
    completion = await client.chat.completions.create(
        model=MODEL,
        messages=[
            {"role": "system", "content": "be brief"},
            user(spoken(question), {"type": "text", "text": "and quickly"}),
        ],
        seed=7,
        **SOUND,
    )
    (choice,) = completion.choices
    assert choice.message.audio is not None
    assert base64.b64decode(choice.message.audio.data) == pcm
    assert (choice.message.audio.transcript, choice.message.content) == (text, None)
    assert choice.finish_reason == "stop"
    usage = completion.usage
    assert usage is not None
    assert ended.prompt is not None
    assert (usage.prompt_tokens, usage.completion_tokens) == (ended.prompt.position_count, 5 + 10)
    assert usage.total_tokens == usage.prompt_tokens + usage.completion_tokens
    assert usage.prompt_tokens_details is not None
    assert usage.prompt_tokens_details.audio_tokens == 32
    assert usage.completion_tokens_details is not None
    assert (usage.completion_tokens_details.text_tokens, usage.completion_tokens_details.audio_tokens) == (5, 10)


async def test_a_stream_is_the_same_reply_in_chunks(mesh: Mesh, client: AsyncOpenAI) -> None:
    body: dict[str, Any] = {"model": MODEL, "messages": [user(spoken(samples(0.7), "FLAC"))], "seed": 3, **SOUND}
    whole = (await client.chat.completions.create(**body)).choices[0].message.audio
    stream = await client.chat.completions.create(stream=True, stream_options={"include_usage": True}, **body)
    chunks = [chunk async for chunk in stream]
    *pieces, last = chunks
    assert len({(chunk.id, chunk.created, chunk.object, chunk.model) for chunk in chunks}) == 1
    assert (last.choices, all(chunk.usage is None for chunk in pieces)) == ([], True)
    assert last.usage is not None
    assert last.usage.completion_tokens == 15
    deltas = [chunk.choices[0].delta for chunk in pieces]
    assert deltas[0].role == "assistant"
    said = [delta.audio for delta in deltas if delta.audio is not None]
    data = [audio.data for audio in said if audio.data]
    assert len(data) > 1
    assert whole is not None
    assert b"".join(base64.b64decode(piece) for piece in data) == base64.b64decode("".join(data))
    assert base64.b64decode("".join(data)) == base64.b64decode(whole.data)
    assert "".join(audio.transcript or "" for audio in said) == whole.transcript
    (audio_id,) = [audio.id for audio in said if audio.id]
    assert transcript_of(audio_id, "id") == whole.transcript
    assert [chunk.choices[0].finish_reason for chunk in pieces] == [None] * (len(pieces) - 1) + ["stop"]


async def test_the_helper_of_the_client_puts_a_stream_together(client: AsyncOpenAI) -> None:
    async with client.chat.completions.stream(model=MODEL, messages=[user("hello")]) as stream:
        text = "".join([event.delta async for event in stream if event.type == "content.delta"])
        completion = await stream.get_final_completion()
    assert completion.choices[0].message.content == text != ""


async def test_the_second_turn_names_the_first_reply_by_its_id(mesh: Mesh, client: AsyncOpenAI) -> None:
    first, second = samples(1), samples(0.5, seed=1)
    direct = await over_grpc(mesh, [first], [second], voice="birch", instructions="")
    asked: dict[str, Any] = {
        "model": MODEL,
        "modalities": ["text", "audio"],
        "audio": {"voice": "birch", "format": "wav"},
    }
    messages: list[Any] = [{"role": "system", "content": ""}, user(spoken(first))]
    for text, pcm, _ in direct:
        reply = (await client.chat.completions.create(messages=messages, **asked)).choices[0].message.audio
        assert reply is not None
        heard, rate = soundfile.read(io.BytesIO(base64.b64decode(reply.data)), dtype="int16")
        assert (reply.transcript, heard.tobytes(), rate) == (text, pcm, RATE_HZ)
        messages += [{"role": "assistant", "audio": {"id": reply.id}}, user(spoken(second))]


async def test_text_alone_has_no_sound_in_it(mesh: Mesh, client: AsyncOpenAI) -> None:
    ((text, _, _),) = await over_grpc(mesh, ["hello"])
    completion = await client.chat.completions.create(model=MODEL, messages=[user("hello")], modalities=["text"])
    assert (completion.choices[0].message.content, completion.choices[0].message.audio) == (text, None)
    assert not hasattr(completion, "audio")
    stream = await client.chat.completions.create(model=MODEL, messages=[user("hello")], stream=True)
    deltas = [chunk.choices[0].delta async for chunk in stream]
    assert "".join(delta.content or "" for delta in deltas) == text
    assert all(delta.audio is None for delta in deltas)


async def test_the_field_of_the_chroma_server_is_a_wav(mesh: Mesh, http: httpx2.AsyncClient) -> None:
    """A request as that server's clients send it, its example of a voice in base64."""
    own = samples(2, rate=RATE_HZ)
    example = VoiceExample("it is me", own)
    ((text, pcm, _),) = await over_grpc(mesh, [samples(1)], voice=example)
    url = f"data:audio/wav;base64,{in_base64(sound_file(samples(1)))}"
    body = {
        "messages": [user({"type": "audio", "audio": url})],
        "prompt_text": "it is me",
        "prompt_audio": in_base64(sound_file(own, rate=RATE_HZ)),
    }
    answer = (await ask(http, **body)).json()
    heard, _ = soundfile.read(io.BytesIO(base64.b64decode(answer["audio"])), dtype="int16")
    assert (answer["choices"][0]["message"]["content"], heard.tobytes()) == (text, pcm)
    assert "audio" not in (await ask(http, return_audio=False, **body)).json()
    both = (await ask(http, return_audio=True, modalities=["text", "audio"], **body)).json()
    assert both["audio"] == answer["audio"] == both["choices"][0]["message"]["audio"]["data"]


async def test_the_sound_comes_in_any_format(client: AsyncOpenAI) -> None:
    kinds: list[Any] = ["wav", "mp3", "flac", "opus"]
    for kind in kinds:
        completion = await client.chat.completions.create(
            model=MODEL, messages=[user("hello")], modalities=["text", "audio"], audio={"voice": "ash", "format": kind}
        )
        reply = completion.choices[0].message.audio
        assert reply is not None
        with soundfile.SoundFile(io.BytesIO(base64.b64decode(reply.data))) as sound:
            assert (sound.samplerate, sound.channels, sound.frames) == (RATE_HZ, 1, 10 * 480)


async def test_openais_voices_are_the_default_where_there_are_none_of_their_names(
    mesh: Mesh, http: httpx2.AsyncClient
) -> None:
    prompts = []
    for voice in (None, "alloy", "ash"):
        answer = await ask(http, messages=[user("hello")], audio={} if voice is None else {"voice": voice})
        assert answer.status_code == 200, answer.text
        prompts.append(mesh.speech.heard[-1].open.voice_prompt)
    assert prompts[0] == prompts[1] == prompts[2]  # ash is the default


async def test_settings_reach_the_mesh(mesh: Mesh, http: httpx2.AsyncClient) -> None:
    answer = await ask(
        http,
        messages=[
            {"role": "developer", "content": [{"type": "text", "text": "one"}]},
            user("before"),
            {"role": "assistant", "content": [{"type": "text", "text": "so"}, {"type": "refusal", "refusal": "no"}]},
            {"role": "system", "content": "two"},
            {"role": "assistant", "content": ""},
            user(
                {"type": "text", "text": "a"}, {"type": "text", "text": "b"}, spoken(samples(0.5)), spoken(samples(1))
            ),
        ],
        audio={"voice": {"id": "birch"}},
        temperature=0,
        top_k=5,
        seed=-1,
        max_tokens=9,
        max_completion_tokens=2,
        top_p=0.5,
        user="someone",
        tools=[],
        response_format={"type": "text"},
    )
    assert answer.status_code == 200, answer.text
    reasoner, speech = mesh.reasoner.heard[0], mesh.speech.heard[0]
    told = [[part.text for part in message.parts] for message in reasoner.messages]
    assert told == [["one\n\ntwo"], ["before"], ["so\nno"]]
    assert reasoner.open.max_step_count == 2
    assert reasoner.parts[0].text == "a\nb"
    assert b"".join(part.audio for part in reasoner.parts[1:]) == b"".join(
        (samples(seconds) * 32768).astype("<i2").tobytes() for seconds in (0.5, 1)
    )
    sampling = speech.open.sampling
    assert (sampling.temperature, sampling.top_k, sampling.seed) == (0, 5, 2**64 - 1)


async def test_a_limit_is_told(mesh: Mesh, http: httpx2.AsyncClient) -> None:
    mesh.reasoner.reason = LENGTH
    answer = (await ask(http, messages=[user("hello")], max_tokens=5)).json()
    assert answer["choices"][0]["finish_reason"] == "length"


async def test_an_empty_reply_is_one(mesh: Mesh, http: httpx2.AsyncClient) -> None:
    mesh.speech.is_silent, mesh.reasoner.step_count = True, 0
    for audio in ({"format": "mp3"}, {"format": "wav"}):
        answer = (await ask(http, messages=[user("hello")], modalities=["text", "audio"], audio=audio)).json()
        assert answer["choices"][0]["message"]["audio"]["transcript"] == ""
    reply_id = answer["choices"][0]["message"]["audio"]["id"]
    mesh.speech.is_silent, mesh.reasoner.step_count = False, 4
    again = [user("hello"), {"role": "assistant", "audio": {"id": reply_id}}, user("are you there?")]
    assert (await ask(http, messages=again)).status_code == 200


async def test_curl_gets_a_completion_and_a_stream(gateway: Gateway) -> None:
    body = {"model": MODEL, "messages": [user("hello")]}

    async def curl(*flags: str, **more: Any) -> str:
        process = await asyncio.create_subprocess_exec(
            "curl", "-sS", "-N", "--compressed", *flags, f"{gateway.url}/v1/chat/completions",
            "-H", "Content-Type: application/json", "-d", json.dumps({**body, **more}),
            stdout=asyncio.subprocess.PIPE,
        )  # fmt: skip
        out, _ = await process.communicate()
        assert process.returncode == 0
        return out.decode()

    head, _, whole = (await curl("-i", return_audio=False)).partition("\r\n\r\n")
    assert "content-encoding" not in head.lower()
    assert "x-request-id: req_" in head.lower()
    events = [event.removeprefix("data: ") for event in (await curl(stream=True)).strip().split("\n\n")]
    assert events[-1] == "[DONE]"
    said = "".join(json.loads(event)["choices"][0]["delta"].get("content", "") for event in events[:-1])
    assert said == json.loads(whole)["choices"][0]["message"]["content"] != ""


BAD_AUDIO = [
    ("http://127.0.0.1/question.wav", "url_not_supported"),
    ("file:///etc/passwd", "url_not_supported"),
    ("FILE:/etc/passwd", "url_not_supported"),
    ("/etc/passwd", "invalid_base64"),
    ("UklGR", "invalid_base64"),
    ("UklGR!===", "invalid_base64"),
    ("\u00e9", "invalid_base64"),
    ("data:audio/wav,abc", "invalid_data_url"),
    ("data:image/png;base64,AAAA", "invalid_data_url"),
    ("data:", "invalid_data_url"),
    (in_base64(b"no sound at all"), "invalid_audio"),
    (in_base64(sound_file(samples(1))[:-9000]), "invalid_audio"),
    (in_base64(sound_file(samples(1), "OGG")[:-100]), "invalid_audio"),
    (in_base64(sound_file(samples(1), "FLAC")[:2000]), "invalid_audio"),
    (in_base64(b"\xff\xfb" + bytes(100)), "invalid_audio"),
    (in_base64(sound_file(samples(301, rate=1000), rate=1000)), "invalid_audio"),
]


async def test_sound_that_is_none_is_refused(http: httpx2.AsyncClient) -> None:
    for data, code in BAD_AUDIO:
        for part, place in (
            ({"type": "input_audio", "input_audio": {"data": data, "format": "wav"}}, "input_audio.data"),
            ({"type": "audio", "audio": data}, "audio"),
        ):
            answer = await ask(http, messages=[user({"type": "text", "text": "listen"}, part)])
            error = error_of(answer)
            assert (answer.status_code, error["code"]) == (400, code), data
            assert error["param"] == f"messages[0].content[1].{place}"
        assert error_of(await ask(http, messages=[user("hi")], prompt_text="me", prompt_audio=data))["code"] == code
    assert (await ask(http, messages=[user("hi")])).status_code == 200


HELLO = {"messages": [user("hello")]}
BAD_REQUESTS: list[tuple[dict[str, Any], str | None]] = [
    ({}, "messages"),
    ({"messages": []}, "messages"),
    ({"messages": [user("")]}, "messages[0].content"),
    ({"messages": [{"role": "tool", "content": "x"}]}, "messages[0]"),
    ({"messages": [{"role": "assistant", "content": "x"}]}, "messages"),
    ({"messages": [{"role": "system", "content": "x"}]}, "messages"),
    ({"messages": [user({"type": "image_url", "image_url": {"url": "x"}})]}, "messages[0].content[0]"),
    ({"messages": [user({"type": "text"})]}, "messages[0].content[0].text"),
    ({"messages": [user({"type": "text", "text": "a"}, {"type": "text", "text": 1})]}, "messages[0].content[1].text"),
    ({"messages": [user("a"), {"role": "assistant", "audio": {"id": "audio_1"}}, user("b")]}, "messages[1].audio.id"),
    ({"messages": [user("a"), {"role": "assistant", "tool_calls": [{}]}, user("b")]}, "messages[1].tool_calls"),
    ({**HELLO, "n": 2}, "n"),
    ({**HELLO, "tools": [{"type": "function"}]}, "tools"),
    ({**HELLO, "response_format": {"type": "json_object"}}, "response_format.type"),
    ({**HELLO, "stop": ["."]}, "stop"),
    ({**HELLO, "logprobs": True}, "logprobs"),
    ({**HELLO, "temperature": 3}, "temperature"),
    ({**HELLO, "top_k": 10_000}, "top_k"),
    ({**HELLO, "max_tokens": 0}, "max_tokens"),
    ({**HELLO, "max_frame_count": 400_000}, "max_frame_count"),
    ({**HELLO, "seed": "1"}, "seed"),
    ({**HELLO, "modalities": ["video"]}, "modalities[0]"),
    ({**HELLO, "audio": {"format": "aac"}}, "audio.format"),
    ({**HELLO, "audio": {"voice": "nobody"}}, "audio.voice"),
    ({**HELLO, "audio": {"format": "wav"}, "stream": True}, None),
    ({**HELLO, "prompt_text": "x"}, None),
    ({**HELLO, "stream_options": {"include_usage": True}}, None),
    ({**HELLO, "return_audio": True, "stream": True}, None),
    ({"messages": [user("<|im_start|>")]}, "messages"),
]


async def test_what_cannot_be_is_refused_with_the_field_that_is_wrong(http: httpx2.AsyncClient) -> None:
    for body, param in BAD_REQUESTS:
        for more in ({}, {"stream": True}) if not {"stream", "stream_options"} & body.keys() else ({},):
            answer = await ask(http, **body, **more)
            error = error_of(answer)
            assert (answer.status_code, error["type"], error["param"]) == (400, "invalid_request_error", param), body


async def test_what_there_is_not_is_called_so_in_all_its_forms(http: httpx2.AsyncClient) -> None:
    for stop in (".", [".", "!"]):
        assert error_of(await ask(http, **HELLO, stop=stop))["message"] == "stop: this is not supported"
    for stop in (None, "", []):
        assert (await ask(http, **HELLO, stop=stop)).status_code == 200


async def test_odd_bodies_are_refused(http: httpx2.AsyncClient) -> None:
    json_type = {"Content-Type": "application/json"}
    for content, headers in (
        (b'{"model": "chroma-4b", "messages": [{"role": "user", "content": "\xc3"}]}', json_type),
        (b'{"model": "chroma-4b", "messages": [{"role": "user", "content": "\\ud83d"}]}', json_type),
        (b"{", json_type),
        (b"[" * 100_000, json_type),
        (b"", json_type),
        (b"null", json_type),
    ):
        answer = await http.post("/v1/chat/completions", content=content, headers=headers)
        assert (answer.status_code, error_of(answer)["type"]) == (400, "invalid_request_error")
    for headers in ({}, {"Content-Type": "application/x-www-form-urlencoded"}, {"Content-Type": "text/plain"}):
        answer = await http.post("/v1/chat/completions", content=json.dumps({"model": MODEL, **HELLO}), headers=headers)
        assert (answer.status_code, error_of(answer)["code"]) == (415, "unsupported_media_type")
        assert "application/json" in error_of(answer)["message"]
    answer = await http.post("/v1/chat/completions", content=b"x" * 100_000_000, headers=json_type)
    assert (answer.status_code, error_of(answer)["code"]) == (413, "request_too_large")
    assert (await ask(http, **HELLO)).status_code == 200


async def test_another_model_is_not_there(client: AsyncOpenAI) -> None:
    with pytest.raises(openai.NotFoundError) as raised:
        await client.chat.completions.create(model="gpt-audio", messages=[user("hello")])
    assert (raised.value.code, raised.value.param) == ("model_not_found", "model")
    assert raised.value.request_id is not None


async def test_more_than_can_be_told_is_refused(http: httpx2.AsyncClient) -> None:
    silence = in_base64(sound_file(np.zeros(280 * 8000, np.float32), "FLAC", 8000))
    quiet = {"type": "input_audio", "input_audio": {"data": silence, "format": "flac"}}
    history = [user(quiet), {"role": "assistant", "content": "yes"}]
    answer = await ask(http, messages=[*history, *history, user("what did I say?")])
    assert (answer.status_code, error_of(answer)["param"]) == (400, "messages[2].content[0].input_audio.data")
    answer = await ask(http, messages=[user("x" * 17_000_000), user("what did I say?")])
    assert (answer.status_code, error_of(answer)["code"]) == (400, "context_length_exceeded")
    answer = await ask(http, messages=[user("x" * 1_100_000)])
    assert (answer.status_code, error_of(answer)["code"]) == (400, "context_length_exceeded")
    answer = await ask(http, messages=[user(quiet, quiet)])
    assert (answer.status_code, error_of(answer)["param"]) == (400, "messages[0].content[1].input_audio.data")


@given(st.text())
def test_an_id_is_its_reply(transcript: str) -> None:
    assert transcript_of(new_audio_id(transcript), "id") == transcript
    assert new_audio_id(transcript) != new_audio_id(transcript)


@given(st.text(), st.integers(0), st.binary(max_size=3))
def test_an_id_that_was_never_given_is_refused_or_one(text: str, place: int, other: bytes) -> None:
    good = new_audio_id("hello there").encode()
    place %= len(good)
    for audio_id in (text, (good[:place] + other + good[place + 1 :]).decode("latin-1")):
        try:
            said = transcript_of(audio_id, "id")
        except Refusal as refusal:
            said = f"{refusal.status}{refusal.param}"
        assert said in ("hello there", "400id")


def test_an_id_does_not_unfold_without_end() -> None:
    with pytest.raises(Refusal):
        transcript_of(new_audio_id("a" * 2_000_000), "id")


async def test_a_reply_that_fails_is_an_error(mesh: Mesh, http: httpx2.AsyncClient, client: AsyncOpenAI) -> None:
    """Of a stream that has begun, the last event."""

    async def fail(index: int) -> None:
        if index >= 4:
            raise RuntimeError("the card is gone")

    mesh.codec.hook = fail
    answer = await ask(http, **HELLO)
    assert (answer.status_code, error_of(answer)["type"]) == (500, "server_error")
    stream = await client.chat.completions.create(model=MODEL, messages=[user("hello")], stream=True, **SOUND)
    heard: list[str | None] = []

    async def listen() -> None:
        async for chunk in stream:
            audio = chunk.choices[0].delta.audio
            heard.append(audio.data if audio is not None else None)

    with pytest.raises(openai.APIError) as raised:
        await listen()
    assert any(heard)
    assert raised.value.type == "server_error"
    await mesh.until_quiet()


@pytest.mark.parametrize("is_stream", [True, False])
async def test_a_client_that_goes_away_ends_the_reply(mesh: Mesh, gateway: Gateway, is_stream: bool) -> None:
    """In the middle of it, and before its first sound."""
    for before_sound in (True, False):
        held = asyncio.Event()
        mesh.reasoner.step_count = 10**6

        async def hold(index: int, *, at: int = 0 if before_sound else 20, held: asyncio.Event = held) -> None:
            if index >= at:
                held.set()
                await asyncio.Event().wait()

        mesh.codec.hook = hold
        body = json.dumps({"model": MODEL, **HELLO, "stream": is_stream}).encode()
        _, writer = await asyncio.open_connection(*gateway.address.split(":"))
        head = "POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
        writer.write(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
        await held.wait()
        writer.close()
        await mesh.until_quiet()
    assert gateway.front.registry.get_sample_value(
        "chroma_gateway_requests_total", {"route": "/v1/chat/completions", "method": "POST", "status": "499"}
    )


async def test_an_answer_that_takes_too_long_ends(mesh: Mesh) -> None:
    async def hold(_index: int) -> None:
        await asyncio.Event().wait()

    mesh.codec.hook = hold
    async with (
        running_gateway(mesh.address, reply_seconds=0.2) as gateway,
        httpx2.AsyncClient(base_url=gateway.url, timeout=60) as http,
    ):
        answer = await ask(http, **HELLO)
        assert (answer.status_code, error_of(answer)["code"]) == (504, "timeout")
        stream = (await ask(http, **HELLO, stream=True)).text.strip().split("\n\n")
        assert json.loads(stream[-1].removeprefix("data: "))["error"]["code"] == "timeout"
    await mesh.until_quiet()
