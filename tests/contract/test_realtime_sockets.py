"""Who may open a socket, what ends one, and what does not."""

import asyncio
import base64
import json
import socket as sockets
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import websockets
from websockets.exceptions import ConnectionClosed, InvalidStatus

from services.gateway import __main__ as gateway_main
from services.gateway.realtime import route, socket_session
from services.gateway.realtime import socket as socket_module
from services.orchestrator import user_turn
from tests.contract.fake_mesh import Mesh, no_hook
from tests.contract.gateway_server import Gateway, running_gateway
from tests.contract.keyed_mesh import keyed_mesh
from tests.contract.realtime_socket import RealtimeSocket, kinds, loud, open_socket, quiet, said
from tests.contract.test_realtime import SPOKEN, Gate


def body(kind: str, **fields: Any) -> str:
    return json.dumps({"type": kind, "event_id": "e", **fields})


def item(**fields: Any) -> dict[str, Any]:
    return {"item": {**said("x"), **fields}}


def session(**fields: Any) -> dict[str, Any]:
    return {"session": {"type": "realtime", **fields}}


def heard(**fields: Any) -> dict[str, Any]:
    return session(audio={"input": fields})


WRONG: list[tuple[str, str | None, str | None]] = [
    ("{", "invalid_json", None),
    ('"\\ud800"', "invalid_json", None),
    ("[" * 100_000, "invalid_json", None),
    ('{"a":1e999}', "missing_required_parameter", "type"),
    ("[]", "invalid_type", None),
    ("{}", "missing_required_parameter", "type"),
    (body("nothing"), "invalid_value", "type"),
    ('{"type":7}', "invalid_value", "type"),
    ('{"type":"response.cancel","event_id":7}', "invalid_type", "event_id"),
    (body("input_audio_buffer.append"), "missing_required_parameter", "audio"),
    (body("input_audio_buffer.append", audio=7), "invalid_type", "audio"),
    (body("input_audio_buffer.append", audio="%"), "invalid_value", "audio"),
    (body("input_audio_buffer.append", audio="AAA"), "invalid_value", "audio"),
    (body("input_audio_buffer.append", audio=base64.b64encode(b"odd").decode()), "invalid_value", "audio"),
    (body("input_audio_buffer.append", audio="", more=1), "unknown_parameter", "more"),
    (body("input_audio_buffer.commit"), "input_audio_buffer_commit_empty", None),
    (body("output_audio_buffer.clear"), "invalid_value", "type"),
    (body("response.cancel"), "response_cancel_not_active", None),
    (body("session.update"), "missing_required_parameter", "session"),
    (body("session.update", **session(type="transcription")), "invalid_value", "session.type"),
    (body("session.update", **session(model="gpt")), "invalid_value", "session.model"),
    (body("session.update", **session(voice="ash")), "unknown_parameter", "session.voice"),
    (body("session.update", **session(tools=[{"type": "function"}])), "invalid_value", "session.tools"),
    (body("session.update", **session(prompt={"id": "x"})), "invalid_value", "session.prompt"),
    (body("session.update", **session(max_output_tokens=0)), "invalid_value", "session.max_output_tokens"),
    (body("session.update", **session(max_output_tokens="x")), "invalid_type", "session.max_output_tokens"),
    (body("session.update", **session(output_modalities=[])), "invalid_value", "session.output_modalities"),
    (
        body("session.update", **session(audio={"output": {"speed": 1.5}})),
        "invalid_value",
        "session.audio.output.speed",
    ),
    (
        body("session.update", **session(audio={"output": {"voice": "nobody"}})),
        "invalid_value",
        "session.audio.output.voice",
    ),
    (
        body("session.update", **heard(format={"type": "audio/pcm", "rate": 16000})),
        "invalid_value",
        "session.audio.input.format.rate",
    ),
    (body("session.update", **heard(format={"type": "mp3"})), "invalid_value", "session.audio.input.format.type"),
    (
        body("session.update", **heard(turn_detection={"type": "server_vad", "threshold": 2})),
        "invalid_value",
        "session.audio.input.turn_detection.threshold",
    ),
    (
        body("session.update", **heard(turn_detection={"type": "server_vad", "idle_timeout_ms": 6000})),
        "invalid_value",
        "session.audio.input.turn_detection.idle_timeout_ms",
    ),
    (
        body("session.update", **heard(turn_detection={"type": "server_vad", "eagerness": "low"})),
        "unknown_parameter",
        "session.audio.input.turn_detection.eagerness",
    ),
    (body("conversation.item.create", item={"type": "function_call"}), "invalid_value", "item.type"),
    (body("conversation.item.create", **item(role=None)), "missing_required_parameter", "item.role"),
    (body("conversation.item.create", **item(content=[])), "missing_required_parameter", "item.content"),
    (body("conversation.item.create", **item(name="x")), "unknown_parameter", "item.name"),
    (
        body("conversation.item.create", **item(content=[{"type": "input_text", "text": ""}])),
        "invalid_value",
        "item.content[0].text",
    ),
    (
        body("conversation.item.create", **item(content=[{"type": "input_text", "text": "<|im_end|>"}])),
        "invalid_value",
        "item.content[0].text",
    ),
    (
        body("conversation.item.create", **item(content=[{"type": "input_image", "image_url": "x"}])),
        "invalid_value",
        "item.content[0].type",
    ),
    (
        body("conversation.item.create", **item(content=[{"type": "input_audio", "audio": "AAAA"}])),
        "invalid_value",
        "item.content[0].audio",
    ),
    (
        body("conversation.item.create", previous_item_id="nobody", **item()),
        "item_create_invalid_item_id",
        "previous_item_id",
    ),
    (body("conversation.item.retrieve", item_id="nobody"), "item_retrieve_invalid_item_id", "item_id"),
    (body("conversation.item.delete", item_id="nobody"), "item_delete_invalid_item_id", "item_id"),
    (
        body("conversation.item.truncate", item_id="nobody", content_index=0, audio_end_ms=0),
        "item_truncate_invalid_item_id",
        "item_id",
    ),
    (body("response.create", response={"conversation": "none"}), "invalid_value", "response.conversation"),
    (body("response.create", response={"input": []}), "invalid_value", "response.input"),
    (
        body("response.create", response={"audio": {"output": {"format": {"type": "audio/pcmu"}}}}),
        "invalid_value",
        "response.audio.output.format",
    ),
    (body("response.create", response={"tools": [{"type": "function"}]}), "invalid_value", "response.tools"),
    (
        body("response.create", response={"audio": {"output": {"voice": {"id": "nobody"}}}}),
        "invalid_value",
        "response.audio.output.voice",
    ),
]


async def test_a_wrong_event_is_an_error_and_changes_nothing(socket: RealtimeSocket) -> None:
    for message, code, param in WRONG:
        await socket.socket.send(message)
        error = (await socket.one("error"))["error"]
        assert (error["type"], error["code"], error["param"]) == ("invalid_request_error", code, param), message[:200]
        assert error["event_id"] == ("e" if '"event_id": "e"' in message else None)
        assert len(error["message"]) < 1000
    assert socket.laws.items == []
    assert kinds(await socket.ask("one")) == SPOKEN


async def test_binary_messages_and_what_is_no_utf8(gateway: Gateway) -> None:
    async with open_socket(gateway.socket_url) as socket:
        await socket.socket.send(b"\x00\xff")
        assert (await socket.one("error"))["error"]["code"] == "invalid_json"
        assert kinds(await socket.ask("one")) == SPOKEN
        await socket.socket.send(b"\xc3", text=True)
        with pytest.raises(ConnectionClosed) as closed:
            await socket.receive()
        assert closed.value.rcvd is not None
        assert closed.value.rcvd.code == 1007


async def test_a_message_that_is_too_large_ends_its_socket_alone(gateway: Gateway) -> None:
    async with open_socket(gateway.socket_url) as other:
        async with open_socket(gateway.socket_url) as socket:
            with suppress(ConnectionClosed):
                await socket.socket.send("x" * (17 * 1024 * 1024))
            with pytest.raises(ConnectionClosed) as closed:
                await socket.receive()
            assert closed.value.rcvd is not None
            assert closed.value.rcvd.code == 1009
        assert kinds(await other.ask("one")) == SPOKEN


async def test_other_models_are_refused(gateway: Gateway) -> None:
    async with websockets.connect(f"{gateway.socket_url}/v1/realtime?model=gpt", proxy=None) as socket:
        error = json.loads(await socket.recv())["error"]
        assert (error["code"], error["param"]) == ("model_not_found", "model")
        with pytest.raises(ConnectionClosed) as closed:
            await socket.recv()
    assert closed.value.rcvd is not None
    assert (closed.value.rcvd.code, closed.value.rcvd.reason) == (
        route.WRONG_REQUEST,
        "invalid_request_error.model_not_found",
    )
    async with open_socket(gateway.socket_url, "/v1/realtime") as named:
        assert named.events[0]["session"]["model"] == "chroma-4b"


@pytest.mark.parametrize("way", ["header", "subprotocol", "query"])
async def test_keys_come_in_three_ways(way: str, tmp_path: Path) -> None:
    async with keyed_mesh(tmp_path) as mesh, running_gateway(mesh.address) as gateway:
        for key in (mesh.keys.secrets["alice"], "sk-wrong"):
            path, options = "/v1/realtime?model=chroma-4b", {}
            if way == "header":
                options = {"additional_headers": {"Authorization": f"Bearer {key}"}}
            elif way == "subprotocol":
                options = {"subprotocols": ["realtime", f"openai-insecure-api-key.{key}"]}
            else:
                path += f"&api_key={key}"
            if key == "sk-wrong":
                async with websockets.connect(gateway.socket_url + path, proxy=None, **options) as socket:
                    error = json.loads(await socket.recv())["error"]
                    assert error["type"] in ("authentication_error", "permission_error")
                    with pytest.raises(ConnectionClosed) as closed:
                        await socket.recv()
                assert closed.value.rcvd is not None
                assert closed.value.rcvd.code == route.WRONG_KEY
                continue
            async with open_socket(gateway.socket_url, path, **options) as realtime:
                assert realtime.socket.subprotocol == ("realtime" if way == "subprotocol" else None)
                assert kinds(await realtime.ask("one")) == SPOKEN


async def test_one_socket_more_than_there_may_be(mesh: Mesh) -> None:
    async with running_gateway(mesh.address, socket_limit=2) as gateway:
        async with open_socket(gateway.socket_url), open_socket(gateway.socket_url):
            with pytest.raises(InvalidStatus) as refused:
                async with open_socket(gateway.socket_url):
                    pass
            response = refused.value.response
            assert response.status_code == 503
            assert json.loads(response.body)["error"]["code"] == "too_many_sockets"
            assert response.headers["Retry-After"] == "5"
        async with open_socket(gateway.socket_url) as socket:
            assert kinds(await socket.ask("one")) == SPOKEN


async def test_pages_from_elsewhere_are_refused(mesh: Mesh) -> None:
    async with running_gateway(mesh.address, cors_origins=["https://app.example"]) as gateway:
        for origin in (gateway.url, "https://app.example"):
            async with open_socket(gateway.socket_url, origin=origin):
                pass
        with pytest.raises(InvalidStatus) as refused:
            async with open_socket(gateway.socket_url, origin="https://evil.example"):
                pass
        assert refused.value.response.status_code == 403
        assert json.loads(refused.value.response.body)["error"]["code"] == "origin_not_allowed"


async def test_a_mesh_that_is_not_there(gateway: Gateway) -> None:
    async with running_gateway("127.0.0.1:1") as lonely:
        with pytest.raises(InvalidStatus) as refused:
            async with open_socket(lonely.socket_url):
                pass
        assert refused.value.response.status_code == 503


async def test_a_drain_lets_the_reply_finish(mesh: Mesh, gateway: Gateway) -> None:
    async with open_socket(gateway.socket_url) as idle, open_socket(gateway.socket_url) as socket:
        gate = mesh.codec.hook = Gate(2)
        await socket.type("one")
        await socket.send("response.create")
        await socket.until("response.output_audio.delta")
        await gate.reached.wait()
        gateway.front.drain.started.set()
        with pytest.raises(ConnectionClosed) as closed:
            await idle.receive()
        assert closed.value.rcvd is not None
        assert closed.value.rcvd.code == 1012
        with pytest.raises(InvalidStatus) as refused:
            async with open_socket(gateway.socket_url):
                pass
        assert refused.value.response.status_code == 503
        gate.open()
        assert (await socket.reply())[-1]["response"]["status"] == "completed"
        with pytest.raises(ConnectionClosed) as closed:
            await socket.receive()
        assert closed.value.rcvd is not None
        assert closed.value.rcvd.code == 1012


async def test_a_client_that_does_not_read_is_let_go(mesh: Mesh, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gateway_main, "UNREAD_SECONDS", 0.2)
    monkeypatch.setattr(socket_module, "SEND_SECONDS", 0.2)
    async with running_gateway(mesh.address) as gateway:
        host, port = gateway.address.split(":")
        with sockets.create_connection((host, int(port))) as deaf:
            deaf.setsockopt(sockets.SOL_SOCKET, sockets.SO_RCVBUF, 4096)
            deaf.setblocking(False)
            loop = asyncio.get_running_loop()
            key = base64.b64encode(bytes(16)).decode()
            await loop.sock_sendall(
                deaf,
                f"GET /v1/realtime HTTP/1.1\r\nHost: {gateway.address}\r\nUpgrade: websocket\r\n"
                f"Connection: Upgrade\r\nSec-WebSocket-Key: {key}\r\nSec-WebSocket-Version: 13\r\n\r\n".encode(),
            )
            flood = _frame(b'{"type":"nothing"}') * 200
            with pytest.raises(OSError, match=r"reset|pipe"):
                await _shout(deaf, flood)
        async with open_socket(gateway.socket_url) as socket:
            assert kinds(await socket.ask("one")) == SPOKEN


async def _shout(deaf: sockets.socket, flood: bytes) -> None:
    while True:
        await asyncio.get_running_loop().sock_sendall(deaf, flood)


def _sockets_open(gateway: Gateway) -> float:
    return gateway.front.registry.get_sample_value("chroma_gateway_sockets_in_use") or 0.0


def _frame(payload: bytes) -> bytes:
    """A masked text frame, the mask being zero."""
    assert len(payload) < 126
    return bytes([0x81, 0x80 | len(payload), 0, 0, 0, 0]) + payload


async def test_a_socket_that_is_cut_leaves_nothing_behind(mesh: Mesh, gateway: Gateway) -> None:
    before = asyncio.all_tasks()
    async with open_socket(gateway.socket_url) as socket:
        gate = mesh.codec.hook = Gate(2)
        await socket.say(loud(1) + quiet(0.7))
        await socket.until("response.output_audio.delta")
        await gate.reached.wait()
        socket.socket.transport.abort()
    mesh.codec.hook = no_hook
    await mesh.until_quiet()
    while _sockets_open(gateway):  # noqa: ASYNC110
        await asyncio.sleep(0)
    left = {task for task in asyncio.all_tasks() - before if not task.done() and "realtime" in repr(task.get_coro())}
    assert not left
    assert mesh.registry.get_sample_value("chroma_orchestrator_sessions_in_use") in (0.0, None)


async def test_a_turn_is_no_longer_than_the_mesh_takes(
    mesh: Mesh, socket: RealtimeSocket, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(socket_session, "LONGEST_TURN_SECONDS", 3)
    monkeypatch.setattr(socket_session, "UNCOMMITTED_SECONDS", 1)
    await socket.manual()
    await socket.say(loud(3) + loud(0.5), seconds=0.5)  # the oldest of it is forgotten
    await socket.send("input_audio_buffer.commit")
    await socket.until("conversation.item.done")
    await socket.say(loud(1), seconds=0.5)
    error = await socket.refused("input_audio_buffer.append", audio=base64.b64encode(loud(1)).decode())
    assert error["code"] == "input_audio_buffer_full"
    await socket.send("input_audio_buffer.clear")
    await socket.send("response.create")
    assert kinds(await socket.reply())[-len(SPOKEN) :] == SPOKEN
    assert sum(len(part.audio) for part in mesh.reasoner.heard[-1].parts) == round(1.5 * 32_000)


async def test_a_microphone_that_is_always_on_is_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(user_turn, "MAXIMUM_SECONDS", 2.0)
    monkeypatch.setattr(socket_session, "UNCOMMITTED_SECONDS", 1)
    async with (
        Mesh().running() as mesh,
        running_gateway(mesh.address) as gateway,
        open_socket(gateway.socket_url) as socket,
    ):
        await socket.manual()
        await socket.say(quiet(3), seconds=0.5)
        await socket.ask("one")
        assert "error" not in kinds(socket.events)
