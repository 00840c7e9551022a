"""TLS from files: who a server is, whom it lets in, and whom a caller trusts."""

import ssl
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc

from services.runtime.file_value import FileUnusable, FileValue, read_bytes


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


def client_tls(
    setting: str, ca: Path | None, certificate: Path | None, key: Path | None, name: str | None
) -> ClientTls | None:
    """A caller's TLS as settings give it whose names begin with `setting`; None where it has none.

    Raises ValueError where one of them lacks another.
    """
    if (certificate is None) != (key is None):
        raise ValueError(f"{setting}_certificate and {setting}_key must be given together")
    if ca is None:
        if certificate or name:
            raise ValueError(f"{setting}_certificate and {setting}_name need {setting}_ca")
        return None
    return ClientTls(ca, certificate, key, name)


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


def channel_credentials(tls: ClientTls) -> FileValue[grpc.ChannelCredentials]:
    """What a caller connects with, as its files are now; raises FileUnusable."""
    return _files(tls.ca, tls.certificate, tls.key, _channel_credentials)


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
