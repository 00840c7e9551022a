"""How a mesh is reached: encrypted or not, and as whom."""

import ipaddress
from dataclasses import dataclass, field
from pathlib import Path

import grpc

from client.errors import InputError


@dataclass(frozen=True, kw_only=True)
class Access:
    """What a mesh asks of those who connect to it.

    `tls`: the connection is encrypted, and the mesh shows a certificate of a public authority, or of the one in the PEM
    file `ca`, which implies `tls`. `certificate` and `key` are PEM files with a certificate of one's own, for a mesh
    that asks for one. `api_key` goes with every call; it is refused to send it unencrypted to another machine.
    """

    tls: bool = False
    ca: Path | None = None
    certificate: Path | None = None
    key: Path | None = None
    api_key: str | None = field(default=None, repr=False)

    def credentials(self) -> grpc.ChannelCredentials | None:
        """The credentials of an encrypted connection, of the files as they are now; None for a plain one."""
        if not (self.tls or self.ca):
            if self.certificate or self.key:
                raise InputError("a certificate is shown over TLS only: give a CA, or ask for TLS")
            return None
        if (self.certificate is None) != (self.key is None):
            raise InputError("a certificate and its key go together: give both or neither")
        return grpc.ssl_channel_credentials(_read(self.ca), _read(self.key), _read(self.certificate))

    def metadata(self, address: str) -> tuple[tuple[str, str], ...]:
        """What goes with every call to "host:port"."""
        if not self.api_key:
            return ()
        if not self.api_key.isascii() or not self.api_key.isprintable():
            raise InputError("an API key is one line of ASCII")
        if not (self.tls or self.ca or is_loopback(address)):
            raise InputError(f"an API key is not sent to {address} unencrypted: give a CA, or ask for TLS")
        return (("authorization", f"Bearer {self.api_key}"),)


def is_loopback(address: str) -> bool:
    """Whether "host:port" names this machine itself."""
    host = address.rpartition(":")[0].strip("[]")
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _read(path: Path | None) -> bytes | None:
    if path is None:
        return None
    try:
        return path.read_bytes()
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}") from None
