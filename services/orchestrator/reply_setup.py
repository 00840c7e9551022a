"""What a reply is given with."""

from dataclasses import dataclass

from chroma_mesh.types.v1 import types_pb2


@dataclass(frozen=True)
class ReplySetup:
    """The settings of one reply."""

    voice_prompt: types_pb2.VoicePrompt
    instructions: str
    sampling: types_pb2.Sampling
    max_frame_count: int
    max_step_count: int | None


@dataclass(frozen=True)
class ReplyChanges:
    """Settings that take the place of others; None leaves one as it is."""

    voice_prompt: types_pb2.VoicePrompt | None = None
    instructions: str | None = None
    sampling: types_pb2.Sampling | None = None
    max_frame_count: int | None = None
    max_step_count: int | None = None

    def over(self, setup: ReplySetup) -> ReplySetup:
        """The setup with these changes."""
        return ReplySetup(
            voice_prompt=setup.voice_prompt if self.voice_prompt is None else self.voice_prompt,
            instructions=setup.instructions if self.instructions is None else self.instructions,
            sampling=setup.sampling if self.sampling is None else self.sampling,
            max_frame_count=setup.max_frame_count if self.max_frame_count is None else self.max_frame_count,
            max_step_count=setup.max_step_count if self.max_step_count is None else self.max_step_count,
        )
