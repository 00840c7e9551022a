"""What a session needs to go on when its call is lost: what the mesh has not got, and what came of the replies."""

from collections.abc import Iterator

from chroma_mesh.orchestrator.v1 import orchestrator_pb2

from client.events import text_pieces

HEARD_SECONDS = 300
"""Where the mesh hears turns, sound that is older belongs to no turn that it has not taken yet."""


class SpeechCount:
    """How often the mesh has said of its newest turn that the user speaks, or has stopped.

    It says so again when it is told the turn again.
    """

    def __init__(self) -> None:
        self._turn_index = -1
        self._count = 0
        self._again_count = 0

    def is_new(self, turn_index: int) -> bool:
        """The mesh says it of this turn; returns whether for the first time."""
        if turn_index != self._turn_index:
            if turn_index < self._turn_index:
                return False
            self._turn_index, self._count, self._again_count = turn_index, 0, 0
        self._again_count += 1
        is_new = self._again_count > self._count
        self._count = max(self._count, self._again_count)
        return is_new

    def begin_again(self) -> None:
        """The turn is told again."""
        self._again_count = 0


class Unkept:
    """The messages that would have to be sent again, and the position among those that came.

    Where the mesh listens for turns itself, silence is sent without end: `heard_limit_bytes` is the most sound that is
    kept then.
    """

    def __init__(self, sample_bytes: int, heard_limit_bytes: int | None) -> None:
        self.token = ""
        """Opens the session again; without one nothing is kept to be sent again."""
        self._sample_bytes = sample_bytes
        self._heard_limit_bytes = heard_limit_bytes
        self._sent: list[orchestrator_pb2.ConverseRequest | None] = []
        # Messages of the session before the first one of `_sent`.
        self._kept_count = 0
        self._sound_bytes = 0
        self._audio_index = 0
        self._position = orchestrator_pb2.ConverseResume()
        self._started_speech, self._stopped_speech = SpeechCount(), SpeechCount()

    @property
    def is_in_reply(self) -> bool:
        """Whether a reply has begun, and not ended."""
        return self._position.is_started

    @property
    def is_owed(self) -> bool:
        """Whether the mesh has something to say: to what it has not answered, or of a reply that has begun."""
        return self.is_in_reply or any(map(_is_answered, reversed(self._sent)))

    def send(self, request: orchestrator_pb2.ConverseRequest) -> None:
        """This is about to be sent."""
        self._number(request)
        if not self.token:
            return
        if _is_cancel(request) and self._position.is_started and not request.cancel_reply.HasField("turn_index"):
            # Sent again, it is to meet no other reply than the one it was meant for.
            again = orchestrator_pb2.CancelReply(turn_index=self._position.turn_index)
            request = orchestrator_pb2.ConverseRequest(cancel_reply=again)
        self._sent.append(request)
        self._sound_bytes += len(request.audio.data)
        if self._heard_limit_bytes is not None and self._sound_bytes > self._heard_limit_bytes:
            self._forget_oldest_sound(self._heard_limit_bytes)

    def receive(self, response: orchestrator_pb2.ConverseResponse) -> bool:
        """This has come; returns whether it is new."""
        position = self._position
        match response.WhichOneof("payload"):
            case "reply_started":
                position.turn_index, position.is_started = response.reply_started.turn_index, True
                self._forget(response.reply_started.kept_message_count)
            case "text":
                position.text_count += len(text_pieces(response.text))
            case "audio":
                position.frame_count += response.audio.frame_count
                position.sample_count += len(response.audio.data) // self._sample_bytes
            case "reply_ended":
                position.Clear()
                position.turn_index = response.reply_ended.turn_index + 1
                self._sent = [None if _is_cancel(request) else request for request in self._sent]
            case "speech_started":
                return self._started_speech.is_new(response.speech_started.turn_index)
            case "speech_stopped":
                return self._stopped_speech.is_new(response.speech_stopped.turn_index)
        return True

    def open_message(self) -> orchestrator_pb2.ConverseOpen:
        """The message that goes on with the session."""
        resume = orchestrator_pb2.ConverseResume()
        resume.CopyFrom(self._position)
        resume.token = self.token
        return orchestrator_pb2.ConverseOpen(resume=resume)

    def resend(self, opened: orchestrator_pb2.ConverseOpened) -> Iterator[orchestrator_pb2.ConverseRequest]:
        """What is to be sent again in the call that was opened so; what is added meanwhile comes as well."""
        self._forget(opened.kept_message_count)
        self._kept_count = opened.kept_message_count
        self._sent = [request for request in self._sent if request is not None]
        self._audio_index = 0
        self._started_speech.begin_again()
        self._stopped_speech.begin_again()
        index = 0
        while index < len(self._sent):
            request = self._sent[index]
            index += 1
            if request is not None:
                self._number(request)
                yield request

    def _number(self, request: orchestrator_pb2.ConverseRequest) -> None:
        if request.WhichOneof("payload") == "audio":
            request.audio.index = self._audio_index
            self._audio_index += 1

    def _forget(self, message_count: int) -> None:
        count = max(0, message_count - self._kept_count)
        self._sound_bytes -= sum(len(it.audio.data) for it in self._sent[:count] if it is not None)
        del self._sent[:count]
        self._kept_count += count

    def _forget_oldest_sound(self, limit_bytes: int) -> None:
        for index, request in enumerate(self._sent):
            if self._sound_bytes <= limit_bytes:
                return
            if request is not None and request.audio.data:
                self._sound_bytes -= len(request.audio.data)
                self._sent[index] = None


def _is_answered(request: orchestrator_pb2.ConverseRequest | None) -> bool:
    return request is not None and request.WhichOneof("payload") in ("audio", "text", "end_turn", "end")


def _is_cancel(request: orchestrator_pb2.ConverseRequest | None) -> bool:
    return request is not None and request.WhichOneof("payload") == "cancel_reply"
