"""What a session opens with, checked before anything is done for it."""

import math
from collections.abc import Iterator

from chroma_mesh.orchestrator.v1 import orchestrator_pb2
from chroma_mesh.types.v1 import types_pb2

from services.orchestrator import user_turn
from services.orchestrator.stages import CodecFacts
from services.orchestrator.turn import ReplySetup
from services.orchestrator.voice_store import VoiceExample
from services.orchestrator.voices import Voices
from services.runtime.audio import check_duration, check_format, decode_pcm
from services.runtime.errors import InvalidArgument

DEFAULT_MAX_FRAME_COUNT = 1000
MAXIMUM_TEMPERATURE = 2.0


async def reply_setup(opening: orchestrator_pb2.ConverseOpen, *, facts: CodecFacts, voices: Voices) -> ReplySetup:
    """What all replies of the session have in common; raises InvalidArgument, and NotFound for an unknown voice."""
    input_format = _format(opening, "input_format", user_turn.SAMPLE_RATE_HZ)
    output_format = _format(opening, "output_format", facts.sample_rate_hz)
    _check_sampling(opening.sampling, facts)
    for name in ("max_frame_count", "max_step_count"):
        if opening.HasField(name) and getattr(opening, name) < 1:
            raise InvalidArgument(f"{name} must be 1 or more, got 0", reason="OUT_OF_RANGE", field=f"open.{name}")
    return ReplySetup(
        voice_prompt=await _voice_prompt(opening, voices),
        input_format=input_format,
        output_format=output_format,
        sampling=opening.sampling,
        max_frame_count=opening.max_frame_count if opening.HasField("max_frame_count") else DEFAULT_MAX_FRAME_COUNT,
        max_step_count=opening.max_step_count if opening.HasField("max_step_count") else None,
    )


def first_messages(opening: orchestrator_pb2.ConverseOpen, *, default_instructions: str) -> Iterator[types_pb2.Message]:
    """The messages that the conversation starts with: instructions as the system message, then the given history."""
    instructions = opening.instructions if opening.HasField("instructions") else default_instructions
    if instructions:
        yield types_pb2.Message(role=types_pb2.ROLE_SYSTEM, parts=[types_pb2.ContentPart(text=instructions)])
    for index, message in enumerate(opening.history):
        _check_message(message, f"open.history[{index}]")
        yield message


def voice_example(example: orchestrator_pb2.VoiceExample) -> VoiceExample:
    """The example as voices keep it."""
    return VoiceExample(transcript=example.transcript, audio=example.audio)


async def _voice_prompt(opening: orchestrator_pb2.ConverseOpen, voices: Voices) -> types_pb2.VoicePrompt:
    match opening.WhichOneof("voice"):
        case "voice_example":
            return await voices.prompt(voice_example(opening.voice_example), field="open.voice_example")
        case "voice_name":
            example = await voices.example(opening.voice_name, field="open.voice_name")
        case _:
            example = await voices.example()
    return await voices.prompt(example)


def _format(opening: orchestrator_pb2.ConverseOpen, name: str, sample_rate_hz: int) -> types_pb2.AudioFormat:
    if not opening.HasField(name):
        return types_pb2.AudioFormat(encoding=types_pb2.AUDIO_ENCODING_PCM_S16LE, sample_rate_hz=sample_rate_hz)
    audio_format: types_pb2.AudioFormat = getattr(opening, name)
    check_format(audio_format, sample_rate_hz=sample_rate_hz, field=f"open.{name}")
    return audio_format


def _check_sampling(sampling: types_pb2.Sampling, facts: CodecFacts) -> None:
    temperature, top_k = sampling.temperature, sampling.top_k
    if not (math.isfinite(temperature) and 0 <= temperature <= MAXIMUM_TEMPERATURE):
        raise InvalidArgument(
            f"temperature must be 0 to {MAXIMUM_TEMPERATURE:g}, got {temperature:g}",
            reason="OUT_OF_RANGE",
            field="open.sampling.temperature",
        )
    if top_k > facts.codebook_size:
        raise InvalidArgument(
            f"top_k must be 0 to {facts.codebook_size}, got {top_k}",
            reason="OUT_OF_RANGE",
            field="open.sampling.top_k",
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
            encoding = check_format(
                part.audio.format, sample_rate_hz=user_turn.SAMPLE_RATE_HZ, field=f"{field}.audio.format"
            )
            check_duration(
                len(decode_pcm(part.audio.data, encoding, field=f"{field}.audio.data")),
                sample_rate_hz=user_turn.SAMPLE_RATE_HZ,
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
