"""Replies of the three engines in this process: what one stage gives goes straight into the next one's inbox."""

import asyncio
from dataclasses import dataclass, field

import numpy as np

from services.bench.clock import Clock
from services.bench.conversation import Conversation
from services.bench.engines import StageEngines
from services.bench.shape import CannotMeasure
from services.codec.engine import DecodeStream
from services.codec.slot_decoder import Samples
from services.reasoner.engine import ReasonerStep, ReasonerStream
from services.reasoner.prompt import Turn
from services.speech.engine import Sampling, SpeechFrame, SpeechStep, SpeechStream, Voice


@dataclass
class Spoken:
    """A reply: all that each stage gave, and when, in seconds from the end of the user turn."""

    steps: list[ReasonerStep] = field(default_factory=list)
    frames: list[SpeechFrame] = field(default_factory=list)
    sounds: list[Samples] = field(default_factory=list)
    first_audio_seconds: float = 0.0
    total_seconds: float = 0.0

    @property
    def samples(self) -> Samples:
        """The sound, float32."""
        return np.concatenate(self.sounds)


@dataclass(frozen=True)
class Ask:
    """What a reply is asked for with."""

    turns: list[Turn]
    voice: Voice
    sampling: Sampling
    frame_count: int
    step_count: int


async def speak(engines: StageEngines, ask: Ask, clock: Clock) -> Spoken:
    """Gives one reply; all three stages start when the user turn has ended, which is now."""
    began = clock()
    spoken = Spoken()
    reasoning = ReasonerStream(max_step_count=ask.step_count)
    speaking = speech_stream(engines, ask.voice, ask.sampling, ask.frame_count)
    playing = DecodeStream()

    async def reason() -> None:
        await reasoning.send(ask.turns)
        reasoning.end()
        async for step in reasoning:
            spoken.steps.append(step)
            await speaking.send(speech_step(step))
        speaking.end()

    async def speak_frames() -> None:
        async for frame in speaking:
            spoken.frames.append(frame)
            await playing.send(frame.codes)
        playing.end()

    async with (
        engines.reasoner.open(reasoning),
        engines.speech.open(speaking),
        engines.codec.open(playing),
        asyncio.TaskGroup() as tasks,
    ):
        tasks.create_task(reason())
        tasks.create_task(speak_frames())
        async for samples in playing:
            spoken.first_audio_seconds = spoken.first_audio_seconds or clock() - began
            spoken.sounds.append(samples)
        spoken.total_seconds = clock() - began
    if (len(spoken.steps), len(spoken.frames)) != (ask.step_count, ask.frame_count):
        raise CannotMeasure(
            f"a reply of {ask.frame_count} frames and {ask.step_count} steps was asked for, and it ended after "
            f"{len(spoken.frames)} and {len(spoken.steps)}: the model ended it, or its context is shorter"
        )
    return spoken


def speech_stream(engines: StageEngines, voice: Voice, sampling: Sampling, frame_count: int) -> SpeechStream:
    """A reply's stream in the speech stage."""
    stream = SpeechStream(voice, sampling, max_frame_count=frame_count)
    stream.transcript_ids = engines.speech.transcript_ids(voice)
    return stream


def speech_step(step: ReasonerStep) -> SpeechStep:
    """What the speech stage needs of a step."""
    return SpeechStep(step.token_id, step.hidden_state, step.is_end)


@dataclass(frozen=True)
class Burst:
    """Replies that were asked for at the same moment. total_seconds: from then to the last sample of the last one."""

    first_audio_seconds: list[float]
    total_seconds: float
    frame_count: int

    @property
    def frame_seconds(self) -> float:
        """The time for each frame of all replies."""
        return self.total_seconds / self.frame_count


async def burst(
    engines: StageEngines,
    conversation: Conversation,
    sampling: Sampling,
    clock: Clock,
    *,
    sessions: int,
    first_turn: int,
) -> Burst:
    """Answers as many sessions at once, with user turns that were never heard before `first_turn`."""
    shape, voice = conversation.shape, conversation.voice()
    asks = [
        Ask(conversation.turns(turn), voice, sampling, shape.frame_count, shape.step_count)
        for turn in range(first_turn, first_turn + sessions)
    ]
    began = clock()
    async with asyncio.TaskGroup() as tasks:
        replies = [tasks.create_task(speak(engines, ask, clock)) for ask in asks]
    total_seconds = clock() - began
    spoken = [reply.result() for reply in replies]
    return Burst(
        [reply.first_audio_seconds for reply in spoken], total_seconds, sum(len(reply.frames) for reply in spoken)
    )
