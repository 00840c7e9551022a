"""A reply in chunks, as it is made."""

from collections.abc import Iterator

from client.events import Audio, Event, ReplyEnded, Text
from services.gateway.chat.audio_id import NEVER, new_audio_id
from services.gateway.chat.completion import (
    AudioDelta,
    ChatCompletionChunk,
    ChunkChoice,
    CompletionName,
    Delta,
    Ending,
    Usage,
    as_base64,
    ending_of,
)
from services.gateway.chat.event_stream import event_of
from services.gateway.chat.request import ChatRequest

DONE = event_of("[DONE]")


class Chunks:
    """Makes the events of a stream.

    First the role; then with `modalities` audio `delta.audio.transcript` and `delta.audio.data`, and the id once, last,
    for it is made of the whole text; otherwise `delta.content`. At last the finish reason, and the usage if asked for.
    """

    def __init__(self, name: CompletionName, asked: ChatRequest) -> None:
        self._name = name
        self._has_sound = asked.has_sound
        self._has_usage = asked.stream_options is not None and bool(asked.stream_options.include_usage)
        self._has_begun = False

    def of(self, event: Event) -> Iterator[bytes]:
        """The events for what the mesh said."""
        match event:
            case Text():
                delta = Delta(audio=AudioDelta(transcript=event.text)) if self._has_sound else Delta(content=event.text)
                yield from self._more(delta)
            case Audio() if self._has_sound:
                yield from self._more(Delta(audio=AudioDelta(data=as_base64(event.data))))
            case ReplyEnded():
                yield from self._last(event)

    def _last(self, ended: ReplyEnded) -> Iterator[bytes]:
        if self._has_sound:
            audio = AudioDelta(id=new_audio_id(ended.text), expires_at=NEVER)
            yield from self._more(Delta(audio=audio))
        yield from self._more(Delta(), ending_of(ended))
        if self._has_usage:
            yield self._event(ChatCompletionChunk(**vars(self._name), choices=[], usage=Usage.of(ended)))
        yield DONE

    def _more(self, delta: Delta, ending: Ending | None = None) -> Iterator[bytes]:
        if not self._has_begun:
            self._has_begun = True
            first = Delta(role="assistant") if self._has_sound else Delta(role="assistant", content="")
            yield from self._more(first)
        choice = ChunkChoice(index=0, delta=delta, finish_reason=ending)
        chunk = ChatCompletionChunk(**vars(self._name), choices=[choice])
        if self._has_usage:
            chunk.usage = None
        yield self._event(chunk)

    def _event(self, chunk: ChatCompletionChunk) -> bytes:
        chunk.object = "chat.completion.chunk"  # what was set is sent
        return event_of(chunk.model_dump_json(exclude_unset=True))
