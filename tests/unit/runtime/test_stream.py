"""The stream law, rule by rule."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import grpc
import pytest
from chroma_mesh.codec.v1 import codec_pb2
from hypothesis import given
from hypothesis import strategies as st

from services.runtime.errors import Cancelled, InvalidArgument, from_rpc_error
from services.runtime.stream import IndexCheck, RequestStream

OPEN = codec_pb2.DecodeRequest(open=codec_pb2.DecodeOpen())
END = codec_pb2.DecodeRequest(end=codec_pb2.DecodeEnd())
EMPTY = codec_pb2.DecodeRequest()


def frame(index: int) -> codec_pb2.DecodeRequest:
    """A data message."""
    return codec_pb2.DecodeRequest(frames=codec_pb2.DecodeFrames(index=index))


def stream_of(*requests: codec_pb2.DecodeRequest) -> RequestStream[codec_pb2.DecodeRequest]:
    """A stream whose client sends these and half-closes."""

    async def sent() -> AsyncIterator[codec_pb2.DecodeRequest]:
        for request in requests:
            yield request

    return RequestStream(sent())


async def test_open_then_data_in_order_then_end() -> None:
    stream = stream_of(OPEN, frame(0), frame(1), END)
    assert isinstance(await stream.open(), codec_pb2.DecodeOpen)
    assert [(kind, payload.index) async for kind, payload in stream] == [("frames", 0), ("frames", 1)]
    await stream.nothing_more()


async def test_an_ended_stream_stays_ended() -> None:
    stream = stream_of(OPEN, END)
    await stream.open()
    assert [item async for item in stream] == []
    assert [item async for item in stream] == []


async def test_a_stream_can_be_read_in_parts() -> None:
    stream = stream_of(OPEN, frame(0), frame(1), END)
    await stream.open()
    kind, payload = await anext(stream)
    assert (kind, payload.index) == ("frames", 0)
    assert [payload.index async for _, payload in stream] == [1]


@pytest.mark.parametrize("first", [frame(0), END])
async def test_anything_before_open_is_out_of_order(first: codec_pb2.DecodeRequest) -> None:
    with pytest.raises(InvalidArgument, match="first message must be open") as caught:
        await stream_of(first, OPEN).open()
    assert caught.value.reason == "OUT_OF_ORDER"


async def test_a_second_open_is_out_of_order() -> None:
    stream = stream_of(OPEN, OPEN)
    await stream.open()
    with pytest.raises(InvalidArgument, match="once") as caught:
        await anext(stream)
    assert caught.value.reason == "OUT_OF_ORDER"


async def test_an_empty_message_is_refused_wherever_it_comes() -> None:
    with pytest.raises(InvalidArgument, match="payload"):
        await stream_of(EMPTY).open()
    stream = stream_of(OPEN, EMPTY)
    await stream.open()
    with pytest.raises(InvalidArgument, match="payload"):
        await anext(stream)


async def test_input_that_stops_before_open_is_abandoned() -> None:
    with pytest.raises(Cancelled) as caught:
        await stream_of().open()
    assert caught.value.reason == "ABANDONED"


@pytest.mark.parametrize("data", [(), (frame(0),)])
async def test_input_that_stops_without_end_is_abandoned(data: tuple[codec_pb2.DecodeRequest, ...]) -> None:
    stream = stream_of(OPEN, *data)
    await stream.open()
    with pytest.raises(Cancelled) as caught:
        [item async for item in stream]
    assert caught.value.reason == "ABANDONED"


@pytest.mark.parametrize("extra", [frame(0), OPEN, END, EMPTY])
async def test_nothing_may_follow_end(extra: codec_pb2.DecodeRequest) -> None:
    stream = stream_of(OPEN, END, extra)
    await stream.open()
    assert [item async for item in stream] == []
    with pytest.raises(InvalidArgument, match="nothing may follow end") as caught:
        await stream.nothing_more()
    assert caught.value.reason == "DATA_AFTER_END"


@given(st.integers(0, 5), st.lists(st.integers(0, 9)))
def test_indexes_count_up_by_one(first: int, indexes: list[int]) -> None:
    check = IndexCheck("frame.index", first)
    good = next((at for at, index in enumerate(indexes) if index != first + at), len(indexes))
    for index in indexes[:good]:
        check.expect(index)
    if good < len(indexes):
        with pytest.raises(
            InvalidArgument, match=rf"frame\.index must be {first + good}, got {indexes[good]}"
        ) as caught:
            check.expect(indexes[good])
        assert (caught.value.reason, caught.value.field) == ("INDEX_GAP", "frame.index")


class Work:
    """A handler as the stages write them: one task reads, the body writes, and the slot is given back at the end."""

    def __init__(self) -> None:
        self.opened = asyncio.Event()
        self.completed = False
        self.left = asyncio.Event()

    async def __call__(self, requests: Any, context: Any) -> None:
        """Writes one message for each frame once the input is complete."""
        stream: RequestStream[codec_pb2.DecodeRequest] = RequestStream(requests)
        count, complete = 0, asyncio.Event()

        async def read() -> None:
            nonlocal count
            async for _kind, _payload in stream:
                count += 1
            complete.set()
            await stream.nothing_more()

        try:
            await stream.open()
            self.opened.set()
            async with asyncio.TaskGroup() as tasks:
                reading = tasks.create_task(read())
                await complete.wait()
                self.completed = True
                await context.write(codec_pb2.DecodeResponse(finished=codec_pb2.DecodeFinished(frame_count=count)))
                reading.cancel()
        finally:
            self.left.set()


async def test_a_half_closed_or_half_open_stream_is_answered_alike(codec: Any) -> None:
    work = Work()
    async with codec(decode=work) as stub:
        for is_half_closed in (True, False):
            call = stub.Decode()
            for request in (OPEN, frame(0), END):
                await call.write(request)
            if is_half_closed:
                await call.done_writing()
            assert (await call.read()).finished.frame_count == 1
            assert await call.read() is grpc.aio.EOF
            assert await call.code() is grpc.StatusCode.OK


async def test_a_half_close_without_end_is_answered_cancelled(codec: Any) -> None:
    work = Work()
    async with codec(decode=work) as stub:
        call = stub.Decode()
        await call.write(OPEN)
        await call.done_writing()
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await call.read()
        error = from_rpc_error(caught.value)
        assert (type(error), error.reason) == (Cancelled, "ABANDONED")
        assert not work.completed


async def test_a_cancelled_call_never_looks_complete(codec: Any, caplog: pytest.LogCaptureFixture) -> None:
    for _ in range(20):
        work = Work()
        async with codec(decode=work) as stub:
            call = stub.Decode()
            for request in (OPEN, frame(0), frame(1)):
                await call.write(request)
            await work.opened.wait()
            call.cancel()
            await work.left.wait()
            assert not work.completed
    assert not [record for record in caplog.records if record.levelname in ("WARNING", "ERROR")]


async def test_an_expired_call_never_looks_complete(codec: Any) -> None:
    work = Work()
    async with codec(decode=work) as stub:
        call = stub.Decode(timeout=0.2)
        await call.write(OPEN)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await call.read()
        assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        await work.left.wait()
        assert not work.completed
