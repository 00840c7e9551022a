"""Certificates made for a test."""

import os
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import trustme

from services.runtime.tls import ClientTls, ServerTls


@dataclass(frozen=True)
class Identity:
    """A certificate and its key, in files."""

    certificate: Path
    key: Path


class Authority:
    """Signs certificates for this machine's address and writes them into a folder."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self.ca = folder / "ca.pem"
        self._ca = trustme.CA()
        self._ca.cert_pem.write_to_path(str(self.ca))

    def issue(self, name: str, *hosts: str, is_expired: bool = False) -> Identity:
        """A certificate for `hosts`, or 127.0.0.1; files that have the name are replaced, key first."""
        ends = datetime.now(UTC) - timedelta(days=1) if is_expired else None
        made = self._ca.issue_cert(*(hosts or ("127.0.0.1",)), not_after=ends)
        identity = Identity(self.folder / f"{name}.pem", self.folder / f"{name}.key")
        replace(identity.key, made.private_key_pem.bytes())
        replace(identity.certificate, b"".join(blob.bytes() for blob in made.cert_chain_pems))
        return identity

    def server(self, *, is_mutual: bool = False, is_expired: bool = False) -> ServerTls:
        """The files of a server."""
        identity = self.issue("server", is_expired=is_expired)
        return ServerTls(identity.certificate, identity.key, self.ca if is_mutual else None)

    def client(self, *, is_expired: bool = False) -> ClientTls:
        """The files of a caller with a certificate of its own."""
        identity = self.issue("client", "caller.test", is_expired=is_expired)
        return ClientTls(self.ca, identity.certificate, identity.key)


def replace(path: Path, content: bytes) -> None:
    """Replaces a file at once, as operators should."""
    fresh = path.with_suffix(".new")
    fresh.write_bytes(content)
    os.replace(fresh, path)
