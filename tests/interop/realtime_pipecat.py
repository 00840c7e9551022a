"""Pipecat's OpenAIRealtimeLLMService, as it comes, in a pipeline of its own: two spoken turns, the second over a reply.

Arguments: the base URL (…/v1), and a WAV of the user's turn, 16 bits at 24,000 Hz.
"""

import asyncio
import os
import sys
import wave

from pipecat.frames.frames import (
    EndFrame,
    ErrorFrame,
    Frame,
    InputAudioRawFrame,
    InterruptionFrame,
    StartFrame,
    TTSAudioRawFrame,
    TTSTextFrame,
)
from pipecat.pipeline.pipeline import Pipeline
from pipecat.pipeline.worker import PipelineParams, PipelineWorker
from pipecat.processors.aggregators.llm_context import LLMContext
from pipecat.processors.aggregators.llm_response_universal import LLMContextAggregatorPair
from pipecat.processors.frame_processor import FrameDirection, FrameProcessor
from pipecat.services.openai.realtime.llm import OpenAIRealtimeLLMService
from pipecat.workers.runner import WorkerRunner

RATE_HZ = 24_000
PACKET_BYTES = 2 * RATE_HZ // 50


class Microphone(FrameProcessor):
    """Says the question when it is told to, and is silent else, in packets of 20 ms at their pace."""

    def __init__(self, question: bytes) -> None:
        super().__init__()
        self._question = question
        self._to_say = b""
        self._speaking: asyncio.Task[None] | None = None

    def ask(self) -> None:
        self._to_say = self._question

    async def process_frame(self, frame: Frame, direction: FrameDirection) -> None:
        await super().process_frame(frame, direction)
        await self.push_frame(frame, direction)
        if isinstance(frame, StartFrame):
            self._speaking = self.create_task(self._speak())
        elif isinstance(frame, EndFrame) and self._speaking is not None:
            await self.cancel_task(self._speaking)

    async def _speak(self) -> None:
        while True:
            packet, self._to_say = self._to_say[:PACKET_BYTES], self._to_say[PACKET_BYTES:]
            packet = packet.ljust(PACKET_BYTES, b"\0")
            await self.push_frame(InputAudioRawFrame(audio=packet, sample_rate=RATE_HZ, num_channels=1))
            await asyncio.sleep(0.02)


class Listener(FrameProcessor):
    """Hears the replies, and asks again when it hears the first one."""

    def __init__(self, microphone: Microphone) -> None:
        super().__init__()
        self.heard: list[int] = [0]
        self.words: list[str] = []
        self.is_done = asyncio.Event()
        self._microphone = microphone

    async def process_frame(self, frame: Frame, direction: FrameDirection) -> None:
        await super().process_frame(frame, direction)
        match frame:
            case TTSAudioRawFrame():
                if self.heard == [0]:
                    self._microphone.ask()
                self.heard[-1] += len(frame.audio)
                if len(self.heard) == 2 and self.heard[1] > 2 * RATE_HZ:
                    self.is_done.set()
            case TTSTextFrame():
                self.words.append(frame.text)
            case InterruptionFrame() if self.heard[0] and len(self.heard) == 1:
                self.heard.append(0)
        await self.push_frame(frame, direction)


async def main(base_url: str, path: str) -> None:
    with wave.open(path) as spoken:
        microphone = Microphone(spoken.readframes(spoken.getnframes()))
    listener = Listener(microphone)
    service = OpenAIRealtimeLLMService(
        api_key=os.environ.get("OPENAI_API_KEY", "none"),
        base_url=f"{base_url.replace('http', 'ws', 1)}/realtime",
        settings=OpenAIRealtimeLLMService.Settings(model="chroma-4b", system_instruction="Be brief."),
    )
    context = LLMContextAggregatorPair(LLMContext())
    pipeline = Pipeline([microphone, context.user(), service, listener, context.assistant()])
    worker = PipelineWorker(
        pipeline, params=PipelineParams(audio_in_sample_rate=RATE_HZ, audio_out_sample_rate=RATE_HZ)
    )
    errors: list[ErrorFrame] = []

    @worker.event_handler("on_pipeline_error")
    async def on_pipeline_error(_worker: object, frame: ErrorFrame) -> None:
        errors.append(frame)
        listener.is_done.set()

    microphone.ask()
    runner = WorkerRunner(handle_sigint=False)
    running = asyncio.create_task(runner.run(worker))
    async with asyncio.timeout(90):
        await listener.is_done.wait()
    await worker.queue_frame(EndFrame())
    await running
    assert not errors, errors
    assert listener.words, "there is a transcript"
    first, second = listener.heard
    print(f"two turns, the first reply cut after {first} bytes of sound; the second has {second}")


asyncio.run(main(*sys.argv[1:]))
