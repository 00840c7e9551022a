"""Errors keep what they say on their way through a real server."""

import asyncio
import random
from typing import Any

import grpc
import pytest
from chroma_mesh.codec.v1 import codec_pb2
from google.rpc import error_details_pb2, status_pb2
from hypothesis import given
from hypothesis import strategies as st

from services.runtime import errors
from services.runtime.errors import (
    Cancelled,
    Internal,
    InvalidArgument,
    MeshError,
    NotFound,
    Unavailable,
    from_rpc_error,
    most_telling,
    to_rpc_status,
)

KINDS = sorted(MeshError.__subclasses__(), key=lambda kind: kind.__name__)


@pytest.mark.parametrize("kind", KINDS)
async def test_an_error_arrives_as_it_was_raised(codec: Any, kind: type[MeshError]) -> None:
    sent = kind("was für ein Fehler: 8 expected, 7 came", reason="SOME_REASON", field="audio.format", voice="ash")

    async def encode(_request: Any, _context: Any) -> Any:
        raise sent

    async with codec(encode=encode) as stub:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await stub.Encode(codec_pb2.EncodeRequest())
    assert caught.value.code() is kind.status_code
    came = from_rpc_error(caught.value)
    assert type(came) is kind
    assert (came.code, came.reason, came.message) == (sent.code, sent.reason, sent.message)
    assert (came.field, came.metadata) == (sent.field, sent.metadata)


async def test_an_error_of_a_stream_arrives_as_it_was_raised(codec: Any) -> None:
    async def decode(_requests: Any, context: Any) -> None:
        await context.write(codec_pb2.DecodeResponse())
        raise Unavailable("full", reason="QUEUE_FULL")

    async with codec(decode=decode) as stub:
        call = stub.Decode()
        assert await call.read() == codec_pb2.DecodeResponse()
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await call.read()
    came = from_rpc_error(caught.value)
    assert isinstance(came, Unavailable)
    assert came.reason == "QUEUE_FULL"


async def test_an_endless_message_is_cut_rather_than_lost(codec: Any) -> None:
    async def encode(_request: Any, _context: Any) -> Any:
        raise NotFound("ß" * 100_000, reason="NO_VOICE", field="ß" * 100_000, voice="ß" * 100_000)

    async with codec(encode=encode) as stub:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await stub.Encode(codec_pb2.EncodeRequest())
    came = from_rpc_error(caught.value)
    assert isinstance(came, NotFound)
    assert came.reason == "NO_VOICE"
    assert came.message.startswith("ßß")
    assert came.message.endswith("ß…")


def test_the_status_has_one_error_info_and_names_the_wrong_field() -> None:
    status = to_rpc_status(InvalidArgument("top_k must be at most 2048, got 9999", field="sampling.top_k"))
    assert status.code == 3
    info, bad_request = error_details_pb2.ErrorInfo(), error_details_pb2.BadRequest()
    assert [detail.Unpack(info) for detail in status.details] == [True, False]
    assert status.details[1].Unpack(bad_request)
    assert (info.domain, info.reason) == ("chroma-mesh", "INVALID_ARGUMENT")
    assert [violation.field for violation in bad_request.field_violations] == ["sampling.top_k"]


def test_without_a_wrong_field_there_is_no_bad_request() -> None:
    assert len(to_rpc_status(NotFound("no voice of that name")).details) == 1


def rpc_error(code: grpc.StatusCode, message: str, *trailing: tuple[str, bytes]) -> grpc.aio.AioRpcError:
    """What grpc raises at the caller."""
    return grpc.aio.AioRpcError(code, grpc.aio.Metadata(), grpc.aio.Metadata(*trailing), details=message)


OTHERS = set(grpc.StatusCode) - {grpc.StatusCode.OK, grpc.StatusCode.CANCELLED}


@pytest.mark.parametrize("code", sorted(OTHERS, key=lambda code: code.name))
def test_a_status_without_details_keeps_code_and_message(code: grpc.StatusCode) -> None:
    came = from_rpc_error(rpc_error(code, "connection refused"))
    assert (came.code, came.reason, came.message, came.field) == (code, code.name, "connection refused", None)
    assert to_rpc_status(came).code == code.value[0]


def test_a_call_that_nobody_cancelled_hit_a_server_that_goes() -> None:
    came = from_rpc_error(rpc_error(grpc.StatusCode.CANCELLED, "CANCELLED"))
    assert (type(came), came.code, came.reason) == (Unavailable, grpc.StatusCode.UNAVAILABLE, "DRAINING")


@pytest.mark.parametrize("details", [b"\xff\xff", status_pb2.Status(code=5, message="another").SerializeToString()])
def test_details_that_cannot_be_believed_are_left_out(details: bytes) -> None:
    came = from_rpc_error(rpc_error(grpc.StatusCode.INTERNAL, "oh", ("grpc-status-details-bin", details)))
    assert (type(came), came.reason, came.message) == (Internal, "INTERNAL", "oh")


ABANDONED = Cancelled("the input stopped", reason="ABANDONED")
TELLING = [Internal("broken"), InvalidArgument("gap"), Cancelled("by the caller"), ABANDONED]


@given(st.sets(st.integers(0, 3), min_size=1), st.randoms(use_true_random=False), st.booleans())
def test_of_a_groups_errors_the_most_telling_is_answered(ranks: set[int], order: random.Random, nested: bool) -> None:
    leaves: list[BaseException] = [TELLING[rank] for rank in ranks]
    order.shuffle(leaves)
    if nested:
        leaves = [BaseExceptionGroup("inner", [leaves[0], leaves[0]]), *leaves[1:]]
    assert most_telling(BaseExceptionGroup("outer", leaves)) is TELLING[min(ranks)]


@pytest.mark.parametrize("bug", [ValueError("oh"), grpc.aio.UsageError("twice")])
def test_a_group_with_anything_else_is_a_bug(bug: Exception) -> None:
    assert most_telling(bug) is None
    assert most_telling(ExceptionGroup("", [InvalidArgument("gap"), ExceptionGroup("", [bug])])) is None


def test_a_cancelled_or_lost_call_is_no_bug() -> None:
    cancelled = most_telling(asyncio.CancelledError())
    lost = most_telling(ExceptionGroup("", [grpc.aio.InternalError("write failed")]))
    assert isinstance(cancelled, Cancelled)
    assert isinstance(lost, Cancelled)
    assert (cancelled.reason, lost.reason) == ("CANCELLED", "ABANDONED")
    told = InvalidArgument("gap")
    assert most_telling(ExceptionGroup("", [grpc.aio.InternalError("write failed"), told])) is told


def test_each_code_has_one_class() -> None:
    assert len({kind.status_code for kind in KINDS}) == len(KINDS)
    assert all(getattr(errors, kind.__name__) is kind for kind in KINDS)
