"""What a server takes of a message, of metadata and of a connection."""

from pathlib import Path

import grpc
import pytest
from chroma_mesh.orchestrator.v1 import orchestrator_pb2 as pb
from chroma_mesh.orchestrator.v1 import orchestrator_pb2_grpc

from services.runtime.settings import ServiceSettings
from tests.contract.keyed_mesh import KeyedMesh, keyed_mesh

RESOURCE_EXHAUSTED = grpc.StatusCode.RESOURCE_EXHAUSTED
LIMIT_BYTES = 2**16
LONG_SECONDS = 60  # no call of these takes so long: it only keeps a mistake from hanging


def metadata(mesh: KeyedMesh, **more: str) -> tuple[tuple[str, str], ...]:
    return (("authorization", f"Bearer {mesh.keys.secrets['alice']}"), *more.items())


async def test_a_message_or_metadata_beyond_the_limit_ends_the_call_and_nothing_else(tmp_path: Path) -> None:
    front = ServiceSettings(max_message_bytes=LIMIT_BYTES, max_metadata_bytes=4096)
    async with keyed_mesh(tmp_path, front=front) as mesh, grpc.aio.insecure_channel(mesh.address) as channel:
        stub = orchestrator_pb2_grpc.OrchestratorServiceStub(channel)
        given = metadata(mesh)
        going_on = stub.Converse(metadata=given, timeout=LONG_SECONDS)
        await going_on.write(pb.ConverseRequest(open=pb.ConverseOpen()))
        assert (await going_on.read()).HasField("opened")

        example = pb.VoiceExample(transcript="x" * LIMIT_BYTES)
        created = stub.CreateVoice(pb.CreateVoiceRequest(name="a", example=example), metadata=given)
        assert await created.code() is RESOURCE_EXHAUSTED
        session = stub.Converse(metadata=given, timeout=LONG_SECONDS)
        await session.write(pb.ConverseRequest(open=pb.ConverseOpen(instructions="x" * LIMIT_BYTES)))
        assert await session.code() is RESOURCE_EXHAUSTED
        # No limit decides by chance between two sizes.
        for size, code in ((2048, grpc.StatusCode.OK), (4096, RESOURCE_EXHAUSTED)):
            for _ in range(10):
                listed = stub.ListVoices(pb.ListVoicesRequest(), metadata=metadata(mesh, more="x" * size))
                assert await listed.code() is code

        await going_on.write(pb.ConverseRequest(end=pb.ConverseEnd()))
        assert await going_on.code() is grpc.StatusCode.OK


async def test_a_connection_has_so_many_calls_at_a_time_and_others_have_theirs(tmp_path: Path) -> None:
    front = ServiceSettings(connection_stream_limit=2)
    # One is to wait at its caller until there is room, rather than to go over a connection of its own.
    alone = [("grpc.use_local_subchannel_pool", 1)]
    async with (
        keyed_mesh(tmp_path, front=front) as mesh,
        grpc.aio.insecure_channel(mesh.address, options=alone) as full,
        grpc.aio.insecure_channel(mesh.address, options=alone) as other,
    ):
        stub = orchestrator_pb2_grpc.OrchestratorServiceStub(full)
        sessions = []
        for _ in range(2):
            call = stub.Converse(metadata=metadata(mesh), timeout=LONG_SECONDS)
            await call.write(pb.ConverseRequest(open=pb.ConverseOpen()))
            assert (await call.read()).HasField("opened")
            sessions.append(call)
        waiting = stub.ListVoices(pb.ListVoicesRequest(), metadata=metadata(mesh), timeout=LONG_SECONDS)
        elsewhere = orchestrator_pb2_grpc.OrchestratorServiceStub(other)
        assert (await elsewhere.ListVoices(pb.ListVoicesRequest(), metadata=metadata(mesh))).voices
        assert not waiting.done()
        await sessions[0].write(pb.ConverseRequest(end=pb.ConverseEnd()))
        assert await sessions[0].code() is grpc.StatusCode.OK
        assert (await waiting).voices
        sessions[1].cancel()


@pytest.mark.parametrize("name", ["max_metadata_bytes", "connection_stream_limit", "max_message_bytes"])
def test_limits_have_limits(name: str) -> None:
    with pytest.raises(ValueError, match=name):
        ServiceSettings(**{name: 0})
