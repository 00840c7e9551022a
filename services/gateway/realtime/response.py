"""One reply of the mesh as a response of the protocol."""

import base64
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, TypeAlias

from client.events import Audio, FinishReason, PromptSize, ReplyEnded, Text, Timings
from client.message import Role
from services.gateway.errors import Refusal, mesh_refusal
from services.gateway.realtime.audio_formats import AudioFormat
from services.gateway.realtime.ids import new_id
from services.gateway.realtime.items import Item, Spoken, Typed
from services.gateway.realtime.server_events import (
    AudioDelta,
    AudioDone,
    Body,
    ContentPartAdded,
    ContentPartDone,
    FirstAudioDelta,
    ItemAdded,
    ItemDone,
    OutputItemAdded,
    OutputItemDone,
    RateLimitsUpdated,
    ResponseCreated,
    ResponseDone,
    ServerEvent,
    TextDelta,
    TextDone,
    TranscriptDelta,
    TranscriptDone,
)
from services.gateway.realtime.session_config import ReplyConfig

Outcome: TypeAlias = Literal["in_progress", "completed", "cancelled", "incomplete", "failed"]
CancelReason: TypeAlias = Literal["turn_detected", "client_cancelled"]


@dataclass(frozen=True)
class Ending:
    """How a response ended, as the protocol says it."""

    outcome: Outcome
    details: Body | None


class Response:
    """A response that is given; `turn_index` is None until the mesh has begun the reply.

    Its item is in the conversation from the first text or sound on: one that ends before has none. Each method gives
    what the client is told, in order.
    """

    def __init__(
        self,
        config: ReplyConfig,
        audio_format: AudioFormat,
        *,
        conversation_id: str,
        metadata: dict[str, str] | None = None,
        prompted_by: str = "",
        follows: str | None = None,
    ) -> None:
        """`follows` is the item that its own comes after, `prompted_by` that item's."""
        self.id = new_id("resp")
        self.turn_index: int | None = None
        self.follows = follows
        self.cancel_reason: CancelReason | None = None
        self.item: Item | None = None
        self._config = config
        self._audio_format = audio_format
        self._conversation_id = conversation_id
        self._metadata = metadata
        self._prompted_by = prompted_by
        self._written = ""

    @property
    def is_spoken(self) -> bool:
        """Whether its sound is told, and not its text alone."""
        return self._config.modality == "audio"

    def created(self) -> Iterator[ServerEvent]:
        """It was asked for."""
        yield ResponseCreated(self._body("in_progress", None, None))
        yield RateLimitsUpdated([])

    def new_item(self, samples_per_frame: int) -> Item:
        """The item of what is about to be said; it is to be put into the conversation."""
        part = Spoken(self._audio_format, samples_per_frame) if self.is_spoken else Typed("")
        self.item = Item(
            new_id("item"),
            Role.ASSISTANT,
            [part],
            status="in_progress",
            is_answered=True,
            prompted_by=self._prompted_by,
        )
        return self.item

    def begun(self, previous_item_id: str | None) -> Iterator[ServerEvent]:
        """Its item is in the conversation."""
        assert self.item is not None, "an item comes first"
        body = {**self.item.body(), "content": []}
        yield OutputItemAdded(self.id, 0, body)
        yield ItemAdded(previous_item_id, body)
        part = {"type": "audio", "transcript": ""} if self.is_spoken else {"type": "text", "text": ""}
        yield ContentPartAdded(self.id, self.item.id, 0, 0, part)

    def text(self, event: Text) -> Iterator[ServerEvent]:
        """A piece of what is said."""
        assert self.item is not None, "an item comes first"
        self._written += event.text
        part = self.item.parts[0]
        if isinstance(part, Spoken):
            part.pieces.append((event.text, event.audio_sample))
            yield TranscriptDelta(self.id, self.item.id, 0, 0, event.text, {"audio_sample": event.audio_sample})
        else:
            self.item.parts[0] = Typed(self._written)
            yield TextDelta(self.id, self.item.id, 0, 0, event.text)

    def audio(self, event: Audio) -> Iterator[ServerEvent]:
        """A piece of its sound."""
        assert self.item is not None, "an item comes first"
        part = self.item.parts[0]
        if isinstance(part, Spoken):
            part.sample_count += len(event.data) // self._audio_format.sample_bytes
            delta = base64.b64encode(event.data).decode()
            if event.timings is None:
                yield AudioDelta(self.id, self.item.id, 0, 0, delta)
            else:
                yield FirstAudioDelta(self.id, self.item.id, 0, 0, delta, {"timings": _timings(event.timings)})

    def ended(self, event: ReplyEnded, previous_item_id: str | None) -> Iterator[ServerEvent]:
        """The mesh says that it is over."""
        if self.item is not None and isinstance(part := self.item.parts[0], Spoken):
            part.is_whole = event.reason in (FinishReason.STOP, FinishReason.LENGTH)
            part.remembered = event.text
        extension = {
            "timings": _timings(event.timings),
            "frame_count": event.frame_count,
            "step_count": event.step_count,
            "recovery_count": event.recovery_count,
        }
        yield from self._done(self._ending(event), previous_item_id, usage(event), extension)

    def lost(self, refusal: Refusal, previous_item_id: str | None) -> Iterator[ServerEvent]:
        """The mesh is gone before it was over."""
        if self.item is not None and isinstance(part := self.item.parts[0], Spoken):
            part.remembered = part.text
        yield from self._done(_failed(refusal), previous_item_id, None, None)

    def _ending(self, event: ReplyEnded) -> Ending:
        match event.reason:
            case FinishReason.STOP:
                return Ending("completed", None)
            case FinishReason.LENGTH:
                return Ending("incomplete", {"type": "incomplete", "reason": "max_output_tokens"})
            case FinishReason.CANCELLED:
                return Ending("cancelled", {"type": "cancelled", "reason": self.cancel_reason or "client_cancelled"})
            case _:
                failure = event.failure
                return _failed(
                    Refusal(500, "server_error", "the reply failed") if failure is None else mesh_refusal(failure)
                )

    def _done(
        self, ending: Ending, previous_item_id: str | None, usage: Body | None, extension: Body | None
    ) -> Iterator[ServerEvent]:
        if self.item is not None:
            item_id, written = self.item.id, self._written
            self.item.status = "completed" if ending.outcome == "completed" else "incomplete"
            if self.is_spoken:
                yield AudioDone(self.id, item_id, 0, 0)
                yield TranscriptDone(self.id, item_id, 0, 0, written)
                yield ContentPartDone(self.id, item_id, 0, 0, {"type": "audio", "transcript": written})
            else:
                yield TextDone(self.id, item_id, 0, 0, written)
                yield ContentPartDone(self.id, item_id, 0, 0, {"type": "text", "text": written})
            yield ItemDone(previous_item_id, self._told_item(self.item))
            yield OutputItemDone(self.id, 0, self._told_item(self.item))
        body = self._body(ending.outcome, ending.details, usage)
        yield ResponseDone(body if extension is None else {**body, "chroma": extension})

    def _told_item(self, item: Item) -> Body:
        """The item with all that was told of it: how much of that was heard is another matter."""
        body = item.body()
        key = "transcript" if self.is_spoken else "text"
        return {**body, "content": [{**body["content"][0], key: self._written}]}

    def _body(self, outcome: Outcome, details: Body | None, usage: Body | None) -> Body:
        is_over = outcome != "in_progress"
        config = self._config
        return {
            "id": self.id,
            "object": "realtime.response",
            "status": outcome,
            "status_details": details,
            "output": [self._told_item(self.item)] if is_over and self.item is not None else [],
            "conversation_id": self._conversation_id,
            "output_modalities": [config.modality],
            "max_output_tokens": config.max_output_tokens or "inf",
            "audio": {"output": {"format": self._audio_format.body(), "voice": config.voice}},
            "usage": usage,
            "metadata": self._metadata,
        }


def usage(event: ReplyEnded) -> Body:
    """What a reply took: positions of the prompt, tokens of text and frames of sound."""
    prompt = event.prompt or PromptSize(0, 0, 0)
    text, audio = event.step_count, event.frame_count
    positions, heard = prompt.position_count, prompt.audio_position_count
    return {
        "total_tokens": positions + text + audio,
        "input_tokens": positions,
        "output_tokens": text + audio,
        "input_token_details": {
            "text_tokens": positions - heard,
            "audio_tokens": heard,
            "image_tokens": 0,
            "cached_tokens": prompt.cached_position_count,
        },
        "output_token_details": {"text_tokens": text, "audio_tokens": audio},
    }


def _timings(timings: Timings) -> Body:
    # Not asdict, which copies deeply: the first sound waits for this.
    return {**vars(timings), "parts": [vars(part) for part in timings.parts]}


def _failed(refusal: Refusal) -> Ending:
    error = {"type": refusal.type, "code": refusal.code, "message": refusal.message}
    return Ending("failed", {"type": "failed", "error": error})
