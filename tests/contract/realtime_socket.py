"""A client of `/v1/realtime` that knows the protocol's laws: in what order events come, and what they share."""

import base64
import itertools
import json
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from typing import Any

import numpy as np
import websockets
from openai.types.realtime import RealtimeServerEvent
from pydantic import TypeAdapter

RATE_HZ = 24_000
PACKET_SECONDS = 0.02
SERVER_EVENT: TypeAdapter[Any] = TypeAdapter(RealtimeServerEvent)

Event = dict[str, Any]

OUTPUT = ("response.output_audio_transcript.delta", "response.output_audio.delta", "response.output_text.delta")
BEFORE_OUTPUT = ["response.output_item.added", "conversation.item.added", "response.content_part.added"]
AFTER_SOUND = ["response.output_audio.done", "response.output_audio_transcript.done"]
AFTER_OUTPUT = ["response.content_part.done", "conversation.item.done", "response.output_item.done"]
HEARD = [
    "input_audio_buffer.speech_stopped",
    "input_audio_buffer.committed",
    "conversation.item.added",
    "conversation.item.done",
]


def loud(seconds: float, seed: int = 0, rate_hz: int = RATE_HZ) -> bytes:
    """What the test's detector takes for speech, in 16 bits."""
    signs = np.random.default_rng(seed).integers(0, 2, round(seconds * rate_hz)) * 2 - 1
    return (signs * 12_000).astype("<i2").tobytes()


def quiet(seconds: float) -> bytes:
    return bytes(2 * round(seconds * RATE_HZ))


def said(text: str, role: str = "user") -> Event:
    kind = "output_text" if role == "assistant" else "input_text"
    return {"type": "message", "role": role, "content": [{"type": kind, "text": text}]}


class Laws:
    """Follows what a server says, and fails where it breaks a law of the protocol."""

    def __init__(self) -> None:
        self.count = 0
        self.items: list[str] = []
        self._ids: set[str] = set()
        self._expected: list[str] = []
        self._speech: str | None = None
        self._response: str | None = None
        self._output: str | None = None
        self._is_text = False
        self._written = ""
        self._format: Event = {"type": "audio/pcm", "rate": RATE_HZ}

    def take(self, event: Event) -> None:
        SERVER_EVENT.validate_python(event)
        kind = event["type"]
        assert (kind == "session.created") == (self.count == 0)
        self.count += 1
        assert event["event_id"] not in self._ids, "every event has an id of its own"
        self._ids.add(event["event_id"])
        if self._expected:
            assert kind == self._expected.pop(0)
        match kind:
            case "input_audio_buffer.speech_started":
                assert self._speech is None
                self._speech = event["item_id"]
            case "input_audio_buffer.speech_stopped":
                assert self._speech == event["item_id"]
                self._expected = HEARD[1:]
            case "input_audio_buffer.committed":
                assert self._speech in (None, event["item_id"])
                self._speech = None
                assert event["previous_item_id"] == (self.items[-1] if self.items else None)
                self._expected = self._expected or HEARD[2:]
            case "input_audio_buffer.cleared":
                self._speech = None
            case "session.updated":
                heard = event["session"]["audio"]["input"]
                if heard["turn_detection"] is None or heard["format"] != self._format:
                    self._speech = None
                self._format = heard["format"]
            case "conversation.item.added":
                self._add(event)
            case "conversation.item.deleted":
                self.items.remove(event["item_id"])
            case "response.created":
                assert self._response is None, "one response at a time"
                assert event["response"]["status"] == "in_progress"
                self._response, self._written, self._output = event["response"]["id"], "", None
                self._expected = ["rate_limits.updated"]
            case "response.output_item.added":
                assert self._output is None, "a response has one item"
                self._output = event["item"]["id"]
                self._expected = BEFORE_OUTPUT[1:]
            case "response.content_part.added":
                self._is_text = event["part"]["type"] == "text"
            case "response.output_audio_transcript.delta" | "response.output_text.delta":
                assert event["delta"]
                assert self._is_text == (kind == "response.output_text.delta")
                self._written += event["delta"]
            case "response.output_audio.delta":
                assert not self._is_text
                assert base64.b64decode(event["delta"], validate=True)
            case "response.output_audio.done":
                self._expected = [*AFTER_SOUND[1:], *AFTER_OUTPUT, "response.done"]
            case "response.output_text.done":
                assert event["text"] == self._written
                self._expected = [*AFTER_OUTPUT, "response.done"]
            case "response.output_audio_transcript.done":
                assert event["transcript"] == self._written
            case "response.done":
                self._end(event["response"])
        if kind.startswith("response.") and "response_id" in event:
            assert event["response_id"] == self._response
            assert event.get("item_id", self._output) == self._output

    def _add(self, event: Event) -> None:
        previous, item_id = event["previous_item_id"], event["item"]["id"]
        assert item_id not in self.items
        self.items.insert(0 if previous is None else self.items.index(previous) + 1, item_id)

    def _end(self, response: Event) -> None:
        assert response["id"] == self._response
        status, details = response["status"], response["status_details"]
        assert status in ("completed", "cancelled", "incomplete", "failed")
        assert (details is None) == (status == "completed")
        assert details is None or details["type"] == status
        assert [item["id"] for item in response["output"]] == ([] if self._output is None else [self._output])
        if usage := response["usage"]:
            assert usage["total_tokens"] == usage["input_tokens"] + usage["output_tokens"]
            assert usage["output_tokens"] == sum(usage["output_token_details"].values())
        self._response = None


class RealtimeSocket:
    """An open socket; `events` is all that came."""

    def __init__(self, socket: websockets.ClientConnection) -> None:
        self.socket = socket
        self.laws = Laws()
        self.events: list[Event] = []
        self._index = itertools.count()

    async def send(self, kind: str, **fields: Any) -> str:
        """Sends an event; returns its id."""
        event_id = f"client_{next(self._index)}"
        await self.socket.send(json.dumps({"type": kind, "event_id": event_id, **fields}))
        return event_id

    async def receive(self) -> Event:
        event = json.loads(await self.socket.recv())
        self.events.append(event)
        self.laws.take(event)
        return event

    async def until(self, kind: str) -> list[Event]:
        """What comes up to an event of a kind, that one included; no error may be among it unless it is asked for."""
        events: list[Event] = []
        while not events or events[-1]["type"] != kind:
            events.append(await self.receive())
            assert kind == "error" or events[-1]["type"] != "error", events[-1]
        return events

    async def one(self, kind: str) -> Event:
        """The next event, which is of this kind."""
        event = await self.receive()
        assert event["type"] == kind, event
        return event

    async def update(self, **session: Any) -> Event:
        await self.send("session.update", session={"type": "realtime", **session})
        return (await self.one("session.updated"))["session"]

    async def manual(self) -> None:
        """Turns are over when the client says so."""
        await self.update(audio={"input": {"turn_detection": None}})

    async def say(self, sound: bytes, seconds: float = PACKET_SECONDS) -> None:
        size = 2 * round(RATE_HZ * seconds)
        for start in range(0, len(sound), size):
            audio = base64.b64encode(sound[start : start + size]).decode()
            await self.send("input_audio_buffer.append", audio=audio)

    async def type(self, text: str, role: str = "user", **fields: Any) -> str:
        """Adds a message; returns its item's id."""
        await self.send("conversation.item.create", item=said(text, role), **fields)
        added = (await self.until("conversation.item.added"))[-1]
        await self.one("conversation.item.done")
        return added["item"]["id"]

    async def reply(self) -> list[Event]:
        """What comes to the end of the reply that is given or comes next."""
        return await self.until("response.done")

    async def ask(self, text: str) -> list[Event]:
        await self.type(text)
        await self.send("response.create")
        return await self.reply()

    async def refused(self, kind: str, **fields: Any) -> Event:
        """Sends an event that is refused; returns the error."""
        event_id = await self.send(kind, **fields)
        error = (await self.until("error"))[-1]["error"]
        assert error["event_id"] == event_id
        return error


def kinds(events: Iterable[Event]) -> list[str]:
    """The types in order; what a reply says and the sound of it, which comes in any order, as one `output`."""
    named = ("output" if event["type"] in OUTPUT else event["type"] for event in events)
    return [kind for kind, _ in itertools.groupby(named)]


def sound_of(events: Iterable[Event]) -> bytes:
    return b"".join(base64.b64decode(it["delta"]) for it in events if it["type"] == "response.output_audio.delta")


def text_of(events: Iterable[Event]) -> str:
    return "".join(it["delta"] for it in events if it["type"] in (OUTPUT[0], OUTPUT[2]))


@asynccontextmanager
async def open_socket(
    url: str, path: str = "/v1/realtime?model=chroma-4b", **options: Any
) -> AsyncIterator[RealtimeSocket]:
    """Opens a socket of the gateway; what comes first is read."""
    async with websockets.connect(url + path, proxy=None, max_size=None, compression=None, **options) as socket:
        realtime = RealtimeSocket(socket)
        await realtime.receive()
        yield realtime
