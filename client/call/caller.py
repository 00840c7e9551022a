"""A simulated caller: speaks by a script in packets, as a microphone does, and listens at once."""

import asyncio

import numpy as np

from client.call.happening import Watch, ignore
from client.call.listener import Listener, Speaking
from client.call.player import Player
from client.call.recording import Recording
from client.call.script import Script, SpokenTurn
from client.clock import Clock
from client.errors import ClientError, first_cause
from client.pcm import Samples
from client.session import Session


class NotHeardError(ClientError):
    """The mesh was to hear by itself when a turn is over, and did not."""


class Caller:
    """Holds one call over an open session, which ends with it.

    Where the mesh listens for turns itself, packets go out all the time, silence between the turns; otherwise only
    while a turn is spoken, which `end_turn` ends. `keeps_sound`: whether `recording` can be made afterwards.
    """

    def __init__(
        self, session: Session, script: Script, clock: Clock, *, watch: Watch = ignore, keeps_sound: bool = False
    ) -> None:
        self._session = session
        self._script = script
        self._clock = clock
        self._rate = session.settings.input_format.sample_rate_hz
        self._packet_samples = self._rate * script.packet_ms // 1000
        self._is_heard_by_mesh = session.settings.turn_detection is not None
        self._position = 0  # in samples of the caller's time, whether they were sent or not
        player = Player(session.sample_rate_hz, keeps_sound=keeps_sound)
        self._listener = Listener(session, clock, watch, player, Speaking(""))
        self.record = self._listener.record
        self.recording = Recording(self._rate, player) if keeps_sound else None

    async def run(self) -> None:
        """Speaks the whole script and hears all of the replies; `record` is filled meanwhile.

        MeshError when the mesh ends the session, NotHeardError when it does not hear a turn.
        """
        try:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(self._listener.listen())
                await self._speak()
        except BaseExceptionGroup as group:
            raise first_cause(group) from None

    async def _speak(self) -> None:
        turns = self._script.turns
        for position, turn in enumerate(turns):
            turn_index = self.record.turn_count
            await self._say(turn)
            is_heard_out = await self._hear(turn, turn_index, self._script.barge_in_after(position))
            if is_heard_out and position + 1 < len(turns):
                await self._be_silent(self._script.pause_seconds)
        self._listener.has_hung_up = True
        await self._session.end()

    async def _say(self, turn: SpokenTurn) -> None:
        listener = self._listener
        listener.speaking = speaking = Speaking(turn.name, listener.now())
        listener.barge_in()
        listener.tell("speaks", text=turn.name)
        if not self._is_heard_by_mesh:
            for stopped in await listener.stop():
                if stopped.ended is None:
                    await self._session.cancel_reply(stopped.turn_index)
        ends_at = self._position + len(turn.samples)
        for start in range(0, len(turn.samples), self._packet_samples):
            packet = turn.samples[start : start + self._packet_samples]
            if self._is_heard_by_mesh:  # a microphone does not stop when its user does
                packet = np.pad(packet, (0, self._packet_samples - len(packet)))
            await self._send(packet)
        speaking.ended_at = ends_at / self._rate
        listener.tell("spoken", text=turn.name)
        if not self._is_heard_by_mesh:
            listener.begin_turn(self.record.turn_count).speech_ended_at = speaking.ended_at
            await self._session.end_turn()

    async def _hear(self, said: SpokenTurn, turn_index: int, barge_in_after: float | None) -> bool:
        """Waits until what came of a turn was played to its end, True, or it is time to speak over it, False."""
        silent_from = self._position
        while True:
            turns = self.record.turns_from(turn_index)
            if turns and all(turn.is_over for turn in turns):
                return True
            if barge_in_after is not None and turns and turns[-1].is_being_heard:
                first_audio_at = turns[-1].first_audio_at
                if first_audio_at is not None and self._listener.now() >= first_audio_at + barge_in_after:
                    return False
            if self._is_heard_by_mesh and all(turn.stopped_at is None for turn in turns):
                patience_seconds = self._script.patience_seconds
                if self._position - silent_from > patience_seconds * self._rate:
                    raise NotHeardError(f"the mesh did not hear {said.name} in the {patience_seconds:g} s after it")
            await self._be_silent(0)

    async def _be_silent(self, seconds: float) -> None:
        """Lets time pass in whole packets, at least one."""
        ends_at = self._position + seconds * self._rate
        silence = np.zeros(self._packet_samples, np.float32)
        while True:
            if self._is_heard_by_mesh:
                await self._send(silence)
            else:
                await self._pass(len(silence))
            if self._position >= ends_at:
                return

    async def _send(self, packet: Samples) -> None:
        """Sends a packet when its last sample has been said."""
        if self.recording is not None:
            self.recording.say(self._position, packet)
        await self._pass(len(packet))
        lateness = self._listener.now() - self._position / self._rate
        self.record.lateness_seconds = max(self.record.lateness_seconds, lateness)
        await self._session.send_audio(packet)

    async def _pass(self, sample_count: int) -> None:
        self._position += sample_count
        await self._clock.sleep_until(self._listener.started_at + self._position / self._rate)
        self._listener.advance()
