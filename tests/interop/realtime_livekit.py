"""LiveKit Agents' RealtimeModel, as it comes: a greeting, then two spoken turns, the second over the first's reply.

Arguments: the base URL (…/v1), and a WAV of the user's turn, 16 bits at 24,000 Hz.
"""

import asyncio
import os
import sys
import wave

import aiohttp
from livekit import rtc
from livekit.agents import llm
from livekit.plugins import openai

RATE_HZ = 24_000
PACKET_BYTES = 2 * RATE_HZ // 50


class Call:
    """What is said and heard in one session."""

    def __init__(self, session: llm.RealtimeSession, question: bytes) -> None:
        self.heard: list[int] = []
        self.errors: list[object] = []
        self.is_done = asyncio.Event()
        self.tasks: set[asyncio.Task[None]] = set()
        self._session = session
        self._question = question
        self._speaking: asyncio.Task[None] | None = None
        self._playing = ""
        session.on("generation_created", lambda event: self._start(self._listen(event)))
        session.on("input_speech_started", lambda _event: self._interrupt())
        session.on("error", self._fail)

    def speak(self) -> None:
        self._speaking = self._start(self._speak())

    async def _speak(self) -> None:
        sound = self._question + bytes(2 * RATE_HZ)
        for start in range(0, len(sound), PACKET_BYTES):
            data = sound[start : start + PACKET_BYTES]
            self._session.push_audio(rtc.AudioFrame(data, RATE_HZ, 1, len(data) // 2))
            await asyncio.sleep(0.02)

    async def _listen(self, generation: llm.GenerationCreatedEvent) -> None:
        index = len(self.heard)
        self.heard.append(0)
        async for message in generation.message_stream:
            self._playing = message.message_id
            async for frame in message.audio_stream:
                self.heard[index] += 2 * frame.samples_per_channel
                if index < 2 and (self._speaking is None or self._speaking.done()):
                    self.speak()
                if index == 2 and self.heard[2] > 2 * RATE_HZ:
                    self._session.interrupt()  # random weights find no end
                    self.is_done.set()

    def _interrupt(self) -> None:
        if self._playing:
            self._session.interrupt()
            self._session.truncate(message_id=self._playing, modalities=["audio"], audio_end_ms=100)

    def _fail(self, error: object) -> None:
        self.errors.append(error)
        self.is_done.set()

    def _start(self, coroutine: object) -> asyncio.Task[None]:
        task = asyncio.create_task(coroutine)
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)
        return task


async def main(base_url: str, path: str) -> None:
    with wave.open(path) as spoken:
        question = spoken.readframes(spoken.getnframes())
    async with aiohttp.ClientSession() as http:
        model = openai.realtime.RealtimeModel(
            base_url=base_url, api_key=os.environ.get("OPENAI_API_KEY", "none"), model="chroma-4b", http_session=http
        )
        session = model.session()
        call = Call(session, question)
        await session.update_instructions("Be brief.")
        await session.generate_reply(instructions="Greet the user.")
        async with asyncio.timeout(90):
            await call.is_done.wait()
        assert not call.errors, call.errors
        await session.aclose()
        await model.aclose()
    greeting, first, second = call.heard
    print(f"a greeting cut after {greeting} bytes of sound, a reply after {first}; the second has {second}")


asyncio.run(main(*sys.argv[1:]))
