"""The reply to a conversation: one turn of a session that is opened for it."""

import math
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace

import grpc

from client.connection import Mesh
from client.errors import MeshError
from client.events import FinishReason, ReplyEnded
from client.session import Session
from client.session_settings import SessionSettings
from services.gateway.chat.conversation import Conversation
from services.gateway.chat.request import ChatRequest
from services.gateway.errors import Refusal, mesh_refusal
from services.gateway.voice_names import OPENAI_VOICES

FIELDS = {
    "open.sampling.temperature": "temperature",
    "open.sampling.top_k": "top_k",
    "open.voice_name": "audio.voice",
    "open.voice_example.transcript": "prompt_text",
    "open.voice_example": "prompt_audio",
    "open.max_step_count": "max_completion_tokens",
    "open.max_frame_count": "max_frame_count",
}
"""Fields of the mesh and of the request; a refusal of any other is one of the messages."""

SEEDS = 2**64


@asynccontextmanager
async def replying(mesh: Mesh, asked: ChatRequest, conversation: Conversation) -> AsyncIterator[Session]:
    """A session in which the conversation is told and its reply is to be read, as fast as it is made.

    The session is cancelled when the block is left by an exception.
    """
    async with AsyncExitStack() as stack:
        session = await _open_session(stack, mesh, session_settings(asked, conversation))
        for part in conversation.turn:
            if isinstance(part, str):
                await session.send_text(part)
            else:
                await session.send_audio(part)
        await session.end_turn()
        await session.end()
        yield session


async def _open_session(stack: AsyncExitStack, mesh: Mesh, settings: SessionSettings) -> Session:
    try:
        return await stack.enter_async_context(mesh.open_session(settings))
    except MeshError as error:
        named = settings.voice
        if error.reason != "VOICE_NOT_FOUND" or not isinstance(named, str) or named not in OPENAI_VOICES:
            raise
    # To ask for the voices first would be a round trip more before every reply.
    return await stack.enter_async_context(mesh.open_session(replace(settings, voice=None)))


def session_settings(asked: ChatRequest, conversation: Conversation) -> SessionSettings:
    """What the session is opened with."""
    named = asked.audio.voice_name if asked.audio is not None else None
    return SessionSettings(
        voice=conversation.voice_example or named,
        instructions=conversation.instructions,
        history=conversation.history,
        temperature=asked.temperature,
        top_k=asked.top_k,
        seed=None if asked.seed is None else asked.seed % SEEDS,
        max_frame_count=asked.max_frame_count,
        max_step_count=asked.max_completion_tokens or asked.max_tokens,
        ahead_seconds=math.inf,
    )


def check_ending(ended: ReplyEnded) -> None:
    """Raises MeshError for a reply that is not whole."""
    if ended.failure is not None:
        raise ended.failure
    if ended.reason in (FinishReason.FAILED, FinishReason.CANCELLED):
        raise MeshError(grpc.StatusCode.UNAVAILABLE, "REPLY_LOST", "the reply was broken off")


def chat_refusal(error: MeshError) -> Refusal:
    """What the mesh says to a conversation, in the words of the request."""
    refusal = mesh_refusal(error)
    if refusal.status == 400 or error.reason == "VOICE_NOT_FOUND":
        place = next((name for name in FIELDS if (error.field or "").startswith(name)), None)
        refusal.status = 400
        refusal.param = FIELDS[place] if place is not None else "messages"
    if error.reason == "VOICE_NOT_FOUND":
        refusal.message += "; GET /v1/audio/voices lists those that are there"
    if error.reason == "TOO_LONG":
        refusal.code = "context_length_exceeded"
    return refusal
