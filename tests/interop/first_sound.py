"""How much later a reply's first sound comes through the socket than over gRPC, of one mesh, turn about.

Arguments: the orchestrator's address, and the base URL (…/v1).
"""

import asyncio
import json
import statistics
import sys
import time

import websockets

from client import Session, connect
from client.events import Audio

TURN_COUNT = 40
TYPED = "Say something."
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


async def until(socket: websockets.ClientConnection, kind: str) -> None:
    while json.loads(await socket.recv())["type"] != kind:
        pass


async def main(address: str, base_url: str) -> None:
    url = f"{base_url.replace('http', 'ws', 1)}/realtime"
    grpc_seconds, socket_seconds = [], []
    async with (
        connect(address) as mesh,
        mesh.session() as session,
        websockets.connect(url, proxy=None, compression=None) as socket,
    ):
        for _ in range(TURN_COUNT + 2):  # the first two turns are the slower
            grpc_seconds.append(await over_grpc(session))
            socket_seconds.append(await over_socket(socket))
    for name, seconds in (("gRPC", grpc_seconds[2:]), ("socket", socket_seconds[2:])):
        median, *_, ninth = statistics.median(seconds), *statistics.quantiles(seconds, n=10)
        print(f"{name}: median {1000 * median:.1f} ms, p90 {1000 * ninth:.1f} ms")


asyncio.run(main(*sys.argv[1:]))
