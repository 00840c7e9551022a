"""What is kept of a call."""

from dataclasses import dataclass, field

from client.events import ReplyEnded


@dataclass(frozen=True)
class SpokenText:
    """A piece of a reply's text: where in the reply's sound it begins to be spoken, and when it came."""

    text: str
    audio_sample: int
    received_at: float


@dataclass(frozen=True)
class Gap:
    """Silence in a reply because its sound had not come: after how many of its samples, and how long."""

    audio_sample: int
    seconds: float


@dataclass
class CallTurn:
    """A user turn and its reply as the caller heard it; what did not happen is None.

    Moments are in seconds since the session began, on the caller's clock. `name` is what the caller was saying.
    `noticed_at` and `stopped_at` are when the mesh said that speech has begun and ended; `barge_in_at` is when the
    caller began to speak over the reply. Samples that came for a reply which the caller had stopped are stale; those
    that came after the mesh had ended it are late, and there must be none.
    """

    turn_index: int
    name: str
    sample_rate_hz: int
    speech_began_at: float
    speech_ended_at: float | None = None
    noticed_at: float | None = None
    stopped_at: float | None = None
    reply_started_at: float | None = None
    first_audio_at: float | None = None
    barge_in_at: float | None = None
    is_cut: bool = False
    is_over: bool = False
    texts: list[SpokenText] = field(default_factory=list)
    gaps: list[Gap] = field(default_factory=list)
    received_sample_count: int = 0
    played_sample_count: int = 0
    stale_sample_count: int = 0
    late_sample_count: int = 0
    ended_at: float | None = None
    ended: ReplyEnded | None = None

    @property
    def is_being_heard(self) -> bool:
        """Whether the reply has begun, and is neither played to its end nor stopped."""
        return self.reply_started_at is not None and not self.is_over and not self.is_cut

    @property
    def first_audio_seconds(self) -> float | None:
        """TTFA: from the end of the user's speech to the first sound."""
        return between(self.speech_ended_at, self.first_audio_at)

    @property
    def noticed_seconds(self) -> float | None:
        """From the beginning of the user's speech to when the mesh said so."""
        return between(self.speech_began_at, self.noticed_at)

    @property
    def stopped_seconds(self) -> float | None:
        """From the end of the user's speech to when the mesh said that the turn is over."""
        return between(self.speech_ended_at, self.stopped_at)

    @property
    def barge_in_seconds(self) -> float | None:
        """From the reply's first sound to the user's speech over it."""
        return between(self.first_audio_at, self.barge_in_at)

    @property
    def stop_seconds(self) -> float | None:
        """From the user's speech over the reply to its end; None where the mesh had given all of it before."""
        waited = between(self.barge_in_at, self.ended_at)
        return waited if waited is not None and waited >= 0 else None

    @property
    def under_run_seconds(self) -> float | None:
        """The greatest shortfall of a player that starts at the first packet, which is all its gaps together."""
        return None if self.first_audio_at is None else sum(gap.seconds for gap in self.gaps)

    @property
    def received_seconds(self) -> float:
        """How much sound of the reply came in time to be played."""
        return self.received_sample_count / self.sample_rate_hz

    @property
    def played_seconds(self) -> float:
        """How much of the reply was heard."""
        return self.played_sample_count / self.sample_rate_hz


@dataclass
class CallRecord:
    """A call: its turns by index, how late a packet left at most, and packets of a microphone that were dropped."""

    turns: dict[int, CallTurn] = field(default_factory=dict)
    lateness_seconds: float = 0.0
    dropped_packet_count: int = 0

    @property
    def turn_count(self) -> int:
        """How many turns are known; the index of the next."""
        return max(self.turns, default=-1) + 1

    def turns_from(self, turn_index: int) -> list[CallTurn]:
        """The turns from an index on, in order."""
        return [self.turns[index] for index in sorted(self.turns) if index >= turn_index]


def between(earlier: float | None, later: float | None) -> float | None:
    """Seconds from one moment to another; None unless both were."""
    return None if earlier is None or later is None else later - earlier
