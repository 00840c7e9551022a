"""What the mesh says, as it arrives."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import TypeAlias

import grpc
from chroma_mesh.orchestrator.v1 import orchestrator_pb2
from chroma_mesh.types.v1 import types_pb2

from client.errors import MeshError
from client.pcm import Encoding, Samples


class FinishReason(Enum):
    """Why a reply ended: by itself, at a limit, because it was cancelled, or because a stage of the mesh failed."""

    STOP = types_pb2.FINISH_REASON_STOP
    LENGTH = types_pb2.FINISH_REASON_LENGTH
    CANCELLED = types_pb2.FINISH_REASON_CANCELLED
    FAILED = types_pb2.FINISH_REASON_FAILED
    UNKNOWN = types_pb2.FINISH_REASON_UNSPECIFIED


FINISH_REASONS = {int(reason.value): reason for reason in FinishReason}


@dataclass(frozen=True)
class ReplyStarted:
    """The reply to the user turn of this index begins; `traceparent` is the turn's span, "" where it is not traced."""

    turn_index: int
    traceparent: str = ""


@dataclass(frozen=True)
class Text:
    """A piece of the reply's text; the pieces joined are the text.

    It begins to be spoken `audio_sample` samples after the start of the reply's sound.
    """

    turn_index: int
    text: str
    audio_sample: int


@dataclass(frozen=True)
class TurnPart:
    """A part of the time from the end of the user turn to the reply's first sound; the proto has the names."""

    name: str
    seconds: float


@dataclass(frozen=True)
class Timings:
    """Where a reply's time went as the mesh saw it, in seconds; a part that did not happen is 0.

    `parts` are what `first_audio_seconds` is made of, in the order in which they happened: each begins where the one
    before it ends, and they add up to it. Empty for a reply without sound, and of a mesh that does not tell.
    """

    queue_seconds: float
    first_step_seconds: float
    first_frame_seconds: float
    first_codec_audio_seconds: float
    first_audio_seconds: float
    total_seconds: float
    parts: tuple[TurnPart, ...] = ()


@dataclass(frozen=True, eq=False)
class Audio:
    """A piece of the reply's sound; the pieces joined are the sound.

    `frame_index` counts frames from the start of the reply; `data` is PCM in the session's encoding. `timings` come
    with the first piece, and say where the time until it left went; None later, and of a mesh that does not tell.
    """

    turn_index: int
    frame_index: int
    frame_count: int
    data: bytes = field(repr=False)
    encoding: Encoding
    sample_rate_hz: int
    timings: Timings | None = None

    @property
    def samples(self) -> Samples:
        """Mono float32 samples, within -1 ..= 1 when the encoding is 16 bits."""
        return self.encoding.decode(self.data)


@dataclass(frozen=True)
class PromptSize:
    """How long a reply's prompt was, in positions of the reasoner: instructions, history and user turn.

    `audio_position_count` are those of sound, `cached_position_count` those that the reasoner had of an earlier reply.
    """

    position_count: int
    audio_position_count: int
    cached_position_count: int


@dataclass(frozen=True)
class ReplyEnded:
    """The reply is complete; `text` is the whole text, what was spoken of a reply that was cut.

    `failure` is why a reply FAILED, with code UNAVAILABLE where another try may well go better; the session goes on.
    `prompt` is None where it ended before its first step. `recovery_count` is how often a stage was lost while the
    reply was made, and another replica went on.
    """

    turn_index: int
    reason: FinishReason
    text: str
    frame_count: int
    step_count: int
    timings: Timings
    failure: MeshError | None = None
    prompt: PromptSize | None = None
    recovery_count: int = 0


@dataclass(frozen=True)
class SpeechStarted:
    """The mesh hears that the user begins to speak; only with ServerVad, which by default stops the reply.

    `audio_sample` is where, padding included, in samples of the session's input from its start.
    """

    turn_index: int
    audio_sample: int


@dataclass(frozen=True)
class SpeechStopped:
    """The mesh hears that the user has stopped to speak, and the turn is over; only with ServerVad.

    `audio_sample` is where, in samples of the session's input from its start.
    """

    turn_index: int
    audio_sample: int


Event: TypeAlias = ReplyStarted | Text | Audio | ReplyEnded | SpeechStarted | SpeechStopped


def text_pieces(
    message: orchestrator_pb2.ReplyText,
) -> Sequence[orchestrator_pb2.ReplyText | orchestrator_pb2.ReplyTextPiece]:
    """The pieces that a message has: itself, where it is one."""
    return message.pieces or (message,)


def read_events(message: orchestrator_pb2.ConverseResponse, encoding: Encoding, sample_rate_hz: int) -> Iterator[Event]:
    """The events of a server message; none of a kind that this client does not know yet."""
    match message.WhichOneof("payload"):
        case "reply_started":
            yield ReplyStarted(message.reply_started.turn_index, message.reply_started.traceparent)
        case "text":
            for piece in text_pieces(message.text):
                yield Text(message.text.turn_index, piece.text, piece.audio_sample)
        case "audio":
            audio = message.audio
            yield Audio(
                audio.turn_index,
                audio.frame_index,
                audio.frame_count,
                audio.data,
                encoding,
                sample_rate_hz,
                timings=_timings(audio.timings) if audio.HasField("timings") else None,
            )
        case "reply_ended":
            ended = message.reply_ended
            yield ReplyEnded(
                turn_index=ended.turn_index,
                reason=FINISH_REASONS.get(ended.reason, FinishReason.UNKNOWN),
                text=ended.text,
                frame_count=ended.frame_count,
                step_count=ended.step_count,
                timings=_timings(ended.timings),
                failure=_failure(ended.failure) if ended.HasField("failure") else None,
                prompt=_prompt_size(ended.prompt) if ended.HasField("prompt") else None,
                recovery_count=ended.recovery_count,
            )
        case "speech_started":
            yield SpeechStarted(message.speech_started.turn_index, message.speech_started.audio_sample)
        case "speech_stopped":
            yield SpeechStopped(message.speech_stopped.turn_index, message.speech_stopped.audio_sample)


def _timings(spent: orchestrator_pb2.ReplyTimings) -> Timings:
    return Timings(
        queue_seconds=spent.queue_seconds,
        first_step_seconds=spent.first_step_seconds,
        first_frame_seconds=spent.first_frame_seconds,
        first_codec_audio_seconds=spent.first_codec_audio_seconds,
        first_audio_seconds=spent.first_audio_seconds,
        total_seconds=spent.total_seconds,
        parts=tuple(TurnPart(part.name, part.seconds) for part in spent.parts),
    )


def _prompt_size(prompt: types_pb2.PromptSize) -> PromptSize:
    return PromptSize(prompt.position_count, prompt.audio_position_count, prompt.cached_position_count)


def _failure(failure: orchestrator_pb2.ReplyFailure) -> MeshError:
    code = grpc.StatusCode.UNAVAILABLE if failure.may_retry else grpc.StatusCode.INTERNAL
    return MeshError(code, failure.reason, failure.message)
