"""How a call really ended."""

from collections.abc import Coroutine
from typing import Any, TypeVar

import grpc

Value = TypeVar("Value")


class CallStatus:
    """Keeps the error that the peer ended a call with: `peers_error`, None while it goes on and when it ended well.

    When a message is on its way at the moment the peer ends the call, grpc.aio replaces the peer's status by INTERNAL
    "Internal error from Core" (grpc/grpc#36066), for reads and writes alike and more often than not. The first status
    is the peer's, and it can be had in the moment it is set.
    """

    def __init__(self, call: grpc.aio.Call) -> None:
        self.peers_error: grpc.aio.AioRpcError | None = None
        call.add_done_callback(self._keep)

    def _keep(self, call: grpc.aio.Call) -> None:
        if self.peers_error is not None:
            return
        code = value_of(call.code())
        if code is not grpc.StatusCode.OK:
            metadata = value_of(call.trailing_metadata())
            self.peers_error = grpc.aio.AioRpcError(code, grpc.aio.Metadata(), metadata, value_of(call.details()))


def value_of(coroutine: Coroutine[Any, Any, Value]) -> Value:
    """What a coroutine returns that has nothing to wait for."""
    try:
        coroutine.send(None)
    except StopIteration as done:
        value: Value = done.value
        return value
    coroutine.close()
    raise RuntimeError("the call is not done")
