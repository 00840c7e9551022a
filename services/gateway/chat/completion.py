"""The answer to a request, in one piece and in chunks, as OpenAI's clients read it."""

import base64
import secrets
import time
from dataclasses import dataclass, field
from typing import Literal, Self

from pydantic import BaseModel

from client.events import FinishReason, PromptSize, ReplyEnded
from services.gateway.chat.audio_id import NEVER, new_audio_id
from services.gateway.chat.request import ChatRequest
from services.gateway.chat.sound_file import sound_file

Ending = Literal["stop", "length"]


class PromptTokens(BaseModel):
    """What the prompt is made of, in positions of the reasoner; cached ones were there from an earlier reply."""

    cached_tokens: int
    text_tokens: int
    audio_tokens: int


class CompletionTokens(BaseModel):
    """What the reply is made of: tokens of its text, its last one included, and frames of 80 ms of its sound."""

    text_tokens: int
    audio_tokens: int
    reasoning_tokens: int = 0


class Usage(BaseModel):
    """What was read and made."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptTokens
    completion_tokens_details: CompletionTokens

    @classmethod
    def of(cls, ended: ReplyEnded) -> Self:
        """What a reply took."""
        prompt = ended.prompt or PromptSize(0, 0, 0)  # without a step nothing was read
        made = ended.step_count + ended.frame_count
        return cls(
            prompt_tokens=prompt.position_count,
            completion_tokens=made,
            total_tokens=prompt.position_count + made,
            prompt_tokens_details=PromptTokens(
                cached_tokens=prompt.cached_position_count,
                text_tokens=prompt.position_count - prompt.audio_position_count,
                audio_tokens=prompt.audio_position_count,
            ),
            completion_tokens_details=CompletionTokens(
                text_tokens=ended.step_count, audio_tokens=ended.frame_count, reasoning_tokens=0
            ),
        )


class ReplyAudio(BaseModel):
    """The reply's sound, and its text."""

    id: str
    data: str
    transcript: str
    expires_at: int


class ReplyMessage(BaseModel):
    """The reply: its text as `content`, or with the sound as `audio.transcript`."""

    role: Literal["assistant"] = "assistant"
    content: str | None
    refusal: None = None
    audio: ReplyAudio | None = None


class Choice(BaseModel):
    """The one reply."""

    index: Literal[0] = 0
    message: ReplyMessage
    finish_reason: Ending
    logprobs: None = None


class ChatCompletion(BaseModel):
    """A reply in one piece. `audio` is a WAV in base64, the field of the Chroma server."""

    id: str
    object: Literal["chat.completion"] = "chat.completion"
    created: int
    model: str
    choices: list[Choice]
    usage: Usage
    audio: str | None = None


class AudioDelta(BaseModel):
    """More of the reply's sound or transcript; last, once, its id."""

    id: str | None = None
    transcript: str | None = None
    data: str | None = None
    expires_at: int | None = None


class Delta(BaseModel):
    """What is new."""

    role: Literal["assistant"] | None = None
    content: str | None = None
    audio: AudioDelta | None = None


class ChunkChoice(BaseModel):
    """What is new of the one reply."""

    index: Literal[0] = 0
    delta: Delta
    finish_reason: Ending | None = None
    logprobs: None = None


class ChatCompletionChunk(BaseModel):
    """A piece of a reply that is streamed."""

    id: str
    object: Literal["chat.completion.chunk"] = "chat.completion.chunk"
    created: int
    model: str
    choices: list[ChunkChoice]
    usage: Usage | None = None


@dataclass(frozen=True)
class CompletionName:
    """What all pieces of an answer have in common."""

    model: str
    id: str = field(default_factory=lambda: f"chatcmpl-{secrets.token_hex(16)}")
    created: int = field(default_factory=lambda: int(time.time()))


def ending_of(ended: ReplyEnded) -> Ending:
    """Why the reply ended, as OpenAI has it."""
    return "length" if ended.reason is FinishReason.LENGTH else "stop"


def completion(name: CompletionName, asked: ChatRequest, ended: ReplyEnded, pcm: bytes) -> ChatCompletion:
    """The whole answer, of a reply's sound as 16-bit integers at 24,000 Hz. It blocks while the sound is coded."""
    if asked.has_sound:
        sound = sound_file(pcm, asked.sound_format)
        audio = ReplyAudio(id=new_audio_id(ended.text), data=as_base64(sound), transcript=ended.text, expires_at=NEVER)
        message = ReplyMessage(content=None, audio=audio)
    else:
        message = ReplyMessage(content=ended.text)
    return ChatCompletion(
        id=name.id,
        created=name.created,
        model=name.model,
        choices=[Choice(message=message, finish_reason=ending_of(ended))],
        usage=Usage.of(ended),
        audio=as_base64(sound_file(pcm, "wav")) if asked.has_wav else None,
    )


def as_base64(data: bytes) -> str:
    """Bytes in JSON."""
    return base64.b64encode(data).decode("ascii")
