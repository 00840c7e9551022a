"""A set is asked: every conversation in a session of its own, every reply kept with what it took."""

import asyncio
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from client.connection import Mesh
from client.errors import MeshError, first_cause
from client.evaluate.evaluation_set import Conversation, EvaluationSet, Question
from client.evaluate.settings import EvaluationSettings
from client.session_settings import ReplySettings, SessionSettings
from client.talk import HeardReply, take_turn


@dataclass(frozen=True, eq=False)
class Answer:
    """What came of a question, which is the `index`-th of its set: a reply, or a `failure` in words.

    `conversation_index` and `turn_index` say where in the set it is, `voice` who was to answer.
    """

    index: int
    conversation_index: int
    turn_index: int
    voice: str
    question: Question
    reply: HeardReply | None
    failure: str | None = None


class Examination:
    """Asks a set; answers are there as soon as they are heard, in any order where there are several sessions.

    The seed of a reply is its question's index, so a set is answered the same each time.
    """

    def __init__(
        self,
        mesh: Mesh,
        asked: EvaluationSet,
        settings: EvaluationSettings,
        default_voice: str,
        heard: Callable[[Answer], None],
    ) -> None:
        self._mesh = mesh
        self._set = asked
        self._settings = settings
        self._default_voice = default_voice
        self._heard = heard

    async def warm_up(self) -> None:
        """A reply of one frame in each voice that is not kept: voices are known to every stage when counting begins."""
        first = {self._voice(it): it for it in reversed(self._set.conversations)}
        for conversation in first.values():
            async with self._mesh.open_session(self._session(conversation, max_frame_count=1)) as session:
                await take_turn(session, conversation.questions[0].turn(), _ignore)

    async def run(self) -> None:
        """Asks everything; MeshError when the mesh is gone."""
        index = 0
        planned = []
        for number, conversation in enumerate(self._set.conversations):
            planned.append((number, index, conversation))
            index += len(conversation.questions)
        left = iter(planned)
        try:
            async with asyncio.TaskGroup() as tasks:
                for _ in range(self._settings.session_count):
                    tasks.create_task(self._keep_asking(left))
        except BaseExceptionGroup as group:
            raise first_cause(group) from None

    async def _keep_asking(self, left: Iterator[tuple[int, int, Conversation]]) -> None:
        for number, first_index, conversation in left:
            await self._hold(number, first_index, conversation)

    async def _hold(self, number: int, first_index: int, conversation: Conversation) -> None:
        """One conversation; when it breaks off, the rest of its questions have failed."""
        voice = self._voice(conversation)
        replies: list[HeardReply] = []
        failure: MeshError | None = None

        def keep(turn_index: int, reply: HeardReply | None) -> None:
            question = conversation.questions[turn_index]
            message = None if reply is not None else str(failure)
            index = first_index + turn_index
            self._heard(Answer(index, number, turn_index, voice, question, reply, message))

        try:
            async with self._mesh.open_session(self._session(conversation)) as session:
                for turn_index, question in enumerate(conversation.questions):
                    sampling = ReplySettings(temperature=self._settings.temperature, seed=first_index + turn_index)
                    reply = await take_turn(session, question.turn(), _ignore, sampling)
                    replies.append(reply)
                    keep(turn_index, reply)
        except MeshError as error:
            failure = error
        if failure is not None:
            if not await self._mesh.is_ready():  # raises when the mesh is gone
                raise failure
            for turn_index in range(len(replies), len(conversation.questions)):
                keep(turn_index, None)

    def _voice(self, conversation: Conversation) -> str:
        return self._settings.voice or conversation.voice or self._default_voice

    def _session(self, conversation: Conversation, max_frame_count: int | None = None) -> SessionSettings:
        return SessionSettings(
            voice=self._voice(conversation),
            max_frame_count=max_frame_count or self._settings.max_frame_count,
            ahead_seconds=math.inf,
        )


def _ignore(*_: object) -> None:
    pass
