"""How much later a reply's first sound comes through socket and chat than over gRPC, of one mesh, turn about.

Socket: the prompt is known when the turn ends. Chat: all is said at once, a session each, over open connections;
read by OpenAI's client, which makes objects of what comes, and as bytes.

Arguments: the orchestrator's address, and the base URL (…/v1).
"""

import asyncio
import json
import statistics
import sys
import time

import httpx
import websockets
from openai import AsyncOpenAI

from client import Mesh, Session, connect
from client.events import Audio

TURN_COUNT = 40
TYPED = "Say something."
NOBODY = "-"
"""Stands for a key, where the mesh asks for none."""
SAID_AT_ONCE = {
    "model": "chroma-4b",
    "modalities": ["text", "audio"],
    "audio": {"voice": "ash", "format": "pcm16"},
    "messages": [{"role": "user", "content": TYPED}],
    "stream": True,
    "max_completion_tokens": 8,  # read to its end, so that nothing of it is left when the next one begins
}
THINKING_SECONDS = 0.3
"""Between what is typed and the end of the turn, so that its prompt is prefilled both times."""


async def over_grpc(session: Session) -> float:
    await session.send_text(TYPED)
    await asyncio.sleep(THINKING_SECONDS)
    began_at = time.perf_counter()
    await session.end_turn()
    heard_at = 0.0
    async for event in session.reply():
        if isinstance(event, Audio) and not heard_at:
            heard_at = time.perf_counter()
            await session.cancel_reply()
    return heard_at - began_at


async def over_socket(socket: websockets.ClientConnection) -> float:
    item = {"type": "message", "role": "user", "content": [{"type": "input_text", "text": TYPED}]}
    await socket.send(json.dumps({"type": "conversation.item.create", "item": item}))
    await until(socket, "conversation.item.done")
    await asyncio.sleep(THINKING_SECONDS)
    began_at = time.perf_counter()
    await socket.send(json.dumps({"type": "response.create"}))
    await until(socket, "response.output_audio.delta")
    heard_at = time.perf_counter()
    await socket.send(json.dumps({"type": "response.cancel"}))
    await until(socket, "response.done")
    return heard_at - began_at


async def over_grpc_at_once(mesh: Mesh) -> float:
    began_at, heard_at = time.perf_counter(), 0.0
    async with mesh.session() as session:
        await session.send_text(TYPED)
        await session.end_turn()
        async for event in session.reply():
            if isinstance(event, Audio) and not heard_at:
                heard_at = time.perf_counter()
                await session.cancel_reply()
    return heard_at - began_at


async def over_chat(openai: AsyncOpenAI) -> float:
    began_at, heard_at = time.perf_counter(), 0.0
    async for chunk in await openai.chat.completions.create(**SAID_AT_ONCE):
        delta = chunk.choices[0].delta.model_dump() if chunk.choices else {}
        if (delta.get("audio") or {}).get("data") and not heard_at:
            heard_at = time.perf_counter()
    return heard_at - began_at


async def over_chat_as_bytes(http: httpx.AsyncClient) -> float:
    began_at, heard_at = time.perf_counter(), 0.0
    async with http.stream("POST", "chat/completions", json=SAID_AT_ONCE) as response:
        async for line in response.aiter_lines():
            if '"data":"' in line and not heard_at:
                heard_at = time.perf_counter()
    return heard_at - began_at


async def until(socket: websockets.ClientConnection, kind: str) -> None:
    while json.loads(await socket.recv())["type"] != kind:
        pass


async def main(address: str, base_url: str) -> None:
    url = f"{base_url.replace('http', 'ws', 1)}/realtime"
    ways: dict[str, list[float]] = {}
    async with (
        connect(address) as mesh,
        mesh.session() as session,
        websockets.connect(url, proxy=None, compression=None) as socket,
        AsyncOpenAI(base_url=base_url, api_key=NOBODY) as openai,
        httpx.AsyncClient(base_url=base_url, trust_env=False) as http,
    ):
        for _ in range(TURN_COUNT + 2):  # the first two turns are the slower
            for name, seconds in (
                ("gRPC", await over_grpc(session)),
                ("socket", await over_socket(socket)),
                ("gRPC, at once", await over_grpc_at_once(mesh)),
                ("chat, as bytes", await over_chat_as_bytes(http)),
                ("chat", await over_chat(openai)),
            ):
                ways.setdefault(name, []).append(seconds)
    for name, (_, _, *seconds) in ways.items():
        median, *_, ninth = statistics.median(seconds), *statistics.quantiles(seconds, n=10)
        print(f"{name}: median {1000 * median:.1f} ms, p90 {1000 * ninth:.1f} ms")


asyncio.run(main(*sys.argv[1:]))
