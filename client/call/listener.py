"""The half of a caller that listens."""

from collections import deque
from dataclasses import dataclass, field
from typing import Protocol

from client.call.happening import Happening, Kind, Watch
from client.call.player import Player
from client.call.record import CallRecord, CallTurn, Gap, SpokenText
from client.clock import Clock
from client.events import Audio, Event, ReplyEnded, ReplyStarted, SpeechStarted, SpeechStopped, Text
from client.pcm import Samples
from client.session import Session


class Loudspeaker(Protocol):
    """Something that can be heard."""

    def play(self, samples: Samples) -> None:
        """Plays mono samples after those before."""

    def drop(self) -> None:
        """Plays nothing of what has not been played."""


@dataclass
class Speaking:
    """What the caller says now, or said last: since when, and until when, None while it goes on."""

    name: str
    began_at: float = 0.0
    ended_at: float | None = None


@dataclass
class Listener:
    """Plays the replies of a session and notes when what came.

    The position of the player, not of a `loudspeaker` beside it, is what the mesh is told was heard. Moments are in
    seconds since the listener was made.
    """

    session: Session
    clock: Clock
    watch: Watch
    player: Player
    speaking: Speaking
    loudspeaker: Loudspeaker | None = None
    record: CallRecord = field(default_factory=CallRecord)
    has_hung_up: bool = False

    def __post_init__(self) -> None:
        self.started_at = self.clock.now()
        self._unspoken: dict[int, deque[SpokenText]] = {}

    def now(self) -> float:
        """The moment."""
        return self.clock.now() - self.started_at

    async def listen(self) -> None:
        """Takes in all events until the session has ended."""
        async for event in self.session.events():
            await self._take_in(event)

    def tell(self, kind: Kind, turn: CallTurn | None = None, text: str = "") -> None:
        """Says what has happened."""
        self.watch(Happening(self.now(), kind, turn, text))

    def begin_turn(self, turn_index: int) -> CallTurn:
        """A turn of what the caller says now."""
        turn = CallTurn(turn_index, self.speaking.name, self.session.sample_rate_hz, self.speaking.began_at)
        self.record.turns[turn_index] = turn
        self._unspoken[turn_index] = deque()
        return turn

    def being_heard(self) -> list[CallTurn]:
        """The turns whose replies have begun, and are neither played to their end nor stopped."""
        return [self.record.turns[index] for index in self._unspoken if self.record.turns[index].is_being_heard]

    def barge_in(self) -> None:
        """The caller begins to speak over what is heard."""
        for turn in self.being_heard():
            if turn.barge_in_at is None:
                turn.barge_in_at = self.now()
                self.tell("barge_in", turn)

    async def stop(self) -> list[CallTurn]:
        """Stops the player, and tells the mesh how much was heard; the turns whose replies were stopped."""
        self.advance()
        stopped = self.being_heard()
        self.player.stop(self.now())
        if self.loudspeaker is not None:
            self.loudspeaker.drop()
        for turn in stopped:
            turn.is_cut = True
        self.advance()
        for turn in stopped:
            if not self.has_hung_up:
                await self.session.reply_played(turn.turn_index, turn.played_sample_count)
        return stopped

    def advance(self) -> None:
        """Tells what was spoken and what is over by now."""
        now = self.now()
        for turn_index, unspoken in list(self._unspoken.items()):
            turn = self.record.turns[turn_index]
            turn.played_sample_count = self.player.played_count(turn_index, now)
            was_all_played = turn.ended is not None and turn.played_sample_count >= turn.received_sample_count
            has_sound = turn.first_audio_at is not None
            while unspoken and not turn.is_cut:
                if not was_all_played and not (has_sound and unspoken[0].audio_sample <= turn.played_sample_count):
                    break
                self.tell("text", turn, unspoken.popleft().text)
            if turn.ended is not None and (turn.is_cut or was_all_played):
                turn.is_over = True
                del self._unspoken[turn_index]
                self.tell("over", turn)

    async def _take_in(self, event: Event) -> None:
        turn = self.record.turns.get(event.turn_index) or self.begin_turn(event.turn_index)
        now = self.now()
        match event:
            case SpeechStarted():
                turn.noticed_at = now
                turn.speech_began_at = max(self.speaking.began_at, self._moment(event.audio_sample))
                self.tell("noticed", turn)
                vad = self.session.settings.turn_detection
                if vad is None or vad.barge_in is not False:
                    self.barge_in()
                    await self.stop()
            case SpeechStopped():
                turn.stopped_at = now
                heard_end = self._moment(event.audio_sample)
                said_end = self.speaking.ended_at
                turn.speech_ended_at = heard_end if said_end is None else min(said_end, heard_end)
                self.tell("stopped", turn)
            case ReplyStarted():
                turn.reply_started_at = now
            case Text():
                piece = SpokenText(event.text, event.audio_sample, now)
                turn.texts.append(piece)
                if not turn.is_over:
                    self._unspoken[event.turn_index].append(piece)
                    self.advance()
            case Audio():
                self._hear(turn, event.samples, now)
            case ReplyEnded():
                turn.ended_at, turn.ended = now, event
                self.advance()

    def _hear(self, turn: CallTurn, samples: Samples, now: float) -> None:
        if turn.ended is not None:
            turn.late_sample_count += len(samples)
            return
        if turn.is_cut:
            turn.stale_sample_count += len(samples)
            return
        if turn.first_audio_at is None:
            turn.first_audio_at = now
            self.tell("sound", turn)
        silent_seconds = self.player.hear(turn.turn_index, samples, now)
        if silent_seconds:
            turn.gaps.append(Gap(turn.received_sample_count, silent_seconds))
        turn.received_sample_count += len(samples)
        if self.loudspeaker is not None:
            self.loudspeaker.play(samples)
        self.advance()

    def _moment(self, audio_sample: int) -> float:
        """When a sample of the session's input was said."""
        return audio_sample / self.session.settings.input_format.sample_rate_hz
