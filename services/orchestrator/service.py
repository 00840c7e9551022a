"""The orchestrator's service: messages in and out, and what the process holds for them."""

import asyncio
import uuid
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager, contextmanager, suppress
from dataclasses import asdict
from types import MappingProxyType

import grpc
import structlog
from chroma_mesh.orchestrator.v1 import orchestrator_pb2, orchestrator_pb2_grpc
from prometheus_client import CollectorRegistry

from services.orchestrator.capacity import Capacity
from services.orchestrator.clock import Clock, SystemClock
from services.orchestrator.idle_limit import IdleLimit
from services.orchestrator.journal import new_journal
from services.orchestrator.metrics import OrchestratorMetrics, Refusal
from services.orchestrator.opening import session_setup, voice_example
from services.orchestrator.outbox import Outbox, Responses
from services.orchestrator.quotas import SESSION_RETRY_SECONDS, Accounts, HeardAccount, opening_seconds, sound_seconds
from services.orchestrator.running_sessions import RunningSessions
from services.orchestrator.session import Session
from services.orchestrator.settings import OrchestratorSettings
from services.orchestrator.stages import Stages
from services.orchestrator.voices import Voice, Voices
from services.runtime.api_keys import Scope, current_caller
from services.runtime.errors import ResourceExhausted
from services.runtime.interceptors import current_ids, with_ids
from services.runtime.stream import RequestStream

SERVICE = orchestrator_pb2.DESCRIPTOR.services_by_name["OrchestratorService"].full_name
# What a key must have for each RPC.
SCOPES: Mapping[str, Scope] = MappingProxyType(
    {
        f"/{SERVICE}/Converse": "converse",
        f"/{SERVICE}/ListVoices": "voices:read",
        f"/{SERVICE}/CreateVoice": "voices:write",
        f"/{SERVICE}/DeleteVoice": "voices:write",
    }
)


class OrchestratorService(orchestrator_pb2_grpc.OrchestratorServiceServicer):
    """The four RPCs; made within a running event loop, and closed at its end. `clock` is what replies go by."""

    def __init__(self, settings: OrchestratorSettings, registry: CollectorRegistry, clock: Clock | None = None) -> None:
        self._settings = settings
        self._clock = clock or SystemClock()
        self._metrics = OrchestratorMetrics(registry, session_limit=settings.session_limit)
        self._session_count = 0
        self._carried_count = 0
        self._stages = Stages(
            reasoner_address=settings.reasoner_address,
            speech_address=settings.speech_address,
            codec_address=settings.codec_address,
            reply_deadline_seconds=settings.reply_deadline_seconds,
            tls=settings.stages_tls,
        )
        self.capacity = Capacity(
            self._stages, share_count=settings.orchestrator_count, on_round=self._metrics.tell_capacity
        )
        self._watching: asyncio.Task[None] | None = None
        self._journal = new_journal(
            settings.journal, seconds=settings.journal_seconds, limit_bytes=settings.journal_limit_bytes
        )
        self._journalling = AsyncExitStack()
        self._running = RunningSessions(self._journal, self._metrics, seconds=settings.journal_seconds)
        self._accounts = Accounts(self._clock, default_session_limit=settings.key_session_limit)
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
        """Waits for the stages, learns what they can carry and the codec's facts, and encodes the default voice."""
        await self._journalling.enter_async_context(self._journal.running())
        default = await self._voices.example(field="default_voice")
        await self._stages.until_serving(self._settings.start_deadline_seconds)
        await self._stages.learn(default.audio.format)
        await self._voices.prompt(default, field="default_voice")
        await self.capacity.learn_first()
        self._watching = asyncio.create_task(self.capacity.watch())

    async def close(self) -> None:
        """Closes the channels to the stages, and the journal."""
        if self._watching is not None:
            self._watching.cancel()
            with suppress(asyncio.CancelledError):
                await self._watching
        await self._stages.close()
        await self._journalling.aclose()

    async def Converse(
        self, request_iterator: AsyncIterator[orchestrator_pb2.ConverseRequest], context: Responses
    ) -> None:
        """One session."""
        session_id = current_ids().session_id or uuid.uuid4().hex
        idle_limit = IdleLimit(self._settings.idle_seconds)
        account = self._accounts.of(current_caller())
        with with_ids(session_id=session_id), account.call(), self._admitted():
            await context.send_initial_metadata((("x-session-id", session_id),))
            async with AsyncExitStack() as stack, idle_limit.watch():
                requests = RequestStream(request_iterator)
                opening = await requests.open()
                with idle_limit.busy(), ExitStack() as counted:
                    await stack.enter_async_context(self._carried(opening))
                    if opening.HasField("resume"):
                        running = await stack.enter_async_context(self._running.resume(opening))
                        counted.enter_context(account.session(goes_on=True))
                    else:
                        counted.enter_context(account.session())
                        setup = await session_setup(
                            opening, settings=self._settings, facts=self._stages.codec_facts, voices=self._voices
                        )
                        running = await stack.enter_async_context(self._running.begin(setup, session_id))
                    # Ends before `running` is over, for then its next call is counted.
                    stack.enter_context(counted.pop_all())
                setup = running.setup
                account.use(opening_seconds(opening))
                outbox = Outbox(context, on_sound=lambda size: account.use(sound_seconds(setup.output_format, size)))
                heard = HeardAccount(account, setup.input_format)
                session = Session(
                    setup,
                    settings=self._settings,
                    stages=self._stages,
                    voices=self._voices,
                    outbox=outbox,
                    metrics=self._metrics,
                    idle_limit=idle_limit,
                    clock=self._clock,
                    record=running.record,
                    journal=running.journal,
                    kept=running.kept,
                )
                async with asyncio.TaskGroup() as tasks:
                    tasks.create_task(outbox.run())
                    outbox.opened(
                        orchestrator_pb2.ConverseOpened(
                            session_id=session_id,
                            input_format=setup.input_format,
                            output_format=setup.output_format,
                            samples_per_frame=session.form.samples_per_frame,
                            resume_token=running.token,
                            resume_seconds=self._settings.journal_seconds,
                            kept_message_count=running.record.message_count,
                        )
                    )
                    beside = (running.watch(), running.journal.run(), _listen(requests, session, heard))
                    going = [tasks.create_task(work) for work in beside]
                    await session.answer()
                    for task in going:
                        task.cancel()
                    outbox.end()
                heard.refuse()

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
        account = self._accounts.of(current_caller())
        account.check()
        audio = request.example.audio
        account.use(sound_seconds(audio.format, len(audio.data)))
        voice = await self._voices.create(request.name, voice_example(request.example), is_shared=request.shared)
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
        """Counts a call for a session, which may not have said yet what it is to be."""
        if self._session_count >= self._settings.session_limit:
            raise self._refused("SESSIONS_IN_USE", f"all {self._settings.session_limit} sessions are in use")
        self._session_count += 1
        try:
            with self._metrics.count_session():
                yield
        finally:
            self._session_count -= 1

    @asynccontextmanager
    async def _carried(self, opening: orchestrator_pb2.ConverseOpen) -> AsyncIterator[None]:
        """Counts a session among those that the stages carry; one that goes on was admitted before, and stays so."""
        if not opening.HasField("resume"):
            await self.capacity.until_whole(self._clock)
            stage, most_count = self.capacity.narrowest()
            if self._carried_count >= most_count:
                why = f"the {most_count} sessions that the {stage} stage carries are there"
                raise self._refused("NO_CAPACITY", why if most_count else f"no replica of the {stage} stage answers")
        self._carried_count += 1
        log = structlog.get_logger()
        log.info("session opened")
        try:
            yield
        finally:
            self._carried_count -= 1
            log.info("session ended")

    def _refused(self, reason: Refusal, message: str) -> ResourceExhausted:
        self._metrics.count_refusal(reason)
        return ResourceExhausted(message, reason=reason, retry_seconds=SESSION_RETRY_SECONDS)


async def _listen(
    requests: RequestStream[orchestrator_pb2.ConverseRequest], session: Session, heard: HeardAccount
) -> None:
    async for kind, payload in requests:
        if not heard.take(kind, payload):
            session.end()
            return
        session.count_message()
        match kind:
            case "audio":
                await session.audio(payload.index, payload.data)
            case "text":
                session.text(payload.text)
            case "end_turn":
                await session.end_turn(payload)
            case "cancel_reply":
                session.cancel_reply(payload)
            case "reply_played":
                session.reply_played(payload)
            case "update":
                await session.update(payload)
    session.end()
    await requests.nothing_more()


def _voice_message(voice: Voice) -> orchestrator_pb2.Voice:
    return orchestrator_pb2.Voice(**asdict(voice))
