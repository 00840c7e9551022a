"""What the listener has heard of a reply."""

from dataclasses import dataclass
from typing import NamedTuple

from services.orchestrator.clock import Clock


@dataclass(frozen=True)
class Had:
    """What a client has of a reply from a call that it lost: pieces of text, frames of sound, samples of it."""

    is_started: bool = False
    text_count: int = 0
    frame_count: int = 0
    sample_count: int = 0


NOTHING = Had()


class TextPiece(NamedTuple):
    """A step's text, and where in the reply's sound it begins to be spoken, in samples of the output format."""

    text: str
    audio_sample: int


class Playback:
    """A player that begins at a reply's first packet and pauses only when it has nothing to play.

    Counts are samples of the output format. What the client says that it has played counts for more than this. Of a
    reply that is made again it has played what the client had of it before.
    """

    def __init__(self, clock: Clock, sample_rate_hz: int, *, had_sample_count: int = 0) -> None:
        self.sent_sample_count = 0
        self._clock = clock
        self._rate_hz = sample_rate_hz
        self._had_sample_count = had_sample_count
        self._plays_until = 0.0
        self._stopped_at: int | None = None
        self._reported: int | None = None

    @property
    def ahead_seconds(self) -> float:
        """Sound that the player has still to play, in seconds."""
        if self._stopped_at is not None:
            return 0.0
        return max(0.0, self._plays_until - self._clock.now())

    @property
    def is_behind(self) -> bool:
        """Whether what the client had of the reply is not made again yet."""
        return self.sent_sample_count < self._had_sample_count

    @property
    def played_seconds(self) -> float:
        """Sound that the player has played, in seconds."""
        return self.sent_sample_count / self._rate_hz - self.ahead_seconds

    @property
    def heard_sample_count(self) -> int:
        """Samples that count as heard: those reported; else those that a stopped player had played; else all."""
        heard = self._stopped_at if self._reported is None else self._reported
        return self.sent_sample_count if heard is None else min(heard, self.sent_sample_count)

    def send(self, sample_count: int) -> None:
        """So much more was sent to the player."""
        before = max(self.sent_sample_count, self._had_sample_count)
        self.sent_sample_count += sample_count
        new_sample_count = max(0, self.sent_sample_count - before)
        self._plays_until = max(self._plays_until, self._clock.now()) + new_sample_count / self._rate_hz

    def take_back(self, sample_count: int) -> None:
        """So much of what was sent last is not sent after all."""
        self.sent_sample_count -= sample_count
        self._plays_until -= sample_count / self._rate_hz

    def stop(self) -> None:
        """The listener plays no more from now on."""
        if self._stopped_at is None:
            self._stopped_at = round(self.played_seconds * self._rate_hz)

    def report(self, sample_count: int) -> None:
        """The client says that it has played so much."""
        self._reported = sample_count
        if self._stopped_at is None:
            unplayed = max(0, self.sent_sample_count - sample_count)
            self._plays_until = self._clock.now() + unplayed / self._rate_hz


@dataclass(frozen=True)
class Heard:
    """What was heard of a reply: its text, and the reasoner's steps that make it up."""

    text: str
    step_count: int


class SpokenReply:
    """The text of a reply by its steps, and with which frame each step began to be spoken.

    Kept until the next reply begins, so that what is remembered of this one can still be corrected.
    """

    def __init__(self, turn_index: int, playback: Playback, *, samples_per_frame: int) -> None:
        self.turn_index = turn_index
        self.playback = playback
        self.is_complete = False
        self._samples_per_frame = samples_per_frame
        self._texts: list[str] = []
        self._step_counts: list[int] = []

    @property
    def step_count(self) -> int:
        """Steps that are spoken or being spoken."""
        return len(self._texts)

    def speak_step(self, text: str) -> None:
        """The next step is spoken, from the next frame on."""
        self._texts.append(text)

    def speak_frame(self) -> None:
        """The next frame was made: of the steps told so far."""
        self._step_counts.append(len(self._texts))

    def said(self) -> Heard:
        """All of it, whoever heard it."""
        return Heard("".join(self._texts), len(self._texts))

    def heard(self) -> Heard:
        """What was heard: the steps that had begun to be spoken in the frames that were played to their end."""
        played, sent = self.playback.heard_sample_count, self.playback.sent_sample_count
        if self.is_complete and played >= sent:
            step_count = len(self._texts)
        else:
            # At other rates than the codec's the last frame that was sent may lack a few samples still.
            frame_count = -(-played // self._samples_per_frame) if played >= sent else played // self._samples_per_frame
            frame_count = min(frame_count, len(self._step_counts))
            step_count = self._step_counts[frame_count - 1] if frame_count else 0
        return Heard("".join(self._texts[:step_count]), step_count)
