"""`POST /v1/chat/completions`."""

import asyncio
import time
from collections.abc import AsyncGenerator
from contextlib import aclosing

from fastapi import APIRouter, Request
from starlette.responses import Response

from client.connection import Mesh
from client.errors import MeshError
from client.events import Audio, Event, ReplyEnded
from services.gateway.authorization import bearer
from services.gateway.chat.chunks import Chunks
from services.gateway.chat.completion import ChatCompletion, CompletionName, completion
from services.gateway.chat.conversation import read_conversation
from services.gateway.chat.event_stream import EventStream
from services.gateway.chat.reply import chat_refusal, check_ending, replying
from services.gateway.chat.request import ChatRequest
from services.gateway.departure import attended
from services.gateway.front import Front, front_of
from services.gateway.models import check_model
from services.runtime.tracing import current_span

router = APIRouter(prefix="/v1", tags=["chat"])

EVENT = {
    "type": "object",
    "required": ["data"],
    "properties": {"data": {"type": "string", "description": "a chat.completion.chunk as JSON; at last [DONE]"}},
}
STREAM = {"text/event-stream": {"schema": EVENT}}


class Turn:
    """A request that is being answered."""

    def __init__(self, request: Request, asked: ChatRequest) -> None:
        self._request = request
        self._asked = asked
        self._front: Front = front_of(request)
        self._mesh: Mesh = self._front.mesh(bearer(request))
        self._began_at = time.perf_counter()
        check_model(self._front, asked.model)
        self._name = CompletionName(asked.model)

    @property
    def seconds(self) -> float:
        """How long it may take."""
        return self._front.settings.reply_seconds

    async def answer(self) -> ChatCompletion:
        """The whole answer."""
        pieces: list[bytes] = []
        ended: ReplyEnded | None = None
        async with attended(self._request, self.seconds):
            async with aclosing(self._reply()) as events:
                async for event in events:
                    if isinstance(event, Audio):
                        pieces.append(event.data)
                    elif isinstance(event, ReplyEnded):
                        ended = event
            assert ended is not None, "a reply has an end"
            return await asyncio.to_thread(completion, self._name, self._asked, ended, b"".join(pieces))

    async def events(self) -> AsyncGenerator[bytes, None]:
        """The answer as it is made."""
        chunks = Chunks(self._name, self._asked)
        async with aclosing(self._reply()) as events:
            async for event in events:
                for chunk in chunks.of(event):
                    yield chunk

    async def _reply(self) -> AsyncGenerator[Event, None]:
        """What the mesh says, to the end of a reply that is whole; raises Refusal."""
        conversation = await asyncio.to_thread(read_conversation, self._asked)
        try:
            async with replying(self._mesh, self._asked, conversation) as session:
                self._request.state.log["session_id"] = session.id
                async for event in session.reply():
                    if isinstance(event, Audio) and event.frame_index == 0:
                        self._front.metrics.count_first_audio("chat", time.perf_counter() - self._began_at)
                        if (span := current_span()) is not None:
                            span.event("first_audio")
                    elif isinstance(event, ReplyEnded):
                        check_ending(event)
                    yield event
        except MeshError as error:
            raise chat_refusal(error) from None


@router.post(
    "/chat/completions",
    response_model=ChatCompletion,
    responses={200: {"content": STREAM, "description": "the reply; with `stream` its chunks as server-sent events"}},
)
async def create_chat_completion(request: Request, asked: ChatRequest) -> Response:
    """The reply to a conversation."""
    turn = Turn(request, asked)
    if asked.stream:
        return EventStream(request, turn.events(), seconds=turn.seconds)
    answer = await turn.answer()
    left_out = {"audio"} if answer.audio is None else None
    return Response(answer.model_dump_json(exclude=left_out), media_type="application/json")
