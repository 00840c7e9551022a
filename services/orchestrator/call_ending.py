"""How a bidirectional call really ended."""

import asyncio
import contextlib
from collections.abc import Coroutine
from typing import Any, TypeVar

import grpc

# What grpc.aio says of a write that failed, and how long the status that explains it may take to arrive.
WRITE_FAILURE = "Internal error from Core"
STATUS_SECONDS = 2.0

Value = TypeVar("Value")


class CallEnding:
    """Keeps the status that the peer sent from being lost.

    A write that meets the end of its call fails, and then grpc.aio (1.85 does) sets the call's status to INTERNAL,
    whether the peer's own status has yet to arrive or is there already.
    """

    def __init__(self, call: Any) -> None:
        self._call = call
        self._first: grpc.aio.AioRpcError | None = None
        call.add_done_callback(self._keep)

    async def error(self, raised: grpc.aio.AioRpcError) -> grpc.aio.AioRpcError | None:
        """The error that the peer sent, given the one that its call raised; None when it sent OK."""
        if raised.details() != WRITE_FAILURE:
            return raised
        ending = self._first
        if ending is None or ending.details() == WRITE_FAILURE:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(STATUS_SECONDS):
                    while await self._call.details() == WRITE_FAILURE:  # noqa: ASYNC110 - nothing tells of the change
                        await asyncio.sleep(0.001)
            ending = self._ending()
        return None if ending.code() is grpc.StatusCode.OK else ending

    def _keep(self, _call: Any) -> None:
        # Called while the first status is set: even a moment later it may be another.
        self._first = self._ending()

    def _ending(self) -> grpc.aio.AioRpcError:
        return grpc.aio.AioRpcError(
            _at_once(self._call.code()),
            grpc.aio.Metadata(),
            _at_once(self._call.trailing_metadata()) or grpc.aio.Metadata(),
            _at_once(self._call.details()),
        )


def _at_once(coroutine: Coroutine[Any, Any, Value]) -> Value:
    """The result of a coroutine that has nothing to wait for."""
    try:
        coroutine.send(None)
    except StopIteration as result:
        value: Value = result.value
        return value
    coroutine.close()
    raise AssertionError("the call is not done")
