"""What a session opens with and what changes in it, checked before anything is done for it."""

import math
from dataclasses import dataclass
from typing import TypeAlias

from chroma_mesh.orchestrator.v1 import orchestrator_pb2
from chroma_mesh.types.v1 import types_pb2

from services.orchestrator import user_turn
from services.orchestrator.reply_setup import ReplyChanges, ReplySetup
from services.orchestrator.settings import OrchestratorSettings, check_ahead
from services.orchestrator.sound_formats import HEARD_RATE_HZ, check_session_format
from services.orchestrator.stages import CodecFacts
from services.orchestrator.turn_detection import VadSettings, vad_settings
from services.orchestrator.voice_store import VoiceExample
from services.orchestrator.voices import Voices
from services.runtime.audio import check_duration, check_format, decode_pcm
from services.runtime.errors import InvalidArgument

DEFAULT_MAX_FRAME_COUNT = 1000
# As long as the longest turn: a call to a stage, which begins with the turn, lasts both by default.
MAXIMUM_REPLY_SECONDS = 300.0
MAXIMUM_TEMPERATURE = 2.0

# Both say what a reply is given with, in fields of the same names.
ReplyFields: TypeAlias = orchestrator_pb2.ConverseOpen | orchestrator_pb2.ReplySettings


@dataclass(frozen=True)
class SessionSetup:
    """What a session opens with. `vad` is None when the client ends the turns; `setup` is that of the first reply;
    `joins_text`: pieces of text may come several in a message."""

    input_format: types_pb2.AudioFormat
    output_format: types_pb2.AudioFormat
    history: tuple[types_pb2.Message, ...]
    setup: ReplySetup
    ahead_seconds: float
    vad: VadSettings | None
    joins_text: bool


async def session_setup(
    opening: orchestrator_pb2.ConverseOpen, *, settings: OrchestratorSettings, facts: CodecFacts, voices: Voices
) -> SessionSetup:
    """The checked opening; raises InvalidArgument, and NotFound for an unknown voice."""
    for index, message in enumerate(opening.history):
        _check_message(message, f"open.history[{index}]")
    detection = opening.turn_detection
    input_format = _format(opening, "input_format", HEARD_RATE_HZ)
    output_format = _format(opening, "output_format", facts.sample_rate_hz)
    changes = await reply_changes(opening, field="open", facts=facts, voices=voices)
    default = ReplySetup(
        voice_prompt=changes.voice_prompt or await voices.prompt(await voices.example()),
        instructions=settings.instructions,
        sampling=types_pb2.Sampling(),
        max_frame_count=DEFAULT_MAX_FRAME_COUNT,
        max_step_count=None,
    )
    return SessionSetup(
        input_format=input_format,
        output_format=output_format,
        history=tuple(opening.history),
        setup=changes.over(default),
        ahead_seconds=_ahead_seconds(opening) if opening.HasField("ahead_seconds") else settings.ahead_seconds,
        vad=vad_settings(detection.server_vad) if detection.WhichOneof("kind") == "server_vad" else None,
        joins_text=opening.joins_text,
    )


async def reply_changes(fields: ReplyFields, *, field: str, facts: CodecFacts, voices: Voices) -> ReplyChanges:
    """What a client asks a reply to be given with; raises InvalidArgument, and NotFound for an unknown voice."""
    frame_limit = round(MAXIMUM_REPLY_SECONDS * facts.sample_rate_hz / facts.samples_per_frame)
    if fields.HasField("max_frame_count") and not 1 <= fields.max_frame_count <= frame_limit:
        raise InvalidArgument(
            f"max_frame_count must be 1 to {frame_limit}, got {fields.max_frame_count}",
            reason="OUT_OF_RANGE",
            field=f"{field}.max_frame_count",
        )
    if fields.HasField("max_step_count") and fields.max_step_count < 1:
        raise InvalidArgument(
            "max_step_count must be 1 or more, got 0", reason="OUT_OF_RANGE", field=f"{field}.max_step_count"
        )
    _check_sampling(fields.sampling, facts, f"{field}.sampling")
    return ReplyChanges(
        voice_prompt=await _voice_prompt(fields, voices, field),
        instructions=fields.instructions if fields.HasField("instructions") else None,
        sampling=fields.sampling if fields.HasField("sampling") else None,
        max_frame_count=fields.max_frame_count if fields.HasField("max_frame_count") else None,
        max_step_count=fields.max_step_count if fields.HasField("max_step_count") else None,
    )


def voice_example(example: orchestrator_pb2.VoiceExample) -> VoiceExample:
    """The example as voices keep it."""
    return VoiceExample(transcript=example.transcript, audio=example.audio)


async def _voice_prompt(fields: ReplyFields, voices: Voices, field: str) -> types_pb2.VoicePrompt | None:
    match fields.WhichOneof("voice"):
        case "voice_example":
            return await voices.prompt(voice_example(fields.voice_example), field=f"{field}.voice_example")
        case "voice_name":
            return await voices.prompt(await voices.example(fields.voice_name, field=f"{field}.voice_name"))
        case _:
            return None


def _format(opening: orchestrator_pb2.ConverseOpen, name: str, sample_rate_hz: int) -> types_pb2.AudioFormat:
    if not opening.HasField(name):
        return types_pb2.AudioFormat(encoding=types_pb2.AUDIO_ENCODING_PCM_S16LE, sample_rate_hz=sample_rate_hz)
    audio_format: types_pb2.AudioFormat = getattr(opening, name)
    check_session_format(audio_format, f"open.{name}")
    return audio_format


def _ahead_seconds(opening: orchestrator_pb2.ConverseOpen) -> float:
    # The wire has it in single precision, in which 0.1 may come as a little less.
    seconds = opening.ahead_seconds if math.isinf(opening.ahead_seconds) else round(opening.ahead_seconds, 6)
    try:
        return check_ahead(seconds)
    except ValueError as refusal:
        raise InvalidArgument(
            f"open.ahead_seconds: {refusal}", reason="OUT_OF_RANGE", field="open.ahead_seconds"
        ) from None


def _check_sampling(sampling: types_pb2.Sampling, facts: CodecFacts, field: str) -> None:
    temperature, top_k = sampling.temperature, sampling.top_k
    if not (math.isfinite(temperature) and 0 <= temperature <= MAXIMUM_TEMPERATURE):
        raise InvalidArgument(
            f"temperature must be 0 to {MAXIMUM_TEMPERATURE:g}, got {temperature:g}",
            reason="OUT_OF_RANGE",
            field=f"{field}.temperature",
        )
    if top_k > facts.codebook_size:
        raise InvalidArgument(
            f"top_k must be 0 to {facts.codebook_size}, got {top_k}",
            reason="OUT_OF_RANGE",
            field=f"{field}.top_k",
        )


def _check_message(message: types_pb2.Message, field: str) -> None:
    if message.role not in (types_pb2.ROLE_USER, types_pb2.ROLE_ASSISTANT):
        raise InvalidArgument(
            f"{field}.role must be USER or ASSISTANT, got {message.role}", reason="BAD_ROLE", field=f"{field}.role"
        )
    if not message.parts:
        raise InvalidArgument(
            f"{field}.parts must have at least one part, got none", reason="EMPTY_MESSAGE", field=f"{field}.parts"
        )
    for index, part in enumerate(message.parts):
        _check_part(part, message.role, f"{field}.parts[{index}]")


def _check_part(part: types_pb2.ContentPart, role: types_pb2.Role, field: str) -> None:
    match part.WhichOneof("content"):
        case "text" if part.text:
            return
        case "audio" if role == types_pb2.ROLE_USER:
            encoding = check_format(part.audio.format, sample_rate_hz=HEARD_RATE_HZ, field=f"{field}.audio.format")
            check_duration(
                len(decode_pcm(part.audio.data, encoding, field=f"{field}.audio.data")),
                sample_rate_hz=HEARD_RATE_HZ,
                minimum_seconds=user_turn.MINIMUM_SECONDS,
                maximum_seconds=user_turn.MAXIMUM_SECONDS,
                field=f"{field}.audio.data",
            )
        case kind:
            raise InvalidArgument(
                f"{field} must be text that is not empty, or audio in a user message, got {kind or 'nothing'}",
                reason="BAD_PART",
                field=field,
            )
