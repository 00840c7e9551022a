"""The Realtime protocol over a real socket: what each event brings about, and in what order."""

import asyncio
import base64
import itertools
from contextlib import AsyncExitStack
from typing import Any

import numpy as np
import pytest
from chroma_mesh.types.v1 import types_pb2
from openai import AsyncOpenAI

from client.pcm import Encoding
from services.gateway.realtime import mesh_copy
from services.orchestrator.turn_parts import PART_NAMES
from services.runtime.errors import Unavailable
from tests.contract.fake_mesh import ASSISTANT, S16, SYSTEM, USER, Mesh, no_hook
from tests.contract.gateway_server import Gateway, running_gateway
from tests.contract.realtime_socket import (
    AFTER_OUTPUT,
    AFTER_SOUND,
    BEFORE_OUTPUT,
    HEARD,
    OUTPUT,
    RealtimeSocket,
    kinds,
    loud,
    open_socket,
    quiet,
    said,
    sound_of,
    text_of,
)

RESPONSE = ["response.created", "rate_limits.updated"]
SPOKEN = [*RESPONSE, *BEFORE_OUTPUT, "output", *AFTER_SOUND, *AFTER_OUTPUT, "response.done"]
ITEM = ["conversation.item.added", "conversation.item.done"]
PCM_24 = types_pb2.AudioFormat(encoding=S16, sample_rate_hz=24_000)


class Gate:
    """Holds a stage back from an output on, until it is opened."""

    def __init__(self, first: int) -> None:
        self._first = first
        self.reached, self._open = asyncio.Event(), asyncio.Event()

    async def __call__(self, index: int) -> None:
        if index >= self._first:
            self.reached.set()
            await self._open.wait()

    def open(self) -> None:
        self._open.set()


def told(mesh: Mesh) -> list[tuple[int, str]]:
    """What the reasoner was last told of the conversation: roles and texts; sound is ~."""
    heard = mesh.reasoner.heard[-1]
    return [(message.role, _words(message.parts)) for message in heard.messages] + [(USER, _words(heard.parts))]


def _words(parts: Any) -> str:
    return "".join(word for word, _ in itertools.groupby(part.text or "~" for part in parts))


async def test_the_sdk_holds_a_spoken_conversation_with_a_barge_in(mesh: Mesh, gateway: Gateway) -> None:
    client = AsyncOpenAI(api_key="sk-x", base_url=f"{gateway.url}/v1", websocket_base_url=f"{gateway.socket_url}/v1")
    async with client, client.realtime.connect(model="chroma-4b") as connection:
        await connection.session.update(
            session={"type": "realtime", "instructions": "Be brief.", "output_modalities": ["audio"]}
        )
        gate = mesh.codec.hook = Gate(4)
        events: list[Any] = []
        await _say(connection, loud(1) + quiet(0.7))
        async for event in connection:
            events.append(event)
            if event.type == "response.output_audio.delta":
                break
        await gate.reached.wait()
        mesh.codec.hook = no_hook
        await _say(connection, loud(1))
        async for event in connection:
            events.append(event)
            if event.type == "input_audio_buffer.speech_started":
                await connection.conversation.item.truncate(
                    item_id=next(it.item.id for it in events if it.type == "response.output_item.added"),
                    content_index=0,
                    audio_end_ms=20,
                )
                await _say(connection, quiet(0.7))
            if event.type == "response.done" and event.response.status == "completed":
                break
    assert not [event for event in events if event.type == "error"]
    done = [event.response for event in events if event.type == "response.done"]
    assert [(it.status, it.status_details and it.status_details.reason) for it in done] == [
        ("cancelled", "turn_detected"),
        ("completed", None),
    ]
    assert [event.audio_end_ms for event in events if event.type == "conversation.item.truncated"] == [20]
    # One frame was heard, and with it one step: that is what the model remembers.
    first = next(event.delta for event in events if event.type == "response.output_audio_transcript.delta")
    assert told(mesh) == [(SYSTEM, "Be brief."), (USER, "~"), (ASSISTANT, first), (USER, "~")]


async def _say(connection: Any, sound: bytes) -> None:
    for start in range(0, len(sound), 960):
        await connection.input_audio_buffer.append(audio=base64.b64encode(sound[start : start + 960]).decode())


async def test_what_is_heard_is_answered(socket: RealtimeSocket) -> None:
    await socket.say(loud(1) + quiet(0.7))
    events = await socket.reply()
    assert kinds(events) == ["input_audio_buffer.speech_started", *HEARD, *SPOKEN]
    assert events[0]["audio_start_ms"] == 0
    assert 1500 <= events[1]["audio_end_ms"] <= 1600
    response = events[-1]["response"]
    assert response["usage"]["output_token_details"] == {"text_tokens": 5, "audio_tokens": 10}
    timings = response["chroma"]["timings"]
    assert timings["total_seconds"] >= timings["first_audio_seconds"] > 0
    assert response["chroma"]["recovery_count"] == 0


async def test_the_first_sound_says_where_the_time_until_it_went(mesh: Mesh, socket: RealtimeSocket) -> None:
    gate = mesh.codec.hook = Gate(1)
    await socket.say(loud(1) + quiet(0.7))
    first = (await socket.until("response.output_audio.delta"))[-1]
    gate.open()
    rest = await socket.reply()
    told, known = first["chroma"]["timings"], rest[-1]["response"]["chroma"]["timings"]
    assert [part["name"] for part in told["parts"]] == list(PART_NAMES)
    assert told["parts"][:-1] == known["parts"][:-1]
    assert 0 < told["first_audio_seconds"] <= known["first_audio_seconds"]
    assert not any("chroma" in event for event in rest if event["type"] == "response.output_audio.delta")


async def test_a_reply_that_went_on_elsewhere_says_so(mesh: Mesh, socket: RealtimeSocket) -> None:
    async def lose(_index: int) -> None:
        mesh.speech.hook = no_hook
        raise Unavailable("this replica goes", reason="DRAINING")

    mesh.speech.hook = lose
    events = await socket.ask("hello")
    response = events[-1]["response"]
    assert (response["status"], response["chroma"]["recovery_count"]) == ("completed", 1)


async def test_the_sound_is_that_of_grpc(mesh: Mesh, socket: RealtimeSocket) -> None:
    sound = loud(1.01)
    async with mesh.converse(input_format=PCM_24) as session:
        expected = await session.ask(sound)
    await socket.manual()
    await socket.say(sound, seconds=0.03)
    await socket.send("input_audio_buffer.commit")
    await socket.send("response.create")
    events = await socket.reply()
    assert kinds(events) == ["input_audio_buffer.committed", *ITEM, *SPOKEN]
    assert sound_of(events) == expected.audio
    assert text_of(events) == expected.text


@pytest.mark.parametrize(("name", "encoding"), [("audio/pcmu", Encoding.MULAW), ("audio/pcma", Encoding.ALAW)])
async def test_telephones_are_heard_and_spoken_to(
    mesh: Mesh, socket: RealtimeSocket, name: str, encoding: Encoding
) -> None:
    sound = encoding.encode(loud_samples(1.0))
    async with mesh.converse(
        input_format=encoding.wire_format(8000), output_format=encoding.wire_format(8000)
    ) as session:
        expected = await session.ask(sound)
    formats = {"format": {"type": name}}
    session = await socket.update(audio={"input": {**formats, "turn_detection": None}, "output": formats})
    assert session["audio"]["input"]["format"] == session["audio"]["output"]["format"] == {"type": name}
    await socket.send("input_audio_buffer.append", audio=base64.b64encode(sound).decode())
    await socket.send("input_audio_buffer.commit")
    await socket.send("response.create")
    assert sound_of(await socket.reply()) == expected.audio


def loud_samples(seconds: float) -> Any:
    return np.frombuffer(loud(seconds, rate_hz=8000), "<i2")


async def test_a_typed_turn_is_answered_and_remembered(mesh: Mesh, socket: RealtimeSocket) -> None:
    first = await socket.ask("one")
    second = await socket.ask("two")
    assert kinds(first) == kinds(second) == SPOKEN
    assert told(mesh) == [(SYSTEM, told(mesh)[0][1]), (USER, "one"), (ASSISTANT, text_of(first)), (USER, "two")]
    items = socket.laws.items
    assert len(items) == 4
    for item_id, expected in zip(items, ["one", text_of(first), "two", text_of(second)], strict=True):
        await socket.send("conversation.item.retrieve", item_id=item_id)
        item = (await socket.one("conversation.item.retrieved"))["item"]
        assert (item["content"][0].get("text") or item["content"][0]["transcript"]) == expected
        assert item["status"] == "completed"


async def test_text_alone_has_no_sound(socket: RealtimeSocket) -> None:
    await socket.type("one")
    await socket.send("response.create", response={"output_modalities": ["text"], "metadata": {"a": "b"}})
    events = await socket.reply()
    done = ["response.output_text.done", *AFTER_OUTPUT, "response.done"]
    assert kinds(events) == [*RESPONSE, *BEFORE_OUTPUT, "output", *done]
    response = events[-1]["response"]
    assert response["output"][0]["content"] == [{"type": "output_text", "text": text_of(events)}]
    assert events[0]["response"]["metadata"] == response["metadata"] == {"a": "b"}
    assert response["output_modalities"] == ["text"]


async def test_a_response_has_settings_of_its_own(mesh: Mesh, socket: RealtimeSocket) -> None:
    await socket.update(instructions="A")
    await socket.type("one")
    await socket.send("response.create", response={"instructions": "B", "max_output_tokens": 2, "temperature": 0.3})
    response = (await socket.reply())[-1]["response"]
    assert response["max_output_tokens"] == 2
    assert told(mesh)[0] == (SYSTEM, "B")
    assert mesh.reasoner.heard[-1].open.max_step_count == 2
    assert mesh.speech.heard[-1].open.sampling.temperature == pytest.approx(0.3)
    await socket.ask("two")
    assert told(mesh)[0] == (SYSTEM, "A")
    assert mesh.reasoner.heard[-1].open.max_step_count > 1000
    await socket.update(instructions="C")
    await socket.ask("three")
    assert told(mesh)[0] == (SYSTEM, "C")


async def test_a_limit_makes_a_response_incomplete(mesh: Mesh, socket: RealtimeSocket) -> None:
    mesh.reasoner.reason = types_pb2.FINISH_REASON_LENGTH
    response = (await socket.ask("one"))[-1]["response"]
    assert (response["status"], response["status_details"]["reason"]) == ("incomplete", "max_output_tokens")
    assert response["output"][0]["status"] == "incomplete"


async def test_a_response_that_is_cancelled(mesh: Mesh, socket: RealtimeSocket) -> None:
    gate = mesh.codec.hook = Gate(2)
    await socket.type("one")
    await socket.send("response.create")
    await socket.until("response.output_audio.delta")
    await gate.reached.wait()
    error = await socket.refused("response.create")
    assert error["code"] == "conversation_already_has_active_response"
    await socket.send("response.cancel")
    response = (await socket.reply())[-1]["response"]
    assert (response["status"], response["status_details"]["reason"]) == ("cancelled", "client_cancelled")
    error = await socket.refused("response.cancel")
    assert error["code"] == "response_cancel_not_active"
    mesh.codec.hook = no_hook
    assert kinds(await socket.ask("two")) == SPOKEN


async def test_without_interruption_what_is_said_over_a_reply_is_answered_after_it(
    mesh: Mesh, socket: RealtimeSocket
) -> None:
    await socket.update(audio={"input": {"turn_detection": {"type": "server_vad", "interrupt_response": False}}})
    gate = mesh.codec.hook = Gate(2)
    await socket.say(loud(1) + quiet(0.7))
    await socket.until("response.output_audio.delta")
    await gate.reached.wait()
    await socket.say(loud(1) + quiet(0.7))
    await socket.until("input_audio_buffer.committed")
    gate.open()
    assert (await socket.reply())[-1]["response"]["status"] == "completed"
    assert (await socket.reply())[-1]["response"]["status"] == "completed"
    # Its item comes after what it answers.
    assert len(socket.laws.items) == 4
    assert [role for role, _ in told(mesh)[1:]] == [USER, ASSISTANT, USER]


async def test_what_is_heard_waits_for_response_create(mesh: Mesh, socket: RealtimeSocket) -> None:
    await socket.update(audio={"input": {"turn_detection": {"type": "server_vad", "create_response": False}}})
    for _ in range(2):
        await socket.say(loud(1) + quiet(0.7))
        assert kinds(await socket.until("conversation.item.done")) == ["input_audio_buffer.speech_started", *HEARD]
    await socket.send("response.create")
    assert kinds(await socket.reply()) == SPOKEN
    assert told(mesh)[1:] == [(USER, "~")]
    await socket.say(loud(1))
    await socket.until("input_audio_buffer.speech_started")
    await socket.send("response.create")  # ends what is being said
    events = await socket.reply()
    assert events[-1]["response"]["status"] == "completed"
    assert set(HEARD) <= set(kinds(events))


async def test_the_buffer_is_committed_and_cleared_by_hand(mesh: Mesh, socket: RealtimeSocket) -> None:
    await socket.manual()
    assert (await socket.refused("input_audio_buffer.commit"))["code"] == "input_audio_buffer_commit_empty"
    await socket.say(loud(0.05))
    assert (await socket.refused("input_audio_buffer.commit"))["code"] == "input_audio_buffer_commit_empty"
    await socket.say(loud(0.5, seed=1))
    await socket.send("input_audio_buffer.clear")
    await socket.one("input_audio_buffer.cleared")
    sound = loud(0.4, seed=2)
    await socket.say(sound)
    await socket.send("input_audio_buffer.commit")
    assert kinds(await socket.until("conversation.item.done")) == ["input_audio_buffer.committed", *ITEM]
    await socket.send("conversation.item.retrieve", item_id=socket.laws.items[0])
    content = (await socket.one("conversation.item.retrieved"))["item"]["content"]
    assert base64.b64decode(content[0]["audio"]) == sound
    await socket.send("response.create")
    await socket.reply()
    assert sum(len(part.audio) for part in mesh.reasoner.heard[-1].parts) == round(0.4 * 16_000) * 2


async def test_items_are_put_in_order_and_taken_out(mesh: Mesh, socket: RealtimeSocket) -> None:
    third = await socket.type("three")
    first = await socket.type("one", previous_item_id="root")
    await socket.type("two", "assistant", previous_item_id=first)
    await socket.type("Be kind.", "system", previous_item_id="root")
    await socket.update(instructions="Be brief.")
    first_reply = await socket.ask("four")
    assert told(mesh) == [
        (SYSTEM, "Be brief.\n\nBe kind."), (USER, "one"), (ASSISTANT, "two"), (USER, "threefour"),
    ]  # fmt: skip
    await socket.send("conversation.item.delete", item_id=third)
    await socket.one("conversation.item.deleted")
    await socket.ask("five")
    assert told(mesh)[1:] == [
        (USER, "one"), (ASSISTANT, "two"), (USER, "four"), (ASSISTANT, text_of(first_reply)), (USER, "five"),
    ]  # fmt: skip
    missing = await socket.refused("conversation.item.delete", item_id=third)
    assert missing["code"] == "item_delete_invalid_item_id"
    again = await socket.refused("conversation.item.create", item={**said("x"), "id": first})
    assert again["code"] == "item_create_duplicate_item_id"


async def test_an_item_of_sound_is_answered_whoever_ends_turns(mesh: Mesh, socket: RealtimeSocket) -> None:
    item = {
        "type": "message",
        "role": "user",
        "content": [
            {"type": "input_audio", "audio": base64.b64encode(loud(0.5)).decode()},
            {"type": "input_text", "text": "what is this?"},
        ],
    }
    for turn_detection in (None, {"type": "server_vad"}):
        await socket.update(audio={"input": {"turn_detection": turn_detection}})
        await socket.send("conversation.item.create", item=item)
        await socket.send("response.create")
        assert kinds(await socket.reply()) == [*ITEM, *SPOKEN]
        assert told(mesh)[-1] == (USER, "~what is this?")
    # The mesh hears turns again.
    await socket.say(loud(1) + quiet(0.7))
    assert kinds(await socket.reply()) == ["input_audio_buffer.speech_started", *HEARD, *SPOKEN]
    assert [role for role, _ in told(mesh)[1:]] == [USER, ASSISTANT] * 2 + [USER]


async def test_a_response_to_nothing_is_a_greeting(mesh: Mesh, socket: RealtimeSocket) -> None:
    await socket.send("response.create", response={"instructions": "Greet the user."})
    greeting = await socket.reply()
    assert kinds(greeting) == SPOKEN
    assert told(mesh) == [(SYSTEM, "Greet the user."), (USER, "Hello.")]
    await socket.manual()  # another call to the mesh
    await socket.ask("hi")
    assert told(mesh)[1:] == [(USER, "Hello."), (ASSISTANT, text_of(greeting)), (USER, "hi")]
    assert len(socket.laws.items) == 3


async def test_what_was_not_heard_is_forgotten(mesh: Mesh, socket: RealtimeSocket) -> None:
    pieces = [it["delta"] for it in await socket.ask("one") if it["type"] == OUTPUT[0]]
    reply = socket.laws.items[-1]
    frame_ms = 20
    error = await socket.refused("conversation.item.truncate", item_id=reply, content_index=0, audio_end_ms=201)
    assert (error["code"], error["param"]) == ("invalid_value", "audio_end_ms")
    await socket.send("conversation.item.truncate", item_id=reply, content_index=0, audio_end_ms=3 * frame_ms)
    assert (await socket.one("conversation.item.truncated"))["audio_end_ms"] == 3 * frame_ms
    heard = "".join(pieces[:2])
    await socket.send("conversation.item.retrieve", item_id=reply)
    assert (await socket.one("conversation.item.retrieved"))["item"]["content"][0]["transcript"] == heard
    await socket.ask("two")
    assert told(mesh)[2] == (ASSISTANT, heard)
    # Once another reply has begun, the mesh is told the conversation anew.
    await socket.send("conversation.item.truncate", item_id=reply, content_index=0, audio_end_ms=frame_ms)
    await socket.one("conversation.item.truncated")
    await socket.ask("three")
    assert told(mesh)[2] == (ASSISTANT, pieces[0])
    user_item = socket.laws.items[0]
    for item_id in (user_item, "nobody"):
        wrong = await socket.refused("conversation.item.truncate", item_id=item_id, content_index=0, audio_end_ms=0)
        assert wrong["code"] == "item_truncate_invalid_item_id"


async def test_a_reply_that_is_deleted_was_not_heard(mesh: Mesh, socket: RealtimeSocket) -> None:
    await socket.ask("one")
    await socket.send("conversation.item.delete", item_id=socket.laws.items[-1])
    await socket.one("conversation.item.deleted")
    await socket.ask("two")
    assert [role for role, _ in told(mesh)[1:]] == [USER, USER]


async def test_a_turn_without_a_reply_is_answered_when_asked_again(mesh: Mesh, socket: RealtimeSocket) -> None:
    gate = mesh.reasoner.hook = Gate(0)
    await socket.type("one")
    await socket.send("response.create")
    await socket.until("rate_limits.updated")
    await gate.reached.wait()
    await socket.send("response.cancel")
    assert (await socket.reply())[-1]["response"]["output"] == []
    mesh.reasoner.hook = no_hook
    await socket.send("response.create")
    assert kinds(await socket.reply()) == SPOKEN
    assert told(mesh)[1:] == [(USER, "one")]


async def test_the_mesh_is_changed_over_in_mid_conversation(mesh: Mesh, socket: RealtimeSocket) -> None:
    """Sound that was said before a change that needs another call is not lost, nor heard twice."""
    await socket.say(loud(1))
    await socket.until("input_audio_buffer.speech_started")
    await socket.update(
        audio={"input": {"turn_detection": {"type": "server_vad", "silence_duration_ms": 300, "threshold": 0.4}}}
    )
    await socket.say(loud(1, seed=1) + quiet(0.7))
    assert kinds(await socket.reply()) == [*HEARD, *SPOKEN]
    item_id = socket.laws.items[0]
    await socket.send("conversation.item.retrieve", item_id=item_id)
    content = (await socket.one("conversation.item.retrieved"))["item"]["content"]
    assert len(base64.b64decode(content[0]["audio"])) >= len(loud(2))
    assert sum(len(part.audio) for part in mesh.reasoner.heard[-1].parts) >= 2 * 2 * 16_000


async def test_a_session_that_was_idle_is_opened_again() -> None:
    async with (
        Mesh().running(idle_seconds=1.0) as mesh,
        running_gateway(mesh.address) as gateway,
        open_socket(gateway.socket_url) as socket,
    ):
        first = await socket.ask("one")
        await asyncio.wait({task for task in asyncio.all_tasks() if "Line._run" in repr(task)})
        await socket.ask("two")
        assert told(mesh)[1:] == [(USER, "one"), (ASSISTANT, text_of(first)), (USER, "two")]
        assert "error" not in kinds(socket.events)


async def test_a_mesh_without_room_says_when_to_try_again(mesh: Mesh, socket: RealtimeSocket) -> None:
    await socket.ask("one")
    async with Mesh().running(session_limit=1) as full, running_gateway(full.address) as gateway:
        async with full.converse(), open_socket(gateway.socket_url) as other:
            await other.type("one")
            error = await other.refused("response.create")
            assert (error["type"], error["code"]) == ("rate_limit_error", "SESSIONS_IN_USE".lower())
            assert error["retry_seconds"] > 0
        async with open_socket(gateway.socket_url) as other:
            assert kinds(await other.ask("one")) == SPOKEN


async def test_a_stage_that_fails_ends_its_reply_alone(mesh: Mesh, socket: RealtimeSocket) -> None:
    async def fail(_index: int) -> None:
        raise RuntimeError("broken")

    mesh.codec.hook = fail
    response = (await socket.ask("one"))[-1]["response"]
    assert response["status"] == "failed"
    assert response["status_details"]["error"]["type"] == "server_error"
    mesh.codec.hook = no_hook
    assert kinds(await socket.ask("two")) == SPOKEN


async def test_a_mesh_that_is_gone_is_an_error_and_the_socket_lives(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mesh_copy, "RESUME_SECONDS", 0.0)
    mesh = Mesh()
    async with AsyncExitStack() as meshes:
        await meshes.enter_async_context(mesh.running())
        async with running_gateway(mesh.address) as gateway, open_socket(gateway.socket_url) as socket:
            gate = mesh.codec.hook = Gate(1)
            await socket.type("one")
            await socket.send("response.create")
            await socket.until("response.output_audio.delta")
            await gate.reached.wait()
            await meshes.aclose()
            assert (await socket.until("error"))[-1]["error"]["type"] == "server_error"
            response = (await socket.reply())[-1]["response"]
            assert (response["status"], response["status_details"]["error"]["type"]) == ("failed", "server_error")
            assert (await socket.refused("response.create"))["type"] == "server_error"
            await socket.update(instructions="Be brief.")
