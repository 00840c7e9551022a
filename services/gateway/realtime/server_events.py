"""What a client is told."""

import json
from dataclasses import dataclass, fields
from typing import Any, ClassVar, TypeAlias

from services.gateway.realtime.ids import new_id

Body: TypeAlias = dict[str, Any]
"""An object of the protocol as JSON has it."""


@dataclass(frozen=True)
class ServerEvent:
    """Something that a client is told."""

    type: ClassVar[str]

    def message(self) -> str:
        """The message."""
        body = {field.name: getattr(self, field.name) for field in fields(self)}
        return json.dumps({"type": self.type, "event_id": new_id("event"), **body}, separators=(",", ":"))


@dataclass(frozen=True)
class ErrorTold(ServerEvent):
    """Something went wrong; the session goes on."""

    type = "error"
    error: Body


@dataclass(frozen=True)
class SessionCreated(ServerEvent):
    """The session's settings, at its beginning."""

    type = "session.created"
    session: Body


@dataclass(frozen=True)
class SessionUpdated(ServerEvent):
    """The session's settings, after a change."""

    type = "session.updated"
    session: Body


@dataclass(frozen=True)
class SpeechStartedTold(ServerEvent):
    """The user begins to speak."""

    type = "input_audio_buffer.speech_started"
    audio_start_ms: int
    item_id: str


@dataclass(frozen=True)
class SpeechStoppedTold(ServerEvent):
    """The user has stopped to speak."""

    type = "input_audio_buffer.speech_stopped"
    audio_end_ms: int
    item_id: str


@dataclass(frozen=True)
class BufferCommitted(ServerEvent):
    """What was said becomes an item."""

    type = "input_audio_buffer.committed"
    previous_item_id: str | None
    item_id: str


@dataclass(frozen=True)
class BufferCleared(ServerEvent):
    """What was said is forgotten."""

    type = "input_audio_buffer.cleared"


@dataclass(frozen=True)
class ItemAdded(ServerEvent):
    """An item is in the conversation."""

    type = "conversation.item.added"
    previous_item_id: str | None
    item: Body


@dataclass(frozen=True)
class ItemDone(ServerEvent):
    """An item is complete."""

    type = "conversation.item.done"
    previous_item_id: str | None
    item: Body


@dataclass(frozen=True)
class ItemRetrieved(ServerEvent):
    """An item that was asked for."""

    type = "conversation.item.retrieved"
    item: Body


@dataclass(frozen=True)
class ItemTruncated(ServerEvent):
    """An item ends where its listener stopped."""

    type = "conversation.item.truncated"
    item_id: str
    content_index: int
    audio_end_ms: int


@dataclass(frozen=True)
class ItemDeleted(ServerEvent):
    """An item is gone."""

    type = "conversation.item.deleted"
    item_id: str


@dataclass(frozen=True)
class ResponseCreated(ServerEvent):
    """A reply begins."""

    type = "response.created"
    response: Body


@dataclass(frozen=True)
class ResponseDone(ServerEvent):
    """A reply is over."""

    type = "response.done"
    response: Body


@dataclass(frozen=True)
class RateLimitsUpdated(ServerEvent):
    """What may still be asked for."""

    type = "rate_limits.updated"
    rate_limits: list[Body]


@dataclass(frozen=True)
class OutputItemAdded(ServerEvent):
    """The reply's item begins."""

    type = "response.output_item.added"
    response_id: str
    output_index: int
    item: Body


@dataclass(frozen=True)
class OutputItemDone(ServerEvent):
    """The reply's item is complete."""

    type = "response.output_item.done"
    response_id: str
    output_index: int
    item: Body


@dataclass(frozen=True)
class PartEvent(ServerEvent):
    """Something about the one part of the reply's item."""

    response_id: str
    item_id: str
    output_index: int
    content_index: int


@dataclass(frozen=True)
class ContentPartAdded(PartEvent):
    """The part begins."""

    type = "response.content_part.added"
    part: Body


@dataclass(frozen=True)
class ContentPartDone(PartEvent):
    """The part is complete."""

    type = "response.content_part.done"
    part: Body


@dataclass(frozen=True)
class TranscriptDelta(PartEvent):
    """A piece of what is said; its sound follows. `chroma` is an extension: where in the sound it begins."""

    type = "response.output_audio_transcript.delta"
    delta: str
    chroma: Body


@dataclass(frozen=True)
class TranscriptDone(PartEvent):
    """All that was said."""

    type = "response.output_audio_transcript.done"
    transcript: str


@dataclass(frozen=True)
class AudioDelta(PartEvent):
    """A piece of the sound, in base64."""

    type = "response.output_audio.delta"
    delta: str


@dataclass(frozen=True)
class FirstAudioDelta(AudioDelta):
    """The first of them. `chroma` is an extension: where the time until then went."""

    chroma: Body


@dataclass(frozen=True)
class AudioDone(PartEvent):
    """No sound follows."""

    type = "response.output_audio.done"


@dataclass(frozen=True)
class TextDelta(PartEvent):
    """A piece of a written reply."""

    type = "response.output_text.delta"
    delta: str


@dataclass(frozen=True)
class TextDone(PartEvent):
    """All of a written reply."""

    type = "response.output_text.done"
    text: str
