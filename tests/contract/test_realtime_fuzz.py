"""Any events in any order: the laws of the protocol hold, the socket stays open, and nothing is left behind.

CHROMA_TEST_FUZZ=2000 tries so many examples, others at every run.
"""

import asyncio
import base64
import json
import os
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

import pytest
import pytest_asyncio
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from services.orchestrator import session as session_module
from tests.contract.fake_mesh import Mesh
from tests.contract.gateway_server import Gateway, running_gateway
from tests.contract.realtime_socket import RealtimeSocket, loud, open_socket, quiet, said
from tests.contract.test_live_session import LoudnessDetector

EXAMPLES = int(os.environ.get("CHROMA_TEST_FUZZ", "30"))
fuzz = settings(
    max_examples=EXAMPLES,
    derandomize="CHROMA_TEST_FUZZ" not in os.environ,
    database=None,
    deadline=None,
    phases=(Phase.generate,),
    print_blob=True,
    suppress_health_check=list(HealthCheck),
)

pytestmark = [
    pytest.mark.asyncio(loop_scope="module"),
    pytest.mark.filterwarnings("ignore:Generating overly large repr"),  # sound in base64 is long
]


@dataclass(frozen=True)
class Served:
    mesh: Mesh
    gateway: Gateway


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def served() -> AsyncIterator[Served]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(session_module, "ServerVadDetector", LoudnessDetector)
        async with Mesh().running() as mesh, running_gateway(mesh.address) as gateway:
            yield Served(mesh, gateway)


# What is sent: an event, some of whose fields stand for an item of the conversation, or a message as it is.
Sent = dict[str, Any] | str | bytes


def event(kind: str, **fields: Any) -> dict[str, Any]:
    return {"type": kind, **fields}


def append(sound: bytes) -> dict[str, Any]:
    return event("input_audio_buffer.append", audio=base64.b64encode(sound).decode())


def session(**fields: Any) -> dict[str, Any]:
    return event("session.update", session={"type": "realtime", **fields})


def detection(**fields: Any) -> dict[str, Any]:
    return session(audio={"input": {"turn_detection": {"type": "server_vad", **fields}}})


ITEM = "ITEM"
"""In place of the id of an item that there is, or was."""

NAMED = {
    "loud": append(loud(1)),
    "short": append(loud(0.3)),
    "quiet": append(quiet(0.7)),
    "packet": append(quiet(0.02)),
    "nothing": append(b""),
}
"""Sound by a name, for examples are printed."""

SOUNDS = st.sampled_from(list(NAMED))
EDITS = st.sampled_from(
    [
        event("conversation.item.create", item=said("one")),
        event("conversation.item.create", item=said("two", "assistant")),
        event("conversation.item.create", item=said("Be kind.", "system")),
        event("conversation.item.create", item=said("first"), previous_item_id="root"),
        event("conversation.item.create", item=said("next"), previous_item_id=ITEM),
        event(
            "conversation.item.create",
            item={
                "type": "message",
                "role": "user",
                "content": [{"type": "input_audio", "audio": base64.b64encode(loud(0.2)).decode()}],
            },
        ),
        event("conversation.item.delete", item_id=ITEM),
        event("conversation.item.retrieve", item_id=ITEM),
        event("conversation.item.truncate", item_id=ITEM, content_index=0, audio_end_ms=20),
        event("conversation.item.truncate", item_id=ITEM, content_index=0, audio_end_ms=0),
    ]
)
BUFFER = st.sampled_from([event("input_audio_buffer.commit"), event("input_audio_buffer.clear")])
REPLIES = st.sampled_from(
    [
        event("response.create"),
        event("response.create", response={"output_modalities": ["text"]}),
        event("response.create", response={"instructions": "Sing.", "max_output_tokens": 3}),
        event("response.cancel"),
    ]
)
SETTINGS = st.sampled_from(
    [
        session(audio={"input": {"turn_detection": None}}),
        detection(),
        detection(create_response=False),
        detection(interrupt_response=False),
        detection(create_response=False, interrupt_response=False),
        session(audio={"input": {"turn_detection": {"type": "semantic_vad", "eagerness": "high"}}}),
        session(audio={"input": {"format": {"type": "audio/pcmu"}}}),
        session(audio={"input": {"format": {"type": "audio/pcm", "rate": 24000}}}),
        session(audio={"output": {"format": {"type": "audio/pcma"}}}),
        session(instructions="Be brief.", output_modalities=["text"]),
        session(instructions="", output_modalities=["audio"], max_output_tokens="inf"),
    ]
)
ANY_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=10), inner, max_size=3),
    max_leaves=8,
)
KINDS = st.sampled_from(
    ["session.update", "response.create", "conversation.item.create", "conversation.item.truncate", "nothing"]
)
WRONG = (
    st.text(max_size=60).map(lambda text: f"{text} ")
    | st.binary(max_size=20)
    | ANY_JSON.map(json.dumps)
    | st.builds(lambda kind, more: {**more, "type": kind}, KINDS, st.dictionaries(st.text(max_size=8), ANY_JSON))
    | st.builds(lambda kind, value: {"type": kind, "session": value, "item": value, "response": value}, KINDS, ANY_JSON)
)
MESSAGES: st.SearchStrategy[Sent] = st.one_of(SOUNDS, SOUNDS, EDITS, BUFFER, REPLIES, REPLIES, SETTINGS, WRONG)


@fuzz
@given(messages=st.lists(MESSAGES, max_size=25), picks=st.randoms(use_true_random=False), waits=st.booleans())
async def test_any_events_in_any_order(served: Served, messages: list[Sent], picks: Any, waits: bool) -> None:
    async with asyncio.timeout(30), open_socket(served.gateway.socket_url) as socket:
        for index, message in enumerate(messages):
            await _send(socket, message, picks)
            if waits:
                await _answered(socket, f"sentinel_{index}")
        await _answered(socket, "end")
        await socket.send("response.cancel")
        await _answered(socket, "very end")
    errors = [it["error"] for it in socket.events if it["type"] == "error"]
    assert not [error for error in errors if error["type"] != "invalid_request_error"]
    await served.mesh.until_quiet()
    await _nothing_left(served)


async def _send(socket: RealtimeSocket, message: Sent, picks: Any) -> None:
    if isinstance(message, str):
        message = NAMED.get(message, message)
    if not isinstance(message, dict):
        await socket.socket.send(message)
        return
    items = socket.laws.items
    item_id = picks.choice(items) if items else "nobody"
    filled = {name: item_id if value == ITEM else value for name, value in message.items()}
    await socket.socket.send(json.dumps(filled))


async def _answered(socket: RealtimeSocket, item_id: str) -> None:
    """Reads all that comes before the answer to an event that is sent now."""
    await socket.socket.send(json.dumps(event("conversation.item.retrieve", item_id=item_id, event_id=item_id)))
    while True:
        told = await socket.receive()
        if told["type"] == "error" and told["error"]["event_id"] == item_id:
            return


async def _nothing_left(served: Served) -> None:
    def count(registry: Any, name: str) -> float:
        return registry.get_sample_value(name) or 0.0

    while (  # noqa: ASYNC110
        count(served.gateway.front.registry, "chroma_gateway_sockets_in_use")
        or count(served.mesh.registry, "chroma_orchestrator_sessions_in_use")
        or any("realtime" in repr(task.get_coro()) for task in asyncio.all_tasks())
    ):
        await asyncio.sleep(0)
