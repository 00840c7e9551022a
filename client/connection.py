"""The mesh as a third party sees it: `async with connect("host:port") as mesh`."""

from collections.abc import Awaitable, Sequence
from types import TracebackType
from typing import Self, TypeVar

import grpc
from chroma_mesh.orchestrator.v1 import orchestrator_pb2, orchestrator_pb2_grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from client.access import Access
from client.channel import KeyedChannel, open_channel
from client.errors import from_rpc_error
from client.front import Front
from client.message import Message
from client.session import Session
from client.session_settings import ServerVad, SessionSettings, SoundFormat
from client.voice import Voice, VoiceExample, read_voice

DEFAULT_ADDRESS = "127.0.0.1:50050"
CALL_SECONDS = 60
"""The longest that a call outside of sessions may take: encoding a long voice on a busy CPU included."""

Answer = TypeVar("Answer")


def connect(address: str | Sequence[str] = DEFAULT_ADDRESS, access: Access | None = None) -> "Mesh":
    """The mesh whose orchestrator listens at "host:port"; the connection is made on `async with`.

    Of several addresses the first that has room is used for a session, and the others when its connection is lost.
    While none has and one can't be reached, all are tried again, for three seconds.
    `access` is for a mesh that asks for TLS or an API key. Its files are read on `async with`.
    """
    return Mesh(address, access)


class Mesh:
    """A connection to a mesh; enter it with `async with`. Its calls raise MeshError."""

    def __init__(self, address: str | Sequence[str], access: Access | None = None) -> None:
        self.addresses = (address,) if isinstance(address, str) else tuple(address)
        self.address = self.addresses[0]
        self._access = access or Access()
        self._channels: list[grpc.aio.Channel] = []

    @classmethod
    def over(cls, channel: grpc.aio.Channel, address: str, api_key: str | None = None) -> Self:
        """A mesh behind a channel that is the caller's, to close too; it is connected, and not to be entered.

        `address` is what errors call it; the key goes with every call, encrypted or not. The channel may lead to
        several orchestrators in turn: a session that one of them does not take is offered to the next.
        """
        mesh = cls((address, address))
        metadata = (("authorization", f"Bearer {api_key}"),)
        mesh._channels = [KeyedChannel(channel, metadata) if api_key else channel] * 2
        return mesh

    async def __aenter__(self) -> Self:
        self._channels = [open_channel(address, self._access) for address in self.addresses]
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for channel in self._channels:
            await channel.close()
        self._channels = []

    async def is_ready(self) -> bool:
        """Whether the mesh takes sessions; MeshError when nothing answers at the address."""
        stub = health_pb2_grpc.HealthStub(self._open_channel())
        response = await self._answer(stub.Check(health_pb2.HealthCheckRequest(), timeout=CALL_SECONDS))
        return bool(response.status == health_pb2.HealthCheckResponse.SERVING)

    async def voices(self) -> list[Voice]:
        """The voices by name."""
        request = orchestrator_pb2.ListVoicesRequest()
        response = await self._answer(self._stub().ListVoices(request, timeout=CALL_SECONDS))
        return [read_voice(voice) for voice in response.voices]

    async def add_voice(self, name: str, example: VoiceExample, *, shared: bool = False) -> Voice:
        """Adds a voice; its name is 1 ..= 64 of a-z, 0-9, '-' and '_'.

        On a mesh that asks for API keys it is this key's alone, unless it is `shared`.
        """
        request = orchestrator_pb2.CreateVoiceRequest(name=name, example=example.message(), shared=shared)
        response = await self._answer(self._stub().CreateVoice(request, timeout=CALL_SECONDS))
        return read_voice(response.voice)

    async def remove_voice(self, name: str) -> None:
        """Removes a created voice; the ones that ship with the mesh stay."""
        request = orchestrator_pb2.DeleteVoiceRequest(name=name)
        await self._answer(self._stub().DeleteVoice(request, timeout=CALL_SECONDS))

    def session(
        self,
        *,
        voice: str | VoiceExample | None = None,
        instructions: str | None = None,
        history: Sequence[Message] = (),
        temperature: float | None = None,
        top_k: int | None = None,
        seed: int | None = None,
        max_frame_count: int | None = None,
        max_step_count: int | None = None,
        input_format: SoundFormat = SessionSettings.input_format,
        output_format: SoundFormat = SessionSettings.output_format,
        turn_detection: ServerVad | None = None,
        ahead_seconds: float | None = None,
        resume_seconds: float = SessionSettings.resume_seconds,
    ) -> Session:
        """A new session, to be entered with `async with`; SessionSettings says what the arguments mean."""
        return self.open_session(
            SessionSettings(
                voice=voice,
                instructions=instructions,
                history=history,
                temperature=temperature,
                top_k=top_k,
                seed=seed,
                max_frame_count=max_frame_count,
                max_step_count=max_step_count,
                input_format=input_format,
                output_format=output_format,
                turn_detection=turn_detection,
                ahead_seconds=ahead_seconds,
                resume_seconds=resume_seconds,
            )
        )

    def open_session(self, settings: SessionSettings) -> Session:
        """As `session`, from settings that are kept."""
        self._open_channel()
        return Session([Front(*front) for front in zip(self._channels, self.addresses, strict=True)], settings)

    async def _answer(self, call: Awaitable[Answer]) -> Answer:
        try:
            return await call
        except grpc.aio.AioRpcError as error:
            raise from_rpc_error(error, self.address) from None

    def _stub(self) -> orchestrator_pb2_grpc.OrchestratorServiceStub:
        return orchestrator_pb2_grpc.OrchestratorServiceStub(self._open_channel())

    def _open_channel(self) -> grpc.aio.Channel:
        if not self._channels:
            raise RuntimeError("not connected: use 'async with connect(address) as mesh'")
        return self._channels[0]
