"""What happens on one socket: the client's events and the mesh's, one at a time."""

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass, replace

import grpc
import structlog

from client.connection import Mesh
from client.errors import MeshError
from client.events import Audio, Event, ReplyEnded, ReplyStarted, SpeechStarted, SpeechStopped, Text
from client.message import Role
from client.session_settings import ReplySettings
from services.gateway.errors import Refusal, invalid, mesh_refusal
from services.gateway.realtime.client_events import (
    BufferAppend,
    BufferClear,
    BufferCommit,
    ClientEvent,
    ItemCreate,
    ItemDelete,
    ItemRetrieve,
    ItemTruncate,
    OutputBufferClear,
    ReplyFields,
    ResponseCancel,
    ResponseCreate,
    ResponseFields,
    SessionUpdate,
    WrongEvent,
    read_client_event,
)
from services.gateway.realtime.conversation import ITEM_LIMIT, Conversation
from services.gateway.realtime.ids import new_id
from services.gateway.realtime.input_buffer import InputBuffer
from services.gateway.realtime.items import Item, Said, Spoken
from services.gateway.realtime.line import Heard, Line
from services.gateway.realtime.mesh_copy import MeshCopy
from services.gateway.realtime.received_item import LONGEST_TURN_SECONDS, read_item, read_sound
from services.gateway.realtime.response import Response
from services.gateway.realtime.response_span import ResponseSpan
from services.gateway.realtime.server_events import (
    BufferCleared,
    BufferCommitted,
    ErrorTold,
    ItemAdded,
    ItemDeleted,
    ItemDone,
    ItemRetrieved,
    ItemTruncated,
    ServerEvent,
    SessionCreated,
    SessionUpdated,
    SpeechStartedTold,
    SpeechStoppedTold,
)
from services.gateway.realtime.session_config import (
    ReplyConfig,
    SessionConfig,
    check_response,
    voice_of,
)
from services.gateway.voice_names import VoiceNames
from services.runtime.tracing import SpanWriter

MINIMUM_COMMIT_MS = 100
UNCOMMITTED_SECONDS = 30
"""Sound that is left of what was not committed, when it has become more than a turn may have."""

TOO_LONG = ("TOO_LONG", "AUDIO_TOO_LONG")
"""Why the mesh ends a session whose turn it cannot hold."""

UNHEARD_SECONDS = 30
"""Sound that is kept while nobody is known to speak: the mesh may say later that somebody did."""

RETRY_SECONDS = 1.0
"""After a call that could not be opened, where the mesh does not say when to try again."""

OPENING_WORD, FURTHER_WORDS = "Hello.", "Please go on."
"""What the model is given where a response is asked for and the user has said nothing: its prompt needs a turn."""


@dataclass
class Speech:
    """Something the user is saying: its item to be."""

    item_id: str


class SocketSession:
    """The state of one socket.

    `_items` and what is not an item yet (`_buffer`) are the truth; the mesh's session is a copy of them, `_copy`.
    """

    def __init__(
        self,
        config: SessionConfig,
        mesh: Mesh,
        tasks: asyncio.TaskGroup,
        *,
        deliver: Callable[[Heard], None],
        send: Callable[[ServerEvent], Awaitable[None]],
        count_first_audio: Callable[[float], None],
        writer: SpanWriter | None,
    ) -> None:
        """`tasks` outlives the session; `deliver` sees to it that `hear` is called; `send` waits for a slow client.

        `count_first_audio` is told how long a reply's first sound took from the end of the user turn, in seconds;
        `writer` is where the spans of responses go.
        """
        self.id = new_id("sess")
        self.is_quiet = asyncio.Event()
        """No response is given."""
        self.is_quiet.set()
        self._conversation_id = new_id("conv")
        self._config = config
        self._mesh = mesh
        self._send = send
        self._count_first_audio = count_first_audio
        self._writer = writer
        self._span: ResponseSpan | None = None
        self._items = Conversation()
        self._buffer = InputBuffer(config.input_format)
        self._copy = MeshCopy(self._items, mesh, tasks, deliver)
        self._speech: Speech | None = None
        self._response: Response | None = None
        # When the user turn ended that waits for the first sound of its reply.
        self._asked_at: float | None = None
        self._retry_at = 0.0

    async def begin(self) -> None:
        """Tells the client that the session is there."""
        await self._send(SessionCreated(self._config.body(self.id)))

    async def close(self) -> None:
        """Ends the call to the mesh."""
        self._end_span("abandoned")
        await self._copy.close()

    async def receive(self, message: str | bytes) -> None:
        """The client has sent something."""
        if isinstance(message, bytes):
            await self._tell_error(invalid("events are text messages of JSON, got a binary one", code="invalid_json"))
            return
        try:
            event = read_client_event(message)
        except WrongEvent as wrong:
            await self._tell_error(wrong.refusal, wrong.event_id)
            return
        try:
            await self._do(event)
        except Refusal as refusal:
            await self._tell_error(refusal, event.event_id)
        except MeshError as error:
            await self._lose_line(error, event.event_id)

    async def hear(self, heard: Heard) -> None:
        """The mesh has said something."""
        try:
            if heard.line is not self._copy.line:
                return
            try:
                await self._take(heard.line, heard.event)
            except MeshError as error:
                await self._lose_line(error)
        finally:
            heard.line.take_next()

    # What the client sends.

    async def _do(self, event: ClientEvent) -> None:
        match event:
            case BufferAppend():
                await self._append(event)
            case SessionUpdate():
                await self._update(event)
            case BufferCommit():
                await self._commit()
            case BufferClear():
                await self._clear()
            case ItemCreate():
                await self._create_item(event)
            case ItemTruncate():
                await self._truncate(event)
            case ItemDelete():
                await self._delete(event)
            case ItemRetrieve():
                item = self._find(event.item_id, "item_retrieve_invalid_item_id")
                await self._send(ItemRetrieved(item.body(with_sound=True)))
            case ResponseCreate():
                await self._create_response(event.response or ResponseFields())
            case ResponseCancel():
                await self._cancel(event)
            case OutputBufferClear():
                raise invalid(
                    "output_audio_buffer.clear is for WebRTC; here, use conversation.item.truncate",
                    "type",
                    "invalid_value",
                )
            case _:
                raise AssertionError(f"no way to do {type(event).__name__}")

    async def _append(self, event: BufferAppend) -> None:
        data = read_sound(event.audio, self._config.input_format, "audio")
        if not self._config.is_listening:
            await self._make_room(len(data))
        self._buffer.write(data)
        if self._config.is_listening:
            kept_seconds = UNHEARD_SECONDS + (0 if self._speech is None else LONGEST_TURN_SECONDS)
            self._buffer.drop_until(self._buffer.end - kept_seconds * self._config.input_format.rate_hz)
        line = self._copy.line
        if line is None:
            if self._may_open:
                await self._open_line()
        elif not line.is_stale or (line.is_listening and self._config.is_listening):
            await line.session.send_audio(data)  # a stale one still hears a barge-in

    async def _update(self, event: SessionUpdate) -> None:
        await self._learn_voice(event.session)
        before = self._config
        config = before.changed(event.session)
        formats = (config.input_format, config.output_format)
        if formats != (before.input_format, before.output_format) and self._response is not None:
            raise invalid("audio formats cannot be changed while a response is given", "session.audio", "invalid_value")
        self._config = config
        if config.input_format is not before.input_format:
            self._buffer = self._buffer.in_format(config.input_format)
            self._speech = None
        if config.turn_detection is None:
            self._speech = None
        if formats != (before.input_format, before.output_format) or config.turn_detection != before.turn_detection:
            await self._spoil()
        elif config.reply != before.reply:
            await self._tell_settings()
        await self._send(SessionUpdated(config.body(self.id)))

    async def _commit(self) -> None:
        if self._config.is_listening:
            await self._commit_heard()
            return
        committed_ms = self._config.input_format.milliseconds(self._buffer.sample_count)
        if committed_ms < MINIMUM_COMMIT_MS:
            raise _too_small(committed_ms)
        item = Item(new_id("item"), Role.USER, [Said(self._buffer.data, self._config.input_format)])
        self._buffer.drop_until(self._buffer.end)
        await self._commit_item(item)

    async def _commit_heard(self) -> None:
        line, detection = self._copy.line, self._config.turn_detection
        if line is None or not line.hears_speech or detection is None or not detection.create_response:
            raise _too_small(0)
        await line.session.end_turn()

    async def _commit_item(self, item: Item) -> None:
        previous = self._items.last
        await self._send(BufferCommitted(None if previous is None else previous.id, item.id))
        self._items.add(item)
        if self._copy.line is not None:
            self._copy.line.told.append(item.id)
        await self._tell_item(item)

    async def _clear(self) -> None:
        was_told = self._buffer.sample_count > 0 and (not self._config.is_listening or self._speech is not None)
        self._buffer.drop_until(self._buffer.end)
        self._speech = None
        if was_told:
            await self._spoil()
        await self._send(BufferCleared())

    async def _create_item(self, event: ItemCreate) -> None:
        item = read_item(event.item, self._config.input_format)
        if self._items.is_full:
            raise invalid(f"a conversation has at most {ITEM_LIMIT} items", "item", "too_many_items")
        self._items.add(item, event.previous_item_id)
        await self._tell_item(item)
        line = self._copy.line
        if line is None:
            return
        is_next = item.role is Role.USER and self._items.is_last(item)
        if item.role is Role.SYSTEM:
            await self._tell_settings()
        elif is_next and self._copy.can_tell(item, self._config, self._buffer):
            await self._copy.tell(line, item)
        else:
            await self._spoil()

    async def _truncate(self, event: ItemTruncate) -> None:
        item = self._find(event.item_id, "item_truncate_invalid_item_id")
        part = item.parts[0] if item.parts else None
        if not isinstance(part, Spoken):
            raise invalid("only what the model said can be truncated", "item_id", "item_truncate_invalid_item_id")
        if event.content_index != 0:
            raise invalid(f"content_index must be 0, got {event.content_index}", "content_index", "invalid_value")
        said_ms = part.audio_format.milliseconds(part.sample_count)
        if not 0 <= event.audio_end_ms <= said_ms:
            raise invalid(
                f"audio_end_ms must be 0 to {said_ms}, the length of the sound, got {event.audio_end_ms}",
                "audio_end_ms",
                "invalid_value",
            )
        part.played_sample_count = part.audio_format.sample_count(event.audio_end_ms)
        await self._send(ItemTruncated(item.id, 0, event.audio_end_ms))
        await self._tell_played(item, part.played_sample_count)

    async def _delete(self, event: ItemDelete) -> None:
        item = self._find(event.item_id, "item_delete_invalid_item_id")
        self._items.remove(item)
        await self._send(ItemDeleted(item.id))
        if item.role is Role.ASSISTANT and item.parts and isinstance(item.parts[0], Spoken):
            await self._tell_played(item, 0)
        else:
            await self._spoil()

    async def _create_response(self, fields: ResponseFields) -> None:
        if self._response is not None:
            raise invalid(
                f"the conversation has a response already, {self._response.id}; wait for response.done",
                code="conversation_already_has_active_response",
            )
        await self._learn_voice(fields)
        config = self._config.reply.changed(fields, "response")
        check_response(fields, self._config.output_format)
        settings = self._overrides(config)
        line = await self._line_for_response()
        prompt = ""
        if not line.told and not line.hears_speech:
            prompt = OPENING_WORD if self._items.last is None else FURTHER_WORDS
            await line.session.send_text(prompt)
        await line.session.end_turn(settings)
        self._items.answer()
        line.told.clear()
        await self._begin_response(
            Response(
                config,
                self._config.output_format,
                conversation_id=self._conversation_id,
                metadata=fields.metadata,
                prompted_by=prompt,
                follows=None if self._items.last is None else self._items.last.id,
            )
        )

    async def _line_for_response(self) -> Line:
        """The call whose open turn is what is to be answered; the reply may begin."""
        if not self._items.unanswered:
            self._items.leave_unanswered()
        waiting = self._items.unanswered
        line = self._copy.line
        ids = [item.id for item in waiting]
        has_more = not self._config.is_listening and self._buffer.sample_count > 0
        if line is None or line.is_stale or line.told != ids or has_more:
            can_be_heard = not any(isinstance(part, Said) for item in waiting for part in item.parts)
            line = await self._open_line(to_answer=True, is_listening=self._config.is_listening and can_be_heard)
        return line

    async def _begin_response(self, response: Response) -> None:
        """A turn is complete, and the mesh will answer it."""
        self._response = response
        self._asked_at = asyncio.get_running_loop().time()
        self.is_quiet.clear()
        await self._send_all(response.created())

    async def _cancel(self, event: ResponseCancel) -> None:
        response, line = self._response, self._copy.line
        if response is None or line is None or event.response_id not in (None, response.id):
            raise invalid("Cancellation failed: no active response found", code="response_cancel_not_active")
        if response.cancel_reason is None:
            response.cancel_reason = "client_cancelled"
        await line.session.cancel_reply(response.turn_index)

    # What the mesh says.

    async def _take(self, line: Line, event: Event | MeshError) -> None:
        match event:
            case MeshError():
                await self._lose_line(event)
            case SpeechStarted() if self._config.is_listening:
                line.hears_speech = True
                await self._begin_speech(line.origin + event.audio_sample)
            case SpeechStopped() if self._config.is_listening:
                line.hears_speech = False
                await self._end_speech(line, event.turn_index, line.origin + event.audio_sample)
            case ReplyStarted():
                item_id = line.heard.pop(event.turn_index, None)
                if self._response is None:
                    await self._begin_response(self._new_response(item_id))
                assert self._response is not None
                self._response.turn_index = line.last_turn_index = event.turn_index
                line.last_item_id = None
                self._span = ResponseSpan.below(event.traceparent, self._writer, self.id, self._response.id)
            case Text() | Audio():
                await self._give(line, event)
            case ReplyEnded():
                await self._end_response(line, event)

    async def _begin_speech(self, sample: int) -> None:
        self._buffer.drop_until(sample)
        if self._speech is None:  # the sound was heard before, in a call that is replaced
            self._speech = Speech(new_id("item"))
            await self._send(SpeechStartedTold(self._buffer.milliseconds(sample), self._speech.item_id))
        detection = self._config.turn_detection
        response = self._response
        if response is not None and detection is not None and detection.interrupt_response:
            response.cancel_reason = response.cancel_reason or "turn_detected"

    async def _end_speech(self, line: Line, turn_index: int, sample: int) -> None:
        if self._speech is None:  # it was forgotten at the client's wish, but the mesh has heard it
            await self._begin_speech(sample)
        speech, self._speech = self._speech, None
        assert speech is not None, "speech begins before it ends"
        await self._send(SpeechStoppedTold(self._buffer.milliseconds(sample), speech.item_id))
        said = Said(self._buffer.take_until(sample), self._config.input_format)
        await self._commit_item(Item(speech.item_id, Role.USER, [said]))
        is_asked_for = self._response is not None and self._response.turn_index is None
        detection = self._config.turn_detection
        if is_asked_for or (detection is not None and detection.create_response):
            self._items.answer()
            line.told.clear()
            line.heard[turn_index] = speech.item_id
            if self._response is None:
                await self._begin_response(self._new_response(speech.item_id))

    async def _give(self, line: Line, event: Text | Audio) -> None:
        response = self._response
        assert response is not None, "a reply begins before it is given"
        if isinstance(event, Audio) and not event.data:
            return
        if response.item is None:
            item = response.new_item(line.session.samples_per_frame)
            self._items.add(item, self._place_after(response.follows))
            line.last_item_id = item.id
            await self._send_all(response.begun(self._items.before(item)))
        if isinstance(event, Text):
            await self._send_all(response.text(event))
            return
        await self._send_all(response.audio(event))
        if self._asked_at is not None and response.is_spoken:
            self._count_first_audio(asyncio.get_running_loop().time() - self._asked_at)
            if self._span is not None:
                self._span.first_audio()
        self._asked_at = None

    async def _end_response(self, line: Line, event: ReplyEnded) -> None:
        response, self._response = self._response, None
        assert response is not None, "a reply begins before it ends"
        await self._send_all(response.ended(event, self._place_of(response)))
        self._end_span(event.reason.name.lower())
        self.is_quiet.set()
        if line.is_stale:
            await self.close()
            if self._speech is not None:  # the user speaks already: the next call is to hear it from its beginning
                await self._open_line()

    async def _lose_line(self, error: MeshError, event_id: str | None = None) -> None:
        """The call has ended, or could not be opened."""
        line, self._copy.line = self._copy.line, None
        refusal = mesh_refusal(error)
        if error.reason in TOO_LONG and self._says_nothing:
            self._keep_newest()
        elif error.reason != "IDLE" or self._response is not None:
            structlog.get_logger().info("the mesh's session ended", reason=error.reason, code=error.code.name)
            self._retry_at = asyncio.get_running_loop().time() + (error.retry_seconds or RETRY_SECONDS)
            if error.code is grpc.StatusCode.INVALID_ARGUMENT:
                # Told again, it would be refused again.
                self._buffer.drop_until(self._buffer.end)
                self._speech = None
                self._items.answer()
            await self._tell_error(refusal, event_id)
        if self._response is not None:
            response, self._response = self._response, None
            await self._send_all(response.lost(refusal, self._place_of(response)))
            self._end_span("lost", failure=f"{error.code.name} {error.reason}")
            self.is_quiet.set()
        if line is not None:
            await line.close()

    # The call to the mesh.

    @property
    def _may_open(self) -> bool:
        """Whether a call may be opened, in place of another one too."""
        return self._response is None and asyncio.get_running_loop().time() >= self._retry_at

    async def _open_line(self, *, to_answer: bool = False, is_listening: bool | None = None) -> Line:
        return await self._copy.open(self._config, self._buffer, to_answer=to_answer, is_listening=is_listening)

    async def _spoil(self) -> None:
        await self._copy.spoil(is_replying=self._response is not None)

    async def _make_room(self, further_bytes: int) -> None:
        """Sees that the turn does not become longer than the mesh takes, for that ends its session.

        What nobody has committed for so long is a microphone that is always on: its oldest sound is forgotten. Raises
        Refusal where that is not enough.
        """
        audio_format = self._config.input_format
        said_seconds = sum(item.sound_seconds for item in self._items.unanswered)
        further_seconds = further_bytes / audio_format.sample_bytes / audio_format.rate_hz
        if said_seconds + further_seconds + self._buffer.seconds <= LONGEST_TURN_SECONDS:
            return
        if said_seconds + further_seconds + UNCOMMITTED_SECONDS > LONGEST_TURN_SECONDS:
            raise invalid(f"a turn has at most {LONGEST_TURN_SECONDS} s of sound", "audio", "input_audio_buffer_full")
        self._keep_newest()
        await self._spoil()

    def _keep_newest(self) -> None:
        self._buffer.drop_until(self._buffer.end - UNCOMMITTED_SECONDS * self._config.input_format.rate_hz)

    @property
    def _says_nothing(self) -> bool:
        """Whether all that the open turn has is old sound that was not committed."""
        is_quiet = self._response is None and not self._config.is_listening and not self._items.unanswered
        return is_quiet and self._buffer.seconds > UNCOMMITTED_SECONDS

    async def _tell_settings(self) -> None:
        await self._copy.tell_settings(self._config.reply)

    async def _tell_played(self, item: Item, sample_count: int) -> None:
        if not await self._copy.tell_played(item, sample_count):
            await self._spoil()

    def _overrides(self, config: ReplyConfig) -> ReplySettings | None:
        return None if config == self._config.reply else config.reply_settings(self._items.instructions)

    async def _learn_voice(self, fields: ReplyFields) -> None:
        """Asks the mesh for its voices where one is named that was not there before."""
        reply = self._config.reply
        voice = voice_of(fields)
        if voice is None or reply.voices.has(voice):
            return
        try:
            voices = await VoiceNames.of(self._mesh)
        except MeshError as error:
            raise mesh_refusal(error) from None
        self._config = replace(self._config, reply=replace(reply, voices=voices))

    # What the client is told.

    def _end_span(self, reason: str, *, failure: str | None = None) -> None:
        span, self._span = self._span, None
        if span is not None:
            span.end(reason, failure=failure)

    def _new_response(self, follows: str | None) -> Response:
        return Response(
            self._config.reply, self._config.output_format, conversation_id=self._conversation_id, follows=follows
        )

    def _place_after(self, item_id: str | None) -> str | None:
        return item_id if item_id is not None and self._items.find(item_id) is not None else None

    def _place_of(self, response: Response) -> str | None:
        item = response.item
        return None if item is None or self._items.find(item.id) is None else self._items.before(item)

    def _find(self, item_id: str, code: str) -> Item:
        if (item := self._items.find(item_id)) is None:
            raise invalid(f"there is no item {item_id[:80]!r}", "item_id", code)
        return item

    async def _tell_item(self, item: Item) -> None:
        previous = self._items.before(item)
        await self._send(ItemAdded(previous, item.body()))
        await self._send(ItemDone(previous, item.body()))

    async def _tell_error(self, refusal: Refusal, event_id: str | None = None) -> None:
        body = {**refusal.body, "event_id": event_id}
        if refusal.retry_seconds is not None:
            body["retry_seconds"] = refusal.retry_seconds
        await self._send(ErrorTold(body))

    async def _send_all(self, events: Iterable[ServerEvent]) -> None:
        for event in events:
            await self._send(event)


def _too_small(milliseconds: int) -> Refusal:
    return invalid(
        f"the input audio buffer must have at least {MINIMUM_COMMIT_MS} ms of sound, it has {milliseconds} ms",
        code="input_audio_buffer_commit_empty",
    )
