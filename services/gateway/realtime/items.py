"""One message of the conversation, as the protocol and as the mesh have it."""

import base64
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

import numpy as np

from client.message import Message, Role
from client.pcm import Samples
from services.gateway.realtime.audio_formats import AudioFormat
from services.orchestrator.sound_formats import HeardSound

Status: TypeAlias = Literal["completed", "incomplete", "in_progress"]

MINIMUM_SOUND_SECONDS = 0.02
"""The model has nothing to hear in less."""


@dataclass(frozen=True)
class Typed:
    """Something written."""

    text: str


@dataclass
class Said:
    """Something the user said; `data` is empty when it is too long ago to be kept."""

    data: bytes
    audio_format: AudioFormat

    def samples(self) -> Samples:
        """The sound as the model hears it: at 16,000 Hz."""
        heard = HeardSound(self.audio_format.sound_format.wire())
        return np.concatenate((heard.hear(self.data), heard.end()))


@dataclass
class Spoken:
    """What the model said: its text, and with which sample of its sound each piece begins."""

    audio_format: AudioFormat
    samples_per_frame: int
    pieces: list[tuple[str, int]] = field(default_factory=list)
    sample_count: int = 0
    is_whole: bool = False
    played_sample_count: int | None = None
    """How much of it the client says that it has played; None: it has said nothing."""
    remembered: str | None = None
    """What the mesh remembers of it, once it has ended; None before."""

    @property
    def text(self) -> str:
        """All that was said."""
        return "".join(text for text, _ in self.pieces)

    def heard(self) -> str:
        """What counts as heard: pieces that had begun to be spoken in frames that were played to their end."""
        played = self.played_sample_count
        if played is None:
            return self.text if self.remembered is None else self.remembered
        return heard_text(
            self.pieces,
            samples_per_frame=self.samples_per_frame,
            played_sample_count=played,
            sent_sample_count=self.sample_count,
            is_whole=self.is_whole,
        )


def heard_text(
    pieces: list[tuple[str, int]],
    *,
    samples_per_frame: int,
    played_sample_count: int,
    sent_sample_count: int,
    is_whole: bool,
) -> str:
    """What was heard of a reply, by the rule that the mesh itself remembers by."""
    played, sent = min(played_sample_count, sent_sample_count), sent_sample_count
    if is_whole and played >= sent:
        return "".join(text for text, _ in pieces)
    frame_count = -(-played // samples_per_frame) if played >= sent else played // samples_per_frame
    return "".join(text for text, begins_at in pieces if begins_at < frame_count * samples_per_frame)


Part: TypeAlias = Typed | Said | Spoken


@dataclass
class Item:
    """A message. `is_answered`: of the user's, whether a reply to it was given, or begun."""

    id: str
    role: Role
    parts: list[Part]
    status: Status = "completed"
    is_answered: bool = False
    prompted_by: str = ""
    """Of a reply to nothing that the user said: what the model was given in place of it."""

    @property
    def sound_bytes(self) -> int:
        """Bytes of sound that it keeps."""
        return sum(len(part.data) for part in self.parts if isinstance(part, Said))

    @property
    def sound_seconds(self) -> float:
        """Length of the sound that it keeps."""
        said = (part for part in self.parts if isinstance(part, Said))
        return sum(len(part.data) / part.audio_format.sample_bytes / part.audio_format.rate_hz for part in said)

    @property
    def typed_text(self) -> str:
        """What is written in it."""
        return "".join(part.text for part in self.parts if isinstance(part, Typed))

    def forget_sound(self) -> None:
        """Lets go of what it keeps of sound."""
        for part in self.parts:
            if isinstance(part, Said):
                part.data = b""

    def body(self, *, with_sound: bool = False) -> dict[str, Any]:
        """The item as the protocol says it."""
        return {
            "id": self.id,
            "object": "realtime.item",
            "type": "message",
            "status": self.status,
            "role": self.role.value,
            "content": [self._content(part, with_sound) for part in self.parts],
        }

    def messages(self) -> list[Message]:
        """The item as the mesh remembers it; nothing of what is left of it."""
        parts: list[str | Samples] = []
        for part in self.parts:
            match part:
                case Typed(text) if text:
                    parts.append(text)
                case Said(data) if data:
                    parts.append(part.samples())
                case Spoken() if heard := part.heard():
                    parts.append(heard)
        prompt = [Message(Role.USER, [self.prompted_by])] if self.prompted_by else []
        return prompt + ([Message(self.role, parts)] if parts else [])

    def _content(self, part: Part, with_sound: bool) -> dict[str, Any]:
        match part:
            case Typed(text):
                return {"type": "output_text" if self.role is Role.ASSISTANT else "input_text", "text": text}
            case Said(data):
                content: dict[str, Any] = {"type": "input_audio", "transcript": None}
                return {**content, "audio": base64.b64encode(data).decode()} if with_sound else content
            case Spoken():
                return {"type": "output_audio", "transcript": part.heard()}
