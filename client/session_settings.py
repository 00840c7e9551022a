"""What a session, and a reply of it, is to be like."""

from collections.abc import Sequence
from dataclasses import dataclass

from chroma_mesh.orchestrator.v1 import orchestrator_pb2
from chroma_mesh.types.v1 import types_pb2

from client.message import Message
from client.pcm import USER_RATE_HZ, VOICE_RATE_HZ, Encoding
from client.voice import VoiceExample


@dataclass(frozen=True)
class SoundFormat:
    """How mono sound is sent: 8,000, 16,000, 24,000 or 48,000 Hz, G.711 at 8,000 Hz only."""

    encoding: Encoding
    sample_rate_hz: int

    def wire(self) -> types_pb2.AudioFormat:
        """The format as the protos say it."""
        return self.encoding.wire_format(self.sample_rate_hz)


@dataclass(frozen=True, kw_only=True)
class ServerVad:
    """The mesh hears when a user turn is over; None takes its default.

    `threshold`: how sure it must be that it hears speech, 0 ..= 1; `prefix_padding_ms` 0 ..= 5000: sound kept from
    before the speech was noticed; `silence_duration_ms` 100 ..= 10000: silence after which the turn is over;
    `barge_in`: whether speech during a reply stops the reply, by default it does; `ends_turns`: whether silence ends
    the turn, by default it does, and otherwise only `end_turn`.
    """

    threshold: float | None = None
    prefix_padding_ms: int | None = None
    silence_duration_ms: int | None = None
    barge_in: bool | None = None
    ends_turns: bool | None = None

    def wire(self) -> orchestrator_pb2.TurnDetection:
        """The settings as the protos say them."""
        server_vad = orchestrator_pb2.ServerVad(
            threshold=self.threshold,
            prefix_padding_ms=self.prefix_padding_ms,
            silence_duration_ms=self.silence_duration_ms,
            barge_in=self.barge_in,
            ends_turns=self.ends_turns,
        )
        return orchestrator_pb2.TurnDetection(server_vad=server_vad)


@dataclass(frozen=True, kw_only=True)
class ReplySettings:
    """What a reply is given with; None leaves it as it is, which is at first the mesh's default.

    `voice` is a name or an example; `instructions` is the system message, where "" is none at all; `temperature`
    0 ..= 2 with 0 for the most likely code, `top_k` 0 for all codes and `seed` go together: where one of them is given,
    the others take the mesh's default; `max_frame_count` limits a reply in frames of 80 ms, `max_step_count` its text
    in tokens.
    """

    voice: str | VoiceExample | None = None
    instructions: str | None = None
    temperature: float | None = None
    top_k: int | None = None
    seed: int | None = None
    max_frame_count: int | None = None
    max_step_count: int | None = None

    def reply_message(self) -> orchestrator_pb2.ReplySettings:
        """The settings as the protos say them."""
        return orchestrator_pb2.ReplySettings(
            voice_name=self.voice if isinstance(self.voice, str) else None,
            voice_example=self.voice.message() if isinstance(self.voice, VoiceExample) else None,
            instructions=self.instructions,
            sampling=self.sampling(),
            max_frame_count=self.max_frame_count,
            max_step_count=self.max_step_count,
        )

    def sampling(self) -> types_pb2.Sampling | None:
        """How codes are drawn; None when nothing is said about it."""
        if self.temperature is None and self.top_k is None and self.seed is None:
            return None
        return types_pb2.Sampling(temperature=self.temperature, top_k=self.top_k, seed=self.seed)


@dataclass(frozen=True, kw_only=True)
class SessionSettings(ReplySettings):
    """What a session begins with, and what does not change in it; None takes the mesh's default.

    `history` holds earlier user and assistant messages; `turn_detection` None leaves it to `end_turn` to say when a
    user turn is over; `ahead_seconds` 0.1 ..= 3600 is how far a reply may be sent ahead of a listener who plays it from
    its first packet on, infinity for as fast as it is made; `resume_seconds` is how long a session whose connection was
    lost tries to go on before it raises MeshError, 0 for not at all.
    """

    history: Sequence[Message] = ()
    input_format: SoundFormat = SoundFormat(Encoding.S16, USER_RATE_HZ)
    output_format: SoundFormat = SoundFormat(Encoding.S16, VOICE_RATE_HZ)
    turn_detection: ServerVad | None = None
    ahead_seconds: float | None = None
    resume_seconds: float = 30.0

    def open_message(self) -> orchestrator_pb2.ConverseOpen:
        """The message that opens the session."""
        is_float = self.input_format.encoding is Encoding.F32
        history_encoding = Encoding.F32 if is_float else Encoding.S16  # history has no telephone's encodings
        return orchestrator_pb2.ConverseOpen(
            voice_name=self.voice if isinstance(self.voice, str) else None,
            voice_example=self.voice.message() if isinstance(self.voice, VoiceExample) else None,
            instructions=self.instructions,
            history=[message.wire(history_encoding) for message in self.history],
            input_format=self.input_format.wire(),
            output_format=self.output_format.wire(),
            sampling=self.sampling(),
            max_frame_count=self.max_frame_count,
            max_step_count=self.max_step_count,
            turn_detection=self.turn_detection.wire() if self.turn_detection else None,
            ahead_seconds=self.ahead_seconds,
            joins_text=True,
        )
