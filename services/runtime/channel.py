"""Channels to the services of the mesh."""

import json
import time
from collections.abc import Callable, Sequence
from typing import Any, TypeVar, cast

import grpc

from services.runtime.address import target
from services.runtime.interceptors import outgoing_metadata
from services.runtime.renewed_channel import RenewedChannel
from services.runtime.tls import ClientTls, channel_credentials

MAX_MESSAGE_BYTES = 16 * 1024 * 1024
# The longest example of a voice fits, as floats. A call that sends more is not repeated.
REPEATED_BYTES = 4 * 1024 * 1024
# Five is gRPC's own limit. The waits are there for the last replica to be freed; another one is tried almost at once.
REFUSED_ELSEWHERE = {
    "maxAttempts": 5,
    "initialBackoff": "0.005s",
    "maxBackoff": "0.1s",
    "backoffMultiplier": 3,
    # CANCELLED is gRPC's own answer of a server that is being shut down; a caller who cancels is told nothing.
    "retryableStatusCodes": ["UNAVAILABLE", "CANCELLED"],
}

# Left to itself, gRPC asks for a name that stood for nobody after twice as long each time, up to two minutes.
LOOK_AGAIN_SECONDS = 1.5

MultiCallable = TypeVar("MultiCallable", bound=Callable[..., Any])


def open_channel(
    address: str,
    *,
    service: str | None = None,
    repeated: Sequence[str] = (),
    read_ahead_bytes: int | None = None,
    tls: ClientTls | None = None,
) -> grpc.aio.Channel:
    """A channel to the replicas at `address`, as `check_address` has it, whose calls carry the ids of their context.

    Calls go to the replicas in turn; those whose health says that `service` is not serving, and those that can't be
    reached, are left out until they are back. When a connection is lost or too old, a name is asked for anew; while
    nobody can be reached, calls have it asked for every 1.5 seconds. A call of one of the `repeated` unary methods of
    `service` that is refused (UNAVAILABLE, no answer before) is begun again at the next replica, by gRPC itself. A
    stream that is refused is its caller's to begin again, which goes to the next replica as well: when gRPC repeats one
    that is just being written to, a message may be lost in silence.

    Messages may have up to 16 MiB; a peer that is silently gone is noticed within four seconds. `read_ahead_bytes` is
    what a peer may send of one call before it is read; by default HTTP/2 finds that out, 64 KiB or more. With `tls` the
    connection is encrypted, and calls after a change of its files have the new ones. To be closed, or used with
    `async with`.
    """
    uri = target(address)
    options: list[tuple[str, int | str]] = [
        ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
        ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
        # A stopped process and a cut wire look like a slow peer: only pings tell. A listener has some seconds in hand.
        ("grpc.keepalive_time_ms", 2_000),
        ("grpc.keepalive_timeout_ms", 2_000),  # for TCP
        ("grpc.http2.ping_timeout_ms", 2_000),  # for the ping; by default a minute
        ("grpc.http2.max_pings_without_data", 0),
        ("grpc.initial_reconnect_backoff_ms", 100),
        ("grpc.min_reconnect_backoff_ms", 5_000),
        ("grpc.max_reconnect_backoff_ms", 1_000),
        ("grpc.dns_min_time_between_resolutions_ms", 1_000),
        ("grpc.service_config", _service_config(service, repeated)),
        ("grpc.service_config_disable_resolution", 1),  # or every name would be asked for one of its own
        ("grpc.per_rpc_retry_buffer_size", REPEATED_BYTES),
    ]
    if read_ahead_bytes is not None:
        options += [("grpc.http2.lookahead_bytes", read_ahead_bytes), ("grpc.http2.bdp_probe", 0)]
    if tls is not None and tls.name is not None:
        options += [("grpc.ssl_target_name_override", tls.name)]
    return IdentifiedChannel(_renewed_channel(uri, options, tls))


def _renewed_channel(uri: str, options: list[tuple[str, int | str]], tls: ClientTls | None) -> grpc.aio.Channel:
    """One that is opened anew when the files of `tls` have changed, and to ask for a name that leads to nobody."""
    credentials = None if tls is None else channel_credentials(tls)
    used: grpc.ChannelCredentials | None = None
    opened_at = 0.0

    def open_one() -> grpc.aio.Channel:
        nonlocal used, opened_at
        opened_at = time.monotonic()
        if credentials is None:
            return grpc.aio.insecure_channel(uri, options=options)
        used = credentials.current()
        return grpc.aio.secure_channel(uri, used, options=options)

    def is_spent(channel: grpc.aio.Channel) -> bool:
        # grpc reads a channel's certificates only once.
        if credentials is not None and credentials.current() is not used:
            return True
        is_failing = channel.get_state() is grpc.ChannelConnectivity.TRANSIENT_FAILURE
        return is_failing and time.monotonic() - opened_at >= LOOK_AGAIN_SECONDS

    return RenewedChannel(open_one, is_spent)


def _service_config(service: str | None, repeated: Sequence[str]) -> str:
    config: dict[str, Any] = {"loadBalancingConfig": [{"round_robin": {}}]}
    if service is not None:
        config["healthCheckConfig"] = {"serviceName": service}
    if repeated:
        names = [{"service": service, "method": method} for method in repeated]
        config["methodConfig"] = [{"name": names, "retryPolicy": REFUSED_ELSEWHERE}]
    return json.dumps(config)


class IdentifiedChannel(grpc.aio.Channel):
    """A channel that sends the ids of the calling context with every call.

    Not a gRPC client interceptor: under one, `write` puts messages into a queue of grpc's own and returns before they
    are sent, so that a lost call may swallow one in silence.
    """

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self._channel = channel

    def unary_unary(self, *args: Any, **kwargs: Any) -> Any:
        """As in grpc."""
        return _with_ids(self._channel.unary_unary(*args, **kwargs))

    def unary_stream(self, *args: Any, **kwargs: Any) -> Any:
        """As in grpc."""
        return _with_ids(self._channel.unary_stream(*args, **kwargs))

    def stream_unary(self, *args: Any, **kwargs: Any) -> Any:
        """As in grpc."""
        return _with_ids(self._channel.stream_unary(*args, **kwargs))

    def stream_stream(self, *args: Any, **kwargs: Any) -> Any:
        """As in grpc."""
        return _with_ids(self._channel.stream_stream(*args, **kwargs))

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

    async def __aenter__(self) -> "IdentifiedChannel":
        await self._channel.__aenter__()
        return self

    async def __aexit__(self, *failure: Any) -> None:
        await self.close()


def _with_ids(start: MultiCallable) -> MultiCallable:
    def start_with_ids(*args: Any, metadata: Any = None, **kwargs: Any) -> Any:
        return start(*args, metadata=(*(metadata or ()), *outgoing_metadata()), **kwargs)

    return cast(MultiCallable, start_with_ids)
