"""The conversation so far, and how it is cut when it grows too long."""

from collections.abc import Iterable
from dataclasses import dataclass, field

from chroma_mesh.types.v1 import types_pb2

from services.orchestrator.user_turn import F32, S16, SAMPLE_BYTES, UserTurn
from services.runtime.audio import decode_pcm, encode_pcm

POSITIONS_PER_SECOND = 25
# What the template puts around a message and around a clip.
MESSAGE_POSITIONS = 6
CLIP_POSITIONS = 3
# Positions a byte of text takes, until the reasoner has told how many it really took: more than most languages need.
CAUTIOUS_DENSITY = 0.5
# What a message's envelope may add to its content.
ENVELOPE_BYTES = 4096


@dataclass(frozen=True)
class Extent:
    """How much something takes: fixed positions (sound, template), and bytes of text and in all."""

    fixed_positions: float = 0.0
    text_bytes: int = 0
    size_bytes: int = 0

    def __add__(self, other: "Extent") -> "Extent":
        return Extent(
            self.fixed_positions + other.fixed_positions,
            self.text_bytes + other.text_bytes,
            self.size_bytes + other.size_bytes,
        )

    def positions(self, density: float) -> float:
        """Positions of the context, at so many a byte of text."""
        return self.fixed_positions + self.text_bytes * density


@dataclass
class Exchange:
    """What the user said and what was answered."""

    messages: list[types_pb2.Message] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.measure()

    def measure(self) -> None:
        """Takes note of the messages' extent."""
        self.extent = sum((extent_of_message(message) for message in self.messages), Extent())


class History:
    """The messages of a conversation, oldest first; the system message is not among them.

    Before it exceeds the reasoner's context, or the bytes that a session may keep, the oldest exchanges, each a user
    turn with its reply, are forgotten: until no more than half of the limit is in use, and not only until the rest
    fits. A reasoner finds what it has heard before as far as the conversation is the same from its beginning on; one
    that was cut at every turn would be new at every turn. The system message always stays.
    """

    def __init__(self, messages: Iterable[types_pb2.Message], *, limit_bytes: int, max_message_bytes: int) -> None:
        self._limit_bytes = limit_bytes
        self._max_message_bytes = max_message_bytes
        self._density = CAUTIOUS_DENSITY
        self._exchanges: list[Exchange] = []
        for message in messages:
            if message.role == types_pb2.ROLE_USER or not self._exchanges:
                self._exchanges.append(Exchange())
            self._exchanges[-1].messages.append(message)
            self._exchanges[-1].measure()
        self._system: types_pb2.Message | None = None
        self.forgotten_count = 0
        """Exchanges that are forgotten, of all that there ever were."""

    @property
    def density(self) -> float:
        """Positions that a byte of text takes."""
        return self._density

    @property
    def exchange_count(self) -> int:
        """Exchanges that are remembered."""
        return len(self._exchanges)

    @property
    def reply_text(self) -> str:
        """What is remembered of the last reply."""
        messages = self._exchanges[-1].messages if self._exchanges else []
        return "".join(p.text for it in messages if it.role == types_pb2.ROLE_ASSISTANT for p in it.parts)

    def recall(self, forgotten_count: int, density: float) -> None:
        """Takes up a memory of which so many exchanges are forgotten."""
        self._density = density
        while self._exchanges and self.forgotten_count < forgotten_count:
            self._forget_oldest()

    def messages(self, instructions: str) -> tuple[types_pb2.Message, ...]:
        """What the reasoner is to be told, instructions as the system message; the same objects while they stay."""
        if self._system is None or self._system.parts[0].text != instructions:
            part = types_pb2.ContentPart(text=instructions)
            self._system = types_pb2.Message(role=types_pb2.ROLE_SYSTEM, parts=[part]) if instructions else None
        told = [message for exchange in self._exchanges for message in exchange.messages]
        return (self._system, *told) if self._system is not None else tuple(told)

    def add(self, turn: UserTurn, reply_text: str) -> None:
        """A user turn and what was heard of its reply; nothing is no message."""
        self._exchanges.append(Exchange([self._portable(turn.message())]))
        self.correct(reply_text)

    def correct(self, reply_text: str) -> bool:
        """Takes this for what was heard of the last reply; returns whether that is something else than before."""
        if not self._exchanges:  # it was forgotten
            return False
        last = self._exchanges[-1]
        said = [message for message in last.messages if message.role == types_pb2.ROLE_USER]
        if reply_text:
            parts = [types_pb2.ContentPart(text=reply_text)]
            said.append(types_pb2.Message(role=types_pb2.ROLE_ASSISTANT, parts=parts))
        if said == last.messages:
            return False
        last.messages = said
        last.measure()
        return True

    def learn_density(self, position_count: int, instructions: str, turn: UserTurn) -> None:
        """Takes the reasoner's word for the positions of this conversation with this turn."""
        extent = self._extent(instructions, extent_of_turn(turn))
        if position_count and extent.text_bytes:
            self._density = max(0.0, position_count - extent.fixed_positions) / extent.text_bytes

    def make_room(
        self,
        turn: UserTurn,
        *,
        context_length: int | None,
        instructions: str,
        reply_step_count: int,
        waiting_bytes: int = 0,
    ) -> bool:
        """Forgets the oldest exchanges when turn and reply would go beyond a limit; returns whether it did.

        `context_length`: positions that the reasoner holds, if known. `reply_step_count`: most positions that the reply
        can take, of which a quarter of the context is kept free for it at most. `waiting_bytes`: of other turns that
        are yet to become part of the conversation.
        """
        said = extent_of_turn(turn)
        room = 0.0 if context_length is None else min(reply_step_count, context_length / 4)

        def exceeds(share: float) -> bool:
            extent = self._extent(instructions, said)
            return extent.size_bytes + waiting_bytes > self._limit_bytes * share or (
                context_length is not None and extent.positions(self._density) + room > context_length * share
            )

        if not self._exchanges or not exceeds(1):
            return False
        while self._exchanges and exceeds(0.5):
            self._forget_oldest()
        return True

    def longest_clip_seconds(self, context_length: int, instructions: str) -> float:
        """Sound of a turn that can be answered when all else is forgotten, in seconds."""
        room = context_length * 3 / 4 - self._system_extent(instructions).positions(self._density) - CLIP_POSITIONS
        return max(0.0, room - MESSAGE_POSITIONS) / POSITIONS_PER_SECOND

    def forget_half(self) -> bool:
        """Forgets the older half, for the reasoner cannot hold it all; returns whether there was anything to forget."""
        if not self._exchanges:
            return False
        target = sum(exchange.extent.positions(self._density) for exchange in self._exchanges) / 2
        self._forget_oldest()
        while self._exchanges and sum(it.extent.positions(self._density) for it in self._exchanges) > target:
            self._forget_oldest()
        return True

    def _forget_oldest(self) -> None:
        del self._exchanges[0]
        self.forgotten_count += 1

    def _extent(self, instructions: str, said: Extent) -> Extent:
        return sum((exchange.extent for exchange in self._exchanges), self._system_extent(instructions) + said)

    @staticmethod
    def _system_extent(instructions: str) -> Extent:
        return Extent(2 * MESSAGE_POSITIONS, len(instructions.encode()), 0)

    def _portable(self, message: types_pb2.Message) -> types_pb2.Message:
        # Each turn of the history is one message. 300 s of floats do not fit into one; as 16-bit integers they do.
        if message.ByteSize() + ENVELOPE_BYTES <= self._max_message_bytes:
            return message
        for part in message.parts:
            if part.audio.format.encoding == F32:
                samples = decode_pcm(part.audio.data, F32, field="audio.data")
                part.audio.format.encoding = S16
                part.audio.data = encode_pcm(samples, S16)
        return message


def extent_of_turn(turn: UserTurn) -> Extent:
    """What a user turn takes, as far as it is said."""
    fixed = MESSAGE_POSITIONS + turn.clip_count * CLIP_POSITIONS + turn.seconds * POSITIONS_PER_SECOND
    return Extent(fixed, turn.text_bytes, turn.size_bytes)


def extent_of_message(message: types_pb2.Message) -> Extent:
    """What a message of the conversation takes."""
    fixed, text_bytes, audio_bytes = float(MESSAGE_POSITIONS), 0, 0
    for part in message.parts:
        if part.WhichOneof("content") == "text":
            text_bytes += len(part.text.encode())
        else:
            audio = part.audio
            seconds = len(audio.data) / SAMPLE_BYTES[audio.format.encoding] / audio.format.sample_rate_hz
            audio_bytes += len(audio.data)
            fixed += CLIP_POSITIONS + seconds * POSITIONS_PER_SECOND
    return Extent(fixed, text_bytes, text_bytes + audio_bytes)
