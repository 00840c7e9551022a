"""The server's side of the stream law: open, data in order, an explicit end, then nothing."""

from collections.abc import AsyncIterator
from typing import Any, Generic, TypeVar

from google.protobuf.message import Message

from services.runtime.errors import Cancelled, InvalidArgument

Request = TypeVar("Request", bound=Message)


class RequestStream(Generic[Request]):
    """The messages of one bidirectional call, each with one oneof named `payload`.

    The call's iterator ends alike when the client half-closes, cancels, runs out of time or is lost. So only `end`
    completes the input; input that stops before it raises Cancelled with reason ABANDONED.
    """

    def __init__(self, requests: AsyncIterator[Request]) -> None:
        self._requests = aiter(requests)
        self._is_open = False
        self._is_ended = False

    async def open(self) -> Any:
        """The `open` payload, which must come first; anything else is OUT_OF_ORDER."""
        assert not self._is_open, "open() is called once"
        kind, payload = await self._next()
        if kind != "open":
            raise InvalidArgument(f"the first message must be open, got {kind}", reason="OUT_OF_ORDER", field=kind)
        self._is_open = True
        return payload

    def __aiter__(self) -> "RequestStream[Request]":
        return self

    async def __anext__(self) -> tuple[str, Any]:
        """The next data message as (name of its payload, payload); iteration stops at `end`, which is not given out."""
        assert self._is_open, "open() comes first"
        if self._is_ended:
            raise StopAsyncIteration
        kind, payload = await self._next()
        if kind == "open":
            raise InvalidArgument("open must be sent once, got a second one", reason="OUT_OF_ORDER", field=kind)
        if kind == "end":
            self._is_ended = True
            raise StopAsyncIteration
        return kind, payload

    async def nothing_more(self) -> None:
        """Returns when the client half-closes after `end`; any message before that is DATA_AFTER_END.

        A client may stay half-open for as long as it likes: run this beside the output, and cancel it when all is sent.
        """
        assert self._is_ended, "nothing_more() comes after end"
        async for request in self._requests:
            kind = request.WhichOneof("payload") or "an empty message"
            raise InvalidArgument(f"nothing may follow end, got {kind}", reason="DATA_AFTER_END")

    async def _next(self) -> tuple[str, Any]:
        request = await anext(self._requests, None)
        if request is None:
            wanted = "end" if self._is_open else "open"
            raise Cancelled(f"the input stopped before {wanted}", reason="ABANDONED")
        kind = request.WhichOneof("payload")
        if kind is None:
            raise InvalidArgument("a message must have a payload, got an empty one", field="payload")
        return kind, getattr(request, kind)


class IndexCheck:
    """Counts the indexes of one kind of message, which must come without gaps or repeats."""

    def __init__(self, field: str, first: int = 0) -> None:
        self._field = field
        self._expected = first

    def expect(self, index: int, count: int = 1) -> None:
        """Takes the next `count` indexes; a first one that does not follow raises InvalidArgument, reason INDEX_GAP."""
        if index != self._expected:
            raise InvalidArgument(
                f"{self._field} must be {self._expected}, got {index}",
                reason="INDEX_GAP",
                field=self._field,
                expected=str(self._expected),
                got=str(index),
            )
        self._expected += count
