"""What the stages are told for a reply, and what is kept to tell it to another replica again."""

from collections.abc import AsyncIterator
from dataclasses import dataclass, field

from chroma_mesh.codec.v1 import codec_pb2
from chroma_mesh.reasoner.v1 import reasoner_pb2
from chroma_mesh.speech.v1 import speech_pb2
from chroma_mesh.types.v1 import types_pb2

from services.orchestrator.pacing import Pace
from services.orchestrator.reply_setup import ReplySetup
from services.orchestrator.track import Track
from services.orchestrator.user_turn import UserTurn

# How far a stage may run ahead of the next one: about 10 s of speech.
STEPS_AHEAD = 64
FRAMES_AHEAD = 128
# Frame 2j waits for step j.
FRAMES_PER_STEP = 2
# A listener takes this much silence after the end of the turn for a natural pause.
FIRST_AUDIO_SECONDS = 0.3


@dataclass
class Relayed:
    """All that was relayed for one reply: with the turn's pieces, enough to begin again at any stage."""

    steps: Track[types_pb2.Step] = field(default_factory=lambda: Track(STEPS_AHEAD))
    frames: Track[types_pb2.Frame] = field(default_factory=lambda: Track(FRAMES_AHEAD))
    # Frames whose sound came from the codec, and frames whose sound the client was sent.
    decoded_frame_count: int = 0
    played_frame_count: int = 0
    # How each stage finished; None while it has not.
    reasoner_reason: types_pb2.FinishReason | None = None
    speech_reason: types_pb2.FinishReason | None = None

    def end(self) -> None:
        """Ends both tracks: nobody waits for them any more."""
        self.steps.end()
        self.frames.end()


@dataclass(frozen=True)
class Opening:
    """What a reply's streams open with."""

    messages: tuple[types_pb2.Message, ...]
    setup: ReplySetup

    def reasoner_differs(self, other: "Opening") -> bool:
        """Whether the reasoner would be told something else."""
        return (self.messages, self.setup.max_step_count) != (other.messages, other.setup.max_step_count)

    def speech_differs(self, other: "Opening") -> bool:
        """Whether the speech stage would be told something else."""
        mine, others = self.setup, other.setup
        return (mine.voice_prompt, mine.sampling, mine.max_frame_count) != (
            others.voice_prompt, others.sampling, others.max_frame_count,
        )  # fmt: skip


@dataclass
class Fed:
    """What a call to a stage was sent: outputs of the stage before it, and whether that was all."""

    count: int = 0
    is_complete: bool = False


async def reasoner_requests(
    relayed: Relayed, fed: Fed, *, turn: UserTurn, opening: Opening, frame_seconds: float
) -> AsyncIterator[reasoner_pb2.GenerateRequest]:
    """What the reasoner is told: the conversation, then the turn as it comes."""
    token_ids = [step.token_id for step in relayed.steps.items]
    yield reasoner_pb2.GenerateRequest(
        open=reasoner_pb2.GenerateOpen(
            resume=reasoner_pb2.GenerateResume(token_ids=token_ids) if token_ids else None,
            audio_format=turn.audio_format,
            max_step_count=opening.setup.max_step_count,
            due_seconds=FIRST_AUDIO_SECONDS,
            step_seconds=FRAMES_PER_STEP * frame_seconds,
        )
    )
    for message in opening.messages:
        yield reasoner_pb2.GenerateRequest(message=message)
    index = 0
    async for pieces in turn.pieces.read():
        for piece in pieces:
            part = reasoner_pb2.TurnPart(index=index)
            if isinstance(piece, str):
                part.text = piece
            else:
                part.audio = piece
            yield reasoner_pb2.GenerateRequest(part=part)
            index += 1
    yield reasoner_pb2.GenerateRequest(end=reasoner_pb2.GenerateEnd())
    fed.is_complete = True


async def speech_requests(
    relayed: Relayed, fed: Fed, *, setup: ReplySetup, pace: Pace, frame_seconds: float
) -> AsyncIterator[speech_pb2.GenerateFramesRequest]:
    """What the speech stage is told: the voice, then the steps, none before its time."""
    # The voice goes out at once, so that its prefill is done while the reasoner is at its own.
    frames = tuple(relayed.frames.items)
    yield speech_pb2.GenerateFramesRequest(
        open=speech_pb2.GenerateFramesOpen(
            resume=speech_pb2.GenerateFramesResume(frames=frames) if frames else None,
            voice_prompt=setup.voice_prompt,
            sampling=setup.sampling,
            max_frame_count=setup.max_frame_count,
            due_seconds=FIRST_AUDIO_SECONDS,
            frame_seconds=frame_seconds,
        )
    )
    async for steps in relayed.steps.read():
        # Steps that nobody will speak wait for no time of theirs: the stage waits for the end.
        while steps and relayed.speech_reason is None:
            await pace.until_due(FRAMES_PER_STEP * steps[0].index)
            due_count = sum(pace.is_due(FRAMES_PER_STEP * step.index) for step in steps[:STEPS_AHEAD])
            yield speech_pb2.GenerateFramesRequest(steps=types_pb2.Steps(steps=steps[:due_count]))
            del steps[:due_count]
            fed.count += due_count
    yield speech_pb2.GenerateFramesRequest(end=speech_pb2.GenerateFramesEnd())
    fed.is_complete = True


async def codec_requests(
    relayed: Relayed, fed: Fed, *, audio_format: types_pb2.AudioFormat
) -> AsyncIterator[codec_pb2.DecodeRequest]:
    """What the codec is told: the frames."""
    frames = tuple(relayed.frames.items) if relayed.decoded_frame_count else ()
    resume = codec_pb2.DecodeResume(frames=frames, played_frame_count=relayed.decoded_frame_count)
    fed.count = len(frames)
    yield codec_pb2.DecodeRequest(
        open=codec_pb2.DecodeOpen(
            audio_format=audio_format,
            resume=resume if frames else None,
            due_seconds=FIRST_AUDIO_SECONDS,
        )
    )
    async for run in relayed.frames.read(fed.count):
        yield codec_pb2.DecodeRequest(frames=codec_pb2.DecodeFrames(index=fed.count, frames=run))
        fed.count += len(run)
    yield codec_pb2.DecodeRequest(end=codec_pb2.DecodeEnd())
    fed.is_complete = True
