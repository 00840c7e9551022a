"""The async Python SDK of Chroma Mesh; needs no torch.

async with client.connect("127.0.0.1:50050") as mesh, mesh.session() as session:
    await session.send_text("How do I make a taco?")
    await session.end_turn()
    async for event in session.reply():
        ...
"""

from client.access import Access
from client.connection import Mesh, connect
from client.errors import ClientError, InputError, MeshError
from client.events import (
    Audio,
    Event,
    FinishReason,
    PromptSize,
    ReplyEnded,
    ReplyStarted,
    SpeechStarted,
    SpeechStopped,
    Text,
    Timings,
    TurnPart,
)
from client.message import Message, Role
from client.pcm import USER_RATE_HZ, VOICE_RATE_HZ, Encoding, Samples
from client.session import Session
from client.session_settings import ReplySettings, ServerVad, SessionSettings, SoundFormat
from client.voice import Voice, VoiceExample

__all__ = [
    "USER_RATE_HZ",
    "VOICE_RATE_HZ",
    "Access",
    "Audio",
    "ClientError",
    "Encoding",
    "Event",
    "FinishReason",
    "InputError",
    "Mesh",
    "MeshError",
    "Message",
    "PromptSize",
    "ReplyEnded",
    "ReplySettings",
    "ReplyStarted",
    "Role",
    "Samples",
    "ServerVad",
    "Session",
    "SessionSettings",
    "SoundFormat",
    "SpeechStarted",
    "SpeechStopped",
    "Text",
    "Timings",
    "TurnPart",
    "Voice",
    "VoiceExample",
    "connect",
]
