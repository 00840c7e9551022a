"""What a replica of a stage tells of itself: how many streams it serves at once."""

from typing import Any

import grpc
from chroma_mesh.stage.v1 import stage_pb2, stage_pb2_grpc

from services.runtime.interceptors import replica_name

SERVICE_NAME = stage_pb2.DESCRIPTOR.services_by_name["StageService"].full_name


class CapacityService(stage_pb2_grpc.StageServiceServicer):
    """The servicer; `slot_count` is set before the first call."""

    def __init__(self) -> None:
        self.replica = replica_name()
        self.slot_count = 0

    def add_to(self, server: grpc.aio.Server) -> None:
        """Puts the servicer on the server."""
        stage_pb2_grpc.add_StageServiceServicer_to_server(self, server)

    async def GetCapacity(
        self,
        request: stage_pb2.GetCapacityRequest,  # noqa: ARG002 - grpc gives it
        context: grpc.aio.ServicerContext[Any, Any],  # noqa: ARG002
    ) -> stage_pb2.GetCapacityResponse:
        """The replica's name and its slots."""
        return stage_pb2.GetCapacityResponse(replica=self.replica, slot_count=self.slot_count)
