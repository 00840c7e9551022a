"""The messages of a request as the mesh takes them."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from client.audio_file import MAXIMUM_SECONDS
from client.message import Message, Role
from client.pcm import USER_RATE_HZ, VOICE_RATE_HZ, Encoding, Samples
from client.voice import VoiceExample
from services.gateway.chat import request
from services.gateway.chat.audio_id import transcript_of
from services.gateway.chat.request import ChatRequest
from services.gateway.errors import Refusal, invalid
from services.gateway.given_sound import read_base64_sound
from services.runtime.channel import MAX_MESSAGE_BYTES

VOICE_SECONDS = 30
TURN_TEXT_LIMIT_BYTES = 1024 * 1024
ENVELOPE_BYTES = 64 * 1024
"""What is left of a message to the mesh for all that is not text and sound."""

PART_ENVELOPE_BYTES = 32

OPENING_LIMIT_BYTES = MAX_MESSAGE_BYTES - ENVELOPE_BYTES
"""What is told of a conversation before the user turn goes in one message."""


@dataclass(frozen=True)
class Conversation:
    """Instructions (None: the mesh's own), what was said before, the user turn, and a voice that was brought along."""

    instructions: str | None
    history: Sequence[Message]
    turn: Sequence[str | Samples]
    voice_example: VoiceExample | None


class Room:
    """What may still be told before the user turn; sound that is beyond is not even read."""

    def __init__(self) -> None:
        self._left_bytes = OPENING_LIMIT_BYTES

    @property
    def seconds(self) -> float:
        """The longest sound that a message may still have."""
        return min(MAXIMUM_SECONDS, max(0, self._left_bytes) / USER_RATE_HZ / Encoding.S16.sample_bytes)

    def take(self, size_bytes: int) -> None:
        """So much is told; Refusal when it is too much."""
        self._left_bytes -= size_bytes + PART_ENVELOPE_BYTES
        if self._left_bytes < 0:
            raise too_long()


def too_long() -> Refusal:
    """A conversation with more than can be told."""
    seconds = OPENING_LIMIT_BYTES // (USER_RATE_HZ * Encoding.S16.sample_bytes)
    return invalid(
        f"messages: what was said before the last message must be at most {OPENING_LIMIT_BYTES} bytes of text and of "
        f"sound as 16 bits at {USER_RATE_HZ} Hz ({seconds} s)",
        "messages",
        "context_length_exceeded",
    )


def read_conversation(asked: ChatRequest) -> Conversation:
    """The conversation of a request. It blocks while sound is read; Refusal for what is no good."""
    said = [(index, it) for index, it in enumerate(asked.messages) if not isinstance(it, request.SystemMessage)]
    last_index, last = said[-1] if said else (0, None)
    if not isinstance(last, request.UserMessage):
        raise invalid("messages: the last one must be the user's", "messages")
    room = Room()
    example = _voice_example(asked)
    if example is not None:
        room.take(4 * len(example.samples) + len(example.transcript.encode()))
    instructions = _instructions(asked)
    room.take(len((instructions or "").encode()))
    history = [_message(index, message, room) for index, message in said[:-1]]
    turn = _parts(last.content, f"messages[{last_index}].content", MAXIMUM_SECONDS)
    if sum(len(part.encode()) for part in turn if isinstance(part, str)) > TURN_TEXT_LIMIT_BYTES:
        raise invalid(
            f"messages[{last_index}]: a message may have at most {TURN_TEXT_LIMIT_BYTES} bytes of text",
            "messages",
            "context_length_exceeded",
        )
    return Conversation(instructions, [message for message in history if message is not None], turn, example)


def _instructions(asked: ChatRequest) -> str | None:
    texts = [_text(message.content) for message in asked.messages if isinstance(message, request.SystemMessage)]
    return "\n\n".join(texts) if texts else None


def _text(content: str | Sequence[request.TextPart | request.RefusalPart]) -> str:
    if isinstance(content, str):
        return content
    return "\n".join(part.text if isinstance(part, request.TextPart) else part.refusal for part in content)


def _message(index: int, message: request.Message, room: Room) -> Message | None:
    where = f"messages[{index}]"
    if isinstance(message, request.UserMessage):
        parts = _parts(message.content, f"{where}.content", room.seconds, room)
        return Message(Role.USER, parts)
    assert isinstance(message, request.AssistantMessage), "instructions are not among what was said"
    text = _text(message.content or "")
    if not text and message.audio is not None:
        text = transcript_of(message.audio.id, f"{where}.audio.id")
    room.take(len(text.encode()))
    return Message(Role.ASSISTANT, [text]) if text else None  # a reply without a word is nothing to be told


def _parts(
    content: str | Sequence[request.TextPart | request.InputAudioPart | request.AudioPart],
    where: str,
    maximum_seconds: float,
    room: Room | None = None,
) -> list[str | Samples]:
    """The parts in order; sound side by side is one clip, texts side by side are lines."""
    parts: list[str | Samples] = []
    left_seconds = maximum_seconds
    for index, part in enumerate(
        [request.TextPart(type="text", text=content)] if isinstance(content, str) else content
    ):
        last = parts[-1] if parts else None
        if isinstance(part, request.TextPart):
            added: str | Samples = part.text
            if isinstance(last, str):
                parts[-1] = f"{last}\n{part.text}"
            else:
                parts.append(part.text)
        else:
            added = _sound(part, f"{where}[{index}]", left_seconds)
            left_seconds -= len(added) / USER_RATE_HZ
            if isinstance(last, np.ndarray):
                parts[-1] = np.concatenate([last, added])
            else:
                parts.append(added)
        if room is not None:
            room.take(len(added.encode()) if isinstance(added, str) else len(added) * Encoding.S16.sample_bytes)
    return parts


def _sound(part: request.InputAudioPart | request.AudioPart, where: str, maximum_seconds: float) -> Samples:
    if isinstance(part, request.InputAudioPart):
        data, param = part.input_audio.data, f"{where}.input_audio.data"
    else:
        data, param = part.audio, f"{where}.audio"
    return read_base64_sound(data, param, sample_rate_hz=USER_RATE_HZ, maximum_seconds=maximum_seconds)


def _voice_example(asked: ChatRequest) -> VoiceExample | None:
    if asked.prompt_text is None or asked.prompt_audio is None:
        return None
    samples = read_base64_sound(
        asked.prompt_audio, "prompt_audio", sample_rate_hz=VOICE_RATE_HZ, maximum_seconds=VOICE_SECONDS
    )
    return VoiceExample(asked.prompt_text, samples)
