"""Time that stands still while anything is on its way, and a mesh that lives in it, behind a real server."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import grpc
import numpy as np
import pytest
from chroma_mesh.orchestrator.v1 import orchestrator_pb2, orchestrator_pb2_grpc
from chroma_mesh.types.v1 import types_pb2
from google.rpc import status_pb2
from grpc_status import rpc_status

import client
from client.call.caller import Caller
from client.call.happening import Happening
from client.call.script import Script, SpokenTurn
from client.session import Session

SAMPLES_PER_FRAME = 1920
# What a packet without a frame has: the last samples of a reply at another rate.
TAIL_SAMPLES = 23
SETTLED_TURNS = 50
"""Turns of the loop after which everybody waits for time or for a message, when no message is on its way."""


class VirtualTime:
    """A clock that jumps to the next moment that somebody sleeps for once nothing else can happen before."""

    def __init__(self) -> None:
        self.time = 0.0
        self._sleepers: list[tuple[float, asyncio.Future[None]]] = []
        self._under_way_count = 0
        self._news = asyncio.Event()

    def now(self) -> float:
        """The time."""
        return self.time

    async def sleep_until(self, moment: float) -> None:
        """Returns at the moment, at once when it has passed."""
        if moment > self.time:
            sleeper = asyncio.get_running_loop().create_future()
            self._sleepers.append((moment, sleeper))
            self._news.set()
            await sleeper

    def depart(self) -> None:
        """A message is on its way, or a call of the transport."""
        self._under_way_count += 1

    def arrive(self) -> None:
        """It is no more."""
        self._under_way_count -= 1
        self._news.set()

    @contextlib.contextmanager
    def under_way(self) -> Iterator[None]:
        """The time stands still meanwhile."""
        self.depart()
        try:
            yield
        finally:
            self.arrive()

    async def run(self) -> None:
        """Lets the time pass, for ever."""
        while True:
            await self._settle()
            self._sleepers = [(moment, sleeper) for moment, sleeper in self._sleepers if not sleeper.done()]
            if not self._sleepers:
                await self._wait()
                continue
            self.time = min(moment for moment, _ in self._sleepers)
            for moment, sleeper in self._sleepers:
                if moment <= self.time:
                    sleeper.set_result(None)

    async def _settle(self) -> None:
        quiet_turns = 0
        while quiet_turns < SETTLED_TURNS:
            if self._under_way_count:
                await self._wait()
                quiet_turns = 0
            await asyncio.sleep(0)
            quiet_turns += 1

    async def _wait(self) -> None:
        self._news.clear()
        await self._news.wait()


@dataclass(frozen=True)
class PlannedReply:
    """A reply: its packets, from the end of the turn when and of how many frames; its text, and at which samples."""

    packets: Sequence[tuple[float, int]] = ((0.3, 1), (0.38, 2))
    texts: Sequence[tuple[str, int]] = (("Hel", 0), ("lo.", 3840))


@dataclass
class TimedMesh(orchestrator_pb2_grpc.OrchestratorServiceServicer):
    """Gives planned replies and notes when what came.

    Where it listens for turns itself, sound that is not zero is speech, and `silence_seconds` of silence end a turn.
    A reply that is to stop ends `stop_seconds` later, until when its packets come as planned. A message of the kind
    `refuse` is answered with an error; `late` is what it says after a reply has ended.
    """

    time: VirtualTime
    plan: Callable[[int], PlannedReply] = lambda turn_index: PlannedReply()
    silence_seconds: float = 0.5
    stop_seconds: float = 0.05
    is_deaf: bool = False
    refuse: tuple[str, status_pb2.Status] | None = None
    late: Any = None
    came: list[tuple[float, str, Any]] = field(default_factory=list)

    def received(self, kind: str) -> list[tuple[float, Any]]:
        """When messages of a kind came, and what they said."""
        return [(moment, payload) for moment, was, payload in self.came if was == kind]

    async def Converse(self, requests: AsyncIterator[orchestrator_pb2.ConverseRequest], context: Any) -> None:
        """One session."""
        await Conversation(self, context).hold(requests)


class Conversation:
    """One session of a timed mesh."""

    def __init__(self, mesh: TimedMesh, context: Any) -> None:
        self._mesh = mesh
        self._time = mesh.time
        self._context = context
        # Turns and replies both write; gRPC takes one message of a call at a time.
        self._writing = asyncio.Lock()
        self._turn_count = 0
        self._stops: dict[int, asyncio.Event] = {}
        self._rate = 0
        self._position = 0
        self._silent_since: int | None = None
        self._is_speaking = False

    async def hold(self, requests: AsyncIterator[orchestrator_pb2.ConverseRequest]) -> None:
        """Takes in the messages and gives the replies."""
        opened: Any = None
        async with asyncio.TaskGroup() as replies:
            async for request in requests:
                self._time.arrive()
                kind = request.WhichOneof("payload")
                payload = getattr(request, kind)
                self._mesh.came.append((self._time.now(), kind, payload))
                if self._mesh.refuse and self._mesh.refuse[0] == kind:
                    await self._context.abort_with_status(rpc_status.to_status(self._mesh.refuse[1]))
                match kind:
                    case "open":
                        opened = payload
                        self._rate = payload.input_format.sample_rate_hz
                        facts = orchestrator_pb2.ConverseOpened(
                            session_id="s-1",
                            output_format=payload.output_format,
                            samples_per_frame=SAMPLES_PER_FRAME,
                        )
                        await self.write(opened=facts)
                    case "audio" if opened.HasField("turn_detection"):
                        await self._listen(np.frombuffer(payload.data, np.int16), replies)
                    case "end_turn":
                        self._begin_reply(replies)
                    case "cancel_reply":
                        self._stops[payload.turn_index].set()

    def _begin_reply(self, replies: asyncio.TaskGroup) -> None:
        self._stops[self._turn_count] = asyncio.Event()
        replies.create_task(self._reply(self._turn_count))
        self._turn_count += 1

    async def _listen(self, samples: Any, replies: asyncio.TaskGroup) -> None:
        """The simplest of detectors."""
        begins_at = self._position
        self._position += len(samples)
        if self._mesh.is_deaf:
            return
        if samples.any():
            if not self._is_speaking:
                self._is_speaking = True
                for stop in self._stops.values():
                    stop.set()
                started = orchestrator_pb2.SpeechStarted(turn_index=self._turn_count, audio_sample=begins_at)
                await self.write(speech_started=started)
            self._silent_since = None
        elif self._is_speaking:
            self._silent_since = begins_at if self._silent_since is None else self._silent_since
            if self._position - self._silent_since >= self._mesh.silence_seconds * self._rate:
                self._is_speaking = False
                stopped = orchestrator_pb2.SpeechStopped(turn_index=self._turn_count, audio_sample=self._position)
                await self.write(speech_stopped=stopped)
                self._begin_reply(replies)

    async def _reply(self, turn_index: int) -> None:
        began_at = self._time.now()
        plan = self._mesh.plan(turn_index)
        stop = self._stops[turn_index]
        texts = list(plan.texts)
        sent_frames = 0
        await self.write(reply_started=orchestrator_pb2.ReplyStarted(turn_index=turn_index))
        ends_at = float("inf")
        for seconds, frame_count in plan.packets:
            if ends_at == float("inf") and await self._is_stopped_before(began_at + seconds, stop):
                ends_at = self._time.now() + self._mesh.stop_seconds
            if began_at + seconds > ends_at:
                break
            await self._time.sleep_until(began_at + seconds)
            while texts and texts[0][1] < (sent_frames + frame_count) * SAMPLES_PER_FRAME:
                text, sample = texts.pop(0)
                piece = orchestrator_pb2.ReplyText(turn_index=turn_index, text=text, audio_sample=sample)
                await self.write(text=piece)
            sample_count = frame_count * SAMPLES_PER_FRAME or TAIL_SAMPLES
            data = np.full(sample_count, (turn_index + 1) * 1000, np.int16).tobytes()
            audio = orchestrator_pb2.ReplyAudio(
                turn_index=turn_index, frame_index=sent_frames, frame_count=frame_count, data=data
            )
            sent_frames += frame_count
            await self.write(audio=audio)
        is_cut = ends_at < float("inf")
        if is_cut:
            await self._time.sleep_until(ends_at)
        reason = types_pb2.FINISH_REASON_CANCELLED if is_cut else types_pb2.FINISH_REASON_STOP
        ended = orchestrator_pb2.ReplyEnded(
            turn_index=turn_index, reason=reason, text="".join(text for text, _ in plan.texts), frame_count=sent_frames
        )
        await self.write(reply_ended=ended)
        if self._mesh.late is not None:
            await self.write(audio=self._mesh.late)

    async def _is_stopped_before(self, moment: float, stop: asyncio.Event) -> bool:
        """Waits for either."""
        waits = [asyncio.ensure_future(self._time.sleep_until(moment)), asyncio.ensure_future(stop.wait())]
        await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        for wait in waits:
            wait.cancel()
        await asyncio.wait(waits)
        return stop.is_set() and self._time.now() < moment

    async def write(self, **payload: Any) -> None:
        """One message to the client."""
        self._time.depart()
        with self._time.under_way():
            async with self._writing:
                await self._context.write(orchestrator_pb2.ConverseResponse(**payload))


@pytest.fixture
async def time(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[VirtualTime]:
    """A clock that knows of every message between clients and servers of this test."""
    time = VirtualTime()
    write, receive = Session._write, Session._receive

    async def counted_write(session: Session, request: Any) -> None:
        time.depart()
        with time.under_way():
            await write(session, request)

    async def counted_receive(session: Session) -> Any:
        response = await receive(session)
        if response is not None:
            time.arrive()
        return response

    monkeypatch.setattr(Session, "_write", counted_write)
    monkeypatch.setattr(Session, "_receive", counted_receive)
    running = asyncio.create_task(time.run())
    yield time
    running.cancel()
    await asyncio.wait([running])


@dataclass
class Call:
    """A call that is over."""

    caller: Caller
    mesh: TimedMesh
    happenings: list[Happening]

    def told(self, *kinds: str) -> list[tuple[float, str]]:
        """When what of some kinds was told."""
        return [(round(one.seconds, 6), one.text or one.kind) for one in self.happenings if one.kind in kinds]


def spoken(lengths: float | Sequence[float], level: float, sample_rate_hz: int) -> Any:
    """Speech of one level, and silence between it."""
    by_turns = [lengths] if isinstance(lengths, float) else lengths
    return np.concatenate(
        [
            np.full(round(seconds * sample_rate_hz), level if index % 2 == 0 else 0, np.float32)
            for index, seconds in enumerate(by_turns)
        ]
    )


Hold = Callable[..., Awaitable[Call]]


Served = Callable[[TimedMesh], AbstractAsyncContextManager[str]]


@pytest.fixture
def served(serving: Any) -> Served:
    """Serves a timed mesh: `async with served(mesh) as address`."""

    @asynccontextmanager
    async def served(mesh: TimedMesh) -> AsyncIterator[str]:
        def add(server: grpc.aio.Server) -> None:
            orchestrator_pb2_grpc.add_OrchestratorServiceServicer_to_server(mesh, server)

        async with serving(add) as (_, address):
            yield address

    return served


@pytest.fixture
def timed_mesh() -> type[TimedMesh]:
    """Makes timed meshes."""
    return TimedMesh


@pytest.fixture
async def hold(time: VirtualTime, served: Served) -> Hold:
    """Holds a call with a timed mesh: `await hold([0.05, 0.1], plan=…, turn_detection=…, pause_seconds=…)`.

    A turn is a length in seconds, or lengths of speech and silence by turns.
    """
    mesh_fields = set(TimedMesh.__dataclass_fields__)
    script_fields = set(Script.__dataclass_fields__)

    async def hold(lengths: Sequence[float | Sequence[float]], **options: Any) -> Call:
        mesh = TimedMesh(time, **{name: options.pop(name) for name in mesh_fields & set(options)})
        script_options = {name: options.pop(name) for name in script_fields & set(options)}
        happenings: list[Happening] = []
        async with (
            served(mesh) as address,
            client.connect(address) as connected,
            connected.session(**options) as session,
        ):
            rate = session.settings.input_format.sample_rate_hz
            turns = [
                SpokenTurn(f"{index}.wav", spoken(length, (index + 1) / 64, rate))
                for index, length in enumerate(lengths)
            ]
            script = Script(turns=turns, **script_options)
            caller = Caller(session, script, time, watch=happenings.append, keeps_sound=True)
            await caller.run()
        return Call(caller, mesh, happenings)

    return hold


@pytest.fixture
def planned() -> type[PlannedReply]:
    """Makes plans of replies."""
    return PlannedReply
