"""The connection to one service of the mesh."""

from collections.abc import Callable
from typing import Any, TypeVar, cast

import grpc

from client.access import Access, is_loopback

MAXIMUM_MESSAGE_BYTES = 16 * 2**20
CONNECT_SECONDS = 3.0
"""The longest that an attempt to connect may take, TLS included; gRPC calls it the shortest time between two."""

MultiCallable = TypeVar("MultiCallable", bound=Callable[..., Any])
Metadata = tuple[tuple[str, str], ...]


def open_channel(address: str, access: Access = Access()) -> grpc.aio.Channel:  # noqa: B008 - Access is frozen
    """A channel to "host:port", plaintext and without a key unless `access` says otherwise; the caller closes it."""
    options: list[tuple[str, int]] = [
        ("grpc.max_receive_message_length", MAXIMUM_MESSAGE_BYTES),
        ("grpc.max_send_message_length", MAXIMUM_MESSAGE_BYTES),
        # For connections that are silent for long; a session in which something is owed is watched more closely.
        ("grpc.keepalive_time_ms", 20_000),
        ("grpc.keepalive_timeout_ms", 10_000),  # for TCP
        ("grpc.http2.ping_timeout_ms", 10_000),  # for the ping
        ("grpc.http2.max_pings_without_data", 0),
        ("grpc.initial_reconnect_backoff_ms", 100),  # a session that is to go on waits for it
        ("grpc.min_reconnect_backoff_ms", round(CONNECT_SECONDS * 1000)),
        ("grpc.max_reconnect_backoff_ms", 2_000),
    ]
    if is_loopback(address):  # a proxy of the environment cannot reach this machine's own services
        options.append(("grpc.enable_http_proxy", 0))
    metadata, credentials = access.metadata(address), access.credentials()
    if credentials is None:
        channel = grpc.aio.insecure_channel(address, options=options)
    else:
        channel = grpc.aio.secure_channel(address, credentials, options=options)
    return KeyedChannel(channel, metadata) if metadata else channel


class KeyedChannel(grpc.aio.Channel):
    """A channel that sends the same metadata with every call.

    Not a gRPC interceptor: under one, `write` returns before a message is sent, so that a lost call may swallow one.
    """

    def __init__(self, channel: grpc.aio.Channel, metadata: Metadata) -> None:
        self._channel = channel
        self._metadata = metadata

    def unary_unary(self, *args: Any, **kwargs: Any) -> Any:
        """As in grpc."""
        return self._keyed(self._channel.unary_unary(*args, **kwargs))

    def unary_stream(self, *args: Any, **kwargs: Any) -> Any:
        """As in grpc."""
        return self._keyed(self._channel.unary_stream(*args, **kwargs))

    def stream_unary(self, *args: Any, **kwargs: Any) -> Any:
        """As in grpc."""
        return self._keyed(self._channel.stream_unary(*args, **kwargs))

    def stream_stream(self, *args: Any, **kwargs: Any) -> Any:
        """As in grpc."""
        return self._keyed(self._channel.stream_stream(*args, **kwargs))

    def get_state(self, try_to_connect: bool = False) -> grpc.ChannelConnectivity:
        """As in grpc."""
        return self._channel.get_state(try_to_connect)

    async def wait_for_state_change(self, last_observed_state: grpc.ChannelConnectivity) -> None:
        """As in grpc."""
        await self._channel.wait_for_state_change(last_observed_state)

    async def channel_ready(self) -> None:
        """As in grpc."""
        await self._channel.channel_ready()

    async def close(self, grace: float | None = None) -> None:
        """As in grpc."""
        await self._channel.close(grace)

    async def __aenter__(self) -> "KeyedChannel":
        return self

    async def __aexit__(self, *failure: Any) -> None:
        await self.close()

    def _keyed(self, start: MultiCallable) -> MultiCallable:
        def start_with_key(*args: Any, metadata: Any = None, **kwargs: Any) -> Any:
            return start(*args, metadata=(*(metadata or ()), *self._metadata), **kwargs)

        return cast(MultiCallable, start_with_key)
