"""Chat completions of a real mesh: OpenAI's client gets the reply that a session gets."""

import base64
import math
from pathlib import Path
from typing import Any

from openai import AsyncOpenAI

from client import Audio, ReplyEnded, connect
from client.audio_file import read_audio
from client.pcm import USER_RATE_HZ
from tests.integration.conftest import RealMesh

QUESTION = Path(__file__).parents[2] / "client" / "data" / "question.wav"
FRAME_COUNT = 12
NOBODY = "none"  # the client must have a key, the mesh asks for none


async def test_a_spoken_turn_is_answered_as_in_a_session(mesh: RealMesh) -> None:
    question = read_audio(QUESTION, USER_RATE_HZ)
    async with (
        connect(mesh.address) as direct,
        direct.session(voice="ash", seed=5, max_frame_count=FRAME_COUNT, ahead_seconds=math.inf) as session,
    ):
        await session.send_audio(question)
        await session.end_turn()
        events = [event async for event in session.reply()]
    ended = events[-1]
    assert isinstance(ended, ReplyEnded)
    pcm = b"".join(event.data for event in events if isinstance(event, Audio))

    data = base64.b64encode(QUESTION.read_bytes()).decode()
    body: dict[str, Any] = {
        "model": "chroma-4b",
        "messages": [
            {"role": "user", "content": [{"type": "input_audio", "input_audio": {"data": data, "format": "wav"}}]}
        ],
        "modalities": ["text", "audio"],
        "audio": {"voice": "ash", "format": "pcm16"},
        "seed": 5,
        "extra_body": {"max_frame_count": FRAME_COUNT},
    }
    url = f"http://{mesh.services['gateway'].address}/v1"
    async with AsyncOpenAI(base_url=url, api_key=NOBODY, max_retries=0) as client:
        completion = await client.chat.completions.create(**body)
        stream = await client.chat.completions.create(stream=True, **body)
        deltas = [chunk.choices[0].delta.audio async for chunk in stream]
    reply = completion.choices[0].message.audio
    assert reply is not None
    assert (base64.b64decode(reply.data), reply.transcript) == (pcm, ended.text)
    assert b"".join(base64.b64decode(it.data) for it in deltas if it is not None and it.data) == pcm
    usage = completion.usage
    assert usage is not None
    assert ended.prompt is not None
    assert usage.prompt_tokens == ended.prompt.position_count
    assert usage.prompt_tokens_details is not None
    assert usage.prompt_tokens_details.audio_tokens == 70  # 25 a second, of 2.8
    assert usage.prompt_tokens_details.cached_tokens > 0
    assert usage.completion_tokens == ended.step_count + ended.frame_count
    assert completion.choices[0].finish_reason == "length"
