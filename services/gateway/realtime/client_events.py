"""What a client may send, and what is refused of it before anything is done."""

from typing import Any, ClassVar, Literal

import pydantic_core
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from services.gateway.errors import Refusal, invalid

TokenLimit = int | Literal["inf"] | None


class Fields(BaseModel):
    """An object of the protocol; what it does not have is refused."""

    model_config = ConfigDict(extra="forbid")


class FormatFields(Fields):
    """A format of sound."""

    type: Literal["audio/pcm", "audio/pcmu", "audio/pcma"]
    rate: int | None = None


class TurnDetectionFields(Fields):
    """Who says when a user turn is over."""

    type: Literal["server_vad", "semantic_vad"]
    threshold: float | None = Field(default=None, ge=0, le=1)
    prefix_padding_ms: int | None = Field(default=None, ge=0, le=5000)
    silence_duration_ms: int | None = Field(default=None, ge=100, le=10_000)
    create_response: bool | None = None
    interrupt_response: bool | None = None
    eagerness: Literal["low", "medium", "high", "auto"] | None = None
    idle_timeout_ms: int | None = None


class InputFields(Fields):
    """How the user's sound comes."""

    format: FormatFields | None = None
    turn_detection: TurnDetectionFields | None = None
    noise_reduction: dict[str, Any] | None = None
    transcription: dict[str, Any] | None = None


class VoiceFields(Fields):
    """A voice by its name."""

    id: str


class OutputFields(Fields):
    """How replies sound."""

    format: FormatFields | None = None
    voice: str | VoiceFields | None = None
    speed: float | None = None


class AudioFields(Fields):
    """Sound both ways."""

    input: InputFields | None = None
    output: OutputFields | None = None


class ReplyFields(Fields):
    """What sessions and single responses have in common."""

    audio: AudioFields | None = None
    instructions: str | None = None
    output_modalities: list[Literal["text", "audio"]] | None = Field(default=None, min_length=1, max_length=2)
    max_output_tokens: TokenLimit = None
    temperature: float | None = Field(default=None, ge=0, le=2)
    tools: list[dict[str, Any]] | None = None
    tool_choice: str | dict[str, Any] | None = None
    parallel_tool_calls: bool | None = None
    prompt: dict[str, Any] | None = None
    reasoning: dict[str, Any] | None = None


class SessionFields(ReplyFields):
    """What a session can be told."""

    type: Literal["realtime"] = "realtime"
    id: str | None = None
    object: str | None = None
    model: str | None = None
    expires_at: int | None = None
    include: list[str] | None = None
    tracing: str | dict[str, Any] | None = None
    truncation: str | dict[str, Any] | None = None


class ResponseFields(ReplyFields):
    """What a single response can be told."""

    conversation: str | None = None
    input: list[dict[str, Any]] | None = None
    metadata: dict[str, str] | None = Field(default=None, max_length=16)


class ContentFields(Fields):
    """A part of a message."""

    type: str
    text: str | None = None
    audio: str | None = None
    transcript: str | None = None
    image_url: str | None = None
    detail: str | None = None


class ItemFields(BaseModel):
    """A message of the conversation; other kinds of items have other fields, and are refused by their type."""

    model_config = ConfigDict(extra="allow")

    type: str
    id: str | None = Field(default=None, min_length=1, max_length=64)
    object: str | None = None
    status: str | None = None
    role: Literal["user", "assistant", "system"] | None = None
    content: list[ContentFields] | None = None


class ClientEvent(Fields):
    """Something that a client sends."""

    name: ClassVar[str]
    type: str
    event_id: str | None = None


class SessionUpdate(ClientEvent):
    """Other settings."""

    name = "session.update"
    session: SessionFields


class BufferAppend(ClientEvent):
    """Something the user says."""

    name = "input_audio_buffer.append"
    audio: str


class BufferCommit(ClientEvent):
    """What was said is an item."""

    name = "input_audio_buffer.commit"


class BufferClear(ClientEvent):
    """What was said is forgotten."""

    name = "input_audio_buffer.clear"


class OutputBufferClear(ClientEvent):
    """For other transports than this."""

    name = "output_audio_buffer.clear"


class ItemCreate(ClientEvent):
    """A message is added to the conversation."""

    name = "conversation.item.create"
    previous_item_id: str | None = None
    item: ItemFields


class ItemTruncate(ClientEvent):
    """So much of a reply was heard."""

    name = "conversation.item.truncate"
    item_id: str
    content_index: int
    audio_end_ms: int


class ItemDelete(ClientEvent):
    """An item is removed."""

    name = "conversation.item.delete"
    item_id: str


class ItemRetrieve(ClientEvent):
    """An item is asked for."""

    name = "conversation.item.retrieve"
    item_id: str


class ResponseCreate(ClientEvent):
    """A reply is asked for."""

    name = "response.create"
    response: ResponseFields | None = None


class ResponseCancel(ClientEvent):
    """The reply that is given is to stop."""

    name = "response.cancel"
    response_id: str | None = None


CLIENT_EVENTS: dict[str, type[ClientEvent]] = {
    event.name: event
    for event in (
        SessionUpdate,
        BufferAppend,
        BufferCommit,
        BufferClear,
        OutputBufferClear,
        ItemCreate,
        ItemTruncate,
        ItemDelete,
        ItemRetrieve,
        ResponseCreate,
        ResponseCancel,
    )
}


class WrongEvent(Exception):
    """A message that is no event; `event_id` is the client's, where it could be read."""

    def __init__(self, refusal: Refusal, event_id: str | None) -> None:
        super().__init__(refusal.message)
        self.refusal = refusal
        self.event_id = event_id


def read_client_event(text: str) -> ClientEvent:
    """The event of a message; raises WrongEvent."""
    try:
        body = pydantic_core.from_json(text, allow_inf_nan=False)
    except ValueError as error:
        raise WrongEvent(invalid(f"a message must be JSON: {error}", code="invalid_json"), None) from None
    if not isinstance(body, dict):
        raise WrongEvent(invalid("a message must be a JSON object", code="invalid_type"), None)
    event_id = body.get("event_id")
    if not isinstance(event_id, str):
        event_id = None
    kind = body.get("type")
    if kind is None:
        refusal = invalid("an event must have a type", "type", "missing_required_parameter")
        raise WrongEvent(refusal, event_id)
    model = CLIENT_EVENTS.get(kind) if isinstance(kind, str) else None
    if model is None:
        shown = repr(kind)[:80]
        refusal = invalid(f"type must be one of {', '.join(CLIENT_EVENTS)}; got {shown}", "type", "invalid_value")
        raise WrongEvent(refusal, event_id)
    try:
        return model.model_validate(body)
    except ValidationError as error:
        raise WrongEvent(_refusal(error), event_id) from None


def _refusal(error: ValidationError) -> Refusal:
    first = error.errors(include_url=False, include_context=False)[0]
    param = ""
    for part in first["loc"]:
        if isinstance(part, int):
            param += f"[{part}]"
        elif part not in MEMBERS_OF_UNIONS:
            param += f".{part}" if param else part
    match first["type"]:
        case "missing":
            return invalid(f"{param} is required", param, "missing_required_parameter")
        case "extra_forbidden":
            return invalid(f"there is no {param}", param, "unknown_parameter")
        case kind:
            code = "invalid_type" if kind.endswith(("_type", "_parsing")) else "invalid_value"
            return invalid(f"{param}: {first['msg']}", param, code)


# What pydantic puts into the place of an error for each member of a union that was tried.
MEMBERS_OF_UNIONS = ("str", "int", "VoiceFields", "literal['inf']", "dict[str,any]")
