"""TLS from files: who a server is, whom it lets in, and whom a caller trusts."""

import ssl
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc

from services.runtime.file_value import FileUnusable, FileValue, read_bytes

OpenChannel = Callable[[grpc.ChannelCredentials], grpc.aio.Channel]


@dataclass(frozen=True)
class ServerTls:
    """PEM files of a server: its certificate with those above it, the key, and who signs its clients' certificates.

    With `ca`, a client without a certificate from there is refused (mutual TLS).
    """

    certificate: Path
    key: Path
    ca: Path | None = None


@dataclass(frozen=True)
class ClientTls:
    """PEM files of a caller: who signs the servers' certificates, and the caller's own certificate and key, if any.

    `name` is what the servers' certificates are made out to, where it is not the host of the address.
    """

    ca: Path
    certificate: Path | None = None
    key: Path | None = None
    name: str | None = None


@dataclass(frozen=True)
class _Pem:
    ca: bytes | None
    certificate: bytes | None
    key: bytes | None


def server_credentials(tls: ServerTls) -> grpc.ServerCredentials:
    """Credentials for a server's port, of the files as they are when a client connects; raises FileUnusable."""
    files = _files(tls.ca, tls.certificate, tls.key, _server_configuration)
    used = files.current()

    def changed() -> grpc.ServerCertificateConfiguration | None:
        # Asked before every handshake, on a thread of grpc's; None leaves things as they are.
        nonlocal used
        before, used = used, files.current()
        return None if used is before else used

    return grpc.dynamic_ssl_server_credentials(
        used,
        changed,  # type: ignore[arg-type]  # None is as good, only the stubs don't know
        require_client_authentication=tls.ca is not None,
    )


def _server_configuration(pem: _Pem) -> grpc.ServerCertificateConfiguration:
    assert pem.key is not None, "a server has one"
    assert pem.certificate is not None, "a server has one"
    return grpc.ssl_server_certificate_configuration([(pem.key, pem.certificate)], pem.ca)


def server_context(tls: ServerTls) -> ssl.SSLContext:
    """For a server of another protocol: of the files as they are when a client connects; raises FileUnusable."""

    def make() -> ssl.SSLContext:
        _check(tls.ca, tls.certificate, tls.key)
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=tls.ca)
        context.load_cert_chain(tls.certificate, tls.key)
        if tls.ca is not None:
            context.verify_mode = ssl.CERT_REQUIRED
        return context

    paths = [path for path in (tls.ca, tls.certificate, tls.key) if path is not None]
    files = FileValue(paths, make, what="TLS material")

    def renew(connection: ssl.SSLObject, _name: str | None, _context: ssl.SSLContext) -> None:
        connection.context = files.current()

    context = make()
    context.sni_callback = renew  # at each handshake, whether a name is asked for or not
    return context


def open_tls_channel(tls: ClientTls, open_channel: OpenChannel) -> grpc.aio.Channel:
    """A channel of the files as they are when a call is made; raises FileUnusable.

    `open_channel` opens one with given credentials: grpc reads a channel's certificates only once, so that calls after
    a change go through a channel of their own.
    """
    return RenewedChannel(_files(tls.ca, tls.certificate, tls.key, _channel_credentials), open_channel)


def _channel_credentials(pem: _Pem) -> grpc.ChannelCredentials:
    return grpc.ssl_channel_credentials(pem.ca, pem.key, pem.certificate)


def _files(ca: Path | None, certificate: Path | None, key: Path | None, use: Callable[[_Pem], Any]) -> FileValue[Any]:
    def make() -> Any:
        _check(ca, certificate, key)
        return use(_Pem(*(None if path is None else read_bytes(path) for path in (ca, certificate, key))))

    paths = [path for path in (ca, certificate, key) if path is not None]
    return FileValue(paths, make, what="TLS material")


def _check(ca: Path | None, certificate: Path | None, key: Path | None) -> None:
    # grpc takes anything and then refuses every connection.
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    for path in (ca, certificate, key):
        if path is not None:
            read_bytes(path)
    if ca is not None:
        try:
            context.load_verify_locations(ca)
        except ssl.SSLError as failure:
            raise FileUnusable(f"{ca} must have PEM certificates of authorities: {failure.reason}") from failure
    if certificate is not None:
        try:
            # Without a password at hand OpenSSL would ask for one on the terminal.
            context.load_cert_chain(certificate, key, password=_no_password)
        except (ssl.SSLError, ValueError) as failure:
            why = getattr(failure, "reason", None) or failure
            raise FileUnusable(f"{certificate} and {key} must be a PEM certificate and its key: {why}") from failure


def _no_password() -> str:
    raise ValueError("the key must not have a password")


class RenewedChannel(grpc.aio.Channel):
    """A channel whose new calls have the newest credentials; calls go on over the connection that they began on."""

    def __init__(self, credentials: FileValue[grpc.ChannelCredentials], open_channel: OpenChannel) -> None:
        self._credentials = credentials
        self._open_channel = open_channel
        self._used = credentials.current()
        self._channel = open_channel(self._used)
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
        before, self._used = self._used, self._credentials.current()
        if self._used is not before:
            if self._calls:
                self._retired[self._channel] = self._calls
            # One without calls is closed by its own end.
            self._channel, self._calls = self._open_channel(self._used), set()
        return self._channel

    def _end(self, call: Any, calls: set[Any], channel: grpc.aio.Channel) -> None:
        calls.discard(call)
        if not calls:
            self._retired.pop(channel, None)
