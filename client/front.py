"""An orchestrator, as a session calls it."""

from dataclasses import dataclass, field
from typing import Any

import grpc
from chroma_mesh.orchestrator.v1 import orchestrator_pb2_grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from client.call_status import CallStatus
from client.silence import Silence


@dataclass(frozen=True)
class Line:
    """A session's call, how it ended, whether it still leads anywhere, and where."""

    call: "grpc.aio.StreamStreamCall[Any, Any]"
    status: CallStatus
    silence: Silence
    address: str


@dataclass(frozen=True)
class Front:
    """One of a mesh's orchestrators: the channel to it, and its address, "host:port"."""

    channel: grpc.aio.Channel = field(repr=False)
    address: str

    def call(self, session_id: str) -> Line:
        """A call for a session, or for one that has no id yet."""
        stub = orchestrator_pb2_grpc.OrchestratorServiceStub(self.channel)
        call = stub.Converse(metadata=(("x-session-id", session_id),) if session_id else None)
        return Line(call, CallStatus(call), Silence(call, self._ask), self.address)

    def _ask(self, answer_seconds: float) -> grpc.aio.Call:
        return health_pb2_grpc.HealthStub(self.channel).Check(health_pb2.HealthCheckRequest(), timeout=answer_seconds)
