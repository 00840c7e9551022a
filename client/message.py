"""One message of a conversation."""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum

from chroma_mesh.types.v1 import types_pb2

from client.pcm import USER_RATE_HZ, Encoding, Samples


class Role(Enum):
    """Who speaks."""

    SYSTEM = "system"
    USER = "user"
    ASSISTANT = "assistant"


ROLES = {
    Role.SYSTEM: types_pb2.ROLE_SYSTEM,
    Role.USER: types_pb2.ROLE_USER,
    Role.ASSISTANT: types_pb2.ROLE_ASSISTANT,
}


@dataclass(frozen=True, eq=False)
class Message:
    """What one side said, in order: text, or mono samples at 16,000 Hz (users only)."""

    role: Role
    parts: Sequence[str | Samples]

    def wire(self, encoding: Encoding) -> types_pb2.Message:
        """The message as the protos say it."""
        parts = [
            types_pb2.ContentPart(text=part)
            if isinstance(part, str)
            else types_pb2.ContentPart(audio=encoding.audio(part, USER_RATE_HZ))
            for part in self.parts
        ]
        return types_pb2.Message(role=ROLES[self.role], parts=parts)
