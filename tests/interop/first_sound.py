"""How much later a reply's first sound comes through socket and chat than over gRPC, of one mesh, turn about.

Socket: the prompt is known when the turn ends. Chat: all is said at once, a session each, over open connections.

Arguments: the orchestrator's address, and the base URL (…/v1).
"""

import asyncio
import json
import statistics
import sys
import time

import websockets
from openai import AsyncOpenAI

from client import Mesh, Session, connect
from client.events import Audio

TURN_COUNT = 40
TYPED = "Say something."
NOBODY = "-"
"""Stands for a key, where the mesh asks for none."""
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
    began_at = time.perf_counter()
    chunks = await openai.chat.completions.create(
        model="chroma-4b",
        modalities=["text", "audio"],
        audio={"voice": "ash", "format": "pcm16"},
        messages=[{"role": "user", "content": TYPED}],
        stream=True,
    )
    async with chunks:
        async for chunk in chunks:
            delta = chunk.choices[0].delta.model_dump() if chunk.choices else {}
            if (delta.get("audio") or {}).get("data"):
                return time.perf_counter() - began_at
    raise RuntimeError("no sound came")


async def until(socket: websockets.ClientConnection, kind: str) -> None:
    while json.loads(await socket.recv())["type"] != kind:
        pass


async def main(address: str, base_url: str) -> None:
    url = f"{base_url.replace('http', 'ws', 1)}/realtime"
    grpc_seconds, socket_seconds, at_once_seconds, chat_seconds = [], [], [], []
    async with (
        connect(address) as mesh,
        mesh.session() as session,
        websockets.connect(url, proxy=None, compression=None) as socket,
        AsyncOpenAI(base_url=base_url, api_key=NOBODY) as openai,
    ):
        for _ in range(TURN_COUNT + 2):  # the first two turns are the slower
            grpc_seconds.append(await over_grpc(session))
            socket_seconds.append(await over_socket(socket))
            at_once_seconds.append(await over_grpc_at_once(mesh))
            chat_seconds.append(await over_chat(openai))
    ways = {"gRPC": grpc_seconds, "socket": socket_seconds, "gRPC, at once": at_once_seconds, "chat": chat_seconds}
    for name, (_, _, *seconds) in ways.items():
        median, *_, ninth = statistics.median(seconds), *statistics.quantiles(seconds, n=10)
        print(f"{name}: median {1000 * median:.1f} ms, p90 {1000 * ninth:.1f} ms")


asyncio.run(main(*sys.argv[1:]))
