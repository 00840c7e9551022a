"""A channel that new calls find fresh, whatever has become of the one before."""

from collections.abc import Callable
from typing import Any

import grpc


class RenewedChannel(grpc.aio.Channel):
    """A channel that is opened anew before a call for which the last one `is_spent`.

    Calls that are under way go on over the connection that they began on.
    """

    def __init__(
        self, open_channel: Callable[[], grpc.aio.Channel], is_spent: Callable[[grpc.aio.Channel], bool]
    ) -> None:
        self._open_channel = open_channel
        self._is_spent = is_spent
        self._channel = open_channel()
        # Calls of channels that no new call uses.
        self._retired: dict[grpc.aio.Channel, set[Any]] = {}
        self._calls: set[Any] = set()

    def unary_unary(self, *args: Any, **kwargs: Any) -> Any:
        """As in grpc."""
        return self._late("unary_unary", args, kwargs)

    def unary_stream(self, *args: Any, **kwargs: Any) -> Any:
        """As in grpc."""
        return self._late("unary_stream", args, kwargs)

    def stream_unary(self, *args: Any, **kwargs: Any) -> Any:
        """As in grpc."""
        return self._late("stream_unary", args, kwargs)

    def stream_stream(self, *args: Any, **kwargs: Any) -> Any:
        """As in grpc."""
        return self._late("stream_stream", args, kwargs)

    def get_state(self, try_to_connect: bool = False) -> grpc.ChannelConnectivity:
        """As in grpc, of the channel that the next call would use."""
        return self._current().get_state(try_to_connect)

    async def wait_for_state_change(self, last_observed_state: grpc.ChannelConnectivity) -> None:
        """As in grpc, of the channel that the next call would use."""
        await self._current().wait_for_state_change(last_observed_state)

    async def channel_ready(self) -> None:
        """As in grpc, of the channel that the next call would use."""
        await self._current().channel_ready()

    async def close(self, grace: float | None = None) -> None:
        """As in grpc, of all channels."""
        for channel in (*self._retired, self._channel):
            await channel.close(grace)

    async def __aenter__(self) -> "RenewedChannel":
        return self

    async def __aexit__(self, *failure: Any) -> None:
        await self.close()

    def _late(self, kind: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Callable[..., Any]:
        channel, method = None, None

        def start(*call_args: Any, **call_kwargs: Any) -> Any:
            nonlocal channel, method
            if channel is not (current := self._current()):
                channel, method = current, getattr(current, kind)(*args, **kwargs)
            assert method is not None
            call, calls = method(*call_args, **call_kwargs), self._calls
            calls.add(call)
            call.add_done_callback(lambda _: self._end(call, calls, current))
            return call

        return start

    def _current(self) -> grpc.aio.Channel:
        if self._is_spent(self._channel):
            opened = self._open_channel()
            if self._calls:
                self._retired[self._channel] = self._calls
            # One without calls is closed by its own end.
            self._channel, self._calls = opened, set()
        return self._channel

    def _end(self, call: Any, calls: set[Any], channel: grpc.aio.Channel) -> None:
        calls.discard(call)
        if not calls:
            self._retired.pop(channel, None)
