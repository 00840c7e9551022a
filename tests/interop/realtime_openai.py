"""The openai package for Python, as it comes: a spoken conversation of two turns, the second over the first's reply.

Arguments: the base URL (…/v1), and a WAV of the user's turn, 16 bits at 24,000 Hz.
"""

import asyncio
import base64
import os
import sys
import wave
from typing import Any

from openai import AsyncOpenAI

PACKET_BYTES = 2 * 480


async def main(base_url: str, path: str) -> None:
    with wave.open(path) as spoken:
        question = spoken.readframes(spoken.getnframes())
    client = AsyncOpenAI(api_key=os.environ.get("OPENAI_API_KEY", "none"), base_url=base_url)
    async with client, client.realtime.connect(model="chroma-4b") as connection:
        await connection.session.update(
            session={"type": "realtime", "instructions": "Be brief.", "max_output_tokens": 24}
        )
        microphone = asyncio.create_task(speak(connection, question))
        items, heard, reasons = [], {}, []
        async for event in connection:
            match event.type:
                case "error":
                    if event.error.code != "response_cancel_not_active":
                        raise SystemExit(f"error: {event.error}")
                case "response.output_item.added":
                    items.append(event.item.id)
                case "response.output_audio.delta":
                    count = heard[event.item_id] = heard.get(event.item_id, 0) + len(base64.b64decode(event.delta))
                    if event.item_id == items[0] and microphone.done():
                        microphone = asyncio.create_task(speak(connection, question))
                    elif event.item_id != items[0] and count > 2 * 24_000:
                        await connection.response.cancel()  # random weights find no end
                case "input_audio_buffer.speech_started" if items and not reasons:
                    await connection.conversation.item.truncate(item_id=items[0], content_index=0, audio_end_ms=100)
                case "response.done":
                    reasons.append(event.response.status_details and event.response.status_details.reason)
                    if len(reasons) == 2:
                        break
        await microphone
    assert len(items) == 2
    assert reasons[0] == "turn_detected"
    assert reasons[1] in (None, "client_cancelled", "max_output_tokens")
    print(f"two turns, the first reply cut after {heard[items[0]]} bytes of sound; the second has {heard[items[1]]}")


async def speak(connection: Any, question: bytes) -> None:
    """A microphone: the question and a second of silence, in packets of 20 ms at their pace."""
    sound = question + bytes(2 * 24_000)
    for start in range(0, len(sound), PACKET_BYTES):
        await connection.input_audio_buffer.append(audio=base64.b64encode(sound[start : start + PACKET_BYTES]).decode())
        await asyncio.sleep(0.02)


asyncio.run(main(*sys.argv[1:]))
