"""The orchestrator's service: messages in and out, and what the process holds for them."""

import asyncio
import uuid
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from dataclasses import asdict

import grpc
import structlog
from chroma_mesh.orchestrator.v1 import orchestrator_pb2, orchestrator_pb2_grpc
from prometheus_client import CollectorRegistry

from services.orchestrator.metrics import OrchestratorMetrics
from services.orchestrator.opening import first_messages, reply_setup, voice_example
from services.orchestrator.session import IdleLimit, Session
from services.orchestrator.settings import OrchestratorSettings
from services.orchestrator.stages import Stages
from services.orchestrator.turn import ReplyEnding
from services.orchestrator.voices import Voice, Voices
from services.runtime.errors import Unavailable
from services.runtime.interceptors import current_ids, with_ids
from services.runtime.stream import RequestStream

SERVICE = orchestrator_pb2.DESCRIPTOR.services_by_name["OrchestratorService"].full_name
# Messages that may wait to be written; a reply waits when the client does not read them.
OUTBOX_LIMIT = 8

Responses = grpc.aio.ServicerContext[orchestrator_pb2.ConverseRequest, orchestrator_pb2.ConverseResponse]


class ClientListener:
    """Writes a session's messages, one at a time.

    All go through one task: a write that is cancelled half-way, as a cancelled reply's would be, spoils the call.
    """

    def __init__(self, context: Responses) -> None:
        self._context = context
        self._outbox: asyncio.Queue[orchestrator_pb2.ConverseResponse | None] = asyncio.Queue(OUTBOX_LIMIT)

    async def run(self) -> None:
        """Writes until the end."""
        while (message := await self._outbox.get()) is not None:
            await self._context.write(message)

    async def end(self) -> None:
        """Lets `run` return when everything is written."""
        await self._outbox.put(None)

    async def opened(self, opened: orchestrator_pb2.ConverseOpened) -> None:
        """The session is open."""
        await self._outbox.put(orchestrator_pb2.ConverseResponse(opened=opened))

    async def reply_started(self, turn_index: int) -> None:
        """A reply begins."""
        started = orchestrator_pb2.ReplyStarted(turn_index=turn_index)
        await self._outbox.put(orchestrator_pb2.ConverseResponse(reply_started=started))

    async def text(self, turn_index: int, text: str) -> None:
        """A piece of its text."""
        piece = orchestrator_pb2.ReplyText(turn_index=turn_index, text=text)
        await self._outbox.put(orchestrator_pb2.ConverseResponse(text=piece))

    async def audio(self, turn_index: int, frame_index: int, frame_count: int, data: bytes) -> None:
        """A piece of its sound."""
        piece = orchestrator_pb2.ReplyAudio(
            turn_index=turn_index, frame_index=frame_index, frame_count=frame_count, data=data
        )
        await self._outbox.put(orchestrator_pb2.ConverseResponse(audio=piece))

    async def reply_ended(self, ending: ReplyEnding) -> None:
        """The reply is complete."""
        ended = orchestrator_pb2.ReplyEnded(
            turn_index=ending.turn_index,
            reason=ending.reason,
            text=ending.text,
            frame_count=ending.frame_count,
            step_count=ending.step_count,
            timings=orchestrator_pb2.ReplyTimings(**asdict(ending.timings)),
        )
        await self._outbox.put(orchestrator_pb2.ConverseResponse(reply_ended=ended))


class OrchestratorService(orchestrator_pb2_grpc.OrchestratorServiceServicer):
    """The four RPCs; made within a running event loop, and closed at its end."""

    def __init__(self, settings: OrchestratorSettings, registry: CollectorRegistry) -> None:
        self._settings = settings
        self._metrics = OrchestratorMetrics(registry, session_limit=settings.session_limit)
        self._session_count = 0
        self._stages = Stages(
            reasoner_address=settings.reasoner_address,
            speech_address=settings.speech_address,
            codec_address=settings.codec_address,
            reply_deadline_seconds=settings.reply_deadline_seconds,
        )
        self._voices = Voices(
            self._stages,
            folder=settings.voices,
            default_voice=settings.default_voice,
            voice_limit=settings.voice_limit,
        )

    def add_to(self, server: grpc.aio.Server) -> None:
        """Puts the RPCs on a server."""
        orchestrator_pb2_grpc.add_OrchestratorServiceServicer_to_server(self, server)

    async def prepare(self) -> None:
        """Waits for the stages, asks the codec for its facts and encodes the default voice."""
        default = await self._voices.example(field="default_voice")
        await self._stages.until_serving(self._settings.start_deadline_seconds)
        await self._stages.learn(default.audio.format)
        await self._voices.prompt(default, field="default_voice")

    async def close(self) -> None:
        """Closes the channels to the stages."""
        await self._stages.close()

    async def Converse(
        self, request_iterator: AsyncIterator[orchestrator_pb2.ConverseRequest], context: Responses
    ) -> None:
        """One session."""
        session_id = current_ids().session_id or uuid.uuid4().hex
        idle_limit = IdleLimit(self._settings.idle_seconds)
        with with_ids(session_id=session_id), self._admitted():
            await context.send_initial_metadata((("x-session-id", session_id),))
            async with idle_limit.watch():
                requests = RequestStream(request_iterator)
                opening = await requests.open()
                with idle_limit.busy():
                    messages = list(first_messages(opening, default_instructions=self._settings.instructions))
                    setup = await reply_setup(opening, facts=self._stages.codec_facts, voices=self._voices)
                listener = ClientListener(context)
                session = Session(
                    setup,
                    messages,
                    settings=self._settings,
                    stages=self._stages,
                    listener=listener,
                    metrics=self._metrics,
                    idle_limit=idle_limit,
                )
                async with asyncio.TaskGroup() as tasks:
                    tasks.create_task(listener.run())
                    await listener.opened(
                        orchestrator_pb2.ConverseOpened(
                            session_id=session_id,
                            input_format=setup.input_format,
                            output_format=setup.output_format,
                            samples_per_frame=self._stages.codec_facts.samples_per_frame,
                        )
                    )
                    listening = tasks.create_task(_listen(requests, session))
                    await session.answer()
                    listening.cancel()
                    await listener.end()

    async def ListVoices(
        self,
        request: orchestrator_pb2.ListVoicesRequest,  # noqa: ARG002
        context: grpc.aio.ServicerContext[orchestrator_pb2.ListVoicesRequest, orchestrator_pb2.ListVoicesResponse],  # noqa: ARG002
    ) -> orchestrator_pb2.ListVoicesResponse:
        """All voices by name."""
        voices = await self._voices.listing()
        return orchestrator_pb2.ListVoicesResponse(voices=[_voice_message(voice) for voice in voices])

    async def CreateVoice(
        self,
        request: orchestrator_pb2.CreateVoiceRequest,
        context: grpc.aio.ServicerContext[orchestrator_pb2.CreateVoiceRequest, orchestrator_pb2.CreateVoiceResponse],  # noqa: ARG002
    ) -> orchestrator_pb2.CreateVoiceResponse:
        """Adds a voice."""
        voice = await self._voices.create(request.name, voice_example(request.example))
        return orchestrator_pb2.CreateVoiceResponse(voice=_voice_message(voice))

    async def DeleteVoice(
        self,
        request: orchestrator_pb2.DeleteVoiceRequest,
        context: grpc.aio.ServicerContext[orchestrator_pb2.DeleteVoiceRequest, orchestrator_pb2.DeleteVoiceResponse],  # noqa: ARG002
    ) -> orchestrator_pb2.DeleteVoiceResponse:
        """Removes a created voice."""
        await self._voices.delete(request.name)
        return orchestrator_pb2.DeleteVoiceResponse()

    @contextmanager
    def _admitted(self) -> Iterator[None]:
        if self._session_count >= self._settings.session_limit:
            raise Unavailable(f"all {self._settings.session_limit} sessions are in use", reason="SESSIONS_IN_USE")
        self._session_count += 1
        log = structlog.get_logger()
        log.info("session opened")
        try:
            with self._metrics.count_session():
                yield
        finally:
            self._session_count -= 1
            log.info("session ended")


async def _listen(requests: RequestStream[orchestrator_pb2.ConverseRequest], session: Session) -> None:
    async for kind, payload in requests:
        match kind:
            case "audio":
                session.audio(payload.index, payload.data)
            case "text":
                session.text(payload.text)
            case "end_turn":
                session.end_turn()
            case "cancel_reply":
                session.cancel_reply()
    session.end()
    await requests.nothing_more()


def _voice_message(voice: Voice) -> orchestrator_pb2.Voice:
    return orchestrator_pb2.Voice(**asdict(voice))
