"""The mesh's session behind a socket: a copy of what is so there."""

import asyncio
from collections.abc import Callable

from client.connection import Mesh
from client.session_settings import SessionSettings
from services.gateway.realtime.audio_formats import AudioFormat
from services.gateway.realtime.conversation import Conversation
from services.gateway.realtime.input_buffer import InputBuffer
from services.gateway.realtime.items import Item, Said, Typed
from services.gateway.realtime.line import Heard, Line
from services.gateway.realtime.session_config import ReplyConfig, SessionConfig

RESUME_SECONDS = 10.0
"""How long a call that was lost is tried to go on with: nothing else is done for the client meanwhile."""


class MeshCopy:
    """The call to the mesh, `line`, in which the mesh has what the socket has: opened when it is needed, told what
    happens as it happens, and made anew where it cannot be told. It is stale then, and lives on only for the reply that
    it gives.
    """

    def __init__(
        self, items: Conversation, mesh: Mesh, tasks: asyncio.TaskGroup, deliver: Callable[[Heard], None]
    ) -> None:
        """`tasks` outlives this; `deliver` is given what the mesh says."""
        self.line: Line | None = None
        """None while no call is open."""
        self._items = items
        self._mesh = mesh
        self._tasks = tasks
        self._deliver = deliver

    async def open(
        self, config: SessionConfig, buffer: InputBuffer, *, to_answer: bool = False, is_listening: bool | None = None
    ) -> Line:
        """Opens a call that knows all that was said; what has no answer is its open turn, with what is in the buffer.

        A call that listens takes nothing that was said for a part of the open turn, for it would hear turns in it:
        that is told as what was said before. `to_answer`: the turn is to be answered, without what is in the buffer.
        """
        await self.close()
        listens = config.is_listening if is_listening is None else is_listening
        waiting = self._items.unanswered
        open_turn = [
            item for item in waiting if not item.sound_bytes or (not listens and _has_format(item, config.input_format))
        ]
        if open_turn and open_turn != waiting[-len(open_turn) :]:
            open_turn = []
        settings = self._session_settings(config, open_turn, listens=listens)
        line = self.line = await Line.open(
            self._tasks,
            self._mesh.open_session(settings),
            self._deliver,
            is_listening=listens,
            origin=buffer.begin,
        )
        for item in open_turn:
            await self.tell(line, item)
        if to_answer and not listens:
            line.is_stale = config.is_listening or buffer.sample_count > 0
        elif buffer.sample_count:
            await line.session.send_audio(buffer.data)
        return line

    async def close(self) -> None:
        """Ends the call."""
        line, self.line = self.line, None
        if line is not None:
            await line.close()

    async def spoil(self, *, is_replying: bool) -> None:
        """The call can no longer be told what is true: it goes on for the reply that it gives alone."""
        if not is_replying:
            await self.close()
        elif self.line is not None:
            self.line.is_stale = True

    def can_tell(self, item: Item, config: SessionConfig, buffer: InputBuffer) -> bool:
        """Whether the call can be told an item as the next part of its open turn."""
        line = self.line
        if line is None or line.is_stale:
            return False
        if line.is_listening:
            return not item.sound_bytes
        # Else it has heard what comes after the item.
        return _has_format(item, config.input_format) and not buffer.sample_count

    async def tell(self, line: Line, item: Item) -> None:
        """Tells an item as the next part of the open turn."""
        line.told.append(item.id)
        for part in item.parts:
            match part:
                case Typed(text):
                    await line.session.send_text(text)
                case Said(data):
                    await line.session.send_audio(data)

    async def tell_settings(self, config: ReplyConfig) -> None:
        """Tells what the next replies are to be given with."""
        if self.line is not None:
            await self.line.session.update(config.reply_settings(self._items.instructions))

    async def tell_played(self, item: Item, sample_count: int) -> bool:
        """Tells how much of what the model said was played; returns False where the call cannot be told."""
        line = self.line
        if line is None or line.last_item_id != item.id:
            return False
        await line.session.reply_played(line.last_turn_index, sample_count)
        return True

    def _session_settings(self, config: SessionConfig, open_turn: list[Item], *, listens: bool) -> SessionSettings:
        reply = config.reply.reply_settings(self._items.instructions)
        detection = config.turn_detection
        return SessionSettings(
            voice=reply.voice,
            instructions=reply.instructions,
            temperature=reply.temperature,
            max_step_count=reply.max_step_count,
            history=self._items.history(open_turn),
            input_format=config.input_format.sound_format,
            output_format=config.output_format.sound_format,
            turn_detection=detection.server_vad() if listens and detection is not None else None,
            resume_seconds=RESUME_SECONDS,
        )


def _has_format(item: Item, audio_format: AudioFormat) -> bool:
    return all(part.audio_format is audio_format for part in item.parts if isinstance(part, Said))
