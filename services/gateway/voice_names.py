"""Which voice answers to a name."""

from dataclasses import dataclass
from typing import Self

from client.connection import Mesh

OPENAI_VOICES = frozenset(
    ("alloy", "ash", "ballad", "cedar", "coral", "echo", "fable", "marin", "nova", "onyx", "sage", "shimmer", "verse")
)
"""The voices that OpenAI's clients name without being told to: the mesh's default answers to those that it has not."""


@dataclass(frozen=True)
class VoiceNames:
    """The voices of the mesh, as the bearer of a key sees them."""

    names: frozenset[str]
    default: str

    @classmethod
    async def of(cls, mesh: Mesh) -> Self:
        """The voices that there are; raises MeshError, also for a key that the mesh does not know."""
        voices = await mesh.voices()
        default = next((voice.name for voice in voices if voice.is_default), "")
        return cls(frozenset(voice.name for voice in voices), default)

    def has(self, name: str) -> bool:
        """Whether a voice answers to the name."""
        return name in self.names or name in OPENAI_VOICES

    def answering(self, name: str) -> str | None:
        """The voice that answers to a name which `has` knows; None leaves it to the mesh."""
        return (name if name in self.names else self.default) or None
