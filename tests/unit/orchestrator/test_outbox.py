"""What waits for a client is written in order; of a reply that was stopped, nothing more."""

import asyncio
from typing import Any

from chroma_mesh.orchestrator.v1 import orchestrator_pb2 as pb

from services.orchestrator.heard import TextPiece
from services.orchestrator.outbox import OUTBOX_LIMIT, Outbox


class Client:
    """Reads one message at a time, when it is let to."""

    def __init__(self) -> None:
        self.read: list[pb.ConverseResponse] = []
        self.may_read = asyncio.Semaphore(0)

    async def write(self, message: pb.ConverseResponse) -> None:
        await self.may_read.acquire()
        self.read.append(message)


async def settle() -> None:
    for _ in range(10):
        await asyncio.sleep(0)


async def test_of_a_stopped_reply_nothing_that_waits_is_written() -> None:
    client: Any = Client()
    outbox = Outbox(client)
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(outbox.run())
        await outbox.reply_started(3)
        for index in range(3):
            await outbox.text(3, [TextPiece("word ", index)])
            await outbox.audio(3, index, 2, b"sound", None)
        outbox.speech_started(4, 100)
        await settle()
        dropped = outbox.drop_reply(3)
        assert [(piece.frame_index, piece.frame_count) for piece in dropped] == [(0, 2), (1, 2), (2, 2)]
        outbox.end()
        for _ in range(10):
            client.may_read.release()
    assert [message.WhichOneof("payload") for message in client.read] == ["reply_started", "speech_started"]


async def test_a_reply_waits_for_its_client_and_goes_on_when_it_was_emptied() -> None:
    client: Any = Client()
    outbox = Outbox(client)
    writing = asyncio.create_task(outbox.run())
    await settle()
    for index in range(OUTBOX_LIMIT):
        await outbox.audio(0, index, 1, b"", None)
    await settle()  # one of them is being written
    await outbox.audio(0, OUTBOX_LIMIT, 1, b"", None)
    waiting = asyncio.create_task(outbox.text(1, [TextPiece("next", 0)]))
    await settle()
    assert not waiting.done()
    outbox.speech_stopped(1, 5)  # these wait for nothing
    outbox.drop_reply(0)
    await waiting
    outbox.end()
    for _ in range(10):
        client.may_read.release()
    await writing
    assert [message.WhichOneof("payload") for message in client.read] == ["audio", "speech_stopped", "text"]
