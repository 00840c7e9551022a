"""The three stages as the orchestrator sees them: their channels, their facts, and calls that keep the stream law."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any, Self

import grpc
import structlog
from chroma_mesh.codec.v1 import codec_pb2, codec_pb2_grpc
from chroma_mesh.reasoner.v1 import reasoner_pb2, reasoner_pb2_grpc
from chroma_mesh.speech.v1 import speech_pb2, speech_pb2_grpc
from chroma_mesh.stage.v1 import stage_pb2, stage_pb2_grpc
from chroma_mesh.types.v1 import types_pb2
from google.protobuf.message import Message
from grpc_health.v1 import health_pb2, health_pb2_grpc

from services.orchestrator.call_ending import CallEnding
from services.runtime.channel import open_channel
from services.runtime.errors import (
    DeadlineExceeded,
    Internal,
    InvalidArgument,
    MeshError,
    Unavailable,
    from_rpc_error,
)
from services.runtime.interceptors import REPLICA_KEY
from services.runtime.tls import ClientTls

SERVICES = {
    "reasoner": reasoner_pb2.DESCRIPTOR.services_by_name["ReasonerService"].full_name,
    "speech": speech_pb2.DESCRIPTOR.services_by_name["SpeechService"].full_name,
    "codec": codec_pb2.DESCRIPTOR.services_by_name["CodecService"].full_name,
}
# Some 40 frames, which are small: the speech stage is to stop when its frames are not taken. Once it has all steps
# nothing else holds it back, and HTTP/2 alone would take a minute of speech.
SPEECH_READ_AHEAD_BYTES = 1024
# Between two looks at a stage that answers, but not as it should yet.
RETRY_SECONDS = 0.2
# A replica that does not say at once how many slots it has is as good as gone.
ASK_SECONDS = 1.0


@dataclass(frozen=True)
class CodecFacts:
    """What the codec told about itself."""

    sample_rate_hz: int
    samples_per_frame: int
    codebook_count: int
    codebook_size: int

    @classmethod
    def of(cls, opened: codec_pb2.DecodeOpened) -> Self:
        """The facts in the codec's `opened`."""
        return cls(
            sample_rate_hz=opened.sample_rate_hz,
            samples_per_frame=opened.samples_per_frame,
            codebook_count=opened.codebook_count,
            codebook_size=opened.codebook_size,
        )


@dataclass(frozen=True)
class ReplicaSlots:
    """How many streams a replica of a stage serves at once."""

    replica: str
    slot_count: int


class StageCall:
    """One bidirectional call to a stage, cancelled at the end of its block unless it has ended.

    Iteration gives (name of the payload, payload) from `opened` to `finished`, and is over when the stage has ended the
    call with OK. Whatever else happens raises a MeshError that names the stage; so does a failure of `requests`.
    """

    def __init__(self, stage: str, method: Any, requests: AsyncIterator[Message], *, deadline_seconds: float) -> None:
        self._stage = stage
        self._method = method
        self._requests = requests
        self._deadline_seconds = deadline_seconds
        self._request_failure: Exception | None = None
        self.replica: str | None = None
        """Who answers, once `opened` has come."""
        self.answer_count = 0
        """Messages that the stage has sent."""
        self.is_awaited = False
        """Whether the next one is being waited for."""
        self.answer: Any = None
        """The last one as a whole."""

    async def __aenter__(self) -> Self:
        self._call = self._method(self._watched_requests(), timeout=self._deadline_seconds)
        self._ending = CallEnding(self._call)
        return self

    async def __aexit__(self, *_: object) -> None:
        self._call.cancel()

    async def __aiter__(self) -> AsyncIterator[tuple[str, Any]]:
        previous: str | None = None
        try:
            self.is_awaited = True
            async for response in self._call:
                self.is_awaited = False
                self.answer_count += 1
                kind = response.WhichOneof("payload")
                if (kind == "opened") != (previous is None) or previous == "finished" or kind is None:
                    raise self._broken(f"sent {kind} after {previous}")
                if previous is None:
                    self.replica = dict(await self._call.initial_metadata()).get(REPLICA_KEY)
                previous, self.answer = kind, response
                yield kind, getattr(response, kind)
                self.is_awaited = True
        except grpc.aio.AioRpcError as error:
            sent = await self._ending.error(error)
            # After `finished` nothing was left to come but OK.
            if sent is not None and previous != "finished":
                told = self._told(sent)
                structlog.get_logger().info(
                    "stage stream lost", to=self._stage, replica=self.replica, code=told.code.name, reason=told.reason
                )
                raise stage_error(self._stage, told) from None
        except asyncio.CancelledError:
            if _is_being_cancelled():
                raise
            # Nobody cancelled this task, so it is the call that was cancelled: its requests failed.
            raise self._request_failure or Unavailable(
                f"the {self._stage} stage: the call was cancelled", reason="STAGE_CANCELLED", stage=self._stage
            ) from None
        if previous != "finished":
            raise Unavailable(
                f"the {self._stage} stage ended its stream without finished", reason="UNFINISHED", stage=self._stage
            )

    def give_up(self, why: str) -> None:
        """Ends the call: its reader is told that the stage is not available."""
        self._request_failure = Unavailable(f"the {self._stage} stage {why}", reason="STALLED", stage=self._stage)
        self._call.cancel()

    def expect(self, what: str, expected: object, got: object) -> None:
        """Raises Internal, reason STAGE_BROKE_CONTRACT, unless what the stage sent is what was expected."""
        if got != expected:
            raise self._broken(f"sent {what} {got}, expected was {expected}")

    async def _watched_requests(self) -> AsyncIterator[Message]:
        # grpc.aio cancels the call when its requests fail, and tells nobody why.
        try:
            async for request in self._requests:
                yield request
        except Exception as failure:
            self._request_failure = failure
            raise

    def _told(self, sent: grpc.aio.AioRpcError) -> MeshError:
        told = from_rpc_error(sent)
        # gRPC's own answer, without a reason, when our deadline has passed.
        if isinstance(told, DeadlineExceeded) and told.reason == told.code.name:
            return DeadlineExceeded(f"a reply may take {self._deadline_seconds:g} s", reason="REPLY_DEADLINE")
        return told

    def _broken(self, how: str) -> Internal:
        return Internal(f"the {self._stage} stage {how}", reason="STAGE_BROKE_CONTRACT", stage=self._stage)


class Stages:
    """Channels to the three stages; use it with `async with`, or close it."""

    def __init__(
        self,
        *,
        reasoner_address: str,
        speech_address: str,
        codec_address: str,
        reply_deadline_seconds: float,
        tls: ClientTls | None = None,
    ) -> None:
        self._deadline_seconds = reply_deadline_seconds
        self._addresses = {"reasoner": reasoner_address, "speech": speech_address, "codec": codec_address}
        self._channels = {
            "reasoner": open_channel(reasoner_address, service=SERVICES["reasoner"], tls=tls),
            "speech": open_channel(
                speech_address, service=SERVICES["speech"], read_ahead_bytes=SPEECH_READ_AHEAD_BYTES, tls=tls
            ),
            "codec": open_channel(codec_address, service=SERVICES["codec"], repeated=["Encode"], tls=tls),
        }
        self._reasoner = reasoner_pb2_grpc.ReasonerServiceStub(self._channels["reasoner"])
        self._speech = speech_pb2_grpc.SpeechServiceStub(self._channels["speech"])
        self._codec = codec_pb2_grpc.CodecServiceStub(self._channels["codec"])
        self._tellers = {stage: stage_pb2_grpc.StageServiceStub(channel) for stage, channel in self._channels.items()}
        self._codec_facts: CodecFacts | None = None
        self.context_length: int | None = None
        """Positions that the reasoner can hold, once it has told so."""

    @property
    def codec_facts(self) -> CodecFacts:
        """The codec's facts, known after `learn`."""
        assert self._codec_facts is not None, "learn() comes first"
        return self._codec_facts

    def generate(self, requests: AsyncIterator[reasoner_pb2.GenerateRequest]) -> StageCall:
        """Opens one reply's stream to the reasoner."""
        return StageCall("reasoner", self._reasoner.Generate, requests, deadline_seconds=self._deadline_seconds)

    def generate_frames(self, requests: AsyncIterator[speech_pb2.GenerateFramesRequest]) -> StageCall:
        """Opens one reply's stream to the speech stage."""
        return StageCall("speech", self._speech.GenerateFrames, requests, deadline_seconds=self._deadline_seconds)

    def decode(self, requests: AsyncIterator[codec_pb2.DecodeRequest]) -> StageCall:
        """Opens one reply's stream to the codec."""
        return StageCall("codec", self._codec.Decode, requests, deadline_seconds=self._deadline_seconds)

    async def encode(self, audio: types_pb2.Audio) -> list[types_pb2.Frame]:
        """The codec's frames for a voice's example."""
        try:
            response = await self._codec.Encode(codec_pb2.EncodeRequest(audio=audio), timeout=self._deadline_seconds)
        except grpc.aio.AioRpcError as error:
            raise stage_error("codec", from_rpc_error(error)) from None
        if not response.frames or any(len(frame.codes) != self.codec_facts.codebook_count for frame in response.frames):
            raise Internal(
                f"the codec stage must encode to frames of {self.codec_facts.codebook_count} codes",
                reason="STAGE_BROKE_CONTRACT",
                stage="codec",
            )
        return list(response.frames)

    async def check_voice(self, prompt: types_pb2.VoicePrompt) -> None:
        """Asks the speech stage whether it speaks with a voice; raises InvalidArgument where it does not."""

        async def nothing_more() -> AsyncIterator[speech_pb2.GenerateFramesRequest]:
            yield speech_pb2.GenerateFramesRequest(open=speech_pb2.GenerateFramesOpen(voice_prompt=prompt))
            await asyncio.Event().wait()  # until the call is cancelled

        async with self.generate_frames(nothing_more()) as call:
            async for _ in call:  # `opened`: it does
                return

    async def until_serving(self, deadline_seconds: float) -> None:
        """Waits until all three stages serve; Unavailable, reason STAGE_NOT_SERVING, names those that are too late."""
        async with asyncio.TaskGroup() as tasks:
            waits = [
                tasks.create_task(self._until_one_serves(stage, service, deadline_seconds))
                for stage, service in SERVICES.items()
            ]
        problems = [problem for wait in waits if (problem := wait.result())]
        if problems:
            raise Unavailable("; ".join(problems), reason="STAGE_NOT_SERVING")

    async def learn(self, audio_format: types_pb2.AudioFormat) -> None:
        """Asks the codec for its facts, with an empty reply in a format that it takes."""

        async def nothing() -> AsyncIterator[codec_pb2.DecodeRequest]:
            yield codec_pb2.DecodeRequest(open=codec_pb2.DecodeOpen(audio_format=audio_format))
            yield codec_pb2.DecodeRequest(end=codec_pb2.DecodeEnd())

        async with self.decode(nothing()) as call:
            async for kind, payload in call:
                if kind == "opened":
                    self._codec_facts = CodecFacts.of(payload)

    async def ask_slots(self, stage: str) -> ReplicaSlots:
        """What the next replica of the stage tells of its slots; raises MeshError when it can't be asked."""
        try:
            told = await self._tellers[stage].GetCapacity(stage_pb2.GetCapacityRequest(), timeout=ASK_SECONDS)
        except grpc.aio.AioRpcError as error:
            raise stage_error(stage, from_rpc_error(error)) from None
        return ReplicaSlots(told.replica, told.slot_count)

    async def close(self) -> None:
        """Closes the channels."""
        for channel in self._channels.values():
            await channel.close()

    async def _until_one_serves(self, stage: str, service: str, deadline_seconds: float) -> str | None:
        # Says what is wrong rather than raise it, so that one message can name every stage that is missing.
        watch = health_pb2_grpc.HealthStub(self._channels[stage]).Watch
        state = "not reachable"
        try:
            async with asyncio.timeout(deadline_seconds):
                while True:
                    call = watch(health_pb2.HealthCheckRequest(service=service), timeout=deadline_seconds)
                    try:
                        async for health in call:
                            if health.status == health_pb2.HealthCheckResponse.SERVING:
                                return None
                            state = health_pb2.HealthCheckResponse.ServingStatus.Name(health.status)
                    except grpc.aio.AioRpcError as error:
                        if error.code() is not grpc.StatusCode.DEADLINE_EXCEEDED:
                            state = f"{error.code().name}: {error.details()}"
                    finally:
                        call.cancel()
                    await asyncio.sleep(RETRY_SECONDS)
        except TimeoutError:
            return f"the {stage} stage at {self._addresses[stage]} does not serve after {deadline_seconds:g} s: {state}"


def stage_error(stage: str, error: MeshError) -> MeshError:
    """What a session is told of a stage's error: the same kind and reason, where they mean the same to its client.

    A call that ended without the orchestrator's doing is as good as an absent stage; anything else is our bug.
    """
    message = f"the {stage} stage: {error.message}"
    match error:
        case InvalidArgument() | Unavailable() | DeadlineExceeded() | Internal():
            told = type(error)(message, reason=error.reason)
            told.metadata = {**error.metadata, "stage": stage}
            return told
        case _ if error.code in (grpc.StatusCode.CANCELLED, grpc.StatusCode.UNKNOWN, grpc.StatusCode.ABORTED):
            return Unavailable(message, reason=f"STAGE_{error.code.name}", stage=stage)
        case _:
            return Internal(f"{message} ({error.code.name})", reason="STAGE_FAILED", stage=stage)


def _is_being_cancelled() -> bool:
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0
